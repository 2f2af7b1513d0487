"""Whether two runs of a detector found the same."""

from __future__ import annotations

from typing import NamedTuple, Sequence
import torch
from torch import Tensor

# Detections with scores as close as this may change places, or lose the last place of the list.
_SCORE_TOLERANCE = 1e-3


class Agreement(NamedTuple):
    """How far two lists of detections of one image agree.

    Attributes:
        num_expected: detections of the first list.
        num_unmatched: detections of both lists without a partner in the other one.
        largest_shift: greatest distance of a coordinate between partners, in pixels.
    """

    num_expected: int
    num_unmatched: int
    largest_shift: float


def compare_detections(
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    *,
    max_shift: float = 0.05,
    max_detections: int = 100,
) -> Agreement:
    """Give each detection its partner: of its class, with its score to 0.001, and near its place.

    The order within a list does not count, because detections of equal scores have none. For the
    same reason a detection that scores within 0.001 of the last of a full list needs no partner: it
    may have fallen off the end of the other list.

    Args:
        expected, found: boxes (D, 4) in pixels, scores (D,) and classes (D,) of each list.
        max_shift: most pixels between the coordinates of partners.
        max_detections: length of a full list.

    Returns:
        Agreement: of the two lists.
    """
    boxes, scores, classes = (x.double() for x in expected[:3])
    other_boxes, other_scores, other_classes = (x.double() for x in found[:3])
    shifts = (boxes[:, None] - other_boxes).abs().amax(-1)  # (D, D')
    possible = classes[:, None] == other_classes
    possible &= (scores[:, None] - other_scores).abs() <= _SCORE_TOLERANCE
    possible &= shifts <= max_shift
    # Near detections of one class would have suppressed each other: at most one is possible.
    left = torch.cat(
        [
            scores[~possible.any(1) & ~_may_fall_off(scores, max_detections)],
            other_scores[~possible.any(0) & ~_may_fall_off(other_scores, max_detections)],
        ]
    )
    largest = float(shifts[possible].max()) if possible.any() else 0.0
    return Agreement(len(boxes), len(left), largest)


def _may_fall_off(scores: Tensor, max_detections: int) -> Tensor:
    if len(scores) < max_detections:
        return torch.zeros_like(scores, dtype=torch.bool)
    return scores <= scores.min() + _SCORE_TOLERANCE
