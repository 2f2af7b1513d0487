"""From dense predictions to the candidates of NMS."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.structures import Boxes, Instances


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
    anchors: Boxes,
    pred_scores: Tensor,
    pred_deltas: Tensor,
    *,
    score_thresh: float,
    topk_candidates: int,
    image_size: tuple[int, int],
    clip_size: tuple[int, int],
) -> Instances:
    """Candidates of one image and level by the published rule, clipped before NMS.

    The anchors with the best scores pass, each with all its classes above the threshold.
    Detectron2 takes the best pairs of an anchor and a class instead. A ranking loss orders the
    scores but does not fix their level, so very many pairs may pass the threshold; the best of them
    would then belong to few anchors.

    Args:
        box2box_transform: encoding of boxes, with ``apply_deltas``.
        anchors: R_l anchors of the level.
        pred_scores: (R_l, K) in [0, 1].
        pred_deltas: (R_l, 4).
        score_thresh: a pair of an anchor and a class must score more.
        topk_candidates: number of anchors that may pass.
        image_size: (height, width) of the image, in pixels.
        clip_size: (height, width) to clip the boxes to, in pixels.

    Returns:
        Instances: with "pred_boxes", "scores" and "pred_classes".
    """
    # Scores far from 0 saturate and tie; then the lowest index wins.
    # ONNX lacks a stable sort by name, but its TopK, which sort() becomes there, is stable.
    options = {} if torch.onnx.is_in_onnx_export() else {"stable": True}
    order = pred_scores.amax(1).sort(descending=True, **options).indices
    top_anchors = order[:topk_candidates]
    pred_scores = pred_scores[top_anchors]
    boxes = Boxes(
        box2box_transform.apply_deltas(pred_deltas[top_anchors], anchors.tensor[top_anchors])
    )
    boxes.clip(clip_size)
    kept, classes = (pred_scores > score_thresh).nonzero(as_tuple=True)
    return Instances(
        image_size,
        pred_boxes=boxes[kept],
        scores=pred_scores[kept, classes],
        pred_classes=classes,
    )
