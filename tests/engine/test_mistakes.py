"""Mistakes of the user end a command with one message, a non-zero status, and nothing half-done.

Each case runs the command itself in this process; the last one in a shell, for its exit status.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from alrp.engine import run_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _forget_registered_names():
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def fail(command_line, train_net, capsys):
    """Run a command that must fail; return its message."""

    def run(*options, **overrides):
        args = default_argument_parser().parse_args(command_line(*options, **overrides))
        assert run_command(train_net.main, args) == 1
        error = capsys.readouterr().err
        assert error.count("error: ") == 1 and "Traceback" not in error
        return error.split("error: ")[1]

    return run


@pytest.fixture
def spoiled(shapes, tmp_path):
    """``spoiled(change)``: the training set after ``change(folder, annotations)``, as an entry."""

    def build(change):
        folder = tmp_path / "spoiled"
        shutil.copytree(shapes, folder)
        path = folder / "annotations" / "train.json"
        annotations = json.loads(path.read_text())
        change(folder, annotations)
        path.write_text(json.dumps(annotations))
        return {
            "DATASETS__COCO_FORMAT": [["spoiled", str(path), str(folder / "train")]],
            "DATASETS__TRAIN": ("spoiled",),
            "DATASETS__TEST": ("spoiled",),
        }

    return build


def test_an_unknown_dataset_name(fail, tmp_path):
    message = fail(DATASETS__TRAIN=("my_train",))
    assert "'my_train'" in message and "DATASETS.COCO_FORMAT" in message
    assert not (tmp_path / "output").exists()


def test_a_wrong_number_of_classes(fail, tmp_path):
    message = fail(MODEL__RETINANET__NUM_CLASSES=80)
    assert "set MODEL.RETINANET.NUM_CLASSES 3" in message
    assert not (tmp_path / "output").exists()


def test_a_missing_image_folder(fail, spoiled, tmp_path):
    message = fail(**spoiled(lambda folder, _: shutil.rmtree(folder / "train")))
    assert str(tmp_path / "spoiled" / "train") in message
    assert not (tmp_path / "output").exists()


def test_an_annotation_file_that_is_not_json(fail, shapes, tmp_path):
    path = tmp_path / "train.json"
    path.write_text('{"images": [')
    entries = [["broken", str(path), str(shapes / "train")]]
    message = fail(
        DATASETS__COCO_FORMAT=entries, DATASETS__TRAIN=("broken",), DATASETS__TEST=("broken",)
    )
    assert str(path) in message and "JSON" in message
    assert not (tmp_path / "output").exists()


def test_a_box_of_zero_width(fail, spoiled, tmp_path):
    def flatten(_, annotations):
        annotations["annotations"][0]["bbox"][2] = 0

    assert "width" in fail(**spoiled(flatten))
    assert not (tmp_path / "output").exists()


def test_a_dataset_without_boxes(fail, spoiled, tmp_path):
    message = fail(**spoiled(lambda _, annotations: annotations["annotations"].clear()))
    assert "annotation" in message
    assert not (tmp_path / "output").exists()


def test_a_missing_checkpoint(fail, tmp_path):
    assert "does not exist" in fail(MODEL__WEIGHTS=tmp_path / "none.pth")
    assert not (tmp_path / "output").exists()


def test_evaluation_without_a_checkpoint(fail):
    assert "MODEL.WEIGHTS is empty" in fail("--eval-only")


def test_an_unknown_config_key(fail):
    assert "MODEL.NO_SUCH_KEY" in fail(MODEL__NO_SUCH_KEY=1)


@pytest.mark.parametrize(
    "key, wrong, listed",
    [
        ("MODEL__META_ARCHITECTURE", "ALRPRetinanet", "ALRPRetinaNet"),
        ("MODEL__BACKBONE__NAME", "build_resnet", "build_alrp_resnet_fpn_backbone"),
        ("MODEL__ALRP__MATCHER", "atss", '"ATSS" or "max_iou"'),
        ("MODEL__ALRP__LOSS_TYPE", "focal", '"alrp" or "ap"'),
        ("SOLVER__OPTIMIZER", "Adam", '"SGD" or "AdamW"'),
    ],
)
def test_an_unknown_component_lists_the_choices(fail, key, wrong, listed):
    message = fail(**{key: wrong})
    assert key.replace("__", ".") in message and wrong in message and listed in message


def checkpoint(path, change):
    """A checkpoint of the tiny model after ``change(state_dict)``."""
    from detectron2.modeling import build_model

    from alrp.engine import setup_config

    def build(command):
        args = default_argument_parser().parse_args(command)
        state = build_model(setup_config(args)).state_dict()
        change(state)
        torch.save({"model": state}, path)
        return path

    return build


@pytest.mark.parametrize("options", [(), ("--eval-only",)], ids=["train", "evaluate"])
def test_a_checkpoint_of_another_architecture(fail, tmp_path, options):
    path = tmp_path / "other.pth"
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, path)
    message = fail(*options, MODEL__WEIGHTS=path)
    assert "does not fit the model: 0 of its " in message and "encoder.weight" in message
    assert not list((tmp_path / "output").glob("*.pth"))


def test_a_checkpoint_with_another_number_of_classes_is_not_evaluated(fail, command_line, tmp_path):
    def shrink(state):
        state["head.cls_score.bias"] = state["head.cls_score.bias"][:-1]

    path = checkpoint(tmp_path / "other.pth", shrink)(command_line())
    message = fail("--eval-only", MODEL__WEIGHTS=path)
    assert "head.cls_score.bias (5,) instead of (6,)" in message
    assert not (tmp_path / "output" / "inference").exists()


@pytest.mark.parametrize("options", [(), ("--eval-only",)], ids=["train", "evaluate"])
def test_nan_weights(fail, command_line, tmp_path, options):
    def spoil(state):
        state["head.cls_score.bias"][0] = float("nan")

    path = checkpoint(tmp_path / "nan.pth", spoil)(command_line())
    message = fail(*options, MODEL__WEIGHTS=path)
    assert "head.cls_score.bias holds NaN or Inf" in message
    assert not (tmp_path / "output" / "inference").exists()


def test_a_truncated_checkpoint(fail, command_line, tmp_path):
    path = checkpoint(tmp_path / "cut.pth", lambda state: None)(command_line())
    path.write_bytes(path.read_bytes()[:1000])
    assert "cannot be read" in fail("--eval-only", MODEL__WEIGHTS=path)


def test_a_batch_without_positives_is_trained_through(command_line, train_net, spoiled, tmp_path):
    def keep_one(_, annotations):
        annotations["annotations"] = annotations["annotations"][:1]

    overrides = spoiled(keep_one)
    command = command_line(
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=False, SOLVER__MAX_ITER=6, **overrides
    )
    assert run_command(train_net.main, default_argument_parser().parse_args(command)) == 0
    checkpoint = torch.load(tmp_path / "output" / "model_final.pth")
    assert checkpoint["iteration"] == 5
    saved = checkpoint["model"]
    # 6 batches of 4 see each of the 12 images twice: 2 batches had a positive.
    assert saved["ranking_losses.self_balance.count"] == 2


@pytest.mark.slow
def test_the_exit_status_under_two_processes(command_line, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, path)
    command = command_line(
        *("--num-gpus", "2", "--dist-url", "auto", "--eval-only"), MODEL__WEIGHTS=path
    )
    done = subprocess.run(
        [sys.executable, "train_net.py", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: checkpoint does not fit the model") == 1
    assert "Traceback" not in done.stderr
