"""From dense predictions to detections."""

from __future__ import annotations

import math
import torch
from torch import Tensor

from detectron2.layers import batched_nms, nms
from detectron2.structures import Boxes, Instances

# Boxes on a GPU beyond which torchvision goes class by class.
_MOST_AT_ONCE = 25_000


def check_test_options(
    *, score_thresh: float, nms_thresh: float, max_detections: int, topk_candidates: int = 1
) -> None:
    """Refuse options of inference with which detections are lost or doubled without a word.

    Args:
        score_thresh: least score of a detection.
        nms_thresh: IoU from which NMS suppresses.
        max_detections: per image, after NMS.
        topk_candidates: candidates that NMS sees; for a head with such a limit.

    Raises:
        ValueError: unless the thresholds are in [0, 1] and the numbers at least 1.
    """
    for name, value in (("score", score_thresh), ("NMS", nms_thresh)):
        if not 0 <= value <= 1:
            raise ValueError(f"the {name} threshold in test must be in [0, 1], but is {value}.")
    for name, value in (("candidates", topk_candidates), ("detections", max_detections)):
        if not value >= 1:
            raise ValueError(f"the number of {name} in test must be at least 1, but is {value}.")


def decode_best_anchors(
    box2box_transform,
    anchors: list[Boxes],
    pred_scores: list[Tensor],
    pred_deltas: list[Tensor],
    *,
    score_thresh: float,
    topk_candidates: int,
    image_size: tuple[int, int],
    clip_size: tuple[int, int],
) -> Instances:
    """Candidates of one image by the published rule, clipped before NMS.

    The anchors of each level with the best scores pass, each with all its classes above the
    threshold. Detectron2 takes the best pairs of an anchor and a class instead. A ranking loss
    orders the scores but does not fix their level, so very many pairs may pass the threshold; the
    best of them would then belong to few anchors.

    However many levels there are, the host waits for the device twice.

    Args:
        box2box_transform: encoding of boxes, with ``apply_deltas``.
        anchors: for each level, R_l anchors.
        pred_scores: for each level, (R_l, K) in [0, 1].
        pred_deltas: for each level, (R_l, 4).
        score_thresh: a pair of an anchor and a class must score more.
        topk_candidates: number of anchors of each level that may pass.
        image_size: (height, width) of the image, in pixels.
        clip_size: (height, width) to clip the boxes to, in pixels.

    Returns:
        Instances: with "pred_boxes", "scores" and "pred_classes".
    """
    # Scores far from 0 saturate and tie; then the lowest index wins.
    # ONNX lacks a stable sort by name, but its TopK, which sort() becomes there, is stable.
    options = {} if torch.onnx.is_in_onnx_export() else {"stable": True}
    best = []
    for anchors_l, scores_l, deltas_l in zip(anchors, pred_scores, pred_deltas):
        order = scores_l.amax(1).sort(descending=True, **options).indices
        top_anchors = order[:topk_candidates]
        best.append([x[top_anchors] for x in (scores_l, deltas_l, anchors_l.tensor)])
    scores, deltas, anchor_boxes = map(torch.cat, zip(*best))
    boxes = Boxes(box2box_transform.apply_deltas(deltas, anchor_boxes))
    boxes.clip(clip_size)
    kept, classes = (scores > score_thresh).nonzero(as_tuple=True)
    return Instances(
        image_size, pred_boxes=boxes[kept], scores=scores[kept, classes], pred_classes=classes
    )


def best_detections(candidates: Instances, nms_thresh: float, max_detections: int) -> Instances:
    """The best candidates of one image that NMS within each class leaves, best first.

    Args:
        candidates: of :func:`decode_best_anchors`.
        nms_thresh: IoU from which NMS suppresses; infinite for all candidates, without NMS.
        max_detections: number of detections.
    """
    boxes, scores = candidates.pred_boxes.tensor, candidates.scores
    if nms_thresh == math.inf:
        return candidates[scores.sort(descending=True, stable=True).indices[:max_detections]]
    is_large = boxes.is_cuda and len(boxes) > _MOST_AT_ONCE and not torch.jit.is_tracing()
    suppress = _nms_class_by_class if is_large else batched_nms
    kept = suppress(boxes, scores, candidates.pred_classes, nms_thresh)
    return candidates[kept[:max_detections]]


def _nms_class_by_class(
    boxes: Tensor, scores: Tensor, classes: Tensor, nms_thresh: float
) -> Tensor:
    """What ``batched_nms`` finds in this way, with one wait for a GPU per class instead of two."""
    boxes, order = boxes.float(), classes.sort(stable=True).indices
    is_kept = torch.zeros_like(scores, dtype=torch.bool)
    for of_class in order.split(classes.bincount().tolist()):
        if len(of_class):
            is_kept[of_class[nms(boxes[of_class], scores[of_class], nms_thresh)]] = True
    kept = is_kept.nonzero().squeeze(1)
    return kept[scores[kept].sort(descending=True).indices]
