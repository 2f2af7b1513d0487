"""The losses equal the pairwise float64 oracle: value, rank and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reference import alrp_reference, ap_reference, loc_reference
from hypothesis import given
from hypothesis import strategies as st

from alrp.losses import alrp_loss, ap_loss

pytestmark = pytest.mark.usefixtures("cpu_backend")

SIZES = [0, 1, 2, 50, 2000]
SCALES = [1e-5, 1.0, 1e4]
DELTAS = [1e-3, 1.0, 10.0]


def make_problem(rng, size, scale, ties, dtype=np.float64):
    """Logits exact in ``dtype``, targets (1 in 10 positive, 1 in 20 ignored), errors in [0, 2)."""
    logits = rng.standard_normal(size)
    if ties:  # a coarse grid: equal logits among positives, among negatives and across
        logits = np.round(logits * 8) / 8
    targets = rng.choice([1, 0, -1], p=[0.1, 0.85, 0.05], size=size)
    if size in (1, 2):
        targets = np.array([1, 0][:size])
    return (scale * logits).astype(dtype), targets, 2 * rng.random(int((targets == 1).sum()))


def run_alrp(logits, targets, errors, device="cpu", **options):
    """(cls, rank, d cls / d logits, loc, d loc / d errors)."""
    logits = torch.as_tensor(logits, device=device).requires_grad_()
    errors = torch.as_tensor(errors, dtype=logits.dtype, device=device).requires_grad_()
    targets = torch.as_tensor(targets, dtype=torch.int8, device=device)
    out = alrp_loss(logits, targets, errors, **options)
    (grad_logits,) = torch.autograd.grad(out.cls, logits)
    (grad_errors,) = torch.autograd.grad(out.loc, errors)
    return [
        t.detach().cpu().numpy() for t in (out.cls, out.rank, grad_logits, out.loc, grad_errors)
    ]


def run_ap(logits, targets, device="cpu", **options):
    """(loss, d loss / d logits)."""
    logits = torch.as_tensor(logits, device=device).requires_grad_()
    targets = torch.as_tensor(targets, dtype=torch.int8, device=device)
    loss = ap_loss(logits, targets, **options)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach().cpu().numpy(), grad.cpu().numpy()


def assert_near(actual, expected, rtol):
    """Element by element, relative to the largest expected element."""
    expected = np.asarray(expected, dtype=np.float64)
    atol = rtol * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


def assert_norm_near(actual, expected, rtol):
    difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
    assert difference <= rtol * np.linalg.norm(expected) + 1e-12


def float64_rtol(scale, delta):
    """1e-10, or the rounding of a logit in units of ``delta`` where that is larger."""
    return max(1e-10, scale / delta * np.finfo(np.float64).eps)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
class TestFloat64:
    def test_alrp_cls_rank_and_gradient_equal_pairwise_sums(self, rng, size, scale, delta, ties):
        logits, targets, errors = make_problem(rng, size, scale, ties)
        cls, rank, grad, _, _ = run_alrp(logits, targets, errors, delta=delta)
        expected = alrp_reference(logits, targets, errors, delta)
        rtol = float64_rtol(scale, delta)
        assert_near(cls, expected.cls, rtol)
        assert_near(rank, expected.rank, rtol)
        assert_near(grad, expected.grad_logits, rtol)

    def test_alrp_loc_and_its_gradient_equal_the_double_loop(self, rng, size, scale, delta, ties):
        logits, targets, errors = make_problem(rng, size, scale, ties)
        _, _, _, loc, grad = run_alrp(logits, targets, errors, delta=delta)
        expected = loc_reference(logits, targets, errors, delta)
        rtol = float64_rtol(scale, delta)
        assert_near(loc, expected.loc, rtol)
        assert_near(grad, expected.grad_loc_errors, rtol)

    def test_ap_value_and_gradient_equal_pairwise_sums(self, rng, size, scale, delta, ties):
        logits, targets, _ = make_problem(rng, size, scale, ties)
        loss, grad = run_ap(logits, targets, delta=delta)
        expected = ap_reference(logits, targets, delta)
        rtol = float64_rtol(scale, delta)
        assert_near(loss, expected.cls, rtol)
        assert_near(grad, expected.grad_logits, rtol)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("scale", SCALES)
class TestFloat32:
    """The oracle gets the same float32 numbers, so only the rounding of the results is left."""

    def test_alrp_gradient_norms_agree(self, rng, scale, delta, ties, device):
        logits, targets, errors = make_problem(rng, 2000, scale, ties, np.float32)
        errors = errors.astype(np.float32)
        cls, rank, grad, loc, grad_errors = run_alrp(logits, targets, errors, device, delta=delta)
        expected = alrp_reference(logits, targets, errors, delta)
        expected_loc = loc_reference(logits, targets, errors, delta)
        assert_near(cls, expected.cls, 1e-6)
        assert_near(rank, expected.rank, 1e-6)
        assert_norm_near(grad, expected.grad_logits, 1e-6)
        assert_near(loc, expected_loc.loc, 1e-6)
        assert_norm_near(grad_errors, expected_loc.grad_loc_errors, 1e-6)

    def test_ap_gradient_norms_agree(self, rng, scale, delta, ties, device):
        logits, targets, _ = make_problem(rng, 2000, scale, ties, np.float32)
        loss, grad = run_ap(logits, targets, device, delta=delta)
        expected = ap_reference(logits, targets, delta)
        assert_near(loss, expected.cls, 1e-6)
        assert_norm_near(grad, expected.grad_logits, 1e-6)


# Mean and deviation of the logits of negatives and of positives as a training goes on.
STAGES = {
    "start": ((-4.6, 0.1), (-4.6, 0.1)),
    "middle": ((-4.5, 1.2), (-1.5, 1.5)),
    "end": ((-9.0, 1.5), (2.0, 1.5)),
}


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_a_large_batch_keep_their_digits_at_every_stage(rng, stage, delta):
    """100 positives among 40 000 float32 logits, a few of them ignored."""
    negatives, positives = STAGES[stage]
    logits = rng.normal(*negatives, 40_000).astype(np.float32)
    targets = rng.choice([0, -1], p=[0.97, 0.03], size=40_000)
    targets[rng.choice(40_000, 100, replace=False)] = 1
    logits[targets == 1] = rng.normal(*positives, 100)
    errors = rng.random(100).astype(np.float32)
    cls, rank, grad, _, _ = run_alrp(logits, targets, errors, delta=delta)
    expected = alrp_reference(logits, targets, errors, delta)
    assert_near(cls, expected.cls, 1e-6)
    assert_near(rank, expected.rank, 1e-6)
    assert_norm_near(grad, expected.grad_logits, 1e-6)
    loss, ap_grad = run_ap(logits, targets, delta=delta)
    expected_ap = ap_reference(logits, targets, delta)
    assert_near(loss, expected_ap.cls, 1e-6)
    assert_norm_near(ap_grad, expected_ap.grad_logits, 1e-6)


@pytest.mark.parametrize("offset", [-4.595, 1e3])
def test_a_common_offset_costs_no_precision_in_float64(rng, offset):
    logits, targets, errors = make_problem(rng, 2000, 0.1, ties=False)
    logits = logits + offset
    _, rank, grad, _, _ = run_alrp(logits, targets, errors)
    expected = alrp_reference(logits, targets, errors)
    assert_near(rank, expected.rank, 1e-10)
    assert_near(grad, expected.grad_logits, 1e-10)


def test_ranks_of_a_million_float32_logits_keep_their_digits(rng):
    """Sums over a mini-batch in float32 would miss the rank by several tenths."""
    size, places = 1_000_000, [10, 500_000, 999_000]
    logits = (-4.6 + 0.3 * rng.standard_normal(size)).astype(np.float32)
    targets = np.zeros(size, np.int8)
    targets[places] = 1
    errors = np.array([0.3, 0.9, 1.4], np.float32)
    cls, rank, grad, _, _ = run_alrp(logits, targets, errors)
    expected = alrp_reference(logits, targets, errors)
    assert_near(cls, expected.cls, 1e-7)
    assert_near(rank, expected.rank, 1e-7)
    assert_norm_near(grad, expected.grad_logits, 1e-6)


# Logits on a grid of 1/16 and errors on a grid of 1/64 are exact, and ties are frequent.
entries = st.lists(
    st.tuples(st.integers(-80, 80), st.sampled_from([1, 0, 0, -1]), st.integers(0, 128)),
    max_size=30,
)


@given(entries=entries, delta=st.sampled_from([0.01, 0.5, 1.0, 3.0]))
def test_any_small_problem_with_ties_equals_the_oracle(entries, delta):
    logits = np.array([e[0] / 16 for e in entries], dtype=np.float64)
    targets = np.array([e[1] for e in entries], dtype=np.int64)
    errors = np.array([e[2] / 64 for e in entries if e[1] == 1], dtype=np.float64)
    cls, rank, grad, loc, grad_errors = run_alrp(logits, targets, errors, delta=delta)
    expected = alrp_reference(logits, targets, errors, delta)
    expected_loc = loc_reference(logits, targets, errors, delta)
    loss, ap_grad = run_ap(logits, targets, delta=delta)
    expected_ap = ap_reference(logits, targets, delta)
    for actual, wanted in [
        (cls, expected.cls),
        (rank, expected.rank),
        (grad, expected.grad_logits),
        (loc, expected_loc.loc),
        (grad_errors, expected_loc.grad_loc_errors),
        (loss, expected_ap.cls),
        (ap_grad, expected_ap.grad_logits),
    ]:
        np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-12)


def test_the_gradient_is_not_the_derivative_of_the_value():
    """Why no test here calls gradcheck on logits: the update is error-driven."""
    logits, targets, errors = np.array([0.3, 0.0]), np.array([1, 0]), np.array([0.5])
    _, _, grad, _, _ = run_alrp(logits, targets, errors)
    step = 1e-6
    above = alrp_reference(logits + [step, 0], targets, errors).cls
    below = alrp_reference(logits - [step, 0], targets, errors).cls
    derivative = (above - below) / (2 * step)
    # B = 0.35, rank = 1.35: value B / (1 + B) has slope -0.5 / 1.35^2, the update is -B / 1.35.
    np.testing.assert_allclose(derivative, -0.5 / 1.35**2, rtol=1e-6)
    np.testing.assert_allclose(grad[0], -0.35 / 1.35, rtol=1e-12)
