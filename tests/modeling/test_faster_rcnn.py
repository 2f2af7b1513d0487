"""The Faster R-CNN configurations as whole models: training, inference, state, processes."""

from __future__ import annotations

import pytest
import torch
from detectors import image, train_step
from rcnn_models import EMPTY, FULL, NAMES, small_rcnn, train_with_an_empty_rank
from torch import nn
from torch.multiprocessing import spawn
from torch.testing import assert_close

LOSSES = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}


def assert_all_gradients_finite(model):
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name, num_classes):
    model = small_rcnn(name, num_classes)
    full = FULL if num_classes == 3 else {**FULL, "instances": FULL["instances"][:1]}
    losses, storage = train_step(model, [full, EMPTY], start_iter=19)
    assert set(losses) == LOSSES | ({"loss_mask"} if name == "mask" else set())
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert_all_gradients_finite(model)
    assert model.proposal_generator.rpn_head.objectness_logits.weight.grad.any()
    assert model.proposal_generator.rpn_head.anchor_deltas.weight.grad.any()
    events = storage.latest()
    if name in ("alrp", "mask"):
        assert events["alrp_rpn/self_balance_weight"][0] == 50.0
        assert events["rpn/num_pos_anchors"][0] > 0


def test_the_box_head_learns_from_proposals_that_overlap_an_object():
    """Untrained, no proposal need reach an IoU of 0.5; a ground truth among them always does."""
    model = small_rcnn("mask", **{"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True})
    losses, storage = train_step(model, [FULL, EMPTY], start_iter=19)
    assert all(loss > 0 for loss in losses.values())
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.weight.grad.any() and predictor.bbox_pred.weight.grad.any()
    assert model.roi_heads.mask_head.predictor.weight.grad.any()
    unweighted = losses["loss_cls"] + losses["loss_box_reg"] / 50.0
    assert storage.latest()["alrp/loss"][0] == pytest.approx(unweighted.item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_ground_truth_trains_through(name):
    model = small_rcnn(name)
    losses, _ = train_step(model, [EMPTY, EMPTY])
    assert_all_gradients_finite(model)
    if name == "alrp":  # nothing to rank; cross entropy still learns the background
        assert not any(loss.item() for loss in losses.values())
        assert not any(p.grad.any() for p in model.parameters() if p.requires_grad)
        assert model.proposal_generator.ranking_losses.self_balance.count == 0


EXTREME = {"smaller than a cell": [33, 33, 34, 35], "larger than the image": [-40, -30, 150, 120]}
# Detectron2's heads take its logarithm; the mappers remove such boxes.
WITHOUT_WIDTH = {"without width": [10, 20, 10, 40]}


@pytest.mark.parametrize(
    "name, box",
    [
        pytest.param(name, box, id=f"{name}-{what}")
        for name in ("ce", "ce_giou", "alrp")
        for what, box in {**EXTREME, **(WITHOUT_WIDTH if name == "alrp" else {})}.items()
    ],
)
def test_extreme_ground_truth_trains_through(name, box):
    model = small_rcnn(name)
    losses, _ = train_step(model, [image(64, 96, [box, [5, 5, 40, 50]], [1, 0])])
    assert all(loss.isfinite() for loss in losses.values())
    assert_all_gradients_finite(model)


@pytest.mark.parametrize("name", NAMES)
def test_inference_gives_clipped_boxes_of_the_original_size(name):
    model = small_rcnn(name, **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001}).eval()
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=1.0)
    inputs = image(64, 96)
    inputs["height"], inputs["width"] = 128, 192
    with torch.no_grad():
        instances = model([inputs])[0]["instances"]
    assert 0 < len(instances) <= 100
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 192).all() and (boxes[:, 3] <= 128).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2}
    assert (instances.scores.diff() <= 0).all()
    if name == "mask":
        assert instances.pred_masks.shape == (len(instances), 128, 192)


def test_both_self_balance_states_travel_in_the_state_dict():
    overrides = {"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True}
    model = small_rcnn("alrp", **overrides)
    for _ in range(3):
        train_step(model, [FULL])
    other = small_rcnn("alrp", **overrides)
    other.load_state_dict(model.state_dict())
    for part in ("proposal_generator", "roi_heads.box_predictor"):
        ours, theirs = (
            m.get_submodule(f"{part}.ranking_losses.self_balance") for m in (model, other)
        )
        assert ours.weight != 50.0 and ours.count == 1
        assert_close(dict(theirs.named_buffers()), dict(ours.named_buffers()), rtol=0, atol=0)
    weights = [
        m.ranking_losses.self_balance.weight.item()
        for m in (model.proposal_generator, model.roi_heads.box_predictor)
    ]
    assert weights[0] != weights[1]
    losses, _ = train_step(model, [FULL])
    resumed, _ = train_step(other, [FULL])
    assert_close(resumed, losses, rtol=0, atol=0)


def test_losses_under_autocast_are_float32_and_close():
    overrides = {"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True}
    exact, _ = train_step(small_rcnn("alrp", **overrides), [FULL])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = train_step(small_rcnn("alrp", **overrides), [FULL])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # the box head sees other proposals
        assert_close(losses[name], exact[name], rtol=0.1, atol=0.0)


@pytest.mark.slow
def test_two_processes_train_with_an_empty_rank(tmp_path):
    spawn(train_with_an_empty_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{i}.pth") for i in range(2))
    for name in NAMES:
        assert_close(first[name], second[name], rtol=0, atol=0)
    counts = [first["alrp"][key] for key in first["alrp"] if key.endswith("self_balance.count")]
    assert len(counts) == 2
    # Two steps with positives on one of the ranks: the period of 2 is over.
    assert first["alrp"]["proposal_generator.ranking_losses.self_balance.count"] == 0
    assert first["alrp"]["proposal_generator.ranking_losses.self_balance.weight"] != 50.0
