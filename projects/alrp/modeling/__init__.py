"""Detectron2 models that train with ranking losses; importing this registers them."""

from .backbone import LastLevelP6P7NoReLU, RetinaNetFPN, build_alrp_resnet_fpn_backbone
from .box_regression import BoxDeltaTransform, decode_positives
from .deform_conv import DeformableBottleneckBlock, DeformConv2d, make_deformable
from .matcher import ATSSMatcher, MaxIoUMatcher, build_matcher
from .meta_arch import ALRPRetinaNet
from .ranking_losses import ALRPLosses, APLosses, RankingLosses, build_ranking_losses

__all__ = [
    "ALRPLosses",
    "ALRPRetinaNet",
    "APLosses",
    "ATSSMatcher",
    "BoxDeltaTransform",
    "DeformConv2d",
    "DeformableBottleneckBlock",
    "LastLevelP6P7NoReLU",
    "MaxIoUMatcher",
    "RankingLosses",
    "RetinaNetFPN",
    "build_alrp_resnet_fpn_backbone",
    "build_matcher",
    "build_ranking_losses",
    "decode_positives",
    "make_deformable",
]
