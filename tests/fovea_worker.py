"""What each Gloo process does in the tests of FoveaBox; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
import detectors
import torch
from detectors import image, train_step
from gloo_worker import gloo_group

from detectron2.modeling import build_model

from alrp.engine.trainer import distribute


def small_config(num_classes=3, **overrides):
    return detectors.small_config("Base-FoveaBox.yaml", "FOVEABOX", num_classes, **overrides)


def small_model(num_classes=3, **overrides):
    torch.manual_seed(0)
    return build_model(small_config(num_classes, **overrides))


def step_beside_an_empty_rank(rank: int, world_size: int, folder: str) -> None:
    """Two steps per loss with ground truth on rank 0 only; write losses and gradients."""
    batch = [image(64, 96, [[5, 5, 40, 50]], [1]) if rank == 0 else image(64, 96)]
    results = {}
    with gloo_group(rank, world_size, folder):
        for loss_type in ("alrp", "ap", "focal"):
            # No renewal of the self-balance weight within the two steps.
            options = {"MODEL.ALRP.LOSS_TYPE": loss_type, "MODEL.ALRP.SELF_BALANCE.PERIOD": 100}
            model = distribute(small_model(**options))
            for _ in range(2):  # the second finds out if a parameter was left over in the first
                model.zero_grad()
                losses, _ = train_step(model, batch)
            gradients = {n: p.grad for n, p in model.module.named_parameters() if p.requires_grad}
            results[loss_type] = ({k: v.item() for k, v in losses.items()}, gradients)
        torch.save(results, Path(folder) / f"rank{rank}.pth")
