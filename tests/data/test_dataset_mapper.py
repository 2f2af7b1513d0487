"""The mapper of the published pipelines: files and annotations in, model inputs out."""

from __future__ import annotations

import copy
import numpy as np
import os
import zlib
from numpy.testing import assert_allclose, assert_array_equal
from pathlib import Path
import pytest
import torch
from helpers.published_model import published_image
from PIL import Image

from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from alrp.config import load_config
from alrp.data.augmentation import (
    BilinearResizeTransform,
    Expand,
    MinIoURandomCrop,
    ResizeToSquare,
)
from alrp.data.dataset_mapper import ALRPDatasetMapper, build_mapper
from alrp.data.datasets.coco_format import register_coco_format
from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.engine import Trainer
from alrp.errors import UserError

HEIGHT, WIDTH = 60, 90


@pytest.fixture
def cfg():
    cfg = load_config("")
    cfg.INPUT.AUGMENTATION = "published"
    cfg.INPUT.SQUARE_SIZE_TRAIN = 128
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 500, 833
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    return cfg


def annotation(box, category_id=0, iscrowd=0, bbox_mode=BoxMode.XYWH_ABS, **others):
    return {
        "bbox": list(box),
        "bbox_mode": bbox_mode,
        "category_id": category_id,
        "iscrowd": iscrowd,
        **others,
    }


@pytest.fixture
def record_of(tmp_path, rng):
    """``record_of(annotations, image=None)``: record of an image that lies in a file."""

    def build(annotations, image=None):
        if image is None:
            image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        path = tmp_path / "image.png"
        Image.fromarray(image).save(path)
        height, width = image.shape[:2]
        record = {"file_name": str(path), "height": height, "width": width, "image_id": 7}
        return {**record, "annotations": annotations}

    return build


def mapper_of(augmentations):
    return ALRPDatasetMapper(True, augmentations=augmentations, image_format="RGB")


def boxes_of(sample) -> np.ndarray:
    return sample["instances"].gt_boxes.tensor.numpy()


# What a sample is


def test_a_training_sample_has_the_stated_types_and_ranges(cfg, record_of):
    mapper = ALRPDatasetMapper(cfg)
    record = record_of([annotation([10, 10, 40, 30], 2), annotation([50, 5, 30, 50], 1)])
    for _ in range(30):
        sample = mapper(record)
        assert sample["image"].shape == (3, 128, 128)
        assert sample["image"].dtype == torch.float32 and sample["image"].is_contiguous()
        instances = sample["instances"]
        assert instances.image_size == (128, 128)
        assert instances.gt_boxes.tensor.dtype == torch.float32
        assert instances.gt_classes.dtype == torch.int64
        assert ((boxes_of(sample) >= 0) & (boxes_of(sample) <= 128)).all()
        assert set(instances.gt_classes.tolist()) <= {1, 2} and len(instances) >= 1
        assert sample["image_id"] == 7 and "annotations" not in sample


def test_a_seed_fixes_the_sample_and_another_changes_it(cfg, record_of):
    mapper, record, samples = ALRPDatasetMapper(cfg), record_of([annotation([9, 9, 40, 40])]), []
    for seed in (4, 4, 5):
        np.random.seed(seed)
        samples.append(mapper(record))
    assert_array_equal(samples[0]["image"], samples[1]["image"])
    assert_array_equal(boxes_of(samples[0]), boxes_of(samples[1]))
    assert not torch.equal(samples[0]["image"], samples[2]["image"])


def test_the_record_is_left_as_it_is(cfg, record_of):
    record = record_of([annotation([10, 10, 40, 30])])
    original = copy.deepcopy(record)
    for is_train in (True, False):
        ALRPDatasetMapper(cfg, is_train)(record)
    assert record == original


def test_rgb_and_bgr_configs_give_the_same_picture_and_boxes(cfg, record_of):
    record = record_of([annotation([10, 10, 40, 30])])
    bgr_cfg = cfg.clone()
    bgr_cfg.INPUT.FORMAT, bgr_cfg.MODEL.PIXEL_MEAN = "BGR", cfg.MODEL.PIXEL_MEAN[::-1]
    for seed in range(20):
        samples = []
        for c in (cfg, bgr_cfg):
            np.random.seed(seed)
            samples.append(ALRPDatasetMapper(c)(record))
        assert_array_equal(samples[0]["image"], samples[1]["image"].flip(0))
        assert_array_equal(boxes_of(samples[0]), boxes_of(samples[1]))


def test_the_canvas_of_an_expansion_has_the_pixel_mean(cfg, record_of):
    mapper = ALRPDatasetMapper(cfg)
    mapper.augmentations.augs[0].prob = 0.0  # colours as they are
    mapper.augmentations.augs[1].prob = 1.0
    black = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = mapper(record_of([], black))["image"].flatten(1)
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN)[:, None]
    assert (image == mean).all(dim=0).any()
    # Bilinear mixtures of black and the mean, nothing else.
    assert_allclose((image / mean).std(dim=0), 0, atol=1e-6)


# Boxes stay with their pixels


def source_frame(image):
    """Affine maps of x and y, as (slope, offset), from pixels of ``image`` back to the source.

    The channels 0 and 1 of the source hold its coordinates, the canvas -1000. Only the pixels
    tell, not the transforms.
    """
    maps = []
    inside = (image[:2] > -1).all(axis=0)
    for coordinates, axis in ((image[0], 0), (image[1], 1)):
        lines = np.flatnonzero(inside.any(axis=axis))[3:-3]  # the border mixes with the canvas
        masked = np.where(inside, coordinates, np.nan).take(lines, axis=1 - axis)
        maps.append(np.polyfit(lines + 0.5, np.nanmedian(masked, axis=axis), 1))
    return maps


def test_boxes_stay_with_their_pixels_through_the_whole_pipeline(record_of):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    coded = np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)
    annotations = [
        annotation([10, 10, 40, 30], 0),
        annotation([52.5, 5.25, 30, 50], 1),
        annotation([30, 20, 35.5, 38], 2),
    ]
    corners = [np.add(a["bbox"], [0, 0, *a["bbox"][:2]]) for a in annotations]
    mapper = mapper_of(
        [Expand([-1000.0] * 3), MinIoURandomCrop(), ResizeToSquare(256), T.RandomFlip()]
    )
    num_boxes = []
    for _ in range(60):
        sample = mapper(record_of(annotations, coded))
        (ax, bx), (ay, by) = source_frame(sample["image"].numpy())
        slopes, offsets = np.array([ax, ay] * 2), np.array([bx, by] * 2) + 0.5
        frame = np.array([0, 0, 256, 256]) * slopes + offsets
        for box, label in zip(boxes_of(sample), sample["instances"].gt_classes.tolist()):
            there = box * slopes + offsets
            if ax < 0:  # flipped
                there[[0, 2]] = there[[2, 0]]
            low, high = min(frame[0], frame[2]), max(frame[0], frame[2])
            visible = np.clip(corners[label], [low, frame[1]] * 2, [high, frame[3]] * 2)
            # The fit is good to a tenth of a source pixel.
            assert_allclose(there, visible, atol=0.15)
        num_boxes.append(len(sample["instances"]))
    assert min(num_boxes) == 1 and max(num_boxes) == 3  # the crop dropped some


class Recorder(T.Augmentation):
    """Keeps the boxes that it is handed."""

    def get_transform(self, image, boxes):
        self.boxes = boxes
        return T.NoOpTransform()


def test_only_our_mapper_hands_boxes_to_augmentations(record_of):
    record = record_of([annotation([1, 2, 3.5, 4]), annotation([9, 9, 20, 20], iscrowd=1)])
    stock, ours = Recorder(), Recorder()
    DatasetMapper(True, augmentations=[stock], image_format="RGB")(copy.deepcopy(record))
    mapper_of([ours])(record)
    assert stock.boxes is None
    assert_array_equal(ours.boxes, [[1, 2, 4.5, 6], [9, 9, 29, 29]])


# Which annotations remain


def test_crowds_take_part_in_the_crop_and_are_then_dropped(record_of):
    recorder = Recorder()
    record = record_of([annotation([30, 20, 30, 20], iscrowd=1)])
    sizes = set()
    for _ in range(30):
        sample = mapper_of([MinIoURandomCrop(min_ious=[0.5]), recorder])(record)
        assert len(sample["instances"]) == 0  # the image stays, without boxes
        x0, y0, x1, y1 = recorder.boxes[0]
        assert x1 > x0 and y1 > y0  # its centre is in every crop
        sizes.add(tuple(sample["image"].shape))
    assert len(sizes) > 10


@pytest.mark.parametrize(
    "bad",
    [
        annotation([10, 10, 0.5, 20]),
        annotation([10, 10, 20, 0.99]),
        annotation([10, 10, 20, 0]),
        annotation([90, 10, 20, 20]),  # begins where the image ends
        annotation([-20, 10, 20, 20]),
        annotation([10, -30, 20, 20]),
        annotation([10, 10, 20, 20], area=0),
        annotation([10, 10, 20, 20], ignore=1),
        annotation([10, 10, 20, 20], iscrowd=1),
        annotation([30, 10, 20, 30], bbox_mode=BoxMode.XYXY_ABS),
    ],
)
def test_unusable_annotations_are_left_out(record_of, bad):
    recorder = Recorder()
    sample = mapper_of([recorder])(record_of([bad, annotation([5, 6, 7, 8], 3), bad]))
    assert len(recorder.boxes) == (3 if bad["iscrowd"] else 1)
    assert_array_equal(boxes_of(sample), [[5, 6, 12, 14]])
    assert sample["instances"].gt_classes.tolist() == [3]


def test_a_side_of_one_pixel_is_kept_at_any_place(record_of):
    annotations = [annotation([x, 10.1, 1, 1]) for x in np.arange(0, 80, 0.7)]
    assert len(mapper_of([])(record_of(annotations))["instances"]) == len(annotations)


def test_boxes_may_be_given_by_their_corners_and_are_clipped_to_the_image(record_of):
    corners = annotation([-5, 50, 40, 70], bbox_mode=BoxMode.XYXY_ABS)
    assert_array_equal(boxes_of(mapper_of([])(record_of([corners]))), [[0, 50, 40, 60]])


def test_an_image_without_annotations_is_kept(cfg, record_of):
    assert len(ALRPDatasetMapper(cfg)(record_of([]))["instances"]) == 0


# Test images


def test_test_images_have_the_bytes_of_the_published_pipeline(cfg, golden, record_of):
    """Figures of the published test pipeline, commit 2cfaa8e, mmcv 0.6.2: all bytes and a patch."""
    figures, image = golden("model_case_A_resized"), published_image()
    assert zlib.crc32(image.tobytes()) == figures["image_crc32"]
    sample = ALRPDatasetMapper(cfg, False)(record_of([], image[..., ::-1]))
    assert sample["image"].dtype == torch.uint8 and "instances" not in sample
    assert (sample["height"], sample["width"]) == (333, 517)
    resized = np.ascontiguousarray(sample["image"].numpy().transpose(1, 2, 0)[..., ::-1])
    assert resized.shape == tuple(figures["img_shape"])
    assert_array_equal(resized[200:264, 300:364], figures["resized_patch"])
    assert zlib.crc32(resized.tobytes()) == figures["resized_crc32"]


def test_test_images_need_no_annotations_and_no_size(cfg, record_of):
    record = record_of([])
    sample = ALRPDatasetMapper(cfg, False)({"file_name": record["file_name"]})
    assert (sample["height"], sample["width"]) == (HEIGHT, WIDTH)


# Choices and mistakes


def test_the_stock_mapper_is_the_default_and_names_an_image_it_cannot_read(tmp_path):
    cfg = load_config("")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for is_train in (True, False):
        mapper = build_mapper(cfg, is_train)
        assert isinstance(mapper, DatasetMapper)
        with pytest.raises(UserError, match="broken.png: expected an image file"):
            mapper({"file_name": str(broken), "annotations": []})


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("INPUT.AUGMENTATION", "ssd", r"expected one of \['detectron2', 'published'\].*'ssd'"),
        ("INPUT.FORMAT", "L", "INPUT.FORMAT: expected one of"),
        ("INPUT.SQUARE_SIZE_TRAIN", 0, "INPUT.SQUARE_SIZE_TRAIN: expected a positive"),
        ("INPUT.CROP.ENABLED", True, "INPUT.CROP.ENABLED: expected False"),
        ("MODEL.MASK_ON", True, "MODEL.MASK_ON: expected False"),
        ("MODEL.KEYPOINT_ON", True, "MODEL.KEYPOINT_ON: expected False"),
        ("MODEL.LOAD_PROPOSALS", True, "MODEL.LOAD_PROPOSALS: expected False"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message):
        build_mapper(cfg, True)


@pytest.mark.parametrize(
    "flip, num_augmentations", [("horizontal", 5), ("vertical", 5), ("none", 4)]
)
def test_the_flip_follows_its_config_key(cfg, flip, num_augmentations):
    cfg.INPUT.RANDOM_FLIP = flip
    augmentations = build_mapper(cfg, True).augmentations.augs
    assert len(augmentations) == num_augmentations
    assert getattr(augmentations[-1], flip, flip == "none")


def test_unusable_records_are_named(cfg, record_of):
    mapper = ALRPDatasetMapper(cfg)
    record = record_of([annotation([1, 2, 3])])
    with pytest.raises(UserError, match=r"image.png: expected a 'bbox' of four .*\[1, 2, 3\]"):
        mapper(record)
    with pytest.raises(UserError, match="four finite numbers, but got .*nan"):
        mapper(record_of([annotation([1, 2, np.nan, 4])]))
    with pytest.raises(UserError, match="image.png.*got .*90, 60.*expect .*91, 60"):
        mapper({**record, "width": WIDTH + 1})
    del record["annotations"]
    with pytest.raises(UserError, match="expected 'annotations' in the record"):
        mapper(record)
    Path(record["file_name"]).write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot identify image file"):
        mapper(record)
    Path(record["file_name"]).unlink()
    with pytest.raises(UserError, match="No such file"):
        mapper(record)


# The loaders that use it


@pytest.fixture
def shapes_cfg(cfg, tmp_path):
    """``cfg`` on four and two small images of its own dataset, one process, batch 2."""
    paths = make_shapes_dataset(tmp_path, 4, 2, image_size=64)
    names = [f"mapper_test_{split}" for split in paths]
    cfg.DATASETS.COCO_FORMAT = [[n, *map(str, p)] for n, p in zip(names, paths.values())]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names[:1], names[1:]
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    register_coco_format(cfg)
    yield cfg
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "augmentation, train_shape, test_resize",
    [
        ("published", (3, 128, 128), BilinearResizeTransform),
        ("detectron2", (3, 32, 32), T.ResizeTransform),
    ],
)
def test_the_loaders_of_the_trainer_follow_the_config(
    shapes_cfg, augmentation, train_shape, test_resize
):
    shapes_cfg.INPUT.AUGMENTATION = augmentation
    shapes_cfg.INPUT.MIN_SIZE_TRAIN = shapes_cfg.INPUT.MAX_SIZE_TRAIN = 32
    shapes_cfg.INPUT.MIN_SIZE_TEST = 40
    batch = next(iter(Trainer.build_train_loader(shapes_cfg)))
    assert [sample["image"].shape for sample in batch] == [train_shape] * 2
    (sample,) = next(iter(Trainer.build_test_loader(shapes_cfg, shapes_cfg.DATASETS.TEST[0])))
    original = np.asarray(Image.open(sample["file_name"]))
    expected = test_resize(64, 64, 40, 40).apply_image(original)
    assert_array_equal(sample["image"].numpy().transpose(1, 2, 0), expected)


@pytest.mark.skipif("ALRP_BCCD" not in os.environ, reason="ALRP_BCCD is not set")
def test_blood_cell_photographs_keep_about_their_number_of_boxes(cfg):
    root = Path(os.environ["ALRP_BCCD"])
    records = load_coco_json(str(root / "annotations/instances_train.json"), str(root / "train"))
    records = records[::12]
    samples = [ALRPDatasetMapper(cfg)(record) for record in records]
    before = sum(len(record["annotations"]) for record in records)
    after = sum(len(sample["instances"]) for sample in samples)
    assert 0.4 * before < after < before
    assert all(torch.isfinite(sample["image"]).all() for sample in samples)
