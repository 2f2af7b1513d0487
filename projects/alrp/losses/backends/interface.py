"""The smoothed step between queries and keys as a matrix that is never formed.

Shape shorthand: P queries (the positives of a ranking), S entries, of which some are keys (the
negatives that they are ranked among), C = 2P + 1 cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple
import torch
from torch import Tensor


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


class LocatedKeys(NamedTuple):
    """Keys by their cells in a :class:`StepMatrix`; the logits themselves are not kept.

    Attributes:
        cells: (S,) of :func:`cell_dtype`, the cell of each key; 0 for entries that are no keys.
        mass: (C,) number of keys in each cell; of no meaning in cell 0.
        moment: (C,) sum of their distances to the left edge of the cell; likewise.
    """

    cells: Tensor
    mass: Tensor
    moment: Tensor


def cell_dtype(num_cells: int) -> torch.dtype:
    """int16 if it can number the cells, else int32."""
    return torch.int16 if num_cells - 1 <= torch.iinfo(torch.int16).max else torch.int32


class StepMatrix(ABC):
    """The matrix ``H[i, k] = H(keys[k] - queries[i])`` of fixed queries and any keys.

    ``H(x) = clamp(x / (2 * delta) + 0.5, 0, 1)`` is the smoothed step of the ranking losses
    (Oksuz et al., arXiv:2009.13592, Sec. 2; Chen et al., arXiv:1904.06373).

    The 2P knots ``queries -+ delta`` cut the axis into cells on which every row of H is linear, so
    a key matters only through its cell and its distance to the cell's left edge. A sum over keys
    needs, for each cell, the number of its keys and the sum of these distances; a sum over queries
    is a linear function in each cell. Both are exact up to float64 rounding. It is
    implemented by ``OperatorMatrix`` and ``CompiledMatrix``.

    Cell c is ``[edges[c], edges[c + 1])``, where the edges between the first and the last are the
    knots; cell 0 lies below all knots, where H is 0. Its left edge is never used.

    Args:
        queries: (P,) logits in ascending order, P >= 1.
        delta: half width of the linear part of the step, in logit units; > 0.
    """

    queries: Tensor  # (P,) of the dtype that sums are formed in

    @abstractmethod
    def __init__(self, queries: Tensor, delta: float) -> None: ...

    @staticmethod
    @abstractmethod
    def descending_order(queries: Tensor) -> Tensor:
        """(P,) int64 indices that sort from the highest down; equal queries keep their order."""

    def among_queries(self, weights: Tensor | None = None) -> Tensor:
        """``sum_k weights[k] * H(queries[k] - queries[i])`` for every query, k = i included.

        Args:
            weights: (P,) non-negative, of the dtype of :attr:`queries`; ones if None.

        Returns:
            Tensor: (P,) of that dtype.
        """
        weights = torch.ones_like(self.queries) if weights is None else weights
        return self._row_sums(*self._sum_queries(weights))

    @abstractmethod
    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        """Find the cells of the keys. Nothing is read back to the host.

        Args:
            logits: (S,) float32 or float64; finite where targets are 0.
            targets: (S,) integers; 0 marks the keys.
        """

    def matvec(self, keys: LocatedKeys) -> Tensor:
        """``sum_j H(s_j - queries[i])`` over the keys, for every query: (P,)."""
        return self._row_sums(keys.mass, keys.moment)

    @abstractmethod
    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        """``sum_i weights[i] * H(s_j - queries[i])`` for every key, and 0 for all other entries.

        Args:
            weights: (P,) of the dtype of :attr:`queries`; precise if they are of one sign.
            cells: (S,) of :meth:`locate`.
            logits: (S,) those that were located.

        Returns:
            Tensor: (S,) in the dtype of the logits.
        """

    @abstractmethod
    def _sum_queries(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) weight of the queries in each cell, and their weighted distance to its left edge."""

    @abstractmethod
    def _row_sums(self, mass: Tensor, moment: Tensor) -> Tensor:
        """``sum_k w_k H(key_k - query)`` for every query, from sums over the keys of each cell.

        It is 1 / (2 delta) times the integral of N(u) over query -+ delta, where N(u) is the weight
        of the keys above u: in a cell, its moment + its width * N(next knot). N never increases, so
        with the integral summed from the top every partial sum is within P times the smallest
        window that it is used for, and differences are accurate relative to themselves. Cells
        outside of every query's linear part are left out: they may be thousands of deltas wide,
        and their rounding would drown small sums.

        Args:
            mass: (C,) weight of the keys of each cell.
            moment: (C,) their weighted distance to its left edge.

        Returns:
            Tensor: (P,).
        """
