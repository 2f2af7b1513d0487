"""Kernels for GPUs, in Triton, that form all pairs of positives: to sort them, and for RS Loss.

Shape shorthand: P positives; for RS Loss in ascending order of their logits. Every sum is one
program's own, in an order that never changes, so results have the same bits every time.
"""

import triton
import triton.language as tl

from .fused_kernels import float_of, kernel


@triton.jit
def _step_between(upper, lower, delta_bits, shift_bits):
    """``H(upper - lower)``, see :class:`Step`; 0 where ``upper`` is -Inf or ``lower`` is Inf."""
    inverse = 0.5 / float_of(delta_bits)
    return tl.minimum(tl.maximum((upper - lower + float_of(shift_bits)) * inverse + 0.5, 0.0), 1.0)


@kernel
def sort_positives(
    logits,
    values,
    positives,
    order,
    sorted_logits,
    sorted_values,
    sorted_positives,
    num_queries,
    VALUED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the parts of :class:`SortedPositives`.

    Each positive is placed by counting those before it. Among the sorted logits, these are lower
    ones, and equal ones of later entries. In ``targets`` order, which is that of ``values``, these
    are smaller indices.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < num_queries
    logit = tl.load(logits + i, mask=is_row, other=0.0)
    positive = tl.load(positives + i, mask=is_row, other=0)
    before = tl.zeros([ROWS, COLUMNS], tl.int32)
    earlier = tl.zeros([ROWS, COLUMNS], tl.int32)
    start = 0
    while start < num_queries:
        j = start + tl.arange(0, COLUMNS)
        is_column = j < num_queries
        other = tl.load(logits + j, mask=is_column, other=float("inf"))[None, :]
        other_positive = tl.load(positives + j, mask=is_column, other=0)[None, :]
        is_before = other < logit[:, None]
        is_before |= (other == logit[:, None]) & (other_positive > positive[:, None])
        before += is_before.to(tl.int32)
        earlier += (is_column[None, :] & (other_positive < positive[:, None])).to(tl.int32)
        start += COLUMNS
    place = tl.sum(before, 1)
    own = tl.sum(earlier, 1)
    tl.store(sorted_positives + own, positive, mask=is_row)
    tl.store(order + place, own.to(tl.int64), mask=is_row)
    tl.store(sorted_logits + place, logit, mask=is_row)
    if VALUED:
        value = tl.load(values + own, mask=is_row, other=0.0)
        tl.store(sorted_values + place, value.to(tl.float64), mask=is_row)


@kernel
def find_sorting_errors(
    logits,
    ious,
    ranks,
    errors,
    shares,
    num_queries,
    delta_bits: tl.int64,
    shift_bits: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write rank and sorting error of each positive, and its share, q of ``sorting_errors``.

    A program has ``ROWS`` positives, and goes through all in blocks. It sums H, and H times
    1 - IoU, over positives of smaller IoU, which are wrongly above, and over the others.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < num_queries
    logit = tl.load(logits + i, mask=is_row, other=0.0)[:, None]
    iou = tl.load(ious + i, mask=is_row, other=0.0)[:, None]
    wrong = tl.zeros([ROWS, COLUMNS], tl.float64)
    wrong_gaps = tl.zeros([ROWS, COLUMNS], tl.float64)
    right = tl.zeros([ROWS, COLUMNS], tl.float64)
    right_gaps = tl.zeros([ROWS, COLUMNS], tl.float64)
    start = 0
    while start < num_queries:
        j = start + tl.arange(0, COLUMNS)
        is_column = j < num_queries
        other_logit = tl.load(logits + j, mask=is_column, other=float("-inf"))[None, :]
        other_iou = tl.load(ious + j, mask=is_column, other=0.0)[None, :]
        weight = _step_between(other_logit, logit, delta_bits, shift_bits)
        is_wrong = other_iou < iou
        wrong_weight = tl.where(is_wrong, weight, 0.0)
        right_weight = tl.where(is_wrong, 0.0, weight)
        wrong += wrong_weight
        wrong_gaps += wrong_weight * (1.0 - other_iou)
        right += right_weight
        right_gaps += right_weight * (1.0 - other_iou)
        start += COLUMNS
    wrong_sum = tl.sum(wrong, 1)
    right_sum = tl.maximum(tl.sum(right, 1), 0.5)  # H(0) of itself; rows beyond the last lack it
    rank = wrong_sum + right_sum
    is_error = wrong_sum > 0
    current = tl.sum(wrong_gaps, 1) / tl.where(is_error, wrong_sum, 1.0)
    share = (current - tl.sum(right_gaps, 1) / right_sum) / rank
    share = tl.where(is_error, tl.maximum(share, 0.0), 0.0)
    tl.store(ranks + i, rank, mask=is_row)
    tl.store(errors + i, wrong_sum * share, mask=is_row)
    tl.store(shares + i, share, mask=is_row)


@kernel
def find_sorting_gradient(
    logits,
    ious,
    errors,
    shares,
    gradients,
    num_queries,
    delta_bits: tl.int64,
    shift_bits: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write what each positive is pushed down by those of greater IoU, minus its own error."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = i < num_queries
    logit = tl.load(logits + i, mask=is_row, other=0.0)[:, None]
    iou = tl.load(ious + i, mask=is_row, other=0.0)[:, None]
    received = tl.zeros([ROWS, COLUMNS], tl.float64)
    start = 0
    while start < num_queries:
        j = start + tl.arange(0, COLUMNS)
        is_column = j < num_queries
        other_logit = tl.load(logits + j, mask=is_column, other=float("inf"))[None, :]
        other_iou = tl.load(ious + j, mask=is_column, other=0.0)[None, :]
        share = tl.load(shares + j, mask=is_column, other=0.0)[None, :]
        weight = _step_between(logit, other_logit, delta_bits, shift_bits)
        received += tl.where(other_iou > iou, weight * share, 0.0)
        start += COLUMNS
    gradient = tl.sum(received, 1) - tl.load(errors + i, mask=is_row, other=0.0)
    tl.store(gradients + i, gradient, mask=is_row)
