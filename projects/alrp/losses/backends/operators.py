"""The backend for any device: operators of PyTorch.

Shape shorthand as in :mod:`alrp.losses.backends.interface`.
"""

from __future__ import annotations

import math
from typing import Iterator
import torch
from torch import Tensor

from ..reductions import (
    accumulation_dtype,
    largest_magnitude,
    num_not_finite,
    num_outside,
    prefix_sum,
    prefix_sum_from_zero,
    suffix_sum,
)
from .interface import (
    ALRPValues,
    APValues,
    CellSumMatrix,
    LocatedKeys,
    Pushes,
    Rows,
    RSValues,
    SortedPositives,
    SortingErrors,
    Survey,
    cell_dtype,
    smoothed_rank,
)

# Entries worked on at a time: temporaries take up to 50 bytes per entry, so 200 MB per block.
_BLOCK = 1 << 22
# Copies of each cell's sums. GPUs add atomically, which is slow where many keys share a cell; keys
# take turns among the copies.
_TURNS = {"cuda": 1 << 7}


def survey(logits: Tensor, targets: Tensor, values: Tensor, most: float = math.inf) -> Survey:
    """See :class:`Survey`; the device is read once. Positives are ascending."""
    is_positive = targets == 1
    is_bad = ~torch.isfinite(logits) & (is_positive | (targets == 0))
    facts = [
        is_positive.count_nonzero(),
        is_bad.count_nonzero(),
        num_not_finite(values),
        num_outside(values, most),
        largest_magnitude(torch.where(is_positive, logits, 0.0)),
    ]
    # Counts are exact: up to 2^53 in float64, up to 2^24 in float32.
    dtype = accumulation_dtype(logits.device)
    counts = torch.stack([fact.to(dtype) for fact in facts]).tolist()
    num_positives, bad_logits, bad_values, outside = map(int, counts[:4])
    positives = _indices_of_marked(is_positive, num_positives)
    pos_logits = logits.index_select(0, positives)
    return Survey(positives, pos_logits, bad_logits, bad_values, outside, counts[4])


def _indices_of_marked(marks: Tensor, num_marked: int) -> Tensor:
    """Indices of the nonzero entries, without asking a GPU for their number."""
    try:
        return torch.nonzero_static(marks, size=num_marked).squeeze(1)
    except (AttributeError, NotImplementedError):  # older PyTorch, or its CUDA build
        return marks.nonzero().squeeze(1)


def sort(logits: Tensor, values: Tensor, positives: Tensor) -> SortedPositives:
    """See :class:`SortedPositives`; the positives must be ascending."""
    descending = torch.sort(logits, descending=True, stable=True).indices
    return in_order(descending, logits, values, positives)


def in_order(
    descending: Tensor, logits: Tensor, values: Tensor, positives: Tensor
) -> SortedPositives:
    """The same from (P,) indices that sort descending, and keep the order of equal logits."""
    order = descending.flip(0)
    if values.numel():
        values = values.index_select(0, order)
    values = values.to(accumulation_dtype(logits.device))
    return SortedPositives(order, logits.index_select(0, order), values, positives)


class OperatorMatrix(CellSumMatrix):
    """A :class:`StepMatrix` on any device."""

    def __init__(self, queries: Tensor, delta: float) -> None:
        self.queries = queries = queries.to(accumulation_dtype(queries.device))
        self._two_delta = 2.0 * delta

        # Two sorted lists are merged by counting, for each, the elements of the other before it.
        lower, upper = queries - delta, queries + delta
        index = torch.arange(queries.numel(), device=queries.device)
        self._lower = index + torch.searchsorted(upper, lower)
        self._upper = index + torch.searchsorted(lower, upper, right=True)
        self._knots = queries.new_empty(2 * queries.numel())
        self._knots.index_copy_(0, self._lower, lower).index_copy_(0, self._upper, upper)
        self._left = torch.cat([self._knots.new_zeros(1), self._knots])  # edge of each cell

        # A cell is in no query's linear part if, up to it, as many of these ended as began.
        covered = torch.ones_like(self._knots, dtype=torch.bool)
        covered.index_copy_(0, self._upper, self._upper > 2 * index + 1)
        self._width = torch.zeros_like(self._knots)
        self._width[:-1] = self._knots[1:] - self._knots[:-1]
        self._width *= covered

        self._query_cells = self._find_cells(queries)
        self._query_offsets = self._offsets(self._query_cells, queries)

    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        num_turns = _TURNS.get(logits.device.type, 1)
        turns = torch.arange(min(_BLOCK, logits.numel()), device=logits.device) % num_turns
        mass = self._left.new_zeros(len(self._left) * num_turns)
        moment = torch.zeros_like(mass)
        located = torch.empty_like(logits, dtype=cell_dtype(len(self._left)))
        for keys, marks, out in _blocks(logits, targets, located):
            cells = self._find_cells(keys) * (marks == 0)
            out.copy_(cells)
            offsets = self._offsets(cells, keys)  # NaN of ignored entries go to cell 0, never read
            cells = cells * num_turns + turns[: len(keys)]
            mass.scatter_add_(0, cells, torch.ones_like(offsets))
            moment.scatter_add_(0, cells, offsets)
        sums = [x.view(-1, num_turns).sum(1) for x in (mass, moment)]
        return LocatedKeys(located, torch.stack(sums))

    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        value, slope = self._column_profile(weights)
        result = torch.empty_like(logits)
        for out, keys, cells_of_keys in _blocks(result, logits, cells):
            index = cells_of_keys.int()
            sums = slope.index_select(0, index) * self._offsets(index, keys)
            sums += value.index_select(0, index)
            out.copy_(torch.where(index > 0, sums, 0.0))
        return result

    def _find_cells(self, keys: Tensor) -> Tensor:
        """The cell of each key, by binary search: (n,) int64 in [0, 2P]."""
        return torch.searchsorted(self._knots, keys.to(self._knots.dtype), right=True)

    def _offsets(self, cells: Tensor, keys: Tensor) -> Tensor:
        """(n,) distance of each key to the left edge of its cell; undefined in cell 0."""
        return keys.to(self._left.dtype) - self._left.index_select(0, cells)

    def _sum_queries(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        mass, moment = torch.zeros_like(self._left), torch.zeros_like(self._left)
        mass.scatter_add_(0, self._query_cells, weights)
        moment.scatter_add_(0, self._query_cells, self._query_offsets * weights)
        return mass, moment

    def _row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        above = suffix_sum(mass[1:]) - mass[1:]
        area = torch.where(self._width > 0, moment[1:] + self._width * above, 0.0)
        area_from = suffix_sum(area)
        return (area_from[self._lower] - area_from[self._upper]) / self._two_delta

    def _column_profile(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) value at the left edge of each cell, and slope in it, of the sum over queries."""
        change = torch.empty_like(self._knots)
        change.index_copy_(0, self._lower, weights).index_copy_(0, self._upper, -weights)
        slope = prefix_sum(change) * (self._width > 0) / self._two_delta
        rise = slope * self._width
        zero = rise.new_zeros(1)
        return torch.cat([zero, prefix_sum(rise) - rise]), torch.cat([zero, slope])


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(_BLOCK) for tensor in tensors))


def sums_below(weights: Tensor, ranks: Tensor, limits: Tensor, cuts: Tensor) -> Tensor:
    """See ``SumsBelow`` in :mod:`.sorting`; by a wavelet matrix, one level of it at a time.

    From the highest bit of the ranks on, the places are split by that bit, zeros first. Where the
    limit of a query has the bit, its zeros are below the limit, and are summed; the ones are yet to
    be decided. Else the ones are not below, and the zeros are to be decided. In either case these
    lie between the query's new cuts. Every step is a prefix sum, a permutation or a look-up, so the
    result has the same bits every time.
    """
    sums = weights.new_zeros(*cuts.shape, weights.shape[1])
    places = torch.arange(len(ranks), device=ranks.device)
    for bit in reversed(range((len(ranks) - 1).bit_length())):
        is_one = ranks.bitwise_right_shift(bit).bitwise_and(1)
        zeros_before = prefix_sum_from_zero(1 - is_one)
        num_zeros = zeros_before[-1]
        target = torch.where(is_one > 0, num_zeros + places - zeros_before[:-1], zeros_before[:-1])
        ranks = torch.empty_like(ranks).index_copy_(0, target, ranks)
        weights = torch.empty_like(weights).index_copy_(0, target, weights)

        zero_cuts = zeros_before[cuts]
        has_bit = limits.bitwise_right_shift(bit).bitwise_and(1)[:, None] > 0
        sums += torch.where(has_bit[..., None], prefix_sum_from_zero(weights)[zero_cuts], 0.0)
        cuts = torch.where(has_bit, num_zeros + cuts - zero_cuts, zero_cuts)
    return sums.diff(dim=1)


def _matrix(rows: Rows) -> CellSumMatrix:
    assert isinstance(rows.matrix, CellSumMatrix)
    return rows.matrix


def ap_values(rows: Rows, dtype: torch.dtype) -> APValues:
    """See :class:`Backend`."""
    false_positives = rows.false_positives()
    rank = smoothed_rank(false_positives, _matrix(rows).among_queries())
    imprecisions = 1.0 - (1.0 - false_positives / rank).cummax(0).values
    # Without a negative above, the precision is 1 and the error 0, but for rounding.
    errors = imprecisions.clamp(min=0.0)
    return APValues(imprecisions.mean().to(dtype), Pushes(errors, false_positives))


def alrp_values(
    rows: Rows,
    errors: Tensor,
    order: Tensor,
    eps: float,
    dtype: torch.dtype,
    loc_dtype: torch.dtype,
) -> ALRPValues:
    """See :class:`Backend`."""
    false_positives, matrix = rows.false_positives(), _matrix(rows)
    rank = smoothed_rank(false_positives, matrix.among_queries())
    total = false_positives + (matrix.among_queries(errors) - 0.5 * errors)
    ranking_errors = torch.where(false_positives > eps, total / rank, 0.0)
    weights = prefix_sum(1.0 / rank) / rank.numel()
    return ALRPValues(
        (false_positives / rank).mean().to(dtype),
        (weights * errors).sum().to(loc_dtype),
        Pushes(ranking_errors, false_positives),
        torch.empty_like(rank).index_copy_(0, order, rank).to(dtype),
        torch.empty_like(weights).index_copy_(0, order, weights),
    )


def rs_values(rows: Rows, sorting: SortingErrors, dtype: torch.dtype) -> RSValues:
    """See :class:`Backend`."""
    false_positives = rows.false_positives()
    errors = false_positives / (sorting.rank + false_positives)
    return RSValues(
        errors.mean().to(dtype),
        sorting.errors.mean().to(dtype),
        Pushes(errors, false_positives),
    )
