"""The losses of a model on images that it is not trained on."""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Sequence
import torch
from torch import nn
from torch.utils.data import DataLoader

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import Backbone
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..data.stream import seeded
from ..errors import UserError

_KEPT_IN_EVAL = (Backbone, nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class ValidationLoss:
    """Mean of each loss over the test images, and of their sum, without a trace in the training.

    A ranking loss is of a batch: each process ranks as many images at a time as in training. A mean
    is over the images; the incomplete batches at the end count by their images. Batch norm takes
    the statistics that it has. Sampling of proposals draws the same random numbers each time. Each
    process ranks its own images, also with ``MODEL.ALRP.GLOBAL_RANKING``. The processes may have
    different shares of the images, also none: they only meet at the end.

    Args:
        model: a detector, without DistributedDataParallel.
        batches: of :func:`validation_loader`.
    """

    def __init__(self, model: nn.Module, batches: Iterable[list[dict]]) -> None:
        self._model, self._batches = model, batches

    def __call__(self) -> dict[str, dict[str, float]]:
        """``{"validation": {"total_loss": ..., "loss_cls": ..., ...}}``; {} off the main process.

        Without an image all are missing.
        """
        sums: dict[str, float] = defaultdict(float)
        num_images = 0
        with _computing_losses(self._model), _seeded(self._model), torch.no_grad():
            for batch in self._batches:
                with EventStorage(1):  # that of the training stays as it is
                    losses = self._model(batch)
                num_images += len(batch)
                for name, loss in {**losses, "total_loss": sum(losses.values())}.items():
                    sums[name] += float(loss) * len(batch)
        shares = comm.gather((dict(sums), num_images))
        num_images = sum(number for _, number in shares)
        if num_images == 0:  # off the main process, too
            return {}
        names = dict.fromkeys(name for share, _ in shares for name in share)
        means = {n: sum(share.get(n, 0.0) for share, _ in shares) / num_images for n in names}
        return {"validation": means}


def validation_loader(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable[[dict], dict]
) -> DataLoader:
    """This process's share of the images, in batches as large as those of a training.

    Args:
        cfg: with ``SOLVER.IMS_PER_BATCH`` and ``DATALOADER.NUM_WORKERS``.
        records: of the test images, in Detectron2's format.
        mapper: of the evaluation, with an attribute ``is_train``; ground truth is added to what it
            makes of an image.

    Raises:
        UserError: if the mapper is of another kind, or an image has no list of annotations.
    """
    if not hasattr(mapper, "is_train"):
        raise UserError(
            f"TEST.VALIDATION_LOSS: {type(mapper).__name__} is no mapper like Detectron2's "
            "DatasetMapper, so that ground truth cannot be added to the test images; set "
            "TEST.VALIDATION_LOSS False."
        )
    without = next((r["file_name"] for r in records if "annotations" not in r), None)
    annotations = (a for record in records for a in record.get("annotations", ()))
    if without is not None or all(a.get("iscrowd", 0) for a in annotations):
        raise UserError(
            f"TEST.VALIDATION_LOSS: {without or 'every image'} of DATASETS.TEST has no "
            "annotations, and a loss needs them; set TEST.VALIDATION_LOSS False, or name a set "
            "with annotations."
        )
    mapper = copy.copy(mapper)
    mapper.is_train = True
    # A mapper of an evaluation may leave out what only a loss needs.
    mapper.use_instance_mask, mapper.use_keypoint = cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON
    mapper.instance_mask_format = cfg.INPUT.MASK_FORMAT
    return build_detection_test_loader(
        records,
        mapper=mapper,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


@contextmanager
def _seeded(model: nn.Module) -> Iterator[None]:
    """The same random numbers each time, of the model's GPU too; then they go on as before."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with seeded(0), torch.random.fork_rng(devices):
        torch.cuda.manual_seed_all(0)
        yield


@contextmanager
def _computing_losses(model: nn.Module) -> Iterator[None]:
    """A model that returns losses; at the end it is as before, to the last attribute and buffer."""
    attributes: list[tuple[nn.Module, dict[str, Any]]] = [
        (module, dict(vars(module))) for module in model.modules()
    ]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    model.train()
    for module in model.modules():
        if isinstance(module, _KEPT_IN_EVAL):
            module.eval()
    try:
        yield
    finally:
        for module, before in attributes:
            vars(module).clear()  # running means of Detectron2's RetinaNet are attributes
            vars(module).update(before)
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer.copy_(value)
