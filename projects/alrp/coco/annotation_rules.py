"""The rules of an annotation file in COCO's detection format."""

from __future__ import annotations

from collections import Counter
from typing import Callable, Collection, NamedTuple

from .box_rules import check_boxes
from .findings import Finding, annotation_name, listed, shown
from .id_hints import index_hint, type_hint
from .mask_rules import check_run_lengths, check_segmentations
from .values import (
    MAX_AREA,
    is_area,
    is_box,
    is_flag,
    is_id,
    is_keypoints,
    is_length,
    is_pixel_count,
    is_text,
    is_whole,
)


class Purpose(NamedTuple):
    """What an annotation file is read for.

    Attributes:
        training: whether a model learns from it: annotations must be there, and what an evaluation
            only warns about is an error.
        images: whether image files are read too. Then images need a file name and a size,
            categories a name, annotations an id, and ids of categories are numbers.
        ids: whether annotations need an id though no images are read; pycocotools' index does.
        masks: whether segmentations are used (``MODEL.MASK_ON``).
        polygons: whether masks of objects must be polygons (``INPUT.MASK_FORMAT`` in training).
        keypoints: whether keypoints are used (``MODEL.KEYPOINT_ON``).
        drops_broken_masks: whether the loader leaves out annotations with broken segmentations
            though masks are not used. Detectron2's own does.
        tolerate_bad_boxes: whether empty boxes and boxes outside of the image are warnings even in
            training; for published files, which their user cannot mend.
        tolerate_repeated_ids: whether ids of annotations may be repeated, see :func:`repeats_ids`.
    """

    training: bool = False
    images: bool = False
    ids: bool = False
    masks: bool = False
    polygons: bool = False
    keypoints: bool = False
    drops_broken_masks: bool = False
    tolerate_bad_boxes: bool = False
    tolerate_repeated_ids: bool = False


def repeats_ids(annotation_json: str) -> bool:
    """Whether a file is COCO 2014's "minival", whose repeated ids Detectron2 tolerates."""
    return "minival" in annotation_json


class _Field(NamedTuple):
    name: str
    is_sound: Callable[[object], bool]
    wanted: str
    needed: bool = True


def check_annotations(where: str, content: object, purpose: Purpose) -> list[Finding]:
    """Mistakes in the content of an annotation file; empty if all is well.

    Without an error in it, every field that is read later has a value of the right kind. Fields
    that may be left out are filled in by :func:`completed`.

    Args:
        where: name of the file, for the messages.
        content: the parsed JSON.
        purpose: what the file is read for.
    """
    return check_fields(where, content, purpose) or check_meaning(where, content, purpose)


def check_fields(where: str, content: object, purpose: Purpose) -> list[Finding]:
    """As :func:`check_annotations`, but each record is looked at alone; errors only."""
    if not isinstance(content, dict):
        what = "expected a JSON object with the lists 'images', 'categories' and 'annotations', "
        what += f"but the file holds a {type(content).__name__}"
        fix = "name a file in COCO's annotation format; detection results are not one"
        return [Finding("error", where, what, fix)]
    return [
        finding
        for key in ("categories", "images", "annotations")
        if not (key == "annotations" and key not in content and not purpose.training)
        for finding in _check_list(where, content, key, _fields(key, purpose))
    ]


def check_categories(where: str, content: object) -> list[Finding]:
    """As :func:`check_annotations`, of the categories alone, which need ids and names."""
    if not isinstance(content, dict):
        return check_fields(where, content, Purpose())
    fields = _fields("categories", Purpose(images=True))
    findings = _check_list(where, content, "categories", fields)
    return findings or _check_names(where, content["categories"])


def check_meaning(where: str, content: dict, purpose: Purpose) -> list[Finding]:
    """As :func:`check_annotations`, of content in which :func:`check_fields` found nothing."""
    annotations = content.get("annotations", [])
    image_by_id = {image["id"]: image for image in content["images"]}
    # Annotations of unknown images are reported by _check_ids and cannot be judged further.
    known = [a for a in annotations if a["image_id"] in image_by_id]
    return [
        *_check_ids(where, content, purpose),
        *_check_names(where, content["categories"], {a["category_id"] for a in annotations}),
        *_check_id_zero(where, annotations, purpose),
        *(_check_omitted(where, annotations, purpose) if "annotations" in content else ()),
        *check_segmentations(where, annotations, purpose),
        *(check_run_lengths(where, known, image_by_id) if purpose.masks else ()),
        *check_boxes(where, known, image_by_id, purpose),
    ]


def _fields(key: str, purpose: Purpose) -> list[_Field]:
    """Fields of the records of one list, as far as the purpose reads them."""
    category_id = (is_whole, "an integer") if purpose.images else (is_id, "an integer or text")
    if key == "categories":
        return [_Field("id", *category_id), _Field("name", is_text, "a name", purpose.images)]
    if key == "images":
        fields = [_Field("id", is_id, "an integer or string")]
        if purpose.images:
            size = (is_length, "a positive number of pixels")
            if purpose.masks and purpose.drops_broken_masks:
                size = (is_pixel_count, "a positive integer, without a decimal point,")
            path = "a path relative to the image folder"
            fields += [_Field("file_name", is_text, path)]
            fields += [_Field("width", *size), _Field("height", *size)]
        return fields
    fields = [
        _Field("image_id", is_id, "the id of an image"),
        _Field("category_id", category_id[0], "the id of a category"),
        _Field("bbox", is_box, "four numbers [x, y, width, height] (pixels)"),
        _Field("area", is_area, f"an area from 0 to {MAX_AREA:.0e} square pixels", False),
        _Field("iscrowd", is_flag, "0 or 1", False),
    ]
    if purpose.images or purpose.ids:
        fields.insert(0, _Field("id", is_id, "an integer or text"))
    if purpose.keypoints:
        wanted = "a list of numbers [x, y, visibility, ...]"
        fields.append(_Field("keypoints", is_keypoints, wanted, False))
    return fields


def _check_list(where: str, content: dict, key: str, fields: list[_Field]) -> list[Finding]:
    """One list is there, and its records have sound fields."""
    records = content.get(key)
    if not isinstance(records, list) or (not records and key != "annotations"):
        found = "is missing" if key not in content else f"is {str(records)[:40]}"
        what = f"expected a non-empty list {key!r}, but it {found}"
        fix = f"export the dataset in COCO's detection format, with its {key}"
        return [Finding("error", where, what, fix)]
    if key == "annotations" and any(map(_is_panoptic, records)):
        what = "expected boxes of objects, but these are annotations of panoptic segmentation, "
        what += "which have 'segments_info'"
        fix = "name the dataset's file of objects, such as COCO's instances_*.json"
        return [Finding("error", where, what, fix)]
    strange = [f"{key}[{i}]" for i, r in enumerate(records) if not isinstance(r, dict)]
    if strange:
        what = f"expected JSON objects in {key!r}, but {len(strange)} are not: {listed(strange)}"
        fix = "remove them or export the dataset again"
        return [Finding("error", where, what, fix)]
    findings = []
    for field in fields:
        # An optional field may be left out, but null is no number.
        name, is_sound, needed = field.name, field.is_sound, field.needed
        bad = [
            i
            for i, record in enumerate(records)
            if not (is_sound(record[name]) if name in record else not needed)
        ]
        if bad:
            what = f"expected {field.wanted} as {field.name!r} of each of the {key}, but "
            what += f"{len(bad)} are not so: "
            what += listed(bad, lambda i: f"{key}[{i}] is {_shown(records[i], field.name)}")
            fix = _remedy(field, key, [records[i] for i in bad])
            findings.append(Finding("error", where, what, fix))
    return findings


def _is_panoptic(record: object) -> bool:
    """Whether an annotation is one of panoptic segmentation, which has no box of its own."""
    return isinstance(record, dict) and "segments_info" in record and "bbox" not in record


def _remedy(field: _Field, key: str, wrong: list[dict]) -> str:
    """What to do about records of which a field is wrong or missing."""
    name = field.name
    if not field.needed:
        return f"correct {name!r} of these {key} or leave it out"
    if name == "file_name" and all("coco_url" in record for record in wrong):
        return (
            "write the end of their 'coco_url', such as val2017/000000000139.jpg, as 'file_name': "
            "LVIS has no other names of files"
        )
    verb = "correct" if all(name in record for record in wrong) else "write"
    return f"{verb} {name!r} of these {key} or remove them"


def _shown(record: dict, field: str) -> str:
    """The wrong field first: the rest of a record may be long."""
    if field in record:
        rest = {key: value for key, value in record.items() if key != field}
        record = {field: record[field], **rest}
    return shown(record, 100)


def _check_ids(where: str, content: dict, purpose: Purpose) -> list[Finding]:
    """Ids are unique and of one kind; annotations refer to what is there."""
    findings = []
    annotations = content.get("annotations", [])
    for key in ("categories", "images", "annotations"):
        records = [r for r in content.get(key, []) if key != "annotations" or "id" in r]
        counts = Counter(_hashable(record["id"]) for record in records)
        repeated = [f"{id_!r} ({count} times)" for id_, count in counts.items() if count > 1]
        if repeated and not (key == "annotations" and purpose.tolerate_repeated_ids):
            what = f"expected unique ids of {key}, but {len(repeated)} are not: {listed(repeated)}"
            findings.append(Finding("error", where, what, f"number the {key} anew"))
        if key != "annotations" and len({isinstance(id_, str) for id_ in counts}) > 1:
            what = f"expected ids of {key} of one kind, but some are numbers, others are text, "
            what += "such as " + repr(next(id_ for id_ in counts if isinstance(id_, str)))
            findings.append(Finding("error", where, what, f"number the {key} anew"))
    for field, key in (("image_id", "images"), ("category_id", "categories")):
        findings += _check_references(where, annotations, field, content[key], purpose)
    ignored = [annotation_name(a, i) for i, a in enumerate(annotations) if a.get("ignore")]
    if ignored:
        what = f"{len(ignored)} annotations set 'ignore', which neither Detectron2 nor COCO's "
        what += f"evaluation supports: {listed(ignored)}"
        fix = "delete these annotations, or set 'iscrowd' to 1 and 'ignore' to 0"
        findings.append(Finding("error" if purpose.images else "warning", where, what, fix))
    return findings


def _hashable(value: object) -> object:
    """Annotation ids are not used where only boxes are read, and may then be anything."""
    return value if isinstance(value, (int, float, str)) else repr(value)


def _check_references(
    where: str, annotations: list, field: str, records: list, purpose: Purpose
) -> list[Finding]:
    """``field`` of every annotation is the id of a record."""
    ids = {record["id"] for record in records}
    key = "images" if field == "image_id" else "categories"
    unknown = [i for i, annotation in enumerate(annotations) if annotation[field] not in ids]
    if not unknown:
        return []
    what = f"{len(unknown)} annotations refer to {key} that are not listed: " + listed(
        unknown,
        lambda i: f"{annotation_name(annotations[i], i)} has {field} {annotations[i][field]!r}",
    )
    hint = type_hint([annotations[i][field] for i in unknown], ids)
    if hint:
        fix = f"write 'id' of the {key} and {field!r} of the annotations alike"
        return [Finding("error", where, f"{what}; {hint}", fix)]
    # An evaluation leaves single ones out, as COCO's does, but needs something to evaluate.
    is_error = purpose.training or len(unknown) == len(annotations)
    fix = f"add the missing {key} or delete these annotations"
    hint = index_hint({a[field] for a in annotations}, ids) if field == "category_id" else ""
    if hint:
        what, fix = what + hint, "write the ids of the categories into the annotations"
    if not is_error:
        what += "; they are left out"
    return [Finding("error" if is_error else "warning", where, what, fix)]


def _check_names(
    where: str, categories: list, used: Collection[object] | None = None
) -> list[Finding]:
    """Two categories of one name would be one line in a report.

    Args:
        where: name of the file, for the messages.
        categories: all of them.
        used: ids of those that annotations have; None if unknown.
    """
    ids: dict[str, dict] = {}  # the inner ones are sets that keep their order
    for category in categories:
        ids.setdefault(category.get("name", str(category["id"])), {})[category["id"]] = None
    twice = [
        f"categories {' and '.join(map(repr, same))} are {'both' if len(same) == 2 else 'all'} "
        f"named {name!r}"
        for name, same in ids.items()
        if len(same) > 1
    ]
    if not twice:
        return []
    what = f"expected a name of its own for each category, but {listed(twice)}"
    fix = "rename or merge them in 'categories'"
    repeated = [id_ for same in ids.values() if len(same) > 1 for id_ in same]
    # Roboflow writes the name of a project as a category that no annotation has.
    unused = [repr(id_) for id_ in repeated if used and id_ not in used]
    if unused:
        fix += f"; no annotation has category {listed(unused)}, which may be removed"
    return [Finding("error", where, what, fix)]


def _check_id_zero(where: str, annotations: list, purpose: Purpose) -> list[Finding]:
    """pycocotools marks an unmatched detection by id 0, so AP would miss the match with it."""
    if not purpose.images or all(annotation["id"] != 0 for annotation in annotations):
        return []
    what = "an annotation has the id 0, which COCO's evaluation takes for 'no match'; the "
    what += "annotations are numbered from 1 in memory"
    return [Finding("warning", where, what, "nothing needs to be done; the file is left as it is")]


def _check_omitted(where: str, annotations: list, purpose: Purpose) -> list[Finding]:
    """A field that all annotations leave out means its default; one that some do may be lost."""
    findings = []
    if not annotations:
        what, fix = "the list 'annotations' is empty", "name a file with boxes if there are any"
        findings.append(Finding("warning", where, what, fix))
    elif not purpose.training and all(a.get("iscrowd", 0) for a in annotations):
        what = "all annotations are crowds, so that there is nothing to find"
        fix = "set 'iscrowd' to 0 for ordinary objects"
        findings.append(Finding("warning", where, what, fix))
    for field, default in (("area", "width x height"), ("iscrowd", "0")):
        missing = [i for i, annotation in enumerate(annotations) if field not in annotation]
        if 0 < len(missing) < len(annotations):
            what = f"{len(missing)} of {len(annotations)} annotations have no {field!r}, which is "
            what += f"taken as {default}: "
            what += listed(missing, lambda i: annotation_name(annotations[i], i))
            fix = f"write {field!r} into all annotations or into none"
            findings.append(Finding("warning", where, what, fix))
    return findings
