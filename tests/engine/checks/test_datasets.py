"""Checks of the datasets of a run: names, classes, what there is to learn and to measure."""

from __future__ import annotations

import os
import pytest
from helpers.small_dataset import TRAIN, VAL, assert_one, only

from detectron2.data import DatasetCatalog, MetadataCatalog

from alrp.data.datasets.coco_format import register_coco_format
from alrp.engine.checks import check_datasets


@pytest.mark.parametrize("for_training", [True, False])
def test_a_clean_dataset_gives_no_finding(cfg, for_training):
    assert check_datasets(cfg, for_training=for_training) == []


def test_an_unknown_name_brings_the_close_one_and_those_of_coco_format(cfg):
    cfg.DATASETS.TRAIN = ("preflight_test_trian",)
    finding = only(check_datasets(cfg, for_training=True))
    assert (finding.severity, finding.where) == ("error", "DATASETS.TRAIN")
    assert f"{[TRAIN, VAL]}" in finding.what
    assert repr(TRAIN) in finding.fix and "DATASETS.COCO_FORMAT" in finding.fix


def test_an_unknown_test_name_is_found_in_training_too(cfg):
    cfg.DATASETS.TEST = ("nothing_like_it",)
    assert_one(cfg, "error", "DATASETS.TEST", "no dataset 'nothing_like_it' is registered")


def test_the_training_set_does_not_matter_to_an_evaluation(cfg, train):
    train.json.unlink()
    assert check_datasets(cfg, for_training=False) == []


def test_training_needs_a_training_set(cfg):
    cfg.DATASETS.TRAIN = ()
    assert_one(
        cfg, "error", "DATASETS.TRAIN", "at least one dataset to train on", "the name of one"
    )


def test_an_evaluation_needs_a_test_set(cfg):
    cfg.DATASETS.TEST = ()
    assert check_datasets(cfg, for_training=True) == []
    assert_one(
        cfg, "error", "DATASETS.TEST", "to evaluate on", "the name of one", for_training=False
    )


@pytest.mark.parametrize(
    ("architecture", "node"),
    [("ALRPRetinaNet", "RETINANET"), ("RetinaNet", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")],
)
def test_a_wrong_class_count_brings_the_exact_override(cfg, architecture, node):
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL[node].NUM_CLASSES = 80
    key = f"MODEL.{node}.NUM_CLASSES"
    assert_one(cfg, "error", key, "80 classes, but", f"set {key} 2")


def test_the_class_count_of_a_fovea_box_is_checked(cfg):
    cfg.MODEL.META_ARCHITECTURE = "FoveaBox"
    cfg.MODEL.FOVEABOX.NUM_CLASSES = 3
    where = "MODEL.FOVEABOX.NUM_CLASSES"
    finding = only([f for f in check_datasets(cfg, for_training=True) if f.where == where])
    assert "3 classes, but" in finding.what and "NUM_CLASSES 2" in finding.fix


def test_other_categories_in_the_test_set_are_found(cfg, val):
    val.content["categories"][1]["name"] = "triangle"
    val.write()
    assert_one(cfg, "error", VAL, "(disc, square), but got disc, triangle", "same ids")


def test_the_same_categories_in_another_order_are_found(cfg, val):
    val.content["categories"] = [{"id": 2, "name": "disc"}, {"id": 1, "name": "square"}]
    val.write()
    assert_one(cfg, "error", VAL, "but got square, disc")


def test_the_order_in_the_file_does_not_matter_where_ids_agree(cfg, val):
    val.content["categories"].reverse()
    val.write()
    assert check_datasets(cfg, for_training=True) == []


def test_a_class_without_a_box_in_any_training_set_is_a_warning(cfg, train, val):
    """Roboflow lists a category 0 above all others."""
    for dataset in (train, val):
        dataset.content["categories"].insert(0, {"id": 0, "name": "shapes"})
        dataset.write()
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    what = "1 of 3 classes have no box to learn from: 'shapes'"
    assert_one(cfg, "warning", "DATASETS.TRAIN", what, "DATASETS.CLASSES")
    val.content["annotations"][0]["category_id"] = 0
    val.write()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN, VAL), ()
    assert check_datasets(cfg, for_training=True) == []


def test_an_unknown_class_brings_no_other_error(cfg):
    cfg.DATASETS.CLASSES, cfg.DATASETS.TEST = ("dics",), ()
    assert_one(cfg, "error", "DATASETS.CLASSES", "there is no class 'dics'", "write 'disc'")


def test_own_files_under_the_name_of_a_built_in_dataset_are_found(cfg, train):
    name = "coco_2017_train"
    metadata = MetadataCatalog.get(name)
    before = metadata.json_file, metadata.image_root
    metadata.__dict__.update(json_file=str(train.json), image_root=str(train.folder))
    cfg.DATASETS.TRAIN = (name,)
    try:
        what = "stands for COCO's images and 80 classes"
        assert_one(cfg, "error", name, what, "DATASETS.COCO_FORMAT")
    finally:
        metadata.__dict__.update(json_file=before[0], image_root=before[1])


def test_images_left_out_for_want_of_boxes_are_counted(cfg, train):
    del train.content["annotations"][:2]
    train.write()
    assert_one(cfg, "warning", "DATASETS.TRAIN", "1 of 4 images have no boxes")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize(("filters", "what"), [(True, "no usable image"), (False, "no positives")])
def test_a_training_set_of_crowds_only_is_an_error(cfg, train, filters, what):
    for annotation in train.content["annotations"]:
        annotation["iscrowd"] = 1
    train.write()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filters
    assert_one(cfg, "error", "DATASETS.TRAIN", what, "iscrowd")


def test_images_of_the_training_set_in_the_test_set_are_a_warning(cfg, val):
    cfg.DATASETS.COCO_FORMAT[1][2] = cfg.DATASETS.COCO_FORMAT[0][2]
    for name in (TRAIN, VAL):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    register_coco_format(cfg)
    val.content["images"] = val.content["images"][:2]
    val.content["annotations"] = val.content["annotations"][:4]
    val.write()
    what = f"2 of the 2 images of {VAL!r} are trained on, such as "
    assert_one(cfg, "warning", "DATASETS.TEST", what)
    assert check_datasets(cfg, for_training=False) == []


def test_a_dataset_without_its_own_files_in_the_catalog_is_not_opened(cfg):
    DatasetCatalog.register("preflight_test_function", lambda: [])
    cfg.DATASETS.TRAIN = ("preflight_test_function",)
    assert check_datasets(cfg, for_training=True) == []
    MetadataCatalog.get("preflight_test_function").thing_classes = ["disc", "square", "third"]
    assert {f.where for f in check_datasets(cfg, for_training=True)} == {
        "MODEL.RETINANET.NUM_CLASSES",
        f"dataset {VAL!r}",
    }


def test_a_test_set_of_a_function_needs_class_names(cfg):
    name = "preflight_test_unnamed"
    DatasetCatalog.register(name, lambda: [])
    cfg.DATASETS.TEST = (name,)
    assert_one(cfg, "error", "DATASETS.TEST", f"{name!r} has no class names", "thing_classes")
    MetadataCatalog.get(name).thing_classes = ["disc", "square"]
    assert check_datasets(cfg, for_training=True) == []


def test_a_function_may_set_its_class_names_when_it_is_called(cfg):
    name = "preflight_test_named_late"

    def read() -> list:  # as Detectron2's load_coco_json does
        MetadataCatalog.get(name).thing_classes = ["disc", "square"]
        return []

    DatasetCatalog.register(name, read)
    cfg.DATASETS.TEST = (name,)
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize(
    "metric",
    ["bbox/AP", "my_val/lrp/oLRP", "bbox/AP-disc", "bbox/AP-disc/ring", "keypoints/AP"]
    + ["validation/total_loss", ""],
)
def test_a_best_metric_needs_objects_in_the_test_set(cfg, val, metric):
    cfg.TEST.BEST_METRIC = metric
    del val.content["annotations"]
    val.write()
    if metric:
        assert_one(cfg, "error", "TEST.BEST_METRIC", "cannot be measured", "with annotations")
    else:
        assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("metric", ["speed/images per second", "my_val/mine/score"])
def test_an_evaluator_of_ones_own_may_measure_without_objects(cfg, val, metric):
    cfg.TEST.BEST_METRIC = metric
    del val.content["annotations"]
    val.write()
    assert check_datasets(cfg, for_training=True) == []


def test_a_best_metric_with_an_unknown_test_set_brings_no_error_of_objects(cfg):
    cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST = "bbox/AP", ("preflight_test_unknown",)
    findings = check_datasets(cfg, for_training=True)
    assert [finding.where for finding in findings] == ["DATASETS.TEST"]


@pytest.mark.skipif("ALRP_BCCD" not in os.environ, reason="ALRP_BCCD is not set")
def test_the_blood_cell_dataset_has_no_mistake(cfg):
    root = "$ALRP_BCCD"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("preflight_bccd_train",), ("preflight_bccd_val",)
    cfg.DATASETS.COCO_FORMAT = [
        [f"preflight_bccd_{split}", f"{root}/annotations/instances_{split}.json", f"{root}/{split}"]
        for split in ("train", "val")
    ]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    register_coco_format(cfg)
    assert check_datasets(cfg, for_training=True) == []
