"""The RetinaNet as a Detectron2 meta-architecture: matching, losses, inference, state."""

from __future__ import annotations

import copy
import pytest
import torch
from helpers.detectors import (
    RETINANET,
    USUAL,
    NoBackbone,
    golden_anchors,
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

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from alrp.losses import SelfBalance
from alrp.modeling import (
    ALRPHeadLosses,
    ALRPRetinaNet,
    APHeadLosses,
    ATSSMatcher,
    BoxDeltaTransform,
    MaxIoUMatcher,
)

ATSS_CASES = [
    "alrp_retina_atss_random",
    "alrp_retina_atss_crowded",
    "alrp_retina_atss_single_scale",
]
MAX_IOU_CASES = [
    "alrp_retina_maxiou_random",
    "alrp_retina_maxiou_classes80",
    "alrp_retina_maxiou_different_pad_shapes",
    "alrp_retina_maxiou_one_image_without_gt",
    "ap_retina_random",
]


BATCH = [image(64, 96, USUAL, [0, 2]), image(64, 96)]


def golden_model(case, matcher, loss_type="alrp"):
    num_classes = int(case["num_classes"])
    losses = APHeadLosses(num_classes=num_classes)
    if loss_type == "alrp":
        losses = ALRPHeadLosses(num_classes=num_classes, self_balance=SelfBalance(period=1000))
    return ALRPRetinaNet(
        backbone=NoBackbone(),
        head=nn.Identity(),
        head_in_features=[f"p{i}" for i in range(3, 8)],
        anchor_generator=None,
        box2box_transform=BoxDeltaTransform((10.0, 10.0, 5.0, 5.0)),
        anchor_matcher=matcher,
        num_classes=num_classes,
        head_losses=losses,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )


def golden_labels(case):
    """Per image, the labels and boxes that follow from the stored assignment."""
    labels, boxes = [], []
    for i, assigned in enumerate(torch.from_numpy(case["assigned_gt_inds"])):
        classes = torch.from_numpy(case[f"gt_labels_image{i}"])
        gt_boxes = torch.from_numpy(case[f"gt_boxes_image{i}"])
        labels_i = torch.full_like(assigned, int(case["num_classes"]))
        boxes_i = torch.zeros(len(assigned), 4)
        positive = assigned > 0
        labels_i[positive] = classes[assigned[positive] - 1]
        boxes_i[positive] = gt_boxes[assigned[positive] - 1]
        labels_i[assigned == -1] = -1
        labels.append(labels_i)
        boxes.append(boxes_i)
    return labels, boxes


@pytest.mark.parametrize("name", ATSS_CASES + MAX_IOU_CASES)
def test_published_assignment_wherever_it_does_not_hang_on_a_tie(golden, name):
    case = golden(name)
    matcher = ATSSMatcher(9) if name in ATSS_CASES else MaxIoUMatcher(0.5, 0.4)
    labels, boxes = golden_model(case, matcher).label_anchors(
        golden_anchors(case), golden_instances(case)
    )
    expected_labels, expected_boxes = golden_labels(case)
    num_classes = int(case["num_classes"])
    for i in range(2):
        firm = torch.from_numpy(case["assignment_sensitive"][i]) == 0
        assert firm.float().mean() > 0.98
        assert torch.equal(labels[i][firm], expected_labels[i][firm])
        positive = firm & (labels[i] >= 0) & (labels[i] < num_classes)
        assert torch.equal(boxes[i][positive], expected_boxes[i][positive])


@pytest.mark.parametrize("name", ATSS_CASES + MAX_IOU_CASES)
def test_published_losses_and_gradients(golden, name):
    case = golden(name)
    num_classes = int(case["num_classes"])
    model = golden_model(case, None, "ap" if name.startswith("ap") else "alrp")
    predictions = golden_predictions(case)
    logits, deltas = model._transpose_dense_predictions(predictions, [num_classes, 4])
    labels, boxes = golden_labels(case)
    losses = model.losses(golden_anchors(case), logits, labels, deltas, boxes)
    sum(losses.values()).backward()

    assert losses["loss_cls"].item() == pytest.approx(float(case["loss_cls"]), rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(float(case["loss_bbox"]), rel=1e-5)
    assert max(golden_gradient_errors(case, predictions)) < 1e-5


@pytest.mark.parametrize("name", ATSS_CASES)
def test_anchor_generator_of_the_config_gives_the_published_anchors(golden, name):
    case = golden(name)
    if "single_scale" in name:
        sizes = [[8.0 * stride] for stride in (8, 16, 32, 64, 128)]
    else:
        sizes = small_config(RETINANET).MODEL.ANCHOR_GENERATOR.SIZES
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[1.0]], strides=[8, 16, 32, 64, 128], offset=0.0
    )
    features = [torch.zeros(1, 1, h, w) for h, w in case["feature_sizes"].tolist()]
    anchors = torch.cat([x.tensor for x in generator(features)])
    assert_close(anchors, torch.from_numpy(case["anchors"]), rtol=0, atol=1e-4)


def test_a_batch_without_positives_trains_through_with_zero_gradients():
    model = small_model(RETINANET)
    losses, _ = train_step(model, [image(64, 96), image(64, 64)])
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), name
    assert model.head_losses.self_balance.count == 0


def test_anchors_beyond_the_own_padding_of_an_image_are_ignored():
    model = small_model(RETINANET)
    anchors = model.anchor_generator(
        [torch.zeros(1, 1, 128 // 2**i, 160 // 2**i) for i in (3, 4, 5)]
    )
    small = image(70, 90, [[5, 5, 40, 50]], [1])["instances"]  # padded to 96 x 96
    large = image(128, 160)["instances"]
    labels, _ = model.label_anchors(anchors, [small, large])
    assert (labels[1] >= 0).all()
    centers = Boxes.cat(anchors).get_centers()
    outside = (centers[:, 0] > 95.5) | (centers[:, 1] > 95.5)
    assert torch.equal(labels[0] == -1, outside)
    assert outside.any() and (labels[0] == 1).any()


def test_a_validation_loss_in_training_mode_leaves_no_events_and_no_state():
    model = small_model(RETINANET).train()
    before = copy.deepcopy(model.head_losses.self_balance.state_dict())
    with torch.no_grad(), EventStorage(19) as storage:
        assert model(copy.deepcopy(BATCH))["loss_cls"] > 0
    assert storage.latest() == {}
    assert model.head_losses.self_balance.state_dict() == before


def test_self_balance_state_travels_in_the_state_dict():
    model = small_model(RETINANET)
    for _ in range(3):
        train_step(model, BATCH)
    other = small_model(RETINANET)
    other.load_state_dict(model.state_dict())
    ours, theirs = model.head_losses.self_balance, other.head_losses.self_balance
    assert ours.weight != 50.0 and ours.count == 1
    assert_close(theirs.weight, ours.weight, rtol=0, atol=0)
    losses, _ = train_step(model, BATCH)
    resumed, _ = train_step(other, BATCH)
    assert_close(resumed["loss_box_reg"], losses["loss_box_reg"], rtol=0, atol=0)


def test_state_dict_without_self_balance_loads():
    state = {
        k: v for k, v in small_model(RETINANET).state_dict().items() if "self_balance" not in k
    }
    model = small_model(RETINANET)
    model.load_state_dict(state, strict=True)
    assert model.head_losses.self_balance.weight == 50.0


def test_self_balance_can_be_switched_off():
    model = small_model(RETINANET, **{"MODEL.ALRP.SELF_BALANCE.ENABLED": False})
    assert not [name for name in model.state_dict() if "self_balance" in name]
    losses, _ = train_step(model, BATCH)
    balanced, _ = train_step(small_model(RETINANET), BATCH)
    assert_close(50 * losses["loss_box_reg"], balanced["loss_box_reg"])


@pytest.mark.parametrize("broken", ["cls_score", "bbox_pred"])
def test_nan_weights_are_named(broken):
    model = small_model(RETINANET)
    nn.init.constant_(getattr(model.head, broken).weight, float("nan"))
    name = {"cls_score": "logits", "bbox_pred": "loc_errors"}[broken]
    with pytest.raises(FloatingPointError, match=name):
        train_step(model, BATCH)


def test_inputs_without_instances_in_training_mode_are_told_so():
    with pytest.raises(ValueError, match=r'no "instances" to learn from; call model.eval\(\)'):
        small_model(RETINANET)([{"image": torch.zeros(3, 64, 64)}])


def test_a_head_without_a_period_says_how_to_set_it():
    model = small_model(RETINANET, **{"MODEL.ALRP.SELF_BALANCE.PERIOD": 0})
    with pytest.raises(RuntimeError, match="SELF_BALANCE.PERIOD"):
        train_step(model, BATCH)


@pytest.mark.parametrize("key, value", [("LOSS_TYPE", "focal"), ("MATCHER", "hungarian")])
def test_an_unknown_choice_lists_the_choices(key, value):
    with pytest.raises(
        ValueError, match=f'MODEL.ALRP.{key} must be ".*" or ".*", but is "{value}"'
    ):
        small_model(RETINANET, **{f"MODEL.ALRP.{key}": value})


def test_all_classes_of_the_best_anchors_pass_and_boxes_are_clipped_before_nms():
    model = small_model(RETINANET).eval()
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 60, 60], [5, 5, 9, 9]]))
    scores = torch.tensor([[0.9, 0.2, 0.01], [0.6, 0.5, 0.4], [0.55, 0.54, 0.53]])
    result = model._decode_multi_level_predictions(
        [anchors], [scores], [torch.zeros(3, 4)], 0.05, topk_candidates=2, image_size=(50, 40)
    )
    # The third anchor is not among the best two, though its pairs outscore others that pass.
    assert_close(result.scores, torch.tensor([0.9, 0.2, 0.6, 0.5, 0.4]))
    assert result.pred_classes.tolist() == [0, 1, 0, 1, 2]
    assert_close(result.pred_boxes.tensor[2], torch.tensor([20.0, 20, 40, 50]))


def test_candidates_of_all_levels_are_those_of_each_level_in_turn(generator):
    model = small_model(RETINANET).eval()
    corners = [50 * torch.rand(n, 2, generator=generator) for n in (30, 5, 1)]
    anchors = [Boxes(torch.cat([x, x + 20], dim=1)) for x in corners]
    scores = [torch.rand(len(x), 3, generator=generator) for x in corners]
    deltas = [torch.randn(len(x), 4, generator=generator) for x in corners]
    options = {"score_thresh": 0.3, "topk_candidates": 10, "image_size": (60, 70)}
    found = model._decode_multi_level_predictions(anchors, scores, deltas, **options)
    alone = [
        model._decode_multi_level_predictions(*([x] for x in level), **options)
        for level in zip(anchors, scores, deltas)
    ]
    assert len(found) > 20
    for name, values in Instances.cat(alone).get_fields().items():
        values, ours = (getattr(x, "tensor", x) for x in (values, found.get(name)))
        assert torch.equal(values, ours), name


def test_batch_norm_stays_in_eval_mode_while_its_affine_trains():
    model = small_model(RETINANET).train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms and not any(m.training for m in norms.values())
    assert all(m.weight.requires_grad for m in norms.values())
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    train_step(model, BATCH)
    assert all(torch.equal(m.running_mean, before[n]) for n, m in norms.items())
    assert any(m.weight.grad.any() for m in norms.values())


def test_stem_and_first_stage_are_frozen():
    frozen = {n for n, p in small_model(RETINANET).named_parameters() if not p.requires_grad}
    assert frozen and all(".stem." in n or ".res2." in n for n in frozen)


def test_p7_sees_p6_without_relu():
    block = small_model(RETINANET).backbone.top_block
    c5 = torch.randn(1, 512, 4, 4, generator=torch.Generator().manual_seed(0))
    p6, p7 = block(c5)
    assert (p6 < 0).any()
    assert_close(p7, block.p7(p6))
