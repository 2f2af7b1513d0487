"""The built-in synthetic dataset: discs, rectangles and triangles on a noisy background.

It exists so that every command of the project can be tried without a download. Sizes, aspect
ratios, colours, rotations and occlusion vary; boxes are tight around what is visible. Run::

    python -m alrp.data.datasets.shapes --root datasets/shapes

and name the result in a config::

    DATASETS:
      COCO_FORMAT:
        - ["shapes_train", "datasets/shapes/annotations/train.json", "datasets/shapes/train"]
        - ["shapes_val", "datasets/shapes/annotations/val.json", "datasets/shapes/val"]

Lengths are pixels of the final image, coordinates x right and y down from its top left corner.
"""

from __future__ import annotations

import argparse
import json
import math
import numpy as np
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, NamedTuple
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw
from tqdm import tqdm

from ...errors import UserError, exit_status
from ...files import read_json, replacing

CLASS_NAMES = ("disc", "rectangle", "triangle")

# Written into every annotation file; raise it when the same seed starts to give other pictures.
_GENERATOR = "alrp shapes 1"
_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.4  # least visible share of a shape's area
_SIZE_RANGE = (14 / 128, 80 / 128)  # geometric mean of width and height, as a share of the image
_MIN_SIDE = 8 / 128  # least side of a visible box, as a share of the image
_MAX_SHAPES = 6
_TRIES = 40  # placements or colours tried before giving up


class Shape(NamedTuple):
    """One flat-coloured shape.

    Attributes:
        category: index into ``CLASS_NAMES``.
        outline: (V, 2) float64 polygon vertices, XY pixels; may leave the image.
        colour: (3,) float64 RGB in [0, 255].
    """

    category: int
    outline: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        background: (S, S, 3) float64 RGB in [0, 255].
        noise: (S, S, 3) float64, added to background and shapes alike.
        shapes: from back to front.
    """

    background: np.ndarray
    noise: np.ndarray
    shapes: tuple[Shape, ...]


def sample_scene(rng: np.random.Generator, image_size: int) -> Scene:
    """Draw a random scene of 1 to 6 shapes, each at least 40 % visible.

    Args:
        rng: source of all randomness.
        image_size: side S of the square image, >= 32.
    """
    background, noise = _sample_background(rng, image_size)
    shapes: tuple[Shape, ...] = ()
    for _ in range(rng.integers(1, _MAX_SHAPES + 1)):
        for _ in range(_TRIES):
            candidate = shapes + (_sample_shape(rng, image_size, background, shapes),)
            if _is_fair(candidate, image_size):
                shapes = candidate
                break
    return Scene(background, noise, shapes)


class Picture(NamedTuple):
    """A scene as it was drawn, with the ground truth of its V shapes.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        boxes: (V, 4) float64 XYXY pixels, tight to 1/4 pixel around what is visible.
        areas: (V,) float64 visible area of each shape in square pixels.
        masks: (V, S, S) bool, the pixels of which a shape covers at least half.
    """

    image: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    masks: np.ndarray


def render(scene: Scene) -> Picture:
    """Draw a scene."""
    masks = _visible_masks(scene.shapes, len(scene.background))
    image = scene.background.copy()
    coverages = np.zeros((len(masks), *image.shape[:2]))
    for shape, mask, coverage in zip(scene.shapes, masks, coverages):
        grey = Image.fromarray(mask.view(np.uint8) * 255).reduce(_SUPERSAMPLING)
        coverage[:] = np.asarray(grey) / 255.0
        image += coverage[..., None] * (shape.colour - scene.background)
    image = np.clip(np.rint(image + scene.noise), 0, 255).astype(np.uint8)
    return Picture(image, _tight_boxes(masks), _areas(masks), coverages >= 0.5)


def make_shapes_dataset(
    root: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 200,
    image_size: int = 128,
    seed: int = 0,
    masks: bool = False,
) -> dict[str, tuple[Path, Path]]:
    """Write ``annotations/{train,val}.json`` (COCO format) and the images, unless already there.

    The annotation file of a split is written last, and removed before images are made again, so
    an interrupted run is redone, images cut short included. Image number i of a split depends on
    ``seed``, ``image_size``, the split and i only.

    Args:
        root: folder to write into; made if absent.
        num_train, num_val: numbers of images, >= 1.
        image_size: side of the square images in pixels, >= 32.
        seed: non-negative; the same seed gives the same pictures.
        masks: whether annotations have masks, run-length encoded.

    Returns:
        ``{"train": (annotation file, image folder), "val": ...}``.

    Raises:
        UserError: on sizes out of range, or if ``root`` holds another dataset or cannot be written.
    """
    counts = {"train": num_train, "val": num_val}
    if min(counts.values()) < 1 or image_size < 32 or seed < 0:
        raise UserError(
            "shapes dataset: expected num_train, num_val >= 1, image_size >= 32 and seed >= 0, but "
            f"got {num_train}, {num_val}, {image_size} and {seed}; change what is out of range."
        )
    root = Path(root)
    paths = {split: (root / "annotations" / f"{split}.json", root / split) for split in counts}
    recipes = {
        split: {"generator": _GENERATOR, "split": split, "num_images": count}
        | {"image_size": image_size, "seed": seed}
        | ({"masks": True} if masks else {})
        for split, count in counts.items()
    }
    # All splits are looked at before any is written: half a new dataset helps nobody.
    todo = [split for split in counts if not _is_complete(*paths[split], recipes[split])]
    for split in todo:
        try:
            _write_split(*paths[split], recipes[split])
        except OSError as error:
            raise UserError(
                f"shapes dataset: {root} cannot be written: {error}; free space there or choose "
                "another root."
            ) from error
    return paths


def _is_complete(annotation_file: Path, image_folder: Path, recipe: dict) -> bool:
    """Whether the split is there with all its images; UserError if something else is there."""
    if not annotation_file.exists():
        return False
    try:
        content = read_json(annotation_file)
        found = content["info"]["recipe"]
        names = [image["file_name"] for image in content["images"]]
    except (ValueError, KeyError, TypeError):
        found = "a file this generator did not write"
    if found != recipe:
        raise UserError(
            f"shapes dataset: {annotation_file} was expected to hold {recipe}, but it holds "
            f"{found}; choose another root, ask for the same dataset, or delete the folder first."
        )
    return all((image_folder / name).is_file() for name in names)


def _write_split(annotation_file: Path, image_folder: Path, recipe: dict) -> None:
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    image_folder.mkdir(parents=True, exist_ok=True)
    annotation_file.unlink(missing_ok=True)  # its presence says that all images are whole
    size = recipe["image_size"]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    images: list[dict] = []
    annotations: list[dict] = []
    split_index = ("train", "val").index(recipe["split"])
    for i in tqdm(range(1, recipe["num_images"] + 1), desc=str(image_folder), unit="image"):
        scene = sample_scene(np.random.default_rng([recipe["seed"], split_index, i]), size)
        picture = render(scene)
        name = f"{i:06d}.png"
        Image.fromarray(picture.image).save(image_folder / name, format="PNG", compress_level=1)
        images.append({"id": i, "file_name": name, "width": size, "height": size})
        truths = _ground_truth(picture, masks=recipe.get("masks", False))
        for shape, truth in zip(scene.shapes, truths):
            ids = {"id": len(annotations) + 1, "image_id": i, "category_id": shape.category + 1}
            annotations.append(ids | truth)
    content = {"info": {"recipe": recipe}, "images": images, "annotations": annotations}
    with replacing(annotation_file) as file:
        file.write(json.dumps(content | {"categories": categories}).encode())


def _ground_truth(picture: Picture, *, masks: bool) -> Iterator[dict]:
    """Box and area of each shape, and its mask if asked for, as COCO annotations hold them."""
    for box, area, mask in zip(picture.boxes.tolist(), picture.areas.tolist(), picture.masks):
        x1, y1, x2, y2 = box
        truth = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0}
        if masks:
            encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            truth["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}
        yield truth


def _sample_background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth blobs around a random colour, and the pixel noise of the picture; (S, S, 3) each."""
    background = np.broadcast_to(rng.uniform(40, 215, 3), (size, size, 3)).copy()
    for cells in (3, 8):
        amplitude = rng.uniform(4, 14)
        # The blobs are mostly brightness, with a little colour.
        coarse = rng.normal(0, amplitude, (cells, cells, 1)) + rng.normal(0, 4, (cells, cells, 3))
        for channel in range(3):
            blob = Image.fromarray(coarse[..., channel].astype(np.float32))
            background[..., channel] += np.asarray(blob.resize((size, size), Image.BICUBIC))
    noise = rng.normal(0, rng.uniform(2, 10), (size, size, 3))
    return np.clip(background, 0, 255), noise


def _sample_shape(
    rng: np.random.Generator, size: int, background: np.ndarray, others: tuple[Shape, ...]
) -> Shape:
    category = int(rng.integers(len(CLASS_NAMES)))
    mean_side = math.exp(rng.uniform(*np.log(_SIZE_RANGE))) * size
    aspect = math.exp(rng.uniform(-1, 1) * math.log(2))
    half_sides = 0.5 * mean_side * np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)])
    outline = _unit_outline(rng, category) * half_sides
    angle = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outline = outline @ rotation + rng.uniform(0.05 * size, 0.95 * size, 2)
    x, y = np.clip(outline.mean(axis=0), 0, size - 1).astype(int)
    taken = [background[y, x]] + [shape.colour for shape in others]
    return Shape(category, outline, _sample_colour(rng, np.array(taken)))


def _unit_outline(rng: np.random.Generator, category: int) -> np.ndarray:
    """(V, 2) polygon around the origin, within [-1, 1] (triangles: 1.2 of that)."""
    if CLASS_NAMES[category] == "rectangle":
        return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    if CLASS_NAMES[category] == "disc":
        angles = np.arange(64) * (2 * math.pi / 64)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # Before stretching no angle is below 42 degrees, so that a triangle cannot pass for a line.
    angles = 2 * math.pi / 3 * (np.arange(3) + rng.uniform(-0.15, 0.15, 3))
    return 1.2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _sample_colour(rng: np.random.Generator, taken: np.ndarray) -> np.ndarray:
    """RGB colour at least 80 (Euclidean) from all rows of ``taken``, or the farthest one found."""
    candidates = rng.uniform(10, 245, (_TRIES, 3))
    distances = np.linalg.norm(candidates[:, None] - taken[None], axis=2).min(axis=1)
    return candidates[np.argmax(np.minimum(distances, 80))]


def _is_fair(shapes: tuple[Shape, ...], size: int) -> bool:
    """Whether every shape shows enough of itself to be recognised."""
    masks = _visible_masks(shapes, size)
    boxes = _tight_boxes(masks)
    shares = _areas(masks) / [_polygon_area(shape.outline) for shape in shapes]
    sides = boxes[:, 2:] - boxes[:, :2]
    return shares.min() >= _MIN_VISIBLE and sides.min() >= _MIN_SIDE * size


def _visible_masks(shapes: tuple[Shape, ...], size: int) -> np.ndarray:
    """(V, 4S, 4S) bool: where each shape is in front, on a grid of quarter pixels."""
    fine_size = size * _SUPERSAMPLING
    owner = Image.new("L", (fine_size, fine_size))
    draw = ImageDraw.Draw(owner)
    for i, shape in enumerate(shapes, start=1):
        # Pillow truncates coordinates and has integers at pixel centres.
        vertices = np.rint(shape.outline * _SUPERSAMPLING - 0.5).astype(int)
        draw.polygon([tuple(vertex) for vertex in vertices.tolist()], fill=i)
    labels = np.arange(1, len(shapes) + 1, dtype=np.uint8)
    return np.asarray(owner) == labels[:, None, None]


def _tight_boxes(masks: np.ndarray) -> np.ndarray:
    """(V, 4) float64 XYXY pixels around quarter-pixel masks; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks):
        columns, rows = mask.any(axis=0).nonzero()[0], mask.any(axis=1).nonzero()[0]
        if len(columns):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes / _SUPERSAMPLING


def _areas(masks: np.ndarray) -> np.ndarray:
    """(V,) float64 areas of quarter-pixel masks in square pixels."""
    return np.count_nonzero(masks, axis=(1, 2)) / _SUPERSAMPLING**2


def _polygon_area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def main(argv: list[str] | None = None) -> int:
    """Run ``python -m alrp.data.datasets.shapes``; returns the exit status, 2 on a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m alrp.data.datasets.shapes",
        description="Write the built-in synthetic detection dataset in COCO format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--root", required=True, help="folder to write into")
    parser.add_argument("--num-train", type=int, default=1000, help="training images")
    parser.add_argument("--num-val", type=int, default=200, help="validation images")
    parser.add_argument("--image-size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    parser.add_argument("--masks", action="store_true", help="write masks, too")
    args = parser.parse_args(argv)
    return exit_status(lambda: make_shapes_dataset(**vars(args)), mistake=2)


if __name__ == "__main__":
    sys.exit(main())
