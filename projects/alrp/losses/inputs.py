"""Checks of what the ranking losses are given."""

from __future__ import annotations

import torch
from torch import Tensor

# With these bounds, and those that ranking.py sets on the logits of positives, no sum overflows.
DELTA_RANGE = (1e-30, 1e30)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NonFiniteError(FloatingPointError):
    """Values that a loss was given are NaN, infinite or too large, as when a training diverges."""


def check_tensors(**inputs: Tensor) -> None:
    """Raise a TypeError unless all are tensors, a ValueError unless they are on one device."""
    first = next(iter(inputs))
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a tensor, but is a {type(value).__name__}; convert it with "
                "torch.as_tensor."
            )
        if value.device != inputs[first].device:
            raise ValueError(
                f"{first} are on {inputs[first].device}, but {name} on {value.device}; move them "
                "to one device."
            )


def checked_logits(logits: Tensor, targets: Tensor, delta: float, **per_positive: Tensor) -> Tensor:
    """Check shapes, dtypes and delta; return the logits in at least float32.

    The cast is part of autograd's graph: gradients of half precision logits are formed in float32,
    and rounded only after the scale of mixed precision has been applied.

    Args:
        logits: (S,) raw scores.
        targets: (S,) integers.
        delta: half width of the step's linear part.
        per_positive: by its name, the (P,) values that a loss is given for its positives. Their
            number is checked with the values themselves, in ranking.py.

    Raises:
        TypeError: if one is no tensor.
        ValueError: on a wrong shape, dtype, device or delta.
    """
    check_tensors(logits=logits, targets=targets, **per_positive)
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
    for name, values in per_positive.items():
        if values.dim() != 1 or values.dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"{name} must be 1-D and floating point, but are {values.dtype} of shape "
                f"{tuple(values.shape)}; pass one value per positive, in targets order."
            )
    check_delta(delta)
    return logits.to(result_dtype(logits))


def check_delta(delta: float) -> None:
    """Raise a ValueError unless ``delta`` is in ``DELTA_RANGE``."""
    if not DELTA_RANGE[0] <= delta <= DELTA_RANGE[1]:
        raise ValueError(
            "delta must lie between {:g} and {:g}, but is {}; the published value is 1.0 (0.5 for "
            "RS Loss), and a small one such as 1e-3 comes close to hard ranking.".format(
                *DELTA_RANGE, delta
            )
        )


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Losses of half precision inputs are float32, those of float32 and float64 keep the dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)
