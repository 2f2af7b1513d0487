"""The way the losses work without numba is tested too."""

from __future__ import annotations

import os
import pytest
import torch

from alrp.losses.backends import choice, compiled, operators


@pytest.fixture(params=[compiled, operators], ids=["compiled", "operators"])
def cpu_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops, or by operators of PyTorch as on any other device.

    On an emulated GPU always by operators: Triton's interpreter is slow, and has its own tests.
    """
    monkeypatch.setattr(choice, "_has_numba", lambda: request.param is compiled)
    if os.environ.get("TRITON_INTERPRET") == "1":
        if request.param is compiled and request.node.get_closest_marker("cuda"):
            pytest.skip("on an emulated GPU both are one")
        monkeypatch.setattr(choice, "_has_triton", lambda device: False)
    assert choice.backend(torch.device("cpu")).survey is request.param.survey
