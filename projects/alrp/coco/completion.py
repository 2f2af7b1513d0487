"""The content of an annotation file with what it may leave out filled in."""

from __future__ import annotations

from .values import without_fragments

# Larger integers are not exact in the float64 that pycocotools keeps ids in.
_MAX_ID = 2**53


def completed(content: dict) -> dict:
    """A copy that COCO's evaluation reads correctly; lists and records that are right are shared.

    ``area`` is width x height and ``iscrowd`` 0 where an annotation omits them. Annotations are
    numbered from 1 in file order if an id is missing, repeated, no integer, or below 1: pycocotools
    takes the id 0 for "no match". A segmentation of polygons and fragments keeps the polygons:
    pycocotools would take four numbers for a box.

    Args:
        content: of a file in which :func:`check_annotations` found no error.
    """
    annotations = content.get("annotations")
    if annotations is None:
        return content
    ids = [annotation.get("id") for annotation in annotations]
    sound = all(isinstance(id_, int) and 1 <= id_ <= _MAX_ID for id_ in ids)
    if not sound or len(set(ids)) < len(ids):
        ids = list(range(1, len(ids) + 1))
    return {**content, "annotations": [_completed(a, id_) for a, id_ in zip(annotations, ids)]}


def _completed(annotation: dict, id_: int) -> dict:
    """One annotation with ``id``, ``area`` and an integer ``iscrowd``."""
    mask = annotation.get("segmentation")
    polygons = without_fragments(mask)
    if annotation.get("id") == id_ and "area" in annotation and polygons is mask:
        if type(annotation.get("iscrowd")) is int:
            return annotation
    width, height = annotation["bbox"][2:]
    filled = {"area": width * height, **annotation, "id": id_}
    filled["iscrowd"] = int(annotation.get("iscrowd", 0))
    if polygons is not mask:
        filled["segmentation"] = polygons
    return filled
