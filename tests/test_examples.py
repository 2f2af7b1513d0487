"""The examples train and infer."""

from __future__ import annotations

import copy
from pathlib import Path
import pytest
import torch
from helpers.detectors import image, train_step
from torch import nn

from detectron2.config import LazyConfig, instantiate

from alrp.engine.checks.training import published_learning_rate
from alrp.engine.lazy import as_cfg_node, set_lazy_self_balance_period

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
