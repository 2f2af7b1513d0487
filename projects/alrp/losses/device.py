"""What the ranking losses use on a device."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it: float32 prefix sums lose whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


def backend(device: torch.device) -> ModuleType:
    """The module that does the work over all entries: ``survey`` and a ``Matrix``.

    Both are imported on demand, as a training on GPUs has no need of compiled loops.
    """
    name = ".compiled" if device.type == "cpu" and _has_numba() else ".operators"
    return importlib.import_module(name, __package__)


@functools.lru_cache(maxsize=None)
def _has_numba() -> bool:
    try:
        importlib.import_module("numba")
    except (ImportError, OSError) as error:  # missing, at odds with NumPy, or broken
        warnings.warn(
            f"alrp.losses: numba cannot be imported ({error}), so ranking on the CPU takes several "
            "times as long; install it by: pip install numba"
        )
        return False
    return True
