"""Box encodings of the published heads."""

from __future__ import annotations

import math
import torch
from torch import Tensor

from .tensors import vector

# Sides change by at most this factor; the published code limits both directions.
_SCALE_CLAMP = math.log(1000.0 / 16)

# FoveaBox: a target distance is cut to between 1/16 and 16 base edges.
_DISTANCE_LIMIT = 16.0
# The published code lets a predicted logarithm grow until its exponential overflows. Here it ends
# at 22,000 base edges, 1,400 times the largest target: areas of such boxes still fit float32.
_LOG_DISTANCE_CLAMP = 10.0


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
        weights = vector(src_boxes, self.weights)
        shift = (target_center - src_center) / src_size
        return torch.cat([shift, torch.log(target_size / src_size)], dim=1) * weights

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (P, 4 * k) XYXY from deltas (P, 4 * k) and ``boxes`` (P, 4); k boxes per row.

        At least float32: half precision would place boxes to a quarter or half of a pixel.
        """
        deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
        size, center = _size_and_center(boxes.to(deltas.dtype))
        # Not by len(), which would fix the number of boxes in a traced model.
        deltas = deltas.unflatten(1, (-1, 4)) / vector(deltas, self.weights)
        center = deltas[..., :2] * size[:, None] + center[:, None]
        scale = deltas[..., 2:].clamp(-_SCALE_CLAMP, _SCALE_CLAMP).exp()
        half = 0.5 * scale * size[:, None]
        return torch.cat([center - half, center + half], dim=-1).flatten(1)


class PointBoxTransform:
    """Encoding of FoveaBox: logarithms of the distances from a point to the sides of a box.

    ``deltas = log((l, t, r, b) / base_edge)`` with the distances to the left, top, right and bottom
    side (Kong et al., arXiv:1904.03797, Eq. 3, as published with aLRP). The point comes as an
    anchor: the square around it with the base edge as side.
    """

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(P, 4) deltas from the points of ``src_boxes`` to ``target_boxes``, both (P, 4) XYXY.

        ``apply_deltas`` undoes it if all four distances lie within [1/16, 16] base edges; others,
        negative ones too, are taken for the nearer limit.
        """
        base_edge, point = _size_and_center(src_boxes)
        distances = torch.cat([point - target_boxes[:, :2], target_boxes[:, 2:] - point], dim=1)
        distances = distances / base_edge.repeat(1, 2)
        return distances.clamp(1 / _DISTANCE_LIMIT, _DISTANCE_LIMIT).log()

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (P, 4) XYXY, at least float32, from deltas (P, 4) and squares ``boxes`` (P, 4).

        Deltas above 10 count as 10, without gradient.
        """
        deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))
        base_edge, point = _size_and_center(boxes.to(deltas.dtype))
        distances = deltas.clamp(max=_LOG_DISTANCE_CLAMP).exp() * base_edge.repeat(1, 2)
        return torch.cat([point - distances[:, :2], point + distances[:, 2:]], dim=1)


def decode_in_anchor_frame(
    transform, pred_deltas: Tensor, anchors: Tensor, gt_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Predicted and target boxes of positive anchors in the frame of their anchor.

    In that frame the anchor has its centre at 0 and sides of 1. GIoU is the same there as in
    pixels, and the limits of a transform act on targets too, as published. In the frame of a
    FoveaBox cell the boxes are (-e^l, -e^t, e^r, e^b), whatever its level.

    Args:
        transform: with ``get_deltas`` and ``apply_deltas``, which must not depend on the place and
            size of an anchor.
        pred_deltas: (P, 4) any float dtype.
        anchors: (P, 4) XYXY pixels, with positive sides.
        gt_boxes: (P, 4) XYXY pixels, the matched ground truth.

    Returns:
        tuple[Tensor, Tensor]: both (P, 4) XYXY, at least float32.
    """
    pred_deltas = pred_deltas.to(torch.promote_types(pred_deltas.dtype, torch.float32))
    target_deltas = transform.get_deltas(anchors, gt_boxes)
    unit = vector(pred_deltas, (-0.5, -0.5, 0.5, 0.5)).expand(len(pred_deltas), 4)
    pred_boxes = transform.apply_deltas(pred_deltas, unit)
    return pred_boxes, transform.apply_deltas(target_deltas.to(pred_deltas.dtype), unit)


def _size_and_center(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return size, boxes[:, :2] + 0.5 * size
