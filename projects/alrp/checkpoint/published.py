"""State dicts of the published detectors under the names of Detectron2, and back.

Pure functions: tensors are passed through, except that heads with several sizes *and* ratios of
anchors have their channels in another order.
"""

from __future__ import annotations

import re
from typing import Iterator, Mapping
import torch
from torch import Tensor

from ..errors import UserError
from .architecture import (
    ATSS,
    BLOCKS,
    DETECTRON2,
    FASTER_RCNN,
    FOVEABOX,
    PUBLISHED,
    Architecture,
    architecture_of,
)
from .conversion import BACKBONE_PREFIX, OWN_STATE, Conversion, rename, without_prefix
from .resnet import resnet_name

# Anchors of a location: sizes outer and ratios inner in Detectron2, the other way round in
# MMDetection. Entry i is the published place of Detectron2's i-th of 2 sizes x 3 ratios.
ANCHOR_ORDER = (0, 2, 4, 1, 3, 5)

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV = ("weight", "bias")
_COUNTER = ".num_batches_tracked"


def has_published_names(state: Mapping[str, object]) -> bool:
    """Whether the names are MMDetection's, as far as they tell without the rest of the model."""
    return any(re.match(r"(module\.)?backbone\.(conv1|layer1)\.", str(name)) for name in state)


def published_to_detectron2(state: Mapping[str, Tensor]) -> Conversion:
    """Rename the tensors of a published detector for the model that its config builds here.

    Args:
        state: ``state_dict`` of an MMDetection file; a common prefix "module." is taken off.

    Raises:
        UserError: if it is of another detector.
    """
    state = without_prefix(state, "module.")
    if any(name.startswith(BACKBONE_PREFIX) for name in state):
        raise UserError(
            "expected the names of MMDetection or torchvision, but got those of Detectron2 "
            f"({BACKBONE_PREFIX}...): there is nothing to convert; --reverse is the way back."
        )
    architecture = architecture_of(state, PUBLISHED)
    return _convert(state, architecture, name_table(architecture), PUBLISHED, ANCHOR_ORDER)


def detectron2_to_published(state: Mapping[str, Tensor], detector: str | None = None) -> Conversion:
    """The way back; the training state of this project is dropped.

    Args:
        state: Detectron2's names to tensors.
        detector: "RetinaNet" or "FoveaBox", whose names here are the same; by default a FoveaBox
            if there is one box per location.

    Raises:
        UserError: if it is of a detector that the published code does not have.
    """
    if not any(name.startswith(BACKBONE_PREFIX) for name in state):
        raise UserError(
            f"expected Detectron2's names ({BACKBONE_PREFIX}...), but got "
            f"{', '.join(list(state)[:2])}, ...; leave --reverse out to convert to them."
        )
    architecture = architecture_of(state, DETECTRON2, detector)
    table = {new: old for old, new in name_table(architecture).items()}
    inverse = tuple(ANCHOR_ORDER.index(i) for i in range(len(ANCHOR_ORDER)))
    return _convert(state, architecture, table, DETECTRON2, inverse)


def name_table(architecture: Architecture) -> dict[str, str]:
    """Published name -> Detectron2's name of every tensor of a model."""
    return {
        f"{old}.{kind}": f"{new}.{kind}"
        for old, new, kinds in _modules(architecture)
        for kind in kinds
    }


def _convert(state, architecture, table, naming, anchor_order) -> Conversion:
    result = rename(state, table.get, OWN_STATE, architecture)
    if architecture.anchors == len(anchor_order):
        layers = tuple(f"{layer}." for layer in naming.outputs[architecture.detector])
        for old, new in result.names.items():
            if old.startswith(layers):
                result.state[new] = _reorder(state[old], anchor_order)
    # PyTorch fills in counters of batches, which old files have not.
    result.missing.extend(n for n in table if n not in state and not n.endswith(_COUNTER))
    return result


def _reorder(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Channels, which are (anchor, value), with the anchors in another order."""
    per_anchor = tensor.unflatten(0, (len(order), -1))
    return torch.cat([per_anchor[i] for i in order])


def _modules(architecture: Architecture) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Published name, Detectron2's name and kinds of tensors of every module with tensors."""
    yield from _backbone_modules(architecture)
    is_rcnn = architecture.detector == FASTER_RCNN
    for i, level in enumerate((2, 3, 4, 5) if is_rcnn else (3, 4, 5)):
        yield f"neck.lateral_convs.{i}.conv", f"backbone.fpn_lateral{level}", _CONV
        yield f"neck.fpn_convs.{i}.conv", f"backbone.fpn_output{level}", _CONV
    if is_rcnn:
        for old, new in _RCNN_MODULES:
            yield old, new, _CONV
        return
    yield "neck.fpn_convs.3.conv", "backbone.top_block.p6", _CONV
    yield "neck.fpn_convs.4.conv", "backbone.top_block.p7", _CONV
    yield from _dense_head_modules(architecture.detector)


def _dense_head_modules(detector: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    is_atss = detector == ATSS
    step = 3 if is_atss else 2  # a convolution, group norm in ATSS, and ReLU
    for i in range(4):
        for old, new in (("cls_convs", "cls_subnet"), ("reg_convs", "bbox_subnet")):
            kinds = _CONV[:1] if is_atss else _CONV
            yield f"bbox_head.{old}.{i}.conv", f"head.{new}.{step * i}", kinds
            if is_atss:
                yield f"bbox_head.{old}.{i}.gn", f"head.{new}.{step * i + 1}", _CONV
    head = {ATSS: "atss", FOVEABOX: "fovea"}.get(detector, "retina")
    yield f"bbox_head.{head}_cls", "head.cls_score", _CONV
    yield f"bbox_head.{head}_reg", "head.bbox_pred", _CONV
    for i in range(5 if is_atss else 0):
        yield f"bbox_head.scales.{i}", f"head.scales.{i}", ("scale",)


_RCNN_MODULES = (
    ("rpn_head.rpn_conv", "proposal_generator.rpn_head.conv"),
    ("rpn_head.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    ("rpn_head.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    # Both flatten the features of a region as (channel, y, x).
    ("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc1"),
    ("roi_head.bbox_head.shared_fcs.1", "roi_heads.box_head.fc2"),
    ("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score"),
    ("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred"),
)


def _backbone_modules(architecture: Architecture) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The published backbone has torchvision's names, and offsets of its own."""

    def renamed(name: str, kinds: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
        return f"backbone.{name}", f"backbone.bottom_up.{resnet_name(name)}", kinds

    yield renamed("conv1", _CONV[:1])
    yield renamed("bn1", _NORM)
    for stage, num_blocks in enumerate(BLOCKS[architecture.depth], start=1):
        for block in range(num_blocks):
            place = f"layer{stage}.{block}"
            for i in (1, 2, 3):
                yield renamed(f"{place}.conv{i}", _CONV[:1])
                yield renamed(f"{place}.bn{i}", _NORM)
            if architecture.is_deformable and stage > 1:
                _, new, _ = renamed(f"{place}.conv2", _CONV)
                yield f"backbone.{place}.conv2.conv_offset", f"{new}_offset", _CONV
        yield renamed(f"layer{stage}.0.downsample.0", _CONV[:1])
        yield renamed(f"layer{stage}.0.downsample.1", _NORM)
