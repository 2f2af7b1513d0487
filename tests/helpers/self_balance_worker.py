"""What each Gloo process does in the tests of SelfBalance; spawned processes import it."""

from __future__ import annotations

import numpy as np
from pathlib import Path
import torch
import torch.distributed as dist
from helpers.processes import gloo_group

from alrp.losses import ALRPLossOutput, SelfBalance

PERIOD = 3
BREAK = 5  # steps before the checkpoint; in the middle of a period
# (cls, loc) of each step on each rank; None is a step without positives on that rank.
STEPS = [
    [(0.9, 0.10), (0.8, 0.30)],
    [None, (0.7, 0.20)],
    [None, None],
    [(0.6, 0.40), None],  # third counted step: renewed
    [(0.5, 0.15), None],
    [None, None],
    [None, (0.95, 0.35)],
    [(0.4, 0.05), (0.3, 0.45)],  # sixth: renewed
    [None, (0.2, 0.25)],
]


def output_of(step: tuple[float, float] | None) -> ALRPLossOutput:
    """A loss output as ``alrp_loss`` returns it, with two positives or none."""
    cls, loc = step or (0.0, 0.0)
    parts = (torch.tensor(value, requires_grad=True) for value in (cls, loc))
    return ALRPLossOutput(*parts, torch.ones(2 if step else 0))


def run_steps(balance: SelfBalance, steps: list[tuple[float, float] | None]) -> list[float]:
    return [balance(output_of(step)).item() for step in steps]


def train_with_validation(balance: SelfBalance, rank: int, passes: int) -> dict:
    """State after steps of the bridge, ranked over all processes, and validation passes between.

    The passes are in training mode without gradients, ``passes * rank`` after each step, so their
    number differs between the processes.
    """
    from helpers.global_ranking_worker import bridge_losses

    for _ in range(PERIOD + 1):
        losses = bridge_losses(rank, balance)
        assert all(value > 0 for value in losses.values())
        with torch.no_grad():
            for _ in range(passes * rank):
                bridge_losses(rank, balance)
    return balance.state_dict()


def validate_unevenly(rank: int, world_size: int, folder: str) -> None:
    """Write the states after a training with validation passes, and after one without."""
    with gloo_group(rank, world_size, folder):
        states = [train_with_validation(SelfBalance(PERIOD), rank, passes) for passes in (2, 0)]
        torch.save(states, Path(folder) / f"rank{rank}.pth")


def train_and_resume(rank: int, world_size: int, folder: str) -> None:
    """Write the weights of an uninterrupted run and of one resumed from rank 0's checkpoint."""
    with gloo_group(rank, world_size, folder):
        steps = [step[rank] for step in STEPS]
        uninterrupted = run_steps(SelfBalance(PERIOD), steps)
        first = SelfBalance(PERIOD)
        resumed = run_steps(first, steps[:BREAK])
        checkpoint = Path(folder) / "checkpoint.pth"
        if rank == 0:  # as Detectron2 does
            torch.save(first.state_dict(), checkpoint)
        dist.barrier()
        second = SelfBalance(PERIOD)
        second.load_state_dict(torch.load(checkpoint, weights_only=True))
        resumed += run_steps(second, steps[BREAK:])
        np.save(Path(folder) / f"rank{rank}.npy", np.array([uninterrupted, resumed]))
