"""Reading of image files, shared by training, evaluation and the demo, and what can go wrong."""

from __future__ import annotations

import numpy as np
from contextlib import contextmanager
from typing import Iterator
from PIL import Image

from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from .image_files import why_unreadable

TOO_LARGE_FIX = "cut the image into tiles or shrink it"
DEEP_FIX = (
    "convert the images to 8 bits by one scale for all, such as value / 257 for the full range of "
    "16 bits; all values above 255 would be read as white"
)


def read_image(path: str, image_format: str) -> np.ndarray:
    """Image (H, W, 3) uint8, upright as its EXIF data says.

    Args:
        path: of the file.
        image_format: "RGB" or "BGR".

    Raises:
        UserError: that names the file, if it cannot be read or has more than 8 bits per channel.
    """
    with naming(path):
        check_depth(path)
        return detection_utils.read_image(path, format=image_format)


def check_depth(path: str) -> None:
    """Refuse what Detectron2 would read as a blank picture; only the header is read.

    Raises:
        UserError: if the image has more than 8 bits per channel.
    """
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        mode, deep = image.mode, is_deep(image)
    if deep:
        raise UserError(
            f"{path}: expected 8 bits per channel, but the image has 16 or 32 (Pillow's mode "
            f"{mode!r}); {DEEP_FIX}."
        )


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits per channel, as Pillow tells.

    Of colour images with 16 bits per channel Pillow itself reads the upper 8.
    """
    return image.mode.startswith(("I", "F"))  # I;16, I;16B, I, F


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn a failure to read or resize an image into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except detection_utils.SizeMismatchError as error:
        raise UserError(
            f"{path}: expected an image of the size that its annotation states, but got: {error}. "
            "Write the true 'width' and 'height' (after EXIF rotation)."
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {too_large_text(error)}; {TOO_LARGE_FIX}.") from error
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"{path}: expected an image file that can be read, but got: "
            f"{why_unreadable(path, error)}. Replace the file, or remove it from the dataset."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: expected an image and annotations that can be read and resized, but got: "
            f"{error}. Correct the annotations, or replace the file. A side of a very long image "
            "may become less than a pixel; cut it."
        ) from error


def too_large_text(error: Image.DecompressionBombError) -> str:
    """What was expected of an image that Pillow refuses for its number of pixels."""
    limit = 2 * Image.MAX_IMAGE_PIXELS
    return f"expected at most {limit:,} pixels, which Pillow reads, but got: {error}"
