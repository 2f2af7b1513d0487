"""Whether a value of a JSON file is what its field needs. NumPy's scalars count as numbers."""

from __future__ import annotations

import math
import numbers
import numpy as np

# The largest area that COCO's evaluation counts, in square pixels.
MAX_AREA = 1e10

_LARGEST_ID = 2**63 - 1
_LARGEST_INT = 2**1000  # fits a float64; larger ones are no coordinates


def is_number(value: object) -> bool:
    """A number, NaN and infinities included; ``true`` and ``false`` are none."""
    if type(value) is float:  # nearly always, and this runs for every number of a file
        return True
    if type(value) is not int and (not isinstance(value, numbers.Real) or isinstance(value, bool)):
        return False
    return not isinstance(value, int) or abs(value) <= _LARGEST_INT


def is_finite(value: object) -> bool:
    """A finite number."""
    return is_number(value) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """An integer, which may be written as 1.0, of at most 64 bits."""
    if type(value) is int:
        return -_LARGEST_ID <= value <= _LARGEST_ID
    return is_finite(value) and value == int(value) and abs(value) <= _LARGEST_ID


def is_id(value: object) -> bool:
    """An integer or a text that is not empty."""
    return is_whole(value) or is_text(value)


def is_text(value: object) -> bool:
    """Text that is not empty and can be written to a file; half a surrogate pair cannot."""
    if not isinstance(value, str) or value == "":
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_length(value: object) -> bool:
    """A positive finite number."""
    return is_finite(value) and value > 0


def is_pixel_count(value: object) -> bool:
    """A positive integer, not written as 1.0."""
    return type(value) is int and value > 0


def is_box(value: object) -> bool:
    """Four numbers."""
    return (
        isinstance(value, (list, tuple, np.ndarray))
        and len(value) == 4
        and all(map(is_number, value))
    )


def is_area(value: object) -> bool:
    """An area that COCO's evaluation counts: 0 to 1e10."""
    return is_finite(value) and 0 <= value <= MAX_AREA


def is_flag(value: object) -> bool:
    """0, 1, ``false`` or ``true``."""
    return isinstance(value, (bool, np.bool_)) or is_number(value) and value in (0, 1)


def is_polygon(value: object) -> bool:
    """A list [x1, y1, x2, y2, ...] of three points or more."""
    is_list = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    return is_list and all(map(is_finite, value))


def is_fragment(value: object) -> bool:
    """A list of coordinates that is no polygon; Detectron2 leaves it out beside real ones."""
    is_list = isinstance(value, list) and (len(value) < 6 or len(value) % 2 == 1)
    return is_list and all(map(is_finite, value))


def is_segmentation(value: object) -> bool:
    """A list of polygons, or a run-length encoding ``{"size": [h, w], "counts": ...}``.

    Beside polygons there may be fragments, see :func:`is_fragment`.
    """
    if isinstance(value, list):
        polygons = [part for part in value if not is_fragment(part)]
        return len(polygons) > 0 and all(map(is_polygon, polygons))
    if not isinstance(value, dict):
        return False
    size, counts = value.get("size"), value.get("counts")
    has_size = isinstance(size, list) and len(size) == 2 and all(map(is_length, size))
    is_list = isinstance(counts, list) and all(is_whole(n) and n >= 0 for n in counts)
    return has_size and (is_list or is_text(counts))


def without_fragments(segmentation: object) -> object:
    """A list of polygons and fragments as a list of the polygons; anything else as it is."""
    if not isinstance(segmentation, list) or not any(map(is_fragment, segmentation)):
        return segmentation
    polygons = [part for part in segmentation if not is_fragment(part)]
    return polygons if is_segmentation(polygons) else segmentation


def is_keypoints(value: object) -> bool:
    """A list [x1, y1, v1, x2, ...]."""
    return isinstance(value, list) and len(value) % 3 == 0 and all(map(is_finite, value))
