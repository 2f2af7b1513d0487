"""The loader of COCO files: what Detectron2's gives, and what only ours reads."""

from __future__ import annotations

import copy
import json
import pytest

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from alrp.data.datasets.coco_loader import CocoFiles, load_coco_format
from alrp.errors import UserError

NAMES = ("loader_test_ours", "loader_test_theirs")
POLYGON = [[1.0, 1.0, 9.0, 1.0, 5.0, 9.0]]


@pytest.fixture(autouse=True)
def _forget_metadata():
    yield
    for name in NAMES:
        MetadataCatalog.pop(name, None)


@pytest.fixture
def content():
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32} for i in (5, 2, 9)
        ],
        "categories": [{"id": 4, "name": "square"}, {"id": 2, "name": "disc"}],
        "annotations": [
            {"id": k, "image_id": (5, 2)[k % 2], "category_id": (4, 2)[k % 3 % 2]}
            | {"bbox": [k, 2, 10, 9], "area": 90, "iscrowd": int(k == 4), "segmentation": POLYGON}
            | {"keypoints": [3, 4, 2]}
            for k in range(1, 6)
        ],
    }


@pytest.fixture
def load(tmp_path):
    def run(content: dict, **read) -> list[dict]:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return load_coco_format(NAMES[0], CocoFiles(str(path), "folder", **read))

    return run


def test_records_are_those_of_detectron2(load, content, tmp_path):
    content["annotations"][0]["segmentation"] = {"size": [32, 40], "counts": [100, 20, 1160]}
    ours = load(content, masks=True, keypoints=True)
    theirs = load_coco_json(str(tmp_path / "annotations.json"), "folder", NAMES[1])
    assert ours == theirs
    for key in ("thing_classes", "thing_dataset_id_to_contiguous_id"):
        assert MetadataCatalog.get(NAMES[0]).get(key) == MetadataCatalog.get(NAMES[1]).get(key)


@pytest.mark.parametrize(
    "broken",
    [[[1, 2, 3, 4]], [], [[]], [1, 2, 3, 4, 5, 6], [[1, 2, 3, 4, 5]], 5, "x", None],
    ids=str,
)
def test_segmentation_is_not_read_without_masks(load, content, broken):
    expected = load(copy.deepcopy(content))
    for annotation in content["annotations"]:
        annotation["segmentation"] = annotation["keypoints"] = broken
    assert load(content) == expected
    assert not any("segmentation" in a for record in expected for a in record["annotations"])


def test_broken_polygons_are_named_with_masks(load, content):
    content["annotations"][2]["segmentation"] = [[1, 2, 3, 4]]
    with pytest.raises(UserError, match="three points or more.*annotation 3: .*1, 2, 3, 4"):
        load(content, masks=True)


def test_a_missing_crowd_flag_means_no_crowd(load, content):
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["area"]
    assert all(a["iscrowd"] == 0 for record in load(content) for a in record["annotations"])
