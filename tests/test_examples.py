"""The examples train and infer."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from helpers.detectors import assert_all_gradients_finite, image, train_step
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec

import alrp
from alrp.engine.checks.training import published_learning_rate
from alrp.engine.lazy import set_lazy_self_balance_period
from alrp.engine.lazy_command import as_cfg_node
from alrp.losses import rs_loss

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def fcos():
    """FCOS of the example with a narrow head and three classes."""
    cfg = LazyConfig.load(str(EXAMPLES / "fcos_with_alrp.py"))
    cfg.model.num_classes = 3
    cfg.model.head.conv_dims = [64]
    cfg.model.test_score_thresh = 0.0
    set_lazy_self_balance_period(cfg.model, 5)
    torch.manual_seed(0)
    return instantiate(cfg.model)


@pytest.mark.parametrize("is_empty", [False, True])
def test_fcos_takes_a_training_step_with_the_loss(fcos, is_empty):
    model = copy.deepcopy(fcos)
    boxes = [] if is_empty else [[5, 5, 40, 50], [30, 10, 90, 60]]
    losses, storage = train_step(model, [image(64, 96, boxes, [0, 2][: len(boxes)])], 19)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_fcos_ctr"}
    assert all((loss == 0) == is_empty for loss in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.head_losses.self_balance.count == (not is_empty)
    if not is_empty:
        assert model.head.cls_score.weight.grad.any() and model.head.bbox_pred.weight.grad.any()
        unweighted = losses["loss_cls"] + losses["loss_box_reg"] / 50.0
        assert storage.latest()["alrp/loss"][0] == pytest.approx(unweighted.item(), rel=1e-5)


def test_fcos_infers(fcos):
    model = copy.deepcopy(fcos).eval()
    nn.init.normal_(model.head.cls_score.weight, std=1.0)
    with torch.no_grad():
        detections = model([image(64, 96)])[0]["instances"]
    assert 0 < len(detections) <= 100
    assert detections.pred_boxes.tensor.isfinite().all()


def test_the_checks_before_a_run_see_the_class_count_and_no_published_rate():
    cfg = LazyConfig.load(str(EXAMPLES / "fcos_with_alrp.py"))
    cfg.model.num_classes = 7
    cfg.train.device = "cpu"
    node = as_cfg_node(cfg)
    assert node.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert published_learning_rate(node) is None


@pytest.mark.parametrize("name", ["fcos_with_alrp.py", "vitdet_with_rs.py"])
def test_a_config_holds_what_a_training_reads_and_no_more(name):
    parts = {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    assert set(LazyConfig.load(str(EXAMPLES / name))) == parts


def test_vitdet_trains_with_rs_loss_and_infers():
    cfg = LazyConfig.load(str(EXAMPLES / "vitdet_with_rs.py"))
    node = as_cfg_node(cfg)
    assert node.MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert published_learning_rate(node) is None
    model = instantiate(small_vitdet(cfg.model))
    batch = [image(64, 96, [[5, 5, 40, 50], [30, 10, 90, 60]], [0, 2])]
    losses, _ = train_step(model, batch)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert_all_gradients_finite(model)
    with torch.no_grad():
        detections = model.eval()([image(64, 96)])[0]["instances"]
    assert 0 < len(detections) <= 100


def small_vitdet(model):
    """The model of the example with narrow layers and few proposals."""
    net, rpn, heads = model.backbone.net, model.proposal_generator, model.roi_heads
    net.update(embed_dim=16, depth=2, num_heads=2, window_size=4, window_block_indexes=[0])
    model.backbone.out_channels = rpn.head.in_channels = 8
    model.backbone.square_pad = net.img_size = 128
    rpn.post_nms_topk = (50, 50)
    heads.num_classes = 3
    heads.box_head.update(conv_dims=[8], fc_dims=[16], input_shape=ShapeSpec(8, 7, 7))
    heads.box_predictor.input_shape = ShapeSpec(16)
    return model


def run_example(monkeypatch, name, *options):
    """The names of an example that was run with options of its command line."""
    monkeypatch.setattr("sys.argv", [name, *map(str, options)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_resumed_loop_ends_as_one_that_was_not_interrupted(monkeypatch, tmp_path):
    """Self-balance too, whose epoch of two steps is cut in the middle."""
    states = []
    for name, runs in (("whole.pth", [3]), ("resumed.pth", [1, 3])):
        for steps in runs:
            options = ["--checkpoint", tmp_path / name, "--steps", steps, "--epoch", 2]
            run_example(monkeypatch, "plain_loop.py", *options)
        states.append(torch.load(tmp_path / name))
    torch.testing.assert_close(*states, rtol=0, atol=0)
    balance = {k.rpartition(".")[2]: v for k, v in states[0]["model"].items() if "self_bal" in k}
    assert balance["weight"] not in (1, 50) and balance["count"] == 1


def test_torchvisions_retinanet_ranks_all_but_ignored_anchors(monkeypatch, generator):
    head = run_example(monkeypatch, "torchvision_retinanet.py", "--steps", 0)["model"].head
    corners = 90 * torch.rand(2, 5, 2, generator=generator)
    anchors = list(torch.cat([corners, corners + 20], dim=2))
    logits = torch.randn(2, 5, 3, generator=generator).requires_grad_()
    deltas = torch.zeros(2, 5, 4, requires_grad=True)
    objects = {"boxes": anchors[0][[1, 3]] + 3, "labels": torch.tensor([2, 0])}
    targets = [objects, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]
    matched = [torch.tensor([-1, 0, -2, 1, -1]), torch.full((5,), -1)]  # -1 background, -2 ignored
    outputs = {"cls_logits": logits, "bbox_regression": deltas}
    losses = head.compute_loss(targets, outputs, anchors, matched)
    expected = torch.zeros(2, 5, 3)
    expected[0, 1, 2] = expected[0, 3, 0] = 1
    expected[0, 2] = -1
    ious = torch.full((2,), 17 * 17 / (2 * 400 - 17 * 17))  # of squares of 20 that are 3 apart
    ranked = rs_loss(logits.flatten(), expected.flatten().int(), ious)
    assert losses["classification"].item() == pytest.approx(
        (ranked.ranking + ranked.sorting).item()
    )
    sum(losses.values()).backward()
    assert logits.grad[0, 1].any() and not logits.grad[0, 2].any() and logits.grad[1].any()
    moved = deltas.grad.any(dim=2).nonzero().tolist()
    assert moved == [[0, 1], [0, 3]]

    losses = head.compute_loss(targets[1:] * 2, outputs, anchors, matched[1:] * 2)
    assert all(loss == 0 for loss in losses.values())  # without objects


def test_each_object_of_the_query_based_detector_has_a_query_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = run_example(monkeypatch, "query_detector.py", "--steps", 1)
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9], [50, 50, 60, 60]])
    target = {"boxes": boxes[[0, 2, 0]], "labels": torch.tensor([1, 0, 1])}
    assert names["match"](torch.zeros(3, 3), boxes, target).tolist() == [0, 2, 1]


@pytest.mark.slow
def test_the_walk_through_ends_with_detections_of_the_exported_file(tmp_path):
    tiny = "--num-scenes 40 --size 64 --iterations 30 --batch 4 --output".split()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "examples/own_data.py", *tiny, str(tmp_path)],
        cwd=EXAMPLES.parent,
        env={**os.environ, "PYTHONPATH": str(Path(alrp.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"^\$ python (\S+)", done.stdout, re.MULTILINE)
    assert commands == ["tools/convert_dataset.py", "train_net.py", "tools/export_model.py"]
    splits = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "val")]
    train, val = ({image["file_name"] for image in split["images"]} for split in splits)
    assert (len(train), len(val)) == (32, 8) and not train & val

    # What is printed at the end is what the evaluation found, from the stored scores on.
    *_, picture, rows = re.split(r"^(\S+\.png):$", done.stdout, flags=re.MULTILINE)
    assert Path(picture).name in val
    found = sorted(float(row.split()[1]) for row in rows.strip().splitlines())
    lrp = json.loads((tmp_path / "inference" / "lrp_results.json").read_text())["per_class"]
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    (image_id,) = (x["id"] for x in splits[1]["images"] if x["file_name"] == Path(picture).name)
    least = [lrp[category["name"]]["threshold"] or 2 for category in splits[1]["categories"]]
    of_image = [r for r in results if r["image_id"] == image_id]
    shown = [r["score"] for r in of_image if r["score"] >= least[r["category_id"] - 1]]
    assert 0 < len(shown) < len(of_image) and found == pytest.approx(sorted(shown), abs=2e-3)
