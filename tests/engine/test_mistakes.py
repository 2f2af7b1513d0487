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

from detectron2.engine import default_argument_parser

from alrp.engine import run_command

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("options", [(), ("--resume",)], ids=["anew", "resumed"])
def test_a_new_training_in_the_folder_of_another_is_warned_of(
    command_line, train_net, capsys, tmp_path, options
):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model_0000001.pth").touch()
    command = command_line(*options, MODEL__RETINANET__NUM_CLASSES=80)
    assert run_command(train_net.main, default_argument_parser().parse_args(command)) == 1
    said = f"an earlier training left {tmp_path / 'output' / 'model_0000001.pth'}"
    assert (said in capsys.readouterr().err) == (not options)


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
        ("INPUT__AUGMENTATION", "ssd", "['detectron2', 'published']"),
    ],
)
def test_an_unknown_component_lists_the_choices(fail, key, wrong, listed):
    message = fail(**{key: wrong})
    assert key.replace("__", ".") in message and wrong in message and listed in message


def test_micro_batches_with_batch_norm_that_trains(fail, tmp_path):
    message = fail(SOLVER__MICRO_BATCH_SIZE=2)
    assert "SOLVER.MICRO_BATCH_SIZE: 2 was asked for, but backbone.bottom_up.stem" in message
    assert "batch norm in training mode" in message and "NORM_EVAL to True" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "key, wrong, expected",
    [
        ("SOLVER__MICRO_BATCH_SIZE", -1, "a number in [0, 100000]"),
        ("MODEL__ALRP__DELTA", -1.0, "a number in [0, 1e+30]"),
        ("MODEL__ALRP__TAU", 1.0, "a number in [0, 1)"),
        ("MODEL__ATSS__TOPK", 0, "a number in [1, 1000000]"),
        ("MODEL__RETINANET__SCORE_THRESH_TEST", 2.0, "a number in [0, 1)"),
        ("MODEL__ALRP__SELF_BALANCE__PERIOD", -1, "a number >= 0"),
        ("MODEL__ALRP__SELF_BALANCE__INIT_WEIGHT", 0.0, "a number in (0, 1000000]"),
        ("SOLVER__STEPS", ("late",), "a list of numbers"),
        ("MODEL__DEVICE", "gpu", "cpu, cuda or cuda:N"),
        ("SOLVER__MAX_ITER", 0, "a number >= 1"),
    ],
)
def test_a_number_out_of_range(fail, tmp_path, key, wrong, expected):
    message = fail(**{key: wrong})
    assert f"{key.replace('__', '.')}: expected {expected}" in message
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "text, said",
    [("MODEL: [", ""), ("SOLVER: {BASE_LR: {X: 1}}", "")]
    + [(text, "or a _BASE_ of it, is empty or") for text in ("", "- a", "word", "MODEL: 5")],
)
def test_a_config_file_that_is_not_one(train_net, capsys, tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    args = default_argument_parser().parse_args(["--config-file", str(path)])
    assert run_command(train_net.main, args) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: config: ") and str(path) in error and said in error


def test_a_lazy_config_is_sent_to_its_own_command(train_net, capsys):
    args = default_argument_parser().parse_args(["--config-file", "config.py"])
    assert run_command(train_net.main, args) == 1
    assert "lazyconfig_train_net.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--num-gpus", "-1"), ("--num-machines", "0"), ("--machine-rank", "1")]
)
def test_an_impossible_number_of_processes(fail, options):
    assert "--num-gpus >= 0" in fail(*options)


def test_several_machines_that_would_train_alone(fail):
    assert "--num-machines is 2, but --num-gpus is 0" in fail(
        "--num-gpus", "0", "--num-machines", "2"
    )


def test_a_message_of_detectron2_that_ends_with_a_full_stop_gets_no_other(fail):
    message = fail(MODEL__FPN__NO_SUCH_KEY=1)
    assert "NO_SUCH_KEY" in message and ". Check --config-file" in message and ".." not in message


def test_an_output_folder_that_is_a_file(fail, tmp_path):
    (tmp_path / "output").write_text("mine")
    assert "cannot be written" in fail()
    assert (tmp_path / "output").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "log.txt", "metrics.json", "model_final.pth"])
def test_a_folder_in_place_of_a_file_of_the_run(fail, tmp_path, name):
    (tmp_path / "output" / name).mkdir(parents=True)
    assert f"output/{name} to be a file that you may write to" in fail()


def test_a_file_in_place_of_the_folder_of_results(fail, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "inference").touch()
    assert "output/inference to be a folder that you may write to" in fail()


def test_weights_at_an_address_that_holds_none(fail, tmp_path):
    assert "checkpoint catalog://none: model not present" in fail(MODEL__WEIGHTS="catalog://none")
    assert not (tmp_path / "output").exists()


def test_a_folder_in_place_of_weights(fail, tmp_path):
    assert "or is no file" in fail(MODEL__WEIGHTS=tmp_path)


def test_an_expected_result_that_no_evaluation_gives(fail):
    message = fail(TEST__EXPECTED_RESULTS=[["bbox", "AP99", 40.0, 0.5]], SOLVER__MAX_ITER=1)
    assert "there is no result 'AP99' of 'bbox'; the evaluation gives {'bbox': ['AP'" in message


def test_no_config_at_all(train_net, capsys):
    assert run_command(train_net.main, default_argument_parser().parse_args([])) == 1
    assert "--config-file is missing" in capsys.readouterr().err


def test_resuming_an_evaluation_without_a_checkpoint(fail, tmp_path):
    assert "holds none to --resume" in fail("--eval-only", "--resume")
    assert not (tmp_path / "output").exists()


def test_a_broken_image_outside_the_sample_is_named_by_a_loader_process(fail, spoiled):
    def break_after_the_check(folder, annotations):
        # The check reads the header and the pixels of a sample; this file passes it by its size.
        first = annotations["images"][0]
        annotations["images"] += [
            {**first, "id": 1000 + i, "file_name": first["file_name"]} for i in range(400)
        ]
        annotations["images"].append({**first, "id": 5000, "file_name": "broken.png"})
        box = annotations["annotations"][0]
        annotations["annotations"] = [{**box, "id": 5000 + i, "image_id": 5000} for i in range(1)]
        (folder / "train" / "broken.png").write_bytes(b"no picture")

    entry = spoiled(break_after_the_check)
    message = fail(
        DATALOADER__NUM_WORKERS=1, **{**entry, "DATASETS__TEST": entry["DATASETS__TRAIN"]}
    )
    assert "broken.png" in message


def test_divergence_is_named_and_leaves_no_final_model(command_line, train_net, capsys, tmp_path):
    command = command_line(SOLVER__BASE_LR=1e30, SOLVER__WARMUP_ITERS=0, SOLVER__MAX_ITER=20)
    assert run_command(train_net.main, default_argument_parser().parse_args(command)) == 1
    assert "NaN or Inf" in capsys.readouterr().err.rpartition("error: ")[2]
    assert not (tmp_path / "output" / "model_final.pth").exists()


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
    assert "head.cls_score.bias (8,) instead of (9,)" in message
    assert not (tmp_path / "output" / "inference").exists()


@pytest.mark.parametrize("options", [(), ("--eval-only",)], ids=["train", "evaluate"])
def test_nan_weights(fail, command_line, tmp_path, options):
    def spoil(state):
        state["head.cls_score.bias"][0] = float("nan")

    path = checkpoint(tmp_path / "nan.pth", spoil)(command_line())
    message = fail(*options, MODEL__WEIGHTS=path)
    assert "head.cls_score.bias holds NaN or Inf" in message
    assert not (tmp_path / "output" / "inference").exists()


@pytest.mark.parametrize("options", [(), ("--eval-only",)], ids=["train", "evaluate"])
def test_a_negative_self_balance_weight(fail, command_line, tmp_path, options):
    def spoil(state):
        state["ranking_losses.self_balance.weight"].fill_(-5)

    path = checkpoint(tmp_path / "negative.pth", spoil)(command_line())
    message = fail(*options, MODEL__WEIGHTS=path)
    assert "checkpoint: head_losses.self_balance.weight is -5.0" in message


@pytest.mark.parametrize(
    "content, said",
    [
        (
            {"state_dict": {"backbone.conv1.weight": torch.zeros(1)}},
            "the names of MMDetection; convert it first",
        ),
        ([torch.zeros(1)], "expected a dictionary, but the file holds a list"),
        ({"model": [1, 2]}, "expected weights"),
    ],
)
def test_a_checkpoint_of_another_layout(fail, tmp_path, content, said):
    torch.save(content, tmp_path / "other.pth")
    assert said in fail("--eval-only", MODEL__WEIGHTS=tmp_path / "other.pth")


def test_fine_tuning_starts_a_self_balance_period_afresh(command_line, train_net, tmp_path):
    def leave_unfinished(state):
        state["ranking_losses.self_balance.weight"].fill_(3.0)
        state["ranking_losses.self_balance.count"].fill_(3000)
        state["ranking_losses.self_balance.sum_cls"].fill_(2000.0)

    path = checkpoint(tmp_path / "other.pth", leave_unfinished)(command_line())
    command = command_line(MODEL__WEIGHTS=path, SOLVER__MAX_ITER=2)
    assert run_command(train_net.main, default_argument_parser().parse_args(command)) == 0
    saved = torch.load(tmp_path / "output" / "model_final.pth")["model"]
    assert saved["ranking_losses.self_balance.weight"] == 3.0
    assert saved["ranking_losses.self_balance.count"] == 2


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
        timeout=580,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: checkpoint does not fit the model") == 1
    assert "Traceback" not in done.stderr
