"""Small dense detectors, and what each Gloo process does with them; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import torch
from helpers import detectors
from helpers.detectors import NARROW_RESNET, train_on_edge_batches
from helpers.gloo_worker import gloo_group

from detectron2.modeling import build_model

# Base configuration -> node of MODEL, and the options of its models by name.
BASES = {
    "Base-ALRP-RetinaNet.yaml": "RETINANET",
    "Base-FoveaBox.yaml": "FOVEABOX",
}
RETINANETS = {
    "alrp_ATSS": {"MODEL.ALRP.LOSS_TYPE": "alrp", "MODEL.ALRP.MATCHER": "ATSS"},
    "alrp_max_iou": {"MODEL.ALRP.LOSS_TYPE": "alrp", "MODEL.ALRP.MATCHER": "max_iou"},
    "ap_max_iou": {"MODEL.ALRP.LOSS_TYPE": "ap", "MODEL.ALRP.MATCHER": "max_iou"},
    "rs_ATSS": {
        "MODEL.ALRP.LOSS_TYPE": "rs",
        "MODEL.ATSS.HEAD": True,
        "MODEL.BACKBONE.NAME": "build_atss_resnet_fpn_backbone",
        "MODEL.RETINANET.NORM": "GN",
        # Group norm has 32 groups, each of which needs more than one value on a level of one cell.
        "MODEL.FPN.OUT_CHANNELS": 64,
    },
}
FOVEABOXES = {name: {"MODEL.ALRP.LOSS_TYPE": name} for name in ("alrp", "ap", "rs", "focal")}


def small_config(base, num_classes=3, **overrides):
    return detectors.small_config(base, BASES[base], num_classes, **overrides)


def small_model(base, num_classes=3, **overrides):
    torch.manual_seed(0)
    return build_model(small_config(base, num_classes, **overrides))


def in_two_processes(variants):
    """Name and number of classes of the models that two processes train."""
    return [*((name, 3) for name in variants), (next(iter(variants)), 1)]


def train_beside_another_rank(rank, world_size, folder, base, variants):
    """Train each model on this rank's half of the edge batches; write what came out."""
    with gloo_group(rank, world_size, folder):
        results = {
            (name, num_classes): train_on_edge_batches(
                small_model(base, num_classes, **variants[name], **NARROW_RESNET), rank, num_classes
            )
            for name, num_classes in in_two_processes(variants)
        }
    torch.save(results, Path(folder) / f"rank{rank}.pth")
