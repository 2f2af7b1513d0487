"""``SOLVER.AMP``: training steps in float16 and bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
import pytest
import torch
from torch import nn

from detectron2.engine import HookBase

from alrp.engine import Trainer, argument_parser, run_command, setup_config
from alrp.engine.mixed_precision import MixedPrecisionTrainer

ROOT = Path(__file__).resolve().parents[2]
BFLOAT16 = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"}


class Line(nn.Module):
    """Loss of one weight; ``seen`` holds the dtypes of its products."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.seen = []

    def forward(self, data):
        result = self.layer(data)
        self.seen.append(result.dtype)
        return {"loss": result.float().sum()}


def one_step(dtype, value=1.0):
    """(Trainer, change of the weight) of one iteration of SGD with rate 1."""
    model = Line()
    before = model.layer.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = MixedPrecisionTrainer(model, [torch.full((1, 1), value)], optimizer, dtype)
    trainer.train(0, 1)
    return trainer, (model.layer.weight.detach() - before).item()


@pytest.mark.filterwarnings("error:.*torch.cuda.amp:FutureWarning")  # AMPTrainer's own calls
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_are_of_the_dtype_and_updates_have_no_scale(dtype):
    trainer, change = one_step(dtype, value=0.5)
    assert trainer.model.seen == [getattr(torch, dtype)]
    assert change == pytest.approx(-0.5)


def test_float16_has_a_loss_scale_that_fits_and_bfloat16_none():
    assert one_step("float16")[0].state_dict()["grad_scaler"]["scale"] == 2.0**11
    assert one_step("bfloat16")[0].state_dict()["grad_scaler"] == {}


def test_float16_leaves_out_an_update_that_overflows():
    trainer, change = one_step("float16", value=60000.0)  # times 2^11 is beyond float16
    assert change == 0.0
    assert trainer.grad_scaler.get_scale() == 2.0**10


def test_every_optimizer_gets_gradients_without_the_scale():
    """Also a fused one, which could undo it, but only after what else is done before its step."""
    model, seen = Line(), []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.layer.weight.grad.item()))
    MixedPrecisionTrainer(model, [torch.full((1, 1), 0.5)], optimizer, "float16").train(0, 1)
    assert seen == [0.5]
    assert optimizer.state[model.layer.weight]["exp_avg"].item() == pytest.approx(0.05)


def test_a_hook_may_clip_gradients_without_the_scale_itself():
    """As PyTorch advises for its scaler."""
    model = Line()
    before = model.layer.weight.item()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = MixedPrecisionTrainer(model, [torch.full((1, 1), 0.5)], optimizer, "float16")

    class Clip(HookBase):
        def after_backward(self):
            trainer.grad_scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)

    trainer.register_hooks([Clip()])
    trainer.train(0, 1)
    assert model.layer.weight.item() - before == pytest.approx(-0.25, rel=1e-4)


def test_no_update_of_rs_cascade_rcnn_overflows_at_the_first_scale(command_line):
    """The model with the largest first gradients; on a CPU, where the command refuses float16."""
    options = {"SOLVER__AMP__ENABLED": True, "SOLVER__MAX_ITER": 1, "DATASETS__TEST": ()}
    line = command_line(**options)
    line[1] = str(ROOT / "configs" / "Shapes" / "rs_cascade_rcnn_R_18_FPN.yaml")
    cfg = setup_config(argument_parser().parse_args(line))
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    scaler = trainer._trainer.grad_scaler
    first_scale = scaler.get_scale()
    trainer.train()
    assert scaler.get_scale() == first_scale


@pytest.fixture
def train(command_line, train_net, tmp_path):
    """``train(*options, KEY=VALUE...)``: loss of the last iteration."""

    def run(*options, **overrides):
        arguments = command_line(*options, DATASETS__TEST=(), **overrides)
        assert run_command(train_net.main, argument_parser().parse_args(arguments)) == 0
        lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
        row = json.loads(lines[-1])
        assert row["iteration"] == overrides["SOLVER__MAX_ITER"] - 1
        return row["total_loss"]

    return run


def test_a_cpu_trains_in_bfloat16_and_resumes_in_float32(train):
    exact = train(SOLVER__MAX_ITER=1)
    mixed = train(SOLVER__MAX_ITER=1, **BFLOAT16)
    assert mixed != exact and mixed == pytest.approx(exact, rel=0.02)
    assert train("--resume", SOLVER__MAX_ITER=2) < 2 * exact
    assert train("--resume", SOLVER__MAX_ITER=3, **BFLOAT16) < 2 * exact


def test_micro_batches_are_in_bfloat16_too(train):
    overrides = {"MODEL__BACKBONE__NORM_EVAL": True, "SOLVER__MAX_ITER": 2, **BFLOAT16}
    whole = train(**overrides)
    assert train(SOLVER__MICRO_BATCH_SIZE=1, **overrides) == pytest.approx(whole, rel=0.01)
