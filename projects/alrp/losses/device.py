"""How sums are formed on a device, and which module does the work there."""

from __future__ import annotations

import functools
import importlib
import warnings
from types import ModuleType
import torch
from torch import Tensor


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it: float32 prefix sums lose whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


def prefix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[:c + 1])`` of a vector; the same bits every time, if torch asks for it."""
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _prefix_sum_by_doubling(x)
    return x.cumsum(0)


def _prefix_sum_by_doubling(x: Tensor) -> Tensor:
    """In log2(n) additions of whole vectors.

    ``cumsum`` of floats refuses to run on CUDA under ``torch.use_deterministic_algorithms``.
    """
    reach = 1
    while reach < x.numel():
        x = torch.cat([x[:reach], x[reach:] + x[:-reach]])
        reach *= 2
    return x


def suffix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[c:])``, summed from the end."""
    return prefix_sum(x.flip(0)).flip(0)


def backend(device: torch.device) -> ModuleType:
    """The module that does the work over all entries: ``survey`` and a ``Matrix``.

    Imported on demand: numba takes 110 MiB, which a training on GPUs has no need of.
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
