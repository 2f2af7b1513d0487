"""Detectron2 models that train with ranking losses; importing this registers them."""

from .backbone import (
    LastLevelP6P7NoReLU,
    PublishedFPN,
    build_alrp_rcnn_resnet_fpn_backbone,
    build_alrp_resnet_fpn_backbone,
)
from .box_regression import BoxDeltaTransform, PointBoxTransform, decode_in_anchor_frame
from .deform_conv import DeformableBottleneckBlock, DeformConv2d, make_deformable
from .dense_losses import anchor_losses
from .fovea_matcher import FoveaMatcher
from .head_losses import (
    ALRPHeadLosses,
    APHeadLosses,
    FocalHeadLosses,
    HeadLosses,
    RankingHeadLosses,
    build_head_losses,
)
from .matcher import ATSSMatcher, MaxIoUMatcher, build_matcher
from .meta_arch import ALRPRetinaNet, FoveaBox
from .proposal_generator import ALRPRPN, PriorRPNHead
from .roi_heads import ALRPFastRCNNOutputLayers, ALRPROIHeads, XavierConvFCHead

__all__ = [
    "ALRPFastRCNNOutputLayers",
    "ALRPHeadLosses",
    "ALRPROIHeads",
    "ALRPRPN",
    "ALRPRetinaNet",
    "APHeadLosses",
    "ATSSMatcher",
    "BoxDeltaTransform",
    "DeformConv2d",
    "DeformableBottleneckBlock",
    "FocalHeadLosses",
    "FoveaBox",
    "FoveaMatcher",
    "LastLevelP6P7NoReLU",
    "MaxIoUMatcher",
    "PointBoxTransform",
    "PriorRPNHead",
    "HeadLosses",
    "RankingHeadLosses",
    "PublishedFPN",
    "XavierConvFCHead",
    "anchor_losses",
    "build_alrp_rcnn_resnet_fpn_backbone",
    "build_alrp_resnet_fpn_backbone",
    "build_matcher",
    "build_head_losses",
    "decode_in_anchor_frame",
    "make_deformable",
]
