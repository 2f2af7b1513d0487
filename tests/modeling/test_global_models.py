"""RS detectors in two processes, one image each, train as one process with both images does."""

from __future__ import annotations

import pytest
from helpers.global_models import BATCH, NAMES, build, losses_and_gradients, train_on_own_image
from helpers.processes import run_two
from torch.testing import assert_close


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Per rank, per model: losses and gradients."""
    return run_two(train_on_own_image, tmp_path_factory.mktemp("gloo"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_agree_with_one(two_processes, name):
    losses, gradients = losses_and_gradients(build(name), BATCH)
    assert all(loss > 0 for loss in losses.values())
    for rank in two_processes:
        assert_close(rank[name][0], losses, rtol=1e-4, atol=0)
        for parameter, expected in gradients.items():
            actual = rank[name][1][parameter]
            # Not of the tiny ones: GIoU and the sorting of IoUs turn a last bit into more.
            error = (actual - expected).norm() / expected.norm().clamp(min=1e-4)
            assert error < 1e-3, parameter
