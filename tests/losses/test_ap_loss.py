"""ap_loss: worked examples and invariants of the interpolated precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reference import ap_reference
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from alrp.losses import APLoss, alrp_loss, ap_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def gradient(logits, targets, **options):
    """(loss, d loss / d logits) from a fresh leaf."""
    leaf = logits.detach().clone().requires_grad_()
    loss = ap_loss(leaf, targets, **options)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


# logits, targets, loss, gradient
VECTORS = {
    "no_interpolation": (
        [2, 0.5, -1, 1.2, 0.3, -0.4, -2.5, 3],
        [1, 1, 1, 0, 0, 0, 0, -1],
        0.322536,
        [-0.030303, -0.131313, -0.160920, 0.173633, 0.097875, 0.051028, 0, 0],
    ),
    "interpolated": (
        [1, 0.6, -0.2, 1.4, -1.5],
        [1, 1, 1, 0, 0],
        0.256410,
        [-0.085470, -0.085470, -0.085470, 0.256410, 0],
    ),
    "no_negative_within_reach": ([3, 2, -3], [1, 1, 0], 0.0, [0, 0, 0]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_published_vector(name, device):
    logits, targets, loss, grad = VECTORS[name]
    actual = gradient(double(logits).to(device), torch.tensor(targets, device=device))
    six_digits = {"rtol": 0, "atol": 6e-7, "check_device": False}
    assert_close(actual, (double(loss), double(grad)), **six_digits)


@pytest.mark.parametrize("name", VECTORS)
def test_the_oracle_gives_the_published_vector(name):
    logits, targets, loss, grad = VECTORS[name]
    expected = ap_reference(logits, targets)
    np.testing.assert_allclose(expected.cls, loss, atol=6e-7)
    np.testing.assert_allclose(expected.grad_logits, grad, atol=6e-7)


def test_precision_of_a_later_positive_lifts_that_of_an_earlier_one():
    # ranks 2, 3 and false positives 1, 1: precision 1/2, then 2/3, which both count.
    loss, grad = gradient(double([1.0, -1.0, 5.0]), torch.tensor([1, 1, 0]))
    assert_close(loss, double(1 / 3))
    assert_close(grad, double([-1 / 6, -1 / 6, 1 / 3]))


@st.composite
def problems(draw):
    """Exact logits (grid 1/16 in [-5, 5]) and shuffled targets with at least one positive."""
    targets = [1] * draw(st.integers(1, 6)) + [0] * draw(st.integers(0, 12))
    targets = draw(st.permutations(targets + [-1] * draw(st.integers(0, 3))))
    grid = st.lists(st.integers(-80, 80), min_size=len(targets), max_size=len(targets))
    return double(draw(grid)) / 16, torch.tensor(targets)


def assert_same(actual, expected):
    assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@given(problem=problems(), shift=st.integers(-1000, 1000))
def test_adding_a_constant_to_all_logits_changes_nothing(problem, shift):
    logits, targets = problem
    assert_same(gradient(logits + shift, targets), gradient(logits, targets))


@given(problem=problems(), factor=st.sampled_from([0.125, 2.0, 1024.0]))
def test_scaling_logits_and_delta_together_changes_nothing(problem, factor):
    logits, targets = problem
    scaled = gradient(factor * logits, targets, delta=0.75 * factor)
    assert_same(scaled, gradient(logits, targets, delta=0.75))


@given(problem=problems(), data=st.data())
def test_permuting_the_entries_permutes_the_gradients(problem, data):
    logits, targets = problem
    p = torch.tensor(data.draw(st.permutations(range(len(logits)))))
    loss, grad = gradient(logits, targets)
    assert_same(gradient(logits[p], targets[p]), (loss, grad[p]))


@given(problem=problems())
def test_positive_and_negative_gradients_balance(problem):
    logits, targets = problem
    loss, grad = gradient(logits, targets)
    assert_same(grad[targets == 1].sum(), -loss)  # each positive gets -(1 - precision) / P
    assert_same(grad[targets == 0].sum(), loss)
    assert (grad[targets == 1] <= 0).all() and (grad[targets == 0] >= 0).all()


@given(problem=problems())
def test_ignored_entries_get_exactly_zero_and_do_not_matter(problem):
    logits, targets = problem
    kept = targets >= 0
    loss, grad = gradient(logits, targets)
    assert not grad[~kept].any()
    assert_same(gradient(logits[kept], targets[kept]), (loss, grad[kept]))


@given(problem=problems())
def test_interpolation_never_raises_the_loss_above_that_of_plain_precision(problem):
    logits, targets = problem
    plain = alrp_loss(logits, targets, torch.zeros(int(targets.eq(1).sum())).double()).cls
    loss, _ = gradient(logits, targets)
    assert 0 <= loss < 1 and loss <= plain + 1e-12


@given(problem=problems(), count=st.integers(1, 5), below=st.integers(0, 40))
def test_negatives_below_the_margin_do_not_matter(problem, count, below):
    logits, targets = problem
    extra = logits[targets == 1].min().expand(count) - 1 - below / 16
    loss, grad = gradient(logits, targets)
    more, more_grad = gradient(
        torch.cat([logits, extra]), torch.cat([targets, torch.zeros(count).long()])
    )
    assert_same((more, more_grad), (loss, torch.cat([grad, torch.zeros(count).double()])))


@given(problem=problems())
def test_positives_ahead_by_delta_give_zero_loss_and_zero_gradient(problem):
    logits, targets = problem
    loss, grad = gradient(torch.where(targets == 1, logits + 11, logits), targets)
    assert_close(loss, double(0.0), rtol=0, atol=1e-12)
    assert_close(grad, torch.zeros_like(grad), rtol=0, atol=0)


@given(problem=problems(), data=st.data(), rise=st.integers(1, 64))
def test_raising_one_negative_never_lowers_the_loss(problem, data, rise):
    logits, targets = problem
    places = targets.eq(0).nonzero().flatten().tolist()
    if places:
        raised = logits.clone()
        raised[data.draw(st.sampled_from(places))] += rise / 16
        assert ap_loss(raised, targets) >= ap_loss(logits, targets) - 1e-12


def test_incoming_gradients_scale():
    targets, values = torch.tensor([1, 0, 1]), double([0.0, 0.4, -1.0])
    leaf = values.clone().requires_grad_()
    (0.2 * ap_loss(leaf, targets)).backward()
    assert_close(leaf.grad, 0.2 * gradient(values, targets)[1])


def test_module_equals_function():
    g = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(40, generator=g), torch.randint(-1, 2, (40,), generator=g)
    for options in ({}, {"delta": 0.5}):
        leaf = logits.clone().requires_grad_()
        loss = APLoss(**options)(leaf, targets)
        loss.backward()
        expected = gradient(logits, targets, **options)
        assert_close((loss.detach(), leaf.grad), expected, rtol=0, atol=0)
