"""Processes that start at once: forked from one that has loaded the libraries and done no work."""

from __future__ import annotations

import multiprocessing
from typing import Callable
from torch.multiprocessing import start_processes


def run_two(function: Callable, *args) -> None:
    """Run ``function(rank, 2, *args)`` in two processes; an exception in one of them is raised."""
    multiprocessing.set_forkserver_preload(["alrp.engine"])  # once; the server stays
    start_processes(function, (2, *args), nprocs=2, start_method="forkserver")
