"""Localisation error of matched boxes."""

from __future__ import annotations

import math
import torch
from torch import Tensor

from .inputs import check_tensors


def localization_error(
    pred_boxes: Tensor, gt_boxes: Tensor, *, tau: float = 0.5, eps: float = 1e-6
) -> Tensor:
    """``(1 - GIoU) / (2 * (1 - tau))`` of each matched pair (arXiv:2009.13592, Sec. 4 and 5).

    GIoU (Rezatofighi et al., arXiv:1902.09630) lies in (-1, 1], so with ``tau`` 0.5 the error lies
    in [0, 2). It is not clamped: a positive that overlaps its ground truth by less than ``tau``
    counts for more than 1.

    Args:
        pred_boxes: (P, 4) XYXY, in any frame: GIoU does not change under a shift or a scaling of
            either axis, apart from ``eps``. Where ``x2 < x1`` or ``y2 < y1``, as a model may
            predict early in a training, the area counts as 0.
        gt_boxes: (P, 4) XYXY in the same frame, with ``x2 >= x1`` and ``y2 >= y1``; may carry
            gradient.
        tau: IoU above which a detection counts as a true positive, in [0, 1).
        eps: added to the union and to the area of the enclosing box, >= 0.

    Returns:
        Tensor: (P,) at least float32. On devices other than the CPU, NaN where the ground truth has
        ``x2 < x1`` or ``y2 < y1``: an error here would wait for the device, and
        :func:`alrp.losses.alrp_loss` refuses NaN anyway.

    Raises:
        TypeError: if one is no tensor.
        ValueError: on a wrong shape or device, ``tau`` outside [0, 1), ``eps`` that is negative or
            not finite, or, on the CPU, ground truth with ``x2 < x1`` or ``y2 < y1``.
    """
    check_tensors(pred_boxes=pred_boxes, gt_boxes=gt_boxes)
    if pred_boxes.dim() != 2 or pred_boxes.shape[1] != 4 or pred_boxes.shape != gt_boxes.shape:
        raise ValueError(
            "pred_boxes and gt_boxes must both be (P, 4), but are "
            f"{tuple(pred_boxes.shape)} and {tuple(gt_boxes.shape)}; pass matched pairs row by row."
        )
    check_localization_tau(tau)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number >= 0, but is {eps}; the default is 1e-6.")
    dtype = torch.promote_types(pred_boxes.dtype, torch.float32)
    pred_boxes, gt_boxes = pred_boxes.to(dtype), _checked_ground_truth(gt_boxes.to(dtype))

    overlap = _area(
        torch.max(pred_boxes[:, :2], gt_boxes[:, :2]), torch.min(pred_boxes[:, 2:], gt_boxes[:, 2:])
    )
    hull = eps + _area(
        torch.min(pred_boxes[:, :2], gt_boxes[:, :2]), torch.max(pred_boxes[:, 2:], gt_boxes[:, 2:])
    )
    areas = _area(pred_boxes[:, :2], pred_boxes[:, 2:]) + _area(gt_boxes[:, :2], gt_boxes[:, 2:])
    union = areas - overlap + eps
    giou = overlap / union - (hull - union) / hull
    return (1.0 - giou) / (2.0 * (1.0 - tau))


def check_localization_tau(tau: float) -> None:
    """Raise a ValueError unless ``tau`` is in [0, 1)."""
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be in [0, 1), but is {tau}; the published value is 0.5.")


def _checked_ground_truth(boxes: Tensor) -> Tensor:
    """The boxes, if no corners are crossed; see :func:`localization_error`."""
    is_crossed = (boxes[:, 2:] < boxes[:, :2]).any(1)
    if boxes.device.type != "cpu":
        return boxes.masked_fill(is_crossed[:, None], math.nan)
    if is_crossed.any():
        row = int(is_crossed.nonzero()[0])
        raise ValueError(
            f"gt_boxes: row {row} is {boxes[row].tolist()}, with x2 < x1 or y2 < y1; pass corners "
            "(x1, y1, x2, y2). Are these boxes given as centre and size?"
        )
    return boxes


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """(P,) area between the corners, 0 where they are crossed."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(1)
    return width * height
