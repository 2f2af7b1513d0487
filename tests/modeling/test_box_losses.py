"""Box losses and their balance: values, gradients, and how a config chooses them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchvision.ops import box_iou, generalized_box_iou_loss

from detectron2.utils.events import EventStorage

from alrp.config import load_config
from alrp.errors import UserError
from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPHeadLosses,
    APHeadLosses,
    FocalHeadLosses,
    GIoULoss,
    IterationBalance,
    RSHeadLosses,
    SmoothL1Loss,
    WeightedGIoULoss,
    build_head_losses,
)
from alrp.modeling.box_losses import matched_iou
from alrp.modeling.head_losses import HEAD_LOSSES

GT_CLASSES = torch.tensor([0, 3, 2, -1, 1])
BOX_LOSSES = {
    "weighted_giou": WeightedGIoULoss,
    "giou": GIoULoss,
    "smooth_l1": SmoothL1Loss,
}


@pytest.fixture
def boxes(generator):
    """Predicted and expected boxes of three positives; the last pair has no overlap."""
    corners = torch.rand(3, 2, generator=generator)
    expected = torch.cat([corners, corners + 1 + torch.rand(3, 2, generator=generator)], 1)
    predicted = expected + 0.2 * torch.rand(3, 4, generator=generator)
    predicted[2] += 50
    return predicted.requires_grad_(), expected


@pytest.fixture
def logits(generator):
    return torch.randn(5, 3, generator=generator).requires_grad_()


def test_giou_loss_is_the_mean_of_one_minus_giou(boxes):
    value = GIoULoss()(*boxes)
    assert_close(value, generalized_box_iou_loss(*boxes).mean(), rtol=1e-5, atol=1e-5)


def test_weighted_giou_loss_weighs_by_score(boxes):
    losses, scores = generalized_box_iou_loss(*boxes), torch.tensor([0.9, 0.1, 0.5])
    value = WeightedGIoULoss()(*boxes, scores)
    assert_close(value, (scores * losses).sum() / scores.sum(), rtol=1e-5, atol=1e-5)


def test_scores_of_zero_give_a_loss_of_zero(boxes):
    value = WeightedGIoULoss()(*boxes, torch.zeros(3))
    value.backward()
    assert value == 0 and not boxes[0].grad.any()


def test_smooth_l1_is_a_mean_over_numbers_or_boxes():
    predicted, expected = torch.tensor([[0.0, 0, 2, 0], [0, 0, 0, 0]]), torch.zeros(2, 4)
    assert SmoothL1Loss(1.0)(predicted, expected).item() == pytest.approx(1.5 / 8)
    assert SmoothL1Loss(1.0, per_box=True)(predicted, expected).item() == pytest.approx(1.5 / 2)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_without_positives_a_box_loss_is_zero_with_a_graph(name):
    predicted = torch.zeros(0, 4, requires_grad=True)
    value = BOX_LOSSES[name]()(predicted, torch.zeros(0, 4), torch.zeros(0))
    value.backward()
    assert value == 0 and predicted.grad is not None


def test_matched_iou_is_the_diagonal_of_all_pairs(boxes):
    iou = matched_iou(*boxes)
    assert_close(iou, box_iou(*boxes).diagonal().detach())
    assert iou[2] == 0 and not iou.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matched_iou_of_half_precision_is_float32(boxes, dtype):
    assert matched_iou(*(x.to(dtype) for x in boxes)).dtype == torch.float32


@pytest.mark.parametrize(
    "classification, box, weight",
    [(0.8, 0.2, 4.0), (0.8, 1.6, 0.5), (0.0, 0.5, 0.0), (0.8, 0.0, 50.0), (0.8, 1e-30, 50.0)],
)
def test_the_balance_gives_the_box_loss_the_value_of_the_classification_loss(
    classification, box, weight
):
    values = torch.tensor(classification), torch.tensor(box)
    assert IterationBalance()(*values).item() == pytest.approx(weight)


def test_nothing_to_balance_is_a_weight_of_zero():
    assert IterationBalance()(torch.tensor(0.0), torch.tensor(0.0)) == 0


def first_weights_of_a_cascade(shift, generator, **options):
    """Weights in ten steps of a head that trains on ground truth among its proposals.

    As at the start of a cascade that appends ground truth: only such proposals are positive, and an
    untrained regressor leaves them where they are.

    Args:
        shift: of the predicted boxes, as a share of their side.
        generator: of the logits.
        options: of the losses, aLRP with 80 classes.
    """
    losses = ALRPHeadLosses(num_classes=80, **options)
    gt_classes = torch.full((200,), 80)
    gt_classes[:6] = torch.arange(6)
    expected = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).repeat(6, 1)
    logits = (0.1 * torch.randn(200, 80, generator=generator) - 4.6).requires_grad_()
    weights = []
    with EventStorage() as storage:
        storage.iter = 19  # an iteration that is logged
        for _ in range(10):
            values = losses(logits, gt_classes, expected + 100 * shift, expected)
            (gradient,) = torch.autograd.grad(values["loss_cls"], logits)
            logits.data -= 0.5 * gradient
            weights.append(storage.latest()["alrp/self_balance_weight"][0])
    return weights


def test_a_balance_that_is_measured_early_is_huge_with_ground_truth_among_the_proposals(generator):
    coarse, exact = (
        first_weights_of_a_cascade(
            shift, generator.manual_seed(0), self_balance=SelfBalance(period=5)
        )[4]
        for shift in (0.2, 0.02)
    )
    assert exact > 5 * coarse > 1000


@pytest.mark.parametrize(
    "options",
    [
        {"self_balance": SelfBalance(period=500)},  # as published: 50 until the first epoch ends
        {"box_loss": GIoULoss(), "self_balance": IterationBalance()},
        {"box_loss": WeightedGIoULoss(), "self_balance": IterationBalance()},
    ],
    ids=["epoch", "giou", "weighted_giou"],
)
def test_a_long_period_and_a_balance_in_every_step_bound_the_weight(options, generator):
    assert max(first_weights_of_a_cascade(0.001, generator, **options)) == pytest.approx(50)


@pytest.mark.parametrize("max_weight", [0, -1.0, float("inf"), float("nan")])
def test_a_greatest_weight_must_be_finite_and_positive(max_weight):
    with pytest.raises(ValueError, match="max_weight must be a finite number > 0"):
        IterationBalance(max_weight)


def run(bridge, logits, boxes, **options):
    with EventStorage() as storage:
        storage.iter = 19
        losses = bridge(logits, GT_CLASSES, *boxes, **options)
    return losses, storage


@pytest.mark.parametrize(
    "losses_class", [ALRPHeadLosses, APHeadLosses, RSHeadLosses, FocalHeadLosses]
)
@pytest.mark.parametrize("box_loss", [GIoULoss, WeightedGIoULoss])
def test_every_classification_loss_takes_every_giou_loss(losses_class, box_loss, logits, boxes):
    plain = losses_class(num_classes=3, box_loss=box_loss())
    assert plain.compares_boxes and not plain.compares_deltas
    losses, _ = run(plain, logits, boxes)
    scores = logits[[0, 2, 4]].detach().sigmoid().amax(1)
    assert_close(losses["loss_box_reg"], box_loss()(*boxes, scores))
    balanced, _ = run(
        losses_class(num_classes=3, box_loss=box_loss(), self_balance=IterationBalance()),
        logits,
        boxes,
    )
    assert_close(balanced["loss_cls"], losses["loss_cls"])
    value = balanced["loss_cls"].detach()
    if losses_class is ALRPHeadLosses:
        value = value + run(ALRPHeadLosses(num_classes=3), logits, boxes)[0]["loss_box_reg"]
    assert_close(balanced["loss_box_reg"], value)


def test_a_box_loss_of_its_own_trains_the_boxes_alone(logits, boxes):
    run(ALRPHeadLosses(num_classes=3, box_loss=GIoULoss()), logits, boxes)[0][
        "loss_box_reg"
    ].backward()
    alone = boxes[0].grad.clone()
    boxes[0].grad = None
    GIoULoss()(*boxes).backward()
    assert_close(alone, boxes[0].grad)
    assert logits.grad is None


def test_the_logits_of_alrp_learn_from_the_same_errors_whatever_the_box_loss(logits, boxes):
    gradients = []
    for box_loss in (None, GIoULoss()):
        losses, _ = run(ALRPHeadLosses(num_classes=3, box_loss=box_loss), logits, boxes)
        gradients.append(torch.autograd.grad(losses["loss_cls"], logits)[0])
    assert_close(*gradients)


@pytest.mark.parametrize("losses_class", [ALRPHeadLosses, RSHeadLosses])
def test_what_ranks_by_boxes_takes_boxes_and_deltas_beside_smooth_l1(losses_class, logits, boxes):
    bridge = losses_class(num_classes=3, box_loss=SmoothL1Loss())
    assert bridge.compares_boxes and bridge.compares_deltas
    deltas = torch.zeros(3, 4, requires_grad=True), torch.full((3, 4), 2.0)
    losses, _ = run(bridge, logits, boxes, deltas=deltas)
    assert losses["loss_box_reg"].item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="pass deltas="):
        run(bridge, logits, boxes)


def test_the_weight_is_logged(logits, boxes):
    bridge = APHeadLosses(num_classes=3, box_loss=GIoULoss(), self_balance=2.0)
    losses, storage = run(bridge, logits, boxes)
    assert_close(losses["loss_box_reg"], 2 * GIoULoss()(*boxes))
    assert storage.latest()["alrp/self_balance_weight"][0] == 2.0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"box_loss": GIoULoss(), "self_balance": SelfBalance(1)}, "pass self_balance=Iteration"),
        ({"self_balance": IterationBalance()}, r"SelfBalance\(period=1\)"),
        ({"self_balance": 0.0}, "finite number > 0, but is 0.0"),
        ({"tau": 1.0}, "tau must be in"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ALRPHeadLosses(num_classes=3, **options)


def config(**keys):
    cfg = load_config("")
    cfg.merge_from_list([x for k, v in keys.items() for x in (f"MODEL.ALRP.{k}", v)])
    return cfg


def built(**keys):
    focal = {"alpha": 0.4, "gamma": 1.5}
    return build_head_losses(config(**keys), num_classes=3, focal=focal)


@pytest.mark.parametrize(
    "loss_type, box_loss, balance",
    [
        ("alrp", None, SelfBalance),
        ("ap", SmoothL1Loss, float),
        ("rs", WeightedGIoULoss, IterationBalance),
        ("focal", SmoothL1Loss, float),
    ],
)
def test_the_defaults_are_what_is_published(loss_type, box_loss, balance):
    losses = built(LOSS_TYPE=loss_type)
    assert losses.box_loss is None if box_loss is None else type(losses.box_loss) is box_loss
    assert type(losses.self_balance) is balance


@pytest.mark.parametrize("loss_type, published", [("alrp", 1.0), ("ap", 1.0), ("rs", 0.5)])
def test_a_delta_of_zero_is_the_published_one(loss_type, published):
    assert built(LOSS_TYPE=loss_type).delta == published
    assert built(LOSS_TYPE=loss_type, DELTA=0.0).delta == published
    assert HEAD_LOSSES[loss_type](num_classes=3).delta == published
    assert built(LOSS_TYPE=loss_type, DELTA=2.0).delta == 2.0


@pytest.mark.parametrize("loss_type", ["alrp", "ap", "rs"])
@pytest.mark.parametrize("delta", [-1.0, 1e-40, float("nan")])
def test_a_delta_out_of_range_is_refused_before_the_first_step(loss_type, delta):
    with pytest.raises(UserError, match=f"MODEL.ALRP: delta must lie.*but is {delta}"):
        built(LOSS_TYPE=loss_type, DELTA=delta)


def test_only_rs_loss_has_a_hard_step():
    assert HEAD_LOSSES["rs"](num_classes=3, delta=0.0).delta == 0.0
    for loss_type in ("alrp", "ap"):
        with pytest.raises(ValueError, match="delta must lie"):
            HEAD_LOSSES[loss_type](num_classes=3, delta=0.0)


@pytest.mark.parametrize("loss_type", ["alrp", "ap", "rs", "focal"])
@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_config_chooses_the_box_loss(loss_type, name):
    losses = built(LOSS_TYPE=loss_type, BOX_LOSS=name)
    assert type(losses.box_loss) is BOX_LOSSES[name]
    expected = float if name == "smooth_l1" else IterationBalance
    assert type(losses.self_balance) is expected


@pytest.mark.parametrize("name", ["", *BOX_LOSSES])
def test_a_constant_weight_goes_with_every_box_loss(name):
    keys = {"SELF_BALANCE.MODE": "constant", "SELF_BALANCE.WEIGHT": 3.0}
    assert built(BOX_LOSS=name, **keys).self_balance == 3.0


def test_balance_numbers_come_from_the_config():
    cfg = {"BOX_LOSS": "giou", "SELF_BALANCE.MAX_WEIGHT": 7.0}
    assert built(**cfg).self_balance.max_weight == 7.0
    assert built(**{**cfg, "SELF_BALANCE.ENABLED": False}).self_balance is None


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"BOX_LOSS": "ranked", "LOSS_TYPE": "rs"}, 'set BOX_LOSS "weighted_giou"'),
        ({"BOX_LOSS": "ranked", "LOSS_TYPE": "ap"}, 'set BOX_LOSS "weighted_giou", or LOSS_TYPE'),
        ({"BOX_LOSS": "diou"}, 'BOX_LOSS must be one of "ranked".*"diou"'),
        ({"SELF_BALANCE.MODE": "epoch"}, 'MODE must be one of "period".*"epoch"'),
        ({"BOX_LOSS": "giou", "SELF_BALANCE.MODE": "period"}, '"period" does not go with'),
        ({"SELF_BALANCE.MODE": "iteration"}, "SELF_BALANCE.PERIOD 1"),
        ({"BOX_LOSS": "giou", "SELF_BALANCE.MAX_WEIGHT": 0.0}, "max_weight must be"),
        ({"SELF_BALANCE.MODE": "constant", "SELF_BALANCE.WEIGHT": -1.0}, "but is -1.0"),
        ({"TAU": 1.0}, "tau must be in"),
    ],
)
def test_combinations_without_a_meaning_are_refused_with_what_to_set(keys, message):
    with pytest.raises(UserError, match=message):
        built(**keys)
