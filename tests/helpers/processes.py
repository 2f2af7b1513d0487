"""Groups of two processes, forked from one that has loaded the libraries and done no work."""

from __future__ import annotations

import contextlib
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Iterator
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes


def run_two(function: Callable, folder: Path, *args) -> list[Any]:
    """What ``function(rank, *args)`` returns in each of two processes of a Gloo group.

    An exception in one of them is raised. ``folder`` is an empty one.
    """
    multiprocessing.set_forkserver_preload(["alrp.engine"])  # once; the server stays
    start_processes(_run, (folder, function, args), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]


def _run(rank: int, folder: Path, function: Callable, args: tuple) -> None:
    with gloo_group(rank, 2, str(folder)):
        result = function(rank, *args)
    torch.save(result, folder / f"rank{rank}.pth")


@contextlib.contextmanager
def gloo_group(rank: int, world_size: int, folder: str) -> Iterator[None]:
    """Make this process one of a Gloo group that meets in ``folder``, with one thread."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
