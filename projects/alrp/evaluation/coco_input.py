"""COCO-format ground truth and results, checked and turned into arrays.

Indices, not ids, from here on: images and classes are numbered in ascending order of their ids, so
ids may be any sortable values, 0 and gaps included.
"""

from __future__ import annotations

import logging
import numbers
import numpy as np
from typing import NamedTuple

from ..errors import UserError

_LOGGER = logging.getLogger(__name__)


class Boxes(NamedTuple):
    """B boxes in file order.

    ``image`` and ``category`` are (B,) int64 indices; ``xywh`` is (B, 4) float64 in absolute
    pixels; ``extra`` holds the (B,) scores of detections, or the (B, 2) area and crowd flag of
    ground truths.
    """

    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    extra: np.ndarray

    def select(self, index: np.ndarray) -> Boxes:
        """The boxes at ``index`` (positions or a mask)."""
        return Boxes(*(column[index] for column in self))


class DetectionColumns(NamedTuple):
    """A COCO result list by columns: cheaper than a dict for each of D detections.

    ``image_id`` and ``category_id`` are lists of D ids of the ground truth, ``bbox`` is (D, 4) XYWH
    in absolute pixels and ``score`` is (D,).
    """

    image_id: list
    category_id: list
    bbox: np.ndarray
    score: np.ndarray


def ids_in_order(dataset: dict, section: str) -> list:
    """Ascending unique ids of ``dataset[section]``, a list of dicts with an ``id`` each."""
    try:
        return sorted({entry["id"] for entry in _section(dataset, section)})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"ground truth: every entry of '{section}' needs an 'id', all numbers or all strings."
        ) from error


def category_names(dataset: dict) -> dict:
    """Names of the classes by id, in ascending order of the ids.

    Raises:
        UserError: if two classes share a name, which would make one hide the other in a report.
    """
    ids = ids_in_order(dataset, "categories")
    given = {entry["id"]: str(entry.get("name", entry["id"])) for entry in dataset["categories"]}
    id_of: dict = {}
    for category_id in ids:
        name = given[category_id]
        if name in id_of:
            raise UserError(
                f"ground truth: categories {id_of[name]} and {category_id} are both named "
                f"'{name}'; give every category its own name."
            )
        id_of[name] = category_id
    return {category_id: given[category_id] for category_id in ids}


def ground_truth_boxes(dataset: dict, image_ids: list, category_ids: list) -> Boxes:
    """Ground truths of the listed images and classes.

    ``iscrowd`` defaults to 0 and ``area`` to width x height where an annotation omits them.
    Annotations of images or classes that the file does not list are left out with a warning.
    """
    annotations = _section(dataset, "annotations")
    images, categories = _positions(image_ids), _positions(category_ids)
    try:
        image = _lookup(images, [ann["image_id"] for ann in annotations])
        category = _lookup(categories, [ann["category_id"] for ann in annotations])
        xywh = _xywh([ann["bbox"] for ann in annotations])
        # The product is what an omitted area stands for, in the arithmetic of detection areas.
        sizes = (xywh[:, 2] * xywh[:, 3]).tolist()
        extra = [
            (ann.get("area", size), int(ann.get("iscrowd", 0)))
            for ann, size in zip(annotations, sizes)
        ]
        extra = np.array(extra, dtype=np.float64).reshape(-1, 2)
        if not (np.isfinite(xywh).all() and np.isfinite(extra).all()):
            raise ValueError("boxes and areas must be finite numbers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            _mistake("annotation", annotations, optional=("area", "iscrowd"))
        ) from error
    known = (image >= 0) & (category >= 0)
    _warn_unlisted("annotations", known, "image or category")
    return Boxes(image, category, xywh, extra).select(known)


def detection_boxes(results, image_ids: list, category_ids: list) -> Boxes:
    """Detections of a result list; those of classes the ground truth does not list are left out.

    Args:
        results: list of dicts in the COCO result format, or :class:`DetectionColumns`.
        image_ids, category_ids: the ids of the ground truth, in ascending order.
    Raises:
        UserError: on a malformed detection, or one of an image that ``image_ids`` does not list.
    """
    if not isinstance(results, (list, DetectionColumns)):
        raise UserError(
            f"results: expected a list of detections, got {type(results).__name__}; "
            "pass the COCO result format, not the ground-truth format."
        )
    images, categories = _positions(image_ids), _positions(category_ids)
    try:
        columns = results if isinstance(results, DetectionColumns) else _columns(results)
        image = _lookup(images, columns.image_id)
        category = _lookup(categories, columns.category_id)
        scores = np.asarray(columns.score, dtype=np.float64)
        xywh = _xywh(columns.bbox)
        if not scores.ndim == 1 or not (np.isfinite(scores).all() and np.isfinite(xywh).all()):
            raise ValueError("scores and boxes must be finite numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_mistake("detection", _rows(results), required=("score",))) from error
    if (image < 0).any():
        position = int(np.argmin(image))
        raise UserError(
            f"results: detection {position} is of image {columns.image_id[position]!r}, which the "
            "ground truth does not list; evaluate against the file the images came from."
        )
    _warn_unlisted("detections", category >= 0, "category")
    return Boxes(image, category, xywh, scores).select(category >= 0)


def _columns(results: list) -> DetectionColumns:
    return DetectionColumns(
        *([result[name] for result in results] for name in DetectionColumns._fields)
    )


def _rows(results) -> list:
    if isinstance(results, list):
        return results
    columns = (np.asarray(column, dtype=object).tolist() for column in results)
    return [dict(zip(DetectionColumns._fields, row)) for row in zip(*columns)]


def _section(dataset: dict, name: str) -> list:
    entries = dataset.get(name) if isinstance(dataset, dict) else None
    if not isinstance(entries, list):
        raise UserError(
            f"ground truth: expected a JSON object with a list '{name}', as in the COCO format; "
            "check that the ground-truth file comes first and is not a result file."
        )
    return entries


def _positions(ids: list) -> dict:
    return {value: position for position, value in enumerate(ids)}


def _lookup(positions: dict, ids: list) -> np.ndarray:
    return np.array([positions.get(value, -1) for value in ids], dtype=np.int64)


def _xywh(boxes) -> np.ndarray:
    array = np.asarray(boxes, dtype=np.float64)
    if len(boxes) and array.shape != (len(boxes), 4):
        raise ValueError("boxes need four numbers each")
    return array.reshape(-1, 4)


def _mistake(kind: str, entries: list, required: tuple = (), optional: tuple = ()) -> str:
    """Message about the first malformed entry; runs only once something is known to be wrong."""
    for position, entry in enumerate(entries):
        where = f"{kind} {position}"
        if not isinstance(entry, dict):
            return f"{where}: expected an object, got {entry!r:.80}; write one object per {kind}."
        for key in ("image_id", "category_id", "bbox", *required):
            if key not in entry:
                return f"{where} has no '{key}'; every {kind} needs one."
        for key in ("image_id", "category_id"):
            if isinstance(entry[key], (list, dict)):
                return f"{where}: '{key}' is {entry[key]!r:.80}; write a single id."
        box = entry["bbox"]
        if not (isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_finite, box))):
            return (
                f"{where}: 'bbox' is {box!r:.80}; write [x, y, width, height], finite, in pixels."
            )
        for key in required + optional:
            if key in entry and not _is_finite(entry[key]):
                return f"{where}: '{key}' is {entry[key]!r:.80}; write a finite number."
    return f"one {kind} of {len(entries)} has a value of the wrong type; write plain numbers."


def _is_finite(value) -> bool:
    return isinstance(value, numbers.Real) and bool(np.isfinite(value))


def _warn_unlisted(what: str, known: np.ndarray, reason: str) -> None:
    missing = int(np.count_nonzero(~known))
    if missing:
        _LOGGER.warning(
            "%d of %d %s left out: their %s is not listed in the ground truth.",
            missing,
            known.size,
            what,
            reason,
        )
