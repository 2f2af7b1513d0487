"""Ranking losses for object detection; nothing here needs Detectron2."""

from .alrp_loss import ALRPLoss, ALRPLossOutput, alrp_loss
from .ap_loss import APLoss, ap_loss
from .localization import localization_error
from .self_balance import SelfBalance

__all__ = [
    "ALRPLoss",
    "ALRPLossOutput",
    "APLoss",
    "SelfBalance",
    "alrp_loss",
    "ap_loss",
    "localization_error",
]
