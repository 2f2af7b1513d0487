"""Tensors made of Python numbers and of tensors of different lengths, without waiting for a GPU."""

from __future__ import annotations

from typing import Sequence
import torch
from torch import Tensor
from torch.nn import functional as F


def vector(like: Tensor, values: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """``like.new_tensor(values)``, which would wait for a GPU to take a copy of the list."""
    return torch.stack([like.new_full((), value, dtype=dtype or like.dtype) for value in values])


def filled_up(rows: Sequence[Tensor], value: float = 0.0, least: int = 0) -> Tensor:
    """(N, M, ...) from N tensors of up to M rows each, filled up with a value.

    Args:
        rows: tensors that differ in their first size only.
        value: of what is added behind the rows of a tensor.
        least: M is at least that.
    """
    length = max(least, *map(len, rows))
    flat = (0, 0) * (rows[0].dim() - 1)
    return torch.stack([F.pad(x, (*flat, 0, length - len(x)), value=value) for x in rows])
