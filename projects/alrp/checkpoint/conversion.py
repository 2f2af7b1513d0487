"""State dicts of others under the names of Detectron2. Pure functions; nothing is copied."""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple
from torch import Tensor


class Conversion(NamedTuple):
    """Outcome of a conversion.

    Attributes:
        state: tensors under their new names.
        dropped: old names that have no place in a detector, by rule.
        leftovers: old names that no rule covers.
    """

    state: dict[str, Tensor]
    dropped: list[str]
    leftovers: list[str]


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
_DROPPED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")
# In the backbone of a detector but not in these: offsets of deformable convolution, and counters.
STARTS_AT_ZERO = re.compile(r"\.conv2_offset\.|\.num_batches_tracked$")


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of torchvision's ResNets and ResNeXts (also open-mmlab's)."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"} <= set(state)


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """The state dict with a prefix taken off, if all names have it; else as it is."""
    if not all(name.startswith(prefix) for name in state):
        return state
    return {name[len(prefix) :]: tensor for name, tensor in state.items()}


def torchvision_to_detectron2(state: Mapping[str, Tensor]) -> Conversion:
    """Rename the tensors of a torchvision ResNet or ResNeXt for Detectron2's ``ResNet``.

    Args:
        state: ``state_dict()`` of any depth, groups and width; values are passed through.

    Returns:
        Conversion: names start with "stem." or "res"; the caller adds the prefix of its backbone.
    """
    conversion = Conversion({}, [], [])
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        new_module = resnet_name(module) if re.fullmatch(_TENSOR, kind) else None
        if new_module is not None:
            conversion.state[f"{new_module}.{kind}"] = tensor
        elif _DROPPED.fullmatch(name):
            conversion.dropped.append(name)
        else:
            conversion.leftovers.append(name)
    return conversion


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
