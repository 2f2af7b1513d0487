"""The way the losses work on a GPU is tested on the CPU too."""

from __future__ import annotations

import pytest

from alrp.losses import device as device_module

BOTH_WAYS = ["test_alrp_loss", "test_ap_loss", "test_golden"]
BOTH_WAYS += ["test_ranking_losses_edges", "test_ranking_losses_oracle"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.split(".")[-1] in BOTH_WAYS:
        metafunc.fixturenames.append("way")
        metafunc.parametrize("way", ["compiled", "torch"], indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, or by operators of PyTorch as on any other device."""
    if request.param == "torch":
        monkeypatch.setattr(device_module, "_compiled", lambda: None)
