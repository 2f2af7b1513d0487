"""A LazyConfig with RS Loss through the command that trains it."""

from __future__ import annotations

import json
from pathlib import Path
import torch

from alrp.engine import argument_parser
from alrp.engine.lazy_command import run_lazy_command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "COCO-Detection" / "rs_retinanet_R_50_FPN_ATSS_1x.py"


def test_a_training_step_of_rs_loss(load_script, shapes, tmp_path):
    names = [f"{shapes.name}_{split}" for split in ("train", "val")]
    entries = [
        [name, f"{shapes}/annotations/{split}.json", f"{shapes}/{split}"]
        for name, split in zip(names, ("train", "val"))
    ]
    overrides = [
        f"dataloader.coco_format={json.dumps(entries)}",
        f"dataloader.train.dataset.names={names[0]}",
        f"dataloader.test.dataset.names={names[1]}",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
        "model.num_classes=3",
        "model.head.conv_dims=[64]",
        "optimizer.lr=0.001",
        "train.init_checkpoint=''",
        "train.max_iter=1",
        "train.eval_period=0",
        f"train.output_dir={tmp_path / 'output'}",
    ]
    args = argument_parser().parse_args(["--config-file", str(CONFIG), *overrides])
    assert run_lazy_command(load_script("lazyconfig_train_net.py").main, args) == 0
    state = torch.load(tmp_path / "output" / "model_final.pth")
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert state["iteration"] == 0 and "head.scales.4.scale" in state["model"]
    # The balance gives the box loss the value of ranking and sorting.
    assert metrics["loss_cls"] > 0
    assert abs(metrics["loss_box_reg"] / metrics["loss_cls"] - 1) < 1e-5
