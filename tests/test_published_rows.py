"""Every published RetinaNet and FoveaBox row: numbers, network, YAML and Lazy files that agree."""

from __future__ import annotations

import copy
import math
import numpy as np
from pathlib import Path
from typing import NamedTuple
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.structures import Boxes, BoxMode, Instances

from alrp.config import add_alrp_config
from alrp.data.dataset_mapper import build_mapper
from alrp.engine import Trainer
from alrp.engine.lazy import set_lazy_self_balance_period

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "COCO-Detection"


class Row(NamedTuple):
    backbone: str
    size: int  # shorter side in test
    anchors: int  # per location
    learning_rate: float
    batch: int
    steps: tuple[int, int]  # epochs
    loss: str = "alrp"
    matcher: str = "ATSS"


ROWS = {
    "ap_retinanet_R_50_FPN_maxiou_100e": Row(
        "resnet50", 500, 6, 0.002, 32, (60, 80), "ap", "max_iou"
    ),
    "alrp_retinanet_R_50_FPN_maxiou_100e": Row(
        "resnet50", 500, 6, 0.008, 32, (60, 80), "alrp", "max_iou"
    ),
    "alrp_retinanet_R_50_FPN_ATSS_100e": Row("resnet50", 500, 2, 0.008, 32, (75, 95)),
    "alrp_retinanet_R_101_FPN_ATSS_100e": Row("resnet101", 500, 2, 0.008, 32, (75, 95)),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_100e": Row(
        "resnext101_64x4d", 500, 2, 0.008, 32, (75, 95)
    ),
    "alrp_retinanet_R_101_FPN_ATSS_800_100e": Row("resnet101", 800, 3, 0.004, 16, (75, 95)),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_800_100e": Row(
        "resnext101_64x4d", 800, 3, 0.004, 16, (75, 95)
    ),
    "alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e": Row(
        "resnext101_64x4d", 800, 3, 0.004, 16, (75, 95)
    ),
    "focal_foveabox_R_50_FPN_100e": Row("resnet50", 500, 1, 0.02, 32, (75, 95), "focal", "fovea"),
    "ap_foveabox_R_50_FPN_100e": Row("resnet50", 500, 1, 0.002, 32, (75, 95), "ap", "fovea"),
    "alrp_foveabox_R_50_FPN_100e": Row("resnet50", 500, 1, 0.008, 32, (75, 95), "alrp", "fovea"),
}
FOVEA = {name: row for name, row in ROWS.items() if row.matcher == "fovea"}
RETINA = {name: row for name, row in ROWS.items() if name not in FOVEA}
ONE_X = "alrp_retinanet_R_50_FPN_ATSS_1x"  # ours
ALL = [*ROWS, ONE_X]
# Two networks of 100 million parameters, several times.
WITH_SLOW = [pytest.param(n, marks=pytest.mark.slow) if "_101_" in n else n for n in ALL]


def load_yaml(name):
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def load_lazy(name):
    return LazyConfig.load(str(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize("name, row", ROWS.items(), ids=list(ROWS))
def test_published_numbers(name, row):
    cfg = load_yaml(name)
    per_epoch = math.ceil(117266 / row.batch)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (row.batch, row.learning_rate)
    assert solver.MAX_ITER == 100 * per_epoch
    assert solver.STEPS == tuple(epoch * per_epoch for epoch in row.steps)
    assert (solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (per_epoch, per_epoch)
    assert cfg.MODEL.WEIGHTS == f"torchvision://{row.backbone}"
    assert cfg.MODEL.ALRP.LOSS_TYPE == row.loss
    assert cfg.INPUT.AUGMENTATION == "published"
    assert cfg.INPUT.SQUARE_SIZE_TRAIN == {500: 512, 800: 800}[row.size]
    assert cfg.INPUT.MIN_SIZE_TEST == row.size
    assert cfg.INPUT.MAX_SIZE_TEST == {500: 833, 800: 1333}[row.size]


@pytest.mark.parametrize("name, row", RETINA.items(), ids=list(RETINA))
def test_published_anchors(name, row):
    cfg = load_yaml(name)
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ALRP.MATCHER) == ("ALRPRetinaNet", row.matcher)
    octaves = 2 if row.size == 500 else 3
    for sizes, stride in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, (8, 16, 32, 64, 128)):
        expected = [4 * stride * 2 ** (i / octaves) for i in range(octaves)]
        assert sizes == pytest.approx(expected, rel=1e-12)
    ratios = [0.5, 1.0, 2.0] if row.matcher == "max_iou" else [1.0]
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [ratios]
    assert octaves * len(ratios) == row.anchors
    assert cfg.MODEL.RETINANET.IOU_THRESHOLDS == [0.4, 0.5] and cfg.MODEL.ALRP.MIN_POS_IOU == 0


@pytest.mark.parametrize("name", FOVEA)
def test_published_foveabox(name):
    cfg = load_yaml(name)
    fovea = cfg.MODEL.FOVEABOX
    assert (cfg.MODEL.META_ARCHITECTURE, fovea.NUM_CLASSES) == ("FoveaBox", 80)
    assert fovea.BASE_EDGES == [16, 32, 64, 128, 256] and fovea.SIGMA == 0.4
    assert fovea.SCALE_RANGES == [[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]]
    assert fovea.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert (fovea.NUM_CONVS, fovea.NORM, fovea.PRIOR_PROB) == (4, "", 0.01)
    assert (fovea.FOCAL_LOSS_ALPHA, fovea.FOCAL_LOSS_GAMMA) == (0.4, 1.5)
    assert (fovea.SCORE_THRESH_TEST, fovea.NMS_THRESH_TEST) == (0.05, 0.5)
    assert (fovea.TOPK_CANDIDATES_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (1000, 100)
    alrp = cfg.MODEL.ALRP
    assert (alrp.SMOOTH_L1_BETA, alrp.DELTA, alrp.TAU) == (0.11, 1.0, 0.5)
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM, alrp.NORM_EVAL) == (2, "BN", True)
    solver = cfg.SOLVER
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.GAMMA) == (1e-4, 1e-4, 0.1)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.OPTIMIZER) == (500, 0.001, "SGD")


def test_one_x_is_the_schedule_and_the_images_of_detectron2():
    cfg = load_yaml(ONE_X)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.004)
    assert cfg.INPUT.AUGMENTATION == "detectron2"
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    sizes = (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    assert sizes == (1333, 800, 1333)


def build_both(name, device):
    """The model of each file from one seed, both in training mode."""
    cfg, lazy = load_yaml(name), load_lazy(name)
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 10
    set_lazy_self_balance_period(lazy.model, 10)
    models = []
    for build in (lambda: build_model(cfg), lambda: instantiate(lazy.model)):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(build().train())
    return models


# torchvision's counts without the classifier of 1000 classes.
_CLASSIFIER = 2048 * 1000 + 1000
PARAMETERS = {
    "resnet50": 25_557_032 - _CLASSIFIER,
    "resnet101": 44_549_160 - _CLASSIFIER,
    "resnext101_64x4d": 83_455_272 - _CLASSIFIER,
}


def parameters_by_hand(name):
    row = ROWS.get(name, Row("resnet50", 800, 3, 0.004, 16, (0, 0)))
    # FREEZE_AT 2 makes the batch norm of the stem and of the three blocks of res2 parameterless.
    width = 256 if "resnext" in row.backbone else 64
    frozen = 2 * (64 + 3 * (width + width + 256) + 256)
    conv = 256 * 256 * 9 + 256
    fpn = sum(c * 256 + 256 + conv for c in (512, 1024, 2048))
    p6_p7 = (2048 * 256 * 9 + 256) + conv
    outputs = sum(256 * 9 * row.anchors * n + row.anchors * n for n in (80, 4))
    offsets = 0
    if "DCN" in name:  # one 3x3 convolution to 9 * (dy, dx, mask) in each block of res3 to res5
        blocks = ((4, 512), (23, 1024), (3, 2048))
        offsets = sum(n * (c * 9 * 27 + 27) for n, c in blocks)
    return PARAMETERS[row.backbone] - frozen + fpn + p6_p7 + 8 * conv + outputs + offsets


@pytest.mark.parametrize("name", ALL)
def test_both_files_build_the_network_whose_parameters_were_counted_by_hand(name):
    models = build_both(name, "meta")
    of_yaml, of_lazy = (
        {
            n: (tuple(t.shape), t.dtype, t.requires_grad)
            for n, t in m.state_dict(keep_vars=True).items()
        }
        for m in models
    )
    assert of_yaml == of_lazy
    assert sum(p.numel() for p in models[0].parameters()) == parameters_by_hand(name)


@pytest.mark.parametrize("name", ALL)
def test_both_files_optimise_alike(name):
    cfg, lazy = load_yaml(name), load_lazy(name)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    lazy.optimizer.params.model = model
    optimizers = Trainer.build_optimizer(cfg, model), instantiate(lazy.optimizer)
    assert type(optimizers[0]).__mro__[-3] is type(optimizers[1]).__mro__[-3]
    settings = [
        {
            p: (g["lr"], g["momentum"], g["weight_decay"])
            for g in o.param_groups
            for p in g["params"]
        }
        for o in optimizers
    ]
    assert settings[0] == settings[1]
    assert set(settings[0].values()) == {(cfg.SOLVER.BASE_LR, 0.9, 1e-4)}

    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    periods = lazy.train.checkpointer.period, lazy.train.eval_period
    assert periods == (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    schedules = (
        build_lr_scheduler(cfg, optimizers[0]),
        LRMultiplier(optimizers[1], instantiate(lazy.lr_multiplier), lazy.train.max_iter),
    )
    first, second = cfg.SOLVER.STEPS
    iterations = (0, 250, 499, 500, first - 1, first, second - 1, second, cfg.SOLVER.MAX_ITER - 1)
    for iteration in iterations:
        rates = []
        for schedule in schedules:
            schedule.last_epoch = iteration
            rates.append(schedule.get_lr())
        assert rates[0] == pytest.approx(rates[1], rel=1e-6), iteration


@pytest.fixture
def record(tmp_path):
    """A dataset record with an image of noise, 90 x 60 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    box = {"bbox": [10, 10, 60, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "iscrowd": 0}
    size = {"height": 60, "width": 90, "image_id": 1}
    return {"file_name": str(tmp_path / "image.png"), "annotations": [box], **size}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    "name",
    ["alrp_retinanet_R_50_FPN_ATSS_100e", "alrp_retinanet_R_101_FPN_ATSS_800_100e", ONE_X],
)
def test_both_files_feed_the_same_images(name, is_train, record):
    cfg, lazy = load_yaml(name), load_lazy(name)
    mappers = (
        build_mapper(cfg, is_train),
        instantiate(lazy.dataloader["train" if is_train else "test"].mapper),
    )
    outputs = []
    for mapper in mappers:
        np.random.seed(3)
        outputs.append(mapper(copy.deepcopy(record)))
    assert torch.equal(outputs[0]["image"], outputs[1]["image"])
    if is_train:
        instances = [output["instances"] for output in outputs]
        assert torch.equal(instances[0].gt_boxes.tensor, instances[1].gt_boxes.tensor)
        assert torch.equal(instances[0].gt_classes, instances[1].gt_classes)


def image():
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0], [20.0, 8.0, 60.0, 60.0]]))
    instances.gt_classes = torch.tensor([0, 79])
    pixels = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1))
    return {"image": pixels.float(), "instances": instances, "height": 64, "width": 64}


def tame(model):
    """Without statistics of its own, batch norm lets a hundred random layers explode."""
    for name, tensor in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)
    return model


@pytest.mark.parametrize("name", WITH_SLOW)
def test_both_files_train_alike_and_infer(name):
    model, lazy_model = map(tame, build_both(name, "cpu"))
    losses, lazy_losses = model([image()]), lazy_model([image()])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert_close(lazy_losses, losses, rtol=0, atol=0)
    assert all(loss.item() > 0 for loss in losses.values())

    sum(losses.values()).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), parameter_name

    model.eval().test_score_thresh = 0.0  # an untrained network scores 0.01
    with torch.no_grad():
        detections = model([image()])[0]["instances"]
    assert len(detections) == 100
    assert detections.pred_boxes.tensor.isfinite().all()
