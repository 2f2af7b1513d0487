"""Small dense detectors with every loss; spawned processes import it."""

from __future__ import annotations

from helpers.detectors import FOVEABOX, RETINANET, small_model

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
    for detector, base, variants in (
        ("retinanet", RETINANET, RETINANETS),
        ("foveabox", FOVEABOX, FOVEABOXES),
    )
    for name, options in variants.items()
}


def small_named(name, num_classes=3, **overrides):
    """The model of an entry of MODELS."""
    base, options = MODELS[name]
    return small_model(base, num_classes, **options, **overrides)
