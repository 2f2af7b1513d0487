"""Checks of segmentations, which are judged only where they are used."""

from __future__ import annotations

import pytest
from helpers.small_dataset import TRAIN, VAL, assert_one

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from alrp.engine.checks import check_datasets


@pytest.mark.parametrize("segmentation", [[[1, 2, 3, 4]], [], [1, 2, 3, 4, 5, 6], "x"], ids=str)
def test_segmentation_is_not_judged_without_masks(cfg, train, segmentation):
    train.spoil(segmentation=segmentation, keypoints="x")
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("for_training", [True, False])
def test_masks_need_a_segmentation_everywhere(cfg, train, val, for_training):
    cfg.MODEL.MASK_ON = True
    for dataset in (train, val):
        dataset.spoil(segmentation=[[1, 2, 10, 2, 5, 9]])
    val.content["annotations"][1]["segmentation"] = []
    val.write()
    what = "MODEL.MASK_ON needs segmentation, but 1 annotations have none: annotation 2"
    found = [f for f in check_datasets(cfg, for_training=for_training) if "MASK_ON needs" in f.what]
    assert len(found) == 1 and found[0].severity == "error" and what in found[0].what


@pytest.mark.parametrize(
    ("mask_format", "iscrowd"), [("polygon", 0), ("polygon", 1), ("bitmask", 0)]
)
def test_encoded_masks_of_objects_need_bitmasks(cfg, train, val, mask_format, iscrowd):
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, mask_format
    encoded = {"size": [32, 40], "counts": [600, 20, 660]}
    train.spoil(segmentation=encoded, iscrowd=iscrowd)
    val.spoil(segmentation=encoded)  # an evaluation reads both kinds
    if (mask_format, iscrowd) == ("polygon", 0):
        fix = "set INPUT.MASK_FORMAT bitmask"
        assert_one(cfg, "error", TRAIN, "8 annotations are run-length encoded", fix)
    else:
        assert not [f for f in check_datasets(cfg, for_training=True) if "run-length" in f.what]


@pytest.mark.parametrize(
    ("encoding", "problem"),
    [
        ({"size": [40, 32], "counts": [1200, 80]}, "size [40, 32], the image has [32, 40]"),
        ({"size": [32, 40], "counts": [5, 10]}, "counts of 15 pixels instead of 1280"),
    ],
)
def test_run_lengths_of_another_size_are_found(cfg, val, encoding, problem):
    cfg.MODEL.MASK_ON = True
    val.spoil(segmentation=encoding)
    assert_one(cfg, "error", VAL, f"annotation 1 ({problem})", for_training=False)


def test_polygons_that_detectron2_would_drop_boxes_for_are_found(cfg, train):
    name = "preflight_test_foreign"
    train.spoil(segmentation=[[1, 2, 3, 4]])
    register_coco_instances(name, {}, str(train.json), str(train.folder))
    cfg.DATASETS.TRAIN = (name,)
    try:
        assert_one(cfg, "error", name, "leaves out such annotations", "DATASETS.COCO_FORMAT")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
