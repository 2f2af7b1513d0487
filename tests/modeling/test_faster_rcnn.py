"""The Faster R-CNN configurations as whole models: training, inference, state, processes."""

from __future__ import annotations

import pytest
import torch
from helpers.detectors import (
    NARROW_RESNET,
    assert_all_gradients_finite,
    assert_trained_alike,
    detect_at_twice_the_size,
    image,
    train_on_edge_batches,
    train_step,
)
from helpers.processes import run_two
from helpers.rcnn_models import EMPTY, FULL, NAMES, masked_image, small_rcnn
from torch import nn
from torch.testing import assert_close

# Name and number of classes of the models that two processes train.
IN_TWO_PROCESSES = [*((name, 3) for name in NAMES if name != "rs"), ("alrp", 1)]


def expected_losses(name):
    """Names of the losses of a model."""
    of_box_head = ["loss_cls", "loss_box_reg"]
    if name == "rs_cascade":
        of_box_head = [f"{loss}_stage{i}" for loss in of_box_head for i in range(3)]
    masks = ["loss_mask"] if "mask" in name else []
    return {*of_box_head, *masks, "loss_rpn_cls", "loss_rpn_loc"}


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_finite_gradient(name, num_classes):
    model = small_rcnn(name, num_classes)
    full = FULL if num_classes == 3 else {**FULL, "instances": FULL["instances"][:1]}
    losses, storage = train_step(model, [full, EMPTY], start_iter=19)
    assert set(losses) == expected_losses(name)
    assert all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
    assert_all_gradients_finite(model)
    assert model.proposal_generator.rpn_head.objectness_logits.weight.grad.any()
    assert model.proposal_generator.rpn_head.anchor_deltas.weight.grad.any()
    events = storage.latest()
    assert events["roi_head/num_fg_samples"][0] > 0
    if name in ("alrp", "mask"):
        assert events["alrp_rpn/self_balance_weight"][0] == 50.0
        assert events["rpn/num_pos_anchors"][0] > 0


def test_the_box_head_learns_from_proposals_that_overlap_an_object():
    model = small_rcnn("mask")
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
    if not name.startswith("ce"):  # nothing to rank; cross entropy still learns the background
        assert not any(loss.item() for loss in losses.values())
        assert not any(p.grad.any() for p in model.parameters() if p.requires_grad)
    if name == "alrp":
        assert model.proposal_generator.head_losses.self_balance.count == 0


EXTREME = {"smaller than a cell": [33, 33, 34, 35], "larger than the image": [-40, -30, 150, 120]}
# Detectron2's heads take its logarithm; the mappers remove such boxes.
WITHOUT_WIDTH = {"without width": [10, 20, 10, 40]}


@pytest.mark.parametrize(
    "name, box",
    [
        pytest.param(name, box, id=f"{name}-{what}")
        for name in ("ce", "ce_giou", "alrp", "rs_cascade")
        for what, box in {**EXTREME, **(WITHOUT_WIDTH if name == "alrp" else {})}.items()
    ],
)
def test_extreme_ground_truth_trains_through(name, box):
    model = small_rcnn(name)
    losses, storage = train_step(model, [image(64, 96, [box, [5, 5, 40, 50]], [1, 0])], 19)
    assert storage.latest()["roi_head/num_fg_samples"][0] > 0
    assert all(loss.isfinite() for loss in losses.values())
    assert_all_gradients_finite(model)


@pytest.mark.parametrize("name", NAMES)
def test_inference_gives_clipped_boxes_of_the_original_size(name):
    model = small_rcnn(name, **{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001}).eval()
    for part in model.roi_heads.box_predictor.modules():
        if hasattr(part, "bbox_pred"):
            nn.init.normal_(part.bbox_pred.weight, std=1.0)
    instances = detect_at_twice_the_size(model)
    boxes = instances.pred_boxes.tensor
    assert (boxes[:, 2] <= 192).all() and (boxes[:, 3] <= 128).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1, 2}
    if "mask" in name:
        assert instances.pred_masks.shape == (len(instances), 128, 192)


def test_both_self_balance_states_travel_in_the_state_dict():
    model = small_rcnn("alrp")
    for _ in range(3):
        train_step(model, [FULL])
    other = small_rcnn("alrp")
    other.load_state_dict(model.state_dict())
    for part in ("proposal_generator", "roi_heads.box_predictor"):
        ours, theirs = (m.get_submodule(f"{part}.head_losses.self_balance") for m in (model, other))
        assert ours.weight != 50.0 and ours.count == 1
        assert_close(dict(theirs.named_buffers()), dict(ours.named_buffers()), rtol=0, atol=0)
    weights = [
        m.head_losses.self_balance.weight.item()
        for m in (model.proposal_generator, model.roi_heads.box_predictor)
    ]
    assert weights[0] != weights[1]
    losses, _ = train_step(model, [FULL])
    resumed, _ = train_step(other, [FULL])
    assert_close(resumed, losses, rtol=0, atol=0)


def test_losses_under_autocast_are_float32_and_close():
    exact, _ = train_step(small_rcnn("alrp"), [FULL])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = train_step(small_rcnn("alrp"), [FULL])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # the box head sees other proposals
        assert_close(losses[name], exact[name], rtol=0.1, atol=0.0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Per rank, per model: what training on the edge batches gave."""
    return run_two(
        train_on_edge_batches,
        tmp_path_factory.mktemp("gloo"),
        small_rcnn,
        IN_TWO_PROCESSES,
        masked_image,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name, num_classes", IN_TWO_PROCESSES)
def test_two_processes_train_through_edge_batches(two_processes, name, num_classes):
    ranks = [results[name, num_classes] for results in two_processes]
    assert_trained_alike(ranks, small_rcnn(name, num_classes, **NARROW_RESNET))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["proposal_generator", "roi_heads.box_predictor"])
def test_two_processes_count_a_step_in_which_either_has_positives(two_processes, part):
    _, _, state = two_processes[0]["alrp", 3]
    prefix = f"{part}.ranking_losses.self_balance"
    # Two of the first three steps end the period of 2; the fourth begins the next.
    assert state[f"{prefix}.count"] == 1
    assert state[f"{prefix}.weight"] != 50.0
