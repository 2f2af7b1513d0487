"""ImageNet weights of torchvision (also open-mmlab's) as the backbone of a detector."""

from __future__ import annotations

import re
from typing import Mapping
import torch
from torch import Tensor
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ..errors import UserError
from .conversion import BACKBONE_PREFIX, Conversion, rename

# torchvision's module -> Detectron2's, below "backbone.bottom_up.".
# Groups: stage (torchvision counts from 1, Detectron2 from 2), block, convolution.
_RESNET_NAMES = (
    (r"conv1", "stem.conv1"),
    (r"bn1", "stem.conv1.norm"),
    (r"layer([1-4])\.(\d+)\.conv([1-3])", "res{stage}.{block}.conv{conv}"),
    (r"layer([1-4])\.(\d+)\.bn([1-3])", "res{stage}.{block}.conv{conv}.norm"),
    (r"layer([1-4])\.(\d+)\.downsample\.0", "res{stage}.{block}.shortcut"),
    (r"layer([1-4])\.(\d+)\.downsample\.1", "res{stage}.{block}.shortcut.norm"),
)
_TENSOR = r"(weight|bias|running_mean|running_var)"
# The classifier, and counters that batch norm with stored statistics does not use.
_DROPPED = re.compile(r"^fc\.(weight|bias)$|\.num_batches_tracked$")
# Blocks of each stage, with two convolutions and with three, of the depths that Detectron2 builds.
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of torchvision's ResNets and ResNeXts (also open-mmlab's)."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(state)


def torchvision_to_detectron2(state: Mapping[str, Tensor]) -> Conversion:
    """Rename the tensors of a torchvision ResNet or ResNeXt for Detectron2's ``ResNet``.

    Args:
        state: ``state_dict()`` of any depth, groups and width; values are passed through.

    Returns:
        Conversion: names start with "stem." or "res"; the caller adds the prefix of its backbone.
    """

    def new_name(name: str) -> str | None:
        module, _, kind = name.rpartition(".")
        new_module = resnet_name(module) if re.fullmatch(_TENSOR, kind) else None
        return new_module and f"{new_module}.{kind}"

    return rename(state, new_name, _DROPPED)


def resnet_name(module: str) -> str | None:
    """Detectron2's name of a module of torchvision's ResNets; None if there is no rule for it."""
    for pattern, template in _RESNET_NAMES:
        match = re.fullmatch(pattern, module)
        if match:
            numbers = dict(zip(("stage", "block", "conv"), map(int, match.groups())))
            if numbers:
                numbers["stage"] += 1
            return template.format(**numbers)
    return None


def imagenet_to_detectron2(state: Mapping[str, Tensor]) -> Conversion:
    """A torchvision ResNet or ResNeXt (also open-mmlab's) as the backbone of a detector.

    Names and shapes are compared with those of torchvision's network of the same depth, groups and
    width; the classifier and the counters of batches may be missing.

    Args:
        state: names as in torchvision; values are passed through.

    Raises:
        UserError: if the depth is none of Detectron2's, or a tensor has another shape.
    """
    expected = _network(state).state_dict()
    needed = torchvision_to_detectron2(expected).names
    used = torchvision_to_detectron2({n: t for n, t in state.items() if n in expected})
    misshapen = [
        f"{n} is {tuple(state[n].shape)} and should be {tuple(expected[n].shape)}"
        for n in used.names
        if state[n].shape != expected[n].shape
    ]
    if misshapen:
        raise UserError(
            "expected the shapes of torchvision's ResNets, but got others; use a checkpoint that "
            "no one has changed:\n  " + "\n  ".join(misshapen[:20])
        )
    return used._replace(
        state={BACKBONE_PREFIX + name: tensor for name, tensor in used.state.items()},
        names={old: BACKBONE_PREFIX + new for old, new in used.names.items()},
        leftovers=[n for n in state if n not in expected],
        missing=[n for n in needed if n not in state],
    )


def _network(state: Mapping[str, Tensor]) -> ResNet:
    """torchvision's network that a state dict belongs to, on the meta device.

    Single tensors may be missing.
    """
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
