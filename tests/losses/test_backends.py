"""Sums over queries and keys, by all backends, equal those of the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.reference import smoothed_step
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from alrp.losses.backends import compiled, fused, operators
from alrp.losses.backends.interface import Rows, SortingErrors, Update
from alrp.losses.reductions import _prefix_sum_by_doubling, prefix_sum, suffix_sum

KINDS = [operators.OperatorMatrix, compiled.CompiledMatrix]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["operators", "compiled"])
# Triton's interpreter is too slow for random examples. On a GPU see test_fused.py.
INTERPRETED = pytest.param(
    fused.FusedMatrix,
    marks=pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of the CPU"),
)
all_kinds = pytest.mark.parametrize(
    "kind", [*KINDS, INTERPRETED], ids=["operators", "compiled", "fused"]
)


def matrix_of(kind, queries, delta):
    """The matrix of queries in any order."""
    return kind(torch.as_tensor(queries).sort().values, delta)


def update_of(matrix, keys, logits, targets, ranks):
    """The gradient of the sum of ``n / (ranks + n)``, where n is a row's sum over the keys."""
    zeros = torch.zeros_like(ranks)
    values = fused.rs_values if isinstance(matrix, fused.FusedMatrix) else operators.rs_values
    pushes = values(Rows(matrix, keys), SortingErrors(ranks, zeros, zeros), torch.float64).pushes
    positives = targets.eq(1).nonzero().squeeze(1)
    order = logits[positives].argsort(stable=True) if len(positives) else torch.arange(len(ranks))
    scale = torch.tensor(float(len(ranks)))  # of a mean
    return matrix.gradient(Update(pushes, order, positives), keys.cells, logits, scale)


def sums(kind, logits, targets, ranks, delta):
    """Sums of rows, and the update with these ranks, of a class and of the full matrix."""
    logits, targets = torch.as_tensor(logits), torch.as_tensor(targets)
    ranks = torch.as_tensor(ranks)
    matrix = matrix_of(kind, logits[targets == 1], delta)
    keys = matrix.locate(logits, targets)
    actual = matrix.matvec(keys), update_of(matrix, keys, logits, targets, ranks)

    s, ranks = logits.double().numpy(), ranks.numpy()
    is_positive = targets.numpy() == 1
    order = np.argsort(s[is_positive], kind="stable")
    H = smoothed_step(s[None, :] - s[is_positive][order][:, None], delta)
    H = np.where(targets.numpy() == 0, H, 0.0)
    total = H.sum(axis=1)
    gradient = (1 / (ranks + total)) @ H
    gradient[np.flatnonzero(is_positive)[order]] = -total / (ranks + total)
    return actual, (total, gradient)


def assert_sums_near(actual, expected, rtol):
    for found, wanted in zip(actual, expected):
        atol = rtol * np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=rtol, atol=atol)


def case(name, rng, dtype=np.float32):
    """Logits, targets (with ignored entries) and half widths of hard cases, 3000 entries."""
    logits, delta = 2 * rng.standard_normal(3000), 1.0
    targets = rng.choice([1, 0, -1], p=[0.02, 0.88, 0.1], size=3000)
    if name == "ties":
        logits = np.round(logits)
    elif name == "all_equal":
        logits = np.full(3000, -4.595)
    elif name == "knots_on_bucket_edges":
        logits = np.round(logits * 64) / 64
    elif name == "huge_range":
        logits, delta = 1e4 * np.sign(logits) + logits / 100, 1e-3
    elif name == "large_offset":
        logits = logits + 1e4
    elif name == "narrow_step":
        delta = 1e-3
    elif name == "wide_step":
        delta = 10.0
    elif name == "outlier_negative":
        logits[np.flatnonzero(targets == 0)[0]] = 1e30
    elif name == "outlier_positive":
        logits[np.flatnonzero(targets == 1)[0]] = -60.0
    elif name == "none_in_reach":
        logits = np.where(targets == 1, 50.0, logits)
    elif name == "all_above":
        logits = np.where(targets == 1, -50.0, logits)
    elif name == "few_in_reach":
        logits = np.where(targets == 1, 6.0, logits)
    elif name == "one_positive":
        targets[targets == 1] = 0
        targets[7] = 1
    elif name == "no_negatives":
        targets[targets == 0] = 1
    elif name == "nearly_all_ignored":
        targets[100:] = np.where(targets[100:] == 0, -1, targets[100:])
    elif name == "tiny_values":
        logits, delta = 1e-30 * logits, 1e-30
    return logits.astype(dtype), targets.astype(np.int8), delta


CASES = (
    "plain ties all_equal knots_on_bucket_edges huge_range large_offset narrow_step wide_step "
    "outlier_negative outlier_positive none_in_reach all_above few_in_reach one_positive "
    "no_negatives nearly_all_ignored tiny_values"
).split()


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """For the interpreter, whose time grows with the number of programs."""
    monkeypatch.setattr(fused, "_BLOCK", 1 << 14)


@pytest.fixture(params=["one_part", "parts"])
def parts(request, monkeypatch):
    """Read 3000 entries at once, or in several blocks and threads."""
    if request.param == "one_part" and request.node.callspec.params["kind"] is fused.FusedMatrix:
        pytest.skip("several programs say more, and the interpreter is slow")
    if request.param == "parts":
        monkeypatch.setattr(operators, "_BLOCK", 700)
        monkeypatch.setitem(operators._TURNS, "cpu", 3)
        monkeypatch.setattr(compiled, "_ENTRIES_PER_SHARE", 700)
        monkeypatch.setattr(fused, "_BLOCK", 1024)
        monkeypatch.setattr(fused, "_SEQUENTIAL_BLOCK", 64)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)


@all_kinds
@pytest.mark.parametrize("name", CASES)
def test_sums_over_keys_and_queries_equal_the_full_matrix(rng, parts, kind, name):
    logits, targets, delta = case(name, rng)
    ranks = 1 + 99 * rng.random(int((targets == 1).sum()))
    assert_sums_near(*sums(kind, logits, targets, ranks, delta), rtol=1e-6)


@all_kinds
@pytest.mark.parametrize("name", ["plain", "ties", "wide_step", "few_in_reach", "all_above"])
def test_float64_logits_are_summed_in_float64(rng, kind, name):
    logits, targets, delta = case(name, rng, np.float64)
    ranks = 1 + 99 * rng.random(int((targets == 1).sum()))
    assert_sums_near(*sums(kind, logits, targets, ranks, delta), rtol=1e-12)


@all_kinds
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_ignored_entries_get_exactly_zero(rng, kind, rubbish):
    logits, targets, delta = case("plain", rng)
    logits[targets == -1] = rubbish
    logits, targets = torch.as_tensor(logits), torch.as_tensor(targets)
    matrix = matrix_of(kind, logits[targets == 1], delta)
    ranks = torch.ones(int((targets == 1).sum()), dtype=torch.float64)
    gradient = update_of(matrix, matrix.locate(logits, targets), logits, targets, ranks)
    assert not gradient[targets == -1].any()
    assert gradient[targets == 0].any() and gradient[targets == 1].any()


@all_kinds
def test_there_may_be_no_entries_at_all(kind):
    """As on a process without any, when batches are ranked together."""
    matrix = kind(torch.tensor([0.5, 1.5]), 1.0)
    logits, targets = torch.zeros(0), torch.zeros(0, dtype=torch.int8)
    keys = matrix.locate(logits, targets)
    assert matrix.matvec(keys).tolist() == [0.0, 0.0]
    ranks = torch.ones(2, dtype=torch.float64)
    assert update_of(matrix, keys, logits, targets, ranks).shape == (0,)


@all_kinds
def test_no_count_is_left_where_no_negative_is_in_reach(rng, kind):
    logits, targets, delta = case("none_in_reach", rng)
    actual, _ = sums(kind, logits, targets, np.ones(int((targets == 1).sum())), delta)
    assert not actual[0].any() and not actual[1].any()


logit_lists = st.lists(
    st.tuples(
        st.one_of(
            st.integers(-64, 64).map(lambda n: n / 16),
            st.floats(-30, 30, width=32),
            st.sampled_from([-1e4, 1e4, -1e4 + 0.5, 0.0, -0.0, 1e-38]),
        ),
        st.sampled_from([1, 0, 0, -1]),
    ),
    min_size=1,
    max_size=60,
)


@given(entries=logit_lists, delta=st.sampled_from([1e-3, 0.25, 1.0, 10.0]))
def test_both_kinds_agree(entries, delta):
    logits = torch.tensor([e[0] for e in entries] + [0.0], dtype=torch.float32)
    targets = torch.tensor([e[1] for e in entries] + [1])
    weights = torch.linspace(0.1, 1.0, int((targets == 1).sum()), dtype=torch.float64)
    found = []
    for kind in KINDS:
        matrix = matrix_of(kind, logits[targets == 1], delta)
        keys = matrix.locate(logits, targets)
        sums = matrix.matvec(keys), matrix.rmatvec(weights, keys.cells, logits)
        found.append([keys.cells.int(), *sums, matrix.among_queries(weights)])
    (cells, *sums), (other_cells, *other_sums) = found
    assert_close(cells, other_cells, rtol=0, atol=0)
    assert_close(sums, other_sums, rtol=1e-6, atol=1e-7)


@given(
    queries=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20),
    keys=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=40),
    delta=st.sampled_from([1e-3, 1.0, 10.0]),
    repeats=st.sampled_from([1, 50, 2000]),
)
def test_a_key_is_in_the_cell_after_the_knots_that_are_not_above_it(queries, keys, delta, repeats):
    """With one bucket for all knots, and with few knots per bucket."""
    matrix = matrix_of(compiled.CompiledMatrix, queries, delta)
    knots = np.sort([np.float64(q) + sign * delta for q in queries for sign in (-1, 1)])
    # Keys on the knots themselves, and next to them, are the hard ones.
    keys = np.concatenate([keys, knots, np.nextafter(knots, -99), np.nextafter(knots, 99)])
    keys = torch.tensor(keys).repeat(repeats)
    cells = matrix.locate(keys, torch.zeros(len(keys), dtype=torch.int8)).cells
    np.testing.assert_array_equal(cells.numpy(), np.searchsorted(knots, keys.numpy(), "right"))


@all_kinds
@pytest.mark.parametrize("num_queries, dtype", [(16_383, torch.int16), (16_384, torch.int32)])
def test_cells_are_numbered_by_16_bits_as_long_as_these_suffice(rng, kind, num_queries, dtype):
    queries = torch.as_tensor(rng.uniform(-126, 126, num_queries)).sort().values
    keys = torch.as_tensor(rng.uniform(-130, 130, 2000))
    located = kind(queries, 1.0).locate(keys, torch.zeros(2000, dtype=torch.int8))
    knots = torch.cat([queries - 1, queries + 1]).sort().values
    assert located.cells.dtype == dtype and int(located.cells.max()) == 2 * num_queries
    assert_close(located.cells.long(), torch.searchsorted(knots, keys, right=True))


@all_kinds
def test_a_small_sum_keeps_its_digits_beside_sums_of_thousands(rng, kind):
    """A thousandth of one negative outranks the best positive, thousands the others."""
    queries, keys = [-40.0, -39.5, 3.0], np.append(rng.uniform(-40.9, -38.5, 200_000), 2.002)
    marks = torch.zeros(len(keys), dtype=torch.int8)
    matrix = matrix_of(kind, torch.tensor(queries, dtype=torch.float64), 1.0)
    sums = matrix.matvec(matrix.locate(torch.as_tensor(keys), marks)).numpy()
    expected = smoothed_step(keys[None, :] - np.array(queries)[:, None], 1.0).sum(axis=1)
    assert expected[0] > 1e4 and expected[2] < 2e-3
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=0)


@kinds
@given(values=st.lists(st.integers(-40, 40), min_size=1, max_size=15), data=st.data())
def test_sums_among_queries_equal_the_full_matrix(kind, values, data):
    queries, size = np.sort(values) / 16, len(values)
    weights = np.array(data.draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)))
    matrix = kind(torch.tensor(queries), 0.75)
    H = smoothed_step(queries[None, :] - queries[:, None], 0.75)
    np.testing.assert_allclose(matrix.among_queries().numpy(), H.sum(axis=1), rtol=1e-12)
    weighted = matrix.among_queries(torch.tensor(weights, dtype=torch.float64))
    np.testing.assert_allclose(weighted.numpy(), H @ weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [operators, compiled], ids=["operators", "compiled"])
@given(
    values=st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1e308, -1e308]),
            st.floats(allow_nan=False, allow_infinity=False),
            st.floats(-8, 8, width=16),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_of_equal_positives_the_later_is_sorted_below(module, values):
    check_sorted(module.sort, values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of the CPU")
@pytest.mark.parametrize("num_values", [1, 16, 17, 150])
@pytest.mark.parametrize("most", [fused._MOST_SORTED, 0], ids=["pairs", "operators"])
def test_positives_are_sorted_on_a_gpu(rng, num_values, most, monkeypatch):
    """In whatever order they come."""
    monkeypatch.setattr(fused, "_MOST_SORTED", most)
    values = np.round(2 * rng.standard_normal(num_values)) / 2
    values[::7] = -0.0
    check_sorted(fused.sort, values.tolist())
    mixed = torch.from_numpy(rng.permutation(num_values))
    check_sorted(fused.sort, values.tolist(), mixed)


def check_sorted(sort, values, mixed=None):
    """``mixed`` is the order in which the positives and their logits come, if not ascending."""
    logits = torch.tensor(values, dtype=torch.float64)
    own = torch.arange(len(values), dtype=torch.float32)
    expected = sorted(range(len(values)), key=lambda i: (values[i], -i))
    positives = 3 * torch.arange(len(values)) + 2
    come = slice(None) if mixed is None else mixed
    for values in (own, own[:0]):
        found = sort(logits[come], values, positives[come])
        assert found.order.tolist() == expected
        assert found.values.tolist() == (expected if len(values) else [])
        assert found.values.dtype == torch.float64
        assert_close(found.queries, logits[expected], rtol=0, atol=0)
        assert_close(found.positives, positives, rtol=0, atol=0)


def test_prefix_sums_end_and_suffix_sums_begin_at_each_element():
    x = torch.arange(1.0, 12.0)
    assert prefix_sum(x).tolist() == np.cumsum(x.numpy()).tolist()
    assert suffix_sum(x).tolist() == np.cumsum(x.numpy()[::-1])[::-1].tolist()


@pytest.mark.parametrize("size", [0, 1, 2, 7, 12])
def test_sums_by_doubling_are_prefix_sums(rng, size):
    """The way of GPUs in the deterministic mode."""
    x = torch.as_tensor(rng.standard_normal(size))
    assert_close(_prefix_sum_by_doubling(x), x.cumsum(0), rtol=1e-14, atol=1e-14)
