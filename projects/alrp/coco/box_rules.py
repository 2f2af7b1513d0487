"""The rules of boxes [x, y, width, height] in pixels, of annotations and of detections."""

from __future__ import annotations

import numpy as np
from typing import Callable

from .findings import Finding, annotation_name, listed

XYWH_HINT = "COCO boxes are [x, y, width, height] in pixels, not two corners"

_SLACK = 1.0  # pixels; rounded coordinates may stick out a little
_FAR = 1.05  # of a side of the image: where no box ends that was drawn a little too large
# Of boxes: so many that mean nothing are slips of the mouse, which large public sets have, too.
_SLIPS = 0.01
_NORMALISED = "expected boxes in pixels, but no side is longer than 1 pixel: these look like "
_NORMALISED += "fractions of the image, as YOLO writes them"
_NORMALISED_FIX = "multiply x and width by the image's width, y and height by its height; a centre "
_NORMALISED_FIX += "becomes a corner"
_CORNERS_FIX = "write width = x2 - x1 and height = y2 - y1 in place of x2 and y2"


def check_boxes(where: str, annotations: list, image_by_id: dict, purpose) -> list[Finding]:
    """Finite, not empty, inside the image; each box is reported once, for the worst reason.

    The boxes of crowds must be finite, and are not judged otherwise.

    Args:
        where: name of the file, for the messages.
        annotations: with sound fields and listed images.
        image_by_id: records of the images, with or without a size.
        purpose: of type :class:`Purpose`.
    """

    def describe(items: list) -> Callable[[int], str]:
        return lambda i: _description(items[i], image_by_id, i)

    findings = _not_finite(where, _boxes(annotations), describe(annotations))
    if findings:
        return findings
    objects = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = _boxes(objects)
    limits = _sizes([image_by_id[a["image_id"]] for a in objects])
    if _are_normalised(boxes):
        return [Finding("error", where, _NORMALISED, _NORMALISED_FIX)]
    if _look_like_corners(boxes, limits):
        return [Finding("error", where, _corners_text(objects[0]["bbox"]), _CORNERS_FIX)]
    strict = "error" if purpose.training else "warning"
    lenient = "warning" if purpose.tolerate_bad_boxes else strict
    if len(boxes) and (boxes[:, 2:] <= 0).any(axis=1).all():
        lenient = "error"  # nothing is left to learn or to evaluate
    findings = _misplaced(where, boxes, limits, lenient, describe(objects))
    if purpose.tolerate_bad_boxes:
        return findings
    findings += _wrong_areas(where, objects, boxes, describe(objects))
    return findings + _repeated(where, objects, describe(objects))


def check_box_columns(
    where: str, boxes: np.ndarray, limits: np.ndarray, extent: np.ndarray, describe: Callable
) -> list[Finding]:
    """As :func:`check_boxes` for detections, of which only the format can be an error.

    Args:
        where: name of the file, for the messages.
        boxes: (D, 4) float64.
        limits: (D, 2) float64 width and height of the image of each box, NaN where unknown.
        extent: (2,) float64 right and lower end of the ground truths; judges in place of unknown
            sizes whether the boxes are two corners.
        describe: text of the box at a position.
    """
    findings = _not_finite(where, boxes, describe)
    if findings:
        return findings
    if _are_normalised(boxes):
        return [Finding("error", where, _NORMALISED, _NORMALISED_FIX)]
    if _look_like_corners(boxes, np.where(np.isnan(limits), extent, limits)):
        return [Finding("warning", where, _corners_text(boxes[0].tolist()), _CORNERS_FIX)]
    return _misplaced(where, boxes, limits, "warning", describe)


def _description(annotation: dict, image_by_id: dict, position: int) -> str:
    image = image_by_id[annotation["image_id"]].get("file_name", annotation["image_id"])
    return f"{annotation_name(annotation, position)} in {image}: {annotation['bbox']}"


def _boxes(annotations: list) -> np.ndarray:
    """(N, 4) float64."""
    return np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)


def _sizes(images: list) -> np.ndarray:
    """(N, 2) float64 width and height, NaN where an image has none."""
    return np.array([image_size(image) for image in images], dtype=np.float64).reshape(-1, 2)


def image_size(image: dict) -> tuple[float, float]:
    """Width and height of a record, NaN if it states none that make sense."""
    sizes = image.get("width"), image.get("height")
    sound = all(type(s) in (int, float) and 0 < s < 2**31 for s in sizes)
    return sizes if sound else (np.nan, np.nan)


def _corners_text(example: list) -> str:
    what = "boxes reach beyond their image, but all would fit it as two corners [x1, y1, x2, y2], "
    return what + f"such as {example}; {XYWH_HINT}"


def _not_finite(where: str, boxes: np.ndarray, describe: Callable) -> list[Finding]:
    with np.errstate(invalid="ignore", over="ignore"):
        bad = np.flatnonzero(~np.isfinite(boxes[:, :2] + boxes[:, 2:]).all(axis=1))
    if not len(bad):
        return []
    what = f"{len(bad)} boxes have a number that is not finite: {listed(bad, describe)}"
    return [Finding("error", where, what, "delete or correct them")]


def _are_normalised(boxes: np.ndarray) -> bool:
    """Whether all sides lie in (0, 1], at corners or centres in the unit square."""
    low, sides = boxes[:, :2], boxes[:, 2:]
    inside = (sides > 0) & (sides <= 1) & (np.abs(low) <= 1)
    return sides.size > 0 and bool(inside.all())


def _look_like_corners(boxes: np.ndarray, limits: np.ndarray) -> bool:
    """Whether a quarter of the boxes end far outside, while all lie inside as two corners.

    Boxes of images of unknown size have no say.
    """
    known = ~np.isnan(limits).any(axis=1)
    low, second, limits = boxes[known, :2], boxes[known, 2:], limits[known]
    if not len(low):
        return False
    outside = (low + second > _FAR * limits + _SLACK).any(axis=1)
    fits = (second > low).all() and (second <= limits + _SLACK).all() and (low >= -_SLACK).all()
    return bool(fits) and 4 * np.count_nonzero(outside) >= len(outside)


def _wrong_areas(
    where: str, annotations: list, boxes: np.ndarray, describe: Callable
) -> list[Finding]:
    """Areas fit their boxes: AP and LRP by size of the objects go by them."""
    # Tools that count the first and the last pixel have a row and a column more.
    most = 1.05 * np.prod(np.maximum(boxes[:, 2:], 0) + 1, axis=1)
    given = np.array([a.get("area", np.nan) for a in annotations], dtype=np.float64)
    bad = np.flatnonzero((boxes[:, 2:] > 0).all(axis=1) & ((given == 0) | (given > most)))
    if not len(bad):
        return []
    what = f"{len(bad)} annotations have an 'area' of 0 or beyond that of their box, by which "
    what += "they count as small or large: "
    what += listed(bad, lambda i: f"{given[i]:g} of {describe(i)}")
    fix = "leave 'area' out of all annotations, which is width x height, or correct it"
    return [Finding("warning", where, what, fix)]


def _repeated(where: str, annotations: list, describe: Callable) -> list[Finding]:
    """Of an object that is listed twice, an evaluation misses one."""
    first_of: dict[tuple, int] = {}
    repeated = []
    for i, annotation in enumerate(annotations):
        key = (annotation["image_id"], annotation["category_id"], *annotation["bbox"])
        first = first_of.setdefault(key, i)
        # Of one id they are the same record twice, which is an error of its own.
        if first != i and (
            "id" not in annotation or annotation["id"] != annotations[first].get("id")
        ):
            repeated.append(i)
    if not repeated:
        return []
    what = f"{len(repeated)} annotations repeat another one (same image, category and box): "
    what += listed(repeated, describe)
    return [Finding("warning", where, what, "delete the copies")]


def _misplaced(
    where: str, boxes: np.ndarray, limits: np.ndarray, severity: str, describe: Callable
) -> list[Finding]:
    """Empty boxes and boxes outside of their image, each once; single slips are warnings."""
    low, sides = boxes[:, :2], boxes[:, 2:]
    high = low + sides
    correct = "delete them, or correct them: " + XYWH_HINT
    clipped = "the part outside is cut off; make sure that " + XYWH_HINT
    small = "delete them if they mean nothing"
    beyond = (low < -_SLACK) | (high > limits + _SLACK)
    kinds = [
        (sides <= 0, severity, "a width or height of zero or less", correct),
        ((high <= 0) | (low >= limits), severity, "no overlap with their image", correct),
        (sides < 1, "warning", "a side below 1 pixel", small),
        (beyond, "warning", "a part outside of the image", clipped),
    ]
    findings = []
    unreported = np.ones(len(boxes), dtype=bool)
    for flags, degree, problem, fix in kinds:
        bad = np.flatnonzero(flags.any(axis=1) & unreported)
        unreported[bad] = False
        if len(bad):
            what = f"{len(bad)} boxes have {problem}: {listed(bad, describe)}"
            degree = "warning" if len(bad) <= _SLIPS * len(boxes) else degree
            findings.append(Finding(degree, where, what, fix))
    return findings
