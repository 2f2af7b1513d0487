"""Stages of ResNeXt-101-64x4d: 64 groups of 4, 8, 16 and 32 channels."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BottleneckBlock, ResNet

stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
        in_channels=64 if i == 0 else 128 * 2**i,
        out_channels=256 * 2**i,
        bottleneck_channels=64 * 4 * 2**i,
        num_groups=64,
        stride_in_1x1=False,
        norm="BN",
    )
    for i, num_blocks in enumerate([3, 4, 23, 3])
]
