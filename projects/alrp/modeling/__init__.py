"""Detectron2 models that train with ranking losses; importing this registers them."""

from .atss_head import ATSSHead
from .backbone import (
    LastLevelP6P7NoReLU,
    PublishedFPN,
    build_alrp_rcnn_resnet_fpn_backbone,
    build_alrp_resnet_fpn_backbone,
    build_atss_resnet_fpn_backbone,
)
from .box_losses import BoxLoss, GIoULoss, IterationBalance, SmoothL1Loss, WeightedGIoULoss
from .box_regression import BoxDeltaTransform, PointBoxTransform, decode_in_anchor_frame
from .bridge import HeadLosses, RankingHeadLosses
from .deform_conv import DeformableBottleneckBlock, DeformConv2d, make_deformable
from .dense_losses import anchor_losses
from .detection_thresholds import DetectionThresholds
from .fovea_matcher import FoveaMatcher
from .head_losses import (
    ALRPHeadLosses,
    APHeadLosses,
    FocalHeadLosses,
    RSHeadLosses,
    build_head_losses,
)
from .matcher import ATSSMatcher, MaxIoUMatcher, build_matcher
from .meta_arch import ALRPRetinaNet, FoveaBox, ThresholdedRCNN
from .proposal_generator import ALRPRPN, PriorRPNHead
from .roi_heads import (
    AllProposals,
    ALRPCascadeROIHeads,
    ALRPFastRCNNOutputLayers,
    ALRPROIHeads,
    DiceMaskHead,
    XavierConvFCHead,
    dice_losses,
)
from .targets import match_anchors, matched_boxes, matched_classes, matched_targets
from .test_time_augmentation import DenseDetectorWithTTA, with_test_time_augmentation
from .timm_backbone import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "ALRPCascadeROIHeads",
    "ALRPFastRCNNOutputLayers",
    "ALRPHeadLosses",
    "ALRPROIHeads",
    "ALRPRPN",
    "ALRPRetinaNet",
    "APHeadLosses",
    "ATSSHead",
    "ATSSMatcher",
    "AllProposals",
    "BoxDeltaTransform",
    "BoxLoss",
    "DeformConv2d",
    "DeformableBottleneckBlock",
    "DenseDetectorWithTTA",
    "DetectionThresholds",
    "DiceMaskHead",
    "FocalHeadLosses",
    "FoveaBox",
    "FoveaMatcher",
    "GIoULoss",
    "HeadLosses",
    "IterationBalance",
    "LastLevelP6P7NoReLU",
    "MaxIoUMatcher",
    "PointBoxTransform",
    "PriorRPNHead",
    "PublishedFPN",
    "RSHeadLosses",
    "RankingHeadLosses",
    "SmoothL1Loss",
    "ThresholdedRCNN",
    "TimmBackbone",
    "WeightedGIoULoss",
    "XavierConvFCHead",
    "anchor_losses",
    "build_alrp_rcnn_resnet_fpn_backbone",
    "build_alrp_resnet_fpn_backbone",
    "build_atss_resnet_fpn_backbone",
    "build_head_losses",
    "build_matcher",
    "build_timm_fpn_backbone",
    "decode_in_anchor_frame",
    "dice_losses",
    "make_deformable",
    "match_anchors",
    "matched_boxes",
    "matched_classes",
    "matched_targets",
    "with_test_time_augmentation",
]
