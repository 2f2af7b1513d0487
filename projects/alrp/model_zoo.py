"""The configs of this project by name, in the manner of ``detectron2.model_zoo``.

They lie in the installed package; no checkout is needed.
"""

from __future__ import annotations

from pathlib import Path
from omegaconf import DictConfig

from detectron2.config import CfgNode, LazyConfig

from .config import load_config

_FOLDER = Path(__file__).with_name("configs")


def get_config_file(config_path: str) -> str:
    """Path of a config file, for ``merge_from_file`` or as a ``_BASE_``.

    Args:
        config_path: such as "COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml".

    Raises:
        RuntimeError: if there is none of that name.
    """
    path = _FOLDER / config_path
    if not path.is_file():
        names = sorted(p.name for p in path.parent.glob(f"*{path.suffix}") if path.parent.is_dir())
        raise RuntimeError(
            f"{config_path} is no config of alrp.model_zoo; in its folder there are: "
            f"{', '.join(names) or 'none'}."
        )
    return str(path)


def get_config(config_path: str) -> CfgNode | DictConfig:
    """Content of a config file: a ``CfgNode`` of a YAML file, a LazyConfig of a Python file.

    Args:
        config_path: as for :func:`get_config_file`. Weights are those that a training starts from.

    Raises:
        RuntimeError: if there is none of that name.
    """
    file = get_config_file(config_path)
    return LazyConfig.load(file) if file.endswith(".py") else load_config(file)
