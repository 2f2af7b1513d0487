"""The optimizers of the trainer: gradient clipping, alone and under mixed precision."""

from __future__ import annotations

import copy
import pytest
import torch
from torch import nn

from alrp.config import load_config
from alrp.engine import Trainer

OPTIMIZERS = ["SGD", "AdamW"]


def build(model, optimizer, clip_type, *, amp=False):
    cfg = load_config("")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.AMP.ENABLED = optimizer, amp
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM = 1.0, 0.0
    cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    return Trainer.build_optimizer(cfg, model)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def loss(model):
    return (model(torch.ones(5, 3)) ** 2).sum()


def test_full_model_limits_the_norm_of_all_gradients_together(model):
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build(model, "SGD", "full_model")
    loss(model).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    optimizer.step()
    steps = torch.cat([(b - p).flatten() for b, p in zip(before, model.parameters())]).detach()
    # The direction stays; each parameter on its own would have a norm of 0.01.
    torch.testing.assert_close(steps, 0.01 * expected / expected.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_type", ["value", "norm", "full_model"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clipping_sees_the_gradients_without_the_scale_of_mixed_precision(
    model, optimizer, clip_type
):
    scaled = copy.deepcopy(model)
    plain_optimizer = build(model, optimizer, clip_type)
    scaled_optimizer = build(scaled, optimizer, clip_type, amp=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for _ in range(3):
        plain_optimizer.zero_grad()
        loss(model).backward()
        plain_optimizer.step()
        scaled_optimizer.zero_grad()
        scaler.scale(loss(scaled)).backward()
        scaler.step(scaled_optimizer)
        scaler.update()
    for expected, got in zip(model.parameters(), scaled.parameters()):
        torch.testing.assert_close(got, expected)
