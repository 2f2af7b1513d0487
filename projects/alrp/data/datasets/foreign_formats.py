"""Annotations of Pascal VOC and YOLO as COCO's, and files with some of their classes only."""

from __future__ import annotations

import logging
import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Iterable, Sequence
from PIL import Image

from ...coco import check_categories, check_class_names, of_classes, raise_errors
from ...coco.findings import listed
from ...coco.values import is_id
from ...errors import UserError
from ..image_files import upright_size, why_unreadable

_LOGGER = logging.getLogger(__name__)
_ROUNDING = 1e-3  # in shares of the image, of a few digits
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def voc_to_coco(annotation_folder: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """COCO annotations from the XML files of a folder.

    Boxes of VOC name the first and the last pixel, counted from 1. Objects marked as difficult
    become crowds, which count neither as found nor as missed.

    Args:
        annotation_folder: of the XML files.
        names: of the classes, by index; those of the objects in alphabetical order if left out.

    Raises:
        UserError: if a file lacks a field or holds a value without meaning; names file and field.
    """
    paths = sorted(Path(annotation_folder).glob("*.xml"))
    if not paths:
        raise UserError(f"{annotation_folder} holds no .xml file; name the folder of annotations.")
    trees = [(path, _read_xml(path)) for path in paths]
    names = names or sorted(
        {_text(o, "name", path) for path, tree in trees for o in tree.iter("object")}
    )
    if not names:
        raise UserError(f"{annotation_folder} holds no object; name the folder of annotations.")
    images, annotations = [], []
    for path, tree in trees:
        size = [round(_number(tree, f"size/{side}", path)) for side in ("width", "height")]
        if min(size) < 1:
            raise UserError(
                f"{path}: size must be the width and height of the image in pixels, but is {size}; "
                "correct it."
            )
        images.append((_text(tree, "filename", path), *size))
        for item in tree.iter("object"):
            x1, y1, x2, y2 = (
                _number(item, f"bndbox/{end}", path) for end in ("xmin", "ymin", "xmax", "ymax")
            )
            box = (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)
            if box[2] < 1 or box[3] < 1:
                raise UserError(
                    f"{path}: the bndbox of {item.findtext('name')!r} ends before it begins, at "
                    f"{(x1, y1, x2, y2)}; correct xmin, ymin, xmax, ymax."
                )
            is_crowd = int(item.findtext("difficult", "0").strip() == "1")
            name = _text(item, "name", path)
            if name not in names:
                raise UserError(f"{path}: {name!r} is not among --names; complete them.")
            annotations.append((len(images), names.index(name), box, is_crowd))
    return _as_coco(names, images, annotations)


def yolo_to_coco(label_folder: str, image_folder: str, names: Sequence[str]) -> dict[str, Any]:
    """COCO annotations from YOLO's text files, each named as its image; no file is no object.

    A line is ``class x y width height``: a class index, and centre and size of the box in shares of
    the image.

    Args:
        label_folder: of the text files.
        image_folder: of the images, which are opened for their sizes.
        names: of the classes, by class index.

    Raises:
        UserError: if a line or an image cannot be read; names file and line.
    """
    paths = sorted(p for p in Path(image_folder).iterdir() if p.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(f"{image_folder} holds no image; name the folder of images.")
    _check_stems(paths, label_folder)
    images, annotations = [], []
    for path in paths:
        width, height = _image_size(path)
        images.append((path.name, width, height))
        for index, x, y, w, h in _yolo_boxes(Path(label_folder, f"{path.stem}.txt"), len(names)):
            box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
            annotations.append((len(images), index, box, 0))
    if not annotations:
        raise UserError(
            f"{label_folder} holds no box for the images of {image_folder}; the text files must be "
            "named as the images."
        )
    return _as_coco(names, images, annotations)


def _check_stems(images: Sequence[Path], label_folder: str) -> None:
    """Each label file belongs to one image."""
    by_stem: dict[str, Path] = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other != path and Path(label_folder, f"{path.stem}.txt").exists():
            raise UserError(
                f"{other} and {path} would both get the boxes of {path.stem}.txt; leave one of "
                "them in the folder."
            )
    labels = sorted(p for p in Path(label_folder).glob("*.txt") if p.stem not in by_stem)
    lost = [p.name for p in labels if p.name != "classes.txt" and p.stat().st_size]
    if lost:
        _LOGGER.warning(
            f"{len(lost)} label files have no image, and their boxes are left out: {listed(lost)}"
        )


def with_classes(content: dict[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """COCO annotations of some classes only, numbered in the order of ``names``; all images stay.

    Args:
        content: with the lists of COCO's format.
        names: of the classes, each once.
        where: name of the file, for the messages.

    Raises:
        UserError: if the categories are not sound, a class is not one of them, or an annotation has
            none.
    """
    raise_errors(check_categories(where, content), _LOGGER)
    raise_errors(check_class_names(where, content, names, key="--classes"), _LOGGER)
    without = next((a for a in content["annotations"] if not is_id(a.get("category_id"))), None)
    if without is not None:
        raise UserError(f"{where}: annotation {str(without)[:200]} has no category_id; add it.")
    content = of_classes(content, names)
    new_ids = {c["id"]: names.index(c["name"]) + 1 for c in content["categories"]}
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    annotations = [
        {**annotation, "category_id": new_ids[annotation["category_id"]]}
        for annotation in content["annotations"]
    ]
    return {**content, "categories": categories, "annotations": annotations}


def _as_coco(
    names: Sequence[str],
    images: Iterable[tuple[str, int, int]],
    annotations: Iterable[tuple[int, int, tuple[float, float, float, float], int]],
) -> dict[str, Any]:
    """From (name, width, height) of images, and (image id, class index, XYWH, crowd) of boxes."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, (name, width, height) in enumerate(images, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        "annotations": [
            {
                "id": i,
                "image_id": image_id,
                "category_id": index + 1,
                "bbox": [round(value, 3) for value in box],
                "area": round(box[2] * box[3], 3),
                "iscrowd": is_crowd,
            }
            for i, (image_id, index, box, is_crowd) in enumerate(annotations, start=1)
        ],
    }


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{path} cannot be read as XML: {error}; correct or remove it.") from error


def _text(element: ElementTree.Element, field: str, path: Path) -> str:
    text = (element.findtext(field) or "").strip()
    if not text:
        raise UserError(f"{path}: {field} is missing in <{element.tag}>; add it.")
    return text


def _number(element: ElementTree.Element, field: str, path: Path) -> float:
    text = _text(element, field, path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: {field} must be a number, but is {text!r}; correct it.")
    return value


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except (OSError, SyntaxError) as error:
        reason = why_unreadable(path, error)
        raise UserError(f"{path} cannot be read as an image: {reason}; remove it.") from error


def _yolo_boxes(path: Path, num_classes: int) -> list[tuple[int, float, float, float, float]]:
    if not os.path.exists(path):
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}; correct it.") from error
    boxes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where, fields = f"{path}, line {number}", line.split()
        try:
            x, y, w, h = map(float, fields[1:])
            index = int(float(fields[0]))  # NumPy writes 1 as 1.000000
            if index != float(fields[0]):
                raise ValueError("a class must be a whole number")
        except (OverflowError, ValueError) as error:
            raise UserError(
                f"{where}: expected 'class x y width height', but got {line.strip()[:80]!r}; "
                "polygons and scores are not read."
            ) from error
        if not 0 <= index < num_classes:
            raise UserError(
                f"{where}: class {index} has no name: there are {num_classes}; complete --names."
            )
        if not (all(-_ROUNDING <= v <= 1 + _ROUNDING for v in (x, y, w, h)) and min(w, h) > 0):
            raise UserError(
                f"{where}: x y width height must be shares of the image in [0, 1], but are "
                f"{x:g} {y:g} {w:g} {h:g}; divide pixels by the sides of the image."
            )
        boxes.append((index, x, y, w, h))
    return boxes
