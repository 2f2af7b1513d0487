"""Detectron2 models that train with ranking losses; importing this registers them."""

from .backbone import RetinaNetFPN, build_alrp_resnet_fpn_backbone
from .box_regression import BoxDeltaTransform, decode_positives
from .matcher import ATSSMatcher, MaxIoUMatcher, build_matcher
from .meta_arch import ALRPRetinaNet
from .ranking_losses import RankingLosses

__all__ = [
    "ALRPRetinaNet",
    "ATSSMatcher",
    "BoxDeltaTransform",
    "MaxIoUMatcher",
    "RankingLosses",
    "RetinaNetFPN",
    "build_alrp_resnet_fpn_backbone",
    "build_matcher",
    "decode_positives",
]
