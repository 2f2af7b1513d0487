"""Faster R-CNN with RS Loss in the RPN and the box head on ResNet-50, as published."""

from detectron2.config import LazyCall as L
from detectron2.modeling.proposal_generator import StandardRPNHead

from alrp.modeling import IterationBalance, RSHeadLosses

from .alrp_faster_rcnn import model

rpn, heads = model.proposal_generator, model.roi_heads

rpn.head._target_ = StandardRPNHead
rpn.head_losses = L(RSHeadLosses)(
    num_classes=1, self_balance=L(IterationBalance)(), prefix="alrp_rpn"
)

heads.proposal_append_gt = True
heads.box_predictor.head_losses = L(RSHeadLosses)(
    num_classes="${..num_classes}", self_balance=L(IterationBalance)()
)
# Scores start at 0.5 and stay high.
heads.box_predictor.test_score_thresh = 0.4
