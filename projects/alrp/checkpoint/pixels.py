"""Whether a model gives pretrained weights the pixels that they were trained on."""

from __future__ import annotations

from typing import NamedTuple
import torch
from torch import nn


class _Pixels(NamedTuple):
    """Order of the channels, and the keys that normalise them."""

    wanted: str
    is_rgb: bool
    is_scaled: bool


# Parts of addresses. The weights of each have one mean, which falls from red to blue.
_PIXELS = {
    "ImageNetPretrained/MSRA/": _Pixels(
        "INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [103.53, 116.28, 123.675] and MODEL.PIXEL_STD "
        "[1, 1, 1]",
        is_rgb=False,
        is_scaled=False,
    ),
    "torchvision": _Pixels(
        "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and MODEL.PIXEL_STD "
        "[58.395, 57.12, 57.375]",
        is_rgb=True,
        is_scaled=True,
    ),
}


def other_pixels(model: nn.Module, address: str) -> str:
    """What the weights of an address were trained on, if the model gives them something else.

    Args:
        model: a detector; Detectron2's have ``pixel_mean`` and ``pixel_std``.
        address: of Detectron2's or torchvision's backbones; of others nothing is known.

    Returns:
        str: "" if all is well, or nothing is known.
    """
    mean, std = (getattr(model, name, None) for name in ("pixel_mean", "pixel_std"))
    is_address = address.startswith("torchvision://") or "ImageNetPretrained/" in address
    pixels = next((p for part, p in _PIXELS.items() if is_address and part in address), None)
    if pixels is None or not _has_three(mean) or not _has_three(std):
        return ""
    if mean.max() <= 0:  # of a mapper that normalises images itself
        return ""
    red_first = bool(mean.flatten()[0] > mean.flatten()[2])
    is_scaled = bool((std / mean.max() > 0.02).all())  # whatever white is: 255, or 1
    return "" if (red_first, is_scaled) == (pixels.is_rgb, pixels.is_scaled) else pixels.wanted


def _has_three(values: object) -> bool:
    return torch.is_tensor(values) and values.numel() == 3 and not values.is_meta
