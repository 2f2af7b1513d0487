"""The published Faster R-CNN rows: numbers, networks, and YAML and Lazy files that agree."""

from __future__ import annotations

import math
from pathlib import Path
import pytest
import torch
from detectors import image, train_step
from torch.testing import assert_close

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler

from alrp.config import add_alrp_config
from alrp.engine import Trainer
from alrp.engine.lazy import set_lazy_self_balance_period

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "COCO-Detection"
LEARNING_RATES = {
    "ce_faster_rcnn_R_50_FPN_100e": 0.04,
    "ce_giou_faster_rcnn_R_50_FPN_100e": 0.04,
    "alrp_faster_rcnn_R_50_FPN_100e": 0.012,
}
each_row = pytest.mark.parametrize("name", LEARNING_RATES)


def load_yaml(name):
    cfg = get_cfg()
    add_alrp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def load_lazy(name):
    return LazyConfig.load(str(CONFIGS / f"{name}.py"))


@each_row
def test_published_numbers(name):
    cfg = load_yaml(name)
    per_epoch = math.ceil(117266 / 32)
    solver, model = cfg.SOLVER, cfg.MODEL
    assert (solver.IMS_PER_BATCH, solver.BASE_LR) == (32, LEARNING_RATES[name])
    assert (solver.MAX_ITER, solver.STEPS) == (100 * per_epoch, (75 * per_epoch, 95 * per_epoch))
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (500, 0.001, 0.1)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.OPTIMIZER) == (1e-4, 1e-4, "SGD")
    assert model.WEIGHTS == "torchvision://resnet50"
    assert model.PIXEL_MEAN == [123.675, 116.28, 103.53] and cfg.INPUT.FORMAT == "RGB"
    assert model.PIXEL_STD == [58.395, 57.12, 57.375]
    assert (model.RESNETS.DEPTH, model.RESNETS.STRIDE_IN_1X1) == (50, False)
    assert (model.BACKBONE.FREEZE_AT, model.RESNETS.NORM, model.ALRP.NORM_EVAL) == (2, "BN", True)
    assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.SQUARE_SIZE_TRAIN) == ("published", 512)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (500, 833)
    assert (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.EVAL_PERIOD) == (100, per_epoch)

    sizes, ratios = model.ANCHOR_GENERATOR.SIZES, model.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert sizes == [[8.0 * stride] for stride in (4, 8, 16, 32, 64)]
    assert (ratios, model.ANCHOR_GENERATOR.OFFSET) == ([[0.5, 1.0, 2.0]], 0.0)
    rpn, heads, box_head = model.RPN, model.ROI_HEADS, model.ROI_BOX_HEAD
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST) == (2000, 1000)
    assert (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST, rpn.NMS_THRESH) == (1000, 1000, 0.7)
    assert (rpn.IOU_THRESHOLDS, heads.IOU_THRESHOLDS) == ([0.3, 0.7], [0.5])
    assert (box_head.NUM_FC, box_head.FC_DIM, box_head.POOLER_RESOLUTION) == (2, 1024, 7)
    assert (box_head.POOLER_TYPE, box_head.POOLER_SAMPLING_RATIO) == ("ROIAlignV2", 0)
    assert box_head.BBOX_REG_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    assert not box_head.CLS_AGNOSTIC_BBOX_REG
    assert (heads.NUM_CLASSES, heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST) == (80, 0.05, 0.5)


@pytest.mark.parametrize("loss", ["ce", "ce_giou"])
def test_numbers_of_cross_entropy(loss):
    model = load_yaml(f"{loss}_faster_rcnn_R_50_FPN_100e").MODEL
    rpn, heads, box_head = model.RPN, model.ROI_HEADS, model.ROI_BOX_HEAD
    assert (model.PROPOSAL_GENERATOR.NAME, heads.NAME) == ("RPN", "StandardROIHeads")
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.LOSS_WEIGHT) == (256, 0.5, 1.0)
    assert (rpn.BBOX_REG_LOSS_TYPE, rpn.SMOOTH_L1_BETA) == ("smooth_l1", 0.0)  # L1
    assert rpn.BBOX_REG_WEIGHTS == (1.0, 1.0, 1.0, 1.0)
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION) == (512, 0.25)
    assert heads.PROPOSAL_APPEND_GT and box_head.SMOOTH_L1_BETA == 0.0
    box_loss = (box_head.BBOX_REG_LOSS_TYPE, box_head.BBOX_REG_LOSS_WEIGHT)
    assert box_loss == (("giou", 10.0) if loss == "ce_giou" else ("smooth_l1", 1.0))


def test_numbers_of_alrp():
    model = load_yaml("alrp_faster_rcnn_R_50_FPN_100e").MODEL
    assert (model.PROPOSAL_GENERATOR.NAME, model.ROI_HEADS.NAME) == ("ALRPRPN", "ALRPROIHeads")
    assert (model.RPN.HEAD_NAME, model.RPN.LOSS_WEIGHT) == ("PriorRPNHead", 0.2)
    assert model.RPN.BBOX_REG_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    assert not model.ROI_HEADS.PROPOSAL_APPEND_GT
    assert (model.ALRP.LOSS_TYPE, model.ALRP.DELTA, model.ALRP.TAU) == ("alrp", 1.0, 0.5)


def build_both(name, device):
    cfg, lazy = load_yaml(name), load_lazy(name)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 10
    set_lazy_self_balance_period(lazy.model, 10)
    with torch.device(device):
        return build_model(cfg).train(), instantiate(lazy.model).train()


def parameters_by_hand(name):
    # torchvision's count without the classifier of 1000 classes, and without the batch norm of the
    # stem and of the three blocks of res2, which FREEZE_AT 2 makes parameterless.
    r50 = 25_557_032 - (2048 * 1000 + 1000)
    r50 -= 2 * (64 + 3 * (64 + 64 + 256) + 256)
    conv = 256 * 256 * 9 + 256
    fpn = sum(c * 256 + 256 + conv for c in (256, 512, 1024, 2048))  # P6 is subsampled P5
    rpn = conv + (256 * 3 + 3) + (256 * 12 + 12)
    box_head = (256 * 7 * 7 * 1024 + 1024) + (1024 * 1024 + 1024)
    num_scores = 80 if name.startswith("alrp") else 81
    outputs = (1024 * num_scores + num_scores) + (1024 * 320 + 320)
    return r50 + fpn + rpn + box_head + outputs


@each_row
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


@each_row
def test_both_files_optimise_alike(name):
    cfg, lazy = load_yaml(name), load_lazy(name)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    lazy.optimizer.params.model = model
    optimizers = Trainer.build_optimizer(cfg, model), instantiate(lazy.optimizer)
    schedules = (
        build_lr_scheduler(cfg, optimizers[0]),
        LRMultiplier(optimizers[1], instantiate(lazy.lr_multiplier), lazy.train.max_iter),
    )
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    for iteration in (0, 250, 500, *cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER - 1):
        rates = []
        for schedule in schedules:
            schedule.last_epoch = iteration
            rates.append(schedule.get_lr())
        assert rates[0] == pytest.approx(rates[1], rel=1e-6), iteration


@pytest.mark.slow
@each_row
def test_both_files_train_alike_and_infer(name):
    torch.manual_seed(0)
    model, lazy_model = build_both(name, "cpu")
    for norm_weight, tensor in model.state_dict().items():
        if norm_weight.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)  # without statistics of its own, batch norm lets layers explode
    lazy_model.load_state_dict(model.state_dict())
    batch = [image(64, 64, [[5, 5, 40, 50], [20, 8, 60, 60]], [0, 79])]
    results = []
    for either in (model, lazy_model):
        torch.manual_seed(1)  # cross entropy samples
        results.append(train_step(either, batch)[0])
    assert_close(results[1], results[0], rtol=0, atol=0)
    assert set(results[0]) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), parameter_name

    detections = []
    for either in (model, lazy_model):
        either.eval().roi_heads.box_predictor.test_score_thresh = 0.0
        with torch.no_grad():
            detections.append(either(batch)[0]["instances"])
    assert len(detections[0]) == 100
    boxes = [d.pred_boxes.tensor for d in detections]
    assert_close(boxes[0], boxes[1], rtol=0, atol=0)
