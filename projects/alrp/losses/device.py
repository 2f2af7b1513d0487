"""What the ranking losses can use on a device."""

from __future__ import annotations

import functools
import warnings
from types import ModuleType
from typing import Optional
import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it: float32 prefix sums lose whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


def compiled_for(device: torch.device) -> Optional[ModuleType]:
    """The module :mod:`alrp.losses.compiled`, if it serves this device and numba can be imported.

    It is imported on demand: a training on GPUs has no need of it.
    """
    return _compiled() if device.type == "cpu" else None


@functools.lru_cache(maxsize=None)
def _compiled() -> Optional[ModuleType]:
    try:
        from . import compiled
    except ImportError as error:
        warnings.warn(
            f"alrp.losses: numba cannot be imported ({error}), so ranking on the CPU takes several "
            "times as long; install it by: pip install numba"
        )
        return None
    return compiled
