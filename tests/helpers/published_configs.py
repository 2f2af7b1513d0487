"""The published rows: their numbers, their YAML and Lazy files, and the models of both."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
import pytest
import torch

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

from alrp.config import add_alrp_config
from alrp.engine.lazy import set_lazy_self_balance_period

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "COCO-Detection"


class Row(NamedTuple):
    """Numbers of a row; the defaults are those of ATSS with aLRP on ResNet-50 at 500 pixels."""

    architecture: str = "ALRPRetinaNet"
    backbone: str = "resnet50"
    size: int = 500  # shorter side in test
    anchors: int = 2  # per location
    learning_rate: float = 0.008
    batch: int = 32
    steps: tuple[int, int] = (75, 95)  # epochs
    loss: str = "alrp"
    matcher: str = "ATSS"


_R101, _X101 = Row(backbone="resnet101"), Row(backbone="resnext101_64x4d")
_800 = dict(size=800, anchors=3, learning_rate=0.004, batch=16)
_MAX_IOU = Row(anchors=6, steps=(60, 80), matcher="max_iou")
_FOVEA = Row(architecture="FoveaBox", anchors=1, matcher="")
_RCNN = Row(architecture="GeneralizedRCNN", anchors=3, matcher="")
ROWS = {
    "ap_retinanet_R_50_FPN_maxiou_100e": _MAX_IOU._replace(learning_rate=0.002, loss="ap"),
    "alrp_retinanet_R_50_FPN_maxiou_100e": _MAX_IOU,
    "alrp_retinanet_R_50_FPN_ATSS_100e": Row(),
    "alrp_retinanet_R_101_FPN_ATSS_100e": _R101,
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_100e": _X101,
    "alrp_retinanet_R_101_FPN_ATSS_800_100e": _R101._replace(**_800),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_800_100e": _X101._replace(**_800),
    "alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e": _X101._replace(**_800),
    "focal_foveabox_R_50_FPN_100e": _FOVEA._replace(learning_rate=0.02, loss="focal"),
    "ap_foveabox_R_50_FPN_100e": _FOVEA._replace(learning_rate=0.002, loss="ap"),
    "alrp_foveabox_R_50_FPN_100e": _FOVEA,
    "ce_faster_rcnn_R_50_FPN_100e": _RCNN._replace(learning_rate=0.04, loss="ce"),
    "ce_giou_faster_rcnn_R_50_FPN_100e": _RCNN._replace(learning_rate=0.04, loss="ce"),
    "alrp_faster_rcnn_R_50_FPN_100e": _RCNN._replace(learning_rate=0.012),
}
ONE_X = "alrp_retinanet_R_50_FPN_ATSS_1x"  # ours
ALL = {**ROWS, ONE_X: Row(**_800)}


def rows_of(architecture):
    return {name: row for name, row in ROWS.items() if row.architecture == architecture}


def each(rows):
    """Parametrise over names and numbers of rows."""
    return pytest.mark.parametrize("name, row", rows.items(), ids=list(rows))


def load_yaml(name):
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def load_lazy(name):
    return LazyConfig.load(str(CONFIGS / f"{name}.py"))


def build_both(name, device):
    """The model of each file from one seed, both in training mode."""
    cfg, lazy = load_yaml(name), load_lazy(name)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 10
    set_lazy_self_balance_period(lazy.model, 10)
    models = []
    for build in (lambda: build_model(cfg), lambda: instantiate(lazy.model)):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(build().train())
    return models
