"""Cascade R-CNN with RS Loss in the RPN and three box heads on ResNet-50, as published."""

import copy

from detectron2.config import LazyCall as L
from detectron2.modeling.matcher import Matcher

from alrp.modeling import ALRPCascadeROIHeads

from .rs_faster_rcnn import model

# Anchors that reach over the border of their image are ignored.
model.proposal_generator.anchor_boundary_thresh = 0

heads = model.roi_heads
heads._target_ = ALRPCascadeROIHeads
head, predictor = heads.pop("box_head"), heads.pop("box_predictor")
del heads.proposal_matcher
heads.box_heads = [copy.deepcopy(head) for _ in range(3)]
heads.box_predictors = [copy.deepcopy(predictor) for _ in range(3)]
for part, factor in zip(heads.box_predictors, (1, 2, 3)):
    part.cls_agnostic_bbox_reg = True
    part.box2box_transform.weights = [factor * weight for weight in (10.0, 10.0, 5.0, 5.0)]
    part.num_classes = "${...num_classes}"
heads.proposal_matchers = [
    L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
    for iou in (0.5, 0.6, 0.7)
]
