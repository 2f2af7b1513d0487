"""Sums over all negatives of a mini-batch, on the CPU and on other devices.

Both classes multiply a :class:`StepMatrix` with the negatives among S logits. They read the logits
in blocks, keep none of them, and do not copy the negatives out: where nearly all entries are
negatives within reach of a positive, as at the start of a training, gathering costs more than the
sums themselves.

Both have one interface: ``matvec()`` gives the (P,) sums over negatives; ``rmatvec(weights, logits,
targets)`` gives the (S,) sums over positives, of the same logits and targets, and exactly 0 to all
entries that are no negatives.
"""

from __future__ import annotations

from typing import NamedTuple, Optional
import torch
from torch import Tensor

from .grid import Grid
from .step_matrix import StepMatrix, nonzero_indices

# Entries read at a time: temporaries stay in the cache, and the cost of a call does not show.
_CPU_BLOCK = 1 << 17
_DEVICE_BLOCK = 1 << 22
# If a smaller share of a block seems to be within reach of a positive, it is gathered after all.
_GATHERED_SHARE = 0.25
_SAMPLING_STRIDE = 61
# Sums per cell that take turns where a device adds atomically.
_TURNS = 1 << 7


class _Block(NamedTuple):
    """Entries read at a time, and what is kept of them between the two products."""

    entries: slice
    places: Optional[Tensor]  # (n,) the negatives within reach where they are few, else None: all
    groups: Tensor  # (n,) group of each key


class GridNegatives:
    """Negatives on the CPU, placed by a :class:`Grid`.

    The number and the sum of the keys of a group are all that goes into the sums over negatives,
    and a sum over positives is one linear function in it. So nearly all keys cost a table look-up
    and two additions on the way there, and a multiplication on the way back. Positives and ignored
    entries run along, in a group below all positives.

    Args:
        matrix: the positives.
        logits: (S,) float32 or float64, on the CPU; finite where targets are 0.
        targets: (S,) integers; 0 marks the negatives.
    """

    def __init__(self, matrix: StepMatrix, logits: Tensor, targets: Tensor) -> None:
        self._matrix = matrix
        self._grid = Grid(matrix, logits.numel())
        self._others = nonzero_indices(targets)
        self._counts = torch.zeros(len(self._grid.cells), dtype=matrix.left.dtype)
        self._totals = torch.zeros_like(self._counts)
        # H is 0 for all below the lowest knot. Rounding down keeps this exact.
        cut = matrix.knots[0].to(logits.dtype)
        self._cut = torch.nextafter(cut, torch.full_like(cut, -torch.inf)).item()

        starts = torch.arange(0, max(1, logits.numel()), _CPU_BLOCK)
        bounds = torch.searchsorted(self._others, torch.cat([starts, starts[-1:] + _CPU_BLOCK]))
        # Temporaries of this size come from the system, page by page, if they are not kept.
        ones = self._counts.new_ones(min(_CPU_BLOCK, logits.numel()))
        buffers = ones, torch.empty_like(ones), torch.empty_like(ones, dtype=torch.int64)
        others = self._others.split(bounds.diff().tolist())
        read = [self._read(s, logits, o - s, buffers) for s, o in zip(starts.tolist(), others)]
        self._blocks, mixed, buckets = zip(*read)

        self._mixed = torch.cat(mixed)
        keys = logits.index_select(0, self._mixed).to(self._counts.dtype)
        self._mixed_cells = self._grid.search(keys, torch.cat(buckets))
        self._mixed_offsets = matrix.offsets(self._mixed_cells, keys)

    def _read(self, start: int, logits: Tensor, others: Tensor, buffers: tuple):
        """Add a block to the sums; returns it, and the entries and buckets of its mixed keys."""
        entries = slice(start, start + _CPU_BLOCK)
        keys = logits[entries]
        places = self._places_within_reach(keys, others)
        if places is not None:
            keys = keys.index_select(0, places)
        buckets, groups = self._grid.place(keys)
        if places is None:
            groups.index_fill_(0, others, self._grid.BELOW)

        ones, summands, index = (buffer[: len(keys)] for buffer in buffers)
        index.copy_(groups)
        self._counts.scatter_add_(0, index, ones)
        self._totals.scatter_add_(0, index, summands.copy_(keys))

        # Into its own dtype: comparisons into bool are many times slower.
        is_mixed = torch.eq(groups, self._grid.MIXED, out=torch.empty_like(groups))
        mixed = nonzero_indices(is_mixed.to(torch.int8))
        buckets = buckets.index_select(0, mixed)
        mixed = mixed if places is None else places.index_select(0, mixed)
        return _Block(entries, places, groups), mixed + start, buckets

    def _places_within_reach(self, keys: Tensor, others: Tensor) -> Optional[Tensor]:
        """Indices of the negatives that matter where they seem few, else None: take all keys."""
        sample = keys[::_SAMPLING_STRIDE] >= self._cut
        if int(sample.count_nonzero()) >= _GATHERED_SHARE * len(sample):
            return None
        within_reach = torch.ge(keys, self._cut, out=torch.empty_like(keys))
        within_reach.index_fill_(0, others, 0.0)
        return nonzero_indices(within_reach.to(torch.int8))

    def matvec(self) -> Tensor:
        """``sum_j H(s_j - query)`` over all negatives, (P,) float64."""
        counts = self._counts.clone()
        counts[self._grid.MIXED] = 0
        moments = self._totals - counts * self._matrix.left.index_select(0, self._grid.cells)
        moments[self._grid.MIXED] = 0

        mass, moment = torch.zeros_like(self._matrix.left), torch.zeros_like(self._matrix.left)
        mass.index_add_(0, self._grid.cells, counts)
        moment.index_add_(0, self._grid.cells, moments)
        mass.index_add_(0, self._mixed_cells, torch.ones_like(self._mixed_offsets))
        moment.index_add_(0, self._mixed_cells, self._mixed_offsets)
        return self._matrix.row_sums(mass, moment)

    def rmatvec(self, weights: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """``sum_i weights[i] * H(s_j - queries[i])`` of every negative, (S,) in its dtype."""
        value, slope = self._matrix.column_profile(weights)
        tilt = slope.index_select(0, self._grid.cells)
        base = (value - slope * self._matrix.left).index_select(0, self._grid.cells)

        result = torch.empty_like(logits)
        buffers = base.new_empty(3, min(_CPU_BLOCK, logits.numel()))
        for entries, places, groups in self._blocks:
            out, keys = result[entries], logits[entries]
            if places is not None:
                keys = keys.index_select(0, places)
            groups = groups.to(torch.int32)
            sums, slopes, factors = buffers[:, : len(keys)]
            torch.index_select(base, 0, groups, out=sums)
            torch.index_select(tilt, 0, groups, out=slopes)
            sums.addcmul_(slopes, factors.copy_(keys))
            if places is None:
                out.copy_(sums)
            else:
                out.zero_().index_copy_(0, places, sums.to(out.dtype))

        exact = slope.index_select(0, self._mixed_cells) * self._mixed_offsets
        exact += value.index_select(0, self._mixed_cells)
        result.index_copy_(0, self._mixed, exact.to(result.dtype))
        return result.index_fill_(0, self._others, 0.0)  # they may be NaN


class SearchedNegatives:
    """Negatives on any device, each placed by a binary search; nothing is read back to the host.

    Sums run as atomic additions on a GPU, which are slow where many meet at one place. Hence every
    cell has many sums that take turns.

    Args:
        matrix: the positives.
        logits: (S,) of any float dtype.
        targets: (S,) integers; 0 marks the negatives.
    """

    def __init__(self, matrix: StepMatrix, logits: Tensor, targets: Tensor) -> None:
        self._matrix = matrix
        turns = torch.arange(min(_DEVICE_BLOCK, logits.numel()), device=logits.device) % _TURNS
        mass = matrix.left.new_zeros(len(matrix.left) * _TURNS)
        moment = torch.zeros_like(mass)
        for keys, marks in zip(logits.split(_DEVICE_BLOCK), targets.split(_DEVICE_BLOCK)):
            cells = matrix.locate(keys) * (marks == 0)  # what is no negative goes to cell 0
            offsets = torch.where(cells > 0, matrix.offsets(cells, keys), 0.0)
            cells = cells * _TURNS + turns[: len(keys)]
            mass.scatter_add_(0, cells, torch.ones_like(offsets))
            moment.scatter_add_(0, cells, offsets)
        self._mass, self._moment = mass.view(-1, _TURNS).sum(1), moment.view(-1, _TURNS).sum(1)

    def matvec(self) -> Tensor:
        """``sum_j H(s_j - query)`` over all negatives, (P,)."""
        return self._matrix.row_sums(self._mass, self._moment)

    def rmatvec(self, weights: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """``sum_i weights[i] * H(s_j - queries[i])`` of every negative, (S,) in its dtype."""
        value, slope = self._matrix.column_profile(weights)
        result = torch.empty_like(logits)
        blocks = (x.split(_DEVICE_BLOCK) for x in (result, logits, targets))
        for out, keys, marks in zip(*blocks):
            cells = self._matrix.locate(keys)
            offsets = self._matrix.offsets(cells, keys)
            sums = value.index_select(0, cells) + slope.index_select(0, cells) * offsets
            out.copy_(torch.where(marks == 0, sums, 0.0))
        return result
