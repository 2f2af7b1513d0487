"""Chooses the backend for a device."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Callable, NamedTuple
import torch
from torch import Tensor

from . import operators
from .interface import StepMatrix, Survey


class Backend(NamedTuple):
    """The three parts of a backend.

    Attributes:
        survey: function of logits (S,), targets (S,), one value per positive (P_own,), and the
            greatest that such a value may be.
        matrix: its subclass of :class:`StepMatrix`.
        sums_below: sums over the places between two cuts whose rank is below a limit, for all
            queries at once: function of weights (P, K) float64, K at each place; ranks (P,) int64,
            a permutation of 0 to P - 1; limits (Q,) int64 in [0, P - 1]; cuts (Q, C) int64 in
            [0, P], ascending. Gives (Q, C - 1, K). Sums of whole numbers are exact.
    """

    survey: Callable[..., Survey]
    matrix: type[StepMatrix]
    sums_below: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def backend(device: torch.device) -> Backend:
    """Compiled loops on the CPU where numba is installed, elsewhere operators of PyTorch."""
    if device.type == "cpu" and _has_numba():
        # Imported here, because numba takes 110 MiB that a training on a GPU does not need.
        from . import compiled

        return Backend(compiled.survey, compiled.CompiledMatrix, compiled.sums_below)
    return Backend(operators.survey, operators.OperatorMatrix, operators.sums_below)


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
