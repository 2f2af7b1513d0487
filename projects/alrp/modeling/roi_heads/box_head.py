"""Box head of the published Faster R-CNNs."""

from __future__ import annotations

from torch import nn

from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead


@ROI_BOX_HEAD_REGISTRY.register()
class XavierConvFCHead(FastRCNNConvFCHead):
    """``FastRCNNConvFCHead`` with the published initialisation of its linear layers.

    They are drawn by Xavier's rule, from the numbers of inputs and outputs. Detectron2's
    initialisation of that name reads the number of inputs only.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.fcs:
            nn.init.xavier_uniform_(layer.weight)
