"""Chooses the backend for a device."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Callable, NamedTuple
import torch

from . import operators
from .interface import StepMatrix, Survey


class Backend(NamedTuple):
    """The two parts of a backend.

    Attributes:
        survey: function of logits (S,), targets (S,) and localisation errors (P_own,).
        matrix: its subclass of :class:`StepMatrix`.
    """

    survey: Callable[..., Survey]
    matrix: type[StepMatrix]


def backend(device: torch.device) -> Backend:
    """Compiled loops on the CPU where numba is installed, elsewhere operators of PyTorch."""
    if device.type == "cpu" and _has_numba():
        # Imported here, because numba takes 110 MiB that a training on a GPU does not need.
        from . import compiled

        return Backend(compiled.survey, compiled.CompiledMatrix)
    return Backend(operators.survey, operators.OperatorMatrix)


@functools.lru_cache(maxsize=None)
def _has_numba() -> bool:
    try:
        importlib.import_module("numba")
    except Exception as error:  # missing, at odds with NumPy or coverage, broken: all errors occur
        warnings.warn(
            f"alrp.losses: numba cannot be imported ({error!r}), so ranking on the CPU takes "
            "several times as long; install or repair it by: pip install -U numba"
        )
        return False
    return True
