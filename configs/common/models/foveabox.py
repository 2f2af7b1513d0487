"""FoveaBox with aLRP Loss on ResNet-50, as published at 500 pixels."""

from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from alrp.modeling import FoveaBox, FoveaMatcher, PointBoxTransform

from .alrp_retinanet import model as retinanet

model = L(FoveaBox)(
    backbone=retinanet.backbone,
    head=retinanet.head,
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    # The cells, as squares with the base edge of their level as side.
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[16.0], [32.0], [64.0], [128.0], [256.0]],
        aspect_ratios=[1.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.5,
    ),
    box2box_transform=L(PointBoxTransform)(),
    matcher=L(FoveaMatcher)(
        strides="${..anchor_generator.strides}",
        # Least and greatest square root of an object's area on each level, in pixels.
        scale_ranges=[[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]],
        sigma=0.4,
    ),
    num_classes=80,
    head_losses=retinanet.head_losses,
    pixel_mean=retinanet.pixel_mean,
    pixel_std=retinanet.pixel_std,
)
model.head.num_anchors = 1
