"""One iteration of a training run, to see whether it fits and how long it will take."""

from __future__ import annotations

import time
from datetime import timedelta
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from ..checkpoint import CheckedCheckpointer
from ..memory import peak_memory
from .checks import PUBLISHED_BATCH, published_learning_rate
from .endings import memory_advice
from .mixed_precision import iteration_trainer
from .trainer import TrainingParts, distribute, epoch_length


def dry_run(parts: TrainingParts) -> str:
    """Load the weights, train one iteration, and report; nothing is written.

    On a GPU an iteration before it, not timed, lets CUDA choose its kernels.

    Args:
        parts: of ``Trainer.build_parts`` or ``build_lazy_parts``.

    Returns:
        str: lines of "name  value".
    """
    cfg = parts.cfg
    CheckedCheckpointer(parts.model, complete=False).load(cfg.MODEL.WEIGHTS)
    trainer = iteration_trainer(cfg, distribute(parts.model), parts.data_loader, parts.optimizer)
    device = next(parts.model.parameters()).device
    on_gpu = device.type == "cuda"
    with memory_advice(cfg):
        for _ in range(2 if on_gpu else 1):
            seconds, losses = _timed_step(trainer, device)
    where = "on the GPU" if on_gpu else "resident"
    rows = {
        "parameters": _parameters(parts.model),
        "batch": _batch(cfg),
        **_schedule(cfg, parts.num_images),
        "learning rate": _learning_rate(cfg),
        "losses": ", ".join(f"{name} {value:.4g}" for name, value in sorted(losses.items())),
        "peak memory": f"{peak_memory(device) / 2**30:.2f} GiB {where} per process",
        "iteration": f"{seconds:.2f} s without waiting for data",
        "time of the schedule": f"{_duration(seconds * cfg.SOLVER.MAX_ITER)} without evaluation",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _timed_step(trainer: SimpleTrainer, device: torch.device) -> tuple[float, dict[str, float]]:
    """Seconds of forward, backward and update, and the losses."""
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.storage = storage
        start = time.perf_counter()
        trainer.run_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # of the model, which need not be the current one
        seconds = time.perf_counter() - start
    latest = {name: value for name, (value, _) in storage.latest().items()}
    losses = {name: value for name, value in latest.items() if "loss" in name and "/" not in name}
    return seconds - latest.get("data_time", 0.0), losses


def _parameters(model: nn.Module) -> str:
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total:,}, {trained:,} of them trained"


def _batch(cfg: CfgNode) -> str:
    num_processes, size = comm.get_world_size(), cfg.SOLVER.MICRO_BATCH_SIZE
    text = f"{cfg.SOLVER.IMS_PER_BATCH} images on {num_processes} process(es)"
    if 0 < size < cfg.SOLVER.IMS_PER_BATCH // num_processes:
        text += f", {size} at a time"
    return text


def _schedule(cfg: CfgNode, num_images: int | None) -> dict[str, str]:
    if num_images is None:
        return {"schedule": f"{cfg.SOLVER.MAX_ITER:,} iterations"}
    per_epoch = epoch_length(num_images, cfg.SOLVER.IMS_PER_BATCH)
    epochs = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / num_images
    return {
        "epoch": f"{num_images:,} images = {per_epoch:,} iterations",
        "schedule": f"{cfg.SOLVER.MAX_ITER:,} iterations = {epochs:.1f} epochs",
    }


def _learning_rate(cfg: CfgNode) -> str:
    """The rate, and what it is at the batch of the published rates; they scale linearly."""
    lr, batch = cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH
    published = published_learning_rate(cfg)
    text = f"{lr:g} = {lr * PUBLISHED_BATCH / batch:g} at the reference batch of {PUBLISHED_BATCH}"
    if published is None:
        return f"{text} ({cfg.SOLVER.OPTIMIZER}; no published rate)"
    return f"{text} (published: {published:g})"


def _duration(seconds: float) -> str:
    """Like "2 days, 3:04:05"."""
    return str(timedelta(seconds=round(seconds)))
