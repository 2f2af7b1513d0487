"""The sorting part of RS Loss: sums over pairs of positives that compare logits and IoUs.

Shape shorthand: P positives, in ascending order of their logits. "float64" means float32 on MPS.
"""

from __future__ import annotations

from typing import Callable
import torch
from torch import Tensor

from ..reductions import prefix_sum_from_zero
from .interface import SortingErrors, Step

# Function of weights (P, K) float64, K at each place; ranks (P,) int64, a permutation of 0 to
# P - 1; limits (Q,) int64 in [0, P - 1]; cuts (Q, C) int64 in [0, P], ascending. Gives
# (Q, C - 1, K) sums over the places between two cuts whose rank is below the limit, for all queries
# at once. Sums of whole numbers are exact.
SumsBelow = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def sorting_errors(
    logits: Tensor, ious: Tensor, step: Step, sums_below: SumsBelow
) -> SortingErrors:
    """How far the positives are from descending order of their IoUs (Oksuz et al., ICCV 2021).

    The current sorting error of a positive i is the mean of 1 - IoU over the positives j at and
    above it, weighted by ``H(s_j - s_i)``. Its target is the same mean without those of smaller
    IoU, which are wrongly above. The update pushes i up by the difference, and pushes the wrong
    ones down by the same total, in proportion to ``H``.

    With the sums over the wrong ones M = sum H and E = sum H (1 - IoU), and those over all others A
    and B, the difference is ``M q`` where ``q = (E / M - B / A) / (M + A)``. This form divides no
    differences of nearly equal sums. Time is O(P log P), memory O(P).

    Args:
        logits: (P,) float64, ascending.
        ious: (P,) float64.
        step: between the logits.
        sums_below: of the backend.
    """
    delta, shift = step
    logits = logits - logits[len(logits) // 2]  # sums of small numbers lose fewer digits
    gaps = 1.0 - ious
    ascending = ious.sort()
    ranks = torch.empty_like(ascending.indices)
    ranks[ascending.indices] = torch.arange(len(ranks), device=ranks.device)

    # H(s_j - s_i) is linear in s_j between the first two cuts, and 1 from there to the third.
    end = torch.full_like(ranks, len(ranks))
    cuts = torch.stack([*_cuts(logits, logits - shift, delta), end], dim=1)
    weights = torch.stack([torch.ones_like(gaps), gaps, logits, gaps * logits], dim=1)
    num_lower = torch.searchsorted(ascending.values, ious)
    everywhere = prefix_sum_from_zero(weights)[cuts].diff(dim=1)
    wrong = sums_below(weights, ranks, num_lower, cuts)
    rank, gap_sum = _row_sums(everywhere, logits - shift, delta)
    wrong_rank, wrong_gap_sum = _row_sums(wrong, logits - shift, delta)
    # Counts are exact, where sums may leave rounding instead of 0.
    is_wrong = (wrong[..., 0].sum(1) > 0) & (wrong_rank > 0)
    target = (gap_sum - wrong_gap_sum) / (rank - wrong_rank)
    shares = (wrong_gap_sum / wrong_rank - target) / rank
    shares = torch.where(is_wrong, shares.clamp(min=0.0), 0.0)
    errors = wrong_rank * shares

    # The same pairs from the side of the lower IoU: H(s_i - s_m) is 1 up to the first cut.
    cuts = torch.stack([torch.zeros_like(end), *_cuts(logits, logits + shift, delta)], dim=1)
    num_higher = end - torch.searchsorted(ascending.values, ious, right=True)
    weights = torch.stack([shares, shares * logits], dim=1)
    full, ramp = sums_below(weights, end - 1 - ranks, num_higher, cuts).unbind(1)
    slope_part = (logits + shift) * ramp[:, 0] - ramp[:, 1]
    received = full[:, 0] + 0.5 * ramp[:, 0] + slope_part / (2 * delta)
    return SortingErrors(rank, errors, received - errors)


def _cuts(logits: Tensor, centers: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """(P,) places in the logits where those within delta of each center begin and end."""
    start = torch.searchsorted(logits, centers - delta, right=True)
    return start, torch.searchsorted(logits, centers + delta)


def _row_sums(sums: Tensor, centers: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """(P,) sums of H and of H (1 - IoU), from (P, 2, 4) of ramp and plateau."""
    ramp, full = sums.unbind(1)
    slope_part = ramp[:, 2:] - centers[:, None] * ramp[:, :2]
    both = full[:, :2] + 0.5 * ramp[:, :2] + slope_part / (2 * delta)
    return both[:, 0], both[:, 1]
