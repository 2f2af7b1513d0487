"""What can be told of an image file without Detectron2."""

from __future__ import annotations

from PIL import Image

from ..files import kind_of_file

_EXIF_ORIENTATION = 274
_EXIF_TRANSPOSED = (5, 6, 7, 8)  # orientations in which the loader swaps width and height


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after the rotation that its EXIF data asks for.

    Detectron2 turns photographs upright before it compares sizes.
    """
    width, height = image.size
    is_turned = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_TRANSPOSED
    return (height, width) if is_turned else (width, height)


def why_unreadable(path: str, error: Exception) -> str:
    """What a file is that was refused as an image, or else what the reader said of it."""
    if isinstance(error, OSError) and error.strerror:  # it could not be opened
        return error.strerror
    try:
        kind = kind_of_file(path)
    except OSError:  # of a path that is no local one
        kind = ""
    return f"the file is {kind}" if kind else str(error)
