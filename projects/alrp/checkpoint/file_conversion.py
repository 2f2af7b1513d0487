"""Conversion of checkpoint files, checked against the model that is to load them."""

from __future__ import annotations

import functools
import os
import shlex
from typing import Mapping
import torch
from torch import Tensor

from detectron2.modeling import build_model

from ..config import load_config
from ..errors import UserError
from ..head_nodes import head_node
from .architecture import (
    CLASS_COUNT_KEYS,
    FOVEABOX,
    RETINANET,
    Architecture,
    rows_of,
)
from .conversion import (
    BACKBONE_PREFIX,
    Conversion,
    conversion_report,
    non_finite_tensor,
    shape_differences,
    timm_backbone,
    without_prefix,
)
from .efficientnet_lite import TIMM_MODEL, efficientnet_lite_to_timm, is_efficientnet_lite
from .published import detectron2_to_published, published_to_detectron2
from .resnet import imagenet_to_detectron2, is_torchvision_resnet
from .serialization import read_checkpoint, split_checkpoint, write_checkpoint

# Detectors whose tensors have the same names, by the node of MODEL that their head reads.
_DENSE_DETECTORS = {"RETINANET": RETINANET, "FOVEABOX": FOVEABOX}


def convert_file(
    source: str,
    target: str,
    *,
    config_folder: str,
    config_file: str | None = None,
    reverse: bool = False,
    verbose: bool = False,
) -> str:
    """Convert a published checkpoint, or ImageNet weights, for Detectron2; or the way back.

    Names and shapes are compared with the model of the config. ``target`` is written only if
    every tensor has found its place, and then replaces a file of that name.

    Args:
        source: file to read.
        target: file to write.
        config_folder: of the configs of the published rows.
        config_file: config to compare with; by default the first that fits.
        reverse: from Detectron2's names to MMDetection's.
        verbose: list all names.

    Returns:
        str: what was converted and how to use it.

    Raises:
        UserError: if nothing was written, with the reason.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"source and target are the same file, {source}; name another to write.")
    content = read_checkpoint(source)
    state, beside = split_checkpoint(content, source)
    state = without_prefix(state, "module.")
    result = _convert(state, reverse, config_file)
    lines = [
        f"{source}: {result.architecture or 'a backbone'}",
        conversion_report(result, verbose),
        f"beside the weights: {', '.join(beside) or 'nothing'} ('meta' is kept, all else is not)",
    ]
    reason = _why_unusable(result)
    if reason:
        raise UserError("\n".join([*lines, f"{reason}: {target} was not written."]))
    if reverse and not config_file and result.architecture.detector == FOVEABOX:
        lines.append(
            "one box per location: assumed to be a FoveaBox; --config-file tells it from a "
            "RetinaNet with one anchor"
        )
    configs = _configs(result.architecture, config_folder)
    if config_file or configs:
        loadable = state if reverse else result.state
        lines += _check_against(config_file or configs[0], result.architecture, loadable)
    meta = content.get("meta", {}) if beside else {}
    if reverse:
        write_checkpoint({"meta": meta, "state_dict": result.state}, target)
        return "\n".join([*lines, f"wrote {target}"])
    checkpoint = {"model": result.state, "__author__": "alrp", "matching_heuristics": False}
    write_checkpoint({**checkpoint, "meta": meta}, target)
    return "\n".join([*lines, f"wrote {target}", _advice(result, configs, config_file, target)])


def _convert(state: Mapping[str, Tensor], reverse: bool, config_file: str | None) -> Conversion:
    """The conversion for what the names say that a state dict is."""
    if reverse:
        cfg = load_config(config_file) if config_file else None
        detector = _DENSE_DETECTORS.get(head_node(cfg)) if cfg else None
        return detectron2_to_published(state, detector)
    if is_efficientnet_lite(state):
        return efficientnet_lite_to_timm(state)
    backbone = without_prefix(state, "backbone.")
    if is_torchvision_resnet(backbone):
        return imagenet_to_detectron2(backbone)
    return published_to_detectron2(state)


def _why_unusable(result: Conversion) -> str:
    """Why no model could load the outcome of a conversion; empty if one could."""
    if result.leftovers or result.missing:
        return "tensors are left over or missing"
    name = non_finite_tensor(result.state)
    if name:
        return f"tensor {name} holds NaN or Inf, as the training that wrote it had diverged"
    return ""


def _configs(architecture: Architecture | None, folder: str) -> list[str]:
    """Configs of the published rows with an architecture."""
    rows = rows_of(architecture) if architecture else []
    return [os.path.join(folder, f"{row}.yaml") for row in rows]


def _check_against(
    config_file: str, architecture: Architecture | None, state: Mapping[str, Tensor]
) -> list[str]:
    """What to say of the number of classes; UserError if the model cannot load the state dict."""
    override = _class_override(config_file, architecture) if architecture else []
    prefix = "" if architecture else BACKBONE_PREFIX
    model = _model_state(config_file, override)
    if not architecture:
        state = timm_backbone(state, model) or state
    differences = shape_differences(state, model, prefix)
    if differences:
        more = f"\n  and {len(differences) - 20} more" if len(differences) > 20 else ""
        raise UserError(
            f"the checkpoint does not fit the model of {config_file}, so nothing was written; use "
            f"the config it was trained with:\n  " + "\n  ".join(differences[:20]) + more
        )
    lines = [f"all names and shapes are those of the model of {config_file}"]
    if override:
        lines.append(f"it has {override[1]} classes, unlike that config: set {' '.join(override)}")
    return lines


def _class_override(config_file: str, architecture: Architecture) -> list[str]:
    """KEY and VALUE that give a config the classes of a checkpoint; empty if it has them."""
    key, cfg = CLASS_COUNT_KEYS[architecture.detector], load_config(config_file)
    if functools.reduce(getattr, key.split("."), cfg) == architecture.num_classes:
        return []
    return [key, str(architecture.num_classes)]


def _model_state(config_file: str, overrides: list[str]) -> dict[str, Tensor]:
    """State dict of the model of a config, without memory for its values."""
    cfg = load_config(config_file, ["MODEL.DEVICE", "meta", *overrides])
    with torch.device("meta"):
        return build_model(cfg).state_dict()


def _advice(result: Conversion, configs: list[str], config_file: str | None, target: str) -> str:
    """How to use a converted file."""
    if not result.architecture and "conv_stem.weight" in result.state:  # timm's name
        return (
            f"to train from it: MODEL.BACKBONE.NAME build_timm_fpn_backbone, MODEL.TIMM.MODEL_NAME "
            f"{TIMM_MODEL}, MODEL.WEIGHTS {target}, with RGB images, MODEL.PIXEL_MEAN [127, 127, "
            "127] and MODEL.PIXEL_STD [128, 128, 128]"
        )
    if result.architecture is None:
        return f"to train from it: MODEL.WEIGHTS {target}, with any config of this backbone"
    lines = []
    if not config_file and not configs:
        return (
            "no published config has this architecture: pass your own with --config-file to check "
            "the shapes, and evaluate with it"
        )
    if not config_file and len(configs) > 1:
        lines = ["these configs have this model; evaluate with the one of its training:"]
        lines += [f"  {config}" for config in configs]
    config = config_file or configs[0]
    override = shlex.join(["MODEL.WEIGHTS", target, *_class_override(config, result.architecture)])
    command = f"python train_net.py --config-file {shlex.quote(config)} --eval-only {override}"
    return "\n".join([*lines, "to evaluate it:", f"  {command}"])
