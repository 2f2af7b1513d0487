"""alrp_loss: worked examples, invariants, edges and errors."""

from __future__ import annotations

import numpy as np
from fractions import Fraction
import pytest
import torch
from helpers.reference import alrp_reference, loc_reference
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from alrp.losses import ALRPLoss, ALRPLossOutput, alrp_loss, ap_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")


def double(values, requires_grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def gradients(logits, targets, errors, **options):
    """(output, d cls / d logits, d loc / d errors) from fresh leaves."""
    logits = logits.detach().clone().requires_grad_()
    errors = errors.detach().clone().requires_grad_()
    out = alrp_loss(logits, targets, errors, **options)
    (grad_logits,) = torch.autograd.grad(out.cls, logits)
    (grad_errors,) = torch.autograd.grad(out.loc, errors)
    return out, grad_logits, grad_errors


# logits, targets, errors, rank, cls, loc, d cls / d logits, d loc / d errors
VECTORS = {
    "ignored_entry_above_all": (
        [2, 0.5, -1, 1.2, 0.3, -0.4, -2.5, 3],
        [1, 1, 1, 0, 0, 0, 0, -1],
        [0.2, 0.6, 1.0],
        [1.1, 3.3, 5.8],
        0.322536,
        0.244862,
        [-0.030303, -0.151515, -0.206897, 0.203262, 0.120512, 0.064941, 0, 0],
        [0.461512, 0.158481, 0.057471],
    ),
    "precision_rises_with_recall": (
        [1, 0.6, -0.2, 1.4, -1.5],
        [1, 1, 1, 0, 0],
        [0.5, 1.5, 0.1],
        [2.0, 2.7, 3.9],
        0.313248,
        0.509734,
        [-0.191667, -0.155556, -0.243590, 0.590812, 0],
        [0.375594, 0.208927, 0.085470],
    ),
    "no_negative_within_reach": (
        [3, 2, -3],
        [1, 1, 0],
        [0.5, 1.5],
        [1, 2],
        0.0,
        0.75,
        [0, 0, 0],
        [0.75, 0.25],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_published_vector(name, device):
    logits, targets, errors, rank, cls, loc, grad_logits, grad_errors = VECTORS[name]
    out, actual_logits, actual_errors = gradients(
        double(logits).to(device), torch.tensor(targets, device=device), double(errors).to(device)
    )
    six_digits = {"rtol": 0, "atol": 6e-7, "check_device": False}
    assert_close(out.rank, double(rank), **six_digits)
    assert_close(out.cls, double(cls), **six_digits)
    assert_close(out.loc, double(loc), **six_digits)
    assert_close(actual_logits, double(grad_logits), **six_digits)
    assert_close(actual_errors, double(grad_errors), **six_digits)


def test_output_is_a_named_tuple_of_two_scalars_and_a_detached_rank():
    out = alrp_loss(double([0.0, 0.0], True), torch.tensor([1, 0]), double([0.5], True))
    assert isinstance(out, ALRPLossOutput) and out._fields == ("cls", "loc", "rank")
    assert out.cls.shape == out.loc.shape == torch.Size([]) and out.rank.shape == (1,)
    assert out.cls.requires_grad and out.loc.requires_grad and not out.rank.requires_grad


def test_cls_sends_nothing_to_the_errors_and_loc_nothing_to_the_logits():
    for part, unreached in (("cls", 1), ("loc", 0)):
        leaves = double([0.0, 0.4, -1.0], True), double([0.5, 1.0], True)
        out = alrp_loss(leaves[0], torch.tensor([1, 0, 1]), leaves[1])
        (grad,) = torch.autograd.grad(getattr(out, part), leaves[unreached], allow_unused=True)
        assert grad is None or not grad.any()


@pytest.mark.parametrize("parts", [("cls", "loc"), ("loc", "cls")])
def test_each_part_has_a_graph_of_its_own(parts):
    leaves = double([0.0, 0.4, -1.0], True), double([0.5, 1.0], True)
    out = alrp_loss(leaves[0], torch.tensor([1, 0, 1]), leaves[1])
    expected = torch.autograd.grad(out.cls + out.loc, leaves, retain_graph=True)
    for part in parts:
        getattr(out, part).backward()
        with pytest.raises(RuntimeError, match="a second time"):
            getattr(out, part).backward()
    assert_close((leaves[0].grad, leaves[1].grad), expected, rtol=0, atol=0)


@pytest.mark.parametrize("of_logits, of_errors", [(True, False), (False, True), (False, False)])
def test_a_part_whose_leaves_need_no_gradient_needs_none(of_logits, of_errors):
    logits, errors = double([0.0, 0.4, -1.0], of_logits), double([0.5, 1.0], of_errors)
    out = alrp_loss(logits, torch.tensor([1, 0, 1]), errors)
    assert (out.cls.requires_grad, out.loc.requires_grad) == (of_logits, of_errors)
    if of_logits or of_errors:
        (out.cls + out.loc).backward()
        assert (logits.grad is not None, errors.grad is not None) == (of_logits, of_errors)


def test_gate_drops_positives_whose_false_positive_count_is_not_over_eps():
    def update(count, **options):  # one negative, related to the positive by ``count`` exactly
        logits = double([0.0, 2 * count - 1])
        _, grad, _ = gradients(logits, torch.tensor([1, 0]), double([0.0]), **options)
        return grad

    assert_close(update(0.5e-5), double([0.0, 0.0]), rtol=0, atol=0)
    assert_close(update(2e-5), double([-2e-5, 2e-5]), rtol=1e-4, atol=0)
    assert_close(update(0.5e-5, eps=1e-6), double([-0.5e-5, 0.5e-5]), rtol=1e-4, atol=0)


def test_tied_positives_enter_the_localisation_sum_in_their_order():
    _, _, grad = gradients(double([1, 1, 1]), torch.ones(3, dtype=torch.int8), double([1, 1, 1]))
    # every rank is 1 + 2 * 1/2 = 2; the first of the tied positives is in all three sums.
    assert_close(grad, double([3, 2, 1]) / 6)


@given(
    values=st.lists(st.integers(-50, 50), min_size=2, max_size=12, unique=True),
    delta=st.sampled_from([0.5, 1e-3, 1e-6]),
    data=st.data(),
)
def test_delta_towards_zero_is_plain_ranking(values, delta, data):
    """Counted with integers: place among all entries and number of negatives above."""
    targets = data.draw(
        st.lists(st.sampled_from([0, 1]), min_size=len(values), max_size=len(values))
    )
    positives = [v for v, t in zip(values, targets) if t == 1]
    negatives = [v for v, t in zip(values, targets) if t == 0]
    out = alrp_loss(
        double(values), torch.tensor(targets), double([0.0] * len(positives)), delta=delta
    )
    ranks = [1 + sum(v > p for v in values) for p in positives]
    false = [sum(v > p for v in negatives) for p in positives]
    mean = sum((Fraction(f, r) for f, r in zip(false, ranks)), Fraction(0)) / max(1, len(positives))
    rounding = 1e-12 + 50 * np.finfo(np.float64).eps / delta  # of logits up to 50, in deltas
    np.testing.assert_allclose(out.rank.numpy(), ranks, rtol=rounding)
    np.testing.assert_allclose(out.cls.item(), float(mean), rtol=rounding, atol=rounding)


@st.composite
def problems(draw, min_positives=1, unique=False):
    """Exact logits (grid 1/16 in [-5, 5]), shuffled targets, exact errors (grid 1/64 in [0, 2])."""
    targets = [1] * draw(st.integers(min_positives, 6)) + [0] * draw(st.integers(0, 12))
    targets = draw(st.permutations(targets + [-1] * draw(st.integers(0, 3))))
    size = len(targets)
    grid = st.lists(st.integers(-80, 80), min_size=size, max_size=size, unique=unique)
    count = targets.count(1)
    errors = draw(st.lists(st.integers(0, 128), min_size=count, max_size=count))
    return double(draw(grid)) / 16, torch.tensor(targets), double(errors) / 64


def assert_same(actual, expected):
    assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@given(problem=problems(), shift=st.integers(-1000, 1000))
def test_adding_a_constant_to_all_logits_changes_nothing(problem, shift):
    logits, targets, errors = problem
    out, grad, grad_errors = gradients(logits, targets, errors)
    moved, moved_grad, moved_grad_errors = gradients(logits + shift, targets, errors)
    assert_same(moved, out)
    assert_same(moved_grad, grad)
    assert_same(moved_grad_errors, grad_errors)


@given(problem=problems(), factor=st.sampled_from([0.125, 2.0, 1024.0]))
def test_scaling_logits_and_delta_together_changes_nothing(problem, factor):
    logits, targets, errors = problem
    out, grad, grad_errors = gradients(logits, targets, errors, delta=0.75)
    scaled, scaled_grad, scaled_grad_errors = gradients(
        factor * logits, targets, errors, delta=0.75 * factor
    )
    assert_same(scaled, out)
    assert_same(scaled_grad, grad)
    assert_same(scaled_grad_errors, grad_errors)


@given(problem=problems(unique=True), data=st.data())
def test_permuting_the_entries_permutes_the_gradients(problem, data):
    logits, targets, errors = problem
    out, grad, grad_errors = gradients(logits, targets, errors)
    p = torch.tensor(data.draw(st.permutations(range(len(logits)))))
    of_positive = targets.eq(1).cumsum(0) - 1
    q = of_positive[p][targets[p] == 1]
    shuffled, shuffled_grad, shuffled_grad_errors = gradients(logits[p], targets[p], errors[q])
    assert_same(shuffled, ALRPLossOutput(out.cls, out.loc, out.rank[q]))
    assert_same(shuffled_grad, grad[p])
    assert_same(shuffled_grad_errors, grad_errors[q])


@given(problem=problems())
def test_positive_and_negative_gradients_balance(problem):
    logits, targets, errors = problem
    _, grad, _ = gradients(logits, targets, errors)
    assert_same(grad[targets == 1].sum(), -grad[targets == 0].sum())
    assert (grad[targets == 1] <= 0).all() and (grad[targets == 0] >= 0).all()


@given(problem=problems())
def test_ignored_entries_get_exactly_zero_and_do_not_matter(problem):
    logits, targets, errors = problem
    out, grad, _ = gradients(logits, targets, errors)
    kept = targets >= 0
    without, without_grad, _ = gradients(logits[kept], targets[kept], errors)
    assert not grad[~kept].any()
    assert_same(out, without)
    assert_same(grad[kept], without_grad)


@given(problem=problems())
def test_cls_is_in_the_half_open_unit_interval_and_ranks_are_possible(problem):
    logits, targets, errors = problem
    out = alrp_loss(logits, targets, errors)
    assert 0 <= out.cls.item() < 1 and out.loc.item() >= 0
    assert out.rank.min() >= 1 and out.rank.max() <= (targets >= 0).sum() + 1e-9


@given(problem=problems(), count=st.integers(1, 5), below=st.integers(0, 40))
def test_negatives_below_the_margin_do_not_matter(problem, count, below):
    logits, targets, errors = problem
    out, grad, _ = gradients(logits, targets, errors)
    extra = torch.full((count,), (logits[targets == 1].min() - 1 - below / 16).item())
    more, more_grad, _ = gradients(
        torch.cat([logits, extra.double()]), torch.cat([targets, torch.zeros(count).long()]), errors
    )
    assert_same(more, out)
    assert_same(more_grad[:-count], grad)
    assert_same(more_grad[-count:], torch.zeros(count).double())


@given(problem=problems())
def test_positives_ahead_by_delta_give_zero_cls_and_zero_gradient(problem):
    logits, targets, errors = problem
    logits = torch.where(targets == 1, logits + 11, logits)  # grids span 10, delta is 1
    out, grad, _ = gradients(logits, targets, errors)
    assert_close(out.cls, double(0.0), rtol=0, atol=1e-12)
    assert_close(grad, torch.zeros_like(grad), rtol=0, atol=0)


@given(problem=problems(), data=st.data(), rise=st.integers(1, 64))
def test_raising_one_negative_never_lowers_cls(problem, data, rise):
    logits, targets, errors = problem
    places = targets.eq(0).nonzero().flatten().tolist()
    if places:
        raised = logits.clone()
        raised[data.draw(st.sampled_from(places))] += rise / 16
        lower, upper = (alrp_loss(x, targets, errors).cls for x in (logits, raised))
        assert upper >= lower - 1e-12


@given(problem=problems())
def test_without_errors_the_gradient_is_that_of_average_precision(problem):
    """Positives tie here, so no precision is replaced by that of a later positive."""
    logits, targets, errors = problem
    logits = torch.where(targets == 1, logits.min(), logits)
    out, grad, _ = gradients(logits, targets, torch.zeros_like(errors))
    leaf = logits.clone().requires_grad_()
    loss = ap_loss(leaf, targets)
    loss.backward()
    assert_same(loss.detach(), out.cls.detach())
    assert_same(grad, leaf.grad)


@pytest.mark.parametrize("seed", range(3))
def test_gradcheck_of_loc_in_the_errors(seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, generator=g, dtype=torch.float64)
    targets = (torch.rand(30, generator=g) < 0.3).long()
    errors = torch.rand(int(targets.sum()), generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: alrp_loss(logits, targets, e).loc, (errors,))


def test_incoming_gradients_scale_both_parts():
    targets, errors = torch.tensor([1, 0, 1]), double([0.5, 1.0])
    _, grad, grad_errors = gradients(double([0.0, 0.4, -1.0]), targets, errors)
    leaves = double([0.0, 0.4, -1.0], True), double([0.5, 1.0], True)
    out = alrp_loss(leaves[0], targets, leaves[1])
    (0.2 * out.cls + 3 * out.loc).backward()
    assert_close(leaves[0].grad, 0.2 * grad)
    assert_close(leaves[1].grad, 3 * grad_errors)


def test_module_equals_function():
    g = torch.Generator().manual_seed(1)
    logits, errors = torch.randn(40, generator=g), torch.rand(40, generator=g)
    targets = torch.randint(-1, 2, (40,), generator=g)
    errors = errors[targets == 1]
    for options in ({}, {"delta": 0.5, "eps": 0.5}):
        expected = gradients(logits, targets, errors, **options)
        leaves = logits.clone().requires_grad_(), errors.clone().requires_grad_()
        out = ALRPLoss(**options)(leaves[0], targets, leaves[1])
        (out.cls + out.loc).backward()
        assert_close((out, leaves[0].grad, leaves[1].grad), expected, rtol=0, atol=0)
    assert not list(ALRPLoss().parameters())


def test_the_oracle_gives_the_published_vectors():
    for logits, targets, errors, rank, cls, loc, grad_logits, grad_errors in VECTORS.values():
        expected = alrp_reference(logits, targets, errors)
        expected_loc = loc_reference(logits, targets, errors)
        np.testing.assert_allclose(expected.rank, rank, atol=6e-7)
        np.testing.assert_allclose(expected.cls, cls, atol=6e-7)
        np.testing.assert_allclose(expected.grad_logits, grad_logits, atol=6e-7)
        np.testing.assert_allclose(expected_loc.loc, loc, atol=6e-7)
        np.testing.assert_allclose(expected_loc.grad_loc_errors, grad_errors, atol=6e-7)
