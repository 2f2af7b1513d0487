"""Checkpoints written before names changed still load, whole."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
import pytest
import torch

from detectron2.modeling import build_model

from alrp.engine import setup_config

ROOT = Path(__file__).resolve().parents[2]
# Names and shapes in the state dicts of version 0.1.0.
SHAPES = json.loads((ROOT / "tests" / "golden" / "checkpoint_keys.json").read_text())


@pytest.mark.parametrize("name", SHAPES)
def test_every_tensor_of_a_former_checkpoint_finds_its_place(name):
    (config,) = (ROOT / "configs").glob(f"COCO-*/{name}.yaml")
    cfg = setup_config(Namespace(config_file=str(config), opts=["MODEL.DEVICE", "meta"]))
    with torch.device("meta"):
        model = build_model(cfg)
        state = {n: torch.empty(shape) for n, shape in SHAPES[name].items()}
    model.load_state_dict(state, strict=True, assign=True)


def test_former_self_balance_state_is_read():
    config = ROOT / "configs" / "COCO-InstanceSegmentation" / "alrp_mask_rcnn_R_50_FPN_100e.yaml"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
    model = build_model(setup_config(Namespace(config_file=str(config), opts=opts)))
    names = ["proposal_generator.{}.self_balance", "roi_heads.box_predictor.{}.self_balance"]
    state = model.state_dict()
    for i, name in enumerate(names):
        for kind, value in (("weight", 7.5 + i), ("sum_cls", 2.0), ("sum_loc", 3.0), ("count", 4)):
            former = state.pop(f"{name.format('head_losses')}.{kind}")
            state[f"{name.format('ranking_losses')}.{kind}"] = torch.full_like(former, value)
    model.load_state_dict(state, strict=True)
    assert model.proposal_generator.head_losses.self_balance.weight == 7.5
    assert model.roi_heads.box_predictor.head_losses.self_balance.weight == 8.5
    assert model.roi_heads.box_predictor.head_losses.self_balance.count == 4
