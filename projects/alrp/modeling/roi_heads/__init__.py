"""Heads on regions of interest."""

from .alrp_fast_rcnn import ALRPFastRCNNOutputLayers, ALRPROIHeads
from .box_head import XavierConvFCHead

__all__ = ["ALRPFastRCNNOutputLayers", "ALRPROIHeads", "XavierConvFCHead"]
