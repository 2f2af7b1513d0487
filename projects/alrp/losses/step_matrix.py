"""The smoothed step between queries and keys as a matrix that is never formed.

Shape shorthand: P queries (the positives of a ranking), T keys (the entries they are ranked among).
"""

from __future__ import annotations

from typing import Optional
import torch
from torch import Tensor


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it: float32 prefix sums lose whole false positives."""
    return torch.float32 if device.type == "mps" else torch.float64


def prefix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[:c + 1])`` of a vector, with the same bits every time if torch asks for it.

    ``cumsum`` of floats refuses to run on CUDA under ``torch.use_deterministic_algorithms``; there
    the sums are formed by doubling, in log2(n) additions of whole vectors.
    """
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return x.cumsum(0)
    reach = 1
    while reach < x.numel():
        x = torch.cat([x[:reach], x[reach:] + x[:-reach]])
        reach *= 2
    return x


def suffix_sum(x: Tensor) -> Tensor:
    """``out[c] = sum(x[c:])``, summed from the end."""
    return prefix_sum(x.flip(0)).flip(0)


def nonzero_indices(marks: Tensor) -> Tensor:
    """Indices of the nonzero entries of a vector; entries of one byte are skipped by eights.

    ``nonzero`` spends its time on the zeros, which are nearly all of what it is used on here.
    """
    num_whole = marks.numel() // 8 * 8
    aligned = marks.is_contiguous() and marks.storage_offset() % 8 == 0
    if marks.element_size() != 1 or num_whole == 0 or not aligned:
        return marks.nonzero().squeeze(1)
    words = marks[:num_whole].view(torch.int64).nonzero().squeeze(1)
    found = marks[:num_whole].view(-1, 8).index_select(0, words).nonzero()  # word and byte in it
    places = words.index_select(0, found[:, 0]).mul_(8).add_(found[:, 1])
    if num_whole == marks.numel():
        return places
    return torch.cat([places, marks[num_whole:].nonzero().squeeze(1) + num_whole])


class StepMatrix:
    """The matrix ``H[i, k] = H(keys[k] - queries[i])`` of fixed queries and any keys.

    ``H(x) = clamp(x / (2 * delta) + 0.5, 0, 1)`` is the smoothed step of the ranking losses
    (Oksuz et al., arXiv:2009.13592, Sec. 2; Chen et al., arXiv:1904.06373).

    The 2P knots ``queries -+ delta`` cut the axis into cells on which every row of H is linear, so
    a key matters only through its cell and its distance to the cell's left knot: a sum over keys
    needs of each cell the number of its keys and the sum of their distances (:meth:`row_sums`), a
    sum over queries is linear in every cell (:meth:`column_profile`). Both are exact up to float64
    rounding.

    Cell c of 2P + 1 is ``[knots[c - 1], knots[c])``; cell 0 lies below all knots, where H is 0.

    Args:
        queries: (P,) logits, any float dtype, P >= 1.
        delta: half width of the linear part of the step, in logit units; > 0.

    Attributes:
        descending: (P,) int64, the queries in descending order; equal ones keep theirs.
        knots: (2P,) ascending, of :func:`accumulation_dtype`.
        left: (2P + 1,) left knot of each cell; 0 for cell 0.
    """

    def __init__(self, queries: Tensor, delta: float) -> None:
        queries = queries.to(accumulation_dtype(queries.device))
        num_queries = queries.numel()
        self._two_delta = 2.0 * delta

        queries, self.descending = torch.sort(queries, descending=True, stable=True)
        queries, ascending = queries.flip(0), self.descending.flip(0)
        # Two sorted lists are merged by counting, for each, the elements of the other before it.
        lower, upper = queries - delta, queries + delta
        place = torch.arange(num_queries, device=queries.device)
        lower_place = place + torch.searchsorted(upper, lower)
        upper_place = place + torch.searchsorted(lower, upper, right=True)
        self.knots = queries.new_empty(2 * num_queries)
        self.knots[lower_place], self.knots[upper_place] = lower, upper
        self.left = torch.cat([self.knots.new_zeros(1), self.knots])

        # A cell outside every query's linear part is constant for all rows; its width (possibly
        # thousands of deltas) must not enter the sums, or their rounding would drown small ones.
        opened = torch.ones_like(ascending).repeat(2)
        opened[upper_place] = -1
        self._covered = opened.cumsum(0) > 0
        self._width = torch.diff(self.knots, append=self.knots[-1:]) * self._covered

        self._lower, self._upper, self._query_cells = (
            torch.empty_like(place).scatter_(0, ascending, x)
            for x in (lower_place, upper_place, self.locate(queries))
        )
        self._query_offsets = torch.empty_like(queries).scatter_(0, ascending, queries)
        self._query_offsets -= self.left[self._query_cells]

    def locate(self, keys: Tensor) -> Tensor:
        """The cell of each key, by binary search: (T,) int64 in [0, 2P]."""
        return torch.searchsorted(self.knots, keys.to(self.knots.dtype), right=True)

    def offsets(self, cells: Tensor, keys: Tensor) -> Tensor:
        """(T,) distance of each key to the left knot of its cell; in cell 0 without meaning."""
        return keys.to(self.left.dtype) - self.left.index_select(0, cells)

    def among_queries(self, weights: Optional[Tensor] = None) -> Tensor:
        """``sum_k weights[k] * H(queries[k] - queries[i])`` for every query, k = i included.

        Args:
            weights: (P,) non-negative; ones if None.

        Returns:
            Tensor: (P,) of :func:`accumulation_dtype`.
        """
        offsets = self._query_offsets
        weights = torch.ones_like(offsets) if weights is None else weights.to(offsets.dtype)
        mass, moment = torch.zeros_like(self.left), torch.zeros_like(self.left)
        mass.scatter_add_(0, self._query_cells, weights)
        moment.scatter_add_(0, self._query_cells, offsets * weights)
        return self.row_sums(mass, moment)

    def row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        """``sum_k w_k H(key_k - query)`` for every query, from sums over the keys of each cell.

        It is 1 / (2 delta) times the integral of N(u) over query -+ delta, where N(u) is the weight
        of the keys above u: in a cell, its moment + its width * N(next knot).

        Args:
            mass: (2P + 1,) weight of the keys of each cell.
            moment: (2P + 1,) their weighted distance to its left knot; finite in cells without use.

        Returns:
            Tensor: (P,).
        """
        above = suffix_sum(mass[1:]) - mass[1:]
        area = torch.where(self._covered, moment[1:] + self._width * above, 0.0)
        # N never increases, so summing from the top keeps every partial sum within P times the
        # smallest window it is used for: the difference below is accurate relative to itself.
        area_from = suffix_sum(area)
        return (area_from[self._lower] - area_from[self._upper]) / self._two_delta

    def column_profile(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_i weights[i] * H(u - queries[i])`` as a function of u, linear in every cell.

        Args:
            weights: (P,) non-negative.

        Returns:
            tuple[Tensor, Tensor]: (2P + 1,) value at the left knot of each cell, slope in the cell.
        """
        slope_change = torch.zeros_like(self.knots)
        slope_change[self._lower] = weights.to(slope_change.dtype)
        slope_change[self._upper] = -weights.to(slope_change.dtype)
        slope = prefix_sum(slope_change) * self._covered / self._two_delta
        rise = slope * self._width
        zero = rise.new_zeros(1)
        return torch.cat([zero, prefix_sum(rise) - rise]), torch.cat([zero, slope])
