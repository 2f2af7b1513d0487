"""Checks of boxes and areas: empty, outside of the image, or written in another form."""

from __future__ import annotations

import pytest
from helpers.small_dataset import TRAIN, VAL, assert_one, only

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from alrp.engine.checks import check_datasets


def test_an_annotation_given_twice_is_a_warning(cfg, val):
    val.content["annotations"].append({**val.content["annotations"][2], "id": 99})
    val.write()
    assert_one(cfg, "warning", VAL, "1 annotations repeat another one", "delete the copies")


@pytest.mark.parametrize("area", [0, 400.0])
def test_an_area_that_is_not_that_of_the_box_is_a_warning(cfg, val, area):
    val.content["annotations"][2]["area"] = area
    val.write()
    assert_one(cfg, "warning", VAL, "1 annotations have an 'area' of 0 or beyond that", "area")
    val.content["annotations"][2]["area"] = 11.0 * 21.0  # first and last pixel counted
    val.write()
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("box", [[5, 5, 0, 4], [5, 5, 4, 0], [5, 5, -2, 4]], ids=str)
def test_an_empty_box_is_an_error_in_training_and_a_warning_in_testing(cfg, train, val, box):
    train.set_boxes(box)
    assert_one(cfg, "error", TRAIN, f"annotation 1 in 1.png: {box}", "[x, y, width, height]")
    train.set_boxes([5, 5, 4, 4])
    val.set_boxes(box)
    assert_one(cfg, "warning", VAL, f"annotation 1 in 1.png: {box}")


def test_empty_boxes_of_published_datasets_are_only_warned_about(cfg, train):
    name = "coco_2017_train"
    train.set_boxes([5, 5, 4, 0])
    loader, metadata = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    try:
        register_coco_instances(name, {}, str(train.json), str(train.folder))
        cfg.DATASETS.TRAIN = (name,)
        assert_one(cfg, "warning", name, "1 boxes have a width or height of zero or less")
    finally:
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("position", range(4))
def test_a_box_that_is_not_finite_is_found(cfg, train, value, position):
    box = [5.0, 5.0, 4.0, 4.0]
    box[position] = value
    train.set_boxes(box)
    assert_one(cfg, "error", TRAIN, "1 boxes have a number that is not finite: annotation 1")


@pytest.mark.parametrize(
    "box", [[40, 5, 4, 4], [5, 32, 4, 4], [-9, 5, 9, 4], [5, -9, 4, 9]], ids=str
)
def test_a_box_outside_its_image_is_found(cfg, train, box):
    train.set_boxes(box)
    assert_one(cfg, "error", TRAIN, "no overlap with their image: annotation 1 in 1.png")


def test_bad_boxes_are_counted_and_the_first_three_listed(cfg, train):
    train.set_boxes(*[[5, 5, 0, 4]] * 5)
    what = only(check_datasets(cfg, for_training=True)).what
    assert what.startswith("5 boxes have") and what.endswith("and 2 more")
    assert "annotation 3 in 2.png" in what and "annotation 4" not in what


def test_a_box_below_one_pixel_is_a_warning(cfg, train):
    train.set_boxes([5, 5, 0.5, 4])
    assert_one(cfg, "warning", TRAIN, "1 boxes have a side below 1 pixel")


@pytest.mark.parametrize("box", [[-2, 5, 9, 4], [5, 20, 9, 14]], ids=str)
def test_a_box_partly_outside_is_a_warning(cfg, train, box):
    train.set_boxes(box)
    assert_one(cfg, "warning", TRAIN, "1 boxes have a part outside of the image")


@pytest.mark.parametrize("box", [[-0.5, 0, 9, 4], [30, 20, 10.5, 12.5], [0, 0, 40, 32]], ids=str)
def test_a_box_up_to_the_border_is_fine(cfg, train, box):
    train.set_boxes(box)
    assert check_datasets(cfg, for_training=True) == []


def test_the_boxes_of_crowds_are_not_judged(cfg, train):
    train.content["annotations"][0]["iscrowd"] = 1
    train.set_boxes([90, 90, 0, 0])
    assert check_datasets(cfg, for_training=True) == []


def test_normalised_boxes_are_called_so(cfg, train):
    train.set_boxes(*[[0.1, 0.2, 0.3, 0.4]] * 8)
    assert_one(cfg, "error", TRAIN, "fractions of the image", "multiply")


def test_boxes_given_as_two_corners_are_called_so(cfg, train):
    train.set_boxes(*[[20, 10, 35, 30]] * 5, *[[1, 1, 12, 9]] * 3)
    assert_one(cfg, "error", TRAIN, "would fit it as two corners", "x2 - x1")
