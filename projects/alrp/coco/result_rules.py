"""The rules of a list of detections in COCO's result format."""

from __future__ import annotations

import numpy as np
from typing import Callable

from .box_rules import check_box_columns, image_size
from .findings import Finding, listed, shown
from .id_hints import ids_by_file_name, index_hint, name_hint, type_hint
from .values import is_box, is_finite, is_id

_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "image_id": (is_id, "the id of an image"),
    "category_id": (is_id, "the id of a category"),
    "bbox": (is_box, "four numbers [x, y, width, height] (pixels)"),
    "score": (is_finite, "a finite number"),
}


def check_results(where: str, results: object, images: list, categories: list) -> list[Finding]:
    """Mistakes in the fields and ids of a result list; empty if all is well.

    Args:
        where: name of the file, for the messages.
        results: the parsed JSON.
        images, categories: of the ground truth, whose fields are sound.
    """
    if not isinstance(results, list):
        what = f"expected a list of detections, but got a {type(results).__name__}"
        fix = "name a file in COCO's result format; the ground-truth file comes first"
        return [Finding("error", where, what, fix)]
    strange = [i for i, result in enumerate(results) if not isinstance(result, dict)]
    if strange:
        what = f"expected an object for each detection, but {len(strange)} are none: "
        what += listed(strange, lambda i: f"detection {i} is {str(results[i])[:80]}")
        return [Finding("error", where, what, "remove them or export the detections again")]
    findings = [
        finding
        for name, (is_sound, wanted) in _FIELDS.items()
        for finding in _check_field(where, results, name, is_sound, wanted)
    ]
    if findings:
        return findings
    given = [result["category_id"] for result in results]
    return (
        _check_images(where, [result["image_id"] for result in results], images)
        + _check_categories(where, given, categories)
        + _check_scores(where, [result["score"] for result in results])
        + _check_repeated(where, results)
    )


def check_result_boxes(where: str, results: list, images: list, annotations: list) -> list[Finding]:
    """Mistakes in the boxes of a result list whose fields are sound.

    Args:
        where: name of the file, for the messages.
        results: without an error of :func:`check_results`.
        images, annotations: of the ground truth, whose fields are sound.
    """
    sizes = {image["id"]: image_size(image) for image in images}
    boxes = np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4)
    limits = [sizes.get(result["image_id"], (np.nan, np.nan)) for result in results]
    objects = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    ends = objects[:, :2] + objects[:, 2:]
    return check_box_columns(
        where,
        boxes,
        np.array(limits, dtype=np.float64).reshape(-1, 2),
        ends.max(axis=0) if len(ends) else np.full(2, np.nan),
        lambda i: f"detection {i} of image {results[i]['image_id']!r}: {boxes[i].tolist()}",
    )


def _check_field(
    where: str, results: list, name: str, is_sound: Callable, wanted: str
) -> list[Finding]:
    missing = [i for i, result in enumerate(results) if name not in result]
    if missing:
        what = f"expected {wanted} as {name!r} of each detection, but {len(missing)} have none: "
        what += listed(missing, "detection {}".format)
        return [Finding("error", where, what, f"write {name!r} into each detection")]
    bad = [i for i, result in enumerate(results) if not is_sound(result[name])]
    if not bad:
        return []
    what = f"expected {wanted} as {name!r} of each detection, but {len(bad)} are not so: "
    what += listed(bad, lambda i: f"detection {i}: {name!r} is {shown(results[i][name], 80)}")
    return [Finding("error", where, what, f"correct {name!r} of these detections")]


def _check_images(where: str, given: list, images: list) -> list[Finding]:
    """Detections of images that were not annotated mean that the files do not belong together."""
    known = {image["id"] for image in images}
    unknown = [i for i, image_id in enumerate(given) if image_id not in known]
    if not unknown:
        return []
    what = f"{len(unknown)} of {len(given)} detections are of images that the ground truth does "
    what += "not list: " + listed(unknown, lambda i: f"detection {i} is of image {given[i]!r}")
    strange = [given[i] for i in unknown]
    hint = type_hint(strange, known) or name_hint(strange, ids_by_file_name(images))
    fix = "evaluate against the file the images came from"
    if hint:
        what, fix = f"{what}; {hint}", "write 'image_id' as the ground truth does"
    return [Finding("error", where, what, fix)]


def _check_categories(where: str, given: list, categories: list) -> list[Finding]:
    """Detections of classes that are not evaluated are left out, as COCO does, but not all."""
    known = {category["id"] for category in categories}
    unknown = [i for i, category_id in enumerate(given) if category_id not in known]
    if not unknown:
        return []
    what = f"{len(unknown)} of {len(given)} detections left out: their category is not listed in "
    what += "the ground truth: "
    what += listed(unknown, lambda i: f"detection {i} has category_id {given[i]!r}")
    strange = [given[i] for i in unknown]
    names = {category.get("name"): category["id"] for category in categories}
    hint = type_hint(strange, known) or name_hint(strange, names)
    fix = f"the ground truth has the ids {listed(sorted(known, key=str), repr)}"
    if hint:
        return [Finding("error", where, f"{what}; {hint}", "write 'category_id' as it does there")]
    what += index_hint(set(given), known)
    severity = "error" if len(unknown) == len(given) else "warning"
    return [Finding(severity, where, what, fix)]


def _check_scores(where: str, scores: list) -> list[Finding]:
    """Only the order of scores counts for LRP and AP, but thresholds are meant to be deployed."""
    outside = [i for i, score in enumerate(scores) if not 0 <= score <= 1]
    if not outside:
        return []
    what = f"{len(outside)} of {len(scores)} scores lie outside of [0, 1]: "
    what += listed(outside, lambda i: f"detection {i} has {scores[i]!r}")
    what += "; thresholds are in the same unit, and these classes have no calibration error"
    return [Finding("warning", where, what, "write probabilities if these are percent or logits")]


def _check_repeated(where: str, results: list) -> list[Finding]:
    """A detection that is listed twice counts as a false positive."""
    seen: set[tuple] = set()
    repeated = []
    for i, result in enumerate(results):
        key = (result["image_id"], result["category_id"], *result["bbox"], result["score"])
        if key in seen:
            repeated.append(i)
        seen.add(key)
    if not repeated:
        return []
    what = f"{len(repeated)} detections are listed more than once (same image, category, box and "
    what += f"score), and count so: {listed(repeated, 'detection {}'.format)}"
    return [Finding("warning", where, what, "remove the copies if they were written by mistake")]
