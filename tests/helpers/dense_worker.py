"""Small dense detectors, and what each Gloo process does with them; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import torch
from helpers import detectors
from helpers.detectors import NARROW_RESNET, train_on_edge_batches
from helpers.gloo_worker import gloo_group

from detectron2.modeling import build_model

# Base configuration -> node of MODEL.
BASES = {
    "Base-ALRP-RetinaNet.yaml": "RETINANET",
    "Base-FoveaBox.yaml": "FOVEABOX",
}
# Options of the models of each base.
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
# All of them by name.
MODELS = {
    f"{detector}_{name}": (base, options)
    for detector, base, variants in zip(("retinanet", "foveabox"), BASES, (RETINANETS, FOVEABOXES))
    for name, options in variants.items()
}
# Name and number of classes of the models that two processes train.
IN_TWO_PROCESSES = [(name, 3) for name in MODELS]
IN_TWO_PROCESSES += [("retinanet_alrp_ATSS", 1), ("foveabox_alrp", 1)]


def small_config(base, num_classes=3, **overrides):
    return detectors.small_config(base, BASES[base], num_classes, **overrides)


def small_model(base, num_classes=3, **overrides):
    torch.manual_seed(0)
    return build_model(small_config(base, num_classes, **overrides))


def small_named(name, num_classes=3, **overrides):
    """The model of an entry of MODELS."""
    base, options = MODELS[name]
    return small_model(base, num_classes, **options, **overrides)


def train_beside_another_rank(rank, world_size, folder):
    """Train each model on this rank's half of the edge batches; write what came out."""
    with gloo_group(rank, world_size, folder):
        results = {
            (name, num_classes): train_on_edge_batches(
                small_named(name, num_classes, **NARROW_RESNET), rank, num_classes
            )
            for name, num_classes in IN_TWO_PROCESSES
        }
    torch.save(results, Path(folder) / f"rank{rank}.pth")
