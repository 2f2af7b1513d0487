"""The backend for GPUs: kernels of Triton, each a single pass over its operands.

Shape shorthand as in :mod:`alrp.losses.backends.interface`.
"""

from __future__ import annotations

import contextlib
import math
import struct
import torch
from torch import Tensor

from . import fused_kernels as kernels
from . import pair_kernels
from .interface import (
    ALRPValues,
    LocatedKeys,
    RSValues,
    SortingErrors,
    Step,
    StepMatrix,
    Survey,
    cell_dtype,
)
from .operators import OperatorMatrix, sums_below
from .sorting import sorting_errors as sorting_errors_by_levels

# Entries of one program: of a pass over many entries, and of a sequential one.
_BLOCK = 1024
_SEQUENTIAL_BLOCK = 2048
# Copies of the sums of the cells: atomic additions to one place wait for each other.
_TURNS = 16
# Pairs of one program at a time, where all pairs of positives are formed.
_ROWS, _COLUMNS = 16, 64
_MOST_PAIRED = 1 << 14  # positives, see sorting_errors()


def survey(logits: Tensor, targets: Tensor, values: Tensor, most: float = math.inf) -> Survey:
    """See :class:`Survey`; the device is read once."""
    targets = _as_integers(targets)
    num_entries, num_values = len(logits), len(values)
    facts = torch.zeros(5, dtype=torch.int64, device=logits.device)
    num_programs = _num_programs(max(num_entries, num_values))
    counts = torch.empty(num_programs, dtype=torch.int32, device=logits.device)
    arguments = logits, targets, values.contiguous(), float(most), facts, counts
    _launch(kernels.survey, num_programs, *arguments, num_entries, num_values)
    ends = counts.cumsum(0, dtype=torch.int64)
    num_positives, bad_logits, bad_values, num_outside, largest = facts.tolist()
    positives = torch.empty(num_positives, dtype=torch.int64, device=logits.device)
    if num_positives:
        _launch(
            kernels.place_positives, num_programs, targets, counts, ends, positives, num_entries
        )
    return Survey(positives, bad_logits, bad_values, num_outside, _float_of(largest))


class FusedMatrix(StepMatrix):
    """A :class:`StepMatrix` on a GPU; every result has the same bits every time."""

    def __init__(self, queries: Tensor, delta: float) -> None:
        self.queries = torch.empty_like(queries, dtype=torch.float64)
        num_queries, device = len(queries), queries.device
        self._num_cells, self._num_points = 2 * num_queries + 1, 3 * num_queries
        self._delta_bits = _bits_of(delta)
        # A power of two, so that distances in its unit are exact; no covered cell is wider.
        self._scale_bits = _bits_of(2.0 ** -math.ceil(math.log2(2 * delta)))

        floats = torch.empty(self._num_cells + self._num_points, dtype=torch.float64, device=device)
        self._edges, self._points = floats.split([self._num_cells, self._num_points])
        sizes = [self._num_cells, self._num_points, *4 * [num_queries]]
        integers = torch.empty(sum(sizes), dtype=torch.int32, device=device)
        self._owners, self._point_owners, *places = integers.split(sizes)
        self._lower, self._upper, self._point_lower, self._point_upper = places
        flags = torch.empty(self._num_cells + self._num_points, dtype=torch.int8, device=device)
        self._is_covered, self._is_point_covered = flags.split([self._num_cells, self._num_points])
        _launch(
            kernels.merge,
            _num_programs(num_queries),
            *(
                queries.contiguous(),
                self.queries,
                self._lower,
                self._upper,
                self._edges,
                self._owners,
                self._is_covered,
            ),
            *(self._points, self._point_owners, self._is_point_covered),
            *(self._point_lower, self._point_upper),
            *(num_queries, self._delta_bits, _num_steps(num_queries)),
        )

    descending_order = staticmethod(OperatorMatrix.descending_order)

    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        num_cells, device = self._num_cells, logits.device
        cells = torch.empty(len(logits), dtype=cell_dtype(num_cells), device=device)
        sums = torch.zeros(_TURNS * 3 * num_cells, dtype=torch.int64, device=device)
        sizes = len(logits), num_cells, self._scale_bits, _num_steps(num_cells - 1), _TURNS
        arguments = logits, _as_integers(targets), self._edges, cells, sums
        _launch(kernels.locate, _num_programs(len(logits)), *arguments, *sizes)
        mass, moment = self._edges.new_empty(2, num_cells)
        _launch(
            kernels.collect,
            _num_programs(num_cells),
            *(sums, mass, moment, num_cells, self._scale_bits, _TURNS),
        )
        return LocatedKeys(cells, mass, moment)

    def matvec(self, keys: LocatedKeys) -> Tensor:
        knots = self._edges[1:], self._is_covered[1:], keys.mass[1:], keys.moment[1:]
        return self._row_sums(*knots, self._owners, self._lower, self._upper, owned=False)

    def among_queries(self, weights: Tensor | None = None) -> Tensor:
        gains = self.queries if weights is None else weights.contiguous()  # not read if None
        points = self._points, self._is_point_covered, gains, gains, self._point_owners
        places = self._point_lower, self._point_upper
        return self._row_sums(*points, *places, owned=True, weighted=weights is not None)

    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        num_cells = self._num_cells
        values, slopes = self._edges.new_empty(2, num_cells)
        shape = self._owners, self._edges, self._is_covered
        sizes = num_cells, self._delta_bits
        _launch_sequential(
            kernels.column_profile, weights.contiguous(), *shape, values, slopes, *sizes
        )
        results = torch.empty_like(logits)
        arguments = logits, cells, self._edges, values, slopes, results
        _launch(kernels.evaluate, _num_programs(len(logits)), *arguments, len(logits))
        return results

    def _row_sums(
        self,
        points: Tensor,
        is_covered: Tensor,
        gains: Tensor,
        moments: Tensor,
        owners: Tensor,
        lower: Tensor,
        upper: Tensor,
        *,
        owned: bool,
        weighted: bool = True,
    ) -> Tensor:
        """(P,) means of the weight above, over the linear part of each query."""
        areas = torch.empty_like(points)
        arguments = points, is_covered, gains, moments, owners, areas, len(points)
        _launch_sequential(kernels.integrate, *arguments, owned, weighted)
        sums = torch.empty_like(self.queries)
        sizes = len(sums), self._delta_bits
        _launch(kernels.row_sums, _num_programs(len(sums)), areas, lower, upper, sums, *sizes)
        return sums


def sorting_errors(logits: Tensor, ious: Tensor, step: Step) -> SortingErrors:
    """See :func:`alrp.losses.backends.sorting.sorting_errors`.

    Up to 16,384 positives from all pairs, in two kernels: O(P^2) time and O(P) memory. Sums by
    levels are O(P log P), but hundreds of small kernels. The limit is an estimate of where these
    become faster; it was not measured.
    """
    num_queries = len(logits)
    if num_queries > _MOST_PAIRED:
        return sorting_errors_by_levels(logits, ious, step, sums_below)
    rank, errors, shares, gradient = (torch.empty_like(logits) for _ in range(4))
    sizes = num_queries, _bits_of(step.delta), _bits_of(step.shift)
    num_programs = -(-num_queries // _ROWS)
    tile = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    ious = ious.contiguous()
    with _current(logits.device):
        pair_kernels.find_sorting_errors[(num_programs,)](
            logits, ious, rank, errors, shares, *sizes, **tile
        )
        pair_kernels.find_sorting_gradient[(num_programs,)](
            logits, ious, errors, shares, gradient, *sizes, **tile
        )
    return SortingErrors(rank, errors, gradient)


def rs_values(
    false_positives: Tensor,
    rank_among_positives: Tensor,
    sorting_errors: Tensor,
    dtype: torch.dtype,
) -> RSValues:
    """See :class:`Backend`."""
    inputs = [x.contiguous() for x in (false_positives, rank_among_positives, sorting_errors)]
    ranking, sorting = (false_positives.new_empty((), dtype=dtype) for _ in range(2))
    values = RSValues(ranking, sorting, torch.empty_like(false_positives))
    _launch_sequential(kernels.rs_values, *inputs, *values, len(false_positives))
    return values


def alrp_values(
    false_positives: Tensor,
    rank: Tensor,
    errors: Tensor,
    errors_above: Tensor,
    order: Tensor,
    eps: float,
    dtype: torch.dtype,
    loc_dtype: torch.dtype,
) -> ALRPValues:
    """See :class:`Backend`."""
    inputs = [x.contiguous() for x in (false_positives, rank, errors, errors_above, order)]
    values = ALRPValues(
        cls=rank.new_empty((), dtype=dtype),
        loc=rank.new_empty((), dtype=loc_dtype),
        ranking_errors=torch.empty_like(rank),
        rank=torch.empty_like(rank, dtype=dtype),
        loc_weights=torch.empty_like(rank, dtype=loc_dtype),
    )
    _launch_sequential(kernels.alrp_values, *inputs, *values, len(rank), _bits_of(eps))
    return values


def try_out(device: torch.device) -> None:
    """Compile and run every kernel once; raises whatever error comes."""
    logits = torch.zeros(2, device=device)
    targets = torch.arange(2, device=device)
    found = survey(logits, targets, logits[:1])
    matrix = FusedMatrix(logits.index_select(0, found.positives), 1.0)
    keys = matrix.locate(logits, targets)
    sums = matrix.matvec(keys), matrix.among_queries(), matrix.among_queries(matrix.queries)
    matrix.rmatvec(sums[0], keys.cells, logits)
    order = matrix.descending_order(matrix.queries)
    alrp_values(*sums, matrix.queries, order, 0.0, logits.dtype, logits.dtype)
    errors = sorting_errors(matrix.queries, matrix.queries, Step(1.0))
    rs_values(sums[0], errors.rank, errors.errors, logits.dtype)


def _as_integers(targets: Tensor) -> Tensor:
    """Kernels take no bool."""
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


def _num_programs(num_entries: int) -> int:
    return max(1, -(-num_entries // _BLOCK))


def _num_steps(num_values: int) -> int:
    """Of a bisection; a multiple of 4, as each number of steps is compiled anew."""
    return -(-num_values.bit_length() // 4) * 4


def _launch(kernel, num_programs: int, *arguments) -> None:
    with _current(arguments[0].device):
        kernel[(num_programs,)](*arguments, BLOCK=_BLOCK)


def _launch_sequential(kernel, *arguments) -> None:
    with _current(arguments[0].device):
        kernel[(1,)](*arguments, BLOCK=_SEQUENTIAL_BLOCK)


def _current(device: torch.device):
    """Triton launches on the current GPU, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _bits_of(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _float_of(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
