"""Training in micro-batches: the step is that of the whole batch."""

from __future__ import annotations

import copy
import functools
import pytest
import torch
from helpers.micro_batch_models import (
    MODELS,
    STEPS,
    make_batch,
    tiny_config,
    train,
    train_in_one_of_two_processes,
)
from helpers.processes import run_two
from helpers.rcnn_models import EMPTY, FULL, small_rcnn
from torch import nn
from torch.testing import assert_close

from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.utils.events import EventStorage

from alrp.errors import UserError
from alrp.modeling import ALRPRetinaNet
from alrp.modeling.micro_batches import in_micro_batches, set_micro_batch_size

CLIPPED = {
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1,
}
RCNN_BATCH = [FULL, EMPTY, FULL]
VARIANTS = {name: (name, {}) for name in MODELS}
VARIANTS["retinanet_ap_clipped"] = ("retinanet_ap", CLIPPED)


def variant_config(name):
    model, options = VARIANTS[name]
    return tiny_config(model, **options)


@functools.lru_cache(maxsize=None)
def whole_batch(name, dtype):
    """Losses and model of a training on the whole batch."""
    return train(variant_config(name), 0, make_batch(dtype))


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def assert_same_state(model, expected, rtol):
    """Parameters in norm, and all state of the self-balance."""
    difference = (trained(model) - trained(expected)).norm()
    assert difference <= rtol * trained(expected).norm()
    buffers = dict(expected.named_buffers())
    for name, buffer in model.named_buffers():
        assert_close(buffer, buffers[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_train_as_the_whole_batch_does(name, size):
    losses, expected = whole_batch(name, torch.float32)
    own_losses, model = train(variant_config(name), size, make_batch())
    assert_close(own_losses, losses, rtol=1e-6, atol=1e-6)
    assert_same_state(model, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_in_double_precision_the_parameters_agree_to_ten_digits(name, size):
    losses, expected = whole_batch(name, torch.float64)
    own_losses, model = train(variant_config(name), size, make_batch(torch.float64))
    assert_close(own_losses, losses, rtol=1e-10, atol=1e-10)
    assert_same_state(model, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["alrp", "rs_cascade", "rs_mask", "ce"])
def test_two_stage_detectors_train_as_with_the_whole_batch(name):
    """Backbone and RPN head take micro-batches, and the box head that ranks; others see all."""
    results = []
    for size in (0, 2):
        model, passes = small_rcnn(name), []
        set_micro_batch_size(model, size)
        for pooler in model.roi_heads.box_pooler.modules():
            if isinstance(pooler, ROIPooler):
                pooler.register_forward_pre_hook(lambda *args: passes.append(args))
        torch.manual_seed(0)  # of what RPN and box head draw
        with EventStorage(0):
            losses = model(copy.deepcopy(RCNN_BATCH))
        sum(losses.values()).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        results.append((losses, torch.cat(gradients), len(passes)))
    (losses, gradients, num_passes), (own_losses, own_gradients, own_num_passes) = results
    assert_close(own_losses, losses, rtol=1e-5, atol=1e-6)
    assert (own_gradients - gradients).norm() <= 1e-4 * gradients.norm()
    # Two micro-batches pass twice.
    assert own_num_passes == num_passes * (1 if name == "ce" else 4)


@pytest.mark.parametrize("name", MODELS)
def test_each_micro_batch_alone_would_be_another_training(name):
    """So the tests above tell one ranking from several, as of accumulated gradients."""
    batch = make_batch(torch.float64)
    _, expected = whole_batch(name, torch.float64)
    _, half = train(tiny_config(name), 0, batch[:4])
    assert (trained(half) - trained(expected)).norm() > 1e-6 * trained(expected).norm()


def test_self_balance_counts_one_step_for_all_micro_batches():
    cfg = tiny_config("retinanet_alrp_ATSS", **{"MODEL.ALRP.SELF_BALANCE.PERIOD": 100})
    _, model = train(cfg, 1, make_batch())
    assert model.head_losses.self_balance.count == STEPS


def test_two_processes_with_uneven_micro_batches_train_as_one_with_the_whole_batch(tmp_path):
    ranks = run_two(train_in_one_of_two_processes, tmp_path)
    batch = make_batch(torch.float64)
    losses, expected = train(tiny_config("retinanet_alrp_ATSS"), 0, batch)
    for own_losses, state, reduced in ranks:
        assert_close(own_losses, losses, rtol=1e-10, atol=1e-10)
        # The sums of the self-balance are over the processes, and both ranked all images.
        sums = [name for name in state if ".sum_" in name]
        for key in sums:
            state[key] /= 2
        assert len(sums) == 2
        assert_close(state, expected.state_dict(), rtol=1e-9, atol=1e-12)
        assert reduced == [0] * STEPS  # one bucket, once in each step


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return {"outputs": [nn.functional.dropout(self.conv(images), 0.5)]}


def gradient(run):
    """Outputs and gradient of a noisy network, for a loss that is not linear in the outputs."""
    torch.manual_seed(0)
    network, images = Noisy(), torch.randn(5, 3, 8, 8)
    outputs = run(network, images)
    outputs.float().square().sum().backward()
    return outputs.detach(), network.conv.weight.grad, torch.rand(1)


def test_the_second_pass_has_the_random_numbers_of_the_first():
    def once(network, images):
        return torch.cat([network(part)["outputs"][0] for part in images.split(2)])

    def twice(network, images):
        return in_micro_batches(network, [images], 2)["outputs"][0]

    for actual, expected in zip(gradient(twice), gradient(once)):
        assert_close(actual, expected, rtol=0, atol=1e-6)


def test_the_second_pass_has_the_mixed_precision_of_the_first():
    """A weight's gradients of two micro-batches are added in single precision."""

    def all_at_once(network, images):
        with torch.autocast("cpu", torch.bfloat16):
            return in_micro_batches(network, [images], 2)["outputs"][0]

    def one_by_one(network, images):
        outputs = []
        for part in images.split(2):
            with torch.autocast("cpu", torch.bfloat16):
                outputs.append(network(part)["outputs"][0])
        return torch.cat(outputs)

    actual, expected = gradient(all_at_once), gradient(one_by_one)
    assert actual[0].dtype == torch.bfloat16
    assert_close(actual, expected, rtol=0, atol=1e-6)


def test_scaled_gradients_of_mixed_precision_give_the_step_of_the_whole_batch():
    states = []
    for size in (0, 3):
        cfg, batch = tiny_config("retinanet_alrp_ATSS"), make_batch()
        torch.manual_seed(0)
        model = build_model(cfg)
        before = trained(model)
        set_micro_batch_size(model, size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with EventStorage(0), torch.autocast("cpu", torch.bfloat16):
            losses = sum(model(batch).values())
        scaler.scale(losses).backward()
        scaler.step(optimizer)
        states.append(trained(model) - before)
    # bfloat16 has 8 bits.
    assert (states[1] - states[0]).norm() < 0.02 * states[0].norm()


def test_an_image_without_finite_predictions_is_named():
    torch.manual_seed(0)
    model = build_model(tiny_config("retinanet_rs"))
    for size in (0, 3):
        set_micro_batch_size(model, size)
        batch = make_batch()
        batch[4]["image"][0, 0, 0] = float("nan")
        with EventStorage(0), pytest.raises(FloatingPointError) as raised:
            model(batch)
        message = " Predictions for 1 of 8 images are NaN or Inf: folder/4.jpg."
        assert str(raised.value).endswith(message)


def test_batch_norm_that_trains_is_refused_and_in_eval_mode_is_not():
    model = build_model(tiny_config("retinanet_rs", **{"MODEL.RETINANET.NORM": "BN"}))
    with pytest.raises(
        UserError, match="^KEY: 2 was asked for, but head.cls_subnet.1.0 is batch.* KEY to 0[.]$"
    ):
        set_micro_batch_size(model, 2, "KEY")
    set_micro_batch_size(model, 0)

    class InEvalMode(ALRPRetinaNet):
        def train(self, mode=True):
            super().train(mode)
            self.head.eval()
            return self

    model.__class__ = InEvalMode
    set_micro_batch_size(model, 2)
    assert model.micro_batch_size == 2


def test_a_negative_size_is_refused():
    with pytest.raises(UserError, match="^micro_batch_size: expected a number of images, or 0"):
        set_micro_batch_size(nn.Identity(), -1)


def test_a_model_of_others_is_refused_by_its_name():
    cfg = tiny_config("retinanet_ap")
    model = META_ARCH_REGISTRY.get("RetinaNet")(cfg)
    with pytest.raises(UserError, match="^micro_batch_size: RetinaNet takes no micro-batches"):
        set_micro_batch_size(model, 2)
    set_micro_batch_size(model, 0)
