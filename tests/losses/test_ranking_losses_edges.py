"""Edges that aLRP and AP loss share; each runs backward."""

from __future__ import annotations

import gc
import numpy as np
import threading
import warnings
import pytest
import torch
from helpers.loss_cases import both, errors_for, random_case, total
from helpers.reference import alrp_reference, ap_reference
from torch.testing import assert_close

from alrp.losses import alrp_loss, ap_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")


WITHOUT_POSITIVES = {
    "all_negative": torch.tensor([0, 0, 0]),
    "all_ignored": torch.tensor([-1, -1, -1]),
    "negative_and_ignored": torch.tensor([-1, 0, -1]),
    "empty": torch.zeros(0, dtype=torch.int8),
}


@both
@pytest.mark.parametrize("case", WITHOUT_POSITIVES)
def test_without_positives_losses_are_zero_and_gradients_zero_not_none(loss, case, device):
    targets = WITHOUT_POSITIVES[case].to(device)
    logits = torch.linspace(-3, 3, len(targets), device=device).requires_grad_()
    errors = torch.zeros(0, device=device, requires_grad=True)
    value = total(loss, logits, targets, errors)
    value.backward()
    assert value.shape == torch.Size([])
    assert_close(value.detach(), torch.zeros((), device=device), rtol=0, atol=0)
    assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=0)
    if loss == "alrp":
        assert errors.grad is not None and errors.grad.shape == (0,)


@pytest.mark.parametrize("case", WITHOUT_POSITIVES)
def test_without_positives_each_part_of_alrp_has_its_own_graph(case):
    targets = WITHOUT_POSITIVES[case]
    logits = torch.zeros(len(targets), requires_grad=True)
    errors = torch.zeros(0, requires_grad=True)
    out = alrp_loss(logits, targets, errors)
    out.cls.backward()
    out.loc.backward()
    assert logits.grad is not None and errors.grad is not None
    assert out.rank.shape == (0,) and out.cls == 0 and out.loc == 0


@both
def test_without_negatives_logits_get_no_push(loss):
    logits = torch.tensor([0.9, -1.5, 0.2], requires_grad=True)
    targets = torch.ones(3, dtype=torch.int64)
    total(loss, logits, targets, errors_for(targets)).backward()
    assert_close(logits.grad, torch.zeros(3), rtol=0, atol=0)


@both
def test_one_positive_alone_has_rank_one(loss):
    logits, targets = torch.tensor([0.3], requires_grad=True), torch.tensor([1])
    value = total(loss, logits, targets, torch.tensor([0.7], requires_grad=True))
    value.backward()
    assert_close(value.detach(), torch.tensor(0.7 if loss == "alrp" else 0.0))
    assert_close(logits.grad, torch.zeros(1), rtol=0, atol=0)


@both
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("targets", [[1, -1, 0, 1], [0, -1, 0, 0], [-1, -1, -1, -1], [1, -1, 1, 1]])
def test_ignored_entries_may_hold_anything(loss, rubbish, targets):
    targets = torch.tensor(targets)
    logits = torch.tensor([0.3, 0.0, 0.1, -0.2], requires_grad=True)
    errors = errors_for(targets)
    expected = total(loss, logits, targets, errors)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    dirty = torch.where(targets == -1, rubbish, logits.detach()).requires_grad_()
    value = total(loss, dirty, targets, errors)
    value.backward()
    assert_close(value, expected, rtol=0, atol=0)
    assert_close(dirty.grad, expected_grad, rtol=0, atol=0)
    assert dirty.grad[1] == 0


@both
def test_non_contiguous_input_equals_contiguous_input(loss):
    logits, targets = random_case()
    errors = errors_for(targets)
    value = total(loss, logits.clone().requires_grad_(), targets, errors)
    leaf = torch.stack([logits, -logits], dim=1).requires_grad_()
    spread_targets = torch.stack([targets, targets], dim=1)[:, 0]
    spread_errors = torch.stack([errors, errors], dim=1)[:, 0]
    assert not leaf[:, 0].is_contiguous() and not spread_targets.is_contiguous()
    spread = total(loss, leaf[:, 0], spread_targets, spread_errors)
    spread.backward()
    assert_close(spread, value, rtol=0, atol=0)
    assert leaf.grad[:, 0].any() and not leaf.grad[:, 1].any()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_ranked_in_full_precision(loss, dtype, device):
    logits, targets = random_case(dtype)
    errors = errors_for(targets, requires_grad=False)
    oracle = ap_reference if loss == "ap" else alrp_reference
    arguments = [logits.double().numpy(), targets.numpy()] + [errors.numpy()] * (loss == "alrp")
    expected = oracle(*arguments)
    leaf = logits.to(device).requires_grad_()
    if loss == "ap":
        value = ap_loss(leaf, targets.to(device))
    else:
        value = alrp_loss(leaf, targets.to(device), errors.to(device)).cls
    value.backward()
    assert_close(value.double().cpu(), torch.tensor(expected.cls).double(), rtol=1e-6, atol=1e-6)
    assert leaf.grad.dtype == dtype
    grad = torch.from_numpy(expected.grad_logits)
    resolution = 4 * torch.finfo(dtype).eps
    assert (leaf.grad.double().cpu() - grad).norm() <= resolution * grad.norm()


@both
def test_float16_gradients_survive_the_scale_of_amp(loss, device):
    """2**16, where GradScaler starts, is no float16; and 1 / 400 000 is one only after scaling."""
    size = 400_002
    logits = torch.zeros(size, dtype=torch.float16, device=device, requires_grad=True)
    targets = torch.zeros(size, dtype=torch.int8, device=device)
    targets[:2] = 1
    (2.0**16 * total(loss, logits, targets, torch.zeros(2, device=device))).backward()
    # Each positive: FP = 200 000, rank = 1 + 1/2 + FP; the negatives share both errors equally.
    error = 2.0**16 * 200_000 / 200_001.5
    assert_close(logits.grad[0].item(), -error / 2, rtol=1e-3, atol=0)
    assert_close(logits.grad[2].item(), error / 400_000, rtol=1e-3, atol=0)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(loss, dtype):
    logits, targets = random_case(dtype)
    errors = errors_for(targets, dtype=dtype)
    results = []
    for enabled in (False, True):
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = total(loss, leaf, targets, errors)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert_close(results[1], results[0], rtol=0, atol=0)


@both
def test_nothing_requires_grad_gives_values_without_a_graph(loss):
    logits, targets = random_case()
    value = total(loss, logits, targets, errors_for(targets, requires_grad=False))
    assert not value.requires_grad and value > 0
    with torch.no_grad():
        again = total(loss, logits.requires_grad_(), targets, errors_for(targets))
    assert not again.requires_grad
    assert_close(again, value, rtol=0, atol=0)


@both
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str
)
def test_targets_of_any_integer_or_boolean_type_are_equal(loss, dtype):
    logits, _ = random_case(size=20)
    targets = torch.arange(20) % 3 == 0
    errors = errors_for(targets)
    expected = total(loss, logits.clone().requires_grad_(), targets.to(torch.int8), errors)
    leaf = logits.clone().requires_grad_()
    value = total(loss, leaf, targets.to(dtype), errors)
    value.backward()
    assert_close(value, expected, rtol=0, atol=0)
    assert leaf.grad.any()


@both
def test_inputs_are_left_as_they_were(loss):
    logits, targets = random_case()
    errors = errors_for(targets, requires_grad=False)
    copies = logits.clone(), targets.clone(), errors.clone()
    leaf = logits.requires_grad_()
    total(loss, leaf, targets, errors).backward()
    assert_close((logits.detach(), targets, errors), copies, rtol=0, atol=0)


@both
def test_two_runs_are_bit_equal(loss):
    logits, targets = random_case(size=5000)
    logits = (8 * logits).round() / 8  # with ties
    runs = []
    for _ in range(2):
        leaf = logits.clone().requires_grad_()
        value = total(loss, leaf, targets, errors_for(targets, requires_grad=False))
        value.backward()
        runs.append((value.detach(), leaf.grad))
    assert_close(runs[0], runs[1], rtol=0, atol=0)


@pytest.fixture
def deterministic():
    """Run a test under torch.use_deterministic_algorithms(True)."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@both
def test_deterministic_algorithms_give_the_same_bits_twice(loss, device, deterministic):
    """Sums by atomic additions would differ in the last bits on a GPU."""
    logits, targets = random_case(size=300_000)
    targets[targets == 1] = torch.arange(int((targets == 1).sum())) % 100 // 99
    logits, targets = logits.to(device), targets.to(device)
    errors = errors_for(targets, requires_grad=False).to(device)
    runs = []
    for _ in range(2):
        leaf = logits.clone().requires_grad_()
        value = total(loss, leaf, targets, errors)
        value.backward()
        runs.append((value.detach(), leaf.grad))
    assert runs[0][1].any()
    assert_close(runs[0], runs[1], rtol=0, atol=0)


@both
@pytest.mark.cuda
def test_a_call_reads_the_device_at_most_twice(loss):
    logits, targets = (x.cuda() for x in random_case(size=100_000))
    errors = errors_for(targets, requires_grad=False)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            total(loss, logits.requires_grad_(), targets, errors.cuda()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) <= 2


@both
def test_changing_the_logits_in_place_before_backward_is_refused(loss):
    """The gradient is formed in backward, from the logits as they were."""
    logits, targets = random_case()
    leaf = (1.0 * logits.requires_grad_()).clone()
    value = total(loss, leaf, targets, errors_for(targets))
    leaf.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@both
def test_a_graph_that_is_kept_gives_the_gradient_again(loss):
    logits, targets = random_case()
    leaf = logits.requires_grad_()
    value = total(loss, leaf, targets, errors_for(targets, requires_grad=False))
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(-2.0 * value, leaf)
    assert first.any()
    assert_close(again, -2.0 * first)


@both
def test_targets_may_be_a_slice_of_a_larger_tensor(loss):
    logits, targets = random_case()
    targets = targets.to(torch.int8)
    value = total(loss, logits[3:], targets[3:], errors_for(targets[3:]))
    apart = total(loss, logits[3:].clone(), targets[3:].clone(), errors_for(targets[3:]))
    assert_close(value, apart, rtol=0, atol=0)


@both
def test_nothing_of_the_size_of_the_logits_outlives_backward(loss):
    """A trainer holds its losses while the optimizer works."""
    logits, targets = random_case(size=1237)
    value = total(loss, logits.requires_grad_(), targets, errors_for(targets))
    value.backward()
    sized = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.numel() == 1237]
    assert {id(x) for x in sized} <= {id(logits), id(targets), id(logits.grad)}


@both
def test_backward_may_run_in_another_thread(loss):
    logits, targets = random_case(size=200_000)
    targets[targets == 1] = torch.arange(int((targets == 1).sum())) % 100 // 99
    errors = errors_for(targets, requires_grad=False)
    value = total(loss, logits.requires_grad_(), targets, errors)
    (expected,) = torch.autograd.grad(value, logits, retain_graph=True)
    thread = threading.Thread(target=value.backward)
    thread.start()
    thread.join()
    assert expected.any()
    assert_close(logits.grad, expected, rtol=0, atol=0)


@both
def test_inference_mode_gives_the_value(loss):
    logits, targets = random_case()
    expected = total(loss, logits, targets, errors_for(targets))
    with torch.inference_mode():
        value = total(loss, logits.clone(), targets, errors_for(targets, requires_grad=False))
    assert_close(value, expected.detach(), rtol=0, atol=0)


@both
def test_differentiating_twice_is_refused(loss):
    """The update is no derivative, so a second one would be meaningless."""
    logits, targets = random_case()
    leaf = logits.requires_grad_()
    value = total(loss, leaf, targets, errors_for(targets, requires_grad=False))
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_a_perfect_ranking_costs_only_localisation():
    logits = torch.tensor([5.0, 4.0, -3.0], requires_grad=True)
    errors = torch.tensor([0.2, 0.4], requires_grad=True)
    out = alrp_loss(logits, torch.tensor([1, 1, 0]), errors)
    (out.cls + out.loc).backward()
    assert out.cls == 0
    # ranks 1 and 2, but the two positives are 1 apart: (0.2 + (0.2 + 0.4) / 2) / 2
    assert_close(out.loc.detach(), torch.tensor(0.25))
    np.testing.assert_allclose(errors.grad.numpy(), [0.75, 0.25], rtol=1e-6)


def test_a_huge_negative_is_ranked():
    logits = torch.tensor([0.5, 1e30, -1e30], requires_grad=True)
    loss = ap_loss(logits, torch.tensor([1, 0, 0]))
    loss.backward()
    assert loss == 0.5
    assert_close(logits.grad, torch.tensor([-0.5, 0.5, 0.0]))
