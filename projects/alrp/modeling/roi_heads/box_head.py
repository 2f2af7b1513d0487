"""Box head of the published Faster R-CNNs."""

from __future__ import annotations

from torch import nn

from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead


@ROI_BOX_HEAD_REGISTRY.register()
class XavierConvFCHead(FastRCNNConvFCHead):
    """``FastRCNNConvFCHead`` with the published initialisation of its linear layers.

    What Detectron2 calls Xavier's looks at the number of inputs only.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for layer in self.fcs:
            nn.init.xavier_uniform_(layer.weight)
