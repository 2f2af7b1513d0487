"""Shared fixtures: seeded generators, devices, golden figures and the hypothesis profiles.

The package ``helpers`` of this folder is imported by its plain name, also by spawned processes and
in every import mode of pytest; hence the ``sys.path`` entry.
"""

from __future__ import annotations

import importlib.util
import numpy as np
import os
import random
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable, Iterator
import pytest
import torch
from hypothesis import settings

TESTS_ROOT = Path(__file__).resolve().parent
if str(TESTS_ROOT) not in sys.path:
    sys.path.insert(0, str(TESTS_ROOT))

from helpers.emulated_gpu import EmulatedGPU  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands
# that they start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests that run side by side share the cores, and so do the commands that they start: threads that
# wait for each other on a busy core waste most of the time.
num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if num_workers > 1:
    num_threads = max(1, (os.cpu_count() or 1) // num_workers)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)

settings.register_profile("local", deadline=None, max_examples=40)
settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI", "").lower() == "true" else "local")


@pytest.fixture(autouse=True)
def _cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    """Emulate a GPU for tests marked ``cuda`` where there is none."""
    if request.node.get_closest_marker("cuda") and not torch.cuda.is_available():
        with EmulatedGPU():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start the global generators of every test at the same place, whatever ran before it."""
    random.seed(20200927)
    np.random.seed(20200927)
    torch.manual_seed(20200927)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on the CPU and on a CUDA device, which is emulated where there is none."""
    return torch.device(request.param)


@pytest.fixture(scope="module")
def load_script() -> Iterator[Callable[[str], ModuleType]]:
    """``load_script("tools/name.py")`` is that script as a module; it may import its neighbours."""
    folders: list[Path] = []

    def load(script: str) -> ModuleType:
        path = TESTS_ROOT.parent / script
        folders.append(path.parent)
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    before, num_threads = set(sys.modules), torch.get_num_threads()
    yield load
    torch.set_num_threads(num_threads)
    for folder in folders:
        sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent in folders:
            del sys.modules[name]


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
