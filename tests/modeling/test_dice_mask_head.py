"""The mask head of RS Mask R-CNN: Dice loss, its weights, and how many masks train."""

from __future__ import annotations

import pytest
import torch
from helpers.detectors import train_step
from helpers.rcnn_models import FULL, masked_image, small_rcnn
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances

from alrp.errors import UserError
from alrp.modeling import DiceMaskHead, IterationBalance, dice_losses
from alrp.modeling.roi_heads.alrp_fast_rcnn import _drawn

SIDE = 28


def head(num_classes):
    return DiceMaskHead(ShapeSpec(channels=4), num_classes=num_classes, conv_dims=[4, 4])


def regions(masks, classes, scores):
    """Regions of one image, each with its mask (S, S) where the region is."""
    size = masks.shape[-1]
    box = torch.tensor([[0.0, 0.0, size, size]]).repeat(len(masks), 1)
    return Instances(
        (size, size),
        proposal_boxes=Boxes(box),
        gt_masks=BitMasks(masks > 0.5),
        gt_classes=classes,
        best_scores=scores,
    )


def without_objects():
    result = Instances((SIDE, SIDE))
    result.gt_classes = torch.zeros(0, dtype=torch.int64)
    return result


def test_published_mask_head(golden):
    case = golden("rs_heads/rs_mask_head_random")
    masks, classes, scores = (
        torch.from_numpy(case[key]) for key in ("mask_targets", "labels", "score_weights")
    )
    logits = torch.from_numpy(case["mask_pred"]).requires_grad_()
    own = logits[torch.arange(len(classes)), classes]
    assert_close(dice_losses(own, masks), torch.from_numpy(case["dice_loss"]), rtol=1e-5, atol=0)

    # Two images, and one between them without objects.
    parts = [regions(masks[part], classes[part], scores[part]) for part in (slice(5), slice(5, 12))]
    instances = [parts[0], without_objects(), parts[1]]
    loss = head(int(case["num_classes"])).losses(logits, instances)
    assert loss.item() == pytest.approx(float(case["loss_mask_before_sb"]), rel=1e-5)
    weight = IterationBalance()(torch.tensor(case["cls_loss"]), loss)
    assert weight.item() == pytest.approx(float(case["sb_weight"]), rel=1e-5)
    assert (weight * loss).item() == pytest.approx(float(case["loss_mask"]), rel=1e-5)
    (weight * loss).backward()
    expected = torch.from_numpy(case["grad_mask_pred"])
    assert (logits.grad - expected).norm() / expected.norm() < 1e-5


def test_an_empty_mask_costs_one_and_a_perfect_one_nothing():
    masks = torch.zeros(3, 7, 7)
    masks[1:] = 1
    logits = torch.full((3, 7, 7), 50.0)
    logits[2] = -50.0
    assert_close(dice_losses(logits, masks), torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=1e-6)


def test_class_agnostic_masks_have_one_channel():
    masks = torch.zeros(2, SIDE, SIDE)
    masks[:, :9] = 1
    logits = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    instances = regions(masks, torch.tensor([2, 0]), torch.tensor([0.5, 0.25]))
    losses = dice_losses(logits[:, 0], masks)
    expected = (2 * losses[0] + losses[1]) / 3
    assert_close(head(1).losses(logits, [instances]), expected)


def test_no_region_costs_nothing():
    logits = torch.zeros(0, 5, SIDE, SIDE, requires_grad=True)
    loss = head(5).losses(logits, [without_objects()])
    loss.backward()
    assert loss == 0 and logits.grad.shape == logits.shape


def test_drawn_regions_keep_their_own_weights_and_masks():
    """In the published code weights and masks of several images lose their common order."""
    masks = torch.zeros(30, SIDE, SIDE)
    classes = torch.arange(30)
    drawn = _drawn(regions(masks, classes, classes / 30), 20)
    assert len(drawn) == 20 and len(set(drawn.gt_classes.tolist())) == 20
    assert drawn.gt_classes.tolist() != list(range(20))
    assert_close(drawn.best_scores, drawn.gt_classes / 30)
    few = regions(masks[:3], classes[:3], classes[:3] / 30)
    assert _drawn(few, 20) is few


def test_so_many_regions_of_each_image_train_the_mask_head(monkeypatch):
    seen = []
    losses = DiceMaskHead.losses

    def counting(self, pred_logits, instances):
        seen.append(len(pred_logits))
        return losses(self, pred_logits, instances)

    monkeypatch.setattr(DiceMaskHead, "losses", counting)
    model = small_rcnn("rs_mask")
    for model.roi_heads.masks_per_image in (0, 200, 1):
        train_step(model, [FULL, FULL])
    everything = seen[0]
    # Each image has two objects, which are among its proposals.
    assert seen == [everything, everything, 2] and everything >= 4


def test_the_mask_loss_has_the_value_of_the_box_heads_ranking():
    losses, _ = train_step(small_rcnn("rs_mask"), [FULL, masked_image(64, 96)])
    assert losses["loss_mask"].item() == pytest.approx(losses["loss_cls"].item(), rel=1e-5)
    plain, _ = train_step(
        small_rcnn("rs_mask", **{"MODEL.ALRP.SELF_BALANCE.ENABLED": False}), [FULL]
    )
    assert plain["loss_mask"] < 1 and plain["loss_mask"] != plain["loss_cls"]


def test_in_a_cascade_masks_go_with_the_first_stage_whose_proposals_they_have():
    masks = {
        "MODEL.MASK_ON": True,
        "MODEL.ROI_MASK_HEAD.NAME": "DiceMaskHead",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    }
    losses, _ = train_step(small_rcnn("rs_cascade", **masks), [FULL])
    assert losses["loss_mask"].item() == pytest.approx(losses["loss_cls_stage0"].item(), rel=1e-5)


def test_box_heads_that_give_no_scores_are_refused():
    with pytest.raises(UserError, match="set it to one of them"):
        small_rcnn("rs_mask", **{"MODEL.ROI_HEADS.NAME": "StandardROIHeads"})
