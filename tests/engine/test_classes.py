"""Training and evaluation on some classes of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from alrp.data.datasets.coco_format import class_names
from alrp.engine import argument_parser, run_command, setup_config
from alrp.errors import UserError
from alrp.evaluation import APEvaluator, LRPEvaluator, with_completed_annotations

# Named in another order than that of their ids.
CLASSES = {"DATASETS.CLASSES": ("triangle", "disc"), "MODEL.RETINANET.NUM_CLASSES": 2}


@pytest.fixture
def setup(command_line):
    def build(**keys):
        return setup_config(argument_parser().parse_args(command_line(**keys)))

    return build


@pytest.fixture
def content(shapes):
    """The annotation file of the test set."""
    return json.loads((shapes / "annotations" / "val.json").read_text())


def kept(content):
    """Boxes XYWH of discs and triangles, by image."""
    ids = {c["id"] for c in content["categories"] if c["name"] in ("disc", "triangle")}
    assert len(content["categories"]) == 3
    kept = [a for a in content["annotations"] if a["category_id"] in ids]
    assert 0 < len(kept) < len(content["annotations"])
    return {
        i["id"]: [a["bbox"] for a in kept if a["image_id"] == i["id"]] for i in content["images"]
    }


def assert_holds_discs_and_triangles(name, content):
    records = DatasetCatalog.get(name)
    assert {r["image_id"]: [a["bbox"] for a in r["annotations"]] for r in records} == kept(content)
    assert {a["category_id"] for r in records for a in r["annotations"]} == {0, 1}
    assert MetadataCatalog.get(name).thing_classes == ["disc", "triangle"]


def test_indices_follow_the_file_and_all_images_stay(setup, content):
    cfg = setup(**CLASSES)
    assert class_names(cfg.DATASETS.TEST) == ["disc", "triangle"]  # before it is loaded
    assert_holds_discs_and_triangles(cfg.DATASETS.TEST[0], content)
    assert class_names(setup().DATASETS.TEST) == ["disc", "rectangle", "triangle"]


def test_a_set_that_another_has_registered_gets_them_too(setup, shapes, content):
    register_coco_instances(
        "others", {"licence": "none"}, str(shapes / "annotations" / "val.json"), str(shapes / "val")
    )
    assert len(DatasetCatalog.get("others")) == len(content["images"])
    setup(**CLASSES, **{"DATASETS.TEST": ("others",)})
    assert_holds_discs_and_triangles("others", content)
    assert MetadataCatalog.get("others").licence == "none"
    setup(**{"DATASETS.TEST": ("others",)})
    assert sum(len(r["annotations"]) for r in DatasetCatalog.get("others")) == len(
        content["annotations"]
    )
    DatasetCatalog.register("function", list)
    with pytest.raises(UserError, match="dataset 'function' is not in COCO's detection format"):
        setup(**CLASSES, **{"DATASETS.TEST": ("function",)})


@pytest.mark.parametrize("evaluator_class", [APEvaluator, LRPEvaluator, COCOEvaluator])
def test_all_evaluators_count_these_classes_only(setup, tmp_path, evaluator_class):
    (name,) = setup(**CLASSES).DATASETS.TEST
    records = DatasetCatalog.get(name)
    evaluator = with_completed_annotations(
        evaluator_class(name, ("bbox",), False, output_dir=str(tmp_path))
    )
    evaluator.reset()
    for record in records:
        found = Instances((record["height"], record["width"]))
        boxes = [a["bbox"] for a in record["annotations"]]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        found.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]]).long()
        found.scores = torch.ones(len(boxes))
        evaluator.process([record], [{"instances": found}])
    results = evaluator.evaluate()
    if evaluator_class is LRPEvaluator:
        perfect = {"oLRP": 0.0, "oLRP-disc": 0.0, "oLRP-triangle": 0.0}
    else:
        perfect = {"AP": 100.0, "AP-disc": 100.0, "AP-triangle": 100.0}
    (values,) = results.values()
    assert {key: values[key] for key in perfect} == pytest.approx(perfect, abs=1e-3)
    assert not any("rectangle" in key for key in values)


def test_a_model_of_some_classes_is_trained_evaluated_and_saved(train_net, command_line, tmp_path):
    keys = {**CLASSES, "SOLVER.MAX_ITER": 1}
    args = argument_parser().parse_args(command_line(**keys))
    assert run_command(train_net.main, args) == 0
    saved = torch.load(tmp_path / "output" / "model_final.pth")
    assert saved["class_names"] == ["disc", "triangle"]
    results = Path(tmp_path / "output" / "inference" / "lrp_results.json").read_text()
    assert list(json.loads(results)["per_class"]) == ["disc", "triangle"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"DATASETS.CLASSES": ("disk",)}, "DATASETS.CLASSES: there is no class 'disk' in dataset"),
        ({"DATASETS.CLASSES": ("disk",)}, "write 'disc'"),
        ({"DATASETS.CLASSES": ("disc", "disc")}, "DATASETS.CLASSES: disc is named twice"),
        ({"DATASETS.CLASSES": ("disc",)}, "set MODEL.RETINANET.NUM_CLASSES 1"),
        ({"DATASETS.CLASSES": (3,)}, "DATASETS.CLASSES: expected a list of words"),
    ],
)
def test_a_mistake_is_one_message(train_net, command_line, capsys, keys, message):
    assert run_command(train_net.main, argument_parser().parse_args(command_line(**keys))) == 1
    assert message in capsys.readouterr().err
