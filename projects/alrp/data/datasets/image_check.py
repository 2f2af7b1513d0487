"""Looks for mistakes in the image files of a dataset before anything is trained on it."""

from __future__ import annotations

import numpy as np
import os
import unicodedata
from collections import Counter
from typing import Sequence
from urllib.parse import unquote
from PIL import Image

from ...coco import Finding
from ...coco.findings import listed
from ..image_files import upright_size, why_unreadable
from ..images import DEEP_FIX, TOO_LARGE_FIX, is_deep

_MAX_IMAGES_OPENED = 50
_MAX_FILES_SEARCHED = 500_000
_MIN_IMAGE_SIDE = 32  # pixels; the published training set leaves smaller images out
_SAMPLE_FIXES = {
    "unreadable": "replace these files; copies may have been cut short",
    "of another size": "write the true 'width' and 'height' (after EXIF rotation)",
    "of more than 8 bits per channel": DEEP_FIX,
}


def check_images(
    name: str, images: list[dict], folder: str, resizes: Sequence[tuple[int, int]]
) -> list[Finding]:
    """All files are there; an evenly spaced sample of them opens and has the stated sizes.

    Args:
        name: dataset name, for the messages.
        images: records of the annotation file, with sound fields.
        folder: that the images' ``file_name`` is relative to.
        resizes: limits of the shorter and the longer side, in pixels, that images are resized to.
    """
    where = f"dataset {name!r}, {folder}"
    if not os.path.isdir(folder):
        fix = "correct the image folder in DATASETS.COCO_FORMAT (or DETECTRON2_DATASETS)"
        if os.path.isfile(folder):
            fix = f"unpack it, or {fix}"
            return [Finding("error", where, "this is a file, not a folder of images", fix)]
        return [Finding("error", where, "the image folder does not exist", fix)]
    missing = _missing(images, folder)
    findings = []
    if missing:
        what = f"{len(missing)} of {len(images)} images are missing: {listed(missing)}"
        fix = "make 'file_name' relative to the image folder, or copy the files there"
        fix += _present_instead(missing, {image["file_name"] for image in images}, folder)
        findings.append(Finding("error", where, what, fix))
    absent = set(missing)
    present = [image for image in images if image["file_name"] not in absent]
    findings += _check_repeated(where, images) + _check_sizes(where, images, resizes)
    return findings + _check_sample(where, present, folder)


def _missing(images: list[dict], folder: str) -> list[str]:
    """File names without a file; each folder is listed once, which is faster than many stats."""
    listings: dict[str, set[str]] = {}
    missing = []
    for image in images:
        parent, file_name = os.path.split(os.path.join(folder, image["file_name"]))
        if parent not in listings:
            listings[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()
        if file_name not in listings[parent]:
            missing.append(image["file_name"])
    return missing


def _present_instead(missing: list[str], listed_names: set[str], folder: str) -> str:
    """A file in the folder, or below it, that may be meant by one of the missing names."""
    missing_by_key = {_spelling(name): name for name in reversed(missing)}
    num_seen = 0
    for parent, _, names in os.walk(folder):
        num_seen += len(names)
        if num_seen > _MAX_FILES_SEARCHED:  # such as all of a home folder, by mistake
            break
        for name in sorted(names):
            path = os.path.relpath(os.path.join(parent, name), folder)
            if path in listed_names or _spelling(name) not in missing_by_key:
                continue
            meant = missing_by_key[_spelling(name)]
            alike = unicodedata.normalize("NFC", meant) == unicodedata.normalize("NFC", path)
            show = ascii if alike else repr  # they differ in what cannot be seen
            return f"; for {show(meant)} there is {show(path)}"
    return ""


def _spelling(name: str) -> str:
    """Last part of a path without what tools and file systems write in several ways."""
    last = unquote(name).replace("\\", "/").rpartition("/")[2]
    return unicodedata.normalize("NFC", os.path.splitext(last.strip())[0]).casefold()


def _check_repeated(where: str, images: list[dict]) -> list[Finding]:
    """Of a file that is listed twice, the boxes of one record are background in the other."""
    # Of one id they are the same record twice, which is an error of its own.
    counts = Counter(name for name, _ in {(image["file_name"], image["id"]) for image in images})
    repeated = [f"{name} ({count} times)" for name, count in counts.items() if count > 1]
    if not repeated:
        return []
    what = f"{len(repeated)} files are listed as several images: {listed(repeated)}"
    fix = "list each file once, with all of its annotations"
    return [Finding("warning", where, what, fix)]


def _check_sizes(
    where: str, images: list[dict], resizes: Sequence[tuple[int, int]]
) -> list[Finding]:
    """Stated sizes can be read, and resized to a picture."""
    limit = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else np.inf
    large = [i for i in images if i["width"] * i["height"] > limit]
    long = [i for i in images if any(_vanishes(i, *limits) for limits in resizes)]
    small = [i for i in images if min(i["width"], i["height"]) < _MIN_IMAGE_SIDE]
    findings = []
    if large:
        what = f"{len(large)} images have more than the {limit:,} pixels that Pillow reads: "
        findings.append(Finding("error", where, what + listed(large, _sized), TOO_LARGE_FIX))
    if long:
        what = f"{len(long)} images are so long that their resize leaves a side of 0 pixels: "
        fix = "cut these images, or raise INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST"
        findings.append(Finding("error", where, what + listed(long, _sized), fix))
    if small:
        what = f"{len(small)} images have a side below {_MIN_IMAGE_SIDE} pixels: "
        what += listed(small, lambda image: image["file_name"])
        fix = "leave them out; the published results do"
        findings.append(Finding("warning", where, what, fix))
    return findings


def _sized(image: dict) -> str:
    return f"{image['file_name']} ({image['width']}x{image['height']})"


def _vanishes(image: dict, max_short: int, max_long: int) -> bool:
    """Whether the shorter side becomes 0 when both sides are scaled into their limits."""
    short, long = sorted((image["width"], image["height"]))
    return max_short > 0 and min(max_short / short, max_long / long) * short + 0.5 < 1


def _check_sample(where: str, images: list[dict], folder: str) -> list[Finding]:
    """An evenly spaced sample opens, and is what the records say."""
    positions = np.linspace(0, len(images) - 1, min(len(images), _MAX_IMAGES_OPENED)).astype(int)
    problems: dict[str, list[str]] = {kind: [] for kind in _SAMPLE_FIXES}
    for image in (images[i] for i in positions):
        kind, detail = _open_image(os.path.join(folder, image["file_name"]), image)
        if kind:
            problems[kind].append(f"{image['file_name']} ({detail})")
    return [
        Finding(
            "error",
            where,
            f"{len(examples)} of {len(positions)} images looked at are {kind}: {listed(examples)}",
            _SAMPLE_FIXES[kind],
        )
        for kind, examples in problems.items()
        if examples
    ]


def _open_image(path: str, record: dict) -> tuple[str, str]:
    """Kind of problem ("" if none) and its detail."""
    try:
        with Image.open(path) as image:
            if is_deep(image):
                return "of more than 8 bits per channel", f"Pillow's mode {image.mode!r}"
            image.load()
            width, height = upright_size(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return "unreadable", why_unreadable(path, error)
    if (width, height) != (record["width"], record["height"]):
        return "of another size", f"{width}x{height}, not {record['width']}x{record['height']}"
    return "", ""
