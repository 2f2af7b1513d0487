"""The published training augmentation: colour, expansion, crop, resize to a square.

An ``Augmentation`` draws (from NumPy's global generator, which Detectron2 seeds in every worker);
the ``Transform`` it returns is deterministic. Images are (H, W, 3) float32 in 0..255 and leave that
range: nothing is clipped, as published. Boxes are (M, 4) XYXY in absolute pixels. Only images and
boxes are supported, no masks.
"""

from __future__ import annotations

import numpy as np
from typing import Sequence
import cv2

from detectron2.data.transforms import (
    Augmentation,
    CropTransform,
    NoOpTransform,
    ResizeTransform,
    Transform,
)

from ..errors import UserError

# Float convention of OpenCV: hue in degrees, saturation (max - min) / |max|, value as the input.
_HSV_CODES = {
    "RGB": (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB),
    "BGR": (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR),
}


class PhotometricTransform(Transform):
    """Brightness, contrast, saturation, hue and order of the channels, in this order.

    The published code applies the contrast at times after the hue. That gives the same picture, as
    a factor of the image changes neither hue nor saturation, so there is one order here.

    The way to HSV and back is taken for every image, as published. On its own it changes only
    pixels without a positive channel.

    Args:
        brightness: added to all channels, in grey levels.
        contrast: factor of all channels.
        saturation: factor of the saturation.
        hue: added to the hue, in degrees of -360..360.
        channel_order: which of the old red, green, blue (0, 1, 2) become the new ones.
        image_format: "RGB" or "BGR"; the same parameters give the same picture in both.

    Raises:
        UserError: if ``image_format`` is none of the two.
    """

    def __init__(
        self,
        *,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
        channel_order: Sequence[int] = (0, 1, 2),
        image_format: str = "RGB",
    ) -> None:
        super().__init__()
        _check_format(image_format)
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Distorted copy of an (H, W, 3) float32 image; ValueError for any other."""
        if img.dtype != np.float32 or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(
                "PhotometricTransform: expected a float32 image (H, W, 3) in 0..255, but got "
                f"{img.dtype} {img.shape}; read it as RGB or BGR and convert it with astype."
            )
        to_hsv, from_hsv = _HSV_CODES[self.image_format]
        img = (img + np.float32(self.brightness)) * np.float32(self.contrast)
        hsv = cv2.cvtColor(img, to_hsv)
        hsv[..., 1] *= np.float32(self.saturation)
        hue = hsv[..., 0]
        hue += np.float32(self.hue)
        hue[hue > 360] -= 360
        hue[hue < 0] += 360
        img = cv2.cvtColor(hsv, from_hsv)
        order = list(self.channel_order)
        if self.image_format == "BGR":
            order = [2 - channel for channel in reversed(order)]
        return img if order == [0, 1, 2] else cv2.merge([img[..., i] for i in order])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The coordinates, unchanged."""
        return coords


class PhotometricDistortion(Augmentation):
    """Random brightness, contrast, saturation, hue and order of the channels.

    Args:
        image_format: "RGB" or "BGR".
        prob: probability of each of the five, independently of the others.
        max_brightness: largest shift, in grey levels, either way.
        contrast_range, saturation_range: least and greatest factor.
        max_hue: largest shift, in degrees, either way.

    Raises:
        UserError: if ``image_format`` is none of the two.
    """

    def __init__(
        self,
        image_format: str,
        *,
        prob: float = 0.5,
        max_brightness: float = 32.0,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        max_hue: float = 18.0,
    ) -> None:
        super().__init__()
        _check_format(image_format)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> PhotometricTransform:
        """Draw the parameters; those not drawn change nothing."""
        return PhotometricTransform(
            brightness=self._draw(-self.max_brightness, self.max_brightness, otherwise=0.0),
            contrast=self._draw(*self.contrast_range, otherwise=1.0),
            saturation=self._draw(*self.saturation_range, otherwise=1.0),
            hue=self._draw(-self.max_hue, self.max_hue, otherwise=0.0),
            channel_order=(
                np.random.permutation(3).tolist() if np.random.uniform() < self.prob else (0, 1, 2)
            ),
            image_format=self.image_format,
        )

    def _draw(self, low: float, high: float, *, otherwise: float) -> float:
        return np.random.uniform(low, high) if np.random.uniform() < self.prob else otherwise


class ExpandTransform(Transform):
    """Paste the image on a larger canvas of one colour.

    Args:
        left, top: column and row of the canvas that the image starts at.
        width, height: of the canvas, in pixels.
        fill: colour of the canvas, one number per channel, in the image's channel order.
    """

    def __init__(self, left: int, top: int, width: int, height: int, fill: Sequence[float]) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Canvas (height, width, 3) with the image on it, of the image's dtype."""
        h, w = img.shape[:2]
        bottom, right = self.height - self.top - h, self.width - self.left - w
        return cv2.copyMakeBorder(
            img, self.top, bottom, self.left, right, cv2.BORDER_CONSTANT, value=tuple(self.fill)
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Coordinates (N, 2), shifted."""
        return coords + np.array([self.left, self.top], dtype=coords.dtype)


class Expand(Augmentation):
    """With probability ``prob`` put the image on a canvas of up to ``max_ratio`` times its sides.

    The canvas costs up to ``max_ratio`` squared times the memory of the float image.

    Args:
        fill: colour of the canvas: the mean of the dataset in the image's channel order.
        max_ratio: the ratio of the sides is uniform in [1, max_ratio].
        prob: probability of an expansion.
    """

    def __init__(self, fill: Sequence[float], *, max_ratio: float = 4.0, prob: float = 0.5) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw whether, how large the canvas, and where on it."""
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        h, w = image.shape[:2]
        ratio = np.random.uniform(1.0, self.max_ratio)
        left = int(np.random.uniform(0.0, w * ratio - w))
        top = int(np.random.uniform(0.0, h * ratio - h))
        return ExpandTransform(left, top, int(w * ratio), int(h * ratio), self.fill)


class CenterRuleCropTransform(CropTransform):
    """Crop that keeps the boxes whose centre lies strictly inside, and clips them.

    The other boxes become (0, 0, 0, 0), so that rows still match the annotations. A box that is
    kept and was at least one pixel wide and high keeps at least half a pixel of each: being empty
    afterwards means being dropped.
    """

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        """Boxes (M, 4) in pixels of the crop; a row of zeros is dropped."""
        boxes = np.asarray(box, dtype=np.float64).reshape(-1, 4)
        corners = np.array([self.x0, self.y0, self.x0 + self.w, self.y0 + self.h])
        kept = _centers_inside(boxes, corners[None])[0]
        origin = np.tile(corners[:2], 2)
        cropped = np.clip(boxes, origin, np.tile(corners[2:], 2)) - origin
        return np.where(kept[:, None], cropped, 0.0)


class MinIoURandomCrop(Augmentation):
    """Random crop whose IoU with every box is at least a random bound.

    Each round chooses with equal chances: no crop, or a bound of ``min_ious``, or 0. For a bound up
    to ``num_trials`` patches are drawn, with sides uniform in [min_size, 1] of the image's. The
    first one is taken that is not flatter or steeper than 1:2, reaches the bound with every box,
    and holds the centre of at least one. If none does, the next round chooses again.

    The published loop has no end; here the image stays unchanged after ``max_rounds`` rounds
    (by then "no crop" has been missed with probability (6/7)^50 = 0.0004).

    Args:
        min_ious: bounds on the IoU.
        min_size: least side of a patch as a part of the image's.
        num_trials: patches drawn per round.
        max_rounds: rounds before the image is left as it is.
    """

    def __init__(
        self,
        *,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_size: float = 0.3,
        num_trials: int = 50,
        max_rounds: int = 50,
    ) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        """Draw a patch for an image with boxes (M, 4), crowds included; M = 0 takes any patch.

        Raises:
            ValueError: if there are no ``boxes`` in the input at all.
        """
        if boxes is None:
            raise ValueError(
                "MinIoURandomCrop: expected AugInput.boxes, but got None; use ALRPDatasetMapper, "
                "as Detectron2's mapper hands no boxes to augmentations."
            )
        h, w = image.shape[:2]
        choices = (None, *self.min_ious, 0.0)
        for _ in range(self.max_rounds):
            min_iou = choices[np.random.randint(len(choices))]
            if min_iou is None:
                return NoOpTransform()
            patches = self._draw_patches(h, w, boxes, min_iou)
            if len(patches):
                x0, y0, x1, y1 = patches[0].tolist()
                return CenterRuleCropTransform(x0, y0, x1 - x0, y1 - y0)
        return NoOpTransform()

    def _draw_patches(self, h: int, w: int, boxes: np.ndarray, min_iou: float) -> np.ndarray:
        """Those of ``num_trials`` patches that fit, (T, 4) int64 XYXY in order of drawing."""
        n = self.num_trials
        new_w = np.random.uniform(self.min_size * w, w, n)
        new_h = np.random.uniform(self.min_size * h, h, n)
        left = np.random.uniform(0.0, w - new_w)
        top = np.random.uniform(0.0, h - new_h)
        patches = np.stack([left, top, left + new_w, top + new_h], axis=1).astype(np.int64)
        fits = (0.5 <= new_h / new_w) & (new_h / new_w <= 2.0)
        fits &= (patches[:, 2:] > patches[:, :2]).all(axis=1)
        if len(boxes):
            fits &= (_pairwise_iou(patches, boxes) >= min_iou).all(axis=1)
            fits &= _centers_inside(boxes, patches).any(axis=1)
        return patches[fits]


class BilinearResizeTransform(ResizeTransform):
    """OpenCV's bilinear resize, half-pixel centres, no antialiasing, on uint8 and float32 alike.

    The parent filters uint8 images with Pillow, which smooths when it shrinks. On float32 the two
    agree up to rounding.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Image (new_h, new_w, 3) of the same dtype; another ``interp`` is left to the parent."""
        if interp is not None:
            return super().apply_image(img, interp)
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


class ResizeToSquare(Augmentation):
    """Resize to ``size`` x ``size`` pixels; the aspect ratio is not kept."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> BilinearResizeTransform:
        """Resize of this image."""
        return BilinearResizeTransform(*image.shape[:2], self.size, self.size)


class ResizeToFit(Augmentation):
    """Keep the aspect ratio and fit the sides into two limits, reaching at least one of them.

    Args:
        max_short: limit of the shorter side, in pixels; 0 leaves images as they are.
        max_long: limit of the longer side, in pixels.
    """

    def __init__(self, max_short: int, max_long: int) -> None:
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """Resize of this image; sides are rounded to the nearest integer, and at least 1."""
        if self.max_short == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        scale = min(self.max_long / max(h, w), self.max_short / min(h, w))
        sides = (max(1, int(side * scale + 0.5)) for side in (h, w))
        return BilinearResizeTransform(h, w, *sides)


def _check_format(image_format: str) -> None:
    if image_format not in _HSV_CODES:
        raise UserError(
            f"INPUT.FORMAT: expected one of {sorted(_HSV_CODES)} with INPUT.AUGMENTATION "
            f"'published', but got {image_format!r}; set it to one of them."
        )


def _pairwise_iou(patches: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU (T, M) of patches (T, 4) of positive area with boxes (M, 4)."""
    low = np.maximum(patches[:, None, :2], boxes[None, :, :2])
    high = np.minimum(patches[:, None, 2:], boxes[None, :, 2:])
    intersection = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (patches, boxes)]
    return intersection / (areas[0][:, None] + areas[1][None, :] - intersection)


def _centers_inside(boxes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Whether the centres of boxes (M, 4) lie strictly inside patches (T, 4); bool (T, M)."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    above = centers[None] > patches[:, None, :2]
    below = centers[None] < patches[:, None, 2:]
    return (above & below).all(axis=2)
