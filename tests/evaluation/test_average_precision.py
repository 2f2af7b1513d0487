"""COCO's AP of files that leave out fields, and of more than 100 detections per image."""

from __future__ import annotations

import json
import uuid
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.structures import Boxes, Instances

from alrp.errors import UserError
from alrp.evaluation import APEvaluator, LRPEvaluator, with_completed_annotations


@pytest.fixture
def register(tmp_path):
    """``register(dataset)``: name of a dataset with this annotation file."""
    names = []

    def add(dataset: dict) -> str:
        names.append(f"ap_test_{uuid.uuid4().hex}")
        path = tmp_path / f"{names[-1]}.json"
        path.write_text(json.dumps(dataset))
        MetadataCatalog.get(names[-1]).set(
            json_file=str(path),
            thing_classes=["thing"],
            thing_dataset_id_to_contiguous_id={1: 0},
        )
        return names[-1]

    yield add
    for name in names:
        MetadataCatalog.pop(name)


def dataset(num_boxes: int = 3) -> dict:
    """One image with boxes of 20 x 10 pixels in a row, of which the last is a crowd."""
    return {
        "images": [{"id": 7, "file_name": "7.png", "width": 5000, "height": 100}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "category_id": 1, "bbox": [30 * i, 5, 20, 10]}
            | {"area": 200, "iscrowd": 0}
            for i in range(num_boxes)
        ],
    }


def evaluate(evaluator, boxes: list, scores: list) -> dict:
    evaluator.reset()
    xywh = torch.tensor(boxes, dtype=torch.float32)
    instances = Instances(
        (100, 5000),
        pred_boxes=Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
    )
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    return evaluator.evaluate()


def without(content: dict, *fields: str) -> dict:
    for annotation in content["annotations"]:
        for field in fields:
            del annotation[field]
    return content


def from_zero(content: dict) -> dict:
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    return content


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: without(content, "area"),
        lambda content: without(content, "iscrowd"),
        lambda content: without(content, "area", "iscrowd"),
        from_zero,
    ],
    ids=["no area", "no iscrowd", "neither", "ids from 0"],
)
def test_what_a_file_may_leave_out_does_not_change_ap(register, spoil):
    boxes, scores = [[0, 5, 20, 10], [32, 5, 20, 10], [300, 5, 20, 10]], [0.9, 0.8, 0.7]
    expected = evaluate(COCOEvaluator(register(dataset()), distributed=False), boxes, scores)
    assert 0 < expected["bbox"]["AP"] < 100
    evaluator = APEvaluator(register(spoil(dataset())), distributed=False)
    assert str(evaluate(evaluator, boxes, scores)) == str(expected)  # text, as NaN is not NaN


def test_a_broken_file_is_named_when_the_evaluator_is_made(register):
    content = dataset()
    content["annotations"][1]["area"] = None
    name = register(content)
    for evaluator in (APEvaluator, LRPEvaluator):
        with pytest.raises(UserError, match=f"{name}.json: expected an area .*'area': None"):
            evaluator(name, distributed=False)


def test_masks_need_polygons(register):
    with pytest.raises(UserError, match="needs segmentation, but 3 annotations have none"):
        APEvaluator(register(dataset()), ("bbox", "segm"), distributed=False)


def test_more_than_100_detections_count_if_asked_for_and_are_else_warned_about(register, caplog):
    content = dataset(150)
    boxes = [annotation["bbox"] for annotation in content["annotations"]]
    scores = torch.linspace(0.9, 0.1, 150).tolist()
    name = register(content)
    for kind, key, value, best in (
        (APEvaluator, "bbox", "AP", 100.0),
        (LRPEvaluator, "lrp", "oLRP", 0.0),
    ):
        caplog.clear()
        all_of_them = kind(name, distributed=False, max_dets_per_image=150)
        assert evaluate(all_of_them, boxes, scores)[key][value] == pytest.approx(best, abs=1e-3)
        assert "left out" not in caplog.text
        cut = evaluate(kind(name, distributed=False), boxes, scores)[key][value]
        assert abs(cut - best) > 20
        assert "50" in caplog.text and "the 100 best" in caplog.text


def test_a_config_as_second_argument_is_accepted_with_a_warning(register, caplog):
    evaluator = LRPEvaluator(register(dataset()), get_cfg(), False)
    assert "second argument is deprecated" in caplog.text
    boxes = [annotation["bbox"] for annotation in dataset()["annotations"]]
    assert evaluate(evaluator, boxes, [0.9, 0.8, 0.7])["lrp"]["oLRP"] == pytest.approx(0, abs=1e-3)


def test_evaluators_and_later_evaluations_share_the_checked_file(register):
    name = register(dataset())
    first = APEvaluator(name, distributed=False)
    for other in (LRPEvaluator(name, distributed=False), APEvaluator(name, distributed=False)):
        assert other._coco_api is first._coco_api
    boxes, scores = [[0, 5, 20, 10], [32, 5, 20, 10]], [0.9, 0.8]
    again = evaluate(APEvaluator(name, distributed=False), boxes, scores)
    assert str(evaluate(first, boxes, scores)) == str(again)


def test_an_annotation_file_that_has_changed_is_read_and_checked_anew(register, tmp_path):
    name = register(dataset())
    assert len(APEvaluator(name, distributed=False)._coco_api.anns) == 3
    (tmp_path / f"{name}.json").write_text(json.dumps(dataset(5)))
    assert len(APEvaluator(name, distributed=False)._coco_api.anns) == 5
    (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        APEvaluator(name, distributed=False)


def test_the_evaluators_of_detectron2_may_be_completed_too(register):
    boxes, scores = [[0, 5, 20, 10], [30, 5, 20, 9]], [0.9, 0.8]
    name = register(without(dataset(), "area", "iscrowd"))
    ap, other = COCOEvaluator(name), LRPEvaluator(name)
    evaluators = DatasetEvaluators([ap, other])
    assert with_completed_annotations(evaluators) is evaluators
    complete = evaluate(COCOEvaluator(register(dataset())), boxes, scores)
    assert evaluate(evaluators, boxes, scores)["bbox"]["AP"] == complete["bbox"]["AP"]


def test_masks_that_the_model_does_not_predict_are_named(register):
    content = dataset()
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[0, 5, 20, 5, 20, 15]]
    with pytest.raises(UserError, match="the model predicts none; take 'segm' out"):
        evaluate(APEvaluator(register(content), ("bbox", "segm")), [[0, 5, 20, 10]], [0.9])
