"""The smoothed step between queries and keys as a matrix that is never formed.

Shape shorthand: P queries (the positives of a ranking), S entries, of which some are keys (the
negatives that they are ranked among), C = 2P + 1 cells.
"""

from __future__ import annotations

from typing import NamedTuple, Optional
import torch
from torch import Tensor

from .device import accumulation_dtype

# Entries at a time, so that float64 temporaries stay small beside the logits.
_BLOCK = 1 << 22
# Sums of each cell that take turns where a device adds atomically.
_TURNS = 1 << 7


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


class PlacedKeys(NamedTuple):
    """Keys by their cells in a :class:`StepMatrix`; the logits themselves are not kept.

    Attributes:
        cells: (S,) int32 or int16, the cell of each key; 0 for entries that are no keys.
        mass: (C,) number of keys in each cell; of no meaning in cell 0.
        moment: (C,) sum of their distances to the left edge of the cell; likewise.
    """

    cells: Tensor
    mass: Tensor
    moment: Tensor


class StepMatrix:
    """The matrix ``H[i, k] = H(keys[k] - queries[i])`` of fixed queries and any keys.

    ``H(x) = clamp(x / (2 * delta) + 0.5, 0, 1)`` is the smoothed step of the ranking losses
    (Oksuz et al., arXiv:2009.13592, Sec. 2; Chen et al., arXiv:1904.06373).

    The 2P knots ``queries -+ delta`` cut the axis into cells on which every row of H is linear, so
    a key matters only through its cell and its distance to the cell's left knot: a sum over keys
    needs of each cell the number of its keys and the sum of their distances (:meth:`row_sums`), a
    sum over queries is linear in every cell (:meth:`column_profile`). Both are exact up to float64
    rounding.

    Cell c of C = 2P + 1 is ``[edges[c], edges[c + 1])``; cell 0 lies below all knots, where H is 0.

    Args:
        queries: (P,) logits in ascending order, any float dtype, P >= 1.
        delta: half width of the linear part of the step, in logit units; > 0.

    Attributes:
        queries: (P,) of :func:`accumulation_dtype`.
        edges: (C + 1,) of :func:`accumulation_dtype`: 0 in place of minus infinity, which could not
            be calculated with, the knots in ascending order, infinity.
        left: (C,) left edge of each cell.
        knots: (2P,).
    """

    def __init__(self, queries: Tensor, delta: float) -> None:
        self.queries = queries = queries.to(accumulation_dtype(queries.device))
        self._two_delta = 2.0 * delta

        # Two sorted lists are merged by counting, for each, the elements of the other before it.
        lower, upper = queries - delta, queries + delta
        place = torch.arange(queries.numel(), device=queries.device)
        self._lower = place + torch.searchsorted(upper, lower)
        self._upper = place + torch.searchsorted(lower, upper, right=True)
        self.edges = queries.new_zeros(2 * queries.numel() + 2)
        self.edges[-1:].fill_(torch.inf)
        self.left, self.knots = self.edges[:-1], self.edges[1:-1]
        self.knots.index_copy_(0, self._lower, lower).index_copy_(0, self._upper, upper)

        # A cell outside every query's linear part, which begins where as many of these have ended
        # as begun, is constant for all rows; its width (possibly thousands of deltas) must not
        # enter the sums, or their rounding would drown small ones.
        covered = torch.ones_like(self.knots, dtype=torch.bool)
        covered.index_copy_(0, self._upper, self._upper > 2 * place + 1)
        self._width = torch.zeros_like(self.knots)
        self._width[:-1] = self.knots[1:] - self.knots[:-1]
        self._width *= covered

        self._query_cells = self._locate(queries)
        self._query_offsets = self._offsets(self._query_cells, queries)

    @staticmethod
    def descending_order(queries: Tensor) -> Tensor:
        """(P,) indices that sort queries from the highest down; equal ones keep their order."""
        return torch.sort(queries, descending=True, stable=True).indices

    def among_queries(self, weights: Optional[Tensor] = None) -> Tensor:
        """``sum_k weights[k] * H(queries[k] - queries[i])`` for every query, k = i included.

        Args:
            weights: (P,) non-negative, of :func:`accumulation_dtype`; ones if None.

        Returns:
            Tensor: (P,).
        """
        weights = torch.ones_like(self.queries) if weights is None else weights
        return self._row_sums(*self._sum_queries(weights))

    def place(self, logits: Tensor, targets: Tensor) -> PlacedKeys:
        """Find the cells of the keys. Nothing is read back to the host.

        Args:
            logits: (S,) float32 or float64; finite where targets are 0.
            targets: (S,) integers; 0 marks the keys.
        """
        # Atomic additions are slow where many meet at one place.
        num_turns = _TURNS if self.left.is_cuda else 1
        turns = torch.arange(min(_BLOCK, logits.numel()), device=logits.device) % num_turns
        mass = self.left.new_zeros(len(self.left) * num_turns)
        moment = torch.zeros_like(mass)
        placed = torch.empty(logits.shape, dtype=torch.int32, device=logits.device)
        for keys, marks, out in _blocks(logits, targets, placed):
            cells = self._locate(keys) * (marks == 0)
            out.copy_(cells)
            # Cell 0 may hold NaN.
            offsets = torch.where(cells > 0, self._offsets(cells, keys), 0.0)
            cells = cells * num_turns + turns[: len(keys)]
            mass.scatter_add_(0, cells, torch.ones_like(offsets))
            moment.scatter_add_(0, cells, offsets)
        sums = (x.view(-1, num_turns).sum(1) for x in (mass, moment))
        return PlacedKeys(placed, *sums)

    def matvec(self, keys: PlacedKeys) -> Tensor:
        """``sum_j H(s_j - queries[i])`` over the keys, for every query: (P,)."""
        return self._row_sums(keys.mass, keys.moment)

    def rmatvec(self, weights: Tensor, keys: PlacedKeys, logits: Tensor) -> Tensor:
        """``sum_i weights[i] * H(s_j - queries[i])`` for every key, and 0 for all other entries.

        Args:
            weights: (P,) non-negative, of :func:`accumulation_dtype`.
            keys: of :meth:`place`.
            logits: (S,) those that were placed.

        Returns:
            Tensor: (S,) in the dtype of the logits.
        """
        value, slope = self._column_profile(weights)
        result = torch.empty_like(logits)
        for out, block, cells in _blocks(result, logits, keys.cells):
            offsets = self._offsets(cells, block)
            sums = value.index_select(0, cells) + slope.index_select(0, cells) * offsets
            out.copy_(torch.where(cells > 0, sums, 0.0))
        return result

    def _locate(self, keys: Tensor) -> Tensor:
        """The cell of each key, by binary search: (T,) int64 in [0, 2P]."""
        return torch.searchsorted(self.knots, keys.to(self.knots.dtype), right=True)

    def _offsets(self, cells: Tensor, keys: Tensor) -> Tensor:
        """(T,) distance of each key to the left edge of its cell; in cell 0 without meaning."""
        return keys.to(self.left.dtype) - self.left.index_select(0, cells)

    def _sum_queries(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) weight of the queries in each cell, and their weighted distance to its left edge."""
        mass, moment = torch.zeros_like(self.left), torch.zeros_like(self.left)
        mass.scatter_add_(0, self._query_cells, weights)
        moment.scatter_add_(0, self._query_cells, self._query_offsets * weights)
        return mass, moment

    def _row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        """``sum_k w_k H(key_k - query)`` for every query, from sums over the keys of each cell.

        It is 1 / (2 delta) times the integral of N(u) over query -+ delta, where N(u) is the weight
        of the keys above u: in a cell, its moment + its width * N(next knot).

        Args:
            mass: (C,) weight of the keys of each cell.
            moment: (C,) their weighted distance to its left edge.

        Returns:
            Tensor: (P,).
        """
        above = suffix_sum(mass[1:]) - mass[1:]
        area = torch.where(self._width > 0, moment[1:] + self._width * above, 0.0)
        # N never increases, so summing from the top keeps every partial sum within P times the
        # smallest window it is used for: the difference below is accurate relative to itself.
        area_from = suffix_sum(area)
        return (area_from[self._lower] - area_from[self._upper]) / self._two_delta

    def _column_profile(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_i weights[i] * H(u - queries[i])`` as a function of u, linear in every cell.

        Args:
            weights: (P,) non-negative.

        Returns:
            tuple[Tensor, Tensor]: (C,) value at the left edge of each cell, slope in the cell.
        """
        change = torch.empty_like(self.knots)
        change.index_copy_(0, self._lower, weights).index_copy_(0, self._upper, -weights)
        slope = prefix_sum(change) * (self._width > 0) / self._two_delta
        rise = slope * self._width
        zero = rise.new_zeros(1)
        return torch.cat([zero, prefix_sum(rise) - rise]), torch.cat([zero, slope])


def _blocks(*tensors: Tensor):
    return zip(*(tensor.split(_BLOCK) for tensor in tensors))
