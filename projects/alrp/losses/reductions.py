"""Sums, counts and maxima of vectors, in the precision that a ranking needs."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 if the device has it: prefix sums in float32 are off by whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


def prefix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[:c + 1])`` of a vector, or of each column of a matrix.

    Bitwise reproducible under ``torch.use_deterministic_algorithms``, on CUDA too.
    """
    if x.is_cuda and x.is_floating_point() and torch.are_deterministic_algorithms_enabled():
        return _prefix_sum_by_doubling(x)
    return x.cumsum(0)


def _prefix_sum_by_doubling(x: Tensor) -> Tensor:
    """By log2(n) additions of shifted copies.

    Needed because ``cumsum`` of floats raises an error on CUDA in the deterministic mode.
    """
    reach = 1
    while reach < len(x):
        x = torch.cat([x[:reach], x[reach:] + x[:-reach]])
        reach *= 2
    return x


def prefix_sum_from_zero(x: Tensor) -> Tensor:
    """``out[c] = sum(x[:c])`` for c from 0 to len(x), along the first dimension."""
    return torch.cat([x.new_zeros(1, *x.shape[1:]), prefix_sum(x)])


def suffix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[c:])``, summed from the end."""
    return prefix_sum(x.flip(0)).flip(0)


def num_not_finite(tensor: Tensor) -> Tensor:
    """Number of values that are NaN or infinite, a scalar."""
    return (~torch.isfinite(tensor)).count_nonzero()


def num_outside(tensor: Tensor, most: float) -> Tensor:
    """Number of values outside [0, most], a scalar; 0.01 beyond may be rounding, as in bfloat16."""
    return ((tensor < -0.01) | (tensor > most + 0.01)).count_nonzero()


def largest_magnitude(tensor: Tensor) -> Tensor:
    """Greatest absolute value, a scalar; 0 without values."""
    return tensor.abs().max() if tensor.numel() else tensor.new_zeros(())
