"""Checks of an annotation file: its lists, the fields of its records, ids and references."""

from __future__ import annotations

import json
import pytest
from helpers.small_dataset import TRAIN, VAL, assert_one, only

from detectron2.data.datasets import register_coco_instances

from alrp.engine.checks import check_datasets


def test_a_missing_annotation_file_is_found(cfg, train):
    train.json.unlink()
    assert_one(cfg, "error", str(train.json), "does not exist", "DATASETS.COCO_FORMAT")


def test_a_missing_built_in_dataset_points_to_its_environment_variable(cfg):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2014_valminusminival",), ()
    assert_one(cfg, "error", "instances_val", "does not exist", "DETECTRON2_DATASETS")


def test_a_folder_as_annotation_file_is_found(cfg, train):
    train.json.unlink()
    train.json.mkdir()
    fix = "name the annotation file first in DATASETS.COCO_FORMAT, then the image folder"
    assert_one(cfg, "error", str(train.json), "cannot be read", fix)


def test_broken_json_is_found_with_line_and_column(cfg, train):
    train.json.write_text('{"images": [],\n "annotations": [}')
    assert_one(cfg, "error", TRAIN, "line 2, column 18")


def test_a_binary_file_is_not_json(cfg, train):
    train.json.write_bytes(b'{"a": "\xff\xfe"}')
    assert_one(cfg, "error", TRAIN, "at byte 7", "UTF-8")


def test_a_list_is_not_a_dataset(cfg, train):
    train.json.write_text("[]")
    assert_one(cfg, "error", TRAIN, "holds a list", "detection results")


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_a_missing_list_is_found(cfg, train, key):
    del train.content[key]
    train.write()
    assert_one(cfg, "error", TRAIN, f"list '{key}', but it is missing")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_an_empty_list_is_found(cfg, train, key):
    train.content[key] = []
    train.write()
    assert_one(cfg, "error", TRAIN, f"list '{key}', but it is []")


def test_a_test_set_may_come_without_annotations(cfg, val):
    del val.content["annotations"]
    val.write()
    assert check_datasets(cfg, for_training=False) == []


@pytest.mark.parametrize(
    ("key", "field"),
    [("images", name) for name in ("id", "file_name", "width", "height")]
    + [("annotations", name) for name in ("id", "image_id", "category_id", "bbox")]
    + [("categories", name) for name in ("id", "name")],
)
def test_a_missing_field_is_found(cfg, train, key, field):
    del train.content[key][1][field]
    train.write()
    assert_one(cfg, "error", TRAIN, f"{key}[1] is", repr(field))


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("images", "width", 0),
        ("images", "height", "32"),
        ("images", "file_name", ""),
        ("annotations", "category_id", "disc"),
        ("annotations", "bbox", []),
        ("annotations", "bbox", [1, 2, 3]),
        ("annotations", "bbox", [1, 2, "3", 4]),
        ("categories", "id", None),
    ],
)
def test_a_field_of_the_wrong_kind_is_found(cfg, train, key, field, value):
    train.content[key][0][field] = value
    train.write()
    assert_one(cfg, "error", TRAIN, f"1 are not so: {key}[0] is", repr(field))


@pytest.mark.parametrize("value", [None, "12", float("nan"), -1, [1]], ids=str)
@pytest.mark.parametrize("field", ["area", "iscrowd"])
@pytest.mark.parametrize("for_training", [True, False])
def test_an_optional_field_of_the_wrong_kind_is_found(cfg, val, field, value, for_training):
    val.content["annotations"][2][field] = value
    val.write()
    assert_one(cfg, "error", VAL, f"{{{field!r}: ", field, for_training=for_training)


def test_area_and_crowd_flag_may_be_left_out(cfg, train, val):
    for dataset in (train, val):
        for annotation in dataset.content["annotations"]:
            del annotation["area"], annotation["iscrowd"]
        dataset.write()
    assert check_datasets(cfg, for_training=True) == []


def test_the_first_three_bad_records_and_the_number_of_others_are_listed(cfg, train):
    for annotation in train.content["annotations"][3:]:
        del annotation["bbox"]
    train.write()
    what = only(check_datasets(cfg, for_training=True)).what
    assert all(f"annotations[{i}] is" in what for i in (3, 4, 5))
    assert "annotations[6]" not in what and what.endswith("and 2 more")


def test_records_that_are_no_objects_are_found(cfg, train):
    train.content["annotations"][2] = "text"
    train.write()
    assert_one(cfg, "error", TRAIN, "objects in 'annotations', but 1 are not: annotations[2]")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_repeated_ids_are_found(cfg, train, key):
    records = train.content[key]
    records.append(dict(records[1]))
    train.write()
    cfg.MODEL.RETINANET.NUM_CLASSES = len(train.content["categories"])
    cfg.DATASETS.TEST = ()
    assert_one(cfg, "error", TRAIN, f"{records[1]['id']} (2 times)", f"number the {key} anew")


def test_repeated_annotation_ids_of_minival_pass_as_they_do_in_the_loader(cfg, train):
    path = train.json.with_name("instances_minival.json")
    train.content["annotations"].append(dict(train.content["annotations"][1]))
    path.write_text(json.dumps(train.content))
    register_coco_instances("preflight_test_minival", {}, str(path), str(train.folder))
    cfg.DATASETS.TEST = ("preflight_test_minival",)
    assert check_datasets(cfg, for_training=False) == []


@pytest.mark.parametrize(("field", "key"), [("image_id", "images"), ("category_id", "categories")])
def test_an_unknown_reference_is_found(cfg, train, field, key):
    train.content["annotations"][3][field] = 99
    train.write()
    assert_one(cfg, "error", TRAIN, f"annotation 4 has {field} 99", f"missing {key}")


def test_text_ids_are_shown_with_quotes(cfg, train):
    for annotation in train.content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    train.write()
    assert_one(cfg, "error", TRAIN, "these ids are text ('1'), those listed are numbers (1)")


def test_ids_from_zero_are_renumbered_and_said_so(cfg, train):
    for annotation in train.content["annotations"]:
        annotation["id"] -= 1
    train.write()
    assert_one(cfg, "warning", TRAIN, "numbered from 1 in memory", "nothing needs to be done")


@pytest.mark.parametrize("shift", [-1, 1])
def test_classes_given_by_index_instead_of_id_are_called_so(cfg, train, shift):
    for record in train.content["annotations"] if shift < 0 else train.content["categories"]:
        record["category_id" if shift < 0 else "id"] -= 1
    train.write()
    cfg.DATASETS.TEST = ()
    finding = check_datasets(cfg, for_training=True)[0]
    start = 0 if shift < 0 else 1
    assert f"look like numbers of the classes, counted from {start}" in finding.what
    assert finding.fix == "write the ids of the categories into the annotations"


@pytest.mark.parametrize("for_training", [True, False])
def test_categories_of_one_name_are_found(cfg, val, for_training):
    val.content["categories"][1]["name"] = "disc"
    val.write()
    if for_training:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (VAL,), ()
    what = "categories 1 and 2 are both named 'disc'"
    assert_one(cfg, "error", VAL, what, for_training=for_training)


def test_the_ignore_flag_is_found(cfg, train):
    train.content["annotations"][4]["ignore"] = 1
    train.write()
    assert_one(cfg, "error", TRAIN, "annotation 5", "iscrowd")
