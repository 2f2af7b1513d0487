"""COCO-format ground truth and results, checked and turned into arrays.

Indices, not ids, from here on: images and classes are numbered in ascending order of their ids, so
ids may be any sortable values, 0 and gaps included.
"""

from __future__ import annotations

import logging
import numpy as np
from typing import Any, NamedTuple

from ..coco import Purpose, check_annotations, check_result_boxes, check_results, raise_errors
from ..coco.completion import completed
from ..errors import UserError

_LOGGER = logging.getLogger(__name__)


class GroundTruths(NamedTuple):
    """G annotated boxes in file order.

    Attributes:
        image, category: (G,) int64 indices.
        xywh: (G, 4) float64 in absolute pixels.
        area: (G,) float64 in square pixels.
        is_crowd: (G,) bool.
    """

    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    is_crowd: np.ndarray

    def select(self, index: np.ndarray) -> GroundTruths:
        """The boxes at ``index`` (positions or a mask)."""
        return GroundTruths(*(column[index] for column in self))


class Detections(NamedTuple):
    """D detected boxes in file order.

    Attributes:
        image, category: (D,) int64 indices.
        xywh: (D, 4) float64 in absolute pixels.
        score: (D,) float64.
    """

    image: np.ndarray
    category: np.ndarray
    xywh: np.ndarray
    score: np.ndarray

    def select(self, index: np.ndarray) -> Detections:
        """The boxes at ``index`` (positions or a mask)."""
        return Detections(*(column[index] for column in self))


class DetectionColumns(NamedTuple):
    """A COCO result list by columns: cheaper than a dict for each of D detections.

    ``image_id`` and ``category_id`` are lists of D ids of the ground truth, ``bbox`` is (D, 4) XYWH
    in absolute pixels and ``score`` is (D,).
    """

    image_id: list
    category_id: list
    bbox: np.ndarray
    score: np.ndarray


class Sources(NamedTuple):
    """Names of the two inputs, for messages; files are named by their paths."""

    ground_truth: str = "ground truth"
    results: str = "results"


def check_ground_truth(dataset: Any, sources: Sources = Sources()) -> None:
    """Log what is odd about an annotation file of which boxes are evaluated.

    Raises:
        UserError: on a mistake that would make the numbers wrong; it lists all of them.
    """
    findings = check_annotations(sources.ground_truth, dataset, Purpose())
    if not findings and "annotations" not in dataset:
        raise UserError(
            f"{sources.ground_truth}: expected a list 'annotations', but it is missing."
        )
    raise_errors(findings, _LOGGER)


def ids_in_order(dataset: dict, section: str) -> list:
    """Ascending ids of ``dataset[section]``, a list of dicts with an ``id`` each."""
    return sorted(entry["id"] for entry in dataset[section])


def category_names(dataset: dict) -> dict:
    """Names of the classes by id, in ascending order of the ids; the id where there is no name."""
    names = {entry["id"]: entry.get("name", str(entry["id"])) for entry in dataset["categories"]}
    return {category_id: names[category_id] for category_id in sorted(names)}


def ground_truth_boxes(dataset: dict, image_ids: list, category_ids: list) -> GroundTruths:
    """Ground truths of the listed images and classes; others are left out.

    Args:
        dataset: one that :func:`check_ground_truth` accepts; ``iscrowd`` defaults to 0 and ``area``
            to width x height where an annotation omits them.
        image_ids, category_ids: the ids of the dataset, in ascending order.
    """
    annotations = completed(dataset)["annotations"]
    boxes = GroundTruths(
        _positions(image_ids, [a["image_id"] for a in annotations]),
        _positions(category_ids, [a["category_id"] for a in annotations]),
        np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
        np.array([a["area"] for a in annotations], dtype=np.float64),
        np.array([a["iscrowd"] for a in annotations], dtype=bool),
    )
    return boxes.select((boxes.image >= 0) & (boxes.category >= 0))


def detection_boxes(
    results: list | DetectionColumns, dataset: dict, sources: Sources = Sources()
) -> Detections:
    """Detections; those of classes the ground truth does not list are left out with a warning.

    Args:
        results: list of dicts in the COCO result format, or :class:`DetectionColumns`, of which
            only the ids and that all numbers are finite is checked.
        dataset: the ground truth, one that :func:`check_ground_truth` accepts.
    Raises:
        UserError: on a malformed detection, or one of an image that the ground truth does not list.
    """
    image_ids, category_ids = ids_in_order(dataset, "images"), ids_in_order(dataset, "categories")
    if isinstance(results, DetectionColumns):
        columns = results
        _check_columns(columns, set(image_ids), sources)
    else:
        of_gt = dataset["images"], dataset["categories"]
        raise_errors(check_results(sources.results, results, *of_gt), _LOGGER)
        boxes = check_result_boxes(
            sources.results, results, dataset["images"], dataset["annotations"]
        )
        raise_errors(boxes, _LOGGER)
        columns = DetectionColumns._make(
            [result[name] for result in results] for name in DetectionColumns._fields
        )
    detections = Detections(
        _positions(image_ids, columns.image_id),
        _positions(category_ids, columns.category_id),
        np.asarray(columns.bbox, dtype=np.float64).reshape(-1, 4),
        np.asarray(columns.score, dtype=np.float64),
    )
    return detections.select(detections.category >= 0)


def _check_columns(columns: DetectionColumns, image_ids: set, sources: Sources) -> None:
    """Columns come from a program: their numbers are finite and their images listed."""
    finite = np.isfinite(np.asarray(columns.bbox, dtype=np.float64).reshape(-1, 4)).all(axis=1)
    finite &= np.isfinite(np.asarray(columns.score, dtype=np.float64))
    if not finite.all():
        first = int(np.argmin(finite))
        raise UserError(
            f"{sources.results}: expected finite boxes and scores, but detection {first} has "
            f"'bbox' {list(columns.bbox[first])} and 'score' {columns.score[first]}; the model may "
            "have diverged."
        )
    for position, image_id in enumerate(columns.image_id):
        if image_id not in image_ids:
            raise UserError(
                f"{sources.results}: detection {position} is of image {image_id!r}, which the "
                "ground truth does not list; evaluate against the file the images came from."
            )


def _positions(known: list, ids: list) -> np.ndarray:
    """(N,) int64 position of each id in ``known``, -1 where it is not there."""
    positions = {value: position for position, value in enumerate(known)}
    return np.array([positions.get(value, -1) for value in ids], dtype=np.int64)
