"""Processes that start at once: forked from one that has loaded the libraries and done no work."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any, Callable
import torch
from torch.multiprocessing import start_processes


def run_two(function: Callable, folder: Path, *args) -> list[Any]:
    """What ``function(rank, 2, str(folder), *args)`` writes to ``rank{rank}.pth`` in the folder.

    It runs in two processes; an exception in one of them is raised.
    """
    multiprocessing.set_forkserver_preload(["alrp.engine"])  # once; the server stays
    args = (2, str(folder), *args)
    start_processes(function, args, nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]
