"""Checks of datasets: each mistake is found, a clean dataset gives no finding."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from alrp.coco import Finding
from alrp.config import load_config
from alrp.data.datasets.coco_format import register_coco_format
from alrp.engine.checks import check_datasets

TRAIN, VAL = "preflight_test_train", "preflight_test_val"


class Dataset:
    """A dataset of four 40x32 images with two boxes each, to be spoiled before it is checked."""

    def __init__(self, root: Path):
        self.json, self.folder = root / "annotations.json", root / "images"
        self.folder.mkdir(parents=True)
        for i in range(1, 5):
            Image.new("RGB", (40, 32), (i, 2 * i, 3 * i)).save(self.folder / f"{i}.png")
        self.content = {
            "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}],
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32} for i in range(1, 5)
            ],
            "annotations": [
                {"id": 1 + i, "image_id": 1 + i // 2, "category_id": 1 + i % 2}
                | {"bbox": [1.0, 2.0, 10.0, 20.0], "area": 200.0, "iscrowd": 0}
                for i in range(8)
            ],
        }
        self.write()

    def write(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def set_boxes(self, *boxes: list) -> None:
        """Give the first annotations these boxes."""
        for annotation, box in zip(self.content["annotations"], boxes):
            area = box[2] * box[3] if len(box) == 4 and math.isfinite(sum(box)) else 1.0
            annotation.update(bbox=box, area=abs(area))
        self.write()


@pytest.fixture
def train(tmp_path) -> Dataset:
    return Dataset(tmp_path / "train")


@pytest.fixture
def val(tmp_path) -> Dataset:
    return Dataset(tmp_path / "val")


@pytest.fixture
def cfg(train, val):
    """A config of ours with both datasets, in which there is nothing to find."""
    cfg = load_config("")
    cfg.MODEL.META_ARCHITECTURE = "ALRPRetinaNet"
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.DATASETS.COCO_FORMAT = [
        [TRAIN, str(train.json), str(train.folder)],
        [VAL, str(val.json), str(val.folder)],
    ]
    register_coco_format(cfg)
    return cfg


def register_coco_format_anew(cfg) -> None:
    for name in (TRAIN, VAL):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    register_coco_format(cfg)


def _only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def _assert_one(cfg, severity: str, where: str, what: str, fix: str = "", **options) -> None:
    """Exactly one finding, whose fields hold these texts; training unless said otherwise."""
    finding = _only(check_datasets(cfg, **{"for_training": True} | options))
    assert finding.severity == severity
    assert where in finding.where
    assert what in finding.what
    assert fix in finding.fix


@pytest.mark.parametrize("for_training", [True, False])
def test_a_clean_dataset_gives_no_finding(cfg, for_training):
    assert check_datasets(cfg, for_training=for_training) == []


# Names


def test_an_unknown_name_brings_the_close_one_and_those_of_coco_format(cfg):
    cfg.DATASETS.TRAIN = ("preflight_test_trian",)
    finding = _only(check_datasets(cfg, for_training=True))
    assert (finding.severity, finding.where) == ("error", "DATASETS.TRAIN")
    assert f"{[TRAIN, VAL]}" in finding.what
    assert repr(TRAIN) in finding.fix and "DATASETS.COCO_FORMAT" in finding.fix


def test_an_unknown_test_name_is_found_in_training_too(cfg):
    cfg.DATASETS.TEST = ("nothing_like_it",)
    _assert_one(cfg, "error", "DATASETS.TEST", "no dataset 'nothing_like_it' is registered")


def test_the_training_set_does_not_matter_to_an_evaluation(cfg, train):
    train.json.unlink()
    assert check_datasets(cfg, for_training=False) == []


def test_training_needs_a_training_set(cfg):
    cfg.DATASETS.TRAIN = ()
    _assert_one(
        cfg, "error", "DATASETS.TRAIN", "at least one dataset to train on", "the name of one"
    )


def test_an_evaluation_needs_a_test_set(cfg):
    cfg.DATASETS.TEST = ()
    assert check_datasets(cfg, for_training=True) == []
    _assert_one(
        cfg, "error", "DATASETS.TEST", "to evaluate on", "the name of one", for_training=False
    )


# Annotation file


def test_a_missing_annotation_file_is_found(cfg, train):
    train.json.unlink()
    _assert_one(cfg, "error", str(train.json), "does not exist", "DATASETS.COCO_FORMAT")


def test_a_missing_built_in_dataset_points_to_its_environment_variable(cfg):
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2014_valminusminival",), ()
    _assert_one(cfg, "error", "instances_val", "does not exist", "DETECTRON2_DATASETS")


def test_a_folder_as_annotation_file_is_found(cfg, train):
    train.json.unlink()
    train.json.mkdir()
    fix = "name the annotation file first in DATASETS.COCO_FORMAT, then the image folder"
    _assert_one(cfg, "error", str(train.json), "cannot be read", fix)


def test_broken_json_is_found_with_line_and_column(cfg, train):
    train.json.write_text('{"images": [],\n "annotations": [}')
    _assert_one(cfg, "error", TRAIN, "line 2, column 18")


def test_a_binary_file_is_not_json(cfg, train):
    train.json.write_bytes(b'{"a": "\xff\xfe"}')
    _assert_one(cfg, "error", TRAIN, "at byte 7", "UTF-8")


def test_a_list_is_not_a_dataset(cfg, train):
    train.json.write_text("[]")
    _assert_one(cfg, "error", TRAIN, "holds a list", "detection results")


@pytest.mark.parametrize("key", ["images", "categories", "annotations"])
def test_a_missing_list_is_found(cfg, train, key):
    del train.content[key]
    train.write()
    _assert_one(cfg, "error", TRAIN, f"list '{key}', but it is missing")


@pytest.mark.parametrize("key", ["images", "categories"])
def test_an_empty_list_is_found(cfg, train, key):
    train.content[key] = []
    train.write()
    _assert_one(cfg, "error", TRAIN, f"list '{key}', but it is []")


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
    _assert_one(cfg, "error", TRAIN, f"{key}[1] is", repr(field))


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
    _assert_one(cfg, "error", TRAIN, f"1 are not so: {key}[0] is", repr(field))


def test_the_first_three_bad_records_and_the_number_of_others_are_listed(cfg, train):
    for annotation in train.content["annotations"][3:]:
        del annotation["bbox"]
    train.write()
    what = _only(check_datasets(cfg, for_training=True)).what
    assert all(f"annotations[{i}] is" in what for i in (3, 4, 5))
    assert "annotations[6]" not in what and what.endswith("and 2 more")


def test_records_that_are_no_objects_are_found(cfg, train):
    train.content["annotations"][2] = "text"
    train.write()
    _assert_one(cfg, "error", TRAIN, "objects in 'annotations', but 1 are not: annotations[2]")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_repeated_ids_are_found(cfg, train, key):
    records = train.content[key]
    records.append(dict(records[1]))
    train.write()
    cfg.MODEL.RETINANET.NUM_CLASSES = len(train.content["categories"])
    cfg.DATASETS.TEST = ()
    _assert_one(cfg, "error", TRAIN, f"{records[1]['id']} (2 times)", f"number the {key} anew")


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
    _assert_one(cfg, "error", TRAIN, f"annotation 4 has {field} 99", f"missing {key}")


def test_the_ignore_flag_is_found(cfg, train):
    train.content["annotations"][4]["ignore"] = 1
    train.write()
    _assert_one(cfg, "error", TRAIN, "annotation 5", "iscrowd")


# Classes


@pytest.mark.parametrize(
    ("architecture", "node"),
    [("ALRPRetinaNet", "RETINANET"), ("RetinaNet", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")],
)
def test_a_wrong_class_count_brings_the_exact_override(cfg, architecture, node):
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL[node].NUM_CLASSES = 80
    key = f"MODEL.{node}.NUM_CLASSES"
    _assert_one(cfg, "error", key, "80 classes, but", f"set {key} 2")


def test_the_class_count_of_a_fovea_box_is_checked(cfg):
    cfg.MODEL.META_ARCHITECTURE = "FoveaBox"
    cfg.MODEL.FOVEABOX.NUM_CLASSES = 3
    where = "MODEL.FOVEABOX.NUM_CLASSES"
    finding = _only([f for f in check_datasets(cfg, for_training=True) if f.where == where])
    assert "3 classes, but" in finding.what and "NUM_CLASSES 2" in finding.fix


def test_other_categories_in_the_test_set_are_found(cfg, val):
    val.content["categories"][1]["name"] = "triangle"
    val.write()
    _assert_one(cfg, "error", VAL, "(disc, square), but got disc, triangle", "same ids")


def test_the_same_categories_in_another_order_are_found(cfg, val):
    val.content["categories"] = [{"id": 2, "name": "disc"}, {"id": 1, "name": "square"}]
    val.write()
    _assert_one(cfg, "error", VAL, "but got square, disc")


def test_the_order_in_the_file_does_not_matter_where_ids_agree(cfg, val):
    val.content["categories"].reverse()
    val.write()
    assert check_datasets(cfg, for_training=True) == []


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


def test_a_class_without_a_box_in_any_training_set_is_a_warning(cfg, train, val):
    """Roboflow lists a category 0 above all others."""
    for dataset in (train, val):
        dataset.content["categories"].insert(0, {"id": 0, "name": "shapes"})
        dataset.write()
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    what = "1 of 3 classes have no box to learn from: 'shapes'"
    _assert_one(cfg, "warning", "DATASETS.TRAIN", what, "DATASETS.CLASSES")
    val.content["annotations"][0]["category_id"] = 0
    val.write()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN, VAL), ()
    assert check_datasets(cfg, for_training=True) == []


# Boxes


def test_an_annotation_given_twice_is_a_warning(cfg, val):
    val.content["annotations"].append({**val.content["annotations"][2], "id": 99})
    val.write()
    _assert_one(cfg, "warning", VAL, "1 annotations repeat another one", "delete the copies")


@pytest.mark.parametrize("area", [0, 400.0])
def test_an_area_that_is_not_that_of_the_box_is_a_warning(cfg, val, area):
    val.content["annotations"][2]["area"] = area
    val.write()
    _assert_one(cfg, "warning", VAL, "1 annotations have an 'area' of 0 or beyond that", "area")
    val.content["annotations"][2]["area"] = 11.0 * 21.0  # first and last pixel counted
    val.write()
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("box", [[5, 5, 0, 4], [5, 5, 4, 0], [5, 5, -2, 4]], ids=str)
def test_an_empty_box_is_an_error_in_training_and_a_warning_in_testing(cfg, train, val, box):
    train.set_boxes(box)
    _assert_one(cfg, "error", TRAIN, f"annotation 1 in 1.png: {box}", "[x, y, width, height]")
    train.set_boxes([5, 5, 4, 4])
    val.set_boxes(box)
    _assert_one(cfg, "warning", VAL, f"annotation 1 in 1.png: {box}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("position", range(4))
def test_a_box_that_is_not_finite_is_found(cfg, train, value, position):
    box = [5.0, 5.0, 4.0, 4.0]
    box[position] = value
    train.set_boxes(box)
    _assert_one(cfg, "error", TRAIN, "1 boxes have a number that is not finite: annotation 1")


@pytest.mark.parametrize(
    "box", [[40, 5, 4, 4], [5, 32, 4, 4], [-9, 5, 9, 4], [5, -9, 4, 9]], ids=str
)
def test_a_box_outside_its_image_is_found(cfg, train, box):
    train.set_boxes(box)
    _assert_one(cfg, "error", TRAIN, "no overlap with their image: annotation 1 in 1.png")


def test_bad_boxes_are_counted_and_the_first_three_listed(cfg, train):
    train.set_boxes(*[[5, 5, 0, 4]] * 5)
    what = _only(check_datasets(cfg, for_training=True)).what
    assert what.startswith("5 boxes have") and what.endswith("and 2 more")
    assert "annotation 3 in 2.png" in what and "annotation 4" not in what


def test_a_box_below_one_pixel_is_a_warning(cfg, train):
    train.set_boxes([5, 5, 0.5, 4])
    _assert_one(cfg, "warning", TRAIN, "1 boxes have a side below 1 pixel")


@pytest.mark.parametrize("box", [[-2, 5, 9, 4], [5, 20, 9, 14]], ids=str)
def test_a_box_partly_outside_is_a_warning(cfg, train, box):
    train.set_boxes(box)
    _assert_one(cfg, "warning", TRAIN, "1 boxes have a part outside of the image")


@pytest.mark.parametrize("box", [[-0.5, 0, 9, 4], [30, 20, 10.5, 12.5], [0, 0, 40, 32]], ids=str)
def test_a_box_up_to_the_border_is_fine(cfg, train, box):
    train.set_boxes(box)
    assert check_datasets(cfg, for_training=True) == []


def test_the_boxes_of_crowds_are_not_judged(cfg, train):
    train.content["annotations"][0]["iscrowd"] = 1
    train.set_boxes([90, 90, 0, 0])
    assert check_datasets(cfg, for_training=True) == []


def test_a_dataset_without_its_own_files_in_the_catalog_is_not_opened(cfg):
    DatasetCatalog.register("preflight_test_function", lambda: [])
    cfg.DATASETS.TRAIN = ("preflight_test_function",)
    assert check_datasets(cfg, for_training=True) == []
    MetadataCatalog.get("preflight_test_function").thing_classes = ["disc", "square", "third"]
    assert {f.where for f in check_datasets(cfg, for_training=True)} == {
        "MODEL.RETINANET.NUM_CLASSES",
        f"dataset {VAL!r}",
    }


@pytest.mark.parametrize(
    "metric", ["bbox/AP", "my_val/lrp/oLRP", "bbox/AP-disc", "validation/total_loss", ""]
)
def test_a_best_metric_needs_objects_in_the_test_set(cfg, val, metric):
    cfg.TEST.BEST_METRIC = metric
    del val.content["annotations"]
    val.write()
    if metric:
        _assert_one(cfg, "error", "TEST.BEST_METRIC", "cannot be measured", "with annotations")
    else:
        assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("metric", ["speed/images per second", "my_val/mine/score"])
def test_an_evaluator_of_ones_own_may_measure_without_objects(cfg, val, metric):
    cfg.TEST.BEST_METRIC = metric
    del val.content["annotations"]
    val.write()
    assert check_datasets(cfg, for_training=True) == []


def test_a_test_set_of_a_function_needs_class_names(cfg):
    name = "preflight_test_unnamed"
    DatasetCatalog.register(name, lambda: [])
    cfg.DATASETS.TEST = (name,)
    _assert_one(cfg, "error", "DATASETS.TEST", f"{name!r} has no class names", "thing_classes")
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


def test_a_best_metric_with_an_unknown_test_set_brings_no_error_of_objects(cfg):
    cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST = "bbox/AP", ("preflight_test_unknown",)
    findings = check_datasets(cfg, for_training=True)
    assert [finding.where for finding in findings] == ["DATASETS.TEST"]


def test_empty_boxes_of_published_datasets_are_only_warned_about(cfg, train):
    name = "coco_2017_train"
    train.set_boxes([5, 5, 4, 0])
    loader, metadata = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    try:
        register_coco_instances(name, {}, str(train.json), str(train.folder))
        cfg.DATASETS.TRAIN = (name,)
        _assert_one(cfg, "warning", name, "1 boxes have a width or height of zero or less")
    finally:
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


# Images


def test_a_missing_image_folder_is_found(cfg, train):
    train.folder.rename(train.folder.with_name("elsewhere"))
    _assert_one(cfg, "error", str(train.folder), "the image folder does not exist")
    train.folder.touch()
    what = "this is a file, not a folder of images"
    _assert_one(cfg, "error", str(train.folder), what, "unpack it, or correct the image folder")


@pytest.mark.parametrize("for_training", [True, False])
def test_missing_images_are_found(cfg, val, for_training):
    (val.folder / "2.png").unlink()
    what = "1 of 4 images are missing: 2.png"
    _assert_one(cfg, "error", VAL, what, for_training=for_training)


def test_an_image_that_was_cut_short_is_found(cfg, train):
    path = train.folder / "3.png"
    Image.effect_noise((40, 32), 50).save(path, format="JPEG")  # Pillow looks at the content only
    path.write_bytes(path.read_bytes()[:-200])
    _assert_one(cfg, "error", TRAIN, "1 of 4 images looked at are unreadable: 3.png")


def test_an_image_of_another_size_is_found(cfg, train):
    Image.new("RGB", (32, 40)).save(train.folder / "4.png")
    _assert_one(cfg, "error", TRAIN, "of another size: 4.png (32x40, not 40x32)")


def test_a_photograph_on_its_side_has_the_size_the_loader_sees(cfg, train):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (32, 40)).save(train.folder / "4.png", exif=exif)
    assert check_datasets(cfg, for_training=True) == []
    Image.new("RGB", (40, 32)).save(train.folder / "4.png", exif=exif)
    _assert_one(cfg, "error", TRAIN, "4.png (32x40, not 40x32)", "EXIF")


def test_a_missing_image_among_many_is_found(cfg, train):
    for i in range(5, 201):
        os.link(train.folder / "1.png", train.folder / f"{i}.png")
        train.content["images"].append(
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32}
        )
    train.content["images"][103]["file_name"] = "absent.png"  # none of the 50 that are opened
    train.write()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    _assert_one(cfg, "error", TRAIN, "1 of 200 images are missing: absent.png")


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
    _assert_one(cfg, "error", TRAIN, "1 of 4 images are missing", f"there is {there}")


def test_a_missing_name_is_not_sent_to_the_file_of_another_image(cfg, train):
    train.content["images"][0]["file_name"] = "other/2.png"
    train.write()
    fix = _only(check_datasets(cfg, for_training=True)).fix
    assert "there is" not in fix


def test_a_file_listed_as_two_images_is_a_warning(cfg, val):
    val.content["images"][2]["file_name"] = "2.png"
    val.write()
    _assert_one(cfg, "warning", VAL, "1 files are listed as several images: 2.png (2 times)")


def test_images_of_the_training_set_in_the_test_set_are_a_warning(cfg, val):
    cfg.DATASETS.COCO_FORMAT[1][2] = cfg.DATASETS.COCO_FORMAT[0][2]
    register_coco_format_anew(cfg)
    val.content["images"] = val.content["images"][:2]
    val.content["annotations"] = val.content["annotations"][:4]
    val.write()
    what = f"2 of the 2 images of {VAL!r} are trained on, such as "
    _assert_one(cfg, "warning", "DATASETS.TEST", what)
    assert check_datasets(cfg, for_training=False) == []


def test_an_unknown_class_brings_no_other_error(cfg):
    cfg.DATASETS.CLASSES, cfg.DATASETS.TEST = ("dics",), ()
    _assert_one(cfg, "error", "DATASETS.CLASSES", "there is no class 'dics'", "write 'disc'")


def test_images_below_32_pixels_are_a_warning(cfg, train):
    Image.new("RGB", (40, 31)).save(train.folder / "4.png")
    train.content["images"][3]["height"] = 31
    train.write()
    _assert_one(cfg, "warning", TRAIN, "1 images have a side below 32 pixels: 4.png")


def test_images_left_out_for_want_of_boxes_are_counted(cfg, train):
    del train.content["annotations"][:2]
    train.write()
    _assert_one(cfg, "warning", "DATASETS.TRAIN", "1 of 4 images have no boxes")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize(("filters", "what"), [(True, "no usable image"), (False, "no positives")])
def test_a_training_set_of_crowds_only_is_an_error(cfg, train, filters, what):
    for annotation in train.content["annotations"]:
        annotation["iscrowd"] = 1
    train.write()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filters
    _assert_one(cfg, "error", "DATASETS.TRAIN", what, "iscrowd")


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


# What other tools export


def _spoil(dataset: Dataset, **fields) -> None:
    for annotation in dataset.content["annotations"]:
        annotation.update(fields)
    dataset.write()


@pytest.mark.parametrize("value", [None, "12", float("nan"), -1, [1]], ids=str)
@pytest.mark.parametrize("field", ["area", "iscrowd"])
@pytest.mark.parametrize("for_training", [True, False])
def test_an_optional_field_of_the_wrong_kind_is_found(cfg, val, field, value, for_training):
    val.content["annotations"][2][field] = value
    val.write()
    _assert_one(cfg, "error", VAL, f"{{{field!r}: ", field, for_training=for_training)


def test_area_and_crowd_flag_may_be_left_out(cfg, train, val):
    for dataset in (train, val):
        for annotation in dataset.content["annotations"]:
            del annotation["area"], annotation["iscrowd"]
        dataset.write()
    assert check_datasets(cfg, for_training=True) == []


def test_ids_from_zero_are_renumbered_and_said_so(cfg, train):
    for annotation in train.content["annotations"]:
        annotation["id"] -= 1
    train.write()
    _assert_one(cfg, "warning", TRAIN, "numbered from 1 in memory", "nothing needs to be done")


@pytest.mark.parametrize("for_training", [True, False])
def test_categories_of_one_name_are_found(cfg, val, for_training):
    val.content["categories"][1]["name"] = "disc"
    val.write()
    if for_training:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (VAL,), ()
    what = "categories 1 and 2 are both named 'disc'"
    _assert_one(cfg, "error", VAL, what, for_training=for_training)


def test_normalised_boxes_are_called_so(cfg, train):
    train.set_boxes(*[[0.1, 0.2, 0.3, 0.4]] * 8)
    _assert_one(cfg, "error", TRAIN, "fractions of the image", "multiply")


def test_boxes_given_as_two_corners_are_called_so(cfg, train):
    train.set_boxes(*[[20, 10, 35, 30]] * 5, *[[1, 1, 12, 9]] * 3)
    _assert_one(cfg, "error", TRAIN, "would fit it as two corners", "x2 - x1")


def test_text_ids_are_shown_with_quotes(cfg, train):
    for annotation in train.content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    train.write()
    _assert_one(cfg, "error", TRAIN, "these ids are text ('1'), those listed are numbers (1)")


@pytest.mark.parametrize("segmentation", [[[1, 2, 3, 4]], [], [1, 2, 3, 4, 5, 6], "x"], ids=str)
def test_segmentation_is_not_judged_without_masks(cfg, train, segmentation):
    _spoil(train, segmentation=segmentation, keypoints="x")
    assert check_datasets(cfg, for_training=True) == []


@pytest.mark.parametrize("for_training", [True, False])
def test_masks_need_a_segmentation_everywhere(cfg, train, val, for_training):
    cfg.MODEL.MASK_ON = True
    for dataset in (train, val):
        _spoil(dataset, segmentation=[[1, 2, 10, 2, 5, 9]])
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
    _spoil(train, segmentation=encoded, iscrowd=iscrowd)
    _spoil(val, segmentation=encoded)  # an evaluation reads both kinds
    if (mask_format, iscrowd) == ("polygon", 0):
        fix = "set INPUT.MASK_FORMAT bitmask"
        _assert_one(cfg, "error", TRAIN, "8 annotations are run-length encoded", fix)
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
    _spoil(val, segmentation=encoding)
    _assert_one(cfg, "error", VAL, f"annotation 1 ({problem})", for_training=False)


def test_polygons_that_detectron2_would_drop_boxes_for_are_found(cfg, train):
    name = "preflight_test_foreign"
    _spoil(train, segmentation=[[1, 2, 3, 4]])
    register_coco_instances(name, {}, str(train.json), str(train.folder))
    cfg.DATASETS.TRAIN = (name,)
    try:
        _assert_one(cfg, "error", name, "leaves out such annotations", "DATASETS.COCO_FORMAT")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_own_files_under_the_name_of_a_built_in_dataset_are_found(cfg, train):
    name = "coco_2017_train"
    metadata = MetadataCatalog.get(name)
    before = metadata.json_file, metadata.image_root
    metadata.__dict__.update(json_file=str(train.json), image_root=str(train.folder))
    cfg.DATASETS.TRAIN = (name,)
    try:
        what = "stands for COCO's images and 80 classes"
        _assert_one(cfg, "error", name, what, "DATASETS.COCO_FORMAT")
    finally:
        metadata.__dict__.update(json_file=before[0], image_root=before[1])


def test_images_of_16_bits_are_found(cfg, val):
    Image.new("I;16", (40, 32)).save(val.folder / "2.png")
    _assert_one(cfg, "error", VAL, "of more than 8 bits per channel: 2.png", "by one scale for all")


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
    assert "4.png (20000x10)" in _only(found).what and "side of 0 pixels" in found[0].what
