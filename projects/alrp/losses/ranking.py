"""The smoothed ranking shared by all ranking losses: exact sums over pairs without forming pairs.

Shape shorthand: S entries, P positives among them, T keys of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Keys are read in blocks, so that float64 copies of them never exceed a few megabytes.
_BLOCK = 1 << 20


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it: float32 prefix sums lose whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


class StepMatrix:
    """The matrix ``H[i, k] = H(keys[k] - queries[i])`` as a linear operator that is never formed.

    ``H(x) = clamp(x / (2 * delta) + 0.5, 0, 1)`` is the smoothed step of the ranking losses
    (Oksuz et al., arXiv:2009.13592, Sec. 2; Chen et al., arXiv:1904.06373).

    The 2P knots ``queries -+ delta`` cut the axis into cells on which every row of H is linear, so
    a key matters only through its cell and its distance to the cell's left knot. Both products cost
    O((P + T) log P) time and O(P + T) memory, and are exact up to float64 rounding.

    Args:
        queries: (P,) logits, any float dtype, P >= 1.
        keys: (T,) logits, any float dtype.
        delta: half width of the linear part of the step, in logit units; > 0.
    """

    def __init__(self, queries: Tensor, keys: Tensor, delta: float) -> None:
        num_queries = queries.numel()
        dtype = accumulation_dtype(queries.device)
        queries = queries.to(dtype)
        self._keys = keys
        self._two_delta = 2.0 * delta

        knots, order = torch.sort(torch.cat([queries - delta, queries + delta]), stable=True)
        position = torch.empty_like(order)
        position[order] = torch.arange(2 * num_queries, device=order.device)
        self._lower, self._upper = position[:num_queries], position[num_queries:]
        self._knots = knots

        # A cell outside every query's linear part is constant for all rows; its width (possibly
        # thousands of deltas) must not enter the sums, or their rounding would drown small ones.
        opened = torch.ones_like(knots)
        opened[self._upper] = -1.0
        self._covered = opened.cumsum(0) > 0.5
        self._width = torch.diff(knots, append=knots[-1:]) * self._covered

        # Cell c >= 1 is [knots[c - 1], knots[c]); cell 0 lies below all knots: H is 0 there.
        self._cells = torch.empty(keys.numel(), dtype=torch.int32, device=keys.device)
        for cells, block in zip(self._cells.split(_BLOCK), keys.split(_BLOCK)):
            cells.copy_(torch.searchsorted(knots, block.to(dtype), right=True, out_int32=True))

    def _offsets(self, cells: Tensor, keys: Tensor) -> Tensor:
        """Distance of each key to the left knot of its cell; 0 in cell 0."""
        left = torch.cat([self._knots.new_zeros(1), self._knots])
        return (keys.to(left.dtype) - left[cells]) * (cells > 0)

    def matvec(self, weights: Optional[Tensor] = None) -> Tensor:
        """``sum_k weights[k] * H(keys[k] - queries[i])`` for every query.

        Args:
            weights: (T,) non-negative; ones if None.

        Returns:
            Tensor: (P,) float64.
        """
        num_cells = self._knots.numel() + 1
        mass = self._knots.new_zeros(num_cells)  # weight of the keys of a cell
        moment = self._knots.new_zeros(num_cells)  # their weighted distance to the left knot
        blocks = (weights if weights is not None else self._keys).split(_BLOCK)
        for cells, keys, w in zip(self._cells.split(_BLOCK), self._keys.split(_BLOCK), blocks):
            offsets = self._offsets(cells, keys)
            w = w.to(offsets.dtype) if weights is not None else torch.ones_like(offsets)
            cells = cells.long()
            mass.scatter_add_(0, cells, w)
            moment.scatter_add_(0, cells, offsets * w)

        # sum_k w_k H(key_k - q) is 1 / (2 delta) times the integral of N(u) over q -+ delta, where
        # N(u) is the weight of the keys above u: in a cell, moment + width * N(next knot).
        above = _suffix_sum(mass[1:]) - mass[1:]
        area = torch.where(self._covered, moment[1:] + self._width * above, 0.0)
        # N never increases, so summing from the top keeps every partial sum within P times the
        # smallest window it is used for: the difference below is accurate relative to itself.
        area_from = _suffix_sum(area)
        return (area_from[self._lower] - area_from[self._upper]) / self._two_delta

    def rmatvec(self, weights: Tensor) -> Tensor:
        """``sum_i weights[i] * H(keys[k] - queries[i])`` for every key (the transposed product).

        Args:
            weights: (P,) non-negative.

        Returns:
            Tensor: (T,) in the dtype of ``keys``; the sums themselves run in float64.
        """
        slope_change = torch.zeros_like(self._knots)
        slope_change[self._lower] = weights.to(slope_change.dtype)
        slope_change[self._upper] = -weights.to(slope_change.dtype)
        slope = slope_change.cumsum(0) * self._covered / self._two_delta
        rise = slope * self._width
        zero = rise.new_zeros(1)
        value = torch.cat([zero, rise.cumsum(0) - rise])  # at the left knot of each cell
        slope = torch.cat([zero, slope])

        result = torch.empty_like(self._keys)
        blocks = zip(result.split(_BLOCK), self._cells.split(_BLOCK), self._keys.split(_BLOCK))
        for out, cells, keys in blocks:
            out.copy_(value[cells] + slope[cells] * self._offsets(cells, keys))
        return result


def _suffix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[c:])``, summed from the end."""
    return x.flip(0).cumsum(0).flip(0)


@dataclass(frozen=True)
class Ranking:
    """The positives of a mini-batch ranked among its positives and negatives.

    Attributes:
        positives: (P,) int64, indices of the positives, ascending.
        pos_logits: (P,) their logits, float64.
        false_positives: (P,) float64, smoothed number of negatives ranked above each positive.
        rank: (P,) float64, smoothed rank of each positive, >= 1.
        negatives: indices of the negatives within reach of a positive, ascending.
    """

    positives: Tensor
    pos_logits: Tensor
    false_positives: Tensor
    rank: Tensor
    negatives: Tensor
    among_positives: StepMatrix
    among_negatives: StepMatrix
    num_entries: int

    def sum_above(self, values: Tensor) -> Tensor:
        """``sum_{k != i} values[k] * R_ik`` over the other positives, (P,) float64."""
        return self.among_positives.matvec(values) - 0.5 * values.to(self.rank.dtype)

    def gradient(self, errors: Tensor, dtype: torch.dtype) -> Tensor:
        """The error-driven update of the logits (arXiv:2009.13592, Eqs. 4 to 6 and Alg. 1).

        Each positive i is pushed up by ``errors[i] / P``; the negatives that outrank it are pushed
        down by the same total, shared in proportion to ``H(s_j - s_i)``.

        Args:
            errors: (P,) float64 >= 0; 0 wherever ``false_positives`` is 0.
            dtype: of the result.

        Returns:
            Tensor: (S,); sums to zero.
        """
        errors = errors / errors.numel()
        shares = torch.where(errors > 0, errors / self.false_positives, 0.0)
        gradient = torch.zeros(self.num_entries, dtype=dtype, device=errors.device)
        gradient[self.negatives] = self.among_negatives.rmatvec(shares).to(dtype)
        gradient[self.positives] = -errors.to(dtype)
        return gradient


@torch.no_grad()
def rank_positives(
    logits: Tensor, targets: Tensor, delta: float, loc_errors: Optional[Tensor] = None
) -> Optional[Ranking]:
    """Rank the positives of a mini-batch, and check the values of its inputs on the way.

    The device is read twice: once for the number of positives together with the checks on
    values, once for the number of negatives within reach of a positive.

    Args:
        logits: (S,) of :func:`checked_logits`.
        targets: (S,) 1 positive, 0 negative, anything else ignored.
        delta: half width of the step.
        loc_errors: (P,) checked to match the positives, if given.

    Returns:
        Ranking: or None if there is no positive.

    Raises:
        ValueError: if there is not one localisation error per positive.
        FloatingPointError: if a logit that is not ignored, or a localisation error, is not finite.
    """
    num_positives = _checked_num_positives(logits, targets, loc_errors)
    if num_positives == 0:
        return None
    positives = _true_indices(targets == 1, num_positives)
    pos_logits = logits[positives].to(accumulation_dtype(logits.device))

    # Negatives below the cut have H = 0 for every positive. Rounding the cut down keeps this exact.
    cut = (pos_logits.min() - delta).to(logits.dtype)
    cut = torch.nextafter(cut, torch.full_like(cut, -torch.inf))
    negatives = torch.nonzero((targets == 0) & (logits >= cut)).squeeze(1)

    among_positives = StepMatrix(pos_logits, pos_logits, delta)
    among_negatives = StepMatrix(pos_logits, logits[negatives], delta)
    # H(0) = 1/2 of each positive against itself is not part of its rank.
    num_above = among_positives.matvec() - 0.5
    false_positives = among_negatives.matvec()
    return Ranking(
        positives,
        pos_logits,
        false_positives,
        (1.0 + num_above + false_positives).clamp(min=1.0),  # it is, but for rounding
        negatives,
        among_positives,
        among_negatives,
        logits.numel(),
    )


def checked_logits(logits: Tensor, targets: Tensor, delta: float) -> Tensor:
    """The logits in at least float32, once shapes, dtypes and delta are known to be right.

    The cast stands outside :class:`ErrorDriven`, because a gradient scaled for mixed precision
    fits its dtype only after it has been scaled back.

    Raises:
        ValueError: on a wrong shape, dtype or delta.
    """
    if logits.dim() != 1 or targets.shape != logits.shape:
        raise ValueError(
            "logits and targets must be 1-D and of one length, but have shapes "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}; flatten both in the same order."
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, but are {logits.dtype}; pass raw scores.")
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"targets must be integers in {{1, 0, -1}}, but are {targets.dtype}; "
            "convert them with .to(torch.int8)."
        )
    if not 0 < delta < float("inf"):
        raise ValueError(
            f"delta must be > 0 and finite, but is {delta}; the published value is 1.0, and a tiny "
            "one such as 1e-3 comes close to hard ranking."
        )
    return logits.to(result_dtype(logits))


def _checked_num_positives(logits: Tensor, targets: Tensor, loc_errors: Optional[Tensor]) -> int:
    """The number of positives, read from the device together with all checks on values."""
    valid = (targets == 1) | (targets == 0)
    facts = [(targets == 1).sum(), (valid & ~torch.isfinite(logits)).sum()]
    if loc_errors is not None:
        facts.append((~torch.isfinite(loc_errors)).sum())
    num_positives, *num_not_finite = torch.stack(facts).tolist()
    if loc_errors is not None and loc_errors.numel() != num_positives:
        raise ValueError(
            f"loc_errors has {loc_errors.numel()} elements but targets has {num_positives} "
            "positives; pass one error per positive, in targets order."
        )
    for name, tensor, bad in zip(("logits", "loc_errors"), (logits, loc_errors), num_not_finite):
        if bad:
            raise FloatingPointError(
                f"{name}: {bad} of {tensor.numel()} values that enter the ranking are NaN or Inf; "
                "look for a learning rate that is too high, degenerate boxes, or broken weights."
            )
    return num_positives


def _true_indices(mask: Tensor, num_true: int) -> Tensor:
    """Indices of the ``num_true`` true entries, without asking the device for their number."""
    try:
        return torch.nonzero_static(mask, size=num_true).squeeze(1)
    except (AttributeError, NotImplementedError):  # older PyTorch, or its CUDA build
        return mask.nonzero().squeeze(1)


class ErrorDriven(torch.autograd.Function):
    """A value whose gradient is given, not derived (arXiv:2009.13592, Sec. 3)."""

    @staticmethod
    def forward(ctx, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Losses of half precision inputs are float32, those of float32 and float64 keep the dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)
