"""Shared fixtures: seeded generators, devices, golden figures and the hypothesis profiles.

The helper modules of this folder (``reference``, ``gloo_worker``) are imported by their plain
names, also by spawned processes and in every import mode of pytest; hence the ``sys.path`` entry.
"""

from __future__ import annotations

import numpy as np
import os
import sys
from pathlib import Path
from typing import Callable
import pytest
import torch
from hypothesis import settings

TESTS_ROOT = Path(__file__).resolve().parent
if str(TESTS_ROOT) not in sys.path:
    sys.path.insert(0, str(TESTS_ROOT))

settings.register_profile("local", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI", "").lower() == "true" else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU and, where there is one, on a CUDA device."""
    return torch.device(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator that starts at the same place in every test."""
    return np.random.default_rng(20200927)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU torch generator that starts at the same place in every test."""
    return torch.Generator().manual_seed(20200927)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """``golden("name")`` returns the arrays of ``tests/golden/name.npz``."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(TESTS_ROOT / "golden" / f"{name}.npz") as archive:
            return {key: archive[key] for key in archive.files}

    return load
