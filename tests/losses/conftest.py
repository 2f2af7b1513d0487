"""The way the losses work on a GPU is tested on the CPU too."""

from __future__ import annotations

import pytest
import torch

from alrp.losses import compiled
from alrp.losses import device as device_module
from alrp.losses import operators

ON_BOTH = ["test_alrp_loss", "test_ap_loss", "test_golden"]
ON_BOTH += ["test_ranking_losses_edges", "test_ranking_losses_oracle"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.split(".")[-1] in ON_BOTH:
        metafunc.fixturenames.append("cpu_backend")
        metafunc.parametrize("cpu_backend", ["compiled", "operators"], indirect=True)


@pytest.fixture
def cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, or by operators of PyTorch as on any other device."""
    monkeypatch.setattr(device_module, "_has_numba", lambda: request.param == "compiled")
    module = {"compiled": compiled, "operators": operators}[request.param]
    assert device_module.backend(torch.device("cpu")) is module
