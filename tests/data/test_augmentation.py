"""Colour, expansion, crop and resize of the published training augmentation."""

from __future__ import annotations

import colorsys
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import torch
from torchvision.ops import box_iou

from detectron2.data import transforms as T

from alrp.data.augmentation import (
    BilinearResizeTransform,
    CenterRuleCropTransform,
    Expand,
    ExpandTransform,
    MinIoURandomCrop,
    PhotometricDistortion,
    PhotometricTransform,
    ResizeToFit,
    ResizeToSquare,
)
from alrp.errors import UserError

IMAGE = np.zeros((80, 100, 3), dtype=np.float32)
FILL = (123.675, 116.28, 103.53)
IDENTITY = (0, 1, 2)


@pytest.fixture
def picture(rng) -> np.ndarray:
    return rng.uniform(1, 255, (20, 30, 3)).astype(np.float32)


def assert_uniform(values, low: float, high: float) -> None:
    """Kolmogorov-Smirnov distance to the uniform distribution, at about the 1 % level."""
    x = np.sort((np.asarray(values) - low) / (high - low))
    assert x[0] >= 0 and x[-1] <= 1
    steps = np.arange(len(x) + 1) / len(x)
    assert max((steps[1:] - x).max(), (x - steps[:-1]).max()) < 1.63 / np.sqrt(len(x))


def assert_frequency(hits: int, total: int, probability: float) -> None:
    """Within three standard deviations."""
    deviation = np.sqrt(total * probability * (1 - probability))
    assert abs(hits - total * probability) < 3 * deviation


# Colour


@pytest.fixture
def drawn() -> list[PhotometricTransform]:
    """Transforms of 4000 draws."""
    distortion = PhotometricDistortion("RGB")
    return [distortion.get_transform(IMAGE) for _ in range(4000)]


@pytest.mark.parametrize(
    "name, neutral, low, high",
    [
        ("brightness", 0.0, -32, 32),
        ("contrast", 1.0, 0.5, 1.5),
        ("saturation", 1.0, 0.5, 1.5),
        ("hue", 0.0, -18, 18),
    ],
)
def test_half_of_the_draws_change_a_quantity_uniformly(drawn, name, neutral, low, high):
    changed = [getattr(t, name) for t in drawn if getattr(t, name) != neutral]
    assert_frequency(len(changed), len(drawn), 0.5)
    assert_uniform(changed, low, high)


def test_half_of_the_draws_permute_the_channels_uniformly(drawn):
    orders = [tuple(t.channel_order) for t in drawn]
    assert len(set(orders)) == 6
    for order in set(orders):
        assert_frequency(orders.count(order), len(orders), 7 / 12 if order == IDENTITY else 1 / 12)


def test_the_colour_changes_are_drawn_independently(drawn):
    changes = [[t.brightness != 0, t.contrast != 1, t.saturation != 1, t.hue != 0] for t in drawn]
    correlations = np.corrcoef(np.array(changes, dtype=float).T)[np.triu_indices(4, 1)]
    assert_allclose(correlations, 0, atol=3 / np.sqrt(len(drawn)))


def test_brightness_and_contrast_are_not_clipped():
    image = np.array([[[0, 100, 250], [255, 3, 7]]], dtype=np.float32)
    out = PhotometricTransform(brightness=32, contrast=1.5).apply_image(image)
    assert_allclose(out, (image + 32) * 1.5, rtol=1e-5)
    assert out.max() > 255
    assert PhotometricTransform(brightness=-32).apply_image(image).min() < 0


@pytest.mark.parametrize("saturation, hue", [(0.5, 0), (1, 18), (1, -18), (0.8, -11), (0.7, 350)])
def test_saturation_and_hue_agree_with_colorsys(picture, saturation, hue):
    expected = np.empty_like(picture)
    for position in np.ndindex(picture.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*picture[position].tolist())
        expected[position] = colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)
    out = PhotometricTransform(saturation=saturation, hue=hue).apply_image(picture)
    assert_allclose(out, expected, atol=2e-3)


def test_the_way_to_hsv_and_back_changes_nothing(picture):
    assert_allclose(PhotometricTransform().apply_image(picture), picture, atol=2e-4)


def test_contrast_before_or_after_the_hue_gives_the_same_picture(picture):
    dark = picture - 80  # holds pixels with some and with no positive channels
    colour, contrast = {"saturation": 1.4, "hue": -15}, np.float32(1.3)
    before = PhotometricTransform(contrast=contrast, **colour).apply_image(dark)
    after = PhotometricTransform(**colour).apply_image(dark) * contrast
    assert (dark.max(axis=2) < 0).any()
    assert_allclose(before, after, atol=1e-3)


def test_channel_order_names_the_old_channels_of_the_new_ones(picture):
    out = PhotometricTransform(channel_order=(2, 0, 1)).apply_image(picture)
    assert_allclose(out, picture[..., [2, 0, 1]], atol=2e-4)


def test_rgb_and_bgr_images_become_the_same_picture(picture):
    rgb, bgr = PhotometricDistortion("RGB"), PhotometricDistortion("BGR")
    for seed in range(20):
        np.random.seed(seed)
        expected = rgb.get_transform(picture).apply_image(picture)
        np.random.seed(seed)
        out = bgr.get_transform(picture).apply_image(picture[..., ::-1])
        assert_array_equal(out[..., ::-1], expected)


def test_colour_leaves_its_input_alone_and_returns_contiguous_arrays(picture):
    original = picture.copy()
    transform = PhotometricTransform(brightness=5, hue=9, channel_order=(2, 1, 0))
    assert transform.apply_image(picture).flags.c_contiguous
    assert_array_equal(picture, original)


@pytest.mark.parametrize("image", [IMAGE.astype(np.uint8), IMAGE[..., 0], IMAGE[..., :2]])
def test_colour_takes_only_float_images_of_three_channels(image):
    with pytest.raises(ValueError, match="expected a float32 image"):
        PhotometricTransform().apply_image(image)


def test_another_channel_order_is_refused():
    for kind in (PhotometricDistortion, PhotometricTransform):
        with pytest.raises(UserError, match=r"\['BGR', 'RGB'\].*but got 'L'"):
            kind(image_format="L")


# Expansion


def test_half_of_the_draws_expand_by_a_uniform_ratio():
    image = np.zeros((1000, 2000, 3), dtype=np.float32)
    draws = [Expand(FILL).get_transform(image) for _ in range(4000)]
    expansions = [t for t in draws if isinstance(t, ExpandTransform)]
    assert_frequency(len(expansions), len(draws), 0.5)
    # Whole pixels of 2000 are fine enough for the test.
    assert_uniform([t.width / 2000 for t in expansions], 1 - 1e-3, 4)
    assert max(t.width for t in expansions) > 2000 * 3.98
    assert_allclose([t.height / t.width for t in expansions], 0.5, atol=1e-3)
    for size, start in [(2000, "left"), (1000, "top")]:
        free = np.array([getattr(t, "width" if start == "left" else "height") for t in expansions])
        starts = np.array([getattr(t, start) for t in expansions])
        wide = free - size > 500
        assert (starts >= 0).all() and (starts + size <= free).all()
        assert_uniform((starts / np.maximum(free - size, 1))[wide], -1e-3, 1 + 1e-3)


def test_expansion_pastes_the_image_and_fills_the_rest(picture):
    out = ExpandTransform(7, 11, 50, 60, FILL).apply_image(picture)
    assert out.shape == (60, 50, 3) and out.dtype == np.float32 and out.flags.c_contiguous
    assert_array_equal(out[11:31, 7:37], picture)
    out[11:31, 7:37] = FILL
    assert_array_equal(out, np.broadcast_to(np.float32(FILL), out.shape))


def test_expansion_shifts_boxes():
    boxes = np.array([[1.5, 2.0, 3.0, 4.25]])
    assert_array_equal(
        ExpandTransform(7, 11, 50, 60, FILL).apply_box(boxes), [[8.5, 13.0, 10.0, 15.25]]
    )


# Crop

TWO_BOXES = np.array([[10.0, 10.0, 60.0, 70.0], [30.0, 20.0, 90.0, 75.0]])


@pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.5])
def test_patches_reach_the_iou_with_every_box(min_iou):
    crop = MinIoURandomCrop(num_trials=5000)
    patches = torch.from_numpy(crop._draw_patches(80, 100, TWO_BOXES, min_iou)).double()
    ious = box_iou(patches, torch.from_numpy(TWO_BOXES))
    assert len(patches) > 20
    assert ious.min() >= min_iou
    assert ious.min() < min_iou + 0.05  # and no more than that is asked


def test_patches_have_the_published_sides_and_lie_in_the_image():
    patches = MinIoURandomCrop(num_trials=20000)._draw_patches(800, 1000, np.empty((0, 4)), 0.9)
    w, h = (patches[:, 2:] - patches[:, :2]).T
    assert (patches >= 0).all() and (patches[:, 2:] <= [1000, 800]).all()
    # Ints of both corners: a side may come out one pixel off.
    assert 299 <= w.min() < 320 and 980 < w.max() <= 1000
    assert 239 <= h.min() < 260 and 780 < h.max() <= 800
    assert 0.49 < (h / w).min() < 0.52 and 1.95 < (h / w).max() < 2.03
    free = 1000 - w > 300
    assert_uniform((patches[:, 0] / np.maximum(1000 - w, 1))[free], -0.01, 1.01)


def test_a_patch_holds_a_center_even_when_no_iou_is_asked():
    box = np.array([[2.0, 2.0, 6.0, 6.0]])
    patches = MinIoURandomCrop(num_trials=5000)._draw_patches(80, 100, box, 0.0)
    assert len(patches) > 20
    assert ((patches[:, :2] < 4) & (patches[:, 2:] > 4)).all()


def test_one_of_seven_choices_leaves_the_image_alone():
    crop = MinIoURandomCrop()
    draws = [crop.get_transform(IMAGE, np.empty((0, 4))) for _ in range(4000)]
    unchanged = sum(isinstance(t, T.NoOpTransform) for t in draws)
    assert_frequency(unchanged, len(draws), 1 / 7)


def test_fruitless_rounds_end_with_the_image_unchanged():
    class CountingCrop(MinIoURandomCrop):
        rounds = 0

        def _draw_patches(self, *args):
            self.rounds += 1
            return super()._draw_patches(*args)

    crop = CountingCrop(min_ious=[0.9] * 10000, max_rounds=9)
    apart = np.array([[0.0, 0.0, 10.0, 10.0], [90.0, 70.0, 100.0, 80.0]])
    assert isinstance(crop.get_transform(IMAGE, apart), T.NoOpTransform)
    assert crop.rounds == 9


def test_crop_keeps_boxes_by_their_center_clips_and_shifts_them():
    boxes = np.array(
        [
            [10.0, 10.0, 30.0, 30.0],  # centre (20, 20) strictly inside
            [0.0, 10.0, 20.0, 30.0],  # centre (10, 20) on the left edge
            [0.0, 10.0, 20.2, 30.0],  # just inside it
            [60.0, 10.0, 80.0, 30.0],  # outside, no overlap
            [40.0, 30.0, 70.0, 60.0],  # overlaps, centre (55, 45) outside
        ]
    )
    out = CenterRuleCropTransform(10, 12, 40, 30).apply_box(boxes)
    zero = [0, 0, 0, 0]
    assert_allclose(out, [[0, 0, 20, 18], zero, [0, 0, 10.2, 18], zero, zero], atol=1e-12)


def test_a_crop_without_boxes_in_the_input_is_an_error():
    with pytest.raises(ValueError, match="use ALRPDatasetMapper"):
        MinIoURandomCrop()(T.AugInput(IMAGE))


# Resize


@pytest.mark.parametrize("shape", [(33, 51), (333, 517), (100, 77), (1, 3)])
def test_float_resize_is_bilinear_without_antialiasing(rng, shape):
    image = rng.uniform(-30, 300, (*shape, 3)).astype(np.float32)
    out = ResizeToSquare(64).get_transform(image).apply_image(image)
    assert out.shape == (64, 64, 3) and out.dtype == np.float32
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], (64, 64), mode="bilinear"
    )
    assert_allclose(out, expected[0].permute(1, 2, 0).numpy(), atol=1e-3)


def test_square_resize_scales_boxes_per_axis():
    transform = ResizeToSquare(512).get_transform(IMAGE)
    boxes = transform.apply_box(np.array([[10.0, 20.0, 50.0, 80.0]]))
    assert_allclose(boxes, [[51.2, 128.0, 256.0, 512.0]])


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((333, 517), (500, 776)),
        ((480, 640), (500, 667)),
        ((640, 480), (667, 500)),
        ((200, 1000), (167, 833)),
        ((2000, 3000), (500, 750)),
        ((5, 5), (500, 500)),
    ],
)
def test_fit_resize_reaches_the_first_of_both_limits(shape, expected):
    transform = ResizeToFit(500, 833).get_transform(np.zeros((*shape, 3), dtype=np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def test_no_short_limit_leaves_test_images_as_they_are():
    assert isinstance(ResizeToFit(0, 833).get_transform(IMAGE), T.NoOpTransform)


def test_another_interpolation_is_left_to_detectron2(rng):
    labels = rng.integers(0, 255, (20, 30), dtype=np.uint8)
    own = BilinearResizeTransform(20, 30, 40, 70).apply_segmentation(labels)
    assert_array_equal(own, T.ResizeTransform(20, 30, 40, 70).apply_segmentation(labels))
