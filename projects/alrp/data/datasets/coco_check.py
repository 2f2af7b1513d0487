"""Looks for mistakes in one dataset in COCO's detection format before anything is trained on it.

Plain JSON, NumPy and Pillow: no index of the annotations is built and nothing is registered. COCO's
own training file takes about as long as reading its JSON does.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Sequence

from ...coco import (
    Finding,
    Purpose,
    check_class_names,
    check_fields,
    check_meaning,
    of_classes,
)
from ...errors import UserError
from ...files import read_json
from .image_check import check_images


class CocoSummary(NamedTuple):
    """What :func:`check_coco_dataset` saw.

    Attributes:
        findings: errors and warnings.
        class_names: category names by ascending id; None if the file could not be understood.
        num_images: images listed.
        num_labelled: images with at least one annotation that is not a crowd.
        labelled_classes: names of the categories with such an annotation; None if unknown.
        image_files: paths of the images.
    """

    findings: list[Finding]
    class_names: tuple[str, ...] | None = None
    num_images: int = 0
    num_labelled: int = 0
    labelled_classes: frozenset[str] | None = None
    image_files: frozenset[str] = frozenset()


def check_coco_dataset(
    name: str,
    annotation_json: str,
    image_folder: str,
    purpose: Purpose,
    resizes: Sequence[tuple[int, int]] = (),
    classes: Sequence[str] = (),
) -> CocoSummary:
    """Check annotation file and boxes, that all images exist, and open at most 50 of them.

    Args:
        name: dataset name, for the messages.
        annotation_json: path of the annotation file.
        image_folder: folder that the images' ``file_name`` is relative to.
        purpose: what the annotations are read for, with ``images``.
        resizes: limits of the shorter and the longer side, in pixels, that images are resized to.
        classes: names of those that are used; all if there are none.
    """
    where = f"dataset {name!r}, {annotation_json}"
    content, findings = _read_json(where, annotation_json)
    findings = findings or check_fields(where, content, purpose)
    if findings:
        return CocoSummary(findings)
    findings = check_meaning(where, content, purpose)
    unknown = check_class_names(f"dataset {name!r}", content, classes)
    if unknown:
        return CocoSummary(findings + unknown)
    content = of_classes(content, classes)
    images, annotations = content["images"], content.get("annotations", [])
    findings += check_images(name, images, image_folder, resizes)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = [a for a in annotations if not a.get("iscrowd", 0)]
    labelled_ids = {a["category_id"] for a in labels}
    return CocoSummary(
        findings,
        tuple(category["name"] for category in categories),
        len({image["id"] for image in images}),
        len({a["image_id"] for a in labels}),
        frozenset(c["name"] for c in categories if c["id"] in labelled_ids),
        frozenset(os.path.abspath(os.path.join(image_folder, i["file_name"])) for i in images),
    )


def _read_json(where: str, path: str) -> tuple[object, list[Finding]]:
    """Content of the file, or None and the reason why there is none."""
    if not os.path.exists(path):
        what = "the annotation file does not exist"
        fix = (
            "correct the path in DATASETS.COCO_FORMAT; for Detectron2's built-in datasets set the "
            "environment variable DETECTRON2_DATASETS to the folder that holds them"
        )
        return None, [Finding("error", where, what, fix)]
    try:
        return read_json(path), []
    except UserError as error:
        fix = "mend the file, or export it again as JSON in UTF-8"
        if os.path.isdir(path):
            fix = "name the annotation file first in DATASETS.COCO_FORMAT, then the image folder"
        return None, [Finding("error", where, str(error), fix)]
