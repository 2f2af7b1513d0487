"""Detectron2 detectors that are trained with ranking losses (aLRP, AP).

Nothing heavy is imported here. ``alrp.losses`` works without Detectron2; the names in ``__all__``
load on first use (PEP 562) and say how to install Detectron2 where it is missing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {"add_alrp_config": "config", "prepare_config": "engine.other_trainers"}

__all__ = ["__version__", *sorted(_MODULE_OF)]

_INSTALL_DETECTRON2 = (
    "alrp needs Detectron2 for everything but its losses and its LRP numbers, and this Python has"
    " none: run `python tools/install_detectron2.py` from a checkout of alrp (pure Python, no"
    " compiler needed), or build upstream Detectron2 as its INSTALL.md says (for the compiled ops)"
)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            raise ImportError(_INSTALL_DETECTRON2, name="detectron2") from None
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
