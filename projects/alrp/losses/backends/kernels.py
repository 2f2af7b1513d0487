"""The loops of the CPU backend, compiled by numba when first called.

Shape shorthand as in :mod:`alrp.losses.backends.interface`, which says what the arrays hold; B
buckets. Arrays must be contiguous and of the right lengths: nothing checks them here. Logits are
float32 or float64, targets of any integer dtype, the cells of entries and the table of buckets
int16 or int32, the cells of queries int32, indices int64, ``is_lower`` bool; all else is float64.
"""

from __future__ import annotations

import functools
import numpy as np
import warnings
from typing import Callable
import numba

# Digits of a radix sort of 64 bits.
_DIGIT_BITS, _NUM_DIGITS = 11, 6
_DIGIT_MASK, _MAGNITUDE = np.uint64((1 << _DIGIT_BITS) - 1), np.uint64((1 << 63) - 1)
_ONE = np.uintp(1)  # an unsigned index spares numba the test for negative ones


def _jit(function: Callable) -> Callable:
    """The function as machine code, cached on disk for later processes.

    Where the cache cannot be written or read, every process compiles the function itself.
    """
    uncached = numba.njit(nogil=True)(function)
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's own folder nor the user's cache can be written
        compiled = uncached

    @functools.wraps(function)
    def call(*args):
        nonlocal compiled
        tried = compiled  # which another thread may replace
        try:
            return tried(*args)
        except SystemError as error:  # what numba raises for Ctrl-C while it returns the results
            raise error.__cause__ or error from None
        except Exception as error:
            if tried is uncached:
                raise
            warnings.warn(
                f"alrp.losses: numba cannot keep {function.__name__}, or read it again "
                f"({error!r}), and compiles it in every process; set NUMBA_CACHE_DIR to a folder "
                "with space, or delete the *.nbi and *.nbc files there"
            )
            compiled = uncached
            return compiled(*args)

    return call


@_jit
def survey(logits, targets, start):
    """Indices where targets are 1, plus ``start``; number of NaN and Inf at targets 1 and 0."""
    num_positives = num_bad = 0
    for j in range(np.uintp(len(logits))):
        is_positive = targets[j] == 1
        num_positives += is_positive
        # The difference is 0 only of finite numbers.
        num_bad += (is_positive | (targets[j] == 0)) & (not logits[j] - logits[j] == 0)
    indices = np.empty(num_positives, np.int64)
    p = np.uintp(0)
    for j in range(np.uintp(len(logits))):
        if targets[j] == 1:
            indices[p] = start + np.int64(j)
            p += _ONE
    return indices, num_bad


@_jit
def descending_order(values):
    """(P,) indices that sort P >= 1 values from the highest down; equal ones keep their order.

    For a few thousand values a radix sort is three times as fast as one by comparisons.
    """
    num_values = len(values)
    bits = (values + 0.0).view(np.uint64)  # -0.0 becomes 0.0
    keys, other_keys = np.empty_like(bits), np.empty_like(bits)
    order, other_order = np.arange(num_values), np.empty(num_values, np.int64)
    counts = np.zeros((_NUM_DIGITS, _DIGIT_MASK + _ONE), np.int64)
    for i in range(num_values):
        # As unsigned numbers, these ascend where the values descend.
        keys[i] = bits[i] if bits[i] >> np.uint64(63) else ~bits[i] & _MAGNITUDE
        for d in range(_NUM_DIGITS):
            counts[d, (keys[i] >> np.uint64(_DIGIT_BITS * d)) & _DIGIT_MASK] += 1
    for d in range(_NUM_DIGITS):
        shift, slots = np.uint64(_DIGIT_BITS * d), counts[d]
        if slots[(keys[0] >> shift) & _DIGIT_MASK] == num_values:
            continue  # all values share this digit, as float32 numbers do the lowest ones
        total = 0
        for q in range(len(slots)):
            slots[q], total = total, total + slots[q]
        for i in range(num_values):
            q = (keys[i] >> shift) & _DIGIT_MASK
            other_keys[slots[q]], other_order[slots[q]] = keys[i], order[i]
            slots[q] += 1
        keys, other_keys, order, other_order = other_keys, keys, other_order, order
    return order


@_jit
def merge(queries, delta):
    """Knots and cells of (P,) ascending queries.

    Returns:
        (C + 1,) edges; (2P,) bool, whether each knot is the lower one of its query; (P,) cell of
        each query.
    """
    num_queries = len(queries)
    edges = np.zeros(2 * num_queries + 2)
    edges[-1] = np.inf
    is_lower = np.empty(2 * num_queries, np.bool_)
    cells = np.full(num_queries, 2 * num_queries, np.int32)
    i = j = k = 0  # the next lower knot, upper knot and query
    for c in range(2 * num_queries):
        is_lower[c] = i < num_queries and queries[i] - delta <= queries[j] + delta
        if is_lower[c]:
            knot = queries[i] - delta
            i += 1
        else:
            knot = queries[j] + delta
            j += 1
        while k < num_queries and queries[k] < knot:
            cells[k] = c
            k += 1
        edges[c + 1] = knot
    return edges, is_lower, cells


@_jit
def sum_queries(queries, weights, cells, edges):
    """(C,) sum of the weights of the queries in each cell, and of their weighted offsets."""
    mass, moment = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1)
    for k in range(len(queries)):
        c = cells[k]
        mass[c] += weights[k]
        moment[c] += weights[k] * (queries[k] - edges[c])
    return mass, moment


@_jit
def row_sums(mass, moment, edges, is_lower, delta):
    """(P,) sums over keys for every query, from (C,) sums over the keys of each cell.

    From the top down, for the precision of small sums: see :meth:`StepMatrix.matvec`.
    """
    i = j = len(is_lower) // 2  # after the next lower and upper knot
    sums = np.empty(j)
    above = area = 0.0  # weight of the keys above the knot at hand, and its integral from there on
    for c in range(len(is_lower) - 1, -1, -1):
        # The cell right of the knot, if it is in the linear part of a query.
        if i > j:
            area += moment[c + 1] + (edges[c + 2] - edges[c + 1]) * above
        above += mass[c + 1]
        if is_lower[c]:
            i -= 1
            sums[i] = (area - sums[i]) / (2 * delta)
        else:
            j -= 1
            sums[j] = area  # subtracted at the query's lower knot
    return sums


@_jit
def column_profile(weights, edges, is_lower, delta):
    """(C, 2) value at the left edge of each cell, and slope there, of the sum over the queries."""
    profile = np.zeros((len(edges) - 1, 2))
    i = j = 0  # the next lower and upper knot
    value = rise = 0.0
    for c in range(len(is_lower)):
        if is_lower[c]:
            rise += weights[i]
            i += 1
        else:
            rise -= weights[j]
            j += 1
        profile[c + 1, 0] = value
        # Outside of all linear parts the slope is 0, but for rounding.
        if i > j:
            profile[c + 1, 1] = rise / (2 * delta)
            value += profile[c + 1, 1] * (edges[c + 2] - edges[c + 1])
    return profile


@numba.njit(nogil=True)  # no cache of its own: it is compiled into its callers
def _bucket(key, edges, density, starts):
    """Bucket of a key that is not below the first knot.

    Monotonic in the key, even after rounding; so a key's cell is always found in its own bucket.
    """
    return np.uintp(np.int64(min((key - edges[1]) * density, np.float64(len(starts) - 2))))


@_jit
def count_knots(edges, density, starts):
    """Write (B + 1,) number of knots before each bucket; the last is the number of all knots."""
    starts[:] = 0
    for i in range(1, len(edges) - 1):
        starts[_bucket(edges[i], edges, density, starts) + _ONE] += 1
    total = 0
    for b in range(len(starts)):
        total += starts[b]
        starts[b] = total


@_jit
def locate(logits, targets, edges, density, starts, cells, mass, moment):
    """Write the cell of each key, 0 for all other entries; add to the sums of the cells.

    ``starts`` is of :func:`count_knots` with the same density. Keys in cell 0 are not summed.
    """
    for j in range(np.uintp(len(logits))):
        key = np.float64(logits[j])
        if targets[j] != 0 or not key >= edges[1]:
            cells[j] = 0
            continue
        b = _bucket(key, edges, density, starts)
        c, end = np.uintp(starts[b]), np.uintp(starts[b + _ONE])
        if end <= c + _ONE:
            # Added, not branched on: the processor would mispredict half of the branches. If the
            # bucket has no knot, the next one lies in a later bucket and so above the key.
            c += np.uintp(edges[c + _ONE] <= key)
        else:
            while c < end:
                middle = (c + end) >> _ONE
                if edges[middle + _ONE] <= key:
                    c = middle + _ONE
                else:
                    end = middle
        cells[j] = c
        mass[c] += 1.0
        moment[c] += key - edges[c]


@_jit
def evaluate(logits, cells, edges, profile, out):
    """Write the linear function of each key's cell at the key; exactly 0 in cell 0."""
    for j in range(np.uintp(len(logits))):
        c = np.uintp(cells[j])
        if c == 0:
            out[j] = 0.0
        else:
            out[j] = profile[c, 0] + profile[c, 1] * (np.float64(logits[j]) - edges[c])


@_jit
def sums_below(weights, ranks, limits, cuts):
    """(Q, C - 1, K) sums over the places between cuts whose rank is below a query's limit.

    The places enter a Fenwick tree in the order of their ranks; each query is answered once all
    ranks below its limit have entered.
    """
    num_places, num_weights = weights.shape
    num_queries, num_cuts = cuts.shape
    places = np.empty(num_places, np.int64)
    for j in range(num_places):
        places[ranks[j]] = j
    order = np.argsort(limits)
    tree = np.zeros((num_places + 1, num_weights))
    sums = np.zeros((num_queries, num_cuts - 1, num_weights))
    rank = 0
    for q in order:
        while rank < limits[q]:
            j = places[rank] + 1
            while j <= num_places:
                for k in range(num_weights):
                    tree[j, k] += weights[places[rank], k]
                j += j & -j
            rank += 1
        for c in range(num_cuts):
            j = cuts[q, c]
            while j > 0:
                for k in range(num_weights):
                    if c > 0:
                        sums[q, c - 1, k] += tree[j, k]
                    if c < num_cuts - 1:
                        sums[q, c, k] -= tree[j, k]
                j &= j - 1
    return sums
