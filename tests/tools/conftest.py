"""Loads a script as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def load_tool(monkeypatch):
    """``load_tool("name")`` is the module of tools/name.py, which may import its neighbours."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    monkeypatch.syspath_prepend(str(TOOLS))
    before, num_threads = set(sys.modules), torch.get_num_threads()
    yield load
    torch.set_num_threads(num_threads)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == TOOLS:
            del sys.modules[name]
