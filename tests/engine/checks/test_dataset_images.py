"""Checks of image files: missing, unreadable, of another size or depth."""

from __future__ import annotations

import os
import pytest
from helpers.small_dataset import TRAIN, VAL, assert_one, only
from PIL import Image

from alrp.engine.checks import check_datasets


def test_a_missing_image_folder_is_found(cfg, train):
    train.folder.rename(train.folder.with_name("elsewhere"))
    assert_one(cfg, "error", str(train.folder), "the image folder does not exist")
    train.folder.touch()
    what = "this is a file, not a folder of images"
    assert_one(cfg, "error", str(train.folder), what, "unpack it, or correct the image folder")


@pytest.mark.parametrize("for_training", [True, False])
def test_missing_images_are_found(cfg, val, for_training):
    (val.folder / "2.png").unlink()
    what = "1 of 4 images are missing: 2.png"
    assert_one(cfg, "error", VAL, what, for_training=for_training)


def test_a_missing_image_among_many_is_found(cfg, train):
    for i in range(5, 201):
        os.link(train.folder / "1.png", train.folder / f"{i}.png")
        train.content["images"].append(
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32}
        )
    train.content["images"][103]["file_name"] = "absent.png"  # none of the 50 that are opened
    train.write()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert_one(cfg, "error", TRAIN, "1 of 200 images are missing: absent.png")


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\1.png", "'sub/1.png'"),
        ("https://host/sub/1.png", "'sub/1.png'"),
        ("/home/somebody/1.png", "'sub/1.png'"),
        ("my%20photo.png", "'my photo.png'"),
        ("My Photo.JPG", "'my photo.png'"),
        ("photo \u00e9.png", "'photo e\\u0301.png'"),
        ("my photo", "'my photo.png'"),
    ],
)
def test_the_file_that_a_missing_name_may_mean_is_named(cfg, train, written, there):
    (train.folder / "sub").mkdir()
    (train.folder / "1.png").rename(train.folder / "sub" / "1.png")
    for name in ("my photo.png", "photo e\u0301.png"):
        os.link(train.folder / "2.png", train.folder / name)
    train.content["images"][0]["file_name"] = written
    train.write()
    assert_one(cfg, "error", TRAIN, "1 of 4 images are missing", f"there is {there}")


def test_a_missing_name_is_not_sent_to_the_file_of_another_image(cfg, train):
    train.content["images"][0]["file_name"] = "other/2.png"
    train.write()
    fix = only(check_datasets(cfg, for_training=True)).fix
    assert "there is" not in fix


def test_an_image_that_was_cut_short_is_found(cfg, train):
    path = train.folder / "3.png"
    Image.effect_noise((40, 32), 50).save(path, format="JPEG")  # Pillow looks at the content only
    path.write_bytes(path.read_bytes()[:-200])
    assert_one(cfg, "error", TRAIN, "1 of 4 images looked at are unreadable: 3.png")


def test_an_image_of_another_size_is_found(cfg, train):
    Image.new("RGB", (32, 40)).save(train.folder / "4.png")
    assert_one(cfg, "error", TRAIN, "of another size: 4.png (32x40, not 40x32)")


def test_a_photograph_on_its_side_has_the_size_the_loader_sees(cfg, train):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (32, 40)).save(train.folder / "4.png", exif=exif)
    assert check_datasets(cfg, for_training=True) == []
    Image.new("RGB", (40, 32)).save(train.folder / "4.png", exif=exif)
    assert_one(cfg, "error", TRAIN, "4.png (32x40, not 40x32)", "EXIF")


def test_a_file_listed_as_two_images_is_a_warning(cfg, val):
    val.content["images"][2]["file_name"] = "2.png"
    val.write()
    assert_one(cfg, "warning", VAL, "1 files are listed as several images: 2.png (2 times)")


def test_images_below_32_pixels_are_a_warning(cfg, train):
    Image.new("RGB", (40, 31)).save(train.folder / "4.png")
    train.content["images"][3]["height"] = 31
    train.write()
    assert_one(cfg, "warning", TRAIN, "1 images have a side below 32 pixels: 4.png")


def test_images_of_16_bits_are_found(cfg, val):
    Image.new("I;16", (40, 32)).save(val.folder / "2.png")
    assert_one(cfg, "error", VAL, "of more than 8 bits per channel: 2.png", "by one scale for all")


def test_images_above_pillows_limit_are_found_by_their_stated_size(cfg, val, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 650)
    val.content["images"][3]["width"] = 41
    val.write()
    found = [
        f for f in check_datasets(cfg, for_training=False) if "pixels that Pillow reads" in f.what
    ]
    assert [f.severity for f in found] == ["error"] and "4.png (41x32)" in found[0].what


def test_an_image_that_the_resize_would_flatten_is_found(cfg, val):
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = 64
    Image.new("RGB", (20000, 10)).save(val.folder / "4.png")
    val.content["images"][3].update(width=20000, height=10)
    val.write()
    found = [f for f in check_datasets(cfg, for_training=False) if f.severity == "error"]
    assert "4.png (20000x10)" in only(found).what and "side of 0 pixels" in found[0].what
