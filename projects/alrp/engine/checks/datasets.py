"""Checks of the datasets of a run: names, files, classes, and what there is to learn."""

from __future__ import annotations

import difflib
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...coco import Finding
from ...coco.findings import listed
from ...data.datasets.coco_check import CocoSummary
from ...data.datasets.coco_format import coco_format_names
from ...data.datasets.dataset_check import check_dataset
from ...head_nodes import head_node
from ..best_metric import needs_objects


def check_datasets(cfg: CfgNode, *, for_training: bool) -> list[Finding]:
    """Look for mistakes in the datasets of a config and in their files.

    Args:
        cfg: full config; ``register_coco_format(cfg)`` must have been called.
        for_training: whether DATASETS.TRAIN is checked as well as DATASETS.TEST.
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
        findings += _check_overlap(cfg, summaries)
        findings += _check_measured(cfg, summaries)
    return findings + _check_evaluable(cfg)


def _check_overlap(cfg: CfgNode, summaries: dict[str, CocoSummary]) -> list[Finding]:
    """Results on images that a model was trained on say nothing of others."""
    train = [summaries[name] for name in cfg.DATASETS.TRAIN if name in summaries]
    trained = frozenset().union(*(summary.image_files for summary in train))
    findings = []
    for name in filter(summaries.__contains__, dict.fromkeys(cfg.DATASETS.TEST)):
        files = summaries[name].image_files
        if files & trained:
            what = f"{len(files & trained)} of the {len(files)} images of {name!r} are trained on, "
            what += f"such as {min(files & trained)}, so that its results say little of others"
            fix = "name a set of other images, unless this is meant"
            findings.append(Finding("warning", "DATASETS.TEST", what, fix))
    return findings


def _check_measured(cfg: CfgNode, summaries: dict[str, CocoSummary]) -> list[Finding]:
    """There are objects to measure the metric by which weights are kept."""
    names = cfg.DATASETS.TEST
    # Without a test set, or with one of an unknown name, another check has said so.
    if not needs_objects(cfg.TEST.BEST_METRIC) or not names or not summaries.keys() >= set(names):
        return []
    if any(summaries[n].class_names is None or summaries[n].num_labelled for n in names):
        return []
    what = f"{cfg.TEST.BEST_METRIC!r} cannot be measured without an object in a test set"
    fix = "name a set with annotations in DATASETS.TEST, or set TEST.BEST_METRIC ''"
    return [Finding("error", "TEST.BEST_METRIC", what, fix)]


def _check_evaluable(cfg: CfgNode) -> list[Finding]:
    """The evaluators write a set that a function returns as a COCO file, with its class names."""
    findings = []
    for name in filter(DatasetCatalog.__contains__, cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if metadata.get("json_file"):
            continue
        if not metadata.get("thing_classes"):
            DatasetCatalog.get(name)  # a function may set them when it is called
        if not metadata.get("thing_classes"):
            what = f"dataset {name!r} has no class names, without which it cannot be evaluated"
            fix = f"in Python, set MetadataCatalog.get({name!r}).thing_classes to a list of them"
            findings.append(Finding("error", "DATASETS.TEST", what, fix))
    return findings


def _check_names(cfg: CfgNode, for_training: bool) -> list[Finding]:
    """The datasets of the run are named and registered."""
    keys = ["TRAIN", "TEST"] if for_training else ["TEST"]
    findings = []
    if not cfg.DATASETS[keys[0]]:
        what = f"expected at least one dataset to {'train on' if for_training else 'evaluate on'}"
        fix = f"set DATASETS.{keys[0]} to the name of one, such as ('my_dataset',)"
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


def check_class_count(cfg: CfgNode, where: str, names: Sequence[str]) -> list[Finding]:
    """The model of a config has as many classes as a dataset.

    Args:
        cfg: full config.
        where: what the messages call the dataset.
        names: of its classes.
    """
    count = _class_count(cfg)
    if count is None or count[1] == len(names):
        return []
    what = f"the model has {count[1]} classes, but {where} has {len(names)} ({_shortened(names)})"
    return [Finding("error", count[0], what, f"set {count[0]} {len(names)}")]


def _check_classes(cfg: CfgNode, class_names: dict) -> list[Finding]:
    """All datasets have the same classes in the same order, as many as the model."""
    findings = []
    known = {name: classes for name, classes in class_names.items() if classes is not None}
    if not known:
        return []
    first, expected = next(iter(known.items()))
    findings += check_class_count(cfg, f"dataset {first!r}", expected)
    for name, classes in known.items():
        if classes != expected:
            what = (
                f"expected the categories of dataset {first!r} by ascending id "
                f"({_shortened(expected)}), but got {_shortened(classes)}"
            )
            fix = "give both annotation files the same 'categories', with the same ids"
            findings.append(Finding("error", f"dataset {name!r}", what, fix))
    return findings


def _shortened(names: Sequence[str]) -> str:
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
    findings = _check_class_labels(summaries)
    if filters and num_labelled < num_images:
        what = f"{num_images - num_labelled} of {num_images} images have no boxes and are left out"
        fix = "set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on them too"
        findings.append(Finding("warning", "DATASETS.TRAIN", what, fix))
    return findings


def _check_class_labels(summaries: list[CocoSummary]) -> list[Finding]:
    """Each class has a box in one of the training datasets; some tools list a class for all."""
    labelled = [summary.labelled_classes for summary in summaries]
    if None in labelled:
        return []
    names, learned = summaries[0].class_names, frozenset().union(*labelled)
    empty = [repr(name) for name in names if name not in learned]
    if not empty:
        return []
    what = f"{len(empty)} of {len(names)} classes have no box to learn from: {listed(empty)}"
    fix = "name the other classes in DATASETS.CLASSES, or remove these from 'categories'"
    return [Finding("warning", "DATASETS.TRAIN", what, fix)]
