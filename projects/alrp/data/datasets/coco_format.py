"""Datasets in COCO's detection format, named by the config instead of by code."""

from __future__ import annotations

import logging
import os
import re
from functools import partial
from typing import Iterable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...coco import check_categories, of_classes, raise_errors
from ...errors import UserError
from ...files import read_json
from .coco_loader import CocoFiles, load_coco_format

_LOGGER = logging.getLogger(__name__)

# Metadata that another choice of classes changes.
_OF_THE_CLASSES = {
    "kept_classes",
    "thing_classes",
    "thing_colors",
    "thing_dataset_id_to_contiguous_id",
}
_SHAPE = '["my_train", "path/to/train.json", "path/to/images"]'


def register_coco_format(cfg: CfgNode) -> None:
    """Register every ``[name, annotation_json, image_folder]`` of ``DATASETS.COCO_FORMAT``.

    Paths may hold environment variables (``$NAME``, ``${NAME}``) and ``~``; relative ones are taken
    from the current directory. Files are not opened here. Masks are read with ``MODEL.MASK_ON``
    only, keypoints with ``MODEL.KEYPOINT_ON``. Registering the same triple again does nothing but
    follow these two and ``DATASETS.CLASSES``, so that worker processes can repeat the call.

    With ``DATASETS.CLASSES`` the other sets of the config get only these classes, too.

    Raises:
        UserError: on a malformed entry, an unset environment variable, a name that another dataset
            has, a class named twice, or a set of which classes cannot be chosen.
    """
    classes = _checked_classes(cfg)
    options = {"masks": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON, "classes": classes}
    for i, entry in enumerate(cfg.DATASETS.COCO_FORMAT):
        where = f"DATASETS.COCO_FORMAT entry {i + 1}"
        name, annotation_json, image_folder = _checked_triple(entry, where)
        paths = [os.path.abspath(expand_path(p, where)) for p in (annotation_json, image_folder)]
        _register(name, CocoFiles(*paths, **options), where)
    own = coco_format_names(cfg)
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if name in DatasetCatalog and name not in own:
            metadata = MetadataCatalog.get(name)
            if tuple(metadata.get("kept_classes", ())) != classes:
                _register(name, _files_of(name, options), "DATASETS.CLASSES")


def _checked_classes(cfg: CfgNode) -> tuple[str, ...]:
    """``DATASETS.CLASSES``, each of them once."""
    classes = tuple(cfg.DATASETS.CLASSES)
    twice = [name for name in dict.fromkeys(classes) if classes.count(name) > 1]
    if twice:
        raise UserError(f"DATASETS.CLASSES: {', '.join(twice)} is named twice; name it once.")
    return classes


def _files_of(name: str, options: dict) -> CocoFiles:
    """Where a dataset lies that Detectron2 or the user's code has registered."""
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if not json_file or not image_root or metadata.get("evaluator_type") != "coco":
        raise UserError(
            f"DATASETS.CLASSES: dataset {name!r} is not in COCO's detection format, so that some "
            "of its classes cannot be chosen; set DATASETS.CLASSES () or convert the set."
        )
    return CocoFiles(json_file, image_root, **options)


def coco_format_names(cfg: CfgNode) -> list[str]:
    """Dataset names in ``DATASETS.COCO_FORMAT``, in order."""
    return [entry[0] for entry in cfg.DATASETS.COCO_FORMAT]


def class_names(datasets: Iterable[str]) -> list[str] | None:
    """Names by class index, of the first registered dataset that tells them; None if none does.

    Raises:
        UserError: if the annotation file that should tell them cannot be read, or has no sound
            categories.
    """
    for name in datasets:
        metadata = MetadataCatalog.get(name)
        if metadata.get("thing_classes"):
            return list(metadata.thing_classes)
        if os.path.isfile(metadata.get("json_file", "")):
            content = read_json(metadata.json_file)
            findings = check_categories(f"dataset {name!r}, {metadata.json_file}", content)
            raise_errors(findings, _LOGGER)
            content = of_classes(content, metadata.get("kept_classes", ()))
            categories = sorted(content["categories"], key=lambda category: category["id"])
            return [category["name"] for category in categories]
    return None


def _checked_triple(entry: object, where: str) -> tuple[str, str, str]:
    if (
        not isinstance(entry, (list, tuple))
        or len(entry) != 3
        or not all(isinstance(part, str) and part for part in entry)
    ):
        raise UserError(
            f"{where}: expected three non-empty strings such as {_SHAPE}, but got {entry!r}; "
            "write the dataset's name, its annotation file and its image folder."
        )
    return tuple(entry)


def expand_path(path: str, where: str) -> str:
    """``path`` with ``~`` and environment variables (``$NAME``, ``${NAME}``) replaced.

    Args:
        path: as a user wrote it.
        where: the config key it stands in, for the message.

    Raises:
        UserError: if an environment variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    left = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if left:
        variable = left.group(1).strip("{}")
        raise UserError(
            f"{where}: the path {path!r} needs the environment variable {variable}, which is not "
            f"set; run `export {variable}=/path/to/folder` first or write the path out."
        )
    return expanded


def _register(name: str, files: CocoFiles, where: str) -> None:
    present = MetadataCatalog.get(name) if name in DatasetCatalog else None
    if present is None:
        _describe(name, files)
    elif (present.get("json_file"), present.get("image_root")) != files[:2]:
        raise UserError(
            f"{where}: the name {name!r} already belongs to another dataset (annotations "
            f"{present.get('json_file')}, images {present.get('image_root')}); choose a name of "
            f"its own for {files.annotation_json}."
        )
    elif getattr(DatasetCatalog[name], "args", None) == (name, files):
        return
    else:
        DatasetCatalog.remove(name)
        if tuple(present.get("kept_classes", ())) != files.classes:
            MetadataCatalog.pop(name)
            _describe(name, files)
            others = {k: v for k, v in present.as_dict().items() if k not in _OF_THE_CLASSES}
            MetadataCatalog.get(name).set(**others)
    DatasetCatalog.register(name, partial(load_coco_format, name, files))


def _describe(name: str, files: CocoFiles) -> None:
    MetadataCatalog.get(name).set(
        json_file=files.annotation_json,
        image_root=files.image_folder,
        evaluator_type="coco",
        kept_classes=files.classes,
    )
