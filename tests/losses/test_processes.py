"""Ranking over all processes is ranking of the whole batch in one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.global_ranking_worker import LOSSES, SHARES, loss_and_gradients, make_share, run_shares

INTERPRETED = pytest.param(
    "fused", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="tensors of the CPU")
)


@pytest.fixture(scope="module", params=["compiled", "operators", INTERPRETED])
def results(request, tmp_path_factory):
    """For each number of processes, what every one of them got, by the named backend."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no Gloo")
    found = {}
    for world_size in (2, 3):
        folder = tmp_path_factory.mktemp(f"gloo{world_size}")
        args = world_size, str(folder), request.param
        torch.multiprocessing.spawn(run_shares, args=args, nprocs=world_size)
        files = [folder / f"rank{rank}.pth" for rank in range(world_size)]
        found[world_size] = [torch.load(file, weights_only=False) for file in files]
    return found


def in_one_process(name, loss):
    """The loss of all shares in one process."""
    shares = [make_share(name, rank) for rank in range(len(SHARES[name]))]
    return loss_and_gradients(loss, tuple(torch.cat(parts) for parts in zip(*shares)), None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SHARES)
def test_every_process_has_the_value_of_the_whole_batch(results, name, loss):
    expected = in_one_process(name, loss)
    for result in results[len(SHARES[name])]:
        for part in {"cls", "loc"} & set(expected):
            assert result[name, loss][part] == pytest.approx(expected[part], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SHARES)
def test_averaged_gradients_are_those_of_the_whole_batch(results, name, loss):
    expected = in_one_process(name, loss)
    world_size = len(SHARES[name])
    for part in {"logits", "errors"} & set(expected):
        # DistributedDataParallel averages: what one process contributes is divided by their number.
        shares = [result[name, loss][part] / world_size for result in results[world_size]]
        np.testing.assert_allclose(np.concatenate(shares), expected[part], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", SHARES)
def test_each_process_gets_the_ranks_of_its_own_positives(results, name):
    ranks = [result[name, "alrp"]["rank"] for result in results[len(SHARES[name])]]
    assert [len(rank) for rank in ranks] == [positives for positives, _ in SHARES[name]]
    expected = in_one_process(name, "alrp")["rank"]
    np.testing.assert_allclose(np.concatenate(ranks), expected, rtol=1e-12)


def test_the_batch_matters(results):
    """The comparison above could not fail if ranking apart gave the same."""
    apart = [loss_and_gradients("alrp", make_share("uneven", rank), None) for rank in (0, 1)]
    together = in_one_process("uneven", "alrp")
    assert abs(np.mean([x["cls"] for x in apart]) - together["cls"]) > 1e-2


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_bridge_gives_all_processes_one_loss(results, world_size):
    first, *others = [result["bridge"] for result in results[world_size]]
    assert first["loss_cls"] > 0 and first["loss_box_reg"] > 0
    assert all(other == first for other in others)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_bad_value_on_one_process_stops_all_of_them(results, world_size):
    for result in results[world_size]:
        assert all("NaN or Inf" in message for message in result["refused"])
