"""Sums over queries and keys, by every way of placing the keys, equal those of the full matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import smoothed_step
from torch.testing import assert_close

from alrp.losses import negatives as negatives_module
from alrp.losses.grid import Grid
from alrp.losses.negatives import GridNegatives, SearchedNegatives
from alrp.losses.step_matrix import StepMatrix, nonzero_indices, prefix_sum, suffix_sum

KINDS = [GridNegatives, SearchedNegatives]
kinds = pytest.mark.parametrize("kind", KINDS)


def products(kind, logits, targets, weights, delta):
    """(false positives, rmatvec) of a class, and of the full matrix in float64."""
    logits, targets = torch.as_tensor(logits), torch.as_tensor(targets)
    matrix = StepMatrix(logits[targets == 1], delta)
    negatives = kind(matrix, logits, targets)
    actual = negatives.matvec(), negatives.rmatvec(torch.as_tensor(weights), logits, targets)

    s = logits.double().numpy()
    H = smoothed_step(s[None, :] - s[targets.numpy() == 1][:, None], delta)
    H = np.where(targets.numpy() == 0, H, 0.0)
    return actual, (H.sum(axis=1), weights @ H)


def assert_products_near(actual, expected, rtol):
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


@kinds
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1 << 20, 700], ids=["one_block", "blocks"])
def test_sums_over_negatives_and_positives_equal_the_full_matrix(
    rng, monkeypatch, kind, name, block
):
    monkeypatch.setattr(negatives_module, "_CPU_BLOCK", block)
    monkeypatch.setattr(negatives_module, "_DEVICE_BLOCK", block)
    logits, targets, delta = case(name, rng)
    weights = rng.random(int((targets == 1).sum()))
    assert_products_near(*products(kind, logits, targets, weights, delta), rtol=1e-6)


@kinds
@pytest.mark.parametrize("name", ["plain", "ties", "wide_step", "few_in_reach", "all_above"])
def test_float64_logits_are_summed_in_float64(rng, kind, name):
    logits, targets, delta = case(name, rng, np.float64)
    weights = rng.random(int((targets == 1).sum()))
    assert_products_near(*products(kind, logits, targets, weights, delta), rtol=1e-12)


@kinds
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_entries_that_are_no_negatives_get_exactly_zero(rng, kind, rubbish):
    logits, targets, delta = case("plain", rng)
    logits[targets == -1] = rubbish
    logits, targets = torch.as_tensor(logits), torch.as_tensor(targets)
    matrix = StepMatrix(logits[targets == 1], delta)
    weights = torch.ones(len(matrix.descending))
    sums = kind(matrix, logits, targets).rmatvec(weights, logits, targets)
    assert not sums[targets != 0].any() and sums[targets == 0].any()


@kinds
def test_there_may_be_no_entries_at_all(kind):
    """As on a process without any, when batches are ranked together."""
    matrix = StepMatrix(torch.tensor([0.5, 1.5]), 1.0)
    logits, targets = torch.zeros(0), torch.zeros(0, dtype=torch.int8)
    negatives = kind(matrix, logits, targets)
    assert negatives.matvec().tolist() == [0.0, 0.0]
    assert negatives.rmatvec(torch.ones(2), logits, targets).shape == (0,)


@kinds
def test_no_count_is_left_where_no_negative_is_in_reach(rng, kind):
    logits, targets, delta = case("none_in_reach", rng)
    actual, _ = products(kind, logits, targets, np.ones(int((targets == 1).sum())), delta)
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
def test_the_two_ways_of_placing_negatives_agree(entries, delta):
    logits = torch.tensor([e[0] for e in entries] + [0.0], dtype=torch.float32)
    targets = torch.tensor([e[1] for e in entries] + [1])
    matrix = StepMatrix(logits[targets == 1], delta)
    weights = torch.linspace(0.1, 1.0, len(matrix.descending), dtype=torch.float64)
    grid, searched = (kind(matrix, logits, targets) for kind in KINDS)
    assert_close(grid.matvec(), searched.matvec(), rtol=1e-9, atol=1e-9)
    sums = [kind.rmatvec(weights, logits, targets) for kind in (grid, searched)]
    assert_close(*sums, rtol=1e-6, atol=1e-7)


@given(
    queries=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20),
    keys=st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=40),
    delta=st.sampled_from([1e-3, 1.0, 10.0]),
    num_keys=st.sampled_from([1, 1000, 10**6]),
)
def test_the_grid_puts_every_key_into_the_cell_that_a_search_finds(queries, keys, delta, num_keys):
    matrix = StepMatrix(torch.tensor(queries), delta)
    grid = Grid(matrix, num_keys)
    # Keys on the knots themselves are the hard ones.
    keys = torch.cat([torch.tensor(keys), matrix.knots.float()])
    buckets, groups = grid.place(keys)
    searched = grid.search(keys.double(), buckets)
    cells = torch.where(groups == grid.MIXED, searched, grid.cells[groups.long()])
    assert_close(cells, matrix.locate(keys), rtol=0, atol=0)


def test_the_grid_knows_groups_without_knots_and_searches_for_the_rest():
    matrix = StepMatrix(torch.tensor([0.0, 3.0]), 1.0)
    grid = Grid(matrix, 4096)
    keys = torch.tensor([-9.0, -0.5, 1.0, 2.0, 9.0, float("nan")])
    buckets, groups = grid.place(keys)
    assert (groups == grid.MIXED).tolist() == [False, False, True, True, False, False]
    assert groups[5] == grid.BELOW
    # The knots are -1, 1, 2 and 4: the second and fourth cell lie between the halves of a step.
    assert grid.cells[groups.long()[[0, 1, 4, 5]]].tolist() == [0, 1, 4, 0]


def test_many_positives_get_a_wider_table_of_groups(rng):
    matrix = StepMatrix(torch.as_tensor(rng.uniform(-126, 126, 40_000)), 1.0)
    grid = Grid(matrix, 10**7)
    assert len(grid.cells) > 2**15
    keys = torch.as_tensor(rng.uniform(-130, 130, 2000))
    buckets, groups = grid.place(keys)
    searched = grid.search(keys, buckets)
    cells = torch.where(groups == grid.MIXED, searched, grid.cells[groups.long()])
    assert_close(cells, matrix.locate(keys), rtol=0, atol=0)


@given(values=st.lists(st.integers(-40, 40), min_size=1, max_size=15), data=st.data())
def test_sums_among_queries_equal_the_full_matrix(values, data):
    queries, size = np.array(values) / 16, len(values)
    weights = np.array(data.draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)))
    matrix = StepMatrix(torch.tensor(queries), 0.75)
    H = smoothed_step(queries[None, :] - queries[:, None], 0.75)
    np.testing.assert_allclose(matrix.among_queries().numpy(), H.sum(axis=1), rtol=1e-12)
    weighted = matrix.among_queries(torch.tensor(weights))
    np.testing.assert_allclose(weighted.numpy(), H @ weights, rtol=1e-12, atol=1e-12)


def test_equal_queries_keep_their_order_in_the_descending_one():
    assert StepMatrix(torch.tensor([1.0, 3.0, 1.0, 3.0]), 1.0).descending.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1003])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.int64], ids=str)
def test_nonzero_indices_equal_nonzero(generator, size, dtype):
    marks = (torch.rand(size, generator=generator) < 0.1).to(dtype)
    assert_close(nonzero_indices(marks), marks.nonzero().squeeze(1), rtol=0, atol=0)
    apart = torch.stack([marks, marks], dim=1)[:, 0]
    assert_close(nonzero_indices(apart), marks.nonzero().squeeze(1), rtol=0, atol=0)
    assert_close(nonzero_indices(marks[1:]), marks[1:].nonzero().squeeze(1), rtol=0, atol=0)


def test_prefix_and_suffix_sums():
    x = torch.arange(1.0, 12.0)
    assert prefix_sum(x).tolist() == np.cumsum(x.numpy()).tolist()
    assert suffix_sum(x).tolist() == np.cumsum(x.numpy()[::-1])[::-1].tolist()
