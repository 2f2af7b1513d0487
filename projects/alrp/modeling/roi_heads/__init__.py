"""Heads on regions of interest."""

from .all_proposals import AllProposals
from .alrp_cascade_rcnn import ALRPCascadeROIHeads
from .alrp_fast_rcnn import ALRPFastRCNNOutputLayers, ALRPROIHeads
from .box_head import XavierConvFCHead
from .dice_mask_head import DiceMaskHead, dice_losses

__all__ = [
    "ALRPCascadeROIHeads",
    "ALRPFastRCNNOutputLayers",
    "ALRPROIHeads",
    "AllProposals",
    "DiceMaskHead",
    "XavierConvFCHead",
    "dice_losses",
]
