"""Names in checkpoints stay what they were, whatever the modules are called now."""

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
def test_checkpoints_of_every_version_have_the_same_names(name):
    (config,) = (ROOT / "configs").glob(f"COCO-*/{name}.yaml")
    cfg = setup_config(Namespace(config_file=str(config), opts=["MODEL.DEVICE", "meta"]))
    with torch.device("meta"):
        model = build_model(cfg)
        state = {n: torch.empty(shape) for n, shape in SHAPES[name].items()}
    assert {n: list(tensor.shape) for n, tensor in model.state_dict().items()} == SHAPES[name]
    model.load_state_dict(state, strict=True, assign=True)


def test_the_state_of_self_balance_is_saved_and_loaded():
    config = ROOT / "configs" / "COCO-InstanceSegmentation" / "alrp_mask_rcnn_R_50_FPN_100e.yaml"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18"]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
    model = build_model(setup_config(Namespace(config_file=str(config), opts=opts)))
    state = model.state_dict()
    for i, owner in enumerate(("proposal_generator", "roi_heads.box_predictor")):
        for kind, value in (("weight", 7.5 + i), ("sum_cls", 2.0), ("sum_loc", 3.0), ("count", 4)):
            name = f"{owner}.ranking_losses.self_balance.{kind}"
            state[name] = torch.full_like(state[name], value)
    model.load_state_dict(state, strict=True)
    balances = [
        module.head_losses.self_balance
        for module in (model.proposal_generator, model.roi_heads.box_predictor)
    ]
    assert [balance.weight.item() for balance in balances] == [7.5, 8.5]
    assert [balance.count.item() for balance in balances] == [4, 4]
    assert model.state_dict().keys() == state.keys()
