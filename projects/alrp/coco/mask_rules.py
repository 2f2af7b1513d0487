"""The rules of masks that are given as run-length encodings."""

from __future__ import annotations

from .findings import Finding, listed


def check_run_lengths(where: str, annotations: list, image_by_id: dict) -> list[Finding]:
    """Run-length encodings are of the size of their image.

    Args:
        where: name of the file, for the messages.
        annotations: of listed images.
        image_by_id: records of the images, with or without a size.
    """
    wrong = [
        f"annotation {annotation.get('id', f'at position {i}')} ({problem})"
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
