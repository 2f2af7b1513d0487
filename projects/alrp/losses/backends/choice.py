"""Which backend ranks on a device."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Callable, NamedTuple
import torch

from . import operators
from .interface import StepMatrix, Survey


class Backend(NamedTuple):
    """What ranks on a device.

    Attributes:
        survey: function of logits (S,), targets (S,) and localisation errors (P_own,).
        matrix: the smoothed step, as a class.
    """

    survey: Callable[..., Survey]
    matrix: type[StepMatrix]


def backend(device: torch.device) -> Backend:
    """Compiled loops on the CPU where numba is installed, elsewhere operators of PyTorch."""
    if device.type == "cpu" and _has_numba():
        # Here, and not above: numba takes 110 MiB, which a training on GPUs has no need of.
        from . import compiled

        return Backend(compiled.survey, compiled.CompiledMatrix)
    return Backend(operators.survey, operators.OperatorMatrix)


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
