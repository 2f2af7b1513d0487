"""``--dry-run`` of the YAML command: what it reports, and that it leaves no trace."""

from __future__ import annotations

import re
from pathlib import Path
import pytest
import torch
from helpers.emulated_gpu import EmulatedGPU
from torch import nn

from alrp.config import load_config
from alrp.engine import argument_parser, dry_run, run_command
from alrp.engine.trainer import TrainingParts

ROOT = Path(__file__).resolve().parents[2]


class Weight(nn.Module):
    """Loss of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, data):
        return {"loss": self.weight * data}


@pytest.fixture
def report(command_line, train_net, capsys):
    """Rows that a dry run prints, by name."""

    def run(**overrides):
        args = argument_parser().parse_args(command_line("--dry-run", **overrides))
        assert run_command(train_net.main, args) == 0
        rows = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}

    return run


def test_a_dry_run_reports_the_schedule_and_writes_nothing(report, tmp_path):
    rows = report(SOLVER__MAX_ITER=30, SOLVER__OPTIMIZER="SGD", SOLVER__BASE_LR=0.001)
    assert rows["epoch"] == "12 images = 3 iterations"
    assert rows["schedule"] == "30 iterations = 10.0 epochs"
    assert rows["batch"] == "4 images on 1 process(es)"
    expected = "0.001 = 0.008 at the reference batch of 32 (published: 0.008)"
    assert rows["learning rate"] == expected
    assert re.fullmatch(r"[\d,]+, [\d,]+ of them trained", rows["parameters"])
    assert float(rows["peak memory"].split()[0]) > 0.1
    assert float(rows["iteration"].split()[0]) > 0
    assert {part.split()[0] for part in rows["losses"].split(", ")} >= {"loss_cls", "loss_box_reg"}
    assert not (tmp_path / "output").exists()


def test_micro_batches_are_reported(report):
    rows = report(SOLVER__MICRO_BATCH_SIZE=3, MODEL__BACKBONE__NORM_EVAL=True)
    assert rows["batch"] == "4 images on 1 process(es), 3 at a time"


def test_an_optimizer_without_a_published_rate_is_named(report):
    rows = report(SOLVER__OPTIMIZER="AdamW", SOLVER__BASE_LR=0.0005)
    assert rows["learning rate"].endswith("(AdamW; no published rate)")


@pytest.mark.parametrize("option", ["--resume", "--eval-only"])
def test_a_dry_run_goes_with_no_other_mode(command_line, train_net, capsys, option):
    args = argument_parser().parse_args(command_line("--dry-run", option))
    assert run_command(train_net.main, args) == 1
    printed = capsys.readouterr()
    assert f"error: --dry-run does not go with {option}: " in printed.err and not printed.out


def test_weights_that_do_not_fit_are_found(command_line, train_net, capsys, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, path)
    args = argument_parser().parse_args(command_line("--dry-run", MODEL__WEIGHTS=path))
    assert run_command(train_net.main, args) == 1
    assert "does not fit the model" in capsys.readouterr().err


def test_an_unknown_name_of_weights_lists_the_choices(command_line, train_net, capsys):
    weights = "torchvision://resnet51"
    args = argument_parser().parse_args(command_line(MODEL__WEIGHTS=weights))
    assert run_command(train_net.main, args) == 1
    assert "resnet50, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the emulation")
def test_the_device_of_the_model_is_measured_also_where_another_is_the_current_one():
    """``cuda:0`` of the emulation; None would be the current one."""
    with EmulatedGPU() as gpu:
        model = Weight().to("cuda")
        config = ROOT / "configs" / "Shapes" / "alrp_retinanet_R_18_FPN_ATSS_demo.yaml"
        cfg = load_config(str(config), ["SOLVER.IMS_PER_BATCH", "1"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        parts = TrainingParts(cfg, model, optimizer, [1.0, 1.0], None, None)
        rows = dry_run(parts)
    assert "GiB on the GPU per process" in rows
    assert gpu.measured and set(gpu.measured) == {torch.device("cuda", 0)}
