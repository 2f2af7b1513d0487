"""What RetinaNet and FoveaBox have in common, with each loss: training, inference, processes."""

from __future__ import annotations

import pytest
import torch
from helpers.dense_models import MODELS, small_named
from helpers.detectors import (
    FOVEABOX,
    HEADS,
    NARROW_RESNET,
    RETINANET,
    USUAL,
    assert_all_gradients_finite,
    assert_trained_alike,
    detect_at_twice_the_size,
    edge_batch,
    image,
    small_model,
    train_on_edge_batches,
    train_step,
)
from helpers.processes import run_two
from torch import nn
from torch.testing import assert_close

# Name and number of classes of the models that two processes train.
IN_TWO_PROCESSES = [(name, 3) for name in MODELS]
IN_TWO_PROCESSES += [("retinanet_alrp_ATSS", 1), ("foveabox_alrp", 1)]
BATCH = [image(64, 96, USUAL, [0, 2]), image(64, 96)]
EXTREME = {
    # Around the centre of an anchor, and around that of a cell.
    "tiny": [[14, 14, 18, 18], [18, 18, 22, 22]],
    "huge": [[-500, -500, 900, 900]],
    "image": [[0, 0, 96, 64]],
}

each_model = pytest.mark.parametrize("name", MODELS)
each_base = pytest.mark.parametrize("base", HEADS)


@pytest.mark.parametrize("num_classes", [1, 3, 1203])
@each_model
def test_every_parameter_gets_a_finite_gradient(num_classes, name):
    model = small_named(name, num_classes)
    losses, storage = train_step(model, edge_batch("one_image_empty", num_classes))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert all(loss.dim() == 0 and 0 < loss.item() < 1e4 for loss in losses.values())
    assert_all_gradients_finite(model)
    assert model.head.cls_score.weight.grad.any() and model.head.bbox_pred.weight.grad.any()
    assert storage.latest()["num_pos_anchors"][0] > 0


@pytest.mark.parametrize("boxes", EXTREME.values(), ids=list(EXTREME))
@each_model
def test_ground_truth_of_extreme_size_trains_through(name, boxes):
    model = small_named(name)
    losses, storage = train_step(model, [image(64, 96, boxes, [1, 0][: len(boxes)])])
    assert storage.latest()["num_pos_anchors"][0] > 0
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert_all_gradients_finite(model)


@each_base
def test_events_hold_the_weight_and_the_unweighted_loss(base):
    losses, storage = train_step(small_model(base), BATCH, start_iter=19)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["alrp/self_balance_weight"] == 50.0
    unweighted = losses["loss_cls"] + losses["loss_box_reg"] / 50.0
    assert latest["alrp/loss"] == pytest.approx(unweighted.item(), rel=1e-5)
    assert latest["alrp/precision"] == pytest.approx(1 - losses["loss_cls"].item(), rel=1e-5)
    assert 0 < latest["alrp/loc_error"] < 2


@each_model
def test_losses_under_autocast_are_float32_and_close(name):
    exact, _ = train_step(small_named(name), BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = train_step(small_named(name), BATCH)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        assert_close(loss, exact[key], rtol=0.05, atol=0.0)


# FoveaBox ends at the last pixels of 96 x 64, which are 95 and 63.
@pytest.mark.parametrize("base, width, height", [(RETINANET, 192, 128), (FOVEABOX, 190, 126)])
def test_inference_gives_clipped_boxes_of_the_original_size(base, width, height):
    model = small_model(base).eval()
    nn.init.normal_(model.head.cls_score.weight, std=1.0)
    nn.init.normal_(model.head.bbox_pred.weight, std=1.0)
    instances = detect_at_twice_the_size(model)
    boxes = instances.pred_boxes.tensor
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2] == width).any() or (boxes[:, 3] == height).any()
    assert (instances.scores > 0.05).all()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("NMS_THRESH_TEST", -1.0, "NMS threshold.*-1.0"),
        ("NMS_THRESH_TEST", 1.5, "NMS threshold.*1.5"),
        ("SCORE_THRESH_TEST", float("nan"), "score threshold.*nan"),
        ("TOPK_CANDIDATES_TEST", 0, "candidates.*0"),
    ],
)
@each_base
def test_options_of_inference_that_would_lose_or_double_detections_are_refused(
    base, key, value, message
):
    with pytest.raises(ValueError, match=message):
        small_model(base, **{f"MODEL.{HEADS[base]}.{key}": value})


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Per rank, per model: what training on the edge batches gave."""
    return run_two(
        train_on_edge_batches, tmp_path_factory.mktemp("gloo"), small_named, IN_TWO_PROCESSES
    )


@pytest.mark.slow
@pytest.mark.parametrize("name, num_classes", IN_TWO_PROCESSES)
def test_two_processes_train_through_edge_batches(two_processes, name, num_classes):
    ranks = [results[name, num_classes] for results in two_processes]
    assert_trained_alike(ranks, small_named(name, num_classes, **NARROW_RESNET))
    _, _, state = ranks[0]
    if "_alrp" in name:
        # Two of the first three steps have positives on either rank and end the period of 2.
        assert state["ranking_losses.self_balance.count"] == 1
        assert state["ranking_losses.self_balance.weight"] != 50.0


@pytest.mark.slow
@each_model
def test_two_processes_step_together_if_one_has_no_ground_truth(two_processes, name):
    (losses, gradients, _), (empty_losses, empty_gradients, _) = (x[name, 3] for x in two_processes)
    assert losses["loss_box_reg"] > 0 and empty_losses["loss_box_reg"] == 0
    assert_close(gradients, empty_gradients, rtol=0, atol=0)
    assert gradients["head.bbox_pred.weight"].any()

    model = small_named(name, **NARROW_RESNET)
    train_step(model, edge_batch("one_image_empty", 3)[:1])
    # Gradients are averaged, and those of the empty rank are 0.
    assert_close(gradients["head.bbox_pred.weight"], model.head.bbox_pred.weight.grad / 2)
