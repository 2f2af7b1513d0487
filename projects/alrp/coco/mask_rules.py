"""The rules of masks: polygons, and run-length encodings."""

from __future__ import annotations

from .findings import Finding, annotation_name, listed, shown
from .values import is_segmentation, without_fragments


def check_segmentations(where: str, annotations: list, purpose) -> list[Finding]:
    """Masks are there if they are used; where they are not, none may cost a box.

    Args:
        where: name of the file, for the messages.
        annotations: all of them.
        purpose: of type :class:`Purpose`.
    """
    if not (purpose.masks or purpose.drops_broken_masks):
        return []
    missing, broken, encoded, partial = [], [], [], []
    for i, annotation in enumerate(annotations):
        mask = annotation.get("segmentation")
        if not mask:
            missing.append(i)
        elif not is_segmentation(mask):
            broken.append(i)
        elif without_fragments(mask) is not mask:
            partial.append(i)
        elif isinstance(mask, dict) and not annotation.get("iscrowd", 0):
            encoded.append(i)

    def name(i: int) -> str:
        return annotation_name(annotations[i], i)

    findings = []
    if encoded and purpose.masks and purpose.polygons:
        what = f"INPUT.MASK_FORMAT is 'polygon', but {len(encoded)} annotations are run-length "
        what += f"encoded: {listed(encoded, name)}"
        findings.append(Finding("error", where, what, "set INPUT.MASK_FORMAT bitmask"))
    if missing and purpose.masks:
        what = f"MODEL.MASK_ON needs segmentation, but {len(missing)} annotations have none: "
        what += listed(missing, name)
        fix = "set MODEL.MASK_ON False, or add polygons to these annotations"
        findings.append(Finding("error", where, what, fix))
    if partial and purpose.masks:
        what = f"{len(partial)} annotations have polygons of fewer than three points beside others"
        what += f", which are left out: {listed(partial, name)}"
        findings.append(Finding("warning", where, what, "delete them if they mean nothing"))
    if broken:
        masks = listed(broken, lambda i: f"{name(i)}: {shown(annotations[i]['segmentation'], 80)}")
        what = "expected polygons [[x1, y1, x2, y2, x3, y3, ...], ...] of three points or more, or "
        what += f"a run-length encoding, as 'segmentation', but {len(broken)} annotations have "
        what += f"something else: {masks}"
        fix = "correct these segmentations"
        if not purpose.masks:
            what += "; Detectron2's loader leaves out such annotations, boxes included, or fails"
            fix += ", or name the dataset in DATASETS.COCO_FORMAT, where only boxes are read"
        findings.append(Finding("error", where, what, fix))
    return findings


def check_run_lengths(where: str, annotations: list, image_by_id: dict) -> list[Finding]:
    """Run-length encodings are of the size of their image.

    Args:
        where: name of the file, for the messages.
        annotations: of listed images.
        image_by_id: records of the images, with or without a size.
    """
    wrong = [
        f"{annotation_name(annotation, i)} ({problem})"
        for i, annotation in enumerate(annotations)
        if isinstance(annotation.get("segmentation"), dict)
        and (problem := _problem(annotation["segmentation"], image_by_id[annotation["image_id"]]))
    ]
    if not wrong:
        return []
    what = "expected run-length encodings of [height, width] of their image, but "
    what += f"{len(wrong)} are not so: {listed(wrong)}"
    return [Finding("error", where, what, "correct these segmentations")]


def _problem(segmentation: dict, image: dict) -> str:
    """What does not fit; "" also for what is no encoding, which is reported elsewhere."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    expected = [image.get("height"), image.get("width")]
    if isinstance(size, list) and None not in expected and size != expected:
        return f"size {size}, the image has {expected}"
    if isinstance(size, list) and len(size) == 2 and isinstance(counts, list):
        total = sum(n for n in counts if isinstance(n, (int, float)))
        if total != size[0] * size[1]:
            return f"counts of {total} pixels instead of {size[0] * size[1]}"
    return ""
