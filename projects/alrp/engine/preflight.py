"""Checks of config and datasets that run before any output folder or worker process is made.

A run that would stop with a puzzling error after minutes of loading, or train on nonsense, is to
stop at once with messages that say where the mistake is and how to mend it.
"""

from __future__ import annotations

import difflib
import logging
from typing import Callable, Iterable
import torch

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ..architectures import head_node, lineage
from ..coco import Finding
from ..data.datasets.coco_check import CocoSummary
from ..data.datasets.coco_format import coco_format_names
from ..data.datasets.dataset_check import check_dataset
from ..errors import UserError
from ..losses.inputs import DELTA_RANGE
from ..losses.localization import check_tau
from ..modeling.matcher import max_iou_matcher

_LOGGER = logging.getLogger(__name__)

# Published learning rates at a total batch of 32 images: by architecture, for a GeneralizedRCNN by
# MODEL.ROI_HEADS.NAME; and by MODEL.ALRP.LOSS_TYPE, or "ce" for cross entropy.
PUBLISHED_BATCH = 32
_PUBLISHED_LR = {
    ("ALRPRetinaNet", "alrp"): 0.008,
    ("ALRPRetinaNet", "ap"): 0.002,
    ("ALRPRetinaNet", "rs"): 0.016,
    ("FoveaBox", "alrp"): 0.008,
    ("FoveaBox", "ap"): 0.002,
    ("FoveaBox", "focal"): 0.02,
    ("ALRPROIHeads", "alrp"): 0.012,
    ("ALRPROIHeads", "rs"): 0.024,
    ("StandardROIHeads", "ce"): 0.04,
}
_LR_TOLERANCE = 4.0

# Of Detectron2's get_norm("GN", ...).
_GN_GROUPS = 32


def check(cfg: CfgNode, *, for_training: bool, world_size: int = 1) -> list[Finding]:
    """Look for mistakes in a config and in the files of its datasets.

    ``register_coco_format(cfg)`` must have been called. In training, DATASETS.TRAIN and
    DATASETS.TEST are checked (the run ends with an evaluation), otherwise DATASETS.TEST only.

    Args:
        cfg: full config.
        for_training: whether the run trains, or only evaluates.
        world_size: total number of processes, one per GPU.

    Returns:
        list[Finding]: empty if all is well.
    """
    findings = _check_names(cfg, for_training)
    train_names = set(cfg.DATASETS.TRAIN) if for_training else set()
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if for_training else list(cfg.DATASETS.TEST)
    summaries = {
        name: check_dataset(name, cfg, name in train_names)
        for name in dict.fromkeys(names)
        if name in DatasetCatalog
    }
    for summary in summaries.values():
        findings += summary.findings
    findings += _check_classes(cfg, {name: s.class_names for name, s in summaries.items()})
    if for_training:
        findings += _check_labelled(cfg, [s for n, s in summaries.items() if n in train_names])
        findings += _check_solver(cfg, world_size) + _check_learning_rate(cfg)
    findings += _check_components(cfg) + _check_ranges(cfg)
    return findings + _check_device(cfg, for_training)


def report(findings: Iterable[Finding]) -> None:
    """Log the warnings; raise one UserError that lists all errors, if there are any."""
    findings = list(findings)
    errors = [_paragraph(finding) for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding.severity == "warning":
            _LOGGER.warning(_paragraph(finding))
    if errors:
        count = "1 mistake was" if len(errors) == 1 else f"{len(errors)} mistakes were"
        raise UserError("\n\n".join([f"{count} found before the start.", *errors]))


def published_learning_rate(cfg: CfgNode) -> float | None:
    """Learning rate published for a model at ``PUBLISHED_BATCH`` images; None if there is none."""
    name, loss = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ALRP.LOSS_TYPE
    if name == "GeneralizedRCNN":
        name = cfg.MODEL.ROI_HEADS.NAME
        loss = "ce" if name == "StandardROIHeads" else loss
    return _PUBLISHED_LR.get((name, loss)) if cfg.SOLVER.OPTIMIZER == "SGD" else None


def _paragraph(finding: Finding) -> str:
    return f"{finding.where}: {finding.what}\n  To fix: {finding.fix}."


def _check_names(cfg: CfgNode, for_training: bool) -> list[Finding]:
    """The datasets of the run are named and registered."""
    keys = ["TRAIN", "TEST"] if for_training else ["TEST"]
    findings = []
    if not cfg.DATASETS[keys[0]]:
        what = f"expected at least one dataset to {'train on' if for_training else 'evaluate on'}"
        fix = f"""name one, for example DATASETS.{keys[0]} "('my_dataset',)\""""
        findings.append(Finding("error", f"DATASETS.{keys[0]}", what + ", but got none", fix))
    own = coco_format_names(cfg)
    for key in keys:
        for name in cfg.DATASETS[key]:
            if name in DatasetCatalog:
                continue
            close = difflib.get_close_matches(name, list(DatasetCatalog.keys()))
            what = f"no dataset {name!r} is registered; DATASETS.COCO_FORMAT has {own or 'none'}"
            fix = f"write {' or '.join(map(repr, close))} if meant, or " if close else ""
            fix += f"add ['{name}', 'annotations.json', 'image_folder'] to DATASETS.COCO_FORMAT"
            findings.append(Finding("error", f"DATASETS.{key}", what, fix))
    return findings


def _class_count(cfg: CfgNode) -> tuple[str, int] | None:
    """Config key of the number of classes and its value; None for an unknown architecture."""
    node = head_node(cfg)
    if node is None or "NUM_CLASSES" not in cfg.MODEL[node]:
        return None
    return f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES


def _check_classes(cfg: CfgNode, class_names: dict) -> list[Finding]:
    """All datasets have the same classes in the same order, as many as the model."""
    findings = []
    known = {name: classes for name, classes in class_names.items() if classes is not None}
    if not known:
        return []
    first, expected = next(iter(known.items()))
    count = _class_count(cfg)
    if count and count[1] != len(expected):
        what = f"the model has {count[1]} classes, but dataset {first!r} has {len(expected)} "
        what += f"({_shortened(expected)})"
        findings.append(Finding("error", count[0], what, f"set {count[0]} {len(expected)}"))
    for name, classes in known.items():
        if classes != expected:
            what = (
                f"expected the categories of dataset {first!r} by ascending id "
                f"({_shortened(expected)}), but got {_shortened(classes)}"
            )
            fix = "give both annotation files the same 'categories', with the same ids"
            findings.append(Finding("error", f"dataset {name!r}", what, fix))
    return findings


def _shortened(names: tuple[str, ...]) -> str:
    return (
        ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:8])}, ... {len(names)} in all"
    )


def _check_labelled(cfg: CfgNode, summaries: list[CocoSummary]) -> list[Finding]:
    """The training datasets together hold something to learn."""
    if not summaries or any(summary.class_names is None for summary in summaries):
        return []  # unreadable, and reported so, or not in COCO's format
    num_images = sum(summary.num_images for summary in summaries)
    num_labelled = sum(summary.num_labelled for summary in summaries)
    filters = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if num_labelled == 0:
        what = f"none of the {num_images} images has an annotation that is not a crowd"
        what = f"no usable image: {what}" if filters else f"no positives: {what}"
        fix = "name annotation files with boxes; 'iscrowd' must be 0 for ordinary objects"
        return [Finding("error", "DATASETS.TRAIN", what, fix)]
    if filters and num_labelled < num_images:
        what = f"{num_images - num_labelled} of {num_images} images have no boxes and are left out"
        fix = "set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on them too"
        return [Finding("warning", "DATASETS.TRAIN", what, fix)]
    return []


def _check_solver(cfg: CfgNode, world_size: int) -> list[Finding]:
    """Batch and processes fit together; learning rate steps lie within the schedule."""
    findings = []
    if cfg.SOLVER.MAX_ITER < 1:
        what = f"expected at least 1 iteration, but got {cfg.SOLVER.MAX_ITER}"
        fix = "set SOLVER.MAX_ITER to the length of the schedule, or use --eval-only"
        findings.append(Finding("error", "SOLVER.MAX_ITER", what, fix))
    batch = cfg.SOLVER.IMS_PER_BATCH
    # With a reference, Detectron2's trainer scales the batch to the number of processes.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if batch < 1 or batch % processes:
        below, above = batch // processes * processes, (batch // processes + 1) * processes
        what = f"expected a positive multiple of the {processes} process(es), but got {batch}"
        fix = f"set SOLVER.IMS_PER_BATCH {above if below < 1 else f'{below} or {above}'}"
        fix += ", or use another number of GPUs"
        findings.append(Finding("error", "SOLVER.IMS_PER_BATCH", what, fix))
    late = [step for step in cfg.SOLVER.STEPS if step >= cfg.SOLVER.MAX_ITER]
    if late:
        what = f"the learning rate steps {late} lie at or beyond the end, iteration "
        what += f"{cfg.SOLVER.MAX_ITER} (SOLVER.MAX_ITER), and never happen"
        fix = 'scale the steps with SOLVER.MAX_ITER, or set SOLVER.STEPS "()"'
        findings.append(Finding("warning", "SOLVER.STEPS", what, fix))
    return findings


def _check_learning_rate(cfg: CfgNode) -> list[Finding]:
    """The learning rate is not far from the published one for this batch."""
    batch, lr = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    published = published_learning_rate(cfg)
    if published is None or batch < 1:
        return []
    expected = published * batch / PUBLISHED_BATCH
    if expected / _LR_TOLERANCE <= lr <= expected * _LR_TOLERANCE:
        return []
    what = (
        f"{lr:g} is far from {expected:g}, the published {published:g} for {PUBLISHED_BATCH} "
        f"images scaled to SOLVER.IMS_PER_BATCH {batch}"
    )
    return [Finding("warning", "SOLVER.BASE_LR", what, f"try SOLVER.BASE_LR {expected:g}")]


def _check_components(cfg: CfgNode) -> list[Finding]:
    """Components named in the config exist."""
    model = cfg.MODEL
    components = [
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
    ]
    if model.META_ARCHITECTURE == "GeneralizedRCNN":
        generator, box_head = model.PROPOSAL_GENERATOR.NAME, model.ROI_BOX_HEAD.NAME
        components.append(("MODEL.ROI_HEADS.NAME", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY))
        if generator != "PrecomputedProposals":
            components += [
                ("MODEL.PROPOSAL_GENERATOR.NAME", generator, PROPOSAL_GENERATOR_REGISTRY),
                ("MODEL.RPN.HEAD_NAME", model.RPN.HEAD_NAME, RPN_HEAD_REGISTRY),
            ]
        if box_head:
            components.append(("MODEL.ROI_BOX_HEAD.NAME", box_head, ROI_BOX_HEAD_REGISTRY))
    findings = []
    for key, name, registry in components:
        if name not in registry:
            choices = sorted(known for known, _ in registry)
            what = f"no component {name!r} is registered; there are {', '.join(choices)}"
            close = difflib.get_close_matches(name, choices, n=1) or choices[:1]
            findings.append(Finding("error", key, what, f"set {key} {close[0]}"))
    return findings


def _check_ranges(cfg: CfgNode) -> list[Finding]:
    """Numbers of models with ranking losses lie where they have a meaning."""
    rules = []
    kinds, channels = lineage(cfg.MODEL.META_ARCHITECTURE), cfg.MODEL.FPN.OUT_CHANNELS
    is_rcnn = "GeneralizedRCNN" in kinds
    has_rpn = is_rcnn and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "ALRPRPN"
    has_heads = is_rcnn and cfg.MODEL.ROI_HEADS.NAME == "ALRPROIHeads"
    if {"ALRPRetinaNet", "FoveaBox"} & set(kinds) or has_rpn or has_heads:
        rules += _ranges_of_losses(cfg)
    if "ALRPRetinaNet" in kinds:
        rules.append(_rule_of_thresholds("RETINANET", cfg, "[0.4, 0.5]"))
        topk = cfg.MODEL.ATSS.TOPK
        rules.append(("MODEL.ATSS.TOPK", topk, topk >= 1, "1 or more", 9))
    if has_rpn:
        rules.append(_rule_of_thresholds("RPN", cfg, "[0.3, 0.7]"))
        weight = cfg.MODEL.RPN.LOSS_WEIGHT
        rules.append(("MODEL.RPN.LOSS_WEIGHT", weight, weight > 0, "a number > 0", 0.2))
    node = head_node(cfg)
    if node and cfg.MODEL[node].get("NORM") == "GN":
        fits, groups = channels % _GN_GROUPS == 0, f"a multiple of {_GN_GROUPS} with group norm"
        rules.append(("MODEL.FPN.OUT_CHANNELS", channels, fits, groups, 256))
    return [
        Finding("error", key, f"expected {expected}, but got {value}", f"set {key} {example}")
        for key, value, is_right, expected, example in rules
        if not is_right
    ]


def _ranges_of_losses(cfg: CfgNode) -> list[tuple]:
    alrp, balance = cfg.MODEL.ALRP, cfg.MODEL.ALRP.SELF_BALANCE
    key = "MODEL.ALRP.SELF_BALANCE."
    least, most = DELTA_RANGE
    deltas = f"a number of {least:g} to {most:g}"
    return [
        ("MODEL.ALRP.DELTA", alrp.DELTA, least <= alrp.DELTA <= most, deltas, 1.0),
        ("MODEL.ALRP.TAU", alrp.TAU, _passes(check_tau, alrp.TAU), "a number in [0, 1)", 0.5),
        (key + "PERIOD", balance.PERIOD, balance.PERIOD >= 0, "iterations, or 0 for an epoch", 0),
        (key + "INIT_WEIGHT", balance.INIT_WEIGHT, balance.INIT_WEIGHT > 0, "a number > 0", 50.0),
    ]


def _rule_of_thresholds(node: str, cfg: CfgNode, example: str) -> tuple:
    key, thresholds = f"MODEL.{node}.IOU_THRESHOLDS", list(cfg.MODEL[node].IOU_THRESHOLDS)
    is_right = _passes(max_iou_matcher, thresholds, key)
    return key, thresholds, is_right, "[low, high]", f'"{example}"'


def _passes(check: Callable, *values) -> bool:
    """Whether a check that raises a ValueError lets values pass."""
    try:
        check(*values)
    except ValueError:
        return False
    return True


def _check_device(cfg: CfgNode, for_training: bool) -> list[Finding]:
    findings = []
    device = cfg.MODEL.DEVICE
    try:
        torch.device(device)
    except RuntimeError:
        what = f"expected cpu, cuda or cuda:N, but got {device!r}"
        return [Finding("error", "MODEL.DEVICE", what, "set MODEL.DEVICE cpu or cuda")]
    if device.startswith("cuda") and not torch.cuda.is_available():
        what = f"{device!r} was asked for, but PyTorch finds no GPU on this machine"
        fix = "set MODEL.DEVICE cpu, or install a PyTorch build and driver that see the GPU"
        findings.append(Finding("error", "MODEL.DEVICE", what, fix))
    if for_training and cfg.SOLVER.AMP.ENABLED and device == "cpu":
        what = "automatic mixed precision needs a GPU, but MODEL.DEVICE is cpu"
        findings.append(
            Finding("error", "SOLVER.AMP.ENABLED", what, "set SOLVER.AMP.ENABLED False")
        )
    return findings
