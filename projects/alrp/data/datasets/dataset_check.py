"""Looks for mistakes in a dataset that a config names."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...coco import Finding, Purpose, repeats_ids
from .coco_check import CocoSummary, check_coco_dataset
from .coco_format import coco_format_names
from .coco_loader import PUBLISHED_NAMES

_LOGGER = logging.getLogger(__name__)


def check_dataset(name: str, cfg: CfgNode, for_training: bool) -> CocoSummary:
    """Summary of a registered dataset; without findings where its files are not COCO's.

    Args:
        name: name that the dataset is registered under.
        cfg: full config, which says how the dataset is used.
        for_training: whether a model learns from it, or is only evaluated on it.
    """
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    is_local = json_file and "://" not in json_file
    classes = metadata.get("thing_classes")
    if not is_local or not image_root or metadata.get("evaluator_type") != "coco":
        _LOGGER.info(f"Dataset {name!r} is not in COCO's detection format: files not checked.")
        # That it holds a labelled image is taken on trust.
        return CocoSummary([], tuple(classes) if classes else None, 1, 1)
    is_published = name in PUBLISHED_NAMES
    purpose = Purpose(
        training=for_training,
        images=True,
        masks=cfg.MODEL.MASK_ON,
        polygons=for_training and cfg.INPUT.MASK_FORMAT == "polygon",
        keypoints=cfg.MODEL.KEYPOINT_ON,
        drops_broken_masks=name not in coco_format_names(cfg) and not is_published,
        # COCO's own training set has two boxes of zero height, which the loader drops.
        tolerate_bad_boxes=is_published,
        tolerate_repeated_ids=repeats_ids(json_file),
    )
    resizes = _resizes(cfg, for_training)
    summary = check_coco_dataset(
        name, json_file, image_root, purpose, resizes, cfg.DATASETS.CLASSES
    )
    if is_published and classes and summary.class_names not in (None, tuple(classes)):
        return summary._replace(
            findings=[*summary.findings, _other_classes(name, summary, classes)]
        )
    return summary


def _resizes(cfg: CfgNode, for_training: bool) -> list[tuple[int, int]]:
    """Limits of the shorter and the longer side where a resize may leave a side of 0 pixels."""
    if cfg.INPUT.AUGMENTATION != "detectron2":
        return []
    resizes = [(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
    if for_training:
        resizes = [(size, cfg.INPUT.MAX_SIZE_TRAIN) for size in cfg.INPUT.MIN_SIZE_TRAIN]
    return resizes


def _other_classes(name: str, summary: CocoSummary, classes: list[str]) -> Finding:
    """Detectron2 fixes the classes of its built-in datasets by their names."""
    found = ", ".join(summary.class_names[:8])
    what = f"the name {name!r} stands for COCO's images and {len(classes)} classes, but the "
    what += f"annotation file has {len(summary.class_names)} classes ({found})"
    fix = "give your dataset a name of its own: add ['my_dataset', 'annotations.json', "
    fix += "'image_folder'] to DATASETS.COCO_FORMAT and name it in DATASETS.TRAIN or TEST"
    return Finding("error", f"dataset {name!r}", what, fix)
