"""The kernels of the backend for GPUs, in Triton.

Shape shorthand as in :mod:`alrp.losses.backends.interface`. Kernels over many entries have one
program for each ``BLOCK`` of them, and pass once over them. Sums from program to program are sums
of integers, which do not depend on the order. A program that is said to be sequential goes through
its operands in blocks, whose order never changes. So all results have the same bits every time.

Triton hands over Python's floats in float32. What needs all digits comes as the 64 bits of a float.
"""

import inspect
import triton
import triton.language as tl

from .launching import CAN_LAUNCH_COMPILED

CLEARED = tl.constexpr(8)  # blocks that one program clears
# How locate() packs what _collect() unpacks. The units divide 1 / scale. The coarse one divides
# most distances between numbers in float32, so that little is left for the fine one.
COARSE = tl.constexpr(1 << 24)  # units in 1 / scale
FINE = tl.constexpr(1 << 38)  # fine units in a coarse one
KEY_BITS = tl.constexpr(44)  # a key counts above any sum of 2^19 - 1 distances of 2 * COARSE units
ONE_KEY = tl.constexpr(1 << KEY_BITS.value)
LOW_BITS = tl.constexpr(21)  # a sum of fine units is split into its low bits and the rest
LOW = tl.constexpr(1 << LOW_BITS.value)


def kernel(function):
    """A kernel that is compiled once for all sizes and addresses.

    By default Triton compiles another version for numbers and addresses that are multiples of 16.
    For such addresses it gives each thread several neighbouring entries. It cannot load them
    together, as their number may be odd; so neighbouring threads would read addresses that are
    apart, which is slow. Names say what is what: numbers are ``num_*`` and ``*_bits``, of 64 bits
    where these can be needed, constants in capitals, and all others arrays (``most`` is a float).
    """
    names = set(inspect.signature(function).parameters)
    numbers = {name for name in names if name.startswith("num_") or name.endswith("_bits")}
    options = {"do_not_specialize": list(numbers)}
    if CAN_LAUNCH_COMPILED:
        arrays = {name for name in names - numbers if name.islower()}
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
def _zero():
    """A float64 to begin a sum with; a literal would be a float32."""
    return tl.full([], 0.0, tl.float64)


@kernel
def survey(
    logits,
    targets,
    values,
    most,
    facts,
    positives,
    pos_logits,
    num_entries: tl.int64,
    num_values,
    num_slots,
    BLOCK: tl.constexpr,
):
    """Add to int64 ``facts``; write indices and logits of up to ``num_slots`` positives.

    The facts are the numbers of positives, bad logits, bad values and values outside, and as bits,
    which sort like floats above 0, the largest absolute logit of a positive. The positives of a
    program come together, but programs in any order.
    """
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0)
    target = tl.load(targets + i, mask=is_entry, other=2)
    is_positive = is_entry & (target == 1)
    is_finite = tl.abs(x) < float("inf")
    is_bad = is_entry & ((target == 0) | (target == 1)) & (is_finite == 0)

    is_value = i < num_values
    value = tl.load(values + i, mask=is_value, other=0.0).to(tl.float64)
    is_bad_value = is_value & ((tl.abs(value) < float("inf")) == 0)
    is_outside = is_value & ((value < -0.01) | (value > most + 0.01))

    # Most programs have nothing to tell. Three numbers below 2^10 are added up as one.
    tl.static_assert(BLOCK < 1024)
    found = is_bad.to(tl.int32) + (is_bad_value.to(tl.int32) << 10)
    found = tl.sum(found + (is_outside.to(tl.int32) << 20), 0)
    if found > 0:
        tl.atomic_add(facts + 1, (found & 1023).to(tl.int64), sem="relaxed")
        tl.atomic_add(facts + 2, ((found >> 10) & 1023).to(tl.int64), sem="relaxed")
        tl.atomic_add(facts + 3, (found >> 20).to(tl.int64), sem="relaxed")
    num_positives = tl.sum(is_positive.to(tl.int32), 0)
    if num_positives > 0:
        largest = tl.max(tl.where(is_positive & is_finite, tl.abs(x), 0.0).to(tl.float64), 0)
        tl.atomic_max(facts + 4, largest.to(tl.int64, bitcast=True), sem="relaxed")
        first = tl.atomic_add(facts, num_positives.to(tl.int64), sem="relaxed")
        slot = first + tl.cumsum(is_positive.to(tl.int32), 0) - 1
        has_slot = is_positive & (slot < num_slots)
        tl.store(positives + slot, i, mask=has_slot)
        tl.store(pos_logits + slot, x, mask=has_slot)


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
    """Which of equal parts of [lowest, highest] x lies in; never falls as x grows."""
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


@triton.jit
def _flags(table, num_queries):
    """The int8 part of the table of a :class:`FusedMatrix`."""
    return (table + 6 * num_queries + 1).to(tl.pointer_type(tl.int8))


@triton.jit
def _integers(table, num_queries):
    """The int32 part, which begins at the next multiple of 8 bytes."""
    start = 6 * num_queries + 1 + (5 * num_queries + 8) // 8
    return (table + start).to(tl.pointer_type(tl.int32))


# What is called ``sums`` consists of float64 scratch numbers, namely (2, C) sums of cells, (8P,)
# areas and (2, P) sums among the queries; of an int64 counter; and of (copies, 2, C) packed sums.


@triton.jit
def _scratch(sums):
    """Pointer to the scratch numbers."""
    return sums.to(tl.pointer_type(tl.float64))


@triton.jit
def _num_done(sums, num_queries):
    """Pointer to the number of programs that have come to their end."""
    return sums + 14 * num_queries + 2


@triton.jit
def _copies(sums, num_queries):
    """Pointer to the packed sums."""
    return _num_done(sums, num_queries) + 1


@kernel
def merge(
    queries,
    table,
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
    """Write the table of a :class:`FusedMatrix`, which lists its parts; clear its sums.

    The first ``num_merging`` programs sort knots, and points: these are the knots and the queries;
    of each three programs one has the lower knots of a block, one the upper ones, one the queries.
    Of equal ones, lower knots come before upper ones and both before queries. A cell, or the space
    behind a point, is covered if more lower than upper knots have come: some query's linear part
    reaches over it. Then ``num_counting`` programs count the knots before each bucket. The others
    clear ``CLEARED`` blocks each.
    """
    delta = float_of(delta_bits)
    program = tl.program_id(0)
    num_cells = 2 * num_queries + 1
    flags, integers = _flags(table, num_queries), _integers(table, num_queries)
    if program < num_merging:
        points = table + num_cells
        point_owners = integers + num_cells
        places = point_owners + 3 * num_queries
        is_point_covered = flags + num_cells
        i = (program // 3 * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
        mask = i < num_queries
        query = tl.load(queries + i, mask=mask, other=0.0).to(tl.float64)
        if program % 3 == 0:
            low = query - delta
            place = i + _num_below(queries, delta, low, num_queries, NUM_STEPS, False, BLOCK)
            tl.store(places + i, place, mask=mask)
            tl.store(table + 1 + place, low, mask=mask)
            tl.store(integers + 1 + place, i, mask=mask)
            tl.store(flags + 1 + place, 1, mask=mask)
            place += _num_below(queries, 0.0, low, num_queries, NUM_STEPS, False, BLOCK)
            tl.store(places + 2 * num_queries + i, place, mask=mask)
            tl.store(points + place, low, mask=mask)
            tl.store(point_owners + place, -1, mask=mask)
            tl.store(is_point_covered + place, 1, mask=mask)
        elif program % 3 == 1:
            high = query + delta
            num_lower = _num_below(queries, -delta, high, num_queries, NUM_STEPS, True, BLOCK)
            place = i + num_lower
            is_inside = (num_lower > i + 1).to(tl.int8)
            tl.store(places + num_queries + i, place, mask=mask)
            tl.store(table + 1 + place, high, mask=mask)
            tl.store(integers + 1 + place, -1 - i, mask=mask)
            tl.store(flags + 1 + place, is_inside, mask=mask)
            place += _num_below(queries, 0.0, high, num_queries, NUM_STEPS, False, BLOCK)
            tl.store(places + 3 * num_queries + i, place, mask=mask)
            tl.store(points + place, high, mask=mask)
            tl.store(point_owners + place, -1, mask=mask)
            tl.store(is_point_covered + place, is_inside, mask=mask)
        else:
            tl.store(points + 3 * num_queries + i, query, mask=mask)
            place = i + _num_below(queries, -delta, query, num_queries, NUM_STEPS, True, BLOCK)
            place += _num_below(queries, delta, query, num_queries, NUM_STEPS, True, BLOCK)
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
            place = _num_done(sums, num_queries) + i
            tl.store(place, tl.zeros([BLOCK], tl.int64), mask=i < num_sums)


@kernel
def locate(
    logits,
    targets,
    table,
    cells,
    sums,
    num_entries: tl.int64,
    num_queries,
    num_buckets,
    num_copies,
    scale_bits: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write the cell of each key, -1 for positives, else 0; add to the sums of the cells.

    Only the knots in the bucket of a key are compared with it. Programs take turns among the
    copies of the packed sums. Distances to the left edge of the cell are counted in coarse units
    and, what is left, in fine ones, and cut off below. No covered cell is wider than ``1 / scale``,
    and of others the distances do not matter. The first sum is of ``ONE_KEY`` and the coarse units,
    so it counts the keys, too: fewer than 2^19 go to one copy. Those in cell 0 are left out.
    """
    num_cells = 2 * num_queries + 1
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0).to(tl.float64)
    target = tl.load(targets + i, mask=is_entry, other=2)
    is_key = is_entry & (target == 0)
    lowest, highest = tl.load(table + 1), tl.load(table + num_cells - 1)
    is_summed = is_key & (x >= lowest)
    x = tl.where(is_summed, x, lowest)
    starts = _integers(table, num_queries) + num_cells + 7 * num_queries
    starts += _bucket(x, lowest, highest, num_buckets)
    cell = tl.load(starts, mask=is_summed, other=0)  # number of knots up to the key
    end = tl.load(starts + 1, mask=is_summed, other=0)
    most = tl.max(end - cell, 0)
    while most > 0:
        middle = (cell + end) // 2
        knot = tl.load(table + 1 + middle, mask=cell < end, other=float("inf"))
        is_right = (knot <= x) & (cell < end)
        cell = tl.where(is_right, middle + 1, cell)
        end = tl.where(is_right, end, middle)
        most = most // 2
    tl.store(cells + i, tl.where(target == 1, -1, cell), mask=is_entry)

    left = tl.load(table + cell, mask=is_summed, other=0.0)
    scale = float_of(scale_bits)
    distance = tl.where(is_summed, tl.minimum((x - left) * scale, 2.0), 0.0) * COARSE
    coarse = distance.to(tl.int64)
    fine = ((distance - coarse.to(tl.float64)) * FINE).to(tl.int64)
    coarse += tl.where(is_summed, ONE_KEY, 0)

    # Often most keys lie in one cell, where atomic additions would queue. So the keys in the cell
    # of the first one are summed here.
    lane = tl.arange(0, BLOCK)
    first = tl.min(tl.where(is_summed, lane, BLOCK), 0)
    common = tl.sum(tl.where(lane == first, cell, 0), 0)
    is_common = is_summed & (cell == common)
    is_other = is_summed & (cell != common)
    copy = _copies(sums, num_queries)
    copy += (tl.program_id(0) % num_copies).to(tl.int64) * 2 * num_cells
    common_coarse = tl.sum(tl.where(is_common, coarse, 0), 0)
    common_fine = tl.sum(tl.where(is_common, fine, 0), 0)
    tl.atomic_add(copy + common, common_coarse, mask=common_coarse > 0, sem="relaxed")
    common += num_cells
    tl.atomic_add(copy + common, common_fine, mask=common_fine > 0, sem="relaxed")
    tl.atomic_add(copy + cell, coarse, mask=is_other, sem="relaxed")
    tl.atomic_add(copy + num_cells + cell, fine, mask=is_other & (fine > 0), sem="relaxed")


@triton.jit
def _collect(copies, cell_sums, num_cells, num_copies, scale, BLOCK: tl.constexpr):
    """Write the (2, C) numbers of keys in each cell, and the sums of their distances."""
    start = 0
    while start < num_cells:
        cell = start + tl.arange(0, BLOCK)
        mask = cell < num_cells
        number = tl.zeros([BLOCK], tl.int64)
        coarse = tl.zeros([BLOCK], tl.int64)
        fine = tl.zeros([BLOCK], tl.int64)  # of LOW fine units
        low = tl.zeros([BLOCK], tl.int64)
        part = copies + cell
        done = 0
        while done < num_copies:
            packed = tl.load(part, mask=mask, other=0)
            rest = tl.load(part + num_cells, mask=mask, other=0)
            number += packed >> KEY_BITS
            coarse += packed & (ONE_KEY - 1)
            fine += rest >> LOW_BITS
            low += rest & (LOW - 1)
            part += 2 * num_cells
            done += 1
        # Products with powers of two: Triton leaves divisions as they are.
        distance = (fine.to(tl.float64) + low.to(tl.float64) * (1.0 / LOW)) * (1.0 * LOW / FINE)
        distance = (distance + coarse.to(tl.float64)) * (1.0 / COARSE)
        tl.store(cell_sums + cell, number.to(tl.float64), mask=mask)
        tl.store(cell_sums + num_cells + cell, distance * (1.0 / scale), mask=mask)
        start += BLOCK


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

    First, from the last point down: for each point, the integral of the weight above it, from the
    point to the end; see :meth:`StepMatrix.matvec`. The weight above grows at each point: by its
    ``gains``, or if ``OWNED`` by that of the query that is there, which is 1 unless
    ``is_weighted``. ``moments`` are of the weight between a point and the next, and left out if
    ``OWNED``.
    """
    above = _zero()
    area = _zero()
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
        tl.store(sums + i, tl.maximum(between, 0.0) * (0.5 / delta), mask=mask)
        start += BLOCK
    tl.debug_barrier()


@triton.jit
def _write_false_positives(
    table, sums, false_positives, num_queries, num_copies, delta, scale, BLOCK: tl.constexpr
):
    """Write the sums of the rows over the keys."""
    num_cells = 2 * num_queries + 1
    cell_sums = _scratch(sums)
    _collect(_copies(sums, num_queries), cell_sums, num_cells, num_copies, scale, BLOCK)
    tl.debug_barrier()
    integers = _integers(table, num_queries)
    _write_row_sums(
        table + 1,
        _flags(table, num_queries) + 1,
        cell_sums + 1,
        cell_sums + num_cells + 1,
        integers,
        False,
        integers + num_cells + 3 * num_queries,
        cell_sums + 2 * num_cells,
        false_positives,
        num_cells - 1,
        num_queries,
        delta,
        OWNED=False,
        BLOCK=BLOCK,
    )


@triton.jit
def _write_sums_among_queries(
    table, weights, is_weighted, areas, row_sums, num_queries, delta, BLOCK: tl.constexpr
):
    """Write the sums of the rows over the queries, with ``weights`` if ``is_weighted``."""
    num_cells = 2 * num_queries + 1
    owners = _integers(table, num_queries) + num_cells
    _write_row_sums(
        table + num_cells,
        _flags(table, num_queries) + num_cells,
        weights,
        weights,
        owners,
        is_weighted,
        owners + 5 * num_queries,
        areas,
        row_sums,
        3 * num_queries,
        num_queries,
        delta,
        OWNED=True,
        BLOCK=BLOCK,
    )


@triton.jit
def _write_profile(table, pushes, num_queries, delta, BLOCK: tl.constexpr):
    """Write (2, C) sums over the queries at the left edge of each cell, and their slopes there.

    Each false positive of a query gets an equal share of its error. From cell 1 up.
    """
    tl.debug_barrier()  # other threads have written the errors
    num_cells = 2 * num_queries + 1
    integers, flags = _integers(table, num_queries), _flags(table, num_queries)
    errors = pushes + 2 * num_cells
    rise = _zero()
    value = _zero()
    start = 1
    while start < num_cells:
        cell = start + tl.arange(0, BLOCK)
        mask = cell < num_cells
        owner = tl.load(integers + cell, mask=mask, other=0)
        is_upper = owner < 0
        owner = tl.where(is_upper, -1 - owner, owner)
        change = tl.load(errors + owner, mask=mask, other=0.0)
        divisor = tl.load(errors + num_queries + owner, mask=mask, other=1.0)
        is_shared = divisor > 0
        change = tl.where(is_shared, change / tl.where(is_shared, divisor, 1.0), 0.0)
        change = tl.where(is_upper, -change, change)
        covered = mask & (tl.load(flags + cell, mask=mask, other=0) > 0)
        has_next = covered & (cell + 1 < num_cells)
        width = tl.load(table + cell + 1, mask=has_next, other=0.0)
        width -= tl.load(table + cell, mask=has_next, other=0.0)
        slope = tl.where(covered, (rise + tl.cumsum(change, 0)) * (0.5 / delta), 0.0)
        growth = slope * width
        tl.store(pushes + cell, value + tl.cumsum(growth, 0) - growth, mask=mask)
        tl.store(pushes + num_cells + cell, slope, mask=mask)
        rise += tl.sum(change, 0)
        value += tl.sum(growth, 0)
        start += BLOCK


@kernel
def count(
    table,
    sums,
    false_positives,
    num_queries,
    num_copies,
    delta_bits: tl.int64,
    scale_bits: tl.int64,
    BLOCK: tl.constexpr,
):
    """Write the sums of the rows over the keys, by one sequential program."""
    delta, scale = float_of(delta_bits), float_of(scale_bits)
    _write_false_positives(
        table, sums, false_positives, num_queries, num_copies, delta, scale, BLOCK
    )


@triton.jit
def _rank(among, false_positive, i, mask):
    """See :func:`smoothed_rank`."""
    return tl.maximum(tl.load(among + i, mask=mask, other=0.0) + 0.5 + false_positive, 1.0)


@triton.jit
def _larger(a, b):
    """Of a running maximum."""
    return tl.maximum(a, b)


@triton.jit
def _is_last(sums, num_queries, NUM_PROGRAMS: tl.constexpr):
    """Whether all other programs have come to this point, and so have written what they write."""
    tl.debug_barrier()
    num_done = _num_done(sums, num_queries)
    is_last = tl.atomic_add(num_done, 1) == NUM_PROGRAMS - 1  # acquires and releases, too
    if is_last:
        tl.store(num_done, 0)
    return is_last


# The values of the losses. Their ``pushes`` are the (2, C) profile, (P,) errors and (P,) false
# positives; the last are there already unless COUNT. A sequential program writes each sum of rows;
# the one that ends last goes on to the values.


@kernel
def ap_values(
    table,
    sums,
    pushes,
    value,
    num_queries,
    num_copies,
    delta_bits: tl.int64,
    scale_bits: tl.int64,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the parts of :class:`APValues`."""
    delta, scale = float_of(delta_bits), float_of(scale_bits)
    num_cells = 2 * num_queries + 1
    errors = pushes + 2 * num_cells
    false_positives = errors + num_queries
    areas = _scratch(sums) + 2 * num_cells
    among = areas + 8 * num_queries
    if tl.program_id(0) == 0:
        if COUNT:
            _write_false_positives(
                table, sums, false_positives, num_queries, num_copies, delta, scale, BLOCK
            )
    else:
        areas += 2 * num_queries
        _write_sums_among_queries(table, among, False, areas, among, num_queries, delta, BLOCK)
    if _is_last(sums, num_queries, 2):
        total = _zero()
        best = _zero()
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
        _write_profile(table, pushes, num_queries, delta, BLOCK)


@kernel
def alrp_values(
    table,
    sums,
    pushes,
    loc_errors,
    order,
    cls_value,
    loc_value,
    own_ranks,
    loc_weights,
    num_queries,
    num_copies,
    delta_bits: tl.int64,
    scale_bits: tl.int64,
    eps_bits: tl.int64,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the parts of :class:`ALRPValues`."""
    delta, scale, eps = float_of(delta_bits), float_of(scale_bits), float_of(eps_bits)
    num_cells = 2 * num_queries + 1
    errors = pushes + 2 * num_cells
    false_positives = errors + num_queries
    areas = _scratch(sums) + 2 * num_cells
    among = areas + 8 * num_queries
    errors_above = among + num_queries
    if tl.program_id(0) == 0:
        if COUNT:
            _write_false_positives(
                table, sums, false_positives, num_queries, num_copies, delta, scale, BLOCK
            )
    else:
        number = tl.program_id(0) - 1
        areas += (2 + 3 * number) * num_queries
        row_sums = among + number * num_queries
        _write_sums_among_queries(
            table, loc_errors, number == 1, areas, row_sums, num_queries, delta, BLOCK
        )
    if _is_last(sums, num_queries, 3):
        cls = _zero()
        loc = _zero()
        weight_so_far = _zero()
        start = 0
        while start < num_queries:
            i = start + tl.arange(0, BLOCK)
            mask = i < num_queries
            false_positive = tl.load(false_positives + i, mask=mask, other=0.0)
            rank = _rank(among, false_positive, i, mask)
            loc_error = tl.load(loc_errors + i, mask=mask, other=0.0)
            total = (
                false_positive + tl.load(errors_above + i, mask=mask, other=0.0) - 0.5 * loc_error
            )
            tl.store(errors + i, tl.where(false_positive > eps, total / rank, 0.0), mask=mask)
            inverse = tl.where(mask, 1.0 / rank, 0.0)
            weight = (weight_so_far + tl.cumsum(inverse, 0)) / num_queries
            place = tl.load(order + i, mask=mask, other=0)
            tl.store(own_ranks + place, rank, mask=mask)
            tl.store(loc_weights + place, weight, mask=mask)
            cls += tl.sum(false_positive / rank, 0)
            loc += tl.sum(weight * loc_error, 0)
            weight_so_far += tl.sum(inverse, 0)
            start += BLOCK
        tl.store(cls_value, cls / num_queries)
        tl.store(loc_value, loc)
        _write_profile(table, pushes, num_queries, delta, BLOCK)


@kernel
def rs_values(
    table,
    sums,
    pushes,
    ranks,
    sorting_errors,
    ranking_value,
    sorting_value,
    num_queries,
    num_copies,
    delta_bits: tl.int64,
    scale_bits: tl.int64,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the parts of :class:`RSValues`; ranks are those among the positives."""
    delta, scale = float_of(delta_bits), float_of(scale_bits)
    errors = pushes + 2 * (2 * num_queries + 1)
    false_positives = errors + num_queries
    if COUNT:
        _write_false_positives(
            table, sums, false_positives, num_queries, num_copies, delta, scale, BLOCK
        )
    ranking = _zero()
    sorting = _zero()
    start = 0
    while start < num_queries:
        i = start + tl.arange(0, BLOCK)
        mask = i < num_queries
        false_positive = tl.load(false_positives + i, mask=mask, other=0.0)
        rank = tl.load(ranks + i, mask=mask, other=1.0) + false_positive
        error = false_positive / rank
        tl.store(errors + i, error, mask=mask)
        ranking += tl.sum(error, 0)
        sorting += tl.sum(tl.load(sorting_errors + i, mask=mask, other=0.0), 0)
        start += BLOCK
    tl.store(ranking_value, ranking / num_queries)
    tl.store(sorting_value, sorting / num_queries)
    _write_profile(table, pushes, num_queries, delta, BLOCK)


@triton.jit
def _scale_of(gradient, num_processes, num_queries):
    """What an error is multiplied by, of the gradient that is passed down to a mean over P."""
    scale = tl.load(gradient).to(tl.float64) * num_processes.to(tl.float64)
    return scale / num_queries.to(tl.float64)


@kernel
def evaluate(
    logits,
    cells,
    table,
    pushes,
    order,
    positives,
    gradient,
    among,
    among_gradient,
    results,
    num_entries: tl.int64,
    num_queries,
    num_before,
    num_own,
    num_processes,
    AMONG: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of an :class:`Update`.

    The first programs write to each key the linear function of its cell, and exactly 0 to what is
    neither key nor positive. The others push up this process's positives, which come after
    ``num_before`` others, by their errors.
    """
    num_cells = 2 * num_queries + 1
    scale = _scale_of(gradient, num_processes, num_queries)
    num_writing = (num_entries + BLOCK - 1) // BLOCK
    if tl.program_id(0) < num_writing:
        i = _entries(BLOCK)
        is_entry = i < num_entries
        cell = tl.load(cells + i, mask=is_entry, other=0).to(tl.int32)
        mask = cell > 0
        x = tl.load(logits + i, mask=mask, other=0.0).to(tl.float64)
        offset = x - tl.load(table + cell, mask=mask, other=0.0)
        result = tl.load(pushes + num_cells + cell, mask=mask, other=0.0) * offset
        result += tl.load(pushes + cell, mask=mask, other=0.0)
        # 0 also where the scale is not finite.
        result = tl.where(mask, result * scale, 0.0)
        tl.store(results + i, result, mask=is_entry & (cell >= 0))
    else:
        place = ((tl.program_id(0) - num_writing) * BLOCK).to(tl.int32) + tl.arange(0, BLOCK)
        mask = place < num_queries
        error = tl.load(pushes + 2 * num_cells + place, mask=mask, other=0.0) * scale
        if AMONG:
            update = tl.load(among + place, mask=mask, other=0.0)
            error -= update * _scale_of(among_gradient, num_processes, num_queries)
        own = tl.load(order + place, mask=mask, other=0) - num_before
        is_own = mask & (own >= 0) & (own < num_own)
        index = tl.load(positives + own, mask=is_own, other=0)
        tl.store(results + index, -error, mask=is_own)
