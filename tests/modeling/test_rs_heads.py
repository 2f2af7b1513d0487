"""RS Loss in the heads gives the losses and gradients of the published ones."""

from __future__ import annotations

import copy
import pickle
import pytest
import torch
from helpers.detectors import (
    golden_anchors,
    golden_gradient_errors,
    golden_instances,
    golden_predictions,
)
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from alrp.modeling import (
    ALRPFastRCNNOutputLayers,
    ATSSMatcher,
    BoxDeltaTransform,
    IterationBalance,
    RSHeadLosses,
    anchor_losses,
    match_anchors,
)

TRANSFORM = BoxDeltaTransform((10.0, 10.0, 5.0, 5.0))
ATSS = ["rs_atss_random", "rs_atss_one_image_without_gt"]


def bridge(num_classes):
    return RSHeadLosses(num_classes=num_classes, self_balance=IterationBalance())


def run_dense(case, predictions, num_classes, gt_classes):
    """Losses of the stored predictions and assignment.

    Args:
        case: golden arrays.
        predictions: logits and deltas per level.
        num_classes: K.
        gt_classes: classes of the ground truth, per image.
    """
    logits, deltas = (
        [x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
        for levels, size in zip(predictions, (num_classes, 4))
    )
    labels, boxes = [], []
    for i, assigned in enumerate(torch.from_numpy(case["assigned_gt_inds"])):
        # 0 takes the last entry, background, and -1 the one before it, ignored.
        classes = torch.cat([gt_classes[i], torch.tensor([-1, num_classes])])
        padded = torch.cat([torch.from_numpy(case[f"gt_boxes_image{i}"]), torch.zeros(2, 4)])
        labels.append(classes[assigned - 1])
        boxes.append(padded[assigned - 1])
    return anchor_losses(
        bridge(num_classes),
        golden_anchors(case),
        logits,
        labels,
        deltas,
        boxes,
        box2box_transform=TRANSFORM,
    )


def run_atss(case):
    predictions = golden_predictions(case)
    classes = [torch.from_numpy(case[f"gt_labels_image{i}"]) for i in range(2)]
    losses = run_dense(case, predictions, int(case["num_classes"]), classes)
    sum(losses.values()).backward()
    return losses, predictions


@pytest.mark.parametrize("name", ATSS)
def test_published_atss_head(golden, name):
    case = golden(f"rs_heads/{name}")
    losses, predictions = run_atss(case)
    assert losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    assert max(golden_gradient_errors(case, predictions)) < 1e-5


def test_losses_can_be_copied_and_pickled(generator):
    """Weight averaging copies a detector; the published heads cannot be."""
    losses = bridge(2)
    logits = torch.randn(4, 2, generator=generator)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 5.0, 5.0]])
    expected = losses(logits, torch.tensor([2, 1, 2, 0]), boxes + 1, boxes)
    for other in (copy.deepcopy(losses), pickle.loads(pickle.dumps(losses))):
        assert other(logits, torch.tensor([2, 1, 2, 0]), boxes + 1, boxes) == expected


class CountingLosses(RSHeadLosses):
    """Counts the searches for positives, each of which waits for a GPU."""

    num_searches = 0

    def positive_rows(self, gt_classes):
        self.num_searches += 1
        return super().positive_rows(gt_classes)


def test_a_step_looks_for_the_positives_once():
    losses = CountingLosses(num_classes=2)
    box = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))
    classes, zeros = torch.tensor([1]), torch.zeros(1, 4)
    anchor_losses(
        losses,
        [box],
        [torch.zeros(1, 1, 2)],
        [classes],
        [zeros[None]],
        [box.tensor],
        box2box_transform=TRANSFORM,
    )
    assert losses.num_searches == 1
    head = ALRPFastRCNNOutputLayers(
        ShapeSpec(channels=8), num_classes=2, head_losses=losses, box2box_transform=TRANSFORM
    )
    proposals = Instances((9, 9), proposal_boxes=box, gt_boxes=box, gt_classes=classes)
    head.losses((torch.zeros(1, 2), zeros.repeat(1, 2)), [proposals])
    assert losses.num_searches == 2


def test_the_rows_of_the_positives_may_be_left_out(generator):
    logits, classes = torch.randn(4, 2, generator=generator), torch.tensor([2, 1, -1, 0])
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 5.0, 5.0]])
    losses = bridge(2)
    with_rows = losses(logits, classes, boxes + 1, boxes, rows=torch.tensor([1, 3]))
    assert losses(logits, classes, boxes + 1, boxes) == with_rows


@pytest.mark.parametrize("name", ATSS)
def test_published_atss_assignment_with_three_anchors_per_location(golden, name):
    case = golden(f"rs_heads/{name}")
    matched, labels = match_anchors(
        ATSSMatcher(9), golden_anchors(case), golden_instances(case), size_divisibility=32
    )
    expected = torch.from_numpy(case["assigned_gt_inds"])
    assert not case["assignment_sensitive"].any()
    for matched_i, labels_i, expected_i in zip(matched, labels, expected):
        assert torch.equal((matched_i + 1) * (labels_i == 1), expected_i)


def test_a_positive_without_overlap_stays_a_positive(golden):
    """The published code ranks it as a negative, against which its own box would be trained."""
    case = golden("rs_heads/rs_atss_zero_iou")
    losses, predictions = run_atss(case)
    assert all(loss.isfinite() for loss in losses.values())
    gradient = torch.cat([x.grad.permute(0, 2, 3, 1).reshape(-1, 5) for x in predictions[0]])
    rows = torch.from_numpy(case["pos_flat_index"])[torch.from_numpy(case["iou_targets"]) == 0]
    classes = torch.from_numpy(case["flat_labels"])[rows]
    # A negative is never pulled up; of these, the one that must sink is sorted below better boxes.
    assert len(rows) == 6 and (gradient[rows, classes] < 0).sum() == 5


def test_published_rpn_head(golden):
    case = golden("rs_heads/rs_rpn_random")
    predictions = golden_predictions(case)
    classes = [torch.zeros(len(case[f"gt_boxes_image{i}"]), dtype=torch.int64) for i in range(2)]
    losses = run_dense(case, predictions, 1, classes)
    (0.2 * sum(losses.values())).backward()  # MODEL.RPN.LOSS_WEIGHT
    assert 0.2 * losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert 0.2 * losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    assert max(golden_gradient_errors(case, predictions)) < 1e-5


def test_an_rpn_without_ground_truth_has_losses_of_zero(golden):
    """The published code reports 1 there, which is no error of any prediction."""
    case = golden("rs_heads/rs_rpn_no_gt_at_all")
    predictions = golden_predictions(case)
    losses = run_dense(case, predictions, 1, [torch.zeros(0, dtype=torch.int64)] * 2)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert not any(x.grad.any() for levels in predictions for x in levels)


def run_box_head(case):
    """Losses of the stored predictions, which are returned as leaves."""
    num_classes = int(case["num_classes"])
    head = ALRPFastRCNNOutputLayers(
        ShapeSpec(channels=8),
        num_classes=num_classes,
        head_losses=bridge(num_classes),
        box2box_transform=TRANSFORM,
    )
    proposals = Instances(
        (192, 256),
        proposal_boxes=Boxes(torch.from_numpy(case["rois"][:, 1:])),
        gt_classes=torch.from_numpy(case["labels"]),
        gt_boxes=Boxes(torch.from_numpy(case["bbox_targets"])),
    )
    leaves = [torch.from_numpy(case[k]).requires_grad_() for k in ("cls_score", "bbox_pred")]
    with EventStorage():
        losses = head.losses(tuple(leaves), [proposals])
    sum(losses.values()).backward()
    return losses, leaves


def test_published_box_head(golden):
    case = golden("rs_heads/rs_bbox_head_random")
    losses, leaves = run_box_head(case)
    assert losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    for leaf, key in zip(leaves, ("grad_cls_score", "grad_bbox_pred")):
        expected = torch.from_numpy(case[key])
        assert (leaf.grad - expected).norm() / expected.norm() < 1e-5


def test_a_box_head_without_positives_has_losses_of_zero(golden):
    """The published code reports 1 there, as in the RPN."""
    losses, leaves = run_box_head(golden("rs_heads/rs_bbox_head_no_positive"))
    assert all(loss == 0 for loss in losses.values())
    assert not any(leaf.grad.any() for leaf in leaves)


def test_the_balance_is_the_published_weight(golden):
    case = golden("rs_heads/rs_atss_random")
    values = [torch.tensor(float(case[k])) for k in ("loss_cls", "loss_bbox_before_sb")]
    expected = torch.tensor(float(case["sb_weight"]))
    assert_close(IterationBalance()(*values), expected, rtol=1e-5, atol=0)
