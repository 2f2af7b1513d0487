"""Every published row: its schedule and images, and YAML and Lazy files that agree."""

from __future__ import annotations

import copy
import math
import numpy as np
import pytest
import torch
from helpers.detectors import USUAL, assert_all_gradients_finite, train_step
from helpers.published_configs import (
    ALL,
    ONE_X,
    ROWS,
    RS_ROWS,
    build_both,
    each,
    load_lazy,
    load_yaml,
)
from helpers.rcnn_models import masked_image
from PIL import Image
from torch.testing import assert_close

from detectron2.config import instantiate
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.structures import BoxMode

from alrp.data.dataset_mapper import build_mapper
from alrp.engine import Trainer


@each(ROWS)
def test_published_numbers(name, row):
    cfg = load_yaml(name)
    solver, model, per_epoch = cfg.SOLVER, cfg.MODEL, math.ceil(117266 / row.batch)
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (row.batch, row.learning_rate)
    assert solver.MAX_ITER == 100 * per_epoch
    assert solver.STEPS == tuple(epoch * per_epoch for epoch in row.steps)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (500, 0.001, 0.1)
    assert solver.WARMUP_METHOD == "linear" and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.OPTIMIZER) == (1e-4, 1e-4, "SGD")
    assert solver.WEIGHT_DECAY_BIAS in (None, 1e-4) and not solver.CLIP_GRADIENTS.ENABLED
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    assert (solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (per_epoch, per_epoch)
    assert model.META_ARCHITECTURE == row.architecture
    assert model.WEIGHTS == f"torchvision://{row.backbone}"
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.INPUT.FORMAT == "RGB"
    assert model.PIXEL_STD == [58.395, 57.12, 57.375]
    depth = 50 if row.backbone == "resnet50" else 101
    assert (model.RESNETS.DEPTH, model.RESNETS.STRIDE_IN_1X1) == (depth, False)
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.BACKBONE.NORM_EVAL) == (
        2,
        "BN",
        True,
    )
    assert model.FPN.OUT_CHANNELS == 256
    assert (model.ALRP.DELTA, model.ALRP.TAU) == (0.0, 0.5)  # DELTA 0: as published
    balance = model.ALRP.SELF_BALANCE
    assert (balance.ENABLED, balance.INIT_WEIGHT, balance.PERIOD) == (True, 50.0, 0)
    if row.loss != "ce":
        assert model.ALRP.LOSS_TYPE == row.loss
    assert cfg.INPUT.AUGMENTATION == "published"
    assert cfg.INPUT.SQUARE_SIZE_TRAIN == {500: 512, 800: 800}[row.size]
    assert cfg.INPUT.MIN_SIZE_TEST == row.size
    assert cfg.INPUT.MAX_SIZE_TEST == {500: 833, 800: 1333}[row.size]
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


def test_one_x_is_the_schedule_and_the_images_of_detectron2():
    cfg = load_yaml(ONE_X)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (90000, (60000, 80000))
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.004)
    assert cfg.INPUT.AUGMENTATION == "detectron2"
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    sizes = (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    assert sizes == (1333, 800, 1333)


@each(RS_ROWS)
def test_published_numbers_of_rs_loss(name, row):
    cfg = load_yaml(name)
    solver, model = cfg.SOLVER, cfg.MODEL
    epochs = 12 if name.endswith("1x") else 36
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (16, row.learning_rate)
    assert solver.MAX_ITER == epochs * 7330
    assert solver.STEPS == tuple(epoch * 7330 for epoch in row.steps)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (500, 0.001, 0.1)
    assert (solver.WEIGHT_DECAY, solver.MOMENTUM, solver.OPTIMIZER) == (1e-4, 0.9, "SGD")
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert (model.BACKBONE.FREEZE_AT, model.BACKBONE.NORM_EVAL) == (2, True)
    assert model.WEIGHTS == f"torchvision://{row.backbone}"
    sides = (800,)
    if epochs == 36:
        sides = (480, 960) if "DCN" in name else (640, 800)
    assert cfg.INPUT.MIN_SIZE_TRAIN == sides and cfg.INPUT.MAX_SIZE_TRAIN == 1333
    assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == ("choice" if epochs == 12 else "range")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (800, 1333)
    alrp = model.ALRP
    assert (alrp.LOSS_TYPE, alrp.BOX_LOSS, alrp.DELTA, alrp.MATCHER) == ("rs", "", 0.0, "ATSS")
    assert (alrp.SELF_BALANCE.ENABLED, alrp.SELF_BALANCE.MODE) == (True, "")
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


# torchvision's counts without the classifier of 1000 classes.
_CLASSIFIER = 2048 * 1000 + 1000
PARAMETERS = {
    "resnet50": 25_557_032 - _CLASSIFIER,
    "resnet101": 44_549_160 - _CLASSIFIER,
    "resnext101_64x4d": 83_455_272 - _CLASSIFIER,
}
CONV = 256 * 256 * 9 + 256


def fpn_by_hand(channels):
    return sum(c * 256 + 256 + CONV for c in channels)


def dense_by_hand(name, row):
    is_rs = row.loss == "rs"
    p6_p7 = ((256 if is_rs else 2048) * 256 * 9 + 256) + CONV
    # Beside RS Loss: group norm behind convolutions without bias, and a factor for each level.
    towers = 8 * (CONV + 256) + 5 if is_rs else 8 * CONV
    outputs = sum(256 * 9 * row.anchors * n + row.anchors * n for n in (80, 4))
    return fpn_by_hand((512, 1024, 2048)) + p6_p7 + towers + outputs


def rcnn_by_hand(name, row):
    rpn = CONV + (256 * 3 + 3) + (256 * 12 + 12)
    box_head = (256 * 7 * 7 * 1024 + 1024) + (1024 * 1024 + 1024)
    num_scores = 81 if row.loss == "ce" else 80
    is_cascade = "cascade" in name
    num_values = 4 if is_cascade else 320
    box_head += (1024 * num_scores + num_scores) + (1024 * num_values + num_values)
    masks = 4 * CONV + (256 * 256 * 4 + 256) + (256 * 80 + 80) if "mask" in name else 0
    heads = rpn + (3 if is_cascade else 1) * box_head + masks
    return fpn_by_hand((256, 512, 1024, 2048)) + heads  # P6 is subsampled P5


def offsets_by_hand(name, row):
    """One 3x3 convolution to 9 * (dy, dx, mask) in each deformable block of res3 to res5."""
    if "DCN" not in name:
        return 0
    widening = 4 if "resnext" in row.backbone else 1
    blocks = ((4, 128), (23, 256), (3, 512))
    return sum(n * (widening * c * 9 * 27 + 27) for n, c in blocks)


def parameters_by_hand(name, row):
    # FREEZE_AT 2 makes the batch norm of the stem and of the three blocks of res2 parameterless.
    width = 256 if "resnext" in row.backbone else 64
    frozen = 2 * (64 + 3 * (width + width + 256) + 256)
    is_rcnn = row.architecture == "ThresholdedRCNN"
    rest = rcnn_by_hand(name, row) if is_rcnn else dense_by_hand(name, row)
    rest += offsets_by_hand(name, row)
    return PARAMETERS[row.backbone] - frozen + rest


@each(ALL)
def test_both_files_build_the_network_whose_parameters_were_counted_by_hand(name, row):
    models = build_both(name, "meta")
    of_yaml, of_lazy = (
        {
            n: (tuple(t.shape), t.dtype, t.requires_grad)
            for n, t in m.state_dict(keep_vars=True).items()
        }
        for m in models
    )
    assert of_yaml == of_lazy
    assert sum(p.numel() for p in models[0].parameters()) == parameters_by_hand(name, row)


@pytest.mark.parametrize("name", ALL)
def test_both_files_optimise_alike(name):
    cfg, lazy = load_yaml(name), load_lazy(name)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    lazy.optimizer.params.model = model
    optimizers = Trainer.build_optimizer(cfg, model), instantiate(lazy.optimizer)
    assert all(type(optimizer) is torch.optim.SGD for optimizer in optimizers)
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
@pytest.mark.parametrize("name", ALL)
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


def tame(model):
    """Without statistics of its own, batch norm lets a hundred random layers explode."""
    for name, tensor in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)
    return model


# Two networks of 100 million parameters, several times.
SLOW = [
    pytest.param(n, marks=pytest.mark.slow) if "_101_" in n or "rcnn" in n else n
    for n in ALL
    if not n.endswith("3x")  # which differ from others of RS Loss in their backbone only
]


@pytest.mark.parametrize("name", SLOW)
def test_both_files_train_alike_and_infer(name):
    is_rs = name in RS_ROWS
    models = list(map(tame, build_both(name, "cpu", small=is_rs)))
    if is_rs or name.startswith("alrp_faster_rcnn"):  # that of YAML makes, then replaces, a head
        models[1].load_state_dict(models[0].state_dict())
    batch = [masked_image(64, 96, USUAL, [0, 79])]
    losses, detections = [], []
    for model in models:
        heads = getattr(model, "roi_heads", None)
        if heads:  # else the box head of an untrained network need not have a positive
            heads.proposal_append_gt = True
        torch.manual_seed(1)  # cross entropy samples
        losses.append(train_step(model, batch)[0])
        assert_all_gradients_finite(model)
        # An untrained network scores 0.01.
        for part in model.modules():
            if hasattr(part, "test_score_thresh"):
                part.test_score_thresh = 0.0
        with torch.no_grad():
            detections.append(model.eval()(batch)[0]["instances"])
    expected = {"loss_cls", "loss_box_reg"}
    if "cascade" in name:
        expected = {f"{key}_stage{i}" for key in expected for i in range(3)}
    if "rcnn" in name:
        expected |= {"loss_rpn_cls", "loss_rpn_loc"}
    if "mask" in name:
        expected.add("loss_mask")
    assert set(losses[0]) == expected
    assert all(loss.item() > 0 for loss in losses[0].values())
    assert_close(losses[1], losses[0], rtol=0, atol=0)

    assert len(detections[0]) == 100
    boxes = [instances.pred_boxes.tensor for instances in detections]
    assert boxes[0].isfinite().all()
    assert_close(boxes[1], boxes[0], rtol=0, atol=0)
