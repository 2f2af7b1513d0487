"""Small RS detectors that rank the images of all processes as one; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import torch
from helpers import dense_worker
from helpers.detectors import train_step
from helpers.gloo_worker import gloo_group
from helpers.rcnn_models import FULL, masked_image, small_rcnn

from alrp.engine.trainer import distribute

# The last is a Faster R-CNN with a mask head.
NAMES = ("rs_retinanet", "rs_mask")
# One image per process.
BATCH = [FULL, masked_image(64, 96, [[12, 8, 60, 44]], [1])]


def build(name):
    """A model with the same weights in every process."""
    together = {"MODEL.ALRP.GLOBAL_RANKING": True}
    if name == "rs_retinanet":
        options = dense_worker.RETINANETS["rs_ATSS"]
        return dense_worker.small_model("Base-ALRP-RetinaNet.yaml", **options, **together)
    return small_rcnn(name, **together)


def losses_and_gradients(model, batch):
    """Of one training step, by name."""
    losses, _ = train_step(model, batch)
    plain = getattr(model, "module", model)
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def train_on_own_image(rank: int, world_size: int, folder: str) -> None:
    """Write what this process gets for its image, model by model."""
    with gloo_group(rank, world_size, folder):
        results = {
            name: losses_and_gradients(distribute(build(name)), [BATCH[rank]]) for name in NAMES
        }
    torch.save(results, Path(folder) / f"rank{rank}.pth")
