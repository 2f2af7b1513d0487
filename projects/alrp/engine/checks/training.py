"""Checks of batch, schedule, learning rate and device."""

from __future__ import annotations

import torch

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from ...coco import Finding
from ...head_nodes import lineage

# Published learning rates at a total batch of 32 images: by architecture, for a GeneralizedRCNN by
# MODEL.ROI_HEADS.NAME; and by MODEL.ALRP.LOSS_TYPE, or "ce" for cross entropy.
PUBLISHED_BATCH = 32
_PUBLISHED_LR = {
    ("ALRPRetinaNet", "alrp"): 0.008,
    ("ALRPRetinaNet", "ap"): 0.002,
    ("ALRPRetinaNet", "rs"): 0.016,
    ("FoveaBox", "alrp"): 0.008,
    ("FoveaBox", "ap"): 0.002,
    ("FoveaBox", "focal"): 0.02,
    ("ALRPROIHeads", "alrp"): 0.012,
    ("ALRPROIHeads", "rs"): 0.024,
    ("StandardROIHeads", "ce"): 0.04,
}
_PUBLISHED_NAMES = {name for name, _ in _PUBLISHED_LR}
_LR_TOLERANCE = 4.0


def check_training(cfg: CfgNode, world_size: int) -> list[Finding]:
    """Look for mistakes in what only a training reads.

    Args:
        cfg: full config.
        world_size: total number of processes, one per GPU.
    """
    return _check_solver(cfg, world_size) + _check_learning_rate(cfg)


def published_learning_rate(cfg: CfgNode) -> float | None:
    """Learning rate published for a model at ``PUBLISHED_BATCH`` images; None if there is none."""
    names = lineage(cfg.MODEL.META_ARCHITECTURE)
    if "GeneralizedRCNN" in names:
        names = lineage(cfg.MODEL.ROI_HEADS.NAME, ROI_HEADS_REGISTRY)
    # Subclasses are trained as the nearest published class that they descend from.
    name = next((name for name in names if name in _PUBLISHED_NAMES), None)
    loss = "ce" if name == "StandardROIHeads" else cfg.MODEL.ALRP.LOSS_TYPE
    return _PUBLISHED_LR.get((name, loss)) if cfg.SOLVER.OPTIMIZER == "SGD" else None


def _check_solver(cfg: CfgNode, world_size: int) -> list[Finding]:
    """Batch and processes fit together; learning rate steps lie within the schedule."""
    findings = []
    batch = cfg.SOLVER.IMS_PER_BATCH
    # With a reference, Detectron2's trainer scales the batch to the number of processes.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if batch % processes:
        below, above = batch // processes * processes, (batch // processes + 1) * processes
        what = f"expected a positive multiple of the {processes} process(es), but got {batch}"
        fix = f"set SOLVER.IMS_PER_BATCH {above if below < 1 else f'{below} or {above}'}"
        fix += ", or use another number of GPUs"
        findings.append(Finding("error", "SOLVER.IMS_PER_BATCH", what, fix))
    warmup, end = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if warmup > end:
        what = f"the warm-up of {warmup} iterations is longer than the training, which ends at "
        what += f"iteration {end} (SOLVER.MAX_ITER) before the rate reaches SOLVER.BASE_LR"
        findings.append(
            Finding("warning", "SOLVER.WARMUP_ITERS", what, "lower SOLVER.WARMUP_ITERS")
        )
    elif cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and warmup > min(
        cfg.SOLVER.STEPS, default=end
    ):
        what = f"the warm-up of {warmup} iterations goes on beyond the first step of the learning "
        what += f"rate, at iteration {min(cfg.SOLVER.STEPS)} (SOLVER.STEPS)"
        fix = "lower SOLVER.WARMUP_ITERS, or take the steps later"
        findings.append(Finding("warning", "SOLVER.WARMUP_ITERS", what, fix))
    late = [step for step in cfg.SOLVER.STEPS if step >= end]
    if late and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        what = f"the learning rate steps {late} lie at or beyond the end, iteration "
        what += f"{end} (SOLVER.MAX_ITER), and never happen"
        fix = 'scale the steps with SOLVER.MAX_ITER, or set SOLVER.STEPS "()"'
        findings.append(Finding("warning", "SOLVER.STEPS", what, fix))
    return findings


def _check_learning_rate(cfg: CfgNode) -> list[Finding]:
    """The learning rate is not far from the published one for this batch."""
    batch, lr = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    published = published_learning_rate(cfg)
    if published is None:
        return []
    expected = published * batch / PUBLISHED_BATCH
    if expected / _LR_TOLERANCE <= lr <= expected * _LR_TOLERANCE:
        return []
    what = (
        f"{lr:g} is far from {expected:g}, the published {published:g} for {PUBLISHED_BATCH} "
        f"images scaled to SOLVER.IMS_PER_BATCH {batch}"
    )
    return [Finding("warning", "SOLVER.BASE_LR", what, f"try SOLVER.BASE_LR {expected:g}")]


def check_device(cfg: CfgNode, *, for_training: bool, world_size: int = 1) -> list[Finding]:
    """The device is there for each process, and can do the mixed precision that is asked for."""
    name = cfg.MODEL.DEVICE
    # Matchers need float64.
    device = _usable_device(name, torch.float64 if for_training else torch.float32)
    if device is None:
        what = f"expected cpu, cuda or cuda:N, but got {name!r}"
        return [Finding("error", "MODEL.DEVICE", what, "set MODEL.DEVICE cpu or cuda")]
    findings, count = [], torch.cuda.device_count()
    if device.type == "cuda" and not torch.cuda.is_available():
        what = f"{name!r} was asked for, but PyTorch finds no GPU on this machine"
        fix = "set MODEL.DEVICE cpu, or install a PyTorch build and driver that see the GPU"
        findings.append(Finding("error", "MODEL.DEVICE", what, fix))
    elif device.type == "cuda" and (device.index or 0) >= count:
        what = f"{name!r} was asked for, but this machine has {count} GPU(s), from cuda:0 on"
        findings.append(Finding("error", "MODEL.DEVICE", what, "set MODEL.DEVICE cuda"))
    elif device.type == "cuda" and device.index is not None and world_size > 1:
        what = f"{name!r} is one GPU, but {world_size} processes were asked for, one for each GPU"
        fix = "set MODEL.DEVICE cuda, or --num-gpus 1 on a single machine"
        findings.append(Finding("error", "MODEL.DEVICE", what, fix))
    elif device.type != "cuda" and world_size > 1 and torch.cuda.is_available():
        what = f"{name!r} was asked for, but several processes use NCCL on a machine with GPUs"
        fix = "set MODEL.DEVICE cuda, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        findings.append(Finding("error", "MODEL.DEVICE", what, fix))
    amp = cfg.SOLVER.AMP
    if for_training and amp.ENABLED and amp.DTYPE == "float16" and device.type == "cpu":
        what = "float16 needs a GPU, but MODEL.DEVICE is cpu"
        fix = "set SOLVER.AMP.DTYPE bfloat16 or SOLVER.AMP.ENABLED False"
        findings.append(Finding("error", "SOLVER.AMP.DTYPE", what, fix))
    return findings


def _usable_device(name: str, dtype: torch.dtype) -> torch.device | None:
    """The device of that name; None if there is none, or it has no tensors of that dtype.

    Whether there is a GPU is not looked at, as CUDA would start in this process.
    """
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.zeros(1, dtype=dtype, device=device)
    except Exception:  # each type of device has its own
        return None
    return None if device.type == "meta" else device
