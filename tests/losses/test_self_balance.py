"""SelfBalance: the rule, its state, and one weight for all processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.self_balance_worker import (
    PERIOD,
    STEPS,
    output_of,
    run_steps,
    train_and_resume,
    validate_unevenly,
)
from torch import nn
from torch.testing import assert_close

from alrp.losses import SelfBalance

BUFFERS = {
    "weight": torch.float32,
    "sum_cls": torch.float32,
    "sum_loc": torch.float32,
    "count": torch.int64,
}


def pooled_weights(steps, period, init=50.0):
    """Weight of each step from sums over all ranks; ``steps[t][rank]`` is (cls, loc) or None."""
    weight, counted, weights = init, [], []
    for ranks in steps:
        present = [pair for pair in ranks if pair is not None]
        if present:
            counted.append(np.sum(present, axis=0))
        if len(counted) == period:
            cls, loc = np.sum(counted, axis=0)
            weight, counted = (loc + cls) / loc, []
        weights.append(weight)
    return weights


def test_published_run_of_25_steps(golden):
    case = golden("self_balance_period6")
    balance = SelfBalance(int(case["period"]), float(case["initial_weight"]))
    for t, has_positive in enumerate(case["has_positive"]):
        pair = (float(case["loss_cls"][t]), float(case["loss_bbox_before_sb"][t]))
        out = output_of(pair if has_positive else None)
        weight = balance(out)
        np.testing.assert_allclose(weight.item(), case["sb_weight"][t], rtol=1e-6)
        np.testing.assert_allclose((weight * out.loc).item(), case["loss_bbox"][t], rtol=1e-6)
        assert balance.count.item() == case["counter_after"][t]


def test_weight_starts_at_50_and_is_renewed_before_the_last_step_of_a_period_uses_it():
    steps = [(0.9, 0.1), (0.7, 0.3), (0.5, 0.1)]
    weights = run_steps(SelfBalance(2), steps)
    np.testing.assert_allclose(weights, [50, (0.4 + 1.6) / 0.4, (0.4 + 1.6) / 0.4], rtol=1e-6)


def test_periods_do_not_overlap():
    steps = [(0.9, 0.1), (0.7, 0.3), (0.5, 0.1), (0.3, 0.1)]
    np.testing.assert_allclose(run_steps(SelfBalance(2), steps)[-1], (0.2 + 0.8) / 0.2, rtol=1e-6)


def test_period_of_one_renews_every_step():
    weights = run_steps(SelfBalance(1), [(0.9, 0.1), (0.5, 0.5)])
    np.testing.assert_allclose(weights, [10, 2], rtol=1e-6)


def test_steps_without_positives_neither_count_nor_enter_the_means():
    steps = [(0.9, 0.1), None, None, (0.7, 0.3), None]
    np.testing.assert_allclose(run_steps(SelfBalance(2), steps), [50, 50, 50, 5, 5], rtol=1e-6)


def test_weight_is_a_detached_scalar_of_its_own():
    balance = SelfBalance(1)
    weight = balance(output_of((0.9, 0.1)))
    assert weight.shape == torch.Size([]) and not weight.requires_grad
    before = weight.clone()
    balance(output_of((0.1, 0.9)))
    assert_close(weight, before, rtol=0, atol=0)  # a later renewal does not reach it


def test_backward_of_an_earlier_loss_works_after_a_renewal():
    balance = SelfBalance(1)
    out = output_of((0.9, 0.1))
    loss = balance(out) * out.loc
    balance(output_of((0.5, 0.5)))
    loss.backward()
    assert_close(out.loc.grad, torch.tensor(10.0))


def test_perfect_localisation_keeps_the_weight_and_ends_the_period():
    weights = run_steps(SelfBalance(1), [(0.5, 0.0), (0.5, 0.1)])
    np.testing.assert_allclose(weights, [50, 6], rtol=1e-6)


def test_the_period_may_be_set_after_construction():
    balance = SelfBalance()
    balance.period = 1
    np.testing.assert_allclose(run_steps(balance, [(0.9, 0.1)]), [10], rtol=1e-6)


@pytest.mark.parametrize("period", [None, 2])
def test_evaluation_returns_the_weight_and_changes_nothing(period):
    balance = SelfBalance(period, init_weight=7.0).eval()
    state = {name: value.clone() for name, value in balance.state_dict().items()}
    assert run_steps(balance, [(0.9, 0.1)] * 3) == [7.0] * 3
    assert_close(dict(balance.state_dict()), state, rtol=0, atol=0)


def state_of(balance):
    return {name: value.clone() for name, value in balance.state_dict().items()}


def count_under_no_grad(balance):
    with torch.no_grad():
        return balance(output_of((0.9, 0.1)))


def count_in_inference_mode(balance):
    with torch.inference_mode():
        return balance(output_of((0.9, 0.1)))


def count_without_gradients(balance):
    return balance(type(output_of(None))(*(part.detach() for part in output_of((0.9, 0.1)))))


def count_while_paused(balance):
    with balance.paused():
        return balance(output_of((0.9, 0.1)))


@pytest.mark.parametrize(
    "call",
    [count_under_no_grad, count_in_inference_mode, count_without_gradients, count_while_paused],
)
@pytest.mark.parametrize("period", [None, 1])
def test_a_validation_loss_in_training_mode_does_not_count(call, period):
    balance = SelfBalance(period, init_weight=7.0)
    before = state_of(balance)
    assert call(balance) == 7.0
    assert_close(state_of(balance), before, rtol=0, atol=0)


def test_counting_goes_on_after_a_pause_that_was_left_by_an_error():
    balance = SelfBalance(1)
    with pytest.raises(ZeroDivisionError), balance.paused(), balance.paused():
        1 / 0
    np.testing.assert_allclose(run_steps(balance, [(0.9, 0.1)]), [10], rtol=1e-6)


def test_frozen_scores_do_not_stop_the_counting():
    out = output_of((0.9, 0.1))._replace(cls=torch.tensor(0.9))
    np.testing.assert_allclose(SelfBalance(1)(out).item(), 10, rtol=1e-6)


def test_training_without_a_period_tells_how_to_set_it():
    with pytest.raises(RuntimeError, match="(?i)period"):
        SelfBalance()(output_of((0.9, 0.1)))


@pytest.mark.parametrize("period", [0, -3, float("nan")])
def test_period_must_be_at_least_one(period):
    with pytest.raises(ValueError, match=f"period.*{period}"):
        SelfBalance(period)


@pytest.mark.parametrize("weight", [0, -5.0, float("nan"), float("inf")])
def test_initial_weight_must_be_a_positive_number(weight):
    with pytest.raises(ValueError, match=f"init_weight.* above 0, but is {weight};"):
        SelfBalance(5, weight)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("weight", value) for value in (0.0, -5.0, float("nan"), float("inf"))),
        *(("sum_cls", value) for value in (-1.0, float("nan"))),
        *(("sum_loc", value) for value in (-1.0, float("inf"))),
        ("count", -1000),
    ],
)
def test_an_impossible_state_is_refused_by_name(name, value):
    model = nn.ModuleDict({"balance": SelfBalance(3)})
    state = model.state_dict()
    state[f"balance.{name}"] = torch.tensor(value)
    with pytest.raises(ValueError, match=f"balance.{name} is {value}, but "):
        model.load_state_dict(state)


def test_a_state_on_the_meta_device_loads():
    with torch.device("meta"):
        state = SelfBalance(3).state_dict()
        SelfBalance(3).load_state_dict(state)


def test_state_is_four_buffers_and_no_parameters():
    balance = SelfBalance(2)
    assert {name: value.dtype for name, value in balance.state_dict().items()} == BUFFERS
    assert all(value.shape == torch.Size([]) for value in balance.state_dict().values())
    assert not list(balance.parameters())


@pytest.mark.parametrize("stop", range(1, 8))
def test_resuming_at_any_step_continues_as_if_uninterrupted(stop):
    steps = [(0.9, 0.1), None, (0.7, 0.3), (0.5, 0.2), (0.6, 0.4), None, (0.4, 0.1), (0.2, 0.3)]
    whole = SelfBalance(3)
    expected = run_steps(whole, steps)
    first, second = SelfBalance(3), SelfBalance(3, init_weight=1.0)
    weights = run_steps(first, steps[:stop])
    second.load_state_dict(first.state_dict())
    weights += run_steps(second, steps[stop:])
    assert weights == expected
    assert_close(dict(second.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def test_a_checkpoint_without_its_keys_loads_strictly_and_leaves_the_start_values():
    class Model(nn.Module):
        def __init__(self, balanced):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            if balanced:
                self.self_balance = SelfBalance(3, init_weight=12.0)

    model = Model(balanced=True)
    model.load_state_dict(Model(balanced=False).state_dict(), strict=True)
    assert model.self_balance.weight == 12 and model.self_balance.count == 0
    assert model.self_balance.sum_cls == 0 and model.self_balance.sum_loc == 0


def test_a_checkpoint_with_part_of_its_keys_is_reported():
    state = SelfBalance(3).state_dict()
    del state["count"]
    with pytest.raises(RuntimeError, match="count"):
        SelfBalance(3).load_state_dict(state, strict=True)


def test_strict_loading_still_reports_other_missing_keys():
    model = nn.Sequential(nn.Linear(2, 2), SelfBalance(3))
    with pytest.raises(RuntimeError, match="0.bias"):
        model.load_state_dict({"0.weight": torch.zeros(2, 2)}, strict=True)


def test_buffers_move_with_the_module(device):
    balance = SelfBalance(1).to(device)
    out = output_of((0.9, 0.1))
    weight = balance(type(out)(*(part.to(device) for part in out)))
    assert weight.device.type == device.type
    assert_close(weight.cpu(), torch.tensor(10.0))


def test_float64_losses_are_accepted():
    out = output_of((0.9, 0.1))
    weight = SelfBalance(1)(type(out)(*(part.double() for part in out)))
    assert_close(weight.float(), torch.tensor(10.0))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """(2 ranks, [uninterrupted, resumed], steps) weights of two Gloo processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no Gloo")
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(train_and_resume, args=(2, str(folder)), nprocs=2)
    return np.stack([np.load(folder / f"rank{rank}.npy") for rank in range(2)])


def test_two_processes_hold_the_same_weight_in_every_step(two_processes):
    np.testing.assert_array_equal(two_processes[0], two_processes[1])


def test_two_processes_follow_the_rule_on_the_pooled_sums(two_processes):
    np.testing.assert_allclose(two_processes[0, 0], pooled_weights(STEPS, PERIOD), rtol=1e-6)


def test_two_processes_resume_from_the_checkpoint_of_the_first(two_processes):
    np.testing.assert_array_equal(two_processes[:, 1], two_processes[:, 0])


def test_uneven_validation_passes_neither_hang_nor_count(tmp_path):
    """Each collective call of a pass would wait for the process that has fewer of them."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no Gloo")
    torch.multiprocessing.spawn(validate_unevenly, args=(2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        validated, plain = torch.load(tmp_path / f"rank{rank}.pth", weights_only=True)
        assert_close(dict(validated), dict(plain), rtol=0, atol=0)
        assert plain["count"] == 1 and plain["weight"] != 50
