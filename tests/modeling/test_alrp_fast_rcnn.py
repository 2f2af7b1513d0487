"""The box head with aLRP Loss: assignment, losses, detections."""

from __future__ import annotations

import pytest
import torch
from helpers.detectors import golden_instances
from torch import nn
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from alrp.losses import SelfBalance
from alrp.modeling import (
    AllProposals,
    ALRPFastRCNNOutputLayers,
    ALRPHeadLosses,
    ALRPROIHeads,
    APHeadLosses,
    BoxDeltaTransform,
    XavierConvFCHead,
)

CASES = ["alrp_bbox_head_random", "alrp_bbox_head_one_image_without_gt"]


def predictor(num_classes, head_losses=None, **options):
    torch.manual_seed(0)
    return ALRPFastRCNNOutputLayers(
        ShapeSpec(channels=8),
        num_classes=num_classes,
        head_losses=head_losses
        or ALRPHeadLosses(num_classes=num_classes, self_balance=SelfBalance(period=1000)),
        box2box_transform=BoxDeltaTransform((10.0, 10.0, 5.0, 5.0)),
        **options,
    )


def roi_heads(box_predictor, **options):
    return ALRPROIHeads(
        num_classes=box_predictor.num_classes,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=[],
        box_pooler=None,
        box_head=nn.Identity(),
        box_predictor=box_predictor,
        **{"proposal_append_gt": False, **options},
    )


def golden_proposals(case):
    sizes = [tuple(size) for size in case["image_shapes"].tolist()]
    boxes = [Boxes(torch.from_numpy(case[f"proposals_image{i}"])) for i in range(len(sizes))]
    return [Instances(size, proposal_boxes=b) for size, b in zip(sizes, boxes)]


@pytest.mark.parametrize("name", CASES)
def test_published_assignment_losses_and_gradients(golden, name):
    case = golden(name)
    num_classes = int(case["num_classes"])
    heads = roi_heads(predictor(num_classes)).train()
    with EventStorage():
        labelled = heads.label_and_sample_proposals(golden_proposals(case), golden_instances(case))
    for i, proposals in enumerate(labelled):
        assert torch.equal(
            proposals.proposal_boxes.tensor, torch.from_numpy(case[f"proposals_image{i}"])
        )
        assigned = torch.from_numpy(case[f"assigned_gt_inds_image{i}"])
        classes = torch.cat([torch.from_numpy(case[f"gt_labels_image{i}"]), torch.tensor([5])])
        assert torch.equal(proposals.gt_classes, classes[assigned - 1])  # 0 is the last one: K
        positive = assigned > 0
        if positive.any():
            expected = torch.from_numpy(case[f"gt_boxes_image{i}"])[assigned[positive] - 1]
            assert torch.equal(proposals.gt_boxes.tensor[positive], expected)

    # The stored predictions stand in the order positives, negatives of each image.
    order = [p.gt_classes.lt(num_classes).logical_not().sort(stable=True).indices for p in labelled]
    labelled = [proposals[idxs] for proposals, idxs in zip(labelled, order)]
    predictions = [
        torch.from_numpy(case[key]).requires_grad_() for key in ("cls_score", "bbox_pred")
    ]
    losses = heads.box_predictor.losses(tuple(predictions), labelled)
    sum(losses.values()).backward()
    assert losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    for leaf, key in zip(predictions, ("grad_cls_score", "grad_bbox_pred")):
        expected = torch.from_numpy(case[key])
        assert (leaf.grad - expected).norm() / expected.norm() < 1e-5


def labelled_proposals(classes, num_classes=3):
    """Proposals of 10 x 10 pixels side by side, each two pixels beside its ground truth."""
    x = 20.0 * torch.arange(len(classes)).float()
    boxes = torch.stack([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10.0)], dim=1)
    return Instances(
        (64, 64),
        proposal_boxes=Boxes(boxes),
        gt_boxes=Boxes(boxes + 2),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_only_the_deltas_of_the_own_class_of_a_positive_get_gradient():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    deltas = torch.zeros(4, 12, requires_grad=True)
    losses = predictor(3).losses((logits, deltas), [labelled_proposals([2, 3, -1, 0])])
    sum(losses.values()).backward()
    touched = deltas.grad.view(4, 3, 4).any(2)
    assert touched.nonzero().tolist() == [[0, 2], [3, 0]]
    assert not logits.grad[2].any()  # ignored
    assert logits.grad.sum().item() == pytest.approx(0.0, abs=1e-6)


def test_class_agnostic_boxes_are_read_by_every_class():
    model = predictor(3, cls_agnostic_bbox_reg=True)
    assert model.bbox_pred.out_features == 4
    deltas = torch.zeros(3, 4, requires_grad=True)
    losses = model.losses((torch.zeros(3, 3), deltas), [labelled_proposals([2, 3, 0])])
    losses["loss_box_reg"].backward()
    assert deltas.grad.any(1).tolist() == [True, False, True]


def test_loss_weights_count():
    proposals, logits, deltas = [labelled_proposals([2, 3])], torch.zeros(2, 3), torch.zeros(2, 12)
    plain = predictor(3).losses((logits, deltas), proposals)
    weighted = predictor(3, loss_weight={"loss_box_reg": 0.5}).losses((logits, deltas), proposals)
    assert_close(weighted["loss_cls"], plain["loss_cls"])
    assert_close(weighted["loss_box_reg"], 0.5 * plain["loss_box_reg"])
    assert plain["loss_box_reg"] > 0


def test_ap_loss_can_train_the_head():
    deltas = torch.zeros(2, 12, requires_grad=True)
    model = predictor(3, APHeadLosses(num_classes=3))
    losses = model.losses((torch.zeros(2, 3), deltas), [labelled_proposals([2, 3])])
    # A shift of 2 of 10 pixels, times 10, in x and y: (2 - 0.5) twice over 4 numbers.
    assert losses["loss_box_reg"].item() == pytest.approx(0.75)


@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 2)], ids=str)
def test_images_without_proposals_keep_all_parameters_in_the_graph(counts):
    model = predictor(3)
    proposals = [labelled_proposals([3] * n) for n in counts]
    predictions = model(torch.rand(sum(counts), 8))
    losses = model.losses(predictions, proposals)
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    detections, _ = model.inference(predictions, proposals)
    assert len(detections) == len(counts) and not len(detections[0])


def test_an_image_without_ground_truth_gives_background_only():
    heads = roi_heads(predictor(3))
    proposals = labelled_proposals([3, 3])
    target = Instances((64, 64))
    target.gt_boxes, target.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0).long()
    with EventStorage():
        labelled = heads.label_and_sample_proposals(
            [Instances((64, 64), proposal_boxes=proposals.proposal_boxes)], [target]
        )
    assert labelled[0].gt_classes.tolist() == [3, 3] and not labelled[0].has("gt_boxes")
    losses = heads.box_predictor.losses((torch.zeros(2, 3), torch.zeros(2, 12)), labelled)
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]


def test_ground_truth_joins_the_proposals_only_if_asked_to():
    target = labelled_proposals([1, 2])
    target.remove("proposal_boxes")
    for append, count in ((False, 1), (True, 3)):
        proposals = Instances((64, 64), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]])))
        proposals.objectness_logits = torch.zeros(1)
        heads = roi_heads(predictor(3), proposal_append_gt=append)
        with EventStorage():
            labelled = heads.label_and_sample_proposals([proposals], [target])
        assert len(labelled[0]) == count


def test_scores_are_sigmoids_with_no_unit_for_the_background():
    model = predictor(2, test_score_thresh=0.3, test_nms_thresh=0.5)
    assert model.cls_score.out_features == 2 and not model.cls_score.bias.any()
    logits = torch.tensor([[0.0, 2.0], [-2.0, -3.0]])
    proposals = labelled_proposals([2, 2])
    scores = model.predict_probs((logits, None), [proposals])
    assert_close(scores[0], torch.cat([logits.sigmoid(), torch.zeros(2, 1)], dim=1))
    detections, rows = model.inference((logits, torch.zeros(2, 8)), [proposals])
    # Both classes of the first proposal pass: they do not compete as they would in a softmax.
    assert detections[0].pred_classes.tolist() == [1, 0] and rows[0].tolist() == [0, 0]
    assert_close(detections[0].scores, torch.tensor([2.0, 0.0]).sigmoid())
    assert_close(detections[0].pred_boxes.tensor, proposals.proposal_boxes.tensor[[0, 0]])


@pytest.mark.parametrize(
    "name, wrong, message",
    [
        ("test_nms_thresh", 1.5, "NMS threshold.*1.5"),
        ("test_score_thresh", float("nan"), "score threshold.*nan"),
        ("test_topk_per_image", 0, "number of detections.*0"),
    ],
)
def test_options_of_inference_that_would_lose_or_double_detections_are_refused(
    name, wrong, message
):
    with pytest.raises(ValueError, match=message):
        predictor(2, **{name: wrong})


def test_the_box_head_starts_with_the_published_spread():
    torch.manual_seed(0)
    head = XavierConvFCHead(ShapeSpec(channels=16, height=7, width=7), conv_dims=[], fc_dims=[64])
    bound = (6 / (16 * 49 + 64)) ** 0.5
    assert 0.99 * bound < head.fc1.weight.abs().max() <= bound
    assert not head.fc1.bias.any()


class RankedRes5ROIHeads(AllProposals, Res5ROIHeads):
    """Heads of Detectron2's that are not ``StandardROIHeads``."""


def test_all_proposals_take_the_sampling_out_of_other_heads(generator):
    heads = RankedRes5ROIHeads(
        in_features=["res4"],
        pooler=ROIPooler(2, (1 / 16,), 0, "ROIAlignV2"),
        res5=nn.Identity(),
        box_predictor=predictor(3),
        num_classes=3,
        batch_size_per_image=4,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        proposal_append_gt=False,
    )
    gt_boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [50.0, 50.0, 90.0, 90.0]])
    boxes = torch.cat([gt_boxes + 2, gt_boxes + 30, gt_boxes + 1, gt_boxes.flip(0)])
    proposals = Instances((96, 96), proposal_boxes=Boxes(boxes))
    target = Instances((96, 96), gt_boxes=Boxes(gt_boxes), gt_classes=torch.tensor([2, 0]))
    features = {"res4": torch.rand(1, 8, 6, 6, generator=generator)}
    with EventStorage():
        left, losses = heads(None, features, [proposals], [target])
        (labelled,) = heads.label_and_sample_proposals([proposals], [target])
    assert not left and all(loss > 0 for loss in losses.values())
    assert labelled.gt_classes.tolist() == [2, 0, 3, 3, 2, 0, 0, 2]
    assert torch.equal(labelled.proposal_boxes.tensor, boxes)
