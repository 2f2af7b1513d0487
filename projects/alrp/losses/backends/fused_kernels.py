"""The kernels of the backend for GPUs, in Triton: each a single pass over its operands.

Shape shorthand as in :mod:`alrp.losses.backends.interface`. Kernels over many entries have one
program for each ``BLOCK`` of them. Sums from program to program are sums of integers, which do not
depend on the order. Kernels that are said to be sequential have one program for a result; it goes
through its operands in blocks, whose order never changes. So all results have the same bits every
time.

Triton hands over Python's floats in float32. What needs all digits comes as the 64 bits of a float.
"""

import inspect
import triton
import triton.language as tl

from .launching import IS_DIRECT

GROUP = tl.constexpr(64)  # programs whose positives are counted together
CLEARED = tl.constexpr(8)  # blocks that one program clears


# Arrays of all entries, of which threads read and write 16 bytes at once if the address allows it.
_LARGE = {"logits", "targets", "cells", "results"}


def kernel(function):
    """A kernel that is compiled once for all sizes.

    Triton would compile again where a number is a multiple of 16, or the address of an array that
    is not ``_LARGE``. Names say what is what: numbers are ``num_*`` and ``*_bits``, of 64 bits
    where these can be needed, constants in capitals, and all others arrays.
    """
    names = set(inspect.signature(function).parameters)
    numbers = {name for name in names if name.startswith("num_") or name.endswith("_bits")}
    options = {"do_not_specialize": list(numbers)}
    if IS_DIRECT:
        arrays = {name for name in names - numbers - _LARGE if name.islower()}
        options["do_not_specialize_on_alignment"] = list(arrays)
    return triton.jit(function, **options)


@triton.jit
def _entries(BLOCK: tl.constexpr):
    """Indices of the entries of this program; 64 bits, as there may be more than 2^31."""
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def float_of(bits):
    """A float64; in the interpreter small numbers have 32 bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _zero(BLOCK: tl.constexpr):
    """A float64 to begin a sum with; a literal would be a float32."""
    return tl.sum(tl.zeros([BLOCK], tl.float64), 0)


@kernel
def survey(
    logits,
    targets,
    values,
    most,
    facts,
    counts,
    num_entries: tl.int64,
    num_values,
    BLOCK: tl.constexpr,
):
    """Write the number of positives of each program; add to int64 ``facts``.

    These are the numbers of positives, bad logits, bad values and values outside, and the bits of
    the largest logit, which sort like floats above 0. The others are the numbers of positives of
    ``GROUP`` programs each.
    """
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0)
    target = tl.load(targets + i, mask=is_entry, other=2)
    is_positive = is_entry & (target == 1)
    is_finite = tl.abs(x) < float("inf")
    is_bad = is_entry & ((target == 0) | (target == 1)) & (is_finite == 0)
    num_positives = tl.sum(is_positive.to(tl.int32), 0)
    tl.store(counts + tl.program_id(0), num_positives)
    largest = tl.max(tl.where(is_positive & is_finite, tl.abs(x), 0.0).to(tl.float64), 0)

    is_value = i < num_values
    value = tl.load(values + i, mask=is_value, other=0.0).to(tl.float64)
    is_bad_value = is_value & ((tl.abs(value) < float("inf")) == 0)
    is_outside = is_value & ((value < -0.01) | (value > most + 0.01))

    num_bad = tl.sum(is_bad.to(tl.int32), 0)
    num_bad_values = tl.sum(is_bad_value.to(tl.int32), 0)
    num_outside = tl.sum(is_outside.to(tl.int32), 0)
    # Most programs have nothing to tell.
    group = facts + 5 + tl.program_id(0) // GROUP
    tl.atomic_add(group, num_positives.to(tl.int64), mask=num_positives > 0, sem="relaxed")
    tl.atomic_add(facts, num_positives.to(tl.int64), mask=num_positives > 0, sem="relaxed")
    tl.atomic_add(facts + 1, num_bad.to(tl.int64), mask=num_bad > 0, sem="relaxed")
    tl.atomic_add(facts + 2, num_bad_values.to(tl.int64), mask=num_bad_values > 0, sem="relaxed")
    tl.atomic_add(facts + 3, num_outside.to(tl.int64), mask=num_outside > 0, sem="relaxed")
    tl.atomic_max(
        facts + 4, largest.to(tl.int64, bitcast=True), mask=num_positives > 0, sem="relaxed"
    )


@kernel
def place_positives(
    logits,
    targets,
    facts,
    counts,
    positives,
    pos_logits,
    num_entries: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write indices, ascending, and logits of the positives; the rest is of :func:`survey`."""
    program = tl.program_id(0)
    count = tl.load(counts + program)
    if count > 0:
        group = program // GROUP
        before = tl.zeros([BLOCK], tl.int64)
        start = 0
        while start < group:
            other = start + tl.arange(0, BLOCK)
            before += tl.load(facts + 5 + other, mask=other < group, other=0)
            start += BLOCK
        other = group * GROUP + tl.arange(0, GROUP)
        place = tl.sum(before, 0)
        place += tl.sum(tl.load(counts + other, mask=other < program, other=0), 0)
        i = _entries(BLOCK)
        is_positive = tl.load(targets + i, mask=i < num_entries, other=2) == 1
        place += tl.cumsum(is_positive.to(tl.int32), 0) - 1
        tl.store(positives + place, i, mask=is_positive)
        logit = tl.load(logits + i, mask=is_positive, other=0.0)
        tl.store(pos_logits + place, logit, mask=is_positive)


@triton.jit
def _num_below(
    queries,
    shift,
    limits,
    num_queries,
    NUM_STEPS: tl.constexpr,
    OR_EQUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For each limit the number of ``queries + shift`` below it, by bisection."""
    low = tl.zeros([BLOCK], tl.int32)
    high = low + num_queries
    for _ in range(NUM_STEPS):
        middle = (low + high) // 2
        value = tl.load(queries + middle, mask=middle < num_queries, other=float("inf"))
        value = value.to(tl.float64) + shift
        if OR_EQUAL:
            is_below = (value <= limits) & (low < high)
        else:
            is_below = (value < limits) & (low < high)
        low = tl.where(is_below, middle + 1, low)
        high = tl.where(is_below, high, middle)
    return low


@triton.jit
def _bucket(x, lowest, highest, num_buckets):
    """The bucket of a logit, of equal ones from the lowest to the highest knot; monotone."""
    last = (num_buckets - 1).to(tl.float64)
    place = (x - lowest) * (num_buckets.to(tl.float64) / (highest - lowest))
    return tl.minimum(tl.maximum(place, 0.0), last).to(tl.int32)


@triton.jit
def _num_in_buckets_below(
    queries, shift, bucket, lowest, highest, num_queries, num_buckets, NUM_STEPS, BLOCK
):
    """For each bucket the number of ``queries + shift`` in those below it, by bisection."""
    low = tl.zeros([BLOCK], tl.int32)
    high = low + num_queries
    for _ in range(NUM_STEPS):
        middle = (low + high) // 2
        value = tl.load(queries + middle, mask=middle < num_queries, other=0.0)
        place = _bucket(value.to(tl.float64) + shift, lowest, highest, num_buckets)
        is_below = (place < bucket) & (low < high)
        low = tl.where(is_below, middle + 1, low)
        high = tl.where(is_below, high, middle)
    return low


@kernel
def merge(
    queries,
    floats,
    integers,
    flags,
    sums,
    num_queries,
    num_buckets,
    num_sums: tl.int64,
    num_merging,
    num_counting,
    delta_bits: tl.int64,
    NUM_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write all of a :class:`FusedMatrix`: three arrays, whose parts stand there; clear its sums.

    The first ``num_merging`` programs sort knots, and points: these are the knots and the queries.
    Of equal ones, lower knots come before upper ones and both before queries. A cell, or the space
    behind a point, is covered if more lower than upper knots have come: some query's linear part
    reaches over it. Then ``num_counting`` programs count the knots before each bucket. The others
    clear ``CLEARED`` blocks each.
    """
    delta = float_of(delta_bits)
    program = tl.program_id(0)
    num_cells = 2 * num_queries + 1
    if program < num_merging:
        points = floats + num_cells
        point_owners = integers + num_cells
        places = point_owners + 3 * num_queries
        is_point_covered = flags + num_cells
        i = (program * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
        mask = i < num_queries
        query = tl.load(queries + i, mask=mask, other=0.0).to(tl.float64)
        tl.store(points + 3 * num_queries + i, query, mask=mask)
        low, high = query - delta, query + delta
        upper_below_low = _num_below(queries, delta, low, num_queries, NUM_STEPS, False, BLOCK)
        query_below_low = _num_below(queries, 0.0, low, num_queries, NUM_STEPS, False, BLOCK)
        lower_below_high = _num_below(queries, -delta, high, num_queries, NUM_STEPS, True, BLOCK)
        query_below_high = _num_below(queries, 0.0, high, num_queries, NUM_STEPS, False, BLOCK)
        lower_below_query = _num_below(queries, -delta, query, num_queries, NUM_STEPS, True, BLOCK)
        upper_below_query = _num_below(queries, delta, query, num_queries, NUM_STEPS, True, BLOCK)

        place = i + upper_below_low
        tl.store(places + i, place, mask=mask)
        tl.store(floats + 1 + place, low, mask=mask)
        tl.store(integers + 1 + place, i, mask=mask)
        tl.store(flags + 1 + place, 1, mask=mask)
        place += query_below_low
        tl.store(places + 2 * num_queries + i, place, mask=mask)
        tl.store(points + place, low, mask=mask)
        tl.store(point_owners + place, -1, mask=mask)
        tl.store(is_point_covered + place, 1, mask=mask)

        place = i + lower_below_high
        is_inside = (lower_below_high > i + 1).to(tl.int8)
        tl.store(places + num_queries + i, place, mask=mask)
        tl.store(floats + 1 + place, high, mask=mask)
        tl.store(integers + 1 + place, -1 - i, mask=mask)
        tl.store(flags + 1 + place, is_inside, mask=mask)
        place += query_below_high
        tl.store(places + 3 * num_queries + i, place, mask=mask)
        tl.store(points + place, high, mask=mask)
        tl.store(point_owners + place, -1, mask=mask)
        tl.store(is_point_covered + place, is_inside, mask=mask)

        place = i + lower_below_query + upper_below_query
        tl.store(points + place, query, mask=mask)
        tl.store(point_owners + place, i, mask=mask)
        tl.store(is_point_covered + place, 1, mask=mask)
    elif program < num_merging + num_counting:
        bucket = (program - num_merging) * BLOCK + tl.arange(0, BLOCK)
        lowest = tl.load(queries).to(tl.float64) - delta
        highest = tl.load(queries + num_queries - 1).to(tl.float64) + delta
        num_before = _num_in_buckets_below(
            queries, -delta, bucket, lowest, highest, num_queries, num_buckets, NUM_STEPS, BLOCK
        )
        num_before += _num_in_buckets_below(
            queries, delta, bucket, lowest, highest, num_queries, num_buckets, NUM_STEPS, BLOCK
        )
        starts = integers + num_cells + 7 * num_queries
        tl.store(starts + bucket, num_before, mask=bucket <= num_buckets)
    else:
        start = (program - num_merging - num_counting).to(tl.int64) * (CLEARED * BLOCK)
        for part in tl.static_range(CLEARED):
            i = start + part * BLOCK + tl.arange(0, BLOCK)
            tl.store(sums + i, tl.zeros([BLOCK], tl.int64), mask=i < num_sums)


@kernel
def locate(
    logits,
    targets,
    floats,
    integers,
    cells,
    sums,
    num_entries: tl.int64,
    num_queries,
    num_buckets,
    num_turns,
    scale_bits: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write the cell of each key, -1 for positives, else 0; add to the sums of the cells.

    Only the knots in the bucket of a key are compared with it. Programs take turns among the
    (turns, 2, C) int64 ``sums``. Distances to the left edge of the cell are counted in units of
    2^-21 and, what is left, of 2^-62 of ``1 / scale``, and cut off below. No covered cell is wider
    than ``1 / scale``, and of others the distances do not matter. The first sum is of 2^43 and the
    first part of the distance, so it counts the keys, too: fewer than 2^20 of them take one turn.
    Keys in cell 0 are not summed.
    """
    num_cells = 2 * num_queries + 1
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0).to(tl.float64)
    target = tl.load(targets + i, mask=is_entry, other=2)
    is_key = is_entry & (target == 0)
    lowest, highest = tl.load(floats + 1), tl.load(floats + num_cells - 1)
    is_summed = is_key & (x >= lowest)
    x = tl.where(is_summed, x, lowest)
    starts = integers + num_cells + 7 * num_queries + _bucket(x, lowest, highest, num_buckets)
    cell = tl.load(starts, mask=is_summed, other=0)  # number of knots up to the key
    end = tl.load(starts + 1, mask=is_summed, other=0)
    most = tl.max(end - cell, 0)
    while most > 0:
        middle = (cell + end) // 2
        knot = tl.load(floats + 1 + middle, mask=cell < end, other=float("inf"))
        is_right = (knot <= x) & (cell < end)
        cell = tl.where(is_right, middle + 1, cell)
        end = tl.where(is_right, end, middle)
        most = most // 2
    tl.store(cells + i, tl.where(target == 1, -1, cell), mask=is_entry)

    left = tl.load(floats + cell, mask=is_summed, other=0.0)
    scale = float_of(scale_bits)
    distance = tl.where(is_summed, tl.minimum((x - left) * scale, 2.0), 0.0) * 2097152.0
    coarse = distance.to(tl.int64)
    fine = ((distance - coarse.to(tl.float64)) * 2199023255552.0).to(tl.int64)
    coarse += tl.where(is_summed, 8796093022208, 0)

    # Often most keys lie in one cell, where atomic additions would queue. So the keys in the cell
    # of the first one are summed here.
    lane = tl.arange(0, BLOCK)
    first = tl.min(tl.where(is_summed, lane, BLOCK), 0)
    common = tl.sum(tl.where(lane == first, cell, 0), 0)
    is_common = is_summed & (cell == common)
    is_other = is_summed & (cell != common)
    turn = sums + (tl.program_id(0) % num_turns).to(tl.int64) * 2 * num_cells
    common_coarse = tl.sum(tl.where(is_common, coarse, 0), 0)
    common_fine = tl.sum(tl.where(is_common, fine, 0), 0)
    tl.atomic_add(turn + common, common_coarse, mask=common_coarse > 0, sem="relaxed")
    common += num_cells
    tl.atomic_add(turn + common, common_fine, mask=common_fine > 0, sem="relaxed")
    tl.atomic_add(turn + cell, coarse, mask=is_other, sem="relaxed")
    tl.atomic_add(turn + num_cells + cell, fine, mask=is_other & (fine > 0), sem="relaxed")


@kernel
def collect(sums, cell_sums, num_cells, num_turns, scale_bits: tl.int64, BLOCK: tl.constexpr):
    """Write the (2, C) sums of :class:`LocatedKeys` from those of :func:`locate`."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < num_cells
    count = tl.zeros([BLOCK], tl.int64)
    coarse = tl.zeros([BLOCK], tl.int64)
    fine = tl.zeros([BLOCK], tl.int64)  # in units of 2^-41
    rest = tl.zeros([BLOCK], tl.int64)
    part = sums + cell
    turn = 0
    while turn < num_turns:
        packed = tl.load(part, mask=mask, other=0)
        count += packed >> 43
        coarse += packed & 8796093022207
        packed = tl.load(part + num_cells, mask=mask, other=0)
        fine += packed >> 21
        rest += packed & 2097151
        part += 2 * num_cells
        turn += 1
    unit = 1.0 / (float_of(scale_bits) * 2097152.0)
    total = (fine.to(tl.float64) + rest.to(tl.float64) / 2097152.0) / 1048576.0
    total += coarse.to(tl.float64)
    tl.store(cell_sums + cell, count.to(tl.float64), mask=mask)
    tl.store(cell_sums + num_cells + cell, total * unit, mask=mask)


@triton.jit
def _write_row_sums(
    points,
    is_covered,
    gains,
    moments,
    owners,
    is_weighted,
    places,
    areas,
    sums,
    num_points,
    num_queries,
    delta,
    OWNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sum of each row: the mean of the weight above, over its linear part.

    The integral from each point on of the weight above comes first, from the last point down; see
    :meth:`StepMatrix.matvec`. The weight above grows at each point: by its ``gains``, or if
    ``OWNED`` by that of the query that is there, which is 1 unless ``is_weighted``. ``moments`` are
    of the weight between a point and the next, and left out if ``OWNED``.
    """
    above = _zero(BLOCK)
    area = _zero(BLOCK)
    start = 0
    while start < num_points:
        i = num_points - 1 - start - tl.arange(0, BLOCK)
        mask = i >= 0
        has_next = mask & (i + 1 < num_points)
        if OWNED:
            owner = tl.load(owners + i + 1, mask=has_next, other=-1)
            gain = tl.load(gains + owner, mask=(owner >= 0) & is_weighted, other=1.0)
            gain = tl.where(owner >= 0, gain, 0.0)
        else:
            gain = tl.load(gains + i + 1, mask=has_next, other=0.0)
        covered = mask & (tl.load(is_covered + i, mask=mask, other=0) > 0)
        covered_next = covered & has_next
        width = tl.load(points + i + 1, mask=covered_next, other=0.0)
        width -= tl.load(points + i, mask=covered_next, other=0.0)
        here = width * (above + tl.cumsum(gain, 0))
        if not OWNED:
            here += tl.load(moments + i, mask=covered, other=0.0)
        tl.store(areas + i, area + tl.cumsum(here, 0), mask=mask)
        above += tl.sum(gain, 0)
        area += tl.sum(here, 0)
        start += BLOCK
    tl.debug_barrier()  # what other threads have written is read next
    start = 0
    while start < num_queries:
        i = start + tl.arange(0, BLOCK)
        mask = i < num_queries
        lower = tl.load(places + i, mask=mask, other=0)
        upper = tl.load(places + num_queries + i, mask=mask, other=0)
        between = tl.load(areas + lower, mask=mask, other=0.0)
        between -= tl.load(areas + upper, mask=mask, other=0.0)
        # The areas are sums by blocks, which rounding could leave the wrong way round.
        tl.store(sums + i, tl.maximum(between, 0.0) / (2.0 * delta), mask=mask)
        start += BLOCK


@kernel
def sum_rows(
    floats,
    integers,
    flags,
    cell_sums,
    weights,
    areas,
    sums,
    num_queries,
    num_skipped,
    delta_bits: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write sums of rows: over the keys, over the queries, and over the queries by ``weights``.

    Each is written by a sequential program of its own. The first ``num_skipped`` are left out.
    """
    delta = float_of(delta_bits)
    num_cells, num_points = 2 * num_queries + 1, 3 * num_queries
    places = integers + num_cells + num_points
    areas += tl.program_id(0) * num_points
    sums += tl.program_id(0) * num_queries
    kind = tl.program_id(0) + num_skipped
    if kind == 0:
        _write_row_sums(
            floats + 1,
            flags + 1,
            cell_sums + 1,
            cell_sums + num_cells + 1,
            integers,
            False,
            places,
            areas,
            sums,
            num_cells - 1,
            num_queries,
            delta,
            OWNED=False,
            BLOCK=BLOCK,
        )
    else:
        _write_row_sums(
            floats + num_cells,
            flags + num_cells,
            weights,
            weights,
            integers + num_cells,
            kind == 2,
            places + 2 * num_queries,
            areas,
            sums,
            num_points,
            num_queries,
            delta,
            OWNED=True,
            BLOCK=BLOCK,
        )


@triton.jit
def _rank(among, false_positive, i, mask):
    """See :func:`smoothed_rank`."""
    return tl.maximum(tl.load(among + i, mask=mask, other=0.0) + 0.5 + false_positive, 1.0)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@kernel
def ap_values(false_positives, among, value, errors, num_queries, BLOCK: tl.constexpr):
    """Write the parts of :class:`APValues`. Sequential."""
    total = _zero(BLOCK)
    best = _zero(BLOCK)
    start = 0
    while start < num_queries:
        i = start + tl.arange(0, BLOCK)
        mask = i < num_queries
        false_positive = tl.load(false_positives + i, mask=mask, other=0.0)
        precision = 1.0 - false_positive / _rank(among, false_positive, i, mask)
        precision = tl.where(mask, precision, 0.0)
        interpolated = tl.maximum(tl.associative_scan(precision, 0, _larger), best)
        tl.store(errors + i, tl.maximum(1.0 - interpolated, 0.0), mask=mask)
        total += tl.sum(tl.where(mask, 1.0 - interpolated, 0.0), 0)
        best = tl.maximum(best, tl.max(precision, 0))
        start += BLOCK
    tl.store(value, total / num_queries)


@kernel
def alrp_values(
    false_positives,
    among,
    errors,
    errors_above,
    order,
    cls_value,
    loc_value,
    ranking_errors,
    own_ranks,
    loc_weights,
    num_queries,
    eps_bits: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write the parts of :class:`ALRPValues`. Sequential."""
    eps = float_of(eps_bits)
    cls = _zero(BLOCK)
    loc = _zero(BLOCK)
    weight_so_far = _zero(BLOCK)
    start = 0
    while start < num_queries:
        i = start + tl.arange(0, BLOCK)
        mask = i < num_queries
        false_positive = tl.load(false_positives + i, mask=mask, other=0.0)
        rank = _rank(among, false_positive, i, mask)
        error = tl.load(errors + i, mask=mask, other=0.0)
        total = false_positive + tl.load(errors_above + i, mask=mask, other=0.0) - 0.5 * error
        ranking_error = tl.where(false_positive > eps, total / rank, 0.0)
        tl.store(ranking_errors + i, ranking_error, mask=mask)
        inverse = tl.where(mask, 1.0 / rank, 0.0)
        weight = (weight_so_far + tl.cumsum(inverse, 0)) / num_queries
        place = tl.load(order + i, mask=mask, other=0)
        tl.store(own_ranks + place, rank, mask=mask)
        tl.store(loc_weights + place, weight, mask=mask)
        cls += tl.sum(false_positive / rank, 0)
        loc += tl.sum(weight * error, 0)
        weight_so_far += tl.sum(inverse, 0)
        start += BLOCK
    tl.store(cls_value, cls / num_queries)
    tl.store(loc_value, loc)


@kernel
def rs_values(
    false_positives,
    ranks,
    sorting_errors,
    ranking_value,
    sorting_value,
    ranking_errors,
    num_queries,
    BLOCK: tl.constexpr,
):
    """Write the parts of :class:`RSValues`; ranks are those among the positives. Sequential."""
    ranking = _zero(BLOCK)
    sorting = _zero(BLOCK)
    start = 0
    while start < num_queries:
        i = start + tl.arange(0, BLOCK)
        mask = i < num_queries
        false_positive = tl.load(false_positives + i, mask=mask, other=0.0)
        rank = tl.load(ranks + i, mask=mask, other=1.0) + false_positive
        error = false_positive / rank
        tl.store(ranking_errors + i, error, mask=mask)
        ranking += tl.sum(error, 0)
        sorting += tl.sum(tl.load(sorting_errors + i, mask=mask, other=0.0), 0)
        start += BLOCK
    tl.store(ranking_value, ranking / num_queries)
    tl.store(sorting_value, sorting / num_queries)


@triton.jit
def _scale_of(gradient, num_processes, num_queries):
    """What an error is multiplied by, of the gradient that is passed down to a mean over P."""
    scale = tl.load(gradient).to(tl.float64) * num_processes.to(tl.float64)
    return scale / num_queries.to(tl.float64)


@kernel
def column_profile(
    weights,
    false_positives,
    gradient,
    among,
    among_gradient,
    order,
    positives,
    results,
    floats,
    integers,
    flags,
    profile,
    num_queries,
    num_before,
    num_own,
    num_processes,
    delta_bits: tl.int64,
    UPDATE: tl.constexpr,
    AMONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write (2, C) sums over the queries at the left edge of each cell, and their slopes there.

    Sequential, from cell 1 up. For an :class:`Update` the weights are errors, and each false
    positive of a query gets an equal share of its error. This process's positives, which come after
    ``num_before`` others, are pushed up by theirs.
    """
    num_cells = 2 * num_queries + 1
    two_delta = 2.0 * float_of(delta_bits)
    rise = _zero(BLOCK)
    value = _zero(BLOCK)
    if UPDATE:
        scale = _scale_of(gradient, num_processes, num_queries)
    start = 1
    while start < num_cells:
        cell = start + tl.arange(0, BLOCK)
        mask = cell < num_cells
        owner = tl.load(integers + cell, mask=mask, other=0)
        is_upper = owner < 0
        owner = tl.where(is_upper, -1 - owner, owner)
        change = tl.load(weights + owner, mask=mask, other=0.0)
        if UPDATE:
            divisor = tl.load(false_positives + owner, mask=mask, other=1.0)
            is_shared = divisor > 0
            change = tl.where(is_shared, change * scale / tl.where(is_shared, divisor, 1.0), 0.0)
        change = tl.where(is_upper, -change, change)
        covered = mask & (tl.load(flags + cell, mask=mask, other=0) > 0)
        has_next = covered & (cell + 1 < num_cells)
        width = tl.load(floats + cell + 1, mask=has_next, other=0.0)
        width -= tl.load(floats + cell, mask=has_next, other=0.0)
        slope = tl.where(covered, (rise + tl.cumsum(change, 0)) / two_delta, 0.0)
        growth = slope * width
        tl.store(profile + cell, value + tl.cumsum(growth, 0) - growth, mask=mask)
        tl.store(profile + num_cells + cell, slope, mask=mask)
        rise += tl.sum(change, 0)
        value += tl.sum(growth, 0)
        start += BLOCK
    if UPDATE:
        start = 0
        while start < num_queries:
            i = start + tl.arange(0, BLOCK)
            mask = i < num_queries
            error = tl.load(weights + i, mask=mask, other=0.0) * scale
            if AMONG:
                update = tl.load(among + i, mask=mask, other=0.0)
                error -= update * _scale_of(among_gradient, num_processes, num_queries)
            place = tl.load(order + i, mask=mask, other=0) - num_before
            is_own = mask & (place >= 0) & (place < num_own)
            index = tl.load(positives + place, mask=is_own, other=0)
            tl.store(results + index, -error, mask=is_own)
            start += BLOCK


@kernel
def evaluate(
    logits,
    cells,
    floats,
    profile,
    results,
    num_entries: tl.int64,
    num_cells,
    KEPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the linear function of each key's cell at the key, and exactly 0 for other entries.

    But those of cell -1 keep what is there, if ``KEPT``.
    """
    i = _entries(BLOCK)
    is_entry = i < num_entries
    cell = tl.load(cells + i, mask=is_entry, other=0).to(tl.int32)
    mask = cell > 0
    x = tl.load(logits + i, mask=mask, other=0.0).to(tl.float64)
    offset = x - tl.load(floats + cell, mask=mask, other=0.0)
    result = tl.load(profile + num_cells + cell, mask=mask, other=0.0) * offset
    result += tl.load(profile + cell, mask=mask, other=0.0)
    is_written = is_entry & (cell >= 0) if KEPT else is_entry
    tl.store(results + i, result, mask=is_written)
