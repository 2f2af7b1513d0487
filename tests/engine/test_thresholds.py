"""LRP-optimal scores from an evaluation to the checkpoint, and to whoever loads it."""

from __future__ import annotations

import json
import math
import pytest
import torch

from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode

from alrp.data.dataset_mapper import build_mapper
from alrp.engine import Trainer, argument_parser, run_command, setup_config
from alrp.engine.thresholds import (
    by_class_index,
    read_calibration,
    read_thresholds,
    thresholds_of_results,
)
from alrp.errors import UserError
from alrp.export import TracedDetector, compare_detections, load_onnx, load_torchscript
from alrp.modeling import DetectionThresholds

KEY = "shown.thresholds"
NAMES = ["disc", "rectangle", "triangle"]


@pytest.fixture
def run(train_net, command_line):
    """Status of train_net.py, evaluated every second iteration; keys as keyword arguments."""

    def command(*options, **overrides):
        keys = {"TEST.EVAL_PERIOD": 2, "SOLVER.CHECKPOINT_PERIOD": 2, **overrides}
        args = argument_parser().parse_args(command_line(*options, **keys))
        return run_command(train_net.main, args)

    return command


def load(path):
    return torch.load(path)["model"]


def lrp_results(folder):
    return json.loads((folder / "inference" / "lrp_results.json").read_text())


def results(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


@pytest.mark.slow
def test_thresholds_travel_from_training_to_predictor_and_export(
    run, command_line, load_script, shapes, tmp_path
):
    output = tmp_path / "output"
    assert run() == 0
    evaluated, found = lrp_results(output), results(output)
    stored = load(output / "model_final.pth")[KEY]
    assert torch.equal(stored, by_class_index(read_thresholds_of(output), NAMES))
    assert (stored < 1).any()
    assert torch.equal(load(output / "model_0000003.pth")[KEY], stored)
    assert KEY in load(output / "model_0000001.pth")

    # An evaluation of the checkpoint with thresholds gives the same numbers and detections.
    again = {"MODEL.WEIGHTS": output / "model_final.pth", "OUTPUT_DIR": tmp_path / "again"}
    assert run("--eval-only", **again) == 0
    assert lrp_results(tmp_path / "again") == evaluated
    assert results(tmp_path / "again") == found

    # A training from it starts without.
    assert (
        run("--resume", **{"SOLVER.MAX_ITER": 5, "TEST.EVAL_PERIOD": 0, "DATASETS.TEST": ()}) == 0
    )
    assert KEY not in load(output / "model_final.pth")

    # The command stores what the training stored.
    tool = load_script("tools/add_thresholds.py")
    plain = tmp_path / "plain.pth"
    content = torch.load(output / "model_0000003.pth")
    del content["model"][KEY]
    torch.save(content, plain)
    arguments = ["--config-file", *command_line(**{"MODEL.WEIGHTS": plain})[1:]]
    arguments.insert(2, "--opts")
    lrp = str(output / "inference" / "lrp_results.json")
    for i, more in enumerate(([], ["--results", lrp])):
        copy = tmp_path / f"copy{i}.pth"
        assert tool.main(["--output", str(copy), *more, *arguments]) == 0
        assert torch.equal(load(copy)[KEY], stored)
        assert torch.equal(load(copy)["shown.calibration"], read_calibration(lrp, NAMES))
        assert set(torch.load(copy)) == set(content)
        assert load(copy)["shown.calibration"].isfinite().all()  # or nothing would load it

    # Detectron2's predictor, and the exported files, show what the evaluation found from there on.
    args = argument_parser().parse_args(command_line(**{"MODEL.WEIGHTS": copy}))
    predictor = DefaultPredictor(setup_config(args))
    file = str(shapes / "val" / "000001.png")
    of_image = [r for r in found if r["image_id"] == 1]
    shown = [r for r in of_image if r["score"] >= stored[r["category_id"] - 1]]
    assert 0 < len(shown) < len(of_image)
    instances = predictor(read_image(file, "BGR"))["instances"]
    assert_shown(instances.pred_boxes.tensor, instances.scores, instances.pred_classes, shown)
    predictor.model.shown.calibrated = True
    shares = predictor(read_image(file, "BGR"))["instances"].scores
    assert set(shares.tolist()) <= set(load(copy)["shown.calibration"][1].flatten().tolist())
    predictor.model.shown.calibrated = False
    pixels = build_mapper(predictor.cfg, is_train=False)({"file_name": file})["image"]
    traced = TracedDetector(predictor.model, pixels)
    traced.write_torchscript(tmp_path / "model.pt")
    traced.write_onnx(tmp_path / "model.onnx")
    for detect in load_torchscript(tmp_path / "model.pt"), load_onnx(tmp_path / "model.onnx"):
        assert_shown(*detect(pixels), shown)

    # AP and oLRP are the same to the last digit without the thresholds.
    with_thresholds = Trainer.test(predictor.cfg, predictor.model)
    predictor.model.shown.thresholds = None
    without = Trainer.test(predictor.cfg, predictor.model)
    assert with_thresholds["bbox"]["AP"] == without["bbox"]["AP"] >= 0
    assert str(with_thresholds) == str(without)  # an undefined figure, NaN, equals itself as text


def assert_shown(boxes, scores, classes, expected):
    """Detections, in XYXY and in any order, are those of COCO results, in XYWH."""
    agreement = compare_detections(
        (
            BoxMode.convert(
                torch.tensor([r["bbox"] for r in expected]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
            ),
            torch.tensor([r["score"] for r in expected]),
            torch.tensor([r["category_id"] - 1 for r in expected]),
        ),
        (boxes, scores, classes),
    )
    assert agreement.num_expected == len(boxes) and agreement.num_unmatched == 0, agreement


def read_thresholds_of(output):
    return read_thresholds(str(output / "inference" / "lrp_results.json"))


def test_thresholds_follow_the_class_names_and_may_be_missing():
    thresholds = {"b": 0.25, "c": math.nan, "a": 0.5}
    values = by_class_index(thresholds, ["a", "b", "c"])
    assert values.tolist() == pytest.approx([0.5, 0.25, DetectionThresholds.NEVER], rel=2e-4)
    assert values[0] < 0.5 and values[1] < 0.25
    with pytest.raises(UserError, match="evaluate the model on a dataset with its classes"):
        by_class_index(thresholds, ["a", "b"])


@pytest.mark.parametrize("several", [False, True])
def test_of_several_test_sets_the_first_counts(several):
    results = {"bbox": {"AP": 1.0}, "lrp": {"oLRP": 2.0, "threshold-a": 0.5}}
    if several:
        results = {"one": results, "two": {"lrp": {"threshold-a": 0.75}}}
    assert thresholds_of_results(results) == {"a": 0.5}
    assert thresholds_of_results({"bbox": {"AP": 1.0}}) == {}


def test_a_calibration_follows_the_class_names_and_may_be_missing(tmp_path):
    path = tmp_path / "lrp_results.json"
    path.write_text('{"per_class": {}}')
    assert read_calibration(str(path), ["a"]) is None
    fit = {
        "b": {"scores": [0.5, 1.0], "shares": [0.25, 0.75]},
        "c": {"scores": [0.1], "shares": [1]},
    }
    path.write_text(json.dumps({"calibration": {"per_class": fit}}))
    scores, shares = read_calibration(str(path), ["c", "a", "b"])
    never = DetectionThresholds.NEVER
    assert scores[0].tolist() == pytest.approx([0.1, never], rel=2e-4)
    assert scores[2].tolist() == pytest.approx([0.5, 1.0], rel=2e-4) and scores[2, 0] < 0.5
    assert shares.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.25, 0.75]]
    path.write_text('{"calibration": {"per_class": {"a": 3}}}')
    with pytest.raises(UserError, match="give the lrp_results.json"):
        read_calibration(str(path), ["a"])


def test_a_missing_file_of_thresholds_is_called_missing(tmp_path):
    with pytest.raises(UserError, match=r"^\S+none.json cannot be read: No such file"):
        read_thresholds(str(tmp_path / "none.json"))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"per_class": {"a": 1}}'])
def test_a_file_without_thresholds_is_refused(tmp_path, content):
    path = tmp_path / "lrp_results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="give the lrp_results.json"):
        read_thresholds(str(path))
