"""Head of ATSS without its centerness."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead


class _Scale(nn.Module):
    """Multiplication by a learnt number, 1 at the start; named as in the published checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class ATSSHead(RetinaNetHead):
    """``RetinaNetHead`` with a learnt factor for the box output of each level.

    As in ATSS (Zhang et al., arXiv:1912.02424), but without centerness, which a loss that sorts by
    IoU does not need. Convolutions with a norm behind them have no bias.
    """

    @configurable
    def __init__(self, *, input_shape: list[ShapeSpec], **kwargs) -> None:
        """
        Args:
            input_shape: of the features, one entry per level.
            kwargs: of :class:`RetinaNetHead`.
        """
        super().__init__(input_shape=input_shape, **kwargs)
        self.scales = nn.ModuleList(_Scale() for _ in input_shape)
        for tower in (self.cls_subnet, self.bbox_subnet):
            for layer, following in zip(tower, tower[1:]):
                if isinstance(layer, nn.Conv2d) and not isinstance(following, nn.ReLU):
                    layer.bias = None

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As the parent."""
        logits, deltas = super().forward(features)
        return logits, [scale(deltas_l) for scale, deltas_l in zip(self.scales, deltas)]
