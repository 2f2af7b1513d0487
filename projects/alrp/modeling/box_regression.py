"""Box encodings of the published heads."""

from __future__ import annotations

import math
import torch
from torch import Tensor

# Sides change by at most this factor; the published code limits both directions.
_SCALE_CLAMP = math.log(1000.0 / 16)


class BoxDeltaTransform:
    """``Box2BoxTransform`` of Detectron2 with the published limit on shrinking as well as growing.

    ``deltas = (dx, dy, dw, dh)`` are offsets of the centre in anchor sides and logarithms of the
    ratio of the sides, times ``weights``.

    Args:
        weights: (wx, wy, ww, wh); the inverse of the standard deviations of other frameworks, so
            (10, 10, 5, 5) for 0.1, 0.1, 0.2, 0.2.
    """

    def __init__(self, weights: tuple[float, float, float, float]) -> None:
        self.weights = tuple(weights)

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(P, 4) deltas that take ``src_boxes`` to ``target_boxes``, both (P, 4) XYXY.

        ``apply_deltas`` undoes it, unless a side changes by more than 62.5 times. A target without
        width or height gives -inf, which ``apply_deltas`` clamps.
        """
        src_size, src_center = _size_and_center(src_boxes)
        target_size, target_center = _size_and_center(target_boxes)
        weights = src_boxes.new_tensor(self.weights)
        shift = (target_center - src_center) / src_size
        return torch.cat([shift, torch.log(target_size / src_size)], dim=1) * weights

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (P, 4 * k) XYXY from deltas (P, 4 * k) and ``boxes`` (P, 4); k boxes per row."""
        size, center = _size_and_center(boxes.to(deltas.dtype))
        deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        center = deltas[..., :2] * size[:, None] + center[:, None]
        scale = deltas[..., 2:].clamp(-_SCALE_CLAMP, _SCALE_CLAMP).exp()
        half = 0.5 * scale * size[:, None]
        return torch.cat([center - half, center + half], dim=-1).flatten(1)


def decode_positives(
    pred_deltas: Tensor,
    anchors: Tensor,
    gt_boxes: Tensor,
    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
) -> tuple[Tensor, Tensor]:
    """Predicted and target boxes of positive anchors in the frame of their anchor.

    In that frame the anchor has its centre at 0 and sides of 1. GIoU is the same there as in
    pixels, and the limit on the sides acts on targets too, as published.

    Args:
        pred_deltas: (P, 4) any float dtype.
        anchors: (P, 4) XYXY pixels, with positive sides.
        gt_boxes: (P, 4) XYXY pixels, the matched ground truth.
        weights: of :class:`BoxDeltaTransform`.

    Returns:
        tuple[Tensor, Tensor]: both (P, 4) XYXY, at least float32.
    """
    transform = BoxDeltaTransform(weights)
    pred_deltas = pred_deltas.to(torch.promote_types(pred_deltas.dtype, torch.float32))
    target_deltas = transform.get_deltas(anchors, gt_boxes)
    unit = pred_deltas.new_tensor([[-0.5, -0.5, 0.5, 0.5]]).expand(len(pred_deltas), 4)
    pred_boxes = transform.apply_deltas(pred_deltas, unit)
    return pred_boxes, transform.apply_deltas(target_deltas.to(pred_deltas.dtype), unit)


def _size_and_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return size, boxes[:, :2] + 0.5 * size
