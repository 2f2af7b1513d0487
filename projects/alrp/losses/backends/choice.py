"""Chooses the backend for a device."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Callable, NamedTuple
import torch
from torch import Tensor

from . import operators
from .interface import (
    ALRPValues,
    APValues,
    Rows,
    RSValues,
    SortedPositives,
    SortingErrors,
    Step,
    StepMatrix,
    Survey,
)
from .sorting import sorting_errors


class Backend(NamedTuple):
    """The parts of a backend.

    Attributes:
        survey: function of logits (S,), targets (S,), one value per positive (P_own,), and the
            greatest that such a value may be.
        sort: function of logits of positives (P,); of one value per positive in ``targets`` order
            (P,), or (0,); and of the positives' indices (P,) int64, all different, in the order of
            the logits.
        matrix: its subclass of :class:`StepMatrix`.
        sorting_errors: see :func:`alrp.losses.backends.sorting.sorting_errors`: function of logits
            and IoUs of the positives, both (P,) float64, the logits ascending; and of the step.
        alrp_values: the values of aLRP Loss: function of the rows; of the (P,) localisation errors
            and the order of :class:`SortedPositives`; of ``eps``; and of the dtypes of ``cls`` and
            ``loc``.
        ap_values: the values of AP Loss: function of the rows, and of the dtype of the value.
        rs_values: the values of RS Loss: function of the rows, of the sorting errors, and of the
            dtype of the values.
    """

    survey: Callable[..., Survey]
    sort: Callable[..., SortedPositives]
    matrix: type[StepMatrix]
    sorting_errors: Callable[[Tensor, Tensor, Step], SortingErrors]
    alrp_values: Callable[..., ALRPValues]
    ap_values: Callable[[Rows, torch.dtype], APValues]
    rs_values: Callable[[Rows, SortingErrors, torch.dtype], RSValues]


def backend(device: torch.device) -> Backend:
    """Compiled loops on the CPU, kernels of Triton on a GPU; else operators of PyTorch.

    The first needs numba; the second Triton, and a C compiler that Triton finds.
    """
    if device.type == "cpu" and _has_numba():
        return _compiled_backend()
    return _fused_backend() if _has_triton(device) else _OPERATORS


@functools.lru_cache(maxsize=None)
def _compiled_backend() -> Backend:
    # Imported here, because numba takes 110 MiB that a training on a GPU does not need.
    from . import compiled

    return _OPERATORS._replace(
        survey=compiled.survey,
        sort=compiled.sort,
        matrix=compiled.CompiledMatrix,
        sorting_errors=functools.partial(sorting_errors, sums_below=compiled.sums_below),
    )


@functools.lru_cache(maxsize=None)
def _fused_backend() -> Backend:
    from . import fused

    return Backend(
        fused.survey,
        fused.sort,
        fused.FusedMatrix,
        fused.sorting_errors,
        fused.alrp_values,
        fused.ap_values,
        fused.rs_values,
    )


_OPERATORS = Backend(
    operators.survey,
    operators.sort,
    operators.OperatorMatrix,
    functools.partial(sorting_errors, sums_below=operators.sums_below),
    operators.alrp_values,
    operators.ap_values,
    operators.rs_values,
)


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


@functools.lru_cache(maxsize=None)
def _has_triton(device: torch.device) -> bool:
    """Whether this is an NVIDIA GPU on which Triton's kernels compile and run; tried once."""
    if device.type != "cuda" or torch.version.hip:  # on AMD's nobody has tried
        return False
    try:
        importlib.import_module(f"{__package__}.fused").try_out(device)
    except Exception as error:  # no Triton, no compiler, a GPU that is too old: all errors occur
        warnings.warn(
            f"alrp.losses: kernels of Triton do not run on {device} ({error!r}), so that ranking "
            "launches ten times as many kernels of PyTorch; install Triton for this PyTorch and a "
            "C compiler like gcc"
        )
        return False
    return True
