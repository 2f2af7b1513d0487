"""From dense predictions and their targets to the losses of the head."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.layers import cat
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage

from .box_regression import decode_in_anchor_frame
from .bridge import HeadLosses


def anchor_losses(
    head_losses: HeadLosses,
    anchors: list[Boxes],
    pred_logits: list[Tensor],
    gt_classes: list[Tensor],
    pred_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    *,
    box2box_transform,
    event: str = "num_pos_anchors",
) -> dict[str, Tensor]:
    """Losses over all anchors of a mini-batch.

    Args:
        head_losses: the bridge to the losses.
        anchors: per level; R in all.
        pred_logits: per level (N, R_l, K).
        gt_classes: per image (R,) int64; 0..K-1, K background, -1 ignored.
        pred_deltas: per level (N, R_l, 4).
        gt_boxes: per image (R, 4), the matched ground truth; anything where there is none.
        box2box_transform: encoding of boxes, with ``get_deltas`` and ``apply_deltas``.
        event: name of the logged number of positives per image.

    Returns:
        dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".
    """
    num_images = len(gt_classes)
    gt_classes = cat(gt_classes)  # (N * R,)
    rows = head_losses.positive_rows(gt_classes)  # (P,)
    if has_event_storage() and torch.is_grad_enabled():  # not for a validation loss
        get_event_storage().put_scalar(event, len(rows) / num_images)

    pred_logits = cat(pred_logits, dim=1).flatten(0, 1)  # (N * R, K)
    pred_deltas = cat(pred_deltas, dim=1).flatten(0, 1)[rows]  # (P, 4)
    gt_boxes = cat(gt_boxes)[rows]
    anchors = Boxes.cat(anchors).tensor
    anchors = anchors[rows % len(anchors)]
    deltas = boxes = None
    if head_losses.compares_deltas:
        deltas = pred_deltas, box2box_transform.get_deltas(anchors, gt_boxes)
    if head_losses.compares_boxes:
        boxes = decode_in_anchor_frame(box2box_transform, pred_deltas, anchors, gt_boxes)
    return head_losses(
        pred_logits,
        gt_classes,
        *(boxes or deltas),
        deltas=deltas,
        rows=rows,
        num_images=num_images,
    )
