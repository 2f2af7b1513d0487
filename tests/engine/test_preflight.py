"""Checks before the first iteration: config, batch, rates, device, and how they are reported."""

from __future__ import annotations

import numpy as np
import random
from pathlib import Path
import pytest
import torch

from alrp.coco import Finding
from alrp.config import load_config
from alrp.data.datasets.coco_format import register_coco_format
from alrp.engine.checks import check_config
from alrp.engine.preflight import check, report, write_log
from alrp.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Bases have no architecture of their own.
COMPLETE = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base"))


def load(name, *overrides):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *overrides])


@pytest.fixture
def cfg(shapes):
    """A config on a dataset of three classes, in which there is nothing to find."""
    cfg = load("Shapes/alrp_retinanet_R_18_FPN_ATSS_demo")
    cfg.DATASETS.COCO_FORMAT = [
        [f"{shapes.name}_{split}", f"{shapes}/annotations/{split}.json", f"{shapes}/{split}"]
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((entry[0],) for entry in cfg.DATASETS.COCO_FORMAT)
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR_SCHEDULER_NAME = "SGD", "WarmupMultiStepLR"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 4, 0.001
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 100, (75, 95), 75
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 0
    register_coco_format(cfg)
    return cfg


def _assert_one(cfg, severity: str, where: str, what: str, fix: str = "", **options) -> None:
    """Exactly one finding, whose fields hold these texts; training unless said otherwise."""
    findings = check(cfg, **{"for_training": True} | options)
    assert len(findings) == 1, findings
    assert findings[0].severity == severity
    assert where in findings[0].where
    assert what in findings[0].what
    assert fix in findings[0].fix


@pytest.mark.parametrize("for_training", [True, False])
def test_a_right_config_gives_no_finding(cfg, for_training):
    assert check(cfg, for_training=for_training) == []


def test_a_warm_up_beyond_the_end_is_warned_of(cfg):
    cfg.SOLVER.WARMUP_ITERS = 101
    _assert_one(cfg, "warning", "SOLVER.WARMUP_ITERS", "longer than the training, which ends at")
    cfg.SOLVER.WARMUP_ITERS = 80
    what = "80 iterations goes on beyond the first step of the learning rate, at iteration 75"
    _assert_one(cfg, "warning", "SOLVER.WARMUP_ITERS", what)


def test_keypoints_without_names_are_an_error(cfg):
    cfg.MODEL.KEYPOINT_ON = True
    _assert_one(cfg, "error", "MODEL.KEYPOINT_ON", "holds no keypoint_names")


def test_a_message_does_not_name_its_key_twice(cfg):
    cfg.MODEL.ALRP.BOX_LOSS = "ciou"
    _assert_one(cfg, "error", "MODEL.ALRP.BOX_LOSS", "must be one of")
    assert check(cfg, for_training=True)[0].what.startswith("must be one of")


def test_an_expected_task_that_is_not_evaluated_is_warned_of(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["segm", "AP", 40.0, 0.5]]
    _assert_one(cfg, "warning", "TEST.EXPECTED_RESULTS", "['bbox', 'lrp'], but ['segm']")
    cfg.TEST.EXPECTED_RESULTS = [["bbox_TTA", "AP", 40.0, 0.5]]
    _assert_one(cfg, "warning", "TEST.EXPECTED_RESULTS", "['bbox', 'lrp'], but ['bbox_TTA']")
    cfg.TEST.AUG.ENABLED = True
    assert check(cfg, for_training=False) == []


def test_nothing_is_made_and_no_random_number_is_drawn(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.OUTPUT_DIR = "output"
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    check(cfg, for_training=True)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


@pytest.mark.parametrize("path", COMPLETE, ids=[str(p.relative_to(CONFIGS)) for p in COMPLETE])
def test_no_shipped_config_holds_a_mistake_or_a_key_without_effect(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    assert check_config(cfg, for_training=True) == []
    assert check_config(cfg, for_training=False) == []


# Keys without effect


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["TEST.AUG.FLIP", "False"]),
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["INPUT.MIN_SIZE_TRAIN", "(96, 128)"]),
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.5"]),
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["MODEL.RETINANET.IOU_THRESHOLDS", "[0.3, 0.6]"]),
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["MODEL.ALRP.SMOOTH_L1_BETA", "0.5"]),
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]),
        ("ap_retinanet_R_50_FPN_maxiou_100e", ["MODEL.ALRP.TAU", "0.6"]),
        ("alrp_foveabox_R_50_FPN_100e", ["MODEL.RETINANET.NUM_CLASSES", "3"]),
        ("alrp_faster_rcnn_R_50_FPN_100e", ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64"]),
        ("alrp_faster_rcnn_R_50_FPN_100e", ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"]),
        ("ce_faster_rcnn_R_50_FPN_100e", ["MODEL.ROI_MASK_HEAD.NUM_CONV", "8"]),
    ],
)
@pytest.mark.parametrize("for_training", [True, False])
def test_a_key_without_effect_is_a_warning(name, overrides, for_training):
    cfg = load(f"COCO-Detection/{name}", *overrides)
    findings = check_config(cfg, for_training=for_training)
    assert [(f.severity, f.where) for f in findings] == [("warning", overrides[0])]
    assert "has no effect" in findings[0].what


def test_the_key_that_has_the_effect_is_named():
    overrides = ["INPUT.MIN_SIZE_TRAIN", "(96, 128)"]
    cfg = load("COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e", *overrides)
    (finding,) = check_config(cfg, for_training=True)
    assert "INPUT.SQUARE_SIZE_TRAIN has, with INPUT.AUGMENTATION 'published'" in finding.what


def test_wrong_values_of_keys_that_a_run_does_not_read_are_no_errors():
    overrides = ["SOLVER.BASE_LR", "-1.0", "SOLVER.LR_SCHEDULER_NAME", "NoSuch"]
    cfg = load("Shapes/alrp_retinanet_R_18_FPN_ATSS_demo", *overrides)
    assert check_config(cfg, for_training=False) == []


# Which key is to blame


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.DEPTH", 20),
        ("MODEL.FPN.NORM", "XX"),
        ("MODEL.FPN.IN_FEATURES", ["res9"]),
        ("MODEL.PIXEL_MEAN", [1.0]),
        ("SOLVER.LR_SCHEDULER_NAME", "NoSuch"),
        ("DATALOADER.SAMPLER_TRAIN", "x"),
        ("INPUT.RANDOM_FLIP", "x"),
    ],
)
def test_a_mistake_in_the_file_itself_is_found_without_overrides(cfg, key, value):
    *nodes, last = key.split(".")
    node = cfg
    for name in nodes:
        node = node[name]
    node[last] = value
    (finding,) = check_config(cfg, for_training=True)
    assert (finding.severity, finding.where) == ("error", key)


# Solver and device


@pytest.mark.parametrize("factor", [0.2, 5.0])
@pytest.mark.parametrize(("loss", "published"), [("alrp", 0.008), ("ap", 0.002)])
def test_a_learning_rate_far_from_the_published_one_is_a_warning(cfg, loss, published, factor):
    cfg.MODEL.ALRP.LOSS_TYPE = loss
    cfg.SOLVER.IMS_PER_BATCH, expected = 16, published / 2
    cfg.SOLVER.BASE_LR = expected * factor
    _assert_one(cfg, "warning", "SOLVER.BASE_LR", f"far from {expected:g}", f"BASE_LR {expected:g}")
    cfg.SOLVER.BASE_LR = expected * (3.5 if factor > 1 else 0.3)
    assert check(cfg, for_training=True) == []


def test_other_models_and_optimisers_may_have_any_learning_rate(cfg):
    cfg.SOLVER.BASE_LR = 1.0
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert check(cfg, for_training=True) == []
    cfg.MODEL.META_ARCHITECTURE = "ALRPRetinaNet"
    cfg.SOLVER.OPTIMIZER = "AdamW"
    assert check(cfg, for_training=True) == []


@pytest.mark.parametrize(("world_size", "fix"), [(3, "3 or 6"), (8, "IMS_PER_BATCH 8,")])
def test_a_batch_that_does_not_divide_among_the_processes_is_found(cfg, world_size, fix):
    what = f"multiple of the {world_size} process"
    _assert_one(cfg, "error", "SOLVER.IMS_PER_BATCH", what, fix, world_size=world_size)


def test_a_reference_number_of_processes_scales_the_batch(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 2
    assert check(cfg, for_training=True, world_size=3) == []


def test_the_batch_of_an_evaluation_is_not_judged(cfg):
    assert check(cfg, for_training=False, world_size=3) == []


def test_float16_on_the_cpu_is_found(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    _assert_one(cfg, "error", "SOLVER.AMP.DTYPE", "needs a GPU", "AMP.DTYPE bfloat16")
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    assert check(cfg, for_training=True) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("for_training", [True, False])
def test_a_missing_gpu_is_found(cfg, for_training):
    cfg.MODEL.DEVICE = "cuda"
    fix = "MODEL.DEVICE cpu"
    _assert_one(cfg, "error", "MODEL.DEVICE", "no GPU", fix, for_training=for_training)


@pytest.mark.parametrize("device", ["mps", "hpu:0", "meta", "gpu", None])
def test_a_device_that_cannot_be_trained_on_is_found(cfg, device):
    cfg.MODEL.DEVICE = device
    what = f"expected cpu, cuda or cuda:N, but got {device!r}"
    _assert_one(cfg, "error", "MODEL.DEVICE", what, "MODEL.DEVICE cpu or cuda")


@pytest.mark.parametrize(
    ("device", "world_size", "what", "fix"),
    [
        ("cuda:7", 1, "has 2 GPU", "MODEL.DEVICE cuda"),
        ("cuda:1", 2, "2 processes", "--num-gpus 1"),
        ("cuda:0", 2, "2 processes", "--num-gpus 1"),
        ("cpu:0", 2, "NCCL", "hide the GPUs with CUDA_VISIBLE_DEVICES="),
    ],
)
def test_a_gpu_that_the_processes_cannot_have_is_found(
    cfg, monkeypatch, device, world_size, what, fix
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg.MODEL.DEVICE = device
    _assert_one(cfg, "error", "MODEL.DEVICE", what, fix, world_size=world_size)


def test_steps_beyond_the_end_are_a_warning(cfg):
    cfg.SOLVER.MAX_ITER = 90
    _assert_one(cfg, "warning", "SOLVER.STEPS", "[95] lie at or beyond the end, iteration 90")


# Report


def test_a_report_of_one_error_is_one_line(cfg):
    cfg.SOLVER.BASE_LR = 0.0
    with pytest.raises(UserError) as raised:
        report(check(cfg, for_training=True))
    assert str(raised.value).startswith("SOLVER.BASE_LR: expected a number > 0, but got 0.0.")
    assert "To fix: " in str(raised.value) and "\n" not in str(raised.value)


def test_a_report_lists_every_error_in_a_paragraph_of_its_own(cfg):
    cfg.MODEL.RETINANET.NUM_CLASSES = 80
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(UserError) as raised:
        report(check(cfg, for_training=True))
    heading, first, second = str(raised.value).split("\n\n")
    assert heading == "2 mistakes were found before the start."
    assert first.startswith("SOLVER.AMP.DTYPE: ")
    assert second.startswith("MODEL.RETINANET.NUM_CLASSES: ")
    assert "set MODEL.RETINANET.NUM_CLASSES 3" in second


def test_a_report_shows_warnings_and_raises_nothing_for_them(capsys):
    report([Finding("warning", "here", "something odd", "look at it")])
    assert capsys.readouterr().err.endswith("WARNING: here: something odd. To fix: look at it.\n")


def test_warnings_are_appended_to_the_log_of_the_run(tmp_path):
    write_log([Finding("warning", "here", "something odd", "look at it")], str(tmp_path / "run"))
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.endswith("WARNING: here: something odd. To fix: look at it.\n")


def test_nothing_is_made_without_a_warning(tmp_path, capsys):
    report([])
    write_log([], str(tmp_path / "run"))
    assert capsys.readouterr().err == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_expected_results_are_those_of_one_test_set(cfg, names):
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 40.0, 0.5]]
    cfg.DATASETS.TEST = names
    (finding,) = check_config(cfg, for_training=True)
    assert finding.where == "TEST.EXPECTED_RESULTS" and f"got {len(names)}" in finding.what
