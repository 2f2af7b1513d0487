"""Checkpoint files of any origin: read without running code of theirs, written whole or not."""

from __future__ import annotations

import numpy as np
import os
import warnings
from typing import Any
import torch
from torch import Tensor

from ..errors import UserError
from ..files import replacing
from .pickles import ForeignClass, read_arrays
from .unreadable import explain_classes, explain_unreadable, is_of_torch

_ARRAY_TYPES = (Tensor, np.ndarray)
# Entries under which people save the weights of a model, the likeliest first.
_WEIGHTS = ("state_dict", "model", "model_state_dict", "model_state", "ema", "net")


def read_checkpoint(path: str) -> dict[str, Any]:
    """Content of a file of ``torch.save`` or safetensors, on the CPU; only data is read.

    Raises:
        UserError: if it is missing, unreadable, no dictionary, or holds objects of other classes.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file; name a checkpoint.")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():  # PyTorch's, of pickles that it then reads or refuses
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and pickle document no common exception
        raise UserError(explain_unreadable(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a dictionary, but the file holds a {type(content).__name__}; name a "
            "checkpoint of MMDetection, torchvision or Detectron2."
        )
    return content


def read_zoo_pickle(path: str) -> dict[str, Any]:
    """Content of a ``.pkl`` of Detectron2's or Detectron's zoo, or of a ``.pkl`` of ``torch.save``.

    Returns:
        dict: "model" and "__author__", as Detectron2 expects them, and what else the file holds.

    Raises:
        UserError: as of :func:`read_checkpoint`.
    """
    if is_of_torch(path):
        return read_checkpoint(path)
    try:
        content = read_arrays(path)
    except ForeignClass as error:
        raise UserError(explain_classes(path, [str(error)])) from error
    except Exception as error:  # pickle documents no common exception
        raise UserError(explain_unreadable(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected a dictionary, but the file holds a {type(content).__name__}; name a "
            "checkpoint of Detectron2's or Detectron's zoo."
        )
    if isinstance(content.get("model"), dict):
        return content
    arrays = content.get("blobs", content)  # ImageNet weights have no such entry
    if isinstance(arrays, dict):
        arrays = {n: a for n, a in arrays.items() if not str(n).endswith("_momentum")}
    return {"model": arrays, "__author__": "Caffe2", "matching_heuristics": True}


def split_checkpoint(content: dict[str, Any], path: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in the content of a file, and the names of what lies beside it.

    Args:
        content: of :func:`read_checkpoint`. The weights may be the whole of it, or its entry
            "state_dict" (MMDetection), "model" (Detectron2) or another usual name.
        path: of the file, for the messages.

    Returns:
        tuple: names to tensors, or to arrays if the file was a pickle, and the other names.

    Raises:
        UserError: if there are no weights.
    """
    entry = next((key for key in _WEIGHTS if isinstance(content.get(key), dict)), None)
    state = content if entry is None else content[entry]
    if not state or not _all_arrays(state):
        raise UserError(
            f"{path}: expected weights, as the entry 'state_dict' or 'model' or as the whole file, "
            f"but it holds {', '.join(map(repr, list(content)[:6])) or 'nothing'}; an optimizer's "
            "state or a log is no checkpoint of a model."
        )
    return state, [] if entry is None else [key for key in content if key != entry]


def write_checkpoint(content: dict[str, Any], path: str) -> None:
    """Save ``content``; a file of that name is replaced at the end, or stays as it is.

    Args:
        content: for ``torch.save``.
        path: of a file, or of a link to one, which then stays a link.

    Raises:
        UserError: if the file cannot be written, or something else has that name.
    """
    with replacing(path) as file:
        torch.save(content, file)


def _all_arrays(state: dict) -> bool:
    return all(isinstance(k, str) and isinstance(v, _ARRAY_TYPES) for k, v in state.items())


def _is_safetensors(path: str) -> bool:
    """Whether a file starts as this format does: the length of a JSON object, and the object."""
    with open(path, "rb") as file:
        head = file.read(9)
    return path.endswith(".safetensors") or (
        head[8:] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path)
    )


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise UserError(
            f"checkpoint {path} is in the safetensors format, which needs a package of that name; "
            "run: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # of a type that the package defines in Rust
        raise UserError(explain_unreadable(path, error)) from error
