"""Looks for mistakes in one dataset in COCO's detection format before anything is trained on it.

Plain JSON, NumPy and Pillow: no index of the annotations is built and nothing is registered. COCO's
own training file takes about as long as reading its JSON does.
"""

from __future__ import annotations

import numpy as np
import os
from collections import Counter
from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence
from PIL import Image

from ...errors import UserError
from ...files import read_json

_MAX_IMAGES_OPENED = 50
_MIN_IMAGE_SIDE = 32  # pixels; the published training set leaves smaller images out
_EXIF_ORIENTATION = 274
_EXIF_TRANSPOSED = (5, 6, 7, 8)  # orientations in which the loader swaps width and height
_XYWH_HINT = "COCO boxes are [x, y, width, height] in pixels, not two corners"


@dataclass(frozen=True)
class Finding:
    """One mistake or oddity.

    Attributes:
        severity: "error" (the run cannot succeed) or "warning".
        where: the config key, dataset or file it is in.
        what: what was expected and what was found.
        fix: what to do about it.
    """

    severity: str
    where: str
    what: str
    fix: str


class CocoSummary(NamedTuple):
    """What :func:`check_coco_dataset` saw.

    Attributes:
        findings: errors and warnings.
        class_names: category names by ascending id; None if the file could not be understood.
        num_images: images listed.
        num_labelled: images with at least one annotation that is not a crowd.
    """

    findings: list[Finding]
    class_names: tuple[str, ...] | None = None
    num_images: int = 0
    num_labelled: int = 0


def check_coco_dataset(
    name: str,
    annotation_json: str,
    image_folder: str,
    *,
    for_training: bool,
    tolerate_bad_boxes: bool = False,
) -> CocoSummary:
    """Check annotation file, boxes and a sample of at most 50 images of a dataset.

    Args:
        name: dataset name, for the messages.
        annotation_json: path of the annotation file.
        image_folder: folder that the images' ``file_name`` is relative to.
        for_training: whether annotations must be there and bad boxes are errors.
        tolerate_bad_boxes: empty boxes and boxes outside of the image are warnings even in training
            (the loader drops them); for published files, which their user cannot mend.
    """
    where = f"dataset {name!r}, {annotation_json}"
    content, findings = _read_json(where, annotation_json)
    if not findings:
        findings = _check_fields(where, content, for_training)
    if findings:
        return CocoSummary(findings)
    images, annotations = content["images"], content.get("annotations", [])
    findings = _check_ids(where, content, is_known_to_repeat_ids="minival" in annotation_json)
    findings += _check_id_zero(where, annotations, for_training)
    image_by_id = {image["id"]: image for image in images}
    # Annotations of unknown images were reported by _check_ids and cannot be judged further.
    objects = [a for a in annotations if not a.get("iscrowd", 0) and a["image_id"] in image_by_id]
    findings += _check_boxes(where, objects, image_by_id, for_training, tolerate_bad_boxes)
    findings += _check_images(name, images, image_folder)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return CocoSummary(
        findings,
        tuple(category["name"] for category in categories),
        len(image_by_id),
        len({annotation["image_id"] for annotation in objects}),
    )


def _examples(items: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
    return "; ".join(items[:3]) + more


def _read_json(where: str, path: str) -> tuple[dict, list[Finding]]:
    """Content of the file, or {} and the reason why there is none."""
    if not os.path.exists(path):
        what = "the annotation file does not exist"
        fix = (
            "correct the path in DATASETS.COCO_FORMAT; for Detectron2's built-in datasets set the "
            "environment variable DETECTRON2_DATASETS to the folder that holds them"
        )
        return {}, [Finding("error", where, what, fix)]
    try:
        content = read_json(path)
    except UserError as error:
        what, fix = str(error), "mend the file, or export it again as JSON in UTF-8"
    else:
        if isinstance(content, dict):
            return content, []
        what = f"expected a JSON object, but the file holds a {type(content).__name__}"
        fix = "name a file with images, categories and annotations; detection results are not one"
    return {}, [Finding("error", where, what, fix)]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    return _is_int(value) or isinstance(value, str)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_length(value: object) -> bool:
    return _is_number(value) and value > 0


# Per list: field, test, what the test wants. All of these are needed by Detectron2's loader.
_FIELDS: dict[str, list[tuple[str, Callable[[object], bool], str]]] = {
    "categories": [("id", _is_int, "an integer"), ("name", _is_text, "a name")],
    "images": [
        ("id", _is_id, "an integer or string"),
        ("file_name", _is_text, "a path relative to the image folder"),
        ("width", _is_length, "a positive number of pixels"),
        ("height", _is_length, "a positive number of pixels"),
    ],
    "annotations": [
        ("id", _is_int, "an integer"),
        ("image_id", _is_id, "the id of an image"),
        ("category_id", _is_int, "the id of a category"),
        ("bbox", _is_box, "four numbers [x, y, width, height] (pixels)"),
    ],
}


def _check_fields(where: str, content: dict, for_training: bool) -> list[Finding]:
    """The three lists are there and their records have the fields that training needs."""
    findings = []
    for key, fields in _FIELDS.items():
        # Test sets whose annotations are secret come without the key.
        if key == "annotations" and key not in content and not for_training:
            continue
        records = content.get(key)
        if not isinstance(records, list) or (not records and key != "annotations"):
            found = "is missing" if key not in content else f"is {str(records)[:40]}"
            what = f"expected a non-empty list {key!r}, but it {found}"
            fix = f"export the dataset in COCO's detection format, with its {key}"
            findings.append(Finding("error", where, what, fix))
            continue
        strange = [f"{key}[{i}]" for i, r in enumerate(records) if not isinstance(r, dict)]
        if strange:
            what = f"expected JSON objects in {key!r}, but {len(strange)} are not: "
            fix = "remove them or export the dataset again"
            findings.append(Finding("error", where, what + _examples(strange), fix))
            continue
        for field, is_sound, wanted in fields:
            bad = [i for i, record in enumerate(records) if not is_sound(record.get(field))]
            if bad:
                examples = [f"{key}[{i}] is {str(records[i])[:100]}" for i in bad]
                what = f"expected {wanted} as {field!r} of each of the {key}, but {len(bad)} "
                what += f"are not so: {_examples(examples)}"
                fix = f"write {field!r} into these {key} or remove them"
                findings.append(Finding("error", where, what, fix))
    return findings


def _check_id_zero(where: str, annotations: list[dict], for_training: bool) -> list[Finding]:
    """pycocotools marks an unmatched detection by id 0, so AP would miss the match with it."""
    if all(annotation["id"] != 0 for annotation in annotations):
        return []
    what = "an annotation has the id 0, which COCO's evaluation takes for 'no match': AP comes "
    what += "out too low"
    severity = "warning" if for_training else "error"
    return [Finding(severity, where, what, "number the annotations from 1")]


def _check_ids(where: str, content: dict, is_known_to_repeat_ids: bool) -> list[Finding]:
    """Ids are unique and annotations refer to what is there; ``ignore`` is not used."""
    findings = []
    annotations = content.get("annotations", [])
    ids = {}
    for key in _FIELDS:
        counts = Counter(record["id"] for record in content.get(key, []))
        ids[key] = counts.keys()
        repeated = [f"{id_} ({count} times)" for id_, count in counts.items() if count > 1]
        # COCO 2014 "minival" repeats some annotation ids, and Detectron2 lets it.
        if repeated and not (key == "annotations" and is_known_to_repeat_ids):
            what = f"expected unique ids of {key}, but {len(repeated)} are not: "
            what += _examples(repeated)
            findings.append(Finding("error", where, what, f"number the {key} anew"))
    for field, key in (("image_id", "images"), ("category_id", "categories")):
        unknown = [
            f"annotation {a['id']} has {field} {a[field]}"
            for a in annotations
            if a[field] not in ids[key]
        ]
        if unknown:
            what = f"{len(unknown)} annotations refer to {key} that are not listed: "
            fix = f"add the missing {key} or delete these annotations"
            findings.append(Finding("error", where, what + _examples(unknown), fix))
    ignored = [f"annotation {a['id']}" for a in annotations if a.get("ignore", 0)]
    if ignored:
        what = f"{len(ignored)} annotations set 'ignore', which Detectron2 does not support: "
        what += _examples(ignored)
        fix = "delete these annotations, or set 'iscrowd' to 1 and 'ignore' to 0"
        findings.append(Finding("error", where, what, fix))
    return findings


def _check_boxes(
    where: str, objects: list[dict], image_by_id: dict, for_training: bool, tolerate: bool
) -> list[Finding]:
    """Finite, not empty, inside the image; each box is reported once, for the worst reason."""
    images = [image_by_id[annotation["image_id"]] for annotation in objects]
    boxes = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
    limits = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
    low, sides = boxes[:, :2], boxes[:, 2:]
    strict = "error" if for_training else "warning"
    lenient = "warning" if tolerate else strict
    correct = "delete them, or correct them: " + _XYWH_HINT
    clipped = "the part outside is cut off; make sure that " + _XYWH_HINT
    with np.errstate(invalid="ignore", over="ignore"):
        high = low + sides
        kinds = [
            (~np.isfinite(high), strict, "a number that is not finite", "delete or correct them"),
            (
                sides <= 0,
                lenient,
                "a width or height of zero or less",
                correct,
            ),
            ((high <= 0) | (low >= limits), lenient, "no overlap with their image", correct),
            (sides < 1, "warning", "a side below 1 pixel", "delete them if they mean nothing"),
            # Rounded coordinates may stick out a little.
            ((low < -1) | (high > limits + 1), "warning", "a part outside of the image", clipped),
        ]
    findings = []
    unreported = np.ones(len(boxes), dtype=bool)
    for flags, severity, problem, fix in kinds:
        bad = np.flatnonzero(flags.any(axis=1) & unreported)
        unreported[bad] = False
        if len(bad):
            examples = [
                f"annotation {objects[i]['id']} in {images[i]['file_name']}: {objects[i]['bbox']}"
                for i in bad
            ]
            what = f"{len(bad)} boxes have {problem}: {_examples(examples)}"
            findings.append(Finding(severity, where, what, fix))
    return findings


def _check_images(name: str, images: list[dict], folder: str) -> list[Finding]:
    """The folder is there; an evenly spaced sample of files opens and has the stated sizes."""
    where = f"dataset {name!r}, {folder}"
    if not os.path.isdir(folder):
        fix = "correct the image folder in DATASETS.COCO_FORMAT (or DETECTRON2_DATASETS)"
        return [Finding("error", where, "the image folder does not exist", fix)]
    findings = []
    positions = np.linspace(0, len(images) - 1, min(len(images), _MAX_IMAGES_OPENED)).astype(int)
    sample = [images[i] for i in positions]
    problems: dict[str, list[str]] = {"missing": [], "unreadable": [], "of another size": []}
    for image in sample:
        kind, detail = _open_image(os.path.join(folder, image["file_name"]), image)
        if kind:
            problems[kind].append(image["file_name"] + detail)
    fixes = {
        "missing": "make 'file_name' relative to the image folder, or copy the files there",
        "unreadable": "replace these files; copies may have been cut short",
        "of another size": "write the true 'width' and 'height' (after EXIF rotation)",
    }
    for kind, examples in problems.items():
        if examples:
            what = f"{len(examples)} of {len(sample)} images looked at are {kind}: "
            what += _examples(examples)
            findings.append(Finding("error", where, what, fixes[kind]))
    small = [i["file_name"] for i in images if min(i["width"], i["height"]) < _MIN_IMAGE_SIDE]
    if small:
        what = f"{len(small)} images have a side below {_MIN_IMAGE_SIDE} pixels: {_examples(small)}"
        fix = "leave them out; the published results do"
        findings.append(Finding("warning", where, what, fix))
    return findings


def _open_image(path: str, record: dict) -> tuple[str, str]:
    """Kind of problem ("" if none) and its detail."""
    if not os.path.isfile(path):
        return "missing", ""
    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
            # Detectron2 turns photographs upright before it compares sizes.
            if image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED:
                width, height = height, width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "unreadable", f" ({error})"
    if (width, height) != (record["width"], record["height"]):
        return "of another size", f" ({width}x{height}, not {record['width']}x{record['height']})"
    return "", ""
