"""Small RS detectors that rank the images of all processes as one; spawned processes import it."""

from __future__ import annotations

from helpers.dense_models import small_named
from helpers.detectors import train_step
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
        return small_named("retinanet_rs_ATSS", **together)
    return small_rcnn(name, **together)


def losses_and_gradients(model, batch):
    """Of one training step, by name."""
    losses, _ = train_step(model, batch)
    plain = getattr(model, "module", model)
    gradients = {n: p.grad for n, p in plain.named_parameters() if p.requires_grad}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def train_on_own_image(rank):
    """What this process gets for its image, by name of the model."""
    return {name: losses_and_gradients(distribute(build(name)), [BATCH[rank]]) for name in NAMES}
