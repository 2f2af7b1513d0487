"""What is published of each architecture: anchors, cells, heads, and how the box head starts."""

from __future__ import annotations

import pytest
import torch
from helpers.published_configs import each, load_lazy, load_yaml, rows_of

from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads

from alrp.engine.lazy import set_lazy_self_balance_period
from alrp.modeling import XavierConvFCHead

RCNN = rows_of("ThresholdedRCNN")


@each(rows_of("ALRPRetinaNet"))
def test_published_anchors(name, row):
    cfg = load_yaml(name)
    assert cfg.MODEL.ALRP.MATCHER == row.matcher
    octaves = 2 if row.size == 500 else 3
    for sizes, stride in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, (8, 16, 32, 64, 128)):
        expected = [4 * stride * 2 ** (i / octaves) for i in range(octaves)]
        assert sizes == pytest.approx(expected, rel=1e-12)
    ratios = [0.5, 1.0, 2.0] if row.matcher == "max_iou" else [1.0]
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [ratios]
    assert octaves * len(ratios) == row.anchors
    assert cfg.MODEL.ANCHOR_GENERATOR.OFFSET == 0.0
    assert cfg.MODEL.RETINANET.IOU_THRESHOLDS == [0.4, 0.5] and cfg.MODEL.ALRP.MIN_POS_IOU == 0


@pytest.mark.parametrize("name", rows_of("ALRPRetinaNet"))
def test_published_retinanet(name):
    cfg = load_yaml(name)
    retinanet = cfg.MODEL.RETINANET
    assert (retinanet.NUM_CLASSES, cfg.MODEL.ATSS.TOPK) == (80, 9)
    assert retinanet.BBOX_REG_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    assert (retinanet.NUM_CONVS, retinanet.NORM, retinanet.PRIOR_PROB) == (4, "", 0.01)
    assert (retinanet.SCORE_THRESH_TEST, retinanet.NMS_THRESH_TEST) == (0.05, 0.5)
    assert retinanet.TOPK_CANDIDATES_TEST == 1000


@pytest.mark.parametrize("name", rows_of("FoveaBox"))
def test_published_foveabox(name):
    cfg = load_yaml(name)
    fovea = cfg.MODEL.FOVEABOX
    assert fovea.NUM_CLASSES == 80
    if cfg.MODEL.ALRP.LOSS_TYPE != "alrp":  # which has no smooth L1
        assert cfg.MODEL.ALRP.SMOOTH_L1_BETA == 0.11
    assert fovea.BASE_EDGES == [16, 32, 64, 128, 256] and fovea.SIGMA == 0.4
    assert fovea.SCALE_RANGES == [[1, 64], [32, 128], [64, 256], [128, 512], [256, 2048]]
    assert fovea.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert (fovea.NUM_CONVS, fovea.NORM, fovea.PRIOR_PROB) == (4, "", 0.01)
    assert (fovea.FOCAL_LOSS_ALPHA, fovea.FOCAL_LOSS_GAMMA) == (0.4, 1.5)
    assert (fovea.SCORE_THRESH_TEST, fovea.NMS_THRESH_TEST) == (0.05, 0.5)
    assert fovea.TOPK_CANDIDATES_TEST == 1000


@pytest.mark.parametrize("name", RCNN)
def test_published_faster_rcnn(name):
    model = load_yaml(name).MODEL
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


@pytest.mark.parametrize("name", RCNN)
def test_both_files_start_the_box_head_with_the_published_spread(name):
    cfg, lazy = load_yaml(name), load_lazy(name)
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 10
    set_lazy_self_balance_period(lazy.model, 10)
    shapes = {f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in range(2, 7)}
    assert cfg.MODEL.ROI_BOX_HEAD.NAME == "XavierConvFCHead"
    for build in (lambda: build_roi_heads(cfg, shapes), lambda: instantiate(lazy.model.roi_heads)):
        torch.manual_seed(0)
        heads = build()
        assert type(heads.box_head) is XavierConvFCHead
        for layer in (heads.box_head.fc1, heads.box_head.fc2):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            assert 0.99 * bound < layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        predictor = heads.box_predictor
        for layer, spread in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
            assert layer.weight.std().item() == pytest.approx(spread, rel=0.02)
            assert not layer.bias.any()
