"""Datasets named in the config."""

from __future__ import annotations

import json
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog

from alrp.config import load_config
from alrp.data.datasets.coco_format import class_names, coco_format_names, register_coco_format
from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.errors import UserError

NAMES = ("coco_format_test_a", "coco_format_test_b")


@pytest.fixture(autouse=True)
def _forget_registered_names():
    yield
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _cfg(*entries):
    cfg = load_config("")
    cfg.DATASETS.COCO_FORMAT = list(entries)
    return cfg


def _paths(name: str) -> tuple[str, str]:
    metadata = MetadataCatalog.get(name)
    return metadata.json_file, metadata.image_root


def test_a_registered_dataset_loads(tmp_path):
    annotations, images = make_shapes_dataset(tmp_path, 2, 1, image_size=32)["train"]
    register_coco_format(_cfg([NAMES[0], str(annotations), str(images)]))
    records = DatasetCatalog.get(NAMES[0])
    assert [record["file_name"] for record in records] == [
        str(images / "000001.png"),
        str(images / "000002.png"),
    ]
    assert MetadataCatalog.get(NAMES[0]).thing_classes == ["disc", "rectangle", "triangle"]
    assert MetadataCatalog.get(NAMES[0]).evaluator_type == "coco"


def test_every_entry_is_registered_in_order():
    cfg = _cfg([NAMES[0], "/a.json", "/a"], [NAMES[1], "/b.json", "/b"])
    register_coco_format(cfg)
    assert coco_format_names(cfg) == list(NAMES)
    assert _paths(NAMES[1]) == ("/b.json", "/b")


@pytest.mark.parametrize("written", ["$COCO_FORMAT_TEST/a.json", "${COCO_FORMAT_TEST}/a.json"])
def test_environment_variables_are_replaced(monkeypatch, written):
    monkeypatch.setenv("COCO_FORMAT_TEST", "/somewhere")
    register_coco_format(_cfg([NAMES[0], written, "$COCO_FORMAT_TEST"]))
    assert _paths(NAMES[0]) == ("/somewhere/a.json", "/somewhere")


def test_a_tilde_means_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    register_coco_format(_cfg([NAMES[0], "~/a.json", "~/images"]))
    assert _paths(NAMES[0]) == ("/home/someone/a.json", "/home/someone/images")


def test_relative_paths_start_at_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_coco_format(_cfg([NAMES[0], "a.json", "../images"]))
    assert _paths(NAMES[0]) == (str(tmp_path / "a.json"), str(tmp_path.parent / "images"))


def test_registering_the_same_entry_again_does_nothing():
    cfg = _cfg([NAMES[0], "/a.json", "/a"])
    register_coco_format(cfg)
    loader = DatasetCatalog[NAMES[0]]
    register_coco_format(cfg)
    assert DatasetCatalog[NAMES[0]] is loader


@pytest.mark.parametrize("paths", [("/other.json", "/a"), ("/a.json", "/other")])
def test_the_same_name_with_other_paths_is_refused(paths):
    register_coco_format(_cfg([NAMES[0], "/a.json", "/a"]))
    with pytest.raises(UserError, match="entry 1: the name .* already belongs to another dataset"):
        register_coco_format(_cfg([NAMES[0], *paths]))


@pytest.mark.parametrize("name", ["coco_2017_val", "voc_2007_train"])
def test_the_name_of_a_built_in_dataset_is_refused(name):
    with pytest.raises(UserError, match="choose a name of its own"):
        register_coco_format(_cfg([name, "/a.json", "/a"]))


@pytest.mark.parametrize(
    "entry",
    [
        "name",
        [],
        ["name", "/a.json"],
        ["name", "/a.json", "/a", "/b"],
        ["", "/a", "/b"],
        ["n", 1, ""],
    ],
    ids=str,
)
def test_a_malformed_entry_is_named_by_its_position(entry):
    with pytest.raises(UserError, match="entry 2: expected three non-empty strings"):
        register_coco_format(_cfg([NAMES[0], "/a.json", "/a"], entry))


def test_an_unset_environment_variable_is_named(monkeypatch):
    monkeypatch.delenv("COCO_FORMAT_TEST", raising=False)
    with pytest.raises(
        UserError, match="entry 1: .*COCO_FORMAT_TEST, which is not set; run `export"
    ):
        register_coco_format(_cfg([NAMES[0], "${COCO_FORMAT_TEST}/a.json", "/a"]))


def test_class_names_come_from_the_annotation_file_by_id(tmp_path):
    path = tmp_path / "gt.json"
    categories = [{"id": 9, "name": "last"}, {"id": 2, "name": "first"}]
    path.write_text(json.dumps({"categories": categories}))
    name = f"named_{tmp_path.name}"
    MetadataCatalog.get(name).set(json_file=str(path), image_root=str(tmp_path))
    assert class_names([f"{name}_unknown", name]) == ["first", "last"]
    assert class_names([f"{name}_unknown"]) is None


@pytest.mark.parametrize(
    "content", [[], {}, {"categories": 5}, {"categories": [{"id": 1}]}, {"categories": [5]}]
)
def test_faulty_categories_are_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    register_coco_format(_cfg([NAMES[0], str(path), "/a"]))
    with pytest.raises(UserError, match=f"dataset '{NAMES[0]}', {path}: expected"):
        class_names(NAMES[:1])
