"""The way the losses work on a GPU is tested on the CPU too."""

from __future__ import annotations

import pytest
import torch

from alrp.losses import compiled
from alrp.losses import device as device_module
from alrp.losses import operators


@pytest.fixture(params=[compiled, operators], ids=["compiled", "operators"])
def cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, or by operators of PyTorch as on any other device."""
    monkeypatch.setattr(device_module, "_has_numba", lambda: request.param is compiled)
    assert device_module.backend(torch.device("cpu")) is request.param
