"""rs_loss: the published figures, the sums over all pairs, and what must hold for any input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reference import rs_reference
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from alrp.losses import RSLoss, rs_loss
from alrp.losses.backends import compiled, operators

pytestmark = pytest.mark.usefixtures("cpu_backend")

PUBLISHED = [
    "p12_n30_d050_equal_iou",
    "p15_n60_d025",
    "p1_n1_d050",
    "p20_n0_d050_all_positive",
    "p2_n3_d050",
    "p3_n5_d000",
    "p3_n5_d100",
    "p40_n200_d050_start",
    "p8_n40_d050_tie_iou",
]
DELTAS = [0.0, 0.25, 0.5, 1.0, 10.0]


def run(logits, targets, ious, *, parts=(1.0, 1.0), dtype=torch.float64, device="cpu", **options):
    """Both values, and the gradient of their sum weighted by ``parts``."""
    leaf = torch.tensor(np.asarray(logits), dtype=dtype, device=device, requires_grad=True)
    targets, ious = torch.as_tensor(targets), torch.as_tensor(np.asarray(ious, np.float64))
    output = rs_loss(leaf, targets.to(device), ious.to(device), **options)
    sum(part * value for part, value in zip(parts, output)).backward()
    results = (x.detach().cpu() for x in (*output, leaf.grad))
    return [(x.float() if x.dtype == torch.bfloat16 else x).numpy() for x in results]


def assert_norm_near(actual, expected, rtol):
    difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
    assert difference <= rtol * np.linalg.norm(expected)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_published_figures(golden, name, dtype, device):
    """With delta 0 the published code computes in float32 in any case."""
    case = golden(f"rs/{name}")
    values, delta = case["targets"], float(case["delta"])
    targets = np.where(values > 0, 1, np.minimum(values, 0)).astype(np.int64)
    ious = values[values > 0]
    ranking, sorting, grad = run(
        case["logits"], targets, ious, dtype=dtype, device=device, delta=delta
    )
    atol = 1e-7 if delta and dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(ranking, case["ranking_loss_f64"], rtol=0, atol=atol)
    np.testing.assert_allclose(sorting, case["sorting_loss_f64"], rtol=0, atol=atol)
    np.testing.assert_allclose(grad, case["grad_f64"], rtol=0, atol=atol)


def test_without_positives_both_parts_are_zero_in_the_graph(golden):
    """The published code raises."""
    case = golden("rs/zero_positives")
    assert "raises" in case and not (case["targets"] > 0).any()
    ranking, sorting, grad = run(case["logits"], case["targets"].astype(np.int64), [])
    assert ranking == sorting == 0 and not grad.any()


def test_a_positive_with_iou_0_stays_a_positive():
    """The published code takes it for a negative, as if it were not there to be found."""
    logits, targets, ious = [0.3, 0.2, 0.1], [1, 1, 0], [0.0, 0.8]
    expected = rs_reference(logits, targets, ious)
    ranking, sorting, grad = run(logits, targets, ious)
    np.testing.assert_allclose([ranking, sorting], expected[:2], rtol=1e-14)
    assert_norm_near(grad, expected.grad_ranking + expected.grad_sorting, 1e-14)
    published = rs_reference(logits, [0, 1, 0], [0.8])
    assert abs(ranking - published.ranking) > 0.05


def case(name, rng, num_positives):
    """Logits, targets (a tenth ignored) and IoUs, with ties of the named kind."""
    targets = np.repeat([1, 0, -1], [num_positives, 8 * num_positives, num_positives])
    rng.shuffle(targets)
    logits = 1.5 * rng.standard_normal(len(targets)) + 1.5 * (targets == 1)
    ious = rng.uniform(0, 1, num_positives)
    if name in ("ties in logits", "ties in both"):
        logits = np.round(2 * logits) / 2
    if name in ("ties in IoUs", "ties in both"):
        ious = np.round(10 * ious) / 10
    if name == "all equal":
        logits, ious = np.full_like(logits, -4.6), np.full_like(ious, 0.7)
    if name == "far from 0":
        logits = logits + 1000
    return logits, targets, ious


CASES = ["plain", "ties in logits", "ties in IoUs", "ties in both", "all equal", "far from 0"]


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("num_positives", [1, 2, 3, 64, 65])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_sums_over_all_pairs(rng, name, num_positives, delta):
    logits, targets, ious = case(name, rng, num_positives)
    expected = rs_reference(logits, targets, ious, delta)
    for parts in ((1, 0), (0, 1), (2, 3)):
        ranking, sorting, grad = run(logits, targets, ious, parts=parts, delta=delta)
        np.testing.assert_allclose([ranking, sorting], expected[:2], rtol=1e-9, atol=1e-12)
        wanted = parts[0] * expected.grad_ranking + parts[1] * expected.grad_sorting
        np.testing.assert_allclose(grad, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("name", CASES[:4])
def test_2000_positives_equal_the_sums_over_all_pairs(rng, name, delta):
    logits, targets, ious = case(name, rng, 2000)
    expected = rs_reference(logits, targets, ious, delta)
    for parts, wanted in (((1, 0), expected.grad_ranking), ((0, 1), expected.grad_sorting)):
        ranking, sorting, grad = run(logits, targets, ious, parts=parts, delta=delta)
        np.testing.assert_allclose([ranking, sorting], expected[:2], rtol=1e-9)
        assert_norm_near(grad, wanted, 1e-9)


numbers = st.one_of(st.integers(-40, 40).map(lambda n: n / 8), st.floats(-5, 5, width=32))
entries = st.lists(
    st.tuples(numbers, st.sampled_from([1, 1, 0, -1]), st.integers(0, 10)), min_size=1, max_size=40
)


def unpack(drawn):
    logits, targets, tenths = (np.array(column) for column in zip(*drawn))
    return logits.astype(np.float64), targets, tenths[targets == 1] / 10


@given(drawn=entries, delta=st.sampled_from(DELTAS))
def test_gradients_sum_to_zero_and_losses_lie_in_the_unit_interval(drawn, delta):
    logits, targets, ious = unpack(drawn)
    for parts in ((1, 0), (0, 1)):
        ranking, sorting, grad = run(logits, targets, ious, parts=parts, delta=delta)
        assert 0 <= ranking < 1 and 0 <= sorting < 1
        assert abs(grad.sum()) < 1e-12 and not grad[targets == -1].any()


@given(drawn=entries, delta=st.sampled_from(DELTAS), shift=st.integers(-64, 64))
def test_adding_a_constant_to_all_logits_changes_nothing(drawn, delta, shift):
    logits, targets, ious = unpack(drawn)
    logits = np.round(64 * logits) / 64
    assert_close(
        run(logits + shift, targets, ious, delta=delta),
        run(logits, targets, ious, delta=delta),
        rtol=1e-9,
        atol=1e-12,
    )


@given(drawn=entries, delta=st.sampled_from(DELTAS), factor=st.sampled_from([0.125, 2.0, 64.0]))
def test_scaling_logits_and_delta_together_changes_nothing(drawn, delta, factor):
    logits, targets, ious = unpack(drawn)
    assert_close(
        run(factor * logits, targets, ious, delta=factor * delta),
        run(logits, targets, ious, delta=delta),
        rtol=1e-9,
        atol=1e-12,
    )


@given(drawn=entries, delta=st.sampled_from(DELTAS), data=st.data())
def test_permuting_entries_permutes_gradients(drawn, delta, data):
    order = np.array(data.draw(st.permutations(range(len(drawn)))))
    *values, grad = run(*unpack(drawn), delta=delta)
    *permuted_values, permuted = run(*unpack([drawn[i] for i in order]), delta=delta)
    assert_close(permuted_values, values, rtol=1e-9, atol=1e-12)
    assert_close(permuted, grad[order], rtol=1e-9, atol=1e-12)


@given(drawn=entries, delta=st.sampled_from(DELTAS))
def test_positives_ahead_of_all_negatives_are_sorted_but_not_ranked(drawn, delta):
    logits, targets, ious = unpack(drawn)
    ranking, _, grad = run(logits + 100 * (targets == 1), targets, ious, parts=(1, 0), delta=delta)
    assert ranking == 0 and not grad.any()
    wanted = rs_reference(logits, np.where(targets == 0, -1, targets), ious, delta)
    _, sorting, grad = run(logits, targets, ious, parts=(0, 1), delta=delta)
    assert_close(sorting, np.asarray(wanted.sorting), rtol=1e-9, atol=1e-12)
    assert_close(grad, wanted.grad_sorting, rtol=1e-9, atol=1e-12)


def test_positives_in_the_order_of_their_ious_have_no_sorting_error():
    _, sorting, grad = run([3.0, 2.0, 1.0, 0.9], [1, 1, 1, 0], [0.9, 0.7, 0.5], parts=(0, 1))
    assert sorting == 0 and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_logits_are_ranked_in_float32(rng, dtype):
    logits, targets, ious = case("plain", rng, 30)
    rounded = torch.tensor(logits, dtype=dtype)
    found = run(rounded.float().numpy(), targets, ious, dtype=dtype)
    expected = run(rounded.float().numpy(), targets, ious, dtype=torch.float32)
    assert_close(found[:2], expected[:2], rtol=0, atol=0)
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-2, atol=1e-5)


def test_ious_get_no_gradient_and_logits_may_need_none():
    ious = torch.tensor([0.5, 0.9], requires_grad=True)
    output = rs_loss(torch.tensor([0.2, 0.1, 0.4]), torch.tensor([1, 1, 0]), ious)
    assert not output.ranking.requires_grad and not output.sorting.requires_grad


def test_module_equals_function(rng):
    logits, targets, ious = (torch.as_tensor(x) for x in case("plain", rng, 20))
    assert RSLoss(0.25)(logits, targets, ious) == rs_loss(logits, targets, ious, delta=0.25)
    assert RSLoss()(logits, targets, ious) == rs_loss(logits, targets, ious, delta=0.5)
    assert repr(RSLoss()) == "RSLoss(delta=0.5)"


def test_the_same_input_gives_the_same_bits(rng):
    first, second = (run(*case("ties in both", np.random.default_rng(1), 300)) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_ious_must_be_that_of_positives(count, delta):
    with pytest.raises(ValueError, match=f"ious has {count} elements but targets has 2 positives"):
        rs_loss(torch.zeros(3), torch.tensor([1, 0, 1]), torch.zeros(count), delta=delta)


@pytest.mark.parametrize("ious", [torch.zeros(2, 1), torch.zeros(2).long()], ids=["2d", "int"])
def test_ious_must_be_floating_point_in_one_dimension(ious):
    with pytest.raises(ValueError, match="ious must be 1-D and floating point"):
        rs_loss(torch.zeros(2), torch.tensor([1, 1]), ious)


@pytest.mark.parametrize("value", [-0.5, 1.5, 80.0])
def test_ious_must_lie_in_the_unit_interval(value):
    with pytest.raises(ValueError, match=r"ious: 1 of 2 values lie outside \[0, 1\]"):
        rs_loss(torch.zeros(2), torch.tensor([1, 1]), torch.tensor([0.5, value]))


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_what_is_not_finite_is_refused_unless_ignored(value, place, delta):
    logits, targets = torch.tensor([0.1, 0.2, value, 0.4]), torch.tensor([1, 0, -1, 1])
    rs_loss(logits, targets, torch.tensor([0.5, 0.6]), delta=delta)
    logits[place] = value
    with pytest.raises(FloatingPointError, match="logits: 1 of 4"):
        rs_loss(logits, targets, torch.tensor([0.5, 0.6]), delta=delta)
    with pytest.raises(FloatingPointError, match="ious: 1 of 2"):
        rs_loss(torch.zeros(4), targets, torch.tensor([0.5, value]), delta=delta)


@pytest.mark.parametrize("delta", [-0.5, float("nan"), float("inf"), 1e-40])
def test_delta_must_be_0_or_lie_in_its_range(delta):
    with pytest.raises(ValueError, match="delta must lie between"):
        rs_loss(torch.zeros(2), torch.tensor([1, 0]), torch.zeros(1), delta=delta)


@pytest.mark.parametrize("backend", [compiled, operators], ids=["compiled", "operators"])
@given(data=st.data(), size=st.integers(1, 33))
def test_sums_below_a_limit_equal_those_of_a_mask(backend, data, size):
    ranks = np.array(data.draw(st.permutations(range(size))))
    places = st.lists(st.integers(0, size), min_size=3, max_size=3).map(sorted)
    queries = data.draw(st.lists(st.tuples(st.integers(0, size - 1), places), max_size=9))
    weights = np.arange(1.0, 2 * size + 1).reshape(size, 2)
    expected = [
        [weights[a:b][ranks[a:b] < limit].sum(axis=0) for a, b in zip(cuts, cuts[1:])]
        for limit, cuts in queries
    ]
    limits = torch.tensor([limit for limit, _ in queries], dtype=torch.int64)
    cuts = torch.tensor([cuts for _, cuts in queries], dtype=torch.int64).view(-1, 3)
    found = backend.sums_below(torch.tensor(weights), torch.tensor(ranks), limits, cuts)
    np.testing.assert_array_equal(found.numpy(), np.reshape(expected, (-1, 2, 2)))
