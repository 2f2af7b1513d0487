"""Ranking losses for object detection, for any PyTorch project: Detectron2 is not needed.

It needs PyTorch only. On the CPU it also uses numba and NumPy if both are installed, and is then
several times as fast; on a GPU it also uses Triton, and then launches a tenth of the kernels.
"""

from .alrp_loss import ALRPLoss, ALRPLossOutput, alrp_loss
from .ap_loss import APLoss, ap_loss
from .class_targets import class_targets
from .localization import localization_error
from .rs_loss import RSLoss, RSLossOutput, rs_loss
from .self_balance import SelfBalance

__all__ = [
    "ALRPLoss",
    "ALRPLossOutput",
    "APLoss",
    "RSLoss",
    "RSLossOutput",
    "SelfBalance",
    "alrp_loss",
    "ap_loss",
    "class_targets",
    "localization_error",
    "rs_loss",
]
