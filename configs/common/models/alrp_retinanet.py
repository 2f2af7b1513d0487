"""RetinaNet with aLRP Loss and ATSS on ResNet-50, as published at 500 pixels."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPHeadLosses,
    ALRPRetinaNet,
    ATSSMatcher,
    BoxDeltaTransform,
    LastLevelP6P7NoReLU,
    PublishedFPN,
)

constants = model_zoo.get_config("common/data/constants.py").constants
model = model_zoo.get_config("common/models/retinanet.py").model

model._target_ = ALRPRetinaNet
model.input_format = "RGB"
model.pixel_mean = constants.imagenet_rgb256_mean
model.pixel_std = constants.imagenet_rgb256_std

# Batch norm with stored statistics, whose scale and shift are trained.
model.backbone._target_ = PublishedFPN
model.backbone.norm_eval = True
model.backbone.top_block._target_ = LastLevelP6P7NoReLU
model.backbone.bottom_up.stem.norm = "BN"
model.backbone.bottom_up.stages.norm = "BN"
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.freeze_at = 2

# Base size 4 * stride, two octaves, square.
model.anchor_generator.sizes = [[z, z * 2 ** (1 / 2)] for z in (32, 64, 128, 256, 512)]
model.anchor_generator.aspect_ratios = [1.0]
model.head.num_anchors = 2

model.anchor_matcher = L(ATSSMatcher)(topk=9)
model.box2box_transform = L(BoxDeltaTransform)(weights=[10.0, 10.0, 5.0, 5.0])
model.head_losses = L(ALRPHeadLosses)(
    num_classes="${..num_classes}",
    delta=1.0,
    tau=0.5,
    # None: one epoch of the training set.
    self_balance=L(SelfBalance)(period=None, init_weight=50.0),
)
