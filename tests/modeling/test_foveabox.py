"""FoveaBox as a Detectron2 meta-architecture: targets, losses, inference, state."""

from __future__ import annotations

import pytest
import torch
from helpers.detectors import (
    FOVEABOX,
    USUAL,
    NoBackbone,
    assert_all_gradients_finite,
    golden_gradient_errors,
    golden_instances,
    golden_predictions,
    image,
    small_config,
    small_model,
    train_step,
)
from torch import nn
from torch.testing import assert_close

from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from alrp.errors import UserError
from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPHeadLosses,
    APHeadLosses,
    FocalHeadLosses,
    FoveaBox,
    FoveaMatcher,
    PointBoxTransform,
)

CASES = ["alrp_fovea_random", "alrp_fovea_one_image_only", "ap_fovea_random", "fovea_focal_random"]
LOSSES = ["alrp", "ap", "rs", "focal"]
BATCH = [image(64, 96, USUAL, [0, 2]), image(64, 96)]


def golden_model(case, name):
    num_classes = int(case["num_classes"])
    if name.startswith("alrp"):
        losses = ALRPHeadLosses(num_classes=num_classes, self_balance=SelfBalance(period=1000))
    else:
        losses_class = APHeadLosses if name.startswith("ap") else FocalHeadLosses
        losses = losses_class(num_classes=num_classes, smooth_l1_beta=0.11)
    strides = case["strides"].tolist()
    return FoveaBox(
        backbone=NoBackbone(),
        head=nn.Identity(),
        head_in_features=[f"p{i}" for i in range(3, 8)],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[float(edge)] for edge in case["base_edge_list"]],
            aspect_ratios=[1.0],
            strides=strides,
            offset=0.5,
        ),
        box2box_transform=PointBoxTransform(),
        matcher=FoveaMatcher(strides, case["scale_ranges"].tolist(), float(case["sigma"])),
        num_classes=num_classes,
        head_losses=losses,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )


def golden_targets(case, name):
    """The model, its anchors, and the labels and boxes of all cells of a case."""
    model = golden_model(case, name)
    grids = [tuple(grid) for grid in case["feature_sizes"].tolist()]
    anchors = model.anchor_generator([torch.zeros(1, 1, *grid) for grid in grids])
    return model, anchors, *model.label_cells(grids, golden_instances(case))


def in_flat_order(per_image, anchors):
    """Values (R, ...) per image to rows by level, then image."""
    split = [x.split([len(a) for a in anchors]) for x in per_image]
    return torch.cat([level for levels in zip(*split) for level in levels])


@pytest.mark.parametrize("name", CASES)
def test_published_targets(golden, name):
    case = golden(name)
    model, anchors, labels, boxes = golden_targets(case, name)
    for level, (stride, level_anchors) in enumerate(zip(case["strides"], anchors)):
        points = torch.from_numpy(case[f"points_xy_level{level}"])
        assert torch.equal(level_anchors.get_centers(), points * int(stride))

    flat_labels = in_flat_order(labels, anchors)
    assert torch.equal(flat_labels, torch.from_numpy(case["flat_labels"]))
    positive = (flat_labels < model.num_classes).nonzero().flatten()
    assert torch.equal(positive, torch.from_numpy(case["pos_flat_index"]))
    all_anchors = in_flat_order([Boxes.cat(anchors).tensor] * len(labels), anchors)
    deltas = model.box2box_transform.get_deltas(
        all_anchors[positive], in_flat_order(boxes, anchors)[positive]
    )
    # Two units in the last place, as the logarithm depends on the processor.
    assert_close(deltas, torch.from_numpy(case["pos_box_targets"]), rtol=2.4e-7, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_published_losses_and_gradients(golden, name):
    case = golden(name)
    model, anchors, labels, boxes = golden_targets(case, name)
    predictions = golden_predictions(case)
    logits, deltas = model._transpose_dense_predictions(predictions, [model.num_classes, 4])
    losses = model.losses(anchors, logits, labels, deltas, boxes)
    sum(losses.values()).backward()

    assert losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    assert max(golden_gradient_errors(case, predictions)) < 1e-5


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize(
    "batch",
    [
        [image(64, 96), image(64, 64)],
        [image(64, 96, [[22, 22, 26, 26]], [1])],  # between the centres of four cells
        [image(64, 96, [[40, 20, 40.5, 20.5], [10, 10, 10, 40]], [1, 1])],  # in no range
    ],
    ids=["no_gt", "between_centres", "in_no_range"],
)
def test_a_batch_without_positives_trains_through(loss_type, batch):
    model = small_model(FOVEABOX, **{"MODEL.ALRP.LOSS_TYPE": loss_type})
    losses, _ = train_step(model, batch)
    assert losses["loss_box_reg"] == 0
    assert (losses["loss_cls"] > 0) == (loss_type == "focal")  # which also lowers negatives
    assert_all_gradients_finite(model)
    assert not model.head.bbox_pred.weight.grad.any()
    assert model.head.cls_score.weight.grad.any() == (loss_type == "focal")


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 500.0])
def test_overflowing_boxes_of_negative_cells_do_not_matter(golden, loss_type, value):
    case = golden("alrp_fovea_random")
    model, anchors, labels, boxes = golden_targets(case, loss_type)
    gradients = []
    for spoilt in (False, True):
        logits, deltas = golden_predictions(case)
        levels = model._transpose_dense_predictions([logits, deltas], [model.num_classes, 4])
        if spoilt:  # every second of the negative cells
            starts = torch.tensor([len(a) for a in anchors]).cumsum(0).tolist()
            per_level = zip(*(x.tensor_split(starts[:-1]) for x in labels))
            for level, level_labels in zip(levels[1], per_level):
                negative = (torch.stack(level_labels) == model.num_classes).nonzero()[::2]
                level.data[negative[:, 0], negative[:, 1]] = value
        losses = model.losses(anchors, levels[0], labels, levels[1], boxes)
        sum(losses.values()).backward()
        gradients.append(torch.cat([x.grad.flatten() for x in deltas]))
    assert gradients[0].any() and torch.equal(gradients[0], gradients[1])


def test_the_focal_loss_is_divided_by_positives_and_images_and_smooth_l1_by_positives():
    losses = FocalHeadLosses(num_classes=2, alpha=0.4, gamma=1.5, smooth_l1_beta=0.11)
    # The third row is ignored. At logit 0 an entry costs (1/2)^1.5 log 2, times alpha or 1 - alpha.
    logits, gt_classes = torch.zeros(3, 2), torch.tensor([1, 2, -1])
    predicted, expected = torch.tensor([[1.0, 2, 0.05, 0]]), torch.zeros(1, 4)
    result = losses(logits, gt_classes, predicted, expected, num_images=3)
    entry = 0.5**1.5 * torch.tensor(2.0).log()
    assert_close(result["loss_cls"], (0.4 + 3 * 0.6) * entry / (1 + 3))
    assert_close(result["loss_box_reg"], torch.tensor(1 + 2 - 0.11 + 0.5 * 0.05**2 / 0.11))


def test_of_each_level_the_best_cells_pass_with_all_their_classes():
    model = small_model(FOVEABOX)
    model.test_topk_candidates = 2
    anchors = Boxes(torch.tensor([[0.0, 0, 16, 16], [8, 0, 24, 16], [16, 0, 32, 16]]))
    scores = torch.tensor([[0.9, 0.2, 0.01], [0.6, 0.5, 0.4], [0.55, 0.54, 0.53]])
    result = model._decode_multi_level_predictions(
        [anchors], [scores], [torch.zeros(3, 4)], 0.05, 2, (20, 30)
    )
    assert_close(result.scores, torch.tensor([0.9, 0.2, 0.6, 0.5, 0.4]))
    # One base edge to every side, clipped to [0, 29] x [0, 19].
    assert_close(result.pred_boxes.tensor[0], torch.tensor([0.0, 0, 24, 19]))
    assert_close(result.pred_boxes.tensor[2], torch.tensor([0.0, 0, 29, 19]))


def test_the_head_has_the_names_that_published_checkpoints_are_converted_to():
    cfg = small_config(FOVEABOX, **{"MODEL.FOVEABOX.NUM_CONVS": 4})
    names = {n.rsplit(".", 1)[0] for n in build_model(cfg).state_dict() if n.startswith("head.")}
    towers = {f"head.{tower}.{i}" for tower in ("cls_subnet", "bbox_subnet") for i in (0, 2, 4, 6)}
    assert names == towers | {"head.cls_score", "head.bbox_pred"}


def test_two_levels_need_no_coarse_ones():
    """A level that is not read would be a parameter without gradient."""
    overrides = {
        "MODEL.FOVEABOX.IN_FEATURES": ["p3", "p4"],
        "MODEL.FOVEABOX.BASE_EDGES": [16.0, 48.0],
        "MODEL.FOVEABOX.SCALE_RANGES": [[1.0, 48.0], [32.0, 128.0]],
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4"],
        "MODEL.FPN.IN_FEATURES": ["res3", "res4"],
    }
    model = small_model(FOVEABOX, **overrides)
    train_step(model, BATCH)
    assert_all_gradients_finite(model)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("BASE_EDGES", [16.0], r"BASE_EDGES must have one entry .* 5 features .* but is \[16.0\]"),
        ("SCALE_RANGES", [[1.0, 64.0]], "SCALE_RANGES must have one entry"),
        ("SCALE_RANGES", [[64.0, 1.0]] * 5, r"pairs \[least, greatest\]"),
        ("SIGMA", 0.0, r"sigma must be in \(0, 1\], but is 0.0"),
    ],
)
def test_a_mistaken_geometry_is_explained(key, value, message):
    with pytest.raises(UserError, match=message):
        small_model(FOVEABOX, **{f"MODEL.FOVEABOX.{key}": value})


def test_an_unknown_loss_lists_the_choices_of_a_foveabox():
    with pytest.raises(UserError, match='"alrp" or "ap", or for a FoveaBox also "focal", but is'):
        small_model(FOVEABOX, **{"MODEL.ALRP.LOSS_TYPE": "hinge"})
