"""The backend for GPUs: kernels of Triton, each a single pass over its operands.

A call of a loss launches few kernels, since for all but millions of logits their launches take most
of the time. Shape shorthand as in :mod:`alrp.losses.backends.interface`.
"""

from __future__ import annotations

import math
import struct
import torch
from torch import Tensor

from . import fused_kernels as kernels
from . import operators, pair_kernels
from .interface import (
    ALRPValues,
    APValues,
    LocatedKeys,
    RSValues,
    SortedPositives,
    SortingErrors,
    Step,
    StepMatrix,
    SumsOfRows,
    Survey,
    Update,
    cell_dtype,
)
from .launching import launch
from .sorting import sorting_errors as sorting_errors_by_levels

# Entries of one program: of a pass over many entries, over sums of cells, and of a sequential one.
_BLOCK = 512
_COLLECTED = 128
_SEQUENTIAL_BLOCK = 2048
_SEQUENTIAL_WARPS = 16
# Copies of the sums of the cells: atomic additions to one place wait for each other. A copy counts
# so many keys and up to two blocks more, which must stay below 2^20.
_TURNS = 16
_KEYS_PER_TURN = 1_000_000
# Few knots per bucket, so that a key is found at once; yet the table should stay in the caches.
_BUCKETS_PER_KNOT = 4
_MOST_BUCKETS = 1 << 15
# Pairs of one program at a time, where all pairs of positives are formed.
_ROWS, _COLUMNS = 16, 64
_MOST_SORTED, _MOST_PAIRED = 1 << 14, 1 << 16  # positives, see sort() and sorting_errors()


def survey(logits: Tensor, targets: Tensor, values: Tensor, most: float = math.inf) -> Survey:
    """See :class:`Survey`; the device is read once."""
    targets, values = _as_integers(targets), values.contiguous()
    num_entries, num_values, device = logits.numel(), values.numel(), logits.device
    num_programs = _num_blocks(max(num_entries, num_values))
    num_groups = -(-num_programs // kernels.GROUP.value)
    facts = torch.zeros(5 + num_groups, dtype=torch.int64, device=device)
    counts = torch.empty(num_programs, dtype=torch.int32, device=device)
    inputs = logits, targets, values
    sizes = num_entries, num_values
    _launch(kernels.survey, num_programs, inputs, *inputs, float(most), facts, counts, *sizes)
    num_positives, bad_logits, bad_values, num_outside, largest = facts[:5].tolist()
    positives = torch.empty(num_positives, dtype=torch.int64, device=device)
    pos_logits = torch.empty(num_positives, dtype=logits.dtype, device=device)
    if num_positives:
        arguments = logits, targets, facts, counts, positives, pos_logits, num_entries
        _launch(kernels.place_positives, num_programs, (logits, targets), *arguments)
    return Survey(positives, pos_logits, bad_logits, bad_values, num_outside, _float_of(largest))


def sort(logits: Tensor, values: Tensor) -> SortedPositives:
    """See :class:`SortedPositives`.

    Up to 16,384 positives are sorted by all pairs of them, which takes half the time of PyTorch's
    sort and the launches after it (H100); with 65,536 it takes seven times as long.
    """
    num_positives = logits.numel()
    if num_positives > _MOST_SORTED:
        return operators.sort(logits, values)
    inputs = logits.contiguous(), values.contiguous()
    order = torch.empty_like(inputs[0], dtype=torch.int64)
    found = SortedPositives(
        order, torch.empty_like(inputs[0]), torch.empty_like(inputs[1], dtype=torch.float64)
    )
    valued = values.numel() > 0
    _launch_pairs(pair_kernels.sort_positives, inputs, *found, num_positives, VALUED=valued)
    return found


class FusedMatrix(StepMatrix):
    """A :class:`StepMatrix` on a GPU; every result has the same bits every time.

    One kernel writes all of it, to three arrays. Points are the knots and the queries, sorted.

    - float64: (C,) left edges of the cells, (3P,) points, (P,) queries;
    - int32: (C,) the query that the left edge of each cell is a knot of, -1 - i for the upper knot
      of query i; (3P,) the query at each point, -1 for knots; (4, P) places of each query's lower
      and upper knot among the knots, and the same among the points; (B + 1,) number of knots before
      each of B buckets of equal width;
    - int8: for cells and points, see :func:`fused_kernels.merge`.
    """

    def __init__(self, queries: Tensor, delta: float) -> None:
        num_queries, device = queries.numel(), queries.device
        self._num_queries, self._num_cells = num_queries, 2 * num_queries + 1
        self._delta_bits = _bits_of(delta)
        # A power of two, so that distances in its unit are exact; no covered cell is wider.
        self._scale_bits = _bits_of(2.0 ** -math.ceil(math.log2(2 * delta)))
        num_buckets = 1 << (2 * _BUCKETS_PER_KNOT * num_queries - 1).bit_length()
        self._num_buckets = min(num_buckets, _MOST_BUCKETS)
        self._floats = torch.empty(6 * num_queries + 1, dtype=torch.float64, device=device)
        num_integers = 9 * num_queries + 2 + self._num_buckets
        self._integers = torch.empty(num_integers, dtype=torch.int32, device=device)
        self._flags = torch.empty(5 * num_queries + 1, dtype=torch.int8, device=device)
        self.queries = self._floats[5 * num_queries + 1 :]
        sums = torch.empty(_TURNS * 2 * self._num_cells, dtype=torch.int64, device=device)
        self._sums: Tensor | None = sums
        num_sums, num_merging = sums.numel(), _num_blocks(num_queries)
        num_counting = _num_blocks(self._num_buckets + 1)
        num_clearing = -(-num_sums // (_BLOCK * kernels.CLEARED.value))
        queries = queries.contiguous()
        _launch(
            kernels.merge,
            num_merging + num_counting + num_clearing,
            (queries,),
            *(queries, *self._arrays(), sums, num_queries, self._num_buckets),
            *(num_sums, num_merging, num_counting, self._delta_bits),
            NUM_STEPS=_num_steps(num_queries),
        )

    def _arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._floats, self._integers, self._flags

    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        num_entries, num_cells, device = logits.numel(), self._num_cells, logits.device
        num_turns = max(_TURNS, -(-num_entries // _KEYS_PER_TURN))
        sums, self._sums = self._sums, None  # they are clear only once
        if sums is None or num_turns > _TURNS:
            sums = torch.zeros(num_turns * 2 * num_cells, dtype=torch.int64, device=device)
        cells = torch.empty(num_entries, dtype=cell_dtype(num_cells), device=device)
        inputs = logits, _as_integers(targets)
        _launch(
            kernels.locate,
            _num_blocks(num_entries),
            (*inputs, cells),
            *(*inputs, self._floats, self._integers, cells, sums),
            *(num_entries, self._num_queries, self._num_buckets, num_turns, self._scale_bits),
        )
        cell_sums = torch.empty(2, num_cells, dtype=torch.float64, device=device)
        arguments = sums, cell_sums, num_cells, num_turns, self._scale_bits
        launch(kernels.collect, -(-num_cells // _COLLECTED), (), *arguments, BLOCK=_COLLECTED)
        return LocatedKeys(cells, cell_sums)

    def matvec(self, keys: LocatedKeys) -> Tensor:
        return self._sum_rows(keys, None, 0, 1)[0]

    def among_queries(self, weights: Tensor | None = None) -> Tensor:
        return self._sum_rows(None, weights, 1 if weights is None else 2, 1)[0]

    def sums_of_rows(self, keys: LocatedKeys, weights: Tensor) -> SumsOfRows:
        is_weighted = weights.numel() > 0
        sums = self._sum_rows(keys, weights, 0, 3 if is_weighted else 2).unbind()
        return SumsOfRows(sums[0], sums[1], sums[2] if is_weighted else weights)

    def _sum_rows(
        self, keys: LocatedKeys | None, weights: Tensor | None, first: int, count: int
    ) -> Tensor:
        """(count, P) sums, see :func:`fused_kernels.sum_rows`."""
        queries = self.queries
        cell_sums = queries if keys is None else keys.sums
        areas = torch.empty(count * 3 * queries.numel(), dtype=torch.float64, device=queries.device)
        sums = torch.empty(count, queries.numel(), dtype=torch.float64, device=queries.device)
        weights = queries if weights is None else weights.contiguous()
        arrays = *self._arrays(), cell_sums, weights, areas, sums
        sizes = self._num_queries, first, self._delta_bits
        _launch_sequential(kernels.sum_rows, (), *arrays, *sizes, num_programs=count)
        return sums

    def rmatvec(self, weights: Tensor, cells: Tensor, logits: Tensor) -> Tensor:
        weights = weights.contiguous()
        return self._sums_of_columns(
            Update(weights, weights, weights, weights, weights, 0, 1), cells, logits, False
        )

    def gradient(self, update: Update, cells: Tensor, logits: Tensor) -> Tensor:
        return self._sums_of_columns(update, cells, logits, True)

    def _sums_of_columns(
        self, update: Update, cells: Tensor, logits: Tensor, is_update: bool
    ) -> Tensor:
        """:meth:`gradient`, or else :meth:`rmatvec` with the errors as weights."""
        logits = logits.contiguous()
        profile = torch.empty(2 * self._num_cells, dtype=torch.float64, device=logits.device)
        results = torch.empty_like(logits)
        errors, false_positives, scale, order, positives, num_before, num_processes, _ = update
        among, among_scale = update.among or (errors, scale)
        _launch_sequential(
            kernels.column_profile,
            (scale, among_scale, results),
            *(errors, false_positives.contiguous(), scale, among.contiguous(), among_scale),
            *(order, positives, results, *self._arrays(), profile),
            *(self._num_queries, num_before, positives.numel(), num_processes, self._delta_bits),
            UPDATE=is_update,
            AMONG=update.among is not None,
        )
        _launch(
            kernels.evaluate,
            _num_blocks(logits.numel()),
            (logits, cells, results),
            *(logits, cells, self._floats, profile, results, logits.numel(), self._num_cells),
            KEPT=is_update,
        )
        return results


def sorting_errors(logits: Tensor, ious: Tensor, step: Step) -> SortingErrors:
    """See :func:`alrp.losses.backends.sorting.sorting_errors`.

    Up to 65,536 positives from all pairs, in two kernels: O(P^2) time and O(P) memory. Sums by
    levels are O(P log P), but hundreds of small kernels, which take 31 times as long with 65,536 of
    them and 91 times with 16,384 (H100).
    """
    num_queries = logits.numel()
    if num_queries > _MOST_PAIRED:
        return sorting_errors_by_levels(logits, ious, step, operators.sums_below)
    found = torch.empty(4, num_queries, dtype=logits.dtype, device=logits.device)
    rank, errors, shares, gradient = found
    sizes = num_queries, _bits_of(step.delta), _bits_of(step.shift)
    pairs = logits.contiguous(), ious.contiguous()
    _launch_pairs(pair_kernels.find_sorting_errors, pairs, rank, errors, shares, *sizes)
    _launch_pairs(pair_kernels.find_sorting_gradient, pairs, errors, shares, gradient, *sizes)
    return SortingErrors(rank, errors, gradient)


def alrp_values(
    sums: SumsOfRows,
    errors: Tensor,
    order: Tensor,
    eps: float,
    dtype: torch.dtype,
    loc_dtype: torch.dtype,
) -> ALRPValues:
    """See :class:`Backend`."""
    false_positives, among, errors_above = (x.contiguous() for x in sums)
    values = ALRPValues(
        cls=errors.new_empty((), dtype=dtype),
        loc=errors.new_empty((), dtype=loc_dtype),
        ranking_errors=torch.empty_like(errors),
        rank=torch.empty_like(errors, dtype=dtype),
        loc_weights=torch.empty_like(errors, dtype=loc_dtype),
    )
    inputs = false_positives, among, errors, errors_above, order
    arguments = *inputs, *values, errors.numel(), _bits_of(eps)
    _launch_sequential(kernels.alrp_values, values[:2], *arguments)
    return values


def ap_values(sums: SumsOfRows, dtype: torch.dtype) -> APValues:
    """See :class:`Backend`."""
    false_positives, among = sums.keys.contiguous(), sums.queries.contiguous()
    values = APValues(among.new_empty((), dtype=dtype), torch.empty_like(among))
    arguments = false_positives, among, *values, among.numel()
    _launch_sequential(kernels.ap_values, values[:1], *arguments)
    return values


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
    arguments = *inputs, *values, false_positives.numel()
    _launch_sequential(kernels.rs_values, values[:2], *arguments)
    return values


def try_out(device: torch.device) -> None:
    """Compile and run every kernel once; raises whatever error comes."""
    logits = torch.zeros(2, device=device)
    targets = torch.arange(2, device=device)
    found = survey(logits, targets, logits[:1])
    order, queries, values = sort(found.logits, found.logits)
    matrix = FusedMatrix(queries, 1.0)
    keys = matrix.locate(logits, targets)
    sums = matrix.sums_of_rows(keys, values)
    alrp_values(sums, values, order, 0.0, logits.dtype, logits.dtype)
    errors = ap_values(sums, logits.dtype).errors
    sorting = sorting_errors(matrix.queries, values, Step(1.0))
    rs_values(sums.keys, sorting.rank, sorting.errors, logits.dtype)
    for among in (None, (sorting.gradient, logits[0])):
        update = Update(errors, sums.keys, logits[0], order, found.positives, 0, 1, among)
        matrix.gradient(update, keys.cells, logits)


def _as_integers(targets: Tensor) -> Tensor:
    """Kernels take no bool."""
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


def _num_blocks(num_entries: int) -> int:
    return max(1, -(-num_entries // _BLOCK))


def _num_steps(num_values: int) -> int:
    """Of a bisection; a multiple of 4, as each number of steps is compiled anew."""
    return -(-num_values.bit_length() // 4) * 4


def _launch(kernel, num_programs: int, typed: tuple, *arguments, **constants) -> None:
    launch(kernel, num_programs, typed, *arguments, **constants, BLOCK=_BLOCK)


def _launch_sequential(
    kernel, typed: tuple, *arguments, num_programs: int = 1, **constants
) -> None:
    sizes = {"num_warps": _SEQUENTIAL_WARPS, "BLOCK": _SEQUENTIAL_BLOCK}
    launch(kernel, num_programs, typed, *arguments, **constants, **sizes)


def _launch_pairs(kernel, inputs: tuple[Tensor, Tensor], *arguments, **constants) -> None:
    num_programs = -(-inputs[0].numel() // _ROWS)
    tile = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    launch(kernel, num_programs, inputs, *inputs, *arguments, **constants, **tile)


def _bits_of(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _float_of(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
