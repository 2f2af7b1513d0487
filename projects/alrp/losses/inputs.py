"""Checks of what the ranking losses are given.

Shape shorthand: S entries of this process, P_own positives among them.
"""

from __future__ import annotations

from typing import NamedTuple, Optional
import torch
from torch import Tensor

from .device import accumulation_dtype, backend

# Least number of float steps in half the width of the smoothed step.
_RESOLUTION = 2.0**12
# Together with the resolution, these bounds keep all sums far from overflow.
DELTA_RANGE = (1e-30, 1e30)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_logits(logits: Tensor, targets: Tensor, delta: float) -> Tensor:
    """The logits in at least float32, once shapes, dtypes and delta are known to be right.

    The cast stands outside of what the losses differentiate by themselves, because the gradient of
    half precision logits may fit their dtype only with the scale of mixed precision, which it is
    multiplied with there.

    Raises:
        ValueError: on a wrong shape, dtype or delta.
    """
    if logits.dim() != 1 or targets.shape != logits.shape:
        raise ValueError(
            "logits and targets must be 1-D and of one length, but have shapes "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}; flatten both in the same order."
        )
    if logits.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"logits must be floating point of 16 to 64 bits, but are {logits.dtype}; pass raw "
            "scores."
        )
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"targets must be integers in {{1, 0, -1}}, but are {targets.dtype}; "
            "convert them with .to(torch.int8)."
        )
    if not DELTA_RANGE[0] <= delta <= DELTA_RANGE[1]:
        raise ValueError(
            "delta must lie between {:g} and {:g}, but is {}; the published value is 1.0, and a "
            "small one such as 1e-3 comes close to hard ranking.".format(*DELTA_RANGE, delta)
        )
    return logits.to(result_dtype(logits))


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Losses of half precision inputs are float32, those of float32 and float64 keep the dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)


def checked_positives(
    logits: Tensor, targets: Tensor, loc_errors: Optional[Tensor], delta: float
) -> Tensor:
    """Indices of the positives, once the values of all inputs are known to be usable.

    Args:
        logits: (S,) of :func:`checked_logits`.
        targets: (S,) 1 positive, 0 negative, anything else ignored.
        loc_errors: (P_own,) if the loss has them.
        delta: half width of the step.

    Returns:
        Tensor: (P_own,) int64, ascending.

    Raises:
        ValueError: if there is not one localisation error per positive.
        FloatingPointError: if a logit that is not ignored, or a localisation error, is not finite,
            or a positive's logit so large that ``delta`` vanishes beside it.
    """
    errors = logits[:0] if loc_errors is None else loc_errors
    found = backend(logits.device).survey(logits, targets, errors)
    if loc_errors is not None and len(loc_errors) != len(found.positives):
        raise ValueError(
            f"loc_errors has {len(loc_errors)} elements but targets has {len(found.positives)} "
            "positives; pass one error per positive, in targets order."
        )
    _refuse_non_finite("logits", found.num_bad_logits, logits)
    _refuse_non_finite("loc_errors", found.num_bad_errors, errors)
    resolution = torch.finfo(accumulation_dtype(logits.device)).eps * _RESOLUTION
    if found.largest * resolution > delta:
        raise FloatingPointError(
            f"logits: positives reach {found.largest:.3g}, beside which delta {delta:g} vanishes; "
            "look for a learning rate that is too high or broken weights, or take a larger delta."
        )
    return found.positives


class Survey(NamedTuple):
    """What must be known of the values before they can be ranked; the numbers on the host.

    Attributes:
        positives: (P_own,) int64, ascending indices of the positives.
        num_bad_logits: number of logits that are not finite, ignored ones not counted.
        num_bad_errors: number of localisation errors that are not finite.
        largest: greatest absolute value among the logits of the positives; 0 without any, of no
            meaning beside bad logits.
    """

    positives: Tensor
    num_bad_logits: int
    num_bad_errors: int
    largest: float


def num_not_finite(tensor: Tensor) -> Tensor:
    """Number of values that are NaN or infinite, a scalar."""
    return (~torch.isfinite(tensor)).count_nonzero()


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Greatest absolute value, a scalar; 0 without values."""
    return tensor.abs().max() if tensor.numel() else tensor.new_zeros(())


def _refuse_non_finite(name: str, num_bad: int, tensor: Tensor) -> None:
    if num_bad:
        raise FloatingPointError(
            f"{name}: {num_bad} of {tensor.numel()} values that enter the ranking are NaN or Inf; "
            "look for a learning rate that is too high, degenerate boxes, or broken weights."
        )
