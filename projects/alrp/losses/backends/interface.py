"""The method of this package: exact sums over pairs of logits, without forming the pairs.

A ranking loss compares every positive i with every negative j by the smoothed step
``H[i, j] = H(x_j - s_i)``. It needs the sums of its rows (how many negatives are ranked above each
positive) and weighted sums of its columns (the gradient of each negative). The matrix itself has
billions of numbers. But each row bends in two points only, ``s_i - delta`` and ``s_i + delta``. So
the axis of the logits is cut at these points, called knots, into cells, and :class:`StepMatrix`
works with sums over cells. Its picture shows two positives.

Shape shorthand: P queries (the positives of a ranking), S entries, some of which are keys (the
negatives), C = 2P + 1 cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, NamedTuple
import torch
from torch import Tensor


class Survey(NamedTuple):
    """What one pass over the inputs of a loss finds, before anything is ranked.

    All but the first two are Python numbers, read from the device at once.

    Attributes:
        positives: (P_own,) int64, indices of the positives, in any order.
        logits: (P_own,) theirs, in that order.
        num_bad_logits: number of NaN and Inf among the logits of positives and negatives.
        num_bad_values: number of NaN and Inf among the values of the positives.
        num_outside: number of these values outside of their range, beyond rounding.
        largest: greatest absolute value among the logits of the positives; 0 if there are none.
            Undefined if ``num_bad_logits`` is not 0.
    """

    positives: Tensor
    logits: Tensor
    num_bad_logits: int
    num_bad_values: int
    num_outside: int
    largest: float

    def in_targets_order(self) -> Survey:
        """The same with ascending positives."""
        positives, order = self.positives.sort()
        return self._replace(positives=positives, logits=self.logits.index_select(0, order))


class SortedPositives(NamedTuple):
    """The positives of a ranking in ascending order of their logits; see ``Backend.sort``.

    Attributes:
        order: (P,) int64, ``order[i]`` is the index of the i-th among the positives in ``targets``
            order. Among equal logits, the later comes first: so it is ranked below.
        queries: (P,) the sorted logits, in their dtype.
        values: (P,) float64, what comes with each positive; (0,) if nothing does.
        positives: (P,) int64, their indices in ascending order.
    """

    order: Tensor
    queries: Tensor
    values: Tensor
    positives: Tensor


class LocatedKeys(NamedTuple):
    """The keys as a :class:`StepMatrix` sees them: their cells, and sums over each cell.

    Attributes:
        cells: (S,) of :func:`cell_dtype`, the cell of each key; 0 or less for all other entries.
        sums: (2, C) float64, the number of keys in each cell, and the sum of their distances to its
            left edge; undefined in cell 0. ``FusedMatrix`` has them in a form of its own.
    """

    cells: Tensor
    sums: Tensor


def cell_dtype(num_cells: int) -> torch.dtype:
    """int16 if it can number the cells, else int32."""
    return torch.int16 if num_cells - 1 <= torch.iinfo(torch.int16).max else torch.int32


class Rows(NamedTuple):
    """The rows of a :class:`StepMatrix`: one per query, over the keys of all processes.

    Attributes:
        matrix: with all queries.
        keys: those of this process.
        add_up: sums (P,) numbers over the processes; None if there is but this one.
    """

    matrix: StepMatrix
    keys: LocatedKeys
    add_up: Callable[[Tensor], Tensor] | None = None

    def false_positives(self) -> Tensor:
        """(P,) float64, sum of each row: the smoothed number of negatives above each positive."""
        sums = self.matrix.matvec(self.keys)
        return sums if self.add_up is None else self.add_up(sums)


def smoothed_rank(false_positives: Tensor, among_queries: Tensor) -> Tensor:
    """(P,) float64, smoothed rank of each positive among positives and negatives, >= 1."""
    # Each positive counts itself as 1, of which H(0) = 1/2 is among those above.
    rank = among_queries + 0.5 + false_positives
    return rank.clamp(min=1.0)  # rounding could give less


class Pushes(NamedTuple):
    """What the gradient of a :class:`CellSumMatrix` is made of.

    Attributes:
        errors: (P,) float64 >= 0, in the order of the queries; 0 wherever ``false_positives`` is 0.
        false_positives: (P,) float64, sum of each row.
    """

    errors: Tensor
    false_positives: Tensor


class Update(NamedTuple):
    """The error-driven update of a ranking loss (arXiv:2009.13592, Eqs. 4 to 6 and Alg. 1).

    Each positive i is pushed up by its error; the negatives that outrank it are pushed down by the
    same total, shared in proportion to ``H(s_j - s_i)``. The loss is a mean over P positives.

    Attributes:
        pushes: errors and false positives of each positive, as only the backend that found them
            reads them: :class:`Pushes`, or see ``fused._launch_values``.
        order: (P,) of :class:`SortedPositives`; it counts those of all processes.
        positives: (P_own,) int64, indices of this process's positives.
        num_before: number of positives of the processes before this one.
        num_processes: gradients are multiplied by it, as ``DistributedDataParallel`` averages them.
    """

    pushes: Any
    order: Tensor
    positives: Tensor
    num_before: int = 0
    num_processes: int = 1


class ALRPValues(NamedTuple):
    """What aLRP Loss is made of, see ``Backend.alrp_values``.

    With the positives in descending order, ``loc = mean_m (sum_{n <= m} E_n) / rank_m``. So E_n has
    the weight ``sum_{m >= n} 1 / (P rank_m)``: in ascending order a prefix sum.

    Attributes:
        cls: scalar, mean of false positives / rank.
        loc: scalar, the localisation part.
        pushes: see :class:`Update`. The error of a positive is the one beyond its own localisation
            error (arXiv:2009.13592, Eq. 10); 0 with up to ``eps`` false positives.
        rank: (P,) in the order before sorting, in the dtype of ``cls``.
        loc_weights: (P,) weight of each localisation error in ``loc``, in the order before sorting;
            float64, or the dtype of ``loc``.
    """

    cls: Tensor
    loc: Tensor
    pushes: Any
    rank: Tensor
    loc_weights: Tensor


class APValues(NamedTuple):
    """What AP Loss is made of, see ``Backend.ap_values``.

    Attributes:
        value: scalar, one minus the mean interpolated precision.
        pushes: see :class:`Update`. A positive's error is one minus its interpolated precision.
    """

    value: Tensor
    pushes: Any


class RSValues(NamedTuple):
    """What RS Loss is made of, see ``Backend.rs_values``.

    Attributes:
        ranking: scalar, mean of the ranking errors.
        sorting: scalar, mean of the sorting errors.
        pushes: see :class:`Update`. The error of a positive is false positives / rank.
    """

    ranking: Tensor
    sorting: Tensor
    pushes: Any


class Step(NamedTuple):
    """The step of a ranking, ``H(x) = clamp((x + shift) / (2 * delta) + 0.5, 0, 1)``.

    Attributes:
        delta: half width of the linear part.
        shift: where not 0, the step between two positives is 1 at 0; 0 between others.
    """

    delta: float
    shift: float = 0.0


# The step that jumps from 0 to 1 at 0, between numbers that are 0.5 apart, see ranking.py.
HARD_STEP = Step(delta=0.25, shift=0.5)


class SortingErrors(NamedTuple):
    """What ``Backend.sorting_errors`` finds, each (P,) float64.

    Attributes:
        rank: smoothed rank among the positives, ``sum_j H(s_j - s_i)``, j = i included.
        errors: sorting error of each positive, current minus target.
        gradient: of the sum of the errors, by the error-driven update.
    """

    rank: Tensor
    errors: Tensor
    gradient: Tensor


class StepMatrix(ABC):
    """The matrix ``H[i, k] = H(keys[k] - queries[i])`` of fixed queries and any keys.

    ``H(x) = clamp(x / (2 * delta) + 0.5, 0, 1)`` is the smoothed step of the ranking losses
    (Oksuz et al., arXiv:2009.13592, Sec. 2; Chen et al., arXiv:1904.06373).

    The 2P knots ``queries -+ delta`` cut the axis of the logits into cells. Two queries s0 < s1::

        H  1                            ==========================
                                   =====     -----
                              =====     -----                       = row of s0
                         =====     -----                            - row of s1
           0 ============----------
                       |         |         |         |
        knots       s0-delta  s1-delta  s0+delta  s1+delta          logit of a key ->
        cells     0    |    1    |    2    |    3    |    4

    On a cell every row of H is linear. So

    - a sum over keys (a row's sum) needs only two numbers of each cell: how many keys lie in it,
      and the sum of their distances to its left edge;
    - a sum over queries (a column's sum), seen as a function of the key, is linear on each cell
      too: a value at the left edge and a slope.

    Both are exact up to float64 rounding. ``OperatorMatrix``, ``CompiledMatrix`` and
    ``FusedMatrix`` implement it; in the last, the distance of a key from the knot to its left is
    cut off below about 2^-60 of delta.

    Cell c is ``[edges[c], edges[c + 1])``, where ``edges[1]`` to ``edges[2 P]`` are the knots.
    Cell 0 lies below all knots, where H is 0; its left edge is never used.

    Args:
        queries: (P,) logits in ascending order, P >= 1.
        delta: half width of the linear part of the step, in logit units; > 0.
    """

    queries: Tensor  # (P,) of reductions.accumulation_dtype

    @abstractmethod
    def __init__(self, queries: Tensor, delta: float) -> None: ...

    @abstractmethod
    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        """Find the cells of the keys, without waiting for the device.

        Args:
            logits: (S,) float32 or float64; finite where targets are 0.
            targets: (S,) integers; 0 marks the keys.
        """

    @abstractmethod
    def matvec(self, keys: LocatedKeys) -> Tensor:
        """``sum_j H(keys[j] - queries[i])`` over the keys, for every query: (P,).

        Let N(u) be the weight of the keys above u. The sum is the integral of N from
        query - delta to query + delta, divided by 2 delta. Over one cell, the integral is its
        moment + its width * N(right edge).

        The integral is summed from the top down. N only grows on the way, so small sums are formed
        from small numbers and keep their digits. Cells that no query's linear part covers are left
        out: they may be thousands of deltas wide, and their rounding would drown small sums.
        """

    @abstractmethod
    def gradient(
        self,
        update: Update,
        cells: Tensor,
        logits: Tensor,
        scale: Tensor,
        among: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The gradient of the logits of keys and queries.

        Args:
            update: what it is.
            cells: (S,) of :meth:`locate`.
            logits: (S,) those that were located.
            scale: scalar, the gradient that autograd passes down to the loss.
            among: of a second loss, which is between the positives: (P,) float64 gradient of the
                sum over them, and the scalar that autograd passes down to the mean.

        Returns:
            Tensor: (S,) in the dtype of the logits; sums to zero over all processes.
        """


class CellSumMatrix(StepMatrix):
    """A :class:`StepMatrix` that sums its queries by cells too, as if they were keys."""

    def among_queries(self, weights: Tensor | None = None) -> Tensor:
        """``sum_k weights[k] * H(queries[k] - queries[i])`` for every query, k = i included.

        Args:
            weights: (P,) non-negative, of the dtype of :attr:`queries`; ones if None.

        Returns:
            Tensor: (P,) of that dtype.
        """
        weights = torch.ones_like(self.queries) if weights is None else weights
        return self._row_sums(*self._sum_queries(weights))

    def matvec(self, keys: LocatedKeys) -> Tensor:
        return self._row_sums(*keys.sums)

    def gradient(
        self,
        update: Update,
        cells: Tensor,
        logits: Tensor,
        scale: Tensor,
        among: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        (errors, false_positives), num_processes = update.pushes, update.num_processes
        scale = scale.to(errors.dtype) * num_processes
        scaled = errors * (scale / errors.numel())
        least = torch.finfo(errors.dtype).tiny  # keeps 0 / 0 at 0
        shares = scaled / false_positives.clamp(min=least)
        gradient = self.rmatvec(shares, cells, logits)
        if among is not None:
            second, scale = among
            scale = scale.to(errors.dtype) * num_processes
            scaled = torch.addcmul(scaled, second, scale, value=-1.0 / errors.numel())
        scaled = torch.empty_like(scaled).index_copy_(0, update.order, scaled)
        own = scaled.narrow(0, update.num_before, len(update.positives)).to(gradient.dtype)
        # Until now 0 there.
        return gradient.index_add_(0, update.positives, own, alpha=-1)

    @abstractmethod
    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        """``sum_i weights[i] * H(keys[j] - queries[i])`` for every key, 0 for all other entries.

        Args:
            weights: (P,) of the dtype of :attr:`queries`. Weights of both signs cancel, and cost
                digits.
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
        """(P,) sums over keys, see :meth:`matvec`, from sums over the keys of each cell.

        Args:
            mass: (C,) weight of the keys of each cell.
            moment: (C,) their weighted distance to its left edge.
        """
