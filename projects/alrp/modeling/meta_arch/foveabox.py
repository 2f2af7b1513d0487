"""FoveaBox, an anchor-free dense detector, with a ranking loss or with focal loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import ImageList, Instances

from ...errors import UserError
from ..box_regression import PointBoxTransform
from ..bridge import HeadLosses, keep_checkpoint_names
from ..dense_inference import best_detections, check_test_options, decode_best_anchors
from ..dense_losses import anchor_losses
from ..detection_thresholds import DetectionThresholds, ShowsDetections
from ..fovea_matcher import FoveaMatcher
from ..head_losses import build_head_losses
from ..micro_batches import MicroBatchedDetector
from ..targets import matched_targets


@META_ARCH_REGISTRY.register()
class FoveaBox(ShowsDetections, MicroBatchedDetector, DenseDetector):
    """FoveaBox (Kong et al., arXiv:1904.03797) as published with aLRP: no deformable alignment.

    Each cell of each level predicts K logits and the four distances from its centre to the sides
    of a box. A cell is handled as an anchor: the square around its centre with the level's base
    edge as side. The head is Detectron2's :class:`RetinaNetHead` with one anchor per location.

    As published, cells on padding are background in training and candidates in inference.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform: PointBoxTransform,
        matcher: FoveaMatcher,
        num_classes: int,
        head_losses: HeadLosses,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.5,
        max_detections_per_image: int = 100,
        score_thresh_predict: float = -1.0,
        calibrated_scores: bool = False,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            backbone, head, head_in_features, pixel_mean, pixel_std: of :class:`DenseDetector`.
            anchor_generator: squares with the base edge of each level as side; their centres are
                those of the cells, so with offset 0.5.
            box2box_transform: encoding of boxes.
            matcher: matching of cells and ground truth, with the strides of the levels.
            num_classes: K.
            head_losses: classification and box losses.
            test_score_thresh: least score of a detection.
            test_topk_candidates: cells per level that NMS sees.
            test_nms_thresh: IoU from which NMS suppresses.
            max_detections_per_image: after NMS.
            score_thresh_predict, calibrated_scores: of :class:`DetectionThresholds`.

        Raises:
            ValueError: if a threshold is outside [0, 1] or one of the numbers below 1.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.matcher = matcher
        self.num_classes = num_classes
        self.head_losses = head_losses
        keep_checkpoint_names(self)
        self.shown = DetectionThresholds(num_classes, score_thresh_predict, calibrated_scores)
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        check_test_options(
            score_thresh=test_score_thresh,
            nms_thresh=test_nms_thresh,
            topk_candidates=test_topk_candidates,
            max_detections=max_detections_per_image,
        )

    @classmethod
    def from_config(cls, cfg):
        fovea = cfg.MODEL.FOVEABOX
        _check_levels(fovea)
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in fovea.IN_FEATURES]
        strides = [shape.stride for shape in shapes]
        return {
            "backbone": backbone,
            "head": RetinaNetHead(
                input_shape=shapes,
                num_classes=fovea.NUM_CLASSES,
                num_anchors=1,
                conv_dims=[shapes[0].channels] * fovea.NUM_CONVS,
                norm=fovea.NORM,
                prior_prob=fovea.PRIOR_PROB,
            ),
            "head_in_features": fovea.IN_FEATURES,
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[edge] for edge in fovea.BASE_EDGES],
                aspect_ratios=[1.0],
                strides=strides,
                offset=0.5,
            ),
            "box2box_transform": PointBoxTransform(),
            "matcher": _build_matcher(fovea, strides),
            "num_classes": fovea.NUM_CLASSES,
            "head_losses": build_head_losses(
                cfg,
                fovea.NUM_CLASSES,
                focal={"alpha": fovea.FOCAL_LOSS_ALPHA, "gamma": fovea.FOCAL_LOSS_GAMMA},
            ),
            "test_score_thresh": fovea.SCORE_THRESH_TEST,
            "test_topk_candidates": fovea.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fovea.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "score_thresh_predict": cfg.MODEL.ALRP.SCORE_THRESH_PREDICT,
            "calibrated_scores": cfg.MODEL.ALRP.CALIBRATED_SCORES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward_training(self, images, features, predictions, gt_instances):
        pred_logits, pred_deltas = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4]
        )
        gt_labels, gt_boxes = self.label_cells([f.shape[-2:] for f in features], gt_instances)
        anchors = self.anchor_generator(features)
        return self.losses(anchors, pred_logits, gt_labels, pred_deltas, gt_boxes)

    @torch.no_grad()
    def label_cells(
        self, grid_sizes: list[tuple[int, int]], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Classes and boxes of all cells.

        Args:
            grid_sizes: height and width of each level, in cells.
            gt_instances: per image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            tuple[list[Tensor], list[Tensor]]: per image the labels (R,), 0..K-1 or K for
            background, and the boxes (R, 4) XYXY pixels, undefined for background.
        """
        gt_boxes = [gt_i.gt_boxes.tensor for gt_i in gt_instances]
        matches = self.matcher.match_batch(gt_boxes, grid_sizes)
        return matched_targets(gt_instances, *matches, self.num_classes)

    def losses(self, anchors, pred_logits, gt_labels, pred_deltas, gt_boxes):
        """See :func:`anchor_losses`: positives are selected before any exponential is taken."""
        return anchor_losses(
            self.head_losses,
            anchors,
            pred_logits,
            gt_labels,
            pred_deltas,
            gt_boxes,
            box2box_transform=self.box2box_transform,
        )

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        pred_logits, pred_deltas = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4]
        )
        anchors = self.anchor_generator(features)
        results = []
        for i, image_size in enumerate(images.image_sizes):
            candidates = self._decode_multi_level_predictions(
                anchors,
                [x[i].sigmoid() for x in pred_logits],
                [x[i] for x in pred_deltas],
                self.test_score_thresh,
                self.test_topk_candidates,
                image_size,
            )
            results.append(
                best_detections(candidates, self.test_nms_thresh, self.max_detections_per_image)
            )
        return results

    def _decode_multi_level_predictions(
        self, anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
    ) -> Instances:
        """See :func:`decode_best_anchors`; as published, boxes end one pixel before the border."""
        return decode_best_anchors(
            self.box2box_transform,
            anchors,
            pred_scores,
            pred_deltas,
            score_thresh=score_thresh,
            topk_candidates=topk_candidates,
            image_size=image_size,
            clip_size=(image_size[0] - 1, image_size[1] - 1),
        )


def _check_levels(fovea) -> None:
    """One base edge and one scale range per feature, as a user may have changed one of them."""
    for key in ("BASE_EDGES", "SCALE_RANGES"):
        if len(fovea[key]) != len(fovea.IN_FEATURES):
            raise UserError(
                f"MODEL.FOVEABOX.{key} must have one entry for each of the "
                f"{len(fovea.IN_FEATURES)} features {list(fovea.IN_FEATURES)} of "
                f"MODEL.FOVEABOX.IN_FEATURES, but is {fovea[key]}."
            )


def _build_matcher(fovea, strides: list[int]) -> FoveaMatcher:
    try:
        return FoveaMatcher(strides, fovea.SCALE_RANGES, fovea.SIGMA)
    except (TypeError, ValueError) as error:
        raise UserError(
            "MODEL.FOVEABOX.SCALE_RANGES must be pairs [least, greatest] in pixels, such as "
            "[[1.0, 64.0]] for one level, and MODEL.FOVEABOX.SIGMA in (0, 1], but they are "
            f"{fovea.SCALE_RANGES} and {fovea.SIGMA}: {error}"
        ) from error
