"""Detections of several versions of an image, of RetinaNet, FoveaBox and R-CNN."""

from __future__ import annotations

import math
import pytest
import torch
from helpers.detectors import FOVEABOX, HEADS, RETINANET, small_config
from torch.testing import assert_close

from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes, Instances

from alrp.modeling import DenseDetectorWithTTA, with_test_time_augmentation
from alrp.modeling.dense_inference import best_detections

HEIGHT, WIDTH = 64, 96
PIXELS = torch.randint(
    0, 256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
)
AUG = {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (HEIGHT,), "TEST.AUG.MAX_SIZE": 200}


def detector(base, **overrides):
    """A config with test-time augmentation, and its random model that finds much."""
    keys = {**AUG, f"MODEL.{HEADS[base]}.SCORE_THRESH_TEST": 0.009, **overrides}
    cfg = small_config(base, **keys)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)
    return cfg, model


EACH_DETECTOR = pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (RETINANET, {}),
        (RETINANET, {"MODEL.ALRP.LOSS_TYPE": "rs", "MODEL.ATSS.HEAD": True}),
        (RETINANET, {"MODEL.META_ARCHITECTURE": "RetinaNet"}),
        (FOVEABOX, {}),
    ],
)


def detect(model, pixels, **more):
    given = {"image": pixels, "height": 2 * HEIGHT, "width": 2 * WIDTH, "image_id": 1, **more}
    with torch.no_grad():
        instances = model([given])[0]["instances"]
    assert len(instances) > 5
    return instances


@EACH_DETECTOR
def test_boxes_of_a_mirrored_image_are_the_mirrored_boxes(base, overrides):
    cfg, model = detector(base, **overrides)
    with_flip = with_test_time_augmentation(cfg, model)
    found, mirrored = (detect(with_flip, pixels) for pixels in (PIXELS, PIXELS.flip(2)))
    expected = found.pred_boxes.tensor.clone()
    expected[:, [0, 2]] = 2 * WIDTH - expected[:, [2, 0]]
    assert_close(mirrored.pred_boxes.tensor, expected, rtol=0, atol=1e-3)
    assert_close(mirrored.scores, found.scores)
    assert torch.equal(mirrored.pred_classes, found.pred_classes)
    plain = detect(model, PIXELS).pred_boxes.tensor
    assert plain.shape != expected.shape or not torch.allclose(plain, found.pred_boxes.tensor)


@EACH_DETECTOR
def test_the_image_as_it_is_gives_the_detections_of_the_model(base, overrides):
    cfg, model = detector(base, **{"TEST.AUG.FLIP": False, **overrides})
    found, expected = (detect(m, PIXELS) for m in (with_test_time_augmentation(cfg, model), model))
    assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)


def test_candidates_are_what_an_nms_leaves_that_suppresses_nothing():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(500, 2, 2, generator=generator).sort(1).values.flatten(1)
    candidates = Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(64 * corners),
        scores=torch.randint(1, 50, (500,), generator=generator) / 50,  # with ties
        pred_classes=torch.randint(0, 3, (500,), generator=generator),
        number=torch.arange(500),
    )
    found, expected = (best_detections(candidates, limit, 400) for limit in (math.inf, 2.0))
    assert torch.equal(found.number, expected.number)


def test_boxes_of_an_enlarged_version_are_in_pixels_of_the_image():
    cfg, model = detector(
        RETINANET, **{"TEST.AUG.MIN_SIZES": (2 * HEIGHT,), "TEST.AUG.FLIP": False}
    )
    found = detect(with_test_time_augmentation(cfg, model), PIXELS)
    assert found.image_size == (2 * HEIGHT, 2 * WIDTH)
    enlarged = with_test_time_augmentation(cfg, model).tta_mapper(
        {"image": PIXELS, "height": HEIGHT, "width": WIDTH}
    )[0]["image"]
    assert_close(
        found.pred_boxes.tensor, detect(model, enlarged).pred_boxes.tensor, rtol=0, atol=1e-3
    )


def test_thresholds_cut_only_the_merged_detections():
    cfg, model = detector(RETINANET)
    with_flip = with_test_time_augmentation(cfg, model)
    every = detect(with_flip, PIXELS)
    model.shown.thresholds = torch.full((3,), float(every.scores.median()))
    assert torch.equal(detect(with_flip, PIXELS).scores, every.scores)  # an evaluation
    given = {"image": PIXELS, "height": 2 * HEIGHT, "width": 2 * WIDTH}
    shown = with_flip([given])[0]["instances"].scores
    assert torch.equal(shown, every.scores[every.scores >= every.scores.median()])
    assert model.test_nms_thresh == cfg.MODEL.RETINANET.NMS_THRESH_TEST


def test_an_r_cnn_is_left_to_detectron2():
    overrides = {
        "MODEL.META_ARCHITECTURE": "ThresholdedRCNN",
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    }
    cfg = small_config("Base-ALRP-RCNN-FPN.yaml", **overrides, **AUG)
    model = with_test_time_augmentation(cfg, build_model(cfg).eval())
    assert isinstance(model, GeneralizedRCNNWithTTA)
    found, mirrored = (detect(model, pixels) for pixels in (PIXELS, PIXELS.flip(2)))
    assert_close(mirrored.scores, found.scores)
    median = float(found.scores.median())
    model.model.shown.thresholds = torch.full((3,), median)
    with torch.no_grad():
        shown = model([{"image": PIXELS, "height": HEIGHT, "width": WIDTH}])[0]["instances"].scores
    assert torch.equal(shown, detect(model, PIXELS).scores[found.scores >= median])
    with pytest.raises(ValueError, match="got a ThresholdedRCNN; for an R-CNN"):
        DenseDetectorWithTTA(model.model, model.tta_mapper)
