"""What each Gloo process does in the tests of ranking over all processes."""

from __future__ import annotations

import numpy as np
from pathlib import Path
import torch
import torch.distributed as dist
from helpers.processes import gloo_group
from torch import Tensor

from alrp.losses import SelfBalance, alrp_loss, ap_loss, rs_loss
from alrp.losses.backends import choice
from alrp.modeling import ALRPHeadLosses

# Positives and negatives of each process, for as many processes as the tuple is long.
SHARES = {
    "even": [(8, 300), (8, 300)],
    "uneven": [(1, 50), (30, 400)],
    "no_positive_on_the_first": [(0, 200), (5, 100)],
    "no_positive_on_the_last": [(5, 100), (0, 200)],
    "no_negative_on_the_first": [(4, 0), (3, 100)],
    "nothing_on_the_first": [(0, 0), (3, 50)],
    "no_positive": [(0, 20), (0, 30)],
    "three": [(6, 200), (11, 90), (3, 500)],
    "three_with_empty": [(0, 60), (7, 80), (0, 0)],
    "three_ties": [(5, 100), (6, 100), (7, 100)],
}
DELTA = 1.0
LOSSES = ("alrp", "ap", "rs", "rs, hard step")


def make_share(name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets (a few of them ignored) and localisation errors of a process, float64."""
    num_positives, num_negatives = SHARES[name][rank]
    rng = np.random.default_rng([len(name), rank])
    targets = np.array([1] * num_positives + [0] * num_negatives + [-1] * 3)
    rng.shuffle(targets)
    logits = 1.5 * rng.standard_normal(len(targets)) + (targets == 1)
    if "ties" in name:
        logits = np.round(2 * logits) / 2
    errors = rng.uniform(0, 1.5, num_positives)
    return torch.tensor(logits), torch.tensor(targets), torch.tensor(errors)


def loss_and_gradients(loss: str, share: tuple[Tensor, Tensor, Tensor], group) -> dict:
    """Values of a loss and gradients with respect to both of its inputs."""
    logits, targets, errors = (x.clone() for x in share)
    logits.requires_grad_()
    errors.requires_grad_()
    if loss == "ap":
        value = ap_loss(logits, targets, delta=DELTA, group=group)
        value.backward()
        return {"cls": value.item(), "logits": logits.grad.numpy()}
    if loss.startswith("rs"):
        delta = 0.0 if loss == "rs, hard step" else DELTA
        output = rs_loss(logits, targets, errors.detach() / 2, delta=delta, group=group)
        (output.ranking + 3 * output.sorting).backward()
        return {
            "cls": output.ranking.item(),
            "loc": output.sorting.item(),
            "logits": logits.grad.numpy(),
        }
    output = alrp_loss(logits, targets, errors, delta=DELTA, group=group)
    (output.cls + 3 * output.loc).backward()
    return {
        "cls": output.cls.item(),
        "loc": output.loc.item(),
        "rank": output.rank.numpy(),
        "logits": logits.grad.numpy(),
        "errors": errors.grad.numpy(),
    }


def bridge_losses(rank: int, self_balance: SelfBalance | None = None) -> dict:
    """Losses of the bridge over all processes, on rows that depend on the process."""
    generator = torch.Generator().manual_seed(rank)
    gt_classes = torch.tensor([0, 2, 3, 3, 1, -1, 3][rank:])
    pred_logits = torch.randn(len(gt_classes), 3, generator=generator).requires_grad_()
    num_positives = int(((gt_classes >= 0) & (gt_classes < 3)).sum())
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(num_positives, 1)
    bridge = ALRPHeadLosses(num_classes=3, global_ranking=True, self_balance=self_balance)
    return {k: v.item() for k, v in bridge(pred_logits, gt_classes, boxes, boxes + 1).items()}


def run_shares(rank: int, world_size: int, folder: str, backend: str) -> None:
    """Write what this process gets for each share of so many processes, by the named backend."""
    choice._has_numba = lambda: backend == "compiled"
    choice._has_triton = lambda device: backend == "fused"
    with gloo_group(rank, world_size, folder):
        names = [name for name, shares in SHARES.items() if len(shares) == world_size]
        results = {
            (name, loss): loss_and_gradients(loss, make_share(name, rank), dist.group.WORLD)
            for name in names
            for loss in LOSSES
        }
        results["bridge"] = bridge_losses(rank)
        results["refused"] = [refused(loss, rank) for loss in LOSSES]
        torch.save(results, Path(folder) / f"rank{rank}.pth")


def refused(loss: str, rank: int) -> str:
    """The message of every process if only the last one has a logit that is not finite."""
    logits = torch.tensor([1.0, float("nan") if rank else 0.0])
    share = logits, torch.tensor([1, 0]), torch.tensor([0.5])
    try:
        loss_and_gradients(loss, share, dist.group.WORLD)
    except FloatingPointError as error:
        return str(error)
    return ""
