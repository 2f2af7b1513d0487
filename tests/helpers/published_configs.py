"""The published rows: their numbers, their YAML and Lazy files, and the models of both."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
import pytest
import torch

from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from alrp.config import load_config
from alrp.engine.lazy import set_lazy_self_balance_period

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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
_RCNN = Row(architecture="ThresholdedRCNN", anchors=3, matcher="")
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
_RS = dict(size=800, anchors=3, batch=16, loss="rs")
_RS_RCNN = _RCNN._replace(**_RS, learning_rate=0.012)
_1X, _3X = dict(steps=(8, 11)), dict(steps=(27, 33), backbone="resnet101")
RS_ROWS = {
    "rs_retinanet_R_50_FPN_ATSS_1x": Row(**_RS, **_1X),
    "rs_faster_rcnn_R_50_FPN_1x": _RS_RCNN._replace(**_1X),
    "rs_cascade_rcnn_R_50_FPN_1x": _RS_RCNN._replace(**_1X),
    "rs_mask_rcnn_R_50_FPN_1x": _RS_RCNN._replace(**_1X),
    "rs_faster_rcnn_R_101_DCN_FPN_3x": _RS_RCNN._replace(**_3X),
    "rs_mask_rcnn_R_101_FPN_3x": _RS_RCNN._replace(**_3X),
}
ALL = {**ROWS, ONE_X: Row(**_800), **RS_ROWS}


def rows_of(architecture):
    return {name: row for name, row in ROWS.items() if row.architecture == architecture}


def each(rows):
    """Parametrise over names and numbers of rows."""
    return pytest.mark.parametrize("name, row", rows.items(), ids=list(rows))


def _file(name, suffix):
    (path,) = CONFIGS.glob(f"COCO-*/{name}{suffix}")
    return str(path)


def load_yaml(name):
    cfg = load_config(_file(name, ".yaml"))
    return cfg


def load_lazy(name):
    return LazyConfig.load(_file(name, ".py"))


def build_both(name, device, small=False):
    """The model of each file from one seed, both in training mode.

    Args:
        name: of a row.
        device: to build on.
        small: with a ResNet-18 and few proposals.
    """
    cfg, lazy = load_yaml(name), load_lazy(name)
    if small:
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
        if "proposal_generator" in lazy.model:
            lazy.model.proposal_generator.post_nms_topk = (50, 50)
        stages = lazy.model.backbone.bottom_up.stages
        stages.depth = 18
        del stages.stride_in_1x1  # of bottleneck blocks
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 10
    set_lazy_self_balance_period(lazy.model, 10)
    models = []
    for build in (lambda: build_model(cfg), lambda: instantiate(lazy.model)):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(build().train())
    return models
