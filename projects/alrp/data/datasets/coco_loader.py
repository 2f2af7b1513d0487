"""Reads an annotation file in COCO's format as dicts of Detectron2's dataset format.

Unlike Detectron2's loader it reads masks and keypoints only if they are asked for: a broken polygon
takes no box from a detector of boxes.
"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple
from pycocotools import mask as mask_util

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.structures import BoxMode

from ...coco import (
    Purpose,
    check_annotations,
    check_class_names,
    completed,
    of_classes,
    raise_errors,
    repeats_ids,
)
from ...files import read_json

_LOGGER = logging.getLogger(__name__)

# COCO's own sets, as Detectron2 names them.
PUBLISHED_NAMES = {n for splits in builtin._PREDEFINED_SPLITS_COCO.values() for n in splits}


class CocoFiles(NamedTuple):
    """Where a dataset lies, and what of its annotations is read.

    Attributes:
        annotation_json: path of the annotation file.
        image_folder: folder that the images' ``file_name`` is relative to.
        masks, keypoints: whether ``segmentation`` and ``keypoints`` are read.
        classes: names of those that are read; all if there are none.
    """

    annotation_json: str
    image_folder: str
    masks: bool = False
    keypoints: bool = False
    classes: tuple[str, ...] = ()


def load_coco_format(name: str, files: CocoFiles) -> list[dict]:
    """Dataset dicts in ascending order of the image ids, classes numbered by ascending ids.

    ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of the dataset's metadata are set.

    Args:
        name: name the dataset is registered under.
        files: what to read.

    Raises:
        UserError: if the file breaks a rule of COCO's format.
    """
    where = f"dataset {name!r}, {files.annotation_json}"
    content = read_json(files.annotation_json)
    purpose = Purpose(
        images=True,
        masks=files.masks,
        keypoints=files.keypoints,
        tolerate_bad_boxes=name in PUBLISHED_NAMES,
        tolerate_repeated_ids=repeats_ids(files.annotation_json),
    )
    findings = check_annotations(where, content, purpose)
    # Warnings were logged by the check before the start.
    raise_errors((f for f in findings if f.severity == "error"), _LOGGER)
    raise_errors(check_class_names(where, content, files.classes), _LOGGER)
    content = of_classes(content, files.classes)
    class_of = _set_classes(name, content["categories"])
    annotations: dict[object, list[dict]] = {}
    for annotation in completed(content).get("annotations", []):
        if annotation["category_id"] in class_of:
            annotations.setdefault(annotation["image_id"], []).append(annotation)
    images = sorted(content["images"], key=lambda image: image["id"])
    _LOGGER.info(f"Loaded {len(images)} images in COCO format from {files.annotation_json}")
    return [
        {
            "file_name": os.path.join(files.image_folder, image["file_name"]),
            "height": _whole(image["height"]),
            "width": _whole(image["width"]),
            "image_id": image["id"],
            "annotations": [
                _instance(a, class_of[a["category_id"]], files)
                for a in annotations.get(image["id"], [])
            ],
        }
        for image in images
    ]


def _set_classes(name: str, categories: list[dict]) -> dict[int, int]:
    """Class index by category id, which the metadata of the dataset gets too."""
    categories = sorted(categories, key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    metadata = MetadataCatalog.get(name)
    metadata.thing_classes = [category["name"] for category in categories]
    metadata.thing_dataset_id_to_contiguous_id = class_of
    return class_of


def _whole(size: float) -> float:
    """A size as an integer, of which arrays can be made; some tools write 640.0."""
    return int(size) if size == int(size) else size


def _instance(annotation: dict, class_index: int, files: CocoFiles) -> dict:
    """One object of Detectron2's format."""
    instance = {
        "iscrowd": annotation["iscrowd"],
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_index,
    }
    segmentation = annotation.get("segmentation")
    if files.masks and segmentation:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        instance["segmentation"] = segmentation
    if files.keypoints and annotation.get("keypoints"):
        # Of x, y and visibility: COCO's are indices of pixels, Detectron2's are coordinates.
        values = annotation["keypoints"]
        instance["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(values)]
    return instance
