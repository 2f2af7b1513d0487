"""``~`` and environment variables in the paths of a command."""

from __future__ import annotations

from pathlib import Path
import pytest

from alrp.engine import argument_parser, setup_config
from alrp.engine.lazy_command import setup_lazy_config
from alrp.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def paths_of_yaml(output, weights):
    overrides = ["OUTPUT_DIR", output, "MODEL.WEIGHTS", weights]
    file = str(CONFIGS / "Base-ALRP-RetinaNet.yaml")
    cfg = setup_config(argument_parser().parse_args(["--config-file", file, *overrides]))
    return cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS


def paths_of_lazy(output, weights):
    overrides = [f"train.output_dir='{output}'", f"train.init_checkpoint='{weights}'"]
    file = str(CONFIGS / "COCO-Detection" / "alrp_retinanet_R_50_FPN_ATSS_100e.py")
    cfg = setup_lazy_config(argument_parser().parse_args(["--config-file", file, *overrides]))
    return cfg.train.output_dir, cfg.train.init_checkpoint


both = pytest.mark.parametrize("paths", [paths_of_yaml, paths_of_lazy])


@both
def test_home_and_variables_are_replaced(paths, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/runs")
    expected = ("/home/me/run", "/runs/model_final.pth")
    assert paths("~/run", "$RUNS/model_final.pth") == expected


@both
def test_other_paths_stay_as_they_are(paths):
    assert paths("output/run~1", "torchvision://resnet50") == (
        "output/run~1",
        "torchvision://resnet50",
    )


@both
def test_a_variable_that_is_not_set_is_named(paths, monkeypatch):
    monkeypatch.delenv("RUNS", raising=False)
    with pytest.raises(UserError, match="(OUTPUT_DIR|output_dir): .* variable RUNS"):
        paths("$RUNS/run", "")
