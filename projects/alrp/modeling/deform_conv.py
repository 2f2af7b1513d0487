"""Deformable convolution in residual networks, without Detectron2's compiled operators.

Names and shapes in the state dict are those of Detectron2's ``DeformBottleneckBlock``.
"""

from __future__ import annotations

from typing import Sequence
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone import BottleneckBlock, ResNet

from ..errors import UserError


class DeformConv2d(Conv2d):
    """Deformable convolution (arXiv:1703.06211), modulated (arXiv:1811.11168) if given a mask.

    The constructor is that of Detectron2's ``Conv2d``.
    """

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sample ``x`` at displaced positions, bilinearly and 0 outside, and convolve.

        Args:
            x: (N, C, H, W).
            offset: (N, G * 2 * kh * kw, Ho, Wo) pixels of ``x``, as (dy, dx) of each tap; G groups
                of channels are displaced on their own.
            mask: (N, G * kh * kw, Ho, Wo), factor of each sample; None for 1.

        Returns:
            Tensor: (N, C', Ho, Wo).
        """
        x = deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class DeformableBottleneckBlock(CNNBlockBase):
    """A bottleneck block whose 3x3 convolution is deformable, made from a plain block.

    Offsets and masks come from a 3x3 convolution that starts at 0, so that all positions are
    undisplaced and, if modulated, all masks are 0.5.

    Args:
        block: plain block, whose layers and parameters become part of this one.
        modulated: predict masks as well.
        num_groups: groups of channels with offsets of their own.
    """

    def __init__(
        self, block: BottleneckBlock, *, modulated: bool = True, num_groups: int = 1
    ) -> None:
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.modulated = modulated
        plain = block.conv2
        options = {key: getattr(plain, key) for key in ("stride", "padding", "dilation")}
        kernel_area = plain.kernel_size[0] * plain.kernel_size[1]
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        self.conv2_offset = Conv2d(
            plain.in_channels,
            (3 if modulated else 2) * kernel_area * num_groups,
            kernel_size=plain.kernel_size,
            **options,
        )
        self.conv2 = DeformConv2d(
            plain.in_channels,
            plain.out_channels,
            kernel_size=plain.kernel_size,
            groups=plain.groups,
            bias=False,
            norm=plain.norm,
            **options,
        )
        self.conv2.weight = plain.weight
        self.conv3 = block.conv3
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)
        if not plain.weight.requires_grad:
            self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """As Detectron2's ``DeformBottleneckBlock``: (N, C, H, W) to (N, C', Ho, Wo)."""
        out = F.relu_(self.conv1(x))
        offset, mask = self.conv2_offset(out), None
        if self.modulated:
            num_offsets = offset.shape[1] // 3 * 2
            offset, mask = offset[:, :num_offsets], offset[:, num_offsets:].sigmoid()
        out = F.relu_(self.conv2(out, offset, mask))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.conv3(out) + shortcut)


def make_deformable(
    resnet: ResNet, on_per_stage: Sequence[bool], *, modulated: bool = True, num_groups: int = 1
) -> ResNet:
    """Replace the bottleneck blocks of some stages by deformable ones.

    Args:
        resnet: changed in place.
        on_per_stage: for res2, res3, ...; further stages stay plain.
        modulated, num_groups: of :class:`DeformableBottleneckBlock`.

    Returns:
        ResNet: ``resnet``.

    Raises:
        UserError: if a stage has other blocks.
    """
    for stage, is_on in zip(resnet.stages, on_per_stage):
        for i, block in enumerate(stage) if is_on else ():
            if not isinstance(block, BottleneckBlock):
                raise UserError(
                    "on_per_stage (MODEL.RESNETS.DEFORM_ON_PER_STAGE): deformable convolution "
                    f"needs bottleneck blocks, but the stage has {type(block).__name__}; use a "
                    "ResNet of depth 50 or more, or leave the stage plain."
                )
            stage[i] = DeformableBottleneckBlock(block, modulated=modulated, num_groups=num_groups)
    return resnet
