"""The way the losses work on a GPU is tested on the CPU too."""

from __future__ import annotations

import pytest
import torch

from alrp.losses.backends import choice, compiled, operators


@pytest.fixture(params=[compiled, operators], ids=["compiled", "operators"])
def cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, or by operators of PyTorch as on any other device."""
    monkeypatch.setattr(choice, "_has_numba", lambda: request.param is compiled)
    assert choice.backend(torch.device("cpu")).survey is request.param.survey
