"""Stored predictions and assignments give the losses and gradients of the published heads."""

from __future__ import annotations

import math
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage

from alrp.config import load_config
from alrp.errors import UserError
from alrp.losses import SelfBalance, localization_error
from alrp.modeling.box_regression import BoxDeltaTransform, decode_in_anchor_frame
from alrp.modeling.head_losses import ALRPHeadLosses, APHeadLosses, build_head_losses

ALRP = [
    "alrp_retina_atss_crowded",
    "alrp_retina_atss_random",
    "alrp_retina_atss_single_scale",
    "alrp_retina_maxiou_classes80",
    "alrp_retina_maxiou_different_pad_shapes",
    "alrp_retina_maxiou_one_image_without_gt",
    "alrp_retina_maxiou_random",
]
AP = ["ap_retina_random"]
LEVELS, IMAGES = range(5), range(2)
CLAMP = math.log(1000 / 16)
TRANSFORM = BoxDeltaTransform((10.0, 10.0, 5.0, 5.0))


class Head:
    """Inputs of one stored head in flat order: level, image, y, x, anchor."""

    def __init__(self, case, device="cpu"):
        self.case, self.device = case, device
        self.num_classes = int(case["num_classes"])
        self.logits = [self.leaf(f"cls_score_level{i}") for i in LEVELS]
        self.deltas = [self.leaf(f"bbox_pred_level{i}") for i in LEVELS]
        labels = self.tensor("flat_labels")
        self.gt_classes = torch.where(self.tensor("flat_label_weights") == 0, -1, labels)
        self.positive = (self.gt_classes >= 0) & (self.gt_classes < self.num_classes)

    def tensor(self, key):
        return torch.from_numpy(self.case[key]).to(self.device)

    def leaf(self, key):
        return self.tensor(key).requires_grad_()

    def rows(self, levels, columns):
        """(N, A*C, H, W) per level to (Q, C)."""
        return torch.cat([x.permute(0, 2, 3, 1).reshape(-1, columns) for x in levels])

    def flat(self, per_image):
        """Per-image values (n, ...) of all images to flat order."""
        sizes = self.case["num_anchors_per_level"].tolist()
        split = [torch.as_tensor(x).to(self.device).split(sizes) for x in per_image]
        return torch.cat([split[i][level] for level in LEVELS for i in IMAGES])

    def positive_anchors(self):
        return self.flat([self.case["anchors"] for _ in IMAGES])[self.positive]

    def positive_gt_boxes(self):
        """The box of each positive, from the stored assignment; (P, 4) pixels."""
        boxes = []
        for i in IMAGES:
            gt = np.concatenate([self.case[f"gt_boxes_image{i}"], np.zeros((1, 4), np.float32)])
            boxes.append(gt[np.maximum(self.case["assigned_gt_inds"][i], 0) - 1])
        return self.flat(boxes)[self.positive]

    def positive_deltas(self):
        return self.rows(self.deltas, 4)[self.positive]

    def gradient_errors(self):
        """Relative error in norm of the gradients of all logits and of all deltas."""
        pairs = (("grad_cls_score_level", self.logits), ("grad_bbox_pred_level", self.deltas))
        errors = []
        for key, leaves in pairs:
            actual = torch.cat([x.grad.flatten() for x in leaves]).double()
            expected = torch.cat([self.tensor(f"{key}{i}").flatten() for i in LEVELS]).double()
            errors.append(((actual - expected).norm() / expected.norm()).item())
        return errors


def run_alrp(head, self_balance):
    bridge = ALRPHeadLosses(num_classes=head.num_classes, self_balance=self_balance)
    pred, target = decode_in_anchor_frame(
        TRANSFORM, head.positive_deltas(), head.positive_anchors(), head.positive_gt_boxes()
    )
    with EventStorage():
        losses = bridge.to(head.device)(
            head.rows(head.logits, head.num_classes), head.gt_classes, pred, target
        )
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("name", ALRP)
def test_alrp_head_gives_the_published_losses_and_gradients(golden, name, device):
    head = Head(golden(name), device)
    losses = run_alrp(head, SelfBalance(period=3665))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert losses["loss_cls"] == pytest.approx(float(head.case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"] == pytest.approx(float(head.case["loss_bbox"]), rel=1e-5)
    assert max(head.gradient_errors()) <= 1e-5


@pytest.mark.parametrize("name", ALRP)
def test_without_self_balance_the_localisation_loss_is_unweighted(golden, name):
    head = Head(golden(name))
    losses = run_alrp(head, None)
    expected = float(head.case["loss_bbox_before_sb"])
    assert losses["loss_box_reg"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALRP)
def test_positives_decode_into_the_published_anchor_frame(golden, name, device):
    head = Head(golden(name), device)
    place = head.positive.nonzero().flatten()
    assert_close(place, head.tensor("pos_flat_index"), rtol=0, atol=0)
    pred, target = decode_in_anchor_frame(
        TRANSFORM, head.positive_deltas(), head.positive_anchors(), head.positive_gt_boxes()
    )
    assert_close(pred.detach(), head.tensor("pos_pred_boxes"), rtol=1e-6, atol=2e-6)
    assert_close(target, head.tensor("pos_target_boxes"), rtol=1e-6, atol=2e-6)
    errors = localization_error(pred, target, tau=0.5)
    assert_close(errors.detach(), head.tensor("giou_loss"), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", AP)
def test_ap_head_gives_the_published_losses_and_gradients(golden, name, device):
    head = Head(golden(name), device)
    bridge = APHeadLosses(num_classes=head.num_classes, smooth_l1_beta=1.0)
    with EventStorage():
        losses = bridge(
            head.rows(head.logits, head.num_classes),
            head.gt_classes,
            head.positive_deltas(),
            head.tensor("pos_target_deltas"),
        )
    sum(losses.values()).backward()
    assert losses["loss_cls"].item() == pytest.approx(float(head.case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(head.case["loss_bbox"]), rel=1e-5)
    assert max(head.gradient_errors()) <= 1e-5


@pytest.mark.parametrize("name", ALRP + AP)
def test_stored_assignment_and_anchors_give_the_stored_targets(golden, name):
    """The inputs above are put together rightly: their encoding is the published one."""
    head = Head(golden(name))
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    deltas = transform.get_deltas(head.positive_anchors(), head.positive_gt_boxes())
    assert_close(deltas, head.tensor("pos_target_deltas"), rtol=1e-5, atol=1e-5)


def test_frame_of_decoded_boxes_is_the_unit_anchor():
    anchors = torch.tensor([[10.0, 20, 30, 60], [0, 0, 8, 8]])
    gt_boxes = torch.tensor([[10.0, 20, 30, 60], [4, 0, 20, 8]])
    pred, target = decode_in_anchor_frame(TRANSFORM, torch.zeros(2, 4), anchors, gt_boxes)
    assert_close(pred, torch.tensor([[-0.5, -0.5, 0.5, 0.5]]).expand(2, 4))
    assert_close(target, torch.tensor([[-0.5, -0.5, 0.5, 0.5], [0, -0.5, 2, 0.5]]))


def test_weights_divide_the_deltas():
    deltas = torch.tensor([[1.0, 2.0, math.log(2.0), 0.0]])
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    pred, _ = decode_in_anchor_frame(
        BoxDeltaTransform((2.0, 4.0, 1.0, 1.0)), deltas, anchors, anchors
    )
    assert_close(pred, torch.tensor([[0.5 - 1, 0.5 - 0.5, 0.5 + 1, 0.5 + 0.5]]))


@pytest.mark.parametrize("sign", [1, -1])
def test_sides_are_clamped_on_both_ends_without_gradient(sign):
    deltas = torch.tensor([[0.0, 0.0, sign * 100.0, 0.0]], requires_grad=True)
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    pred, _ = decode_in_anchor_frame(TRANSFORM, deltas, anchors, anchors)
    assert_close((pred[0, 2] - pred[0, 0]).detach(), torch.tensor(math.exp(sign * CLAMP)))
    pred[0, 2].backward()
    assert deltas.grad[0, 2] == 0 and deltas.grad[0, 0] != 0


def test_targets_are_clamped_like_predictions():
    anchors = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1000, 1000]])
    gt_boxes = torch.tensor([[0.0, 0, 100, 1], [500, 500, 501, 501]])  # 100 and 1/1000 anchors wide
    _, target = decode_in_anchor_frame(TRANSFORM, torch.zeros(2, 4), anchors, gt_boxes)
    widths = target[:, 2] - target[:, 0]
    assert_close(widths, torch.tensor([1000 / 16, 16 / 1000]), rtol=1e-5, atol=0)


def test_decoding_equals_detectron2_in_pixels(generator):
    """Away from the clamp, the boxes are those of Box2BoxTransform seen from the anchor."""
    corners = 100 * torch.rand(20, 2, generator=generator)
    anchors = torch.cat([corners, corners + 5 + 50 * torch.rand(20, 2, generator=generator)], 1)
    deltas = 2 * torch.randn(20, 4, generator=generator)
    pixels = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).apply_deltas(deltas, anchors)
    centres = (anchors[:, :2] + anchors[:, 2:]).repeat(1, 2) / 2
    sides = (anchors[:, 2:] - anchors[:, :2]).repeat(1, 2)
    for result in (0, 1):  # as predictions, and as targets
        boxes = [deltas, anchors, anchors if result == 0 else pixels]
        decoded = decode_in_anchor_frame(TRANSFORM, *boxes)[result]
        assert_close(decoded, (pixels - centres) / sides, rtol=1e-5, atol=1e-5)


def test_no_positives_decode_to_nothing():
    deltas = torch.zeros(0, 4, requires_grad=True)
    pred, target = decode_in_anchor_frame(TRANSFORM, deltas, torch.zeros(0, 4), torch.zeros(0, 4))
    assert pred.shape == target.shape == (0, 4)
    pred.sum().backward()
    assert deltas.grad is not None


@pytest.mark.parametrize("losses_class", [ALRPHeadLosses, APHeadLosses])
@pytest.mark.parametrize("gt_classes", [[3, 3, -1, 3], [-1, -1, -1, -1], []], ids=str)
def test_without_positives_losses_are_zero_with_a_graph(losses_class, gt_classes):
    bridge = losses_class(num_classes=3)
    logits = torch.randn(len(gt_classes), 3).requires_grad_()
    boxes = torch.zeros(0, 4, requires_grad=True)
    with EventStorage():
        losses = bridge(
            logits, torch.tensor(gt_classes, dtype=torch.int64), boxes, torch.zeros(0, 4)
        )
    assert all(loss.shape == torch.Size([]) and loss == 0 for loss in losses.values())
    losses["loss_cls"].backward()
    losses["loss_box_reg"].backward()
    assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=0)
    assert boxes.grad is not None


def test_tau_divides_the_localisation_error():
    """Errors at tau 0.7 are those at tau 0.5 over 0.6; the value of loss_cls has none in it."""
    logits = torch.tensor([[0.3], [-0.2], [0.5]])
    gt_classes = torch.tensor([0, 0, 1])
    pred = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 1]])
    target = torch.tensor([[0.0, 0, 1, 2], [0, 0, 1, 1]])
    losses = {}
    for tau in (0.5, 0.7):
        with EventStorage():
            bridge = ALRPHeadLosses(num_classes=1, tau=tau)
            losses[tau] = bridge(logits.requires_grad_(), gt_classes, pred, target)
    assert_close(losses[0.7]["loss_box_reg"], losses[0.5]["loss_box_reg"] / 0.6)
    assert_close(losses[0.7]["loss_cls"], losses[0.5]["loss_cls"])


def test_an_unknown_loss_type_is_refused_with_the_choices():
    cfg = load_config("")
    cfg.MODEL.ALRP.LOSS_TYPE = "focal"
    with pytest.raises(UserError, match='"alrp" or "ap".*"focal"'):
        build_head_losses(cfg, num_classes=1)
