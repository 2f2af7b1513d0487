"""Reading of image files: what is named instead of a traceback or a blank picture."""

from __future__ import annotations

import numpy as np
import pickle
import struct
import zlib
from numpy.testing import assert_array_equal
import pytest
from PIL import Image

from detectron2.data import transforms as T

from alrp.data.dataset_mapper import ALRPDatasetMapper, NamingDatasetMapper
from alrp.data.images import read_image
from alrp.errors import UserError

DEEP = [np.uint16, np.int32, np.float32]


@pytest.fixture
def mappers():
    """The two mappers, neither of which resizes."""
    ours = ALRPDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    stock = NamingDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    return [ours, stock]


@pytest.mark.parametrize("content", [b"", b"no image", "truncated"])
def test_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    if content == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:800]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: expected an image file that can be read"):
        read_image(str(path), "RGB")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photograph: convert it to JPEG"),
        (b"<html>", "HTML or XML"),
    ],
)
def test_a_file_that_is_often_taken_for_an_image_is_called_what_it_is(tmp_path, content, said):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_image(str(path), "RGB")


@pytest.mark.parametrize("dtype", DEEP)
def test_more_than_8_bits_are_refused_by_name_wherever_images_are_read(tmp_path, dtype, mappers):
    path = tmp_path / "deep.tif"
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(dtype)).save(path)
    for read in (lambda: read_image(str(path), "RGB"), *_reads(mappers, path)):
        with pytest.raises(UserError, match=r"deep\.tif: expected 8 bits per channel"):
            read()


def test_16_bits_per_channel_of_a_colour_png_are_scaled_by_pillow(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(_colour_png_of_16_bits())
    assert_array_equal(read_image(str(path), "RGB"), np.full((1, 1, 3), 128))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_8_bits_are_read_in_every_mode(tmp_path, mode, mappers):
    path = tmp_path / "plain.tif"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    assert_array_equal(read_image(str(path), "BGR"), np.full((4, 5, 3), 255))
    for read in _reads(mappers, path):
        assert read()["image"].shape == (3, 4, 5)


def test_an_image_above_pillows_limit_is_not_called_broken(tmp_path, monkeypatch, mappers):
    path = tmp_path / "large.png"
    Image.new("L", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for read in (lambda: read_image(str(path), "RGB"), *_reads(mappers, path)):
        with pytest.raises(UserError, match=r"large\.png: expected at most 1,000 pixels.*tiles"):
            read()


def test_an_image_that_a_resize_would_flatten_is_named(tmp_path):
    path = tmp_path / "long.png"
    Image.new("RGB", (2000, 4)).save(path)
    resize = [T.ResizeShortestEdge(64, 64)]
    mapper = NamingDatasetMapper(is_train=False, augmentations=resize, image_format="RGB")
    with pytest.raises(UserError, match=r"long\.png: .* a very long image"):
        mapper({"file_name": str(path)})


def _reads(mappers, path):
    return [lambda m=mapper: m({"file_name": str(path)}) for mapper in mappers]


def _colour_png_of_16_bits() -> bytes:
    """One pixel of (0x8000, 0x8000, 0x8000)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 0x8000, 0x8000, 0x8000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    )


def test_the_stock_mapper_keeps_nothing_of_the_images_it_has_read(tmp_path):
    mapper = NamingDatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    before = len(pickle.dumps(mapper))
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4)).save(path)
        mapper({"file_name": str(path)})
    assert len(pickle.dumps(mapper)) == before
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)  # read before, and replaced since
    with pytest.raises(UserError, match="expected 8 bits"):
        mapper({"file_name": str(path)})
