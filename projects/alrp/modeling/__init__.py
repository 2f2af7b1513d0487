"""Detectron2 models that train with ranking losses; importing this registers them."""

from .anchors import anchor_losses
from .backbone import (
    LastLevelP6P7NoReLU,
    PublishedFPN,
    build_alrp_rcnn_resnet_fpn_backbone,
    build_alrp_resnet_fpn_backbone,
)
from .box_regression import BoxDeltaTransform, PointBoxTransform, decode_in_anchor_frame
from .deform_conv import DeformableBottleneckBlock, DeformConv2d, make_deformable
from .fovea_matcher import FoveaMatcher
from .matcher import ATSSMatcher, MaxIoUMatcher, build_matcher
from .meta_arch import ALRPRetinaNet, FoveaBox
from .proposal_generator import ALRPRPN, PriorRPNHead
from .ranking_losses import (
    ALRPLosses,
    APLosses,
    FocalLosses,
    HeadLosses,
    RankingLosses,
    build_ranking_losses,
)
from .roi_heads import ALRPFastRCNNOutputLayers, ALRPROIHeads, XavierConvFCHead

__all__ = [
    "ALRPFastRCNNOutputLayers",
    "ALRPLosses",
    "ALRPROIHeads",
    "ALRPRPN",
    "ALRPRetinaNet",
    "APLosses",
    "ATSSMatcher",
    "BoxDeltaTransform",
    "DeformConv2d",
    "DeformableBottleneckBlock",
    "FocalLosses",
    "FoveaBox",
    "FoveaMatcher",
    "LastLevelP6P7NoReLU",
    "MaxIoUMatcher",
    "PointBoxTransform",
    "PriorRPNHead",
    "HeadLosses",
    "RankingLosses",
    "PublishedFPN",
    "XavierConvFCHead",
    "anchor_losses",
    "build_alrp_rcnn_resnet_fpn_backbone",
    "build_alrp_resnet_fpn_backbone",
    "build_matcher",
    "build_ranking_losses",
    "decode_in_anchor_frame",
    "make_deformable",
]
