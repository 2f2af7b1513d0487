"""Checks of the keys of a config, with a trial of what is built from them."""

from __future__ import annotations

import difflib
from numbers import Number

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)

from ...coco import Finding
from ...head_nodes import lineage
from .blame import blame
from .effects import check_effects, read_by_commands
from .keys import default_config, value_of, with_value
from .ranges import unusable_values, wrong_kinds
from .trial import try_config


def check_config(
    cfg: CfgNode,
    *,
    for_training: bool,
    without_overrides: CfgNode | None = None,
    errors_only: bool = False,
) -> list[Finding]:
    """Look for keys and values with which a run cannot work, or which it does not read.

    Values are judged on their own first, and the model and the rest of the run are built from
    those that pass. Only what the run reads counts; what it does not read is a warning.

    Args:
        cfg: full config.
        for_training: whether the run trains, or only evaluates.
        without_overrides: the config as its file has it, to tell which key is to blame.
        errors_only: whether keys that the run does not read are left out, which spares a trial.

    Returns:
        list[Finding]: empty if all is well.
    """
    findings = _check_components(cfg) or list(wrong_kinds(cfg).values()) or _check_proposals(cfg)
    findings = findings or _check_keypoints(cfg)
    if findings:
        return findings
    unusable, usable = unusable_values(cfg), cfg
    for key in unusable:  # for their defaults, as some would fill the memory
        usable = with_value(usable, key, value_of(default_config(), key))
    trial = try_config(usable, for_training=for_training)
    read = {*trial.reads, *read_by_commands(cfg, for_training=for_training)}
    findings = [error for key, error in unusable.items() if key in read]
    if findings:
        return findings
    if trial.failure and trial.failure.is_of_trial:
        return _check_expected_results(cfg)
    if trial.failure:
        options = {"for_training": for_training, "without_overrides": without_overrides}
        return [blame(usable, trial, **options)]
    if errors_only:
        return []
    # A key that only a training reads is no mistake in a config that is evaluated.
    training = trial if for_training else try_config(usable, for_training=True)
    findings = _check_expected_results(cfg)
    return findings if training.failure else findings + check_effects(cfg, training.reads)


def _check_components(cfg: CfgNode) -> list[Finding]:
    """Components named in the config exist."""
    model = cfg.MODEL
    components = [
        ("MODEL.META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", model.BACKBONE.NAME, BACKBONE_REGISTRY),
    ]
    if "GeneralizedRCNN" in lineage(model.META_ARCHITECTURE):
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


def _check_proposals(cfg: CfgNode) -> list[Finding]:
    """Detectron2 unpickles files of proposals, and a pickle may run code."""
    if not cfg.MODEL.LOAD_PROPOSALS:
        return []
    what = "files of proposals are pickles, which can run code, so they are not read"
    fix = "set MODEL.LOAD_PROPOSALS False and name a proposal generator, such as RPN"
    return [Finding("error", "MODEL.LOAD_PROPOSALS", what, fix)]


def _check_keypoints(cfg: CfgNode) -> list[Finding]:
    """Flipping an image exchanges left and right keypoints, which are known by their names."""
    names = cfg.DATASETS.TRAIN if cfg.MODEL.KEYPOINT_ON else ()
    for name in filter(DatasetCatalog.__contains__, names):
        if not hasattr(MetadataCatalog.get(name), "keypoint_names"):
            what = f"the metadata of dataset {name!r} holds no keypoint_names"
            fix = "set MODEL.KEYPOINT_ON False, or set keypoint_names and keypoint_flip_map of it "
            fix += "in Python by Detectron2's MetadataCatalog"
            return [Finding("error", "MODEL.KEYPOINT_ON", what, fix)]
    return []


def _check_expected_results(cfg: CfgNode) -> list[Finding]:
    """Detectron2 reads them when the run is over."""
    kinds = (str, str, Number, Number)
    for entry in cfg.TEST.EXPECTED_RESULTS:
        is_list = isinstance(entry, (list, tuple)) and len(entry) == len(kinds)
        if not is_list or not all(map(isinstance, entry, kinds)):
            what = f"expected entries [task, metric, value, tolerance], but got {entry!r}"
            fix = "write one such as ['bbox', 'AP', 40.0, 0.5]"
            return [Finding("error", "TEST.EXPECTED_RESULTS", what, fix)]
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) != 1:
        what = f"expected one dataset in DATASETS.TEST, but got {len(cfg.DATASETS.TEST)}"
        fix = 'name one, or set TEST.EXPECTED_RESULTS "[]"'
        return [Finding("error", "TEST.EXPECTED_RESULTS", what, fix)]
    tasks = ["bbox", "lrp"] + ["segm"] * cfg.MODEL.MASK_ON
    if cfg.TEST.AUG.ENABLED:
        tasks += [f"{task}_TTA" for task in tasks]
    unknown = [task for task, *_ in cfg.TEST.EXPECTED_RESULTS if task not in tasks]
    if unknown:
        what = f"this model is evaluated by the tasks {tasks}, but {unknown} is expected"
        fix = "correct the task, unless you bring an evaluator for it"
        return [Finding("warning", "TEST.EXPECTED_RESULTS", what, fix)]
    return []
