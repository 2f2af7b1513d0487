"""RetinaNet trained with a ranking loss."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances

from ..atss_head import ATSSHead
from ..box_regression import BoxDeltaTransform
from ..bridge import RankingHeadLosses, keep_checkpoint_names
from ..dense_inference import best_detections, check_test_options, decode_best_anchors
from ..dense_losses import anchor_losses
from ..detection_thresholds import DetectionThresholds, ShowsDetections
from ..head_losses import build_head_losses
from ..matcher import build_matcher
from ..micro_batches import MicroBatchedDetector
from ..targets import match_anchors, matched_targets


@META_ARCH_REGISTRY.register()
class ALRPRetinaNet(ShowsDetections, MicroBatchedDetector, RetinaNet):
    """RetinaNet whose ``losses`` ranks all anchors and classes of the mini-batch.

    Of Detectron2's :class:`RetinaNet` it replaces the matching (:meth:`label_anchors`), the losses
    (:meth:`losses`), the selection before NMS (:meth:`_decode_multi_level_predictions`), and NMS
    (:meth:`inference_single_image`), which finds the same with fewer waits for a GPU.
    """

    @configurable
    def __init__(
        self,
        *,
        head_losses: RankingHeadLosses,
        score_thresh_predict: float = -1.0,
        calibrated_scores: bool = False,
        **kwargs,
    ) -> None:
        """
        Args:
            head_losses: classification and box losses.
            score_thresh_predict, calibrated_scores: of :class:`DetectionThresholds`.
            kwargs: of :class:`RetinaNet`; ``anchor_matcher`` is an ``ATSSMatcher`` or a
                ``MaxIoUMatcher``, ``box2box_transform`` a ``BoxDeltaTransform``.

        Raises:
            ValueError: if a threshold in test is outside [0, 1] or a number of candidates or
                detections below 1.
        """
        super().__init__(**kwargs)
        self.head_losses = head_losses
        keep_checkpoint_names(self)
        self.shown = DetectionThresholds(self.num_classes, score_thresh_predict, calibrated_scores)
        check_test_options(
            score_thresh=self.test_score_thresh,
            nms_thresh=self.test_nms_thresh,
            topk_candidates=self.test_topk_candidates,
            max_detections=self.max_detections_per_image,
        )

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        if cfg.MODEL.ATSS.HEAD:
            shapes = ret["backbone"].output_shape()
            ret["head"] = ATSSHead(cfg, [shapes[name] for name in ret["head_in_features"]])
        ret["anchor_matcher"] = build_matcher(cfg)
        ret["box2box_transform"] = BoxDeltaTransform(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)
        ret["head_losses"] = build_head_losses(cfg, cfg.MODEL.RETINANET.NUM_CLASSES)
        ret["score_thresh_predict"] = cfg.MODEL.ALRP.SCORE_THRESH_PREDICT
        ret["calibrated_scores"] = cfg.MODEL.ALRP.CALIBRATED_SCORES
        return ret

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]):
        """As the parent, except that anchors outside the image's own padded area are ignored."""
        matches = match_anchors(
            self.anchor_matcher, anchors, gt_instances, self.backbone.size_divisibility
        )
        return matched_targets(gt_instances, *matches, self.num_classes)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """As the parent; every loss is a mean over the positives of the mini-batch."""
        return anchor_losses(
            self.head_losses,
            anchors,
            pred_logits,
            gt_labels,
            pred_anchor_deltas,
            gt_boxes,
            box2box_transform=self.box2box_transform,
        )

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detections of one image, see :func:`best_detections`."""
        candidates = self._decode_multi_level_predictions(
            anchors,
            box_cls,
            box_delta,
            self.test_score_thresh,
            self.test_topk_candidates,
            image_size,
        )
        return best_detections(candidates, self.test_nms_thresh, self.max_detections_per_image)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """As published, see :func:`decode_best_anchors`."""
        return decode_best_anchors(
            self.box2box_transform,
            anchors,
            pred_scores,
            pred_deltas,
            score_thresh=score_thresh,
            topk_candidates=topk_candidates,
            image_size=image_size,
            clip_size=image_size,
        )
