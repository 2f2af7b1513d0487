"""ImageNet weights by name: ``torchvision://resnet50``, ``torchvision://resnet50/IMAGENET1K_V2``.

Importing this module teaches Detectron2's ``PathManager`` the prefix.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any
import torch
import torchvision
from iopath.common.file_io import PathHandler, file_lock
from torchvision.models import WeightsEnum, get_model_weights, list_models

from detectron2.utils.file_io import PathManager

from ..errors import UserError

_LOGGER = logging.getLogger(__name__)

# As published; the default of torchvision's own functions changes with its releases.
_DEFAULT_WEIGHTS = "IMAGENET1K_V1"


class TorchvisionPathHandler(PathHandler):
    """Resolves ``torchvision://MODEL`` and ``torchvision://MODEL/WEIGHTS`` to a local file.

    MODEL is a ResNet or ResNeXt of torchvision, WEIGHTS a member of its weight enum, by default
    IMAGENET1K_V1. Files lie in PyTorch's own cache (``TORCH_HOME``), are shared with torchvision
    and downloaded once.
    """

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """The file of a name, downloaded if it is missing.

        Raises:
            UserError: on an unknown name, or if the download fails.
        """
        self._check_kwargs(kwargs)
        url = _weights(path).url
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
        if force or not os.path.isfile(file):
            with file_lock(file):
                if force or not os.path.isfile(file):  # else another process was quicker
                    _download(path, url, file)
        return file

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any):
        return open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


def _weights(path: str) -> WeightsEnum:
    """The member of a weight enum that a name stands for."""
    model, _, weights = path[len(TorchvisionPathHandler.PREFIX) :].partition("/")
    models = [m for m in list_models(module=torchvision.models) if re.match("res(net|next)", m)]
    if model not in models:
        raise UserError(
            f"MODEL.WEIGHTS {path}: expected one of the models {', '.join(models)}, but got "
            f"{model!r}; write {TorchvisionPathHandler.PREFIX}MODEL, or the path of a file."
        )
    choices = get_model_weights(model).__members__
    if (weights or _DEFAULT_WEIGHTS) not in choices:
        raise UserError(
            f"MODEL.WEIGHTS {path}: expected one of the weights {', '.join(choices)}, but got "
            f"{weights or _DEFAULT_WEIGHTS!r}; write {TorchvisionPathHandler.PREFIX}{model}/NAME."
        )
    return choices[weights or _DEFAULT_WEIGHTS]


def _download(path: str, url: str, file: str) -> None:
    _LOGGER.info(f"Downloading {path} from {url} to {file}")
    # torchvision's file names end with the start of the hash of their content.
    hash_prefix = re.search(r"-([0-9a-f]+)\.", os.path.basename(url))
    try:
        torch.hub.download_url_to_file(
            url, file, hash_prefix[1] if hash_prefix else None, progress=False
        )
    except (OSError, RuntimeError) as error:  # no network, no space, another content
        raise UserError(
            f"MODEL.WEIGHTS {path}: cannot download {url} ({error}); download it on another "
            f"machine and put it to {file}, or set MODEL.WEIGHTS to where you put it, or to '' to "
            "start training from random weights."
        ) from error


PathManager.register_handler(TorchvisionPathHandler())
