"""Every config file loads, and the published ones hold the published numbers."""

from __future__ import annotations

import math
from pathlib import Path
import pytest

from detectron2.config import get_cfg
from detectron2.modeling import build_model

from alrp.config import add_alrp_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def load(name):
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(CONFIGS)) for f in FILES])
def test_every_file_loads_and_names_no_machine(path):
    cfg = load(path)
    text = path.read_text()
    assert "eval" not in text.replace("EVAL_PERIOD", "") and "DEVICE" not in text
    assert not [x for entry in cfg.DATASETS.COCO_FORMAT for x in entry[1:] if x.startswith("/")]
    assert cfg.VERSION == 2


def test_published_r50_atss_numbers():
    cfg = load("COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml")
    images, batch, epochs = 117266, 32, 100
    per_epoch = math.ceil(images / batch)
    assert per_epoch == 3665
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (32, 0.008, 0.9)
    assert (solver.MAX_ITER, solver.STEPS) == (epochs * per_epoch, (75 * per_epoch, 95 * per_epoch))
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.GAMMA) == (1e-4, 1e-4, 0.1)
    assert solver.WEIGHT_DECAY_BIAS in (None, 1e-4)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (500, 0.001)
    assert solver.WARMUP_METHOD == "linear" and not solver.CLIP_GRADIENTS.ENABLED
    assert solver.OPTIMIZER == "SGD" and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"

    model = cfg.MODEL
    assert model.META_ARCHITECTURE == "ALRPRetinaNet"
    assert model.WEIGHTS == "torchvision://resnet50"
    assert (model.RESNETS.DEPTH, model.RESNETS.STRIDE_IN_1X1) == (50, False)
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.ALRP.NORM_EVAL) == (2, "BN", True)
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.INPUT.FORMAT == "RGB"
    assert model.PIXEL_STD == [58.395, 57.12, 57.375]
    strides = (8, 16, 32, 64, 128)
    for sizes, stride in zip(model.ANCHOR_GENERATOR.SIZES, strides):
        assert sizes == pytest.approx([4 * stride, 4 * stride * math.sqrt(2)], rel=1e-12)
    assert model.ANCHOR_GENERATOR.ASPECT_RATIOS == [[1.0]]
    assert model.ANCHOR_GENERATOR.OFFSET == 0.0
    assert model.RETINANET.BBOX_REG_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    assert (model.RETINANET.NUM_CONVS, model.RETINANET.PRIOR_PROB) == (4, 0.01)
    assert model.RETINANET.NORM == "" and model.FPN.OUT_CHANNELS == 256
    assert (model.ALRP.LOSS_TYPE, model.ALRP.MATCHER, model.ATSS.TOPK) == ("alrp", "ATSS", 9)
    assert (model.ALRP.DELTA, model.ALRP.TAU) == (1.0, 0.5)
    balance = model.ALRP.SELF_BALANCE
    assert (balance.ENABLED, balance.INIT_WEIGHT, balance.PERIOD) == (True, 50.0, 0)

    retinanet = model.RETINANET
    assert (retinanet.SCORE_THRESH_TEST, retinanet.NMS_THRESH_TEST) == (0.05, 0.5)
    assert (retinanet.TOPK_CANDIDATES_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (1000, 100)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (500, 833)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == per_epoch


def test_published_r50_atss_parameter_count():
    cfg = load("COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    r50 = 25_557_032 - (2048 * 1000 + 1000)  # torchvision's count without the classifier
    # FREEZE_AT 2 turns the batch norm of the stem and of res2 into FrozenBN, without parameters.
    frozen = 2 * (64 + (64 + 64 + 256 + 256) + 2 * (64 + 64 + 256))
    conv = 256 * 256 * 9 + 256
    fpn = sum(c * 256 + 256 + conv for c in (512, 1024, 2048))
    p6_p7 = (2048 * 256 * 9 + 256) + conv
    outputs = sum(256 * 9 * 2 * n + 2 * n for n in (80, 4))  # two anchors per location
    expected = r50 - frozen + fpn + p6_p7 + 8 * conv + outputs
    assert sum(p.numel() for p in model.parameters()) == expected
