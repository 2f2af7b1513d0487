"""The region proposal network with aLRP Loss: matching, losses, proposals."""

from __future__ import annotations

import math
import pytest
import torch
from helpers.detectors import USUAL, golden_gradient_errors, golden_predictions, image, train_step
from torch import nn
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from alrp.config import load_config
from alrp.errors import UserError
from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPRPN,
    ALRPHeadLosses,
    APHeadLosses,
    BoxDeltaTransform,
    MaxIoUMatcher,
    PriorRPNHead,
)

CASES = ["alrp_rpn_random", "alrp_rpn_unique_best_anchor"]
LEVELS = ["p2", "p3", "p4", "p5", "p6"]


class StoredPredictions(nn.Module):
    """A head whose output is given."""

    def __init__(self, predictions):
        super().__init__()
        self.predictions = predictions

    def forward(self, features):
        return self.predictions


def golden_rpn(case):
    """The RPN of the published configuration in front of the stored predictions, as leaves."""
    predictions = golden_predictions(case)
    rpn = ALRPRPN(
        in_features=LEVELS,
        head=StoredPredictions(predictions),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[8.0 * stride] for stride in case["strides"].tolist()],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=case["strides"].tolist(),
            offset=0.0,
        ),
        anchor_matcher=MaxIoUMatcher(0.7, 0.3, min_pos_iou=0.3),
        box2box_transform=BoxDeltaTransform((10.0, 10.0, 5.0, 5.0)),
        head_losses=ALRPHeadLosses(num_classes=1, tau=0.7, self_balance=SelfBalance(period=1000)),
        pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000),
        loss_weight=0.2,
    )
    return rpn, predictions


def golden_features(case):
    sizes = case["feature_sizes"].tolist()
    return {name: torch.zeros(2, 1, *size) for name, size in zip(LEVELS, sizes)}


def golden_targets(case):
    result = []
    for i, (height, width) in enumerate(case["image_shapes"].tolist()):
        boxes = Boxes(torch.from_numpy(case[f"gt_boxes_image{i}"]))
        classes = torch.zeros(len(boxes), dtype=torch.int64)
        result.append(Instances((height, width), gt_boxes=boxes, gt_classes=classes))
    return result


def golden_images(case):
    height, width = case["pad_shapes"].max(0)
    sizes = [tuple(size) for size in case["image_shapes"].tolist()]
    return ImageList(torch.zeros(2, 3, height, width), sizes)


@pytest.mark.parametrize("name", CASES)
def test_anchors_and_assignment_are_the_published_ones(golden, name):
    case = golden(name)
    rpn, _ = golden_rpn(case)
    anchors = rpn.anchor_generator(list(golden_features(case).values()))
    expected = torch.from_numpy(case["anchors"])
    assert_close(Boxes.cat(anchors).tensor, expected, rtol=0, atol=1e-4)

    # The published anchors themselves, so that no IoU differs in its last bit.
    anchors = [Boxes(x) for x in expected.split(case["num_anchors_per_level"].tolist())]
    labels, boxes = rpn.label_and_sample_anchors(anchors, golden_targets(case))
    for i in range(2):
        assigned = torch.from_numpy(case["assigned_gt_inds"][i])
        firm = torch.from_numpy(case["assignment_sensitive"][i]) == 0
        assert firm.float().mean() > 0.98
        assert torch.equal(labels[i][firm].long(), assigned.clamp(max=1)[firm])
        positive = firm & (assigned > 0)
        # In the first case every positive hangs on a tie.
        assert positive.any() == (name == "alrp_rpn_unique_best_anchor")
        gt_boxes = torch.from_numpy(case[f"gt_boxes_image{i}"])
        assert torch.equal(boxes[i][positive], gt_boxes[assigned[positive] - 1])


@pytest.mark.parametrize("name", CASES)
def test_published_losses_and_gradients(golden, name):
    case = golden(name)
    rpn, predictions = golden_rpn(case)
    assigned = torch.from_numpy(case["assigned_gt_inds"])
    targets = golden_targets(case)
    boxes = [gt.gt_boxes.tensor[(idxs - 1).clamp(min=0)] for gt, idxs in zip(targets, assigned)]
    anchors = rpn.anchor_generator(list(golden_features(case).values()))
    # As the parent's ``forward`` brings (N, A * C, H, W) to (N, H * W * A, C).
    logits = [x.permute(0, 2, 3, 1).flatten(1) for x in predictions[0]]
    deltas = [x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in predictions[1]]
    # The stored assignment: where it hangs on a tie, the losses are still to be compared.
    with EventStorage() as storage:
        losses = rpn.losses(anchors, logits, list(assigned.clamp(max=1)), deltas, boxes)
    sum(losses.values()).backward()
    assert losses["loss_rpn_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    assert max(golden_gradient_errors(case, predictions)) < 1e-5
    assert storage.latest()["rpn/num_pos_anchors"][0] == len(case["pos_flat_index"]) / 2


def test_training_from_forward_gives_the_published_losses_where_no_assignment_is_a_tie(golden):
    case = golden("alrp_rpn_unique_best_anchor")
    assert not case["assignment_sensitive"].any()
    rpn, _ = golden_rpn(case)
    with EventStorage():
        proposals, losses = rpn(golden_images(case), golden_features(case), golden_targets(case))
    assert losses["loss_rpn_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    for proposals_i in proposals:
        assert len(proposals_i) > 10
        assert not proposals_i.proposal_boxes.tensor.requires_grad
        assert (proposals_i.proposal_boxes.tensor >= 0).all()


def test_anchors_beyond_the_own_padding_are_ignored(golden):
    case = golden("alrp_rpn_random")
    rpn, _ = golden_rpn(case)
    anchors = rpn.anchor_generator(list(golden_features(case).values()))
    small = Instances((60, 90), gt_boxes=Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]])))
    large = Instances((128, 160), gt_boxes=Boxes(torch.zeros(0, 4)))
    labels, boxes = rpn.label_and_sample_anchors(anchors, [small, large])
    assert not labels[1].any() and not boxes[1].any()
    centers = Boxes.cat(anchors).get_centers()
    inside = (centers[:, 0] < 95.5) & (centers[:, 1] < 63.5)  # padded to 64 x 96
    assert (labels[0][~inside] == -1).all() and (labels[0][inside] == 1).any()
    assert (labels[0][inside] == 0).any()


def test_anchors_that_reach_farther_over_the_border_than_allowed_are_ignored(golden):
    case = golden("alrp_rpn_random")
    rpn, _ = golden_rpn(case)
    anchors = rpn.anchor_generator(list(golden_features(case).values()))
    everywhere, _ = rpn.label_and_sample_anchors(anchors, golden_targets(case))
    rpn.anchor_boundary_thresh = 8
    labels, _ = rpn.label_and_sample_anchors(anchors, golden_targets(case))
    boxes = Boxes.cat(anchors)
    for labels_i, everywhere_i, size in zip(labels, everywhere, case["image_shapes"].tolist()):
        inside = boxes.inside_box(size, 8)
        assert inside.any() and not inside.all()
        assert (labels_i[~inside] == -1).all()
        # Some ground truth may claim another anchor than it did.
        assert (labels_i[inside] == everywhere_i[inside]).float().mean() > 0.99
        assert (labels_i == 1).any()


def test_proposals_are_exact_in_half_precision():
    """Boxes on a large image, decoded from half precision, where its steps are a quarter pixel."""
    rpn = ALRPRPN(
        in_features=[],
        head=None,
        anchor_generator=None,
        anchor_matcher=None,
        box2box_transform=BoxDeltaTransform((10.0, 10.0, 5.0, 5.0)),
        head_losses=None,
        pre_nms_topk=(1, 1),
        post_nms_topk=(1, 1),
    )
    anchors = [Boxes(torch.tensor([[501.3, 700.7, 533.6, 741.1]]))]
    (boxes,) = rpn._decode_proposals(anchors, [torch.zeros(1, 1, 4, dtype=torch.float16)])
    assert boxes.dtype == torch.float32
    assert_close(boxes[0], anchors[0].tensor, rtol=0, atol=1e-3)


def rpn_config(**overrides):
    cfg = load_config("configs/Base-ALRP-RCNN-FPN.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    return cfg


def build_rpn(**overrides):
    shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in range(2, 7)}
    return ALRPRPN(rpn_config(**overrides), shapes)


def test_the_config_sets_matcher_tau_weights_and_prior():
    rpn = build_rpn()
    matcher, losses = rpn.anchor_matcher, rpn.head_losses
    thresholds = (matcher.pos_threshold, matcher.neg_threshold, matcher.min_pos_iou)
    assert thresholds == (0.7, 0.3, 0.3)
    assert isinstance(losses, ALRPHeadLosses)
    assert (losses.tau, losses.num_classes, losses.prefix) == (0.7, 1, "alrp_rpn")
    assert rpn.box2box_transform.weights == (10.0, 10.0, 5.0, 5.0)
    assert rpn.loss_weight == {"loss_rpn_cls": 0.2, "loss_rpn_loc": 0.2}
    assert isinstance(rpn.rpn_head, PriorRPNHead)
    bias = rpn.rpn_head.objectness_logits.bias
    assert_close(bias, torch.full((3,), -math.log(99.0)))
    assert not rpn.rpn_head.anchor_deltas.bias.any()


def test_ap_loss_can_train_the_rpn():
    rpn = build_rpn(**{"MODEL.ALRP.LOSS_TYPE": "ap"})
    assert isinstance(rpn.head_losses, APHeadLosses)
    features = {f"p{i}": torch.rand(1, 4, 64 // 2**i, 64 // 2**i) for i in range(2, 7)}
    boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]]))
    targets = [Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([3]))]
    with EventStorage():
        _, losses = rpn(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), features, targets)
    assert losses["loss_rpn_cls"] > 0 and losses["loss_rpn_loc"] > 0


@pytest.mark.parametrize("dilation", [1, 2], ids=["C4", "DC5"])
def test_a_detector_without_an_fpn_trains_a_step(dilation):
    cfg = load_config("")
    small = {"DEPTH": 50, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}
    cfg.merge_from_list([x for k, v in small.items() for x in (f"MODEL.RESNETS.{k}", v)])
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.PROPOSAL_GENERATOR.NAME", "ALRPRPN"])
    cfg.merge_from_list(["MODEL.ALRP.SELF_BALANCE.PERIOD", 1, "MODEL.BACKBONE.FREEZE_AT", 0])
    if dilation == 2:
        cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.RESNETS.RES5_DILATION = ["res5"], 2
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
        cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NAME = "ALRPROIHeads", "XavierConvFCHead"
        cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 8
    model = build_model(cfg)
    assert model.proposal_generator.size_divisibility == 0
    # Images of different sizes: anchors beyond the smaller one are ignored.
    losses, _ = train_step(model, [image(64, 96, USUAL, [0, 2]), image(48, 64)])
    assert all(loss.isfinite() for loss in losses.values())
    weight = model.proposal_generator.rpn_head.anchor_deltas.weight
    assert weight.grad.any() and weight.grad.isfinite().all()


@pytest.mark.parametrize("thresholds", ["[0.7, 0.3]", "[0.5]", "[0.3, 1.0]"])
def test_thresholds_out_of_order_are_refused(thresholds):
    with pytest.raises(UserError, match="MODEL.RPN.IOU_THRESHOLDS must be"):
        build_rpn(**{"MODEL.RPN.IOU_THRESHOLDS": thresholds})
