"""Faster R-CNN with aLRP Loss in the RPN and the box head on ResNet-50, as published."""

from detectron2.config import LazyCall as L

from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPRPN,
    ALRPFastRCNNOutputLayers,
    ALRPHeadLosses,
    ALRPROIHeads,
    BoxDeltaTransform,
    MaxIoUMatcher,
    PriorRPNHead,
)

from .faster_rcnn import model

rpn, heads = model.proposal_generator, model.roi_heads
for part in (rpn, heads):  # nothing is sampled
    del part.batch_size_per_image
    del part.positive_fraction

rpn._target_ = ALRPRPN
rpn.head._target_ = PriorRPNHead
rpn.anchor_matcher = L(MaxIoUMatcher)(pos_threshold=0.7, neg_threshold=0.3, min_pos_iou=0.3)
rpn.box2box_transform = L(BoxDeltaTransform)(weights=[10.0, 10.0, 5.0, 5.0])
# On both losses.
rpn.loss_weight = 0.2
rpn.head_losses = L(ALRPHeadLosses)(
    num_classes=1,
    delta=1.0,
    tau=0.7,
    # None: one epoch of the training set.
    self_balance=L(SelfBalance)(period=None, init_weight=50.0),
    prefix="alrp_rpn",
)

heads._target_ = ALRPROIHeads
heads.proposal_append_gt = False
heads.box_predictor._target_ = ALRPFastRCNNOutputLayers
heads.box_predictor.box2box_transform = L(BoxDeltaTransform)(weights=[10.0, 10.0, 5.0, 5.0])
heads.box_predictor.head_losses = L(ALRPHeadLosses)(
    num_classes="${..num_classes}",
    delta=1.0,
    tau=0.5,
    self_balance=L(SelfBalance)(period=None, init_weight=50.0),
)
