"""RetinaNet with RS Loss and ATSS on ResNet-50, as published: three octaves of anchors."""

from detectron2.config import LazyCall as L

from alrp.modeling import ATSSHead, IterationBalance, RSHeadLosses

from .alrp_retinanet_800 import model

# P6 from P5 instead of C5.
model.backbone.top_block.in_channels = 256
model.backbone.top_block.in_feature = "p5"
model.head._target_ = ATSSHead
model.head.norm = "GN"
model.head_losses = L(RSHeadLosses)(
    num_classes="${..num_classes}", self_balance=L(IterationBalance)()
)
model.test_nms_thresh = 0.6
