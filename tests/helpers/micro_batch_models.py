"""Tiny detectors that train in micro-batches or not; spawned processes import it."""

from __future__ import annotations

import torch
from helpers.detectors import FOVEABOX, RETINANET, USUAL, image, small_config
from torch import nn
from torch.nn import functional as F

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.utils.events import EventStorage

from alrp.engine.trainer import Trainer, distribute
from alrp.modeling.micro_batches import set_micro_batch_size

MODELS = {
    "retinanet_alrp_ATSS": (RETINANET, {"MODEL.ALRP.LOSS_TYPE": "alrp"}),
    "retinanet_ap": (
        RETINANET,
        {"MODEL.ALRP.LOSS_TYPE": "ap", "MODEL.ALRP.MATCHER": "max_iou"},
    ),
    "retinanet_rs": (RETINANET, {"MODEL.ALRP.LOSS_TYPE": "rs"}),
    "foveabox_alrp": (FOVEABOX, {"MODEL.ALRP.LOSS_TYPE": "alrp"}),
}
STEPS = 5


@BACKBONE_REGISTRY.register()
class TinyBackbone(Backbone):
    """One convolution with group norm for each of the levels p3 to p7."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        channels = [3, *[16] * 5]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:])
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in self.convs)

    def forward(self, images):
        x, features = F.avg_pool2d(images / 64, 4), {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = norm(conv(x)).relu()
            features[f"p{i + 3}"] = x
        return features

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(3, 8)}

    @property
    def size_divisibility(self):
        return 32


def tiny_config(name, **overrides):
    base, options = MODELS[name]
    keys = {"MODEL.BACKBONE.NAME": "TinyBackbone", "SOLVER.BASE_LR": 0.01, **options, **overrides}
    return small_config(base, **keys)


def make_batch(dtype=torch.float32):
    """Eight images of three sizes with up to two objects."""
    batch, generator = [], torch.Generator().manual_seed(0)
    for i in range(8):
        height, width = [(64, 96), (96, 64), (50, 40), (64, 96)][i % 4]
        num_boxes = (2, 1, 1, 0, 2, 2, 1, 1)[i]
        x = image(height, width, USUAL[:num_boxes], [i % 3, 2][:num_boxes])
        x["image"] = torch.randint(0, 256, x["image"].shape, generator=generator).to(dtype)
        x["instances"].gt_boxes.tensor = x["instances"].gt_boxes.tensor.to(dtype)
        x["file_name"] = f"folder/{i}.jpg"
        batch.append(x)
    return batch


def train(cfg, size, batch):
    """Losses (STEPS, 2) and the model after some steps; ``size`` 0 is the whole batch."""
    torch.manual_seed(0)
    model = build_model(cfg).to(batch[0]["image"].dtype)
    set_micro_batch_size(model, size)
    return _train(cfg, model, batch)


def _train(cfg, model, batch):
    optimizer, losses = Trainer.build_optimizer(cfg, model), []
    for iteration in range(STEPS):
        with EventStorage(iteration):
            values = model(batch)
        optimizer.zero_grad()
        sum(values.values()).backward()
        optimizer.step()
        losses.append([values[name].item() for name in ("loss_cls", "loss_box_reg")])
    return torch.tensor(losses), model


def train_in_one_of_two_processes(rank: int) -> tuple:
    """Train on 5 images of the batch or on the other 3, two at a time.

    Returns:
        Losses, state of the model, and the indices of the gradient buckets that were reduced.
    """
    cfg = tiny_config("retinanet_alrp_ATSS", **{"MODEL.ALRP.GLOBAL_RANKING": True})
    torch.manual_seed(0)
    model = build_model(cfg).double()
    set_micro_batch_size(model, 2)
    distributed, reduced = distribute(model), []

    def count(state, bucket):
        reduced.append(bucket.index())
        tensor = bucket.buffer() / torch.distributed.get_world_size()
        work = torch.distributed.all_reduce(tensor, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    distributed.register_comm_hook(None, count)
    batch = make_batch(torch.float64)
    losses, _ = _train(cfg, distributed, [batch[:5], batch[5:]][rank])
    return losses, model.state_dict(), reduced
