"""ImageNet weights as the backbone of a detector, complete or refused."""

from __future__ import annotations

import re
from typing import Mapping
import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ..errors import UserError
from .conversion import torchvision_to_detectron2
from .published import BACKBONE_PREFIX, PublishedConversion

# Blocks of each stage, with two convolutions and with three, of the depths that Detectron2 builds.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet_to_detectron2(state: Mapping[str, Tensor]) -> PublishedConversion:
    """A torchvision ResNet or ResNeXt (also open-mmlab's) as the backbone of a detector.

    Names and shapes are compared with those of torchvision's network of the same depth, groups and
    width; the classifier and the counters of batches may be missing.

    Args:
        state: names as in torchvision; values are passed through.

    Raises:
        UserError: if the depth is none of Detectron2's, or a tensor has another shape.
    """
    expected = _network(state).state_dict()
    used = torchvision_to_detectron2({n: t for n, t in state.items() if n in expected})
    optional = set(torchvision_to_detectron2(expected).dropped)
    renamed = {BACKBONE_PREFIX + name: tensor for name, tensor in used.state.items()}
    old_names = [n for n in state if n in expected and n not in optional]
    misshapen = [
        f"{n} is {tuple(state[n].shape)} and should be {tuple(expected[n].shape)}"
        for n in old_names
        if state[n].shape != expected[n].shape
    ]
    if misshapen:
        raise UserError(
            "expected the shapes of torchvision's ResNets, but got others; use a checkpoint that "
            "no one has changed:\n  " + "\n  ".join(misshapen[:20])
        )
    return PublishedConversion(
        architecture=None,
        state=renamed,
        names=dict(zip(old_names, renamed)),
        dropped=used.dropped,
        leftovers=[n for n in state if n not in expected],
        missing=[n for n in expected if n not in state and n not in optional],
    )


def _network(state: Mapping[str, Tensor]) -> ResNet:
    """The network, without values, of which a state dict is; single tensors may be missing."""
    num_blocks, has_conv3, conv2 = [0] * 4, False, None
    for name, tensor in state.items():
        match = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", name)
        if match:
            stage, block = int(match[1]) - 1, int(match[2])
            num_blocks[stage] = max(num_blocks[stage], block + 1)
            has_conv3 = has_conv3 or match[3] == "conv3.weight"
            if conv2 is None and match[3] == "conv2.weight":
                conv2 = stage, tuple(tensor.shape)
    depths = _BOTTLENECK if has_conv3 else _BASIC
    if tuple(num_blocks) not in depths.values() or conv2 is None or len(conv2[1]) != 4:
        choices = ", ".join(f"{list(b)} (ResNet-{d})" for d, b in depths.items())
        raise UserError(
            f"expected an ImageNet backbone with blocks {choices}, but got {num_blocks}; use a "
            "complete checkpoint of one of these depths."
        )
    options = {}
    if has_conv3:
        stage, (channels, per_group, *_) = conv2
        options["groups"] = max(1, channels // max(1, per_group))
        options["width_per_group"] = max(1, channels // options["groups"] // 2**stage)
    with torch.device("meta"):
        return ResNet(Bottleneck if has_conv3 else BasicBlock, num_blocks, **options)
