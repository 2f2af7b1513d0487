"""Datasets named in a config, their check, and the built-in synthetic one.

Names are loaded on first use: ``python -m alrp.data.datasets.shapes`` needs no Detectron2.
"""

from importlib import import_module

_MODULES = {
    "check_dataset": "dataset_check",
    "register_coco_format": "coco_format",
    "make_shapes_dataset": "shapes",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
