"""The backend for GPUs: kernels of Triton.

A call of a loss launches few kernels, since for all but millions of logits their launches take most
of the time. In their order: ``survey``, ``sort_positives``, ``merge``, ``locate``, for RS Loss
``find_sorting_errors`` and ``find_sorting_gradient``, the values of the loss, and in backward
``evaluate``. Where processes rank together, ``count`` comes before the values, and an exchange
between them. Shape shorthand as in :mod:`alrp.losses.backends.interface`.
"""

from __future__ import annotations

import functools
import math
import struct
import torch
from torch import Tensor

from . import fused_kernels, operators, pair_kernels
from .interface import (
    ALRPValues,
    APValues,
    LocatedKeys,
    Rows,
    RSValues,
    SortedPositives,
    SortingErrors,
    Step,
    StepMatrix,
    Survey,
    Update,
    cell_dtype,
)
from .launching import launch
from .sorting import sorting_errors as sorting_errors_by_levels

# Entries of one program: of a pass over many entries, and of a sequential one.
_BLOCK = 512
_SEQUENTIAL_BLOCK = 2048
_SEQUENTIAL_WARPS = 16
# Copies of the sums of the cells: atomic additions to one place wait for each other.
_LEAST_COPIES = 4
_CLEARED_COPIES = 16  # for 8,000,000 entries; more are cleared by a launch of their own
# Blocks are dealt out whole, so a copy may get up to two blocks more: 501,024 entries. It must be
# fewer than 2^19, see ONE_KEY: a number of keys is packed above the sum of their distances.
_ENTRIES_PER_COPY = 500_000
# Room for positives whose number is not known.
_SLOTS = 1 << 16
# Few knots per bucket, so that a key is found at once; yet the table should stay in the caches.
_BUCKETS_PER_KNOT = 4
_MOST_BUCKETS = 1 << 15
# Pairs of one program at a time, where all pairs of positives are formed.
_ROWS, _COLUMNS = 16, 64
_MOST_SORTED, _MOST_PAIRED = 1 << 14, 1 << 16  # positives, see sort() and sorting_errors()


def survey(logits: Tensor, targets: Tensor, values: Tensor, most: float = math.inf) -> Survey:
    """See :class:`Survey`. The device is read once, but twice if there is no room for all."""
    targets, values = _as_integers(targets), values.contiguous()
    num_entries, num_values, device = logits.numel(), values.numel(), logits.device
    num_slots = num_values or _SLOTS
    inputs = logits, targets, values
    while True:
        facts = torch.zeros(5, dtype=torch.int64, device=device)
        positives = torch.empty(num_slots, dtype=torch.int64, device=device)
        pos_logits = torch.empty(num_slots, dtype=logits.dtype, device=device)
        arrays = facts, positives, pos_logits
        sizes = num_entries, num_values, num_slots
        arguments = *inputs, float(most), *arrays, *sizes
        num_programs = _num_blocks(max(num_entries, num_values))
        launch(fused_kernels.survey, num_programs, inputs, arguments, (_BLOCK,))
        num_positives, bad_logits, bad_values, num_outside, largest = facts.tolist()
        if num_positives <= num_slots:
            break
        num_slots = num_positives
    if num_positives < num_slots:
        positives, pos_logits = positives[:num_positives], pos_logits[:num_positives]
    largest = _float_of(largest)
    return Survey(positives, pos_logits, bad_logits, bad_values, num_outside, largest)


def sort(logits: Tensor, values: Tensor, positives: Tensor) -> SortedPositives:
    """See :class:`SortedPositives`.

    Up to 16,384 positives are sorted by all pairs of them. On an H100 that took half as long as
    PyTorch's sort and the launches after it, and with 65,536 seven times as long (positives that
    are ascending).
    """
    num_positives = logits.numel()
    if num_positives > _MOST_SORTED:
        positives, order = positives.sort()
        return operators.sort(logits.index_select(0, order), values, positives)
    logits, values = logits.contiguous(), values.contiguous()
    found = SortedPositives(
        torch.empty_like(logits, dtype=torch.int64),
        torch.empty_like(logits),
        torch.empty_like(values, dtype=torch.float64),
        torch.empty_like(positives),
    )
    arguments = logits, values, positives, *found, num_positives
    options = (values.numel() > 0,)
    _launch_pairs(pair_kernels.sort_positives, num_positives, (logits, values), arguments, options)
    return found


class FusedMatrix(StepMatrix):
    """A :class:`StepMatrix` on a GPU; every result has the same bits every time.

    The kernel ``merge`` writes all of it, to one table. Points are the knots and the queries,
    sorted. The table consists of

    - float64: (C,) left edges of the cells, (3P,) points, (P,) queries;
    - int8: (C,) and (3P,), which cells and points are covered, see :func:`fused_kernels.merge`;
    - int32: (C,) the query that the left edge of each cell is a knot of, -1 - i for the upper knot
      of query i; (3P,) the query at each point, -1 for knots; (4, P) places of each query's lower
      and upper knot among the knots, and the same among the points; (B + 1,) number of knots before
      each of B buckets of equal width.
    """

    def __init__(self, queries: Tensor, delta: float) -> None:
        num_queries = queries.numel()
        self.num_queries, self._num_cells = num_queries, 2 * num_queries + 1
        self._step_bits = _step_bits(delta)
        num_buckets = 1 << (2 * _BUCKETS_PER_KNOT * num_queries - 1).bit_length()
        self._num_buckets = num_buckets = min(num_buckets, _MOST_BUCKETS)
        num_bytes = 8 * (6 * num_queries + 1) + (5 * num_queries + 8) // 8 * 8
        num_bytes += 4 * (9 * num_queries + 2 + num_buckets)
        self.table = queries.new_empty(-(-num_bytes // 8), dtype=torch.float64)
        self._sums: Tensor | None = self._new_sums(_CLEARED_COPIES)
        num_sums = 1 + _CLEARED_COPIES * 2 * self._num_cells
        num_merging = 3 * _num_blocks(num_queries)
        num_counting = _num_blocks(num_buckets + 1)
        num_clearing = -(-num_sums // (_BLOCK * fused_kernels.CLEARED.value))
        queries = queries.contiguous()
        num_programs = num_merging + num_counting + num_clearing
        sizes = num_queries, num_buckets, num_sums, num_merging, num_counting
        arguments = queries, self.table, self._sums, *sizes, self._step_bits[0]
        constants = _num_steps(num_queries), _BLOCK
        launch(fused_kernels.merge, num_programs, (queries,), arguments, constants)

    def _new_sums(self, num_copies: int) -> Tensor:
        """Room for what is called ``sums`` in :mod:`.fused_kernels`, not cleared."""
        size = 14 * self.num_queries + 3 + num_copies * 2 * self._num_cells
        return self.table.new_empty(size, dtype=torch.int64)

    @property
    def queries(self) -> Tensor:  # type: ignore[override]
        return self.table.narrow(0, 5 * self.num_queries + 1, self.num_queries)

    def locate(self, logits: Tensor, targets: Tensor) -> LocatedKeys:
        num_entries = logits.numel()
        num_copies = _num_copies(num_entries)
        sums, self._sums = self._sums, None  # they are clear only once
        if sums is None or num_copies > _CLEARED_COPIES:
            del sums
            sums = self._new_sums(num_copies).zero_()
        cells = torch.empty_like(logits, dtype=cell_dtype(self._num_cells))
        targets = _as_integers(targets)
        sizes = num_entries, self.num_queries, self._num_buckets, num_copies
        arguments = logits, targets, self.table, cells, sums, *sizes, self._step_bits[1]
        num_programs, typed = _num_blocks(num_entries), (logits, targets, cells)
        launch(fused_kernels.locate, num_programs, typed, arguments, (_BLOCK,))
        return LocatedKeys(cells, sums)

    def matvec(self, keys: LocatedKeys) -> Tensor:
        result = self.table.new_empty(self.num_queries)
        arguments = self.table, keys.sums, result, *self.sizes(keys)
        _launch_sequential(fused_kernels.count, (), arguments)
        return result

    def sizes(self, keys: LocatedKeys) -> tuple[int, int, int, int]:
        """Numbers of queries and of copies, and the bits of the step."""
        return self.num_queries, _num_copies(keys.cells.numel()), *self._step_bits

    def gradient(
        self,
        update: Update,
        cells: Tensor,
        logits: Tensor,
        scale: Tensor,
        among: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        logits, cells = logits.contiguous(), cells.contiguous()  # hooks may save them otherwise
        num_entries, num_queries = logits.numel(), self.num_queries
        results = torch.empty_like(logits)
        pushes, order, positives, num_before, num_processes = update
        second, second_scale = (among[0].contiguous(), among[1]) if among else (pushes, scale)
        num_programs = -(-num_entries // _BLOCK) + _num_blocks(num_queries)
        arrays = logits, cells, self.table, pushes, order, positives, scale, second, second_scale
        sizes = num_entries, num_queries, num_before, positives.numel(), num_processes
        typed = logits, cells, scale, second_scale
        arguments, constants = (*arrays, results, *sizes), (among is not None, _BLOCK)
        launch(fused_kernels.evaluate, num_programs, typed, arguments, constants)
        return results


def sorting_errors(logits: Tensor, ious: Tensor, step: Step) -> SortingErrors:
    """See :func:`alrp.losses.backends.sorting.sorting_errors`.

    Up to 65,536 positives from all pairs, in two kernels: O(P^2) time and O(P) memory. Sums by
    levels are O(P log P), but hundreds of small kernels, which take 31 times as long with 65,536
    positives and 91 times with 16,384 (H100).
    """
    num_queries = logits.numel()
    if num_queries > _MOST_PAIRED:
        return sorting_errors_by_levels(logits, ious, step, operators.sums_below)
    found = torch.empty(4, num_queries, dtype=logits.dtype, device=logits.device)
    rank, errors, shares, gradient = found
    pairs = logits.contiguous(), ious.contiguous()
    sizes = num_queries, _bits_of(step.delta), _bits_of(step.shift)
    for kernel, arrays in (
        (pair_kernels.find_sorting_errors, (rank, errors, shares)),
        (pair_kernels.find_sorting_gradient, (errors, shares, gradient)),
    ):
        _launch_pairs(kernel, num_queries, pairs, (*pairs, *arrays, *sizes))
    return SortingErrors(rank, errors, gradient)


def alrp_values(
    rows: Rows,
    errors: Tensor,
    order: Tensor,
    eps: float,
    dtype: torch.dtype,
    loc_dtype: torch.dtype,
) -> ALRPValues:
    """See :class:`Backend`."""
    cls, loc = errors.new_empty((), dtype=dtype), errors.new_empty((), dtype=loc_dtype)
    rank = torch.empty_like(errors, dtype=dtype)
    loc_weights = torch.empty_like(errors, dtype=loc_dtype)
    arrays = errors, order, cls, loc, rank, loc_weights
    pushes = _launch_values(fused_kernels.alrp_values, 3, rows, (cls, loc), arrays, _bits_of(eps))
    return ALRPValues(cls, loc, pushes, rank, loc_weights)


def ap_values(rows: Rows, dtype: torch.dtype) -> APValues:
    """See :class:`Backend`."""
    value = rows.keys.sums.new_empty((), dtype=dtype)
    return APValues(value, _launch_values(fused_kernels.ap_values, 2, rows, (value,), (value,)))


def rs_values(rows: Rows, sorting: SortingErrors, dtype: torch.dtype) -> RSValues:
    """See :class:`Backend`."""
    values = sorting.rank.new_empty((), dtype=dtype), sorting.rank.new_empty((), dtype=dtype)
    arrays = sorting.rank.contiguous(), sorting.errors.contiguous(), *values
    return RSValues(*values, _launch_values(fused_kernels.rs_values, 1, rows, values, arrays))


def _launch_values(
    kernel,
    num_sums: int,
    rows: Rows,
    typed: tuple[Tensor, ...],
    arrays: tuple[Tensor, ...],
    *numbers: int,
) -> Tensor:
    """Launch a kernel of values, a program for each of its sums of rows; return its pushes.

    These are float64: the (2, C) profile of the sum over the queries, as a function of the key: its
    value at the left edge of each cell, and its slope; (P,) errors; (P,) false positives.
    """
    matrix, keys = rows.matrix, rows.keys
    assert isinstance(matrix, FusedMatrix)
    num_queries = matrix.num_queries
    pushes = matrix.table.new_empty(6 * num_queries + 2)
    if rows.add_up is not None:
        pushes[-num_queries:] = rows.false_positives()
    arguments = matrix.table, keys.sums, pushes, *arrays, *matrix.sizes(keys), *numbers
    _launch_sequential(kernel, typed, arguments, (rows.add_up is None,), num_sums)
    return pushes


def try_out(device: torch.device) -> None:
    """Compile and run every kernel; raises whatever error comes."""
    logits = torch.zeros(2, device=device)
    targets = torch.arange(2, device=device)
    for _ in range(2):  # the second time, known kernels are launched at once
        found = survey(logits, targets, logits[:1])
        order, queries, values, positives = sort(found.logits, logits[:1], found.positives)
        matrix = FusedMatrix(queries, 1.0)
        rows = Rows(matrix, matrix.locate(logits, targets))
        sorting = sorting_errors(matrix.queries, values, Step(1.0))
        for rows in (rows, rows._replace(add_up=torch.clone)):
            alrp_values(rows, values, order, 0.0, logits.dtype, logits.dtype)
            ap_values(rows, logits.dtype)
            pushes = rs_values(rows, sorting, logits.dtype).pushes
        for among in (None, (sorting.gradient, logits[0])):
            update = Update(pushes, order, positives)
            matrix.gradient(update, rows.keys.cells, logits, logits[0], among)


def _as_integers(targets: Tensor) -> Tensor:
    """Kernels take no bool."""
    return targets.view(torch.uint8) if targets.dtype == torch.bool else targets


@functools.lru_cache(maxsize=64)
def _step_bits(delta: float) -> tuple[int, int]:
    """Of ``delta``, and of the scale of distances.

    That is a power of two, so that distances in its unit are exact; no covered cell is wider.
    """
    return _bits_of(delta), _bits_of(2.0 ** -math.ceil(math.log2(2 * delta)))


def _num_blocks(num_entries: int) -> int:
    return max(1, -(-num_entries // _BLOCK))


def _num_copies(num_entries: int) -> int:
    return max(_LEAST_COPIES, -(-num_entries // _ENTRIES_PER_COPY))


def _num_steps(num_values: int) -> int:
    """Of a bisection; a multiple of 4, as each number of steps is compiled anew."""
    return -(-num_values.bit_length() // 4) * 4


def _launch_sequential(
    kernel, typed: tuple, arguments: tuple, constants: tuple = (), num_programs: int = 1
) -> None:
    constants = *constants, _SEQUENTIAL_BLOCK
    launch(kernel, num_programs, typed, arguments, constants, num_warps=_SEQUENTIAL_WARPS)


def _launch_pairs(
    kernel, num_rows: int, typed: tuple, arguments: tuple, constants: tuple = ()
) -> None:
    launch(kernel, -(-num_rows // _ROWS), typed, arguments, (*constants, _ROWS, _COLUMNS))


def _bits_of(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _float_of(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
