"""The kernels of the backend for GPUs, in Triton: each a single pass over its operands.

Shape shorthand as in :mod:`alrp.losses.backends.interface`. Kernels over many entries have one
program for each ``BLOCK`` of them. Sums from program to program are sums of integers, which do not
depend on the order. Kernels that are said to be sequential have one program in all; it goes through
its operands in blocks, whose order never changes. So all results have the same bits every time.

Triton hands over Python's floats in float32. What needs all digits comes as the 64 bits of a float.
"""

import inspect
import triton
import triton.language as tl


def kernel(function):
    """Compiled once for all sizes: Triton would compile again where one is a multiple of 16."""
    names = inspect.signature(function).parameters
    numbers = [name for name in names if name.startswith("num_") or name.endswith("_bits")]
    return triton.jit(function, do_not_specialize=numbers)


@triton.jit
def _entries(BLOCK: tl.constexpr):
    """Indices of the entries of this program; 64 bits, as there may be more than 2^31."""
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def float_of(bits):
    """A float64; the bits of 0 come as an integer of 32 bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _zero(BLOCK: tl.constexpr):
    """A float64 to begin a sum with; a literal would be a float32."""
    return tl.sum(tl.zeros([BLOCK], tl.float64), 0)


@kernel
def survey(
    logits, targets, values, most, facts, counts, num_entries, num_values, BLOCK: tl.constexpr
):
    """Add to (5,) int64 ``facts``, in the order of :class:`Survey`; write positives per program.

    The last fact is the greatest of its kind, by its bits: those of floats above 0 sort like them.
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
    tl.atomic_add(facts, num_positives.to(tl.int64), mask=num_positives > 0, sem="relaxed")
    tl.atomic_add(facts + 1, num_bad.to(tl.int64), mask=num_bad > 0, sem="relaxed")
    tl.atomic_add(facts + 2, num_bad_values.to(tl.int64), mask=num_bad_values > 0, sem="relaxed")
    tl.atomic_add(facts + 3, num_outside.to(tl.int64), mask=num_outside > 0, sem="relaxed")
    tl.atomic_max(
        facts + 4, largest.to(tl.int64, bitcast=True), mask=num_positives > 0, sem="relaxed"
    )


@kernel
def place_positives(targets, counts, ends, positives, num_entries, BLOCK: tl.constexpr):
    """Write the indices of the positives, ascending; ``ends`` are prefix sums of ``counts``."""
    count = tl.load(counts + tl.program_id(0))
    if count > 0:
        i = _entries(BLOCK)
        is_positive = tl.load(targets + i, mask=i < num_entries, other=2) == 1
        place = (
            tl.load(ends + tl.program_id(0)) - count + tl.cumsum(is_positive.to(tl.int32), 0) - 1
        )
        tl.store(positives + place, i, mask=is_positive)


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


@kernel
def merge(
    queries,
    exact_queries,
    lower,
    upper,
    edges,
    owners,
    is_covered,
    points,
    point_owners,
    is_point_covered,
    point_lower,
    point_upper,
    num_queries,
    delta_bits,
    NUM_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sort knots, and points: these are the knots and the queries.

    Of equal ones, lower knots come before upper ones and both before queries. A cell, or the space
    behind a point, is covered if more lower than upper knots have come: some query's linear part
    reaches over it.

    Writes the queries in float64; for each query the places of its knots among the knots (``lower``
    and ``upper``) and among the points; for each cell its left edge, the query that its knot is of
    (-1 - i for the upper knot of query i), and whether it is covered; for each point the same, with
    -1 for knots.
    """
    delta = float_of(delta_bits)
    i = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int32)
    mask = i < num_queries
    query = tl.load(queries + i, mask=mask, other=0.0).to(tl.float64)
    tl.store(exact_queries + i, query, mask=mask)
    low, high = query - delta, query + delta
    upper_below_low = _num_below(queries, delta, low, num_queries, NUM_STEPS, False, BLOCK)
    query_below_low = _num_below(queries, 0.0, low, num_queries, NUM_STEPS, False, BLOCK)
    lower_below_high = _num_below(queries, -delta, high, num_queries, NUM_STEPS, True, BLOCK)
    query_below_high = _num_below(queries, 0.0, high, num_queries, NUM_STEPS, False, BLOCK)
    lower_below_query = _num_below(queries, -delta, query, num_queries, NUM_STEPS, True, BLOCK)
    upper_below_query = _num_below(queries, delta, query, num_queries, NUM_STEPS, True, BLOCK)

    place = i + upper_below_low
    tl.store(lower + i, place, mask=mask)
    tl.store(edges + 1 + place, low, mask=mask)
    tl.store(owners + 1 + place, i, mask=mask)
    tl.store(is_covered + 1 + place, 1, mask=mask)
    place += query_below_low
    tl.store(point_lower + i, place, mask=mask)
    tl.store(points + place, low, mask=mask)
    tl.store(point_owners + place, -1, mask=mask)
    tl.store(is_point_covered + place, 1, mask=mask)

    place = i + lower_below_high
    is_inside = (lower_below_high > i + 1).to(tl.int8)
    tl.store(upper + i, place, mask=mask)
    tl.store(edges + 1 + place, high, mask=mask)
    tl.store(owners + 1 + place, -1 - i, mask=mask)
    tl.store(is_covered + 1 + place, is_inside, mask=mask)
    place += query_below_high
    tl.store(point_upper + i, place, mask=mask)
    tl.store(points + place, high, mask=mask)
    tl.store(point_owners + place, -1, mask=mask)
    tl.store(is_point_covered + place, is_inside, mask=mask)

    place = i + lower_below_query + upper_below_query
    tl.store(points + place, query, mask=mask)
    tl.store(point_owners + place, i, mask=mask)
    tl.store(is_point_covered + place, 1, mask=mask)


@kernel
def locate(
    logits,
    targets,
    edges,
    cells,
    sums,
    num_entries,
    num_cells,
    scale_bits,
    NUM_STEPS: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the cell of each key, 0 for all other entries; add to the sums of the cells.

    Programs take turns among the (turns, 3, C) int64 ``sums``: number of keys, and their distances
    to the left edge of the cell in units of 2^-31 and, what is left, of 2^-62 of ``1 / scale``. No
    width of a cell that matters is more than that. Keys in cell 0 are not summed.
    """
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0).to(tl.float64)
    is_key = is_entry & (tl.load(targets + i, mask=is_entry, other=2) == 0)
    cell = tl.zeros([BLOCK], tl.int32)  # number of knots up to the key
    end = tl.where(is_key, num_cells - 1, 0)
    for _ in range(NUM_STEPS):
        middle = (cell + end) // 2
        knot = tl.load(edges + 1 + middle, mask=middle < num_cells - 1, other=float("inf"))
        is_right = (knot <= x) & (cell < end)
        cell = tl.where(is_right, middle + 1, cell)
        end = tl.where(is_right, end, middle)
    tl.store(cells + i, cell, mask=is_entry)

    is_summed = cell > 0
    left = tl.load(edges + cell, mask=is_summed, other=0.0)
    scale = float_of(scale_bits)
    distance = tl.where(is_summed, tl.minimum((x - left) * scale, 2.0), 0.0) * 2147483648.0
    coarse = distance.to(tl.int64)
    fine = ((distance - coarse.to(tl.float64)) * 2147483648.0).to(tl.int64)
    one = is_summed.to(tl.int64)

    # Often most keys lie in one cell, where atomic additions would queue. So the keys in the cell
    # of the first one are summed here.
    lane = tl.arange(0, BLOCK)
    first = tl.min(tl.where(is_summed, lane, BLOCK), 0)
    common = tl.sum(tl.where(lane == first, cell, 0), 0)
    is_common = is_summed & (cell == common)
    is_other = is_summed & (cell != common)
    count = tl.sum(tl.where(is_common, one, 0), 0)
    turn = sums + (tl.program_id(0) % TURNS).to(tl.int64) * 3 * num_cells
    common_coarse = tl.sum(tl.where(is_common, coarse, 0), 0)
    common_fine = tl.sum(tl.where(is_common, fine, 0), 0)
    common = turn + common
    tl.atomic_add(common, count, mask=count > 0, sem="relaxed")
    tl.atomic_add(common + num_cells, common_coarse, mask=count > 0, sem="relaxed")
    tl.atomic_add(common + 2 * num_cells, common_fine, mask=count > 0, sem="relaxed")
    tl.atomic_add(turn + cell, one, mask=is_other, sem="relaxed")
    tl.atomic_add(turn + num_cells + cell, coarse, mask=is_other, sem="relaxed")
    tl.atomic_add(turn + 2 * num_cells + cell, fine, mask=is_other, sem="relaxed")


@kernel
def collect(sums, mass, moment, num_cells, scale_bits, TURNS: tl.constexpr, BLOCK: tl.constexpr):
    """Write mass and moment of each cell, in float64, from the sums of :func:`locate`."""
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = cell < num_cells
    count = tl.zeros([BLOCK], tl.int64)
    coarse = tl.zeros([BLOCK], tl.int64)
    fine = tl.zeros([BLOCK], tl.int64)
    for turn in range(TURNS):
        part = sums + turn * 3 * num_cells.to(tl.int64) + cell
        count += tl.load(part, mask=mask, other=0)
        coarse += tl.load(part + num_cells, mask=mask, other=0)
        fine += tl.load(part + 2 * num_cells, mask=mask, other=0)
    unit = 1.0 / (float_of(scale_bits) * 2147483648.0)
    total = coarse.to(tl.float64) + fine.to(tl.float64) / 2147483648.0
    tl.store(mass + cell, count.to(tl.float64), mask=mask)
    tl.store(moment + cell, total * unit, mask=mask)


@kernel
def integrate(
    points,
    is_covered,
    gains,
    moments,
    owners,
    areas,
    num_points,
    OWNED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the integral from each point on of the weight above; see :meth:`StepMatrix.matvec`.

    Sequential, from the last point down. The weight above grows at each point: by its ``gains``, or
    if ``OWNED`` by that of the query that is there, which is 1 unless ``WEIGHTED``. ``moments`` are
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
            if WEIGHTED:
                gain = tl.load(gains + owner, mask=owner >= 0, other=0.0)
            else:
                gain = (owner >= 0).to(tl.float64)
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


@kernel
def row_sums(areas, lower, upper, sums, num_queries, delta_bits, BLOCK: tl.constexpr):
    """Write the sum of each row: the mean of the weight above, over its linear part."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_queries
    area = tl.load(areas + tl.load(lower + i, mask=mask, other=0), mask=mask, other=0.0)
    area -= tl.load(areas + tl.load(upper + i, mask=mask, other=0), mask=mask, other=0.0)
    # The areas are sums by blocks, which rounding could leave the wrong way round.
    mean = tl.maximum(area, 0.0) / (2.0 * float_of(delta_bits))
    tl.store(sums + i, mean, mask=mask)


@kernel
def alrp_values(
    false_positives,
    ranks,
    errors,
    errors_above,
    order,
    cls_value,
    loc_value,
    ranking_errors,
    own_ranks,
    loc_weights,
    num_queries,
    eps_bits,
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
        rank = tl.load(ranks + i, mask=mask, other=1.0)
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


@kernel
def column_profile(
    weights,
    owners,
    edges,
    is_covered,
    values,
    slopes,
    num_cells,
    delta_bits,
    BLOCK: tl.constexpr,
):
    """Write the sum over the queries at the left edge of each cell, and its slope there.

    Sequential, from cell 1 up.
    """
    two_delta = 2.0 * float_of(delta_bits)
    rise = _zero(BLOCK)
    value = _zero(BLOCK)
    start = 1
    while start < num_cells:
        cell = start + tl.arange(0, BLOCK)
        mask = cell < num_cells
        owner = tl.load(owners + cell, mask=mask, other=0)
        is_upper = owner < 0
        change = tl.load(weights + tl.where(is_upper, -1 - owner, owner), mask=mask, other=0.0)
        change = tl.where(is_upper, -change, change)
        covered = mask & (tl.load(is_covered + cell, mask=mask, other=0) > 0)
        has_next = covered & (cell + 1 < num_cells)
        width = tl.load(edges + cell + 1, mask=has_next, other=0.0)
        width -= tl.load(edges + cell, mask=has_next, other=0.0)
        slope = tl.where(covered, (rise + tl.cumsum(change, 0)) / two_delta, 0.0)
        growth = slope * width
        tl.store(values + cell, value + tl.cumsum(growth, 0) - growth, mask=mask)
        tl.store(slopes + cell, slope, mask=mask)
        rise += tl.sum(change, 0)
        value += tl.sum(growth, 0)
        start += BLOCK


@kernel
def evaluate(logits, cells, edges, values, slopes, results, num_entries, BLOCK: tl.constexpr):
    """Write the linear function of each key's cell at the key; exactly 0 in cell 0."""
    i = _entries(BLOCK)
    is_entry = i < num_entries
    x = tl.load(logits + i, mask=is_entry, other=0.0).to(tl.float64)
    cell = tl.load(cells + i, mask=is_entry, other=0).to(tl.int32)
    mask = cell > 0
    offset = x - tl.load(edges + cell, mask=mask, other=0.0)
    result = tl.load(slopes + cell, mask=mask, other=0.0) * offset
    result += tl.load(values + cell, mask=mask, other=0.0)
    tl.store(results + i, tl.where(mask, result, 0.0), mask=is_entry)
