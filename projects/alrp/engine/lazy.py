"""Training and evaluation from a LazyConfig, with the parts of the YAML command."""

from __future__ import annotations

import copy
import logging
import os
from contextlib import contextmanager
from typing import Any, Callable, Iterator
from omegaconf import DictConfig
from torch import nn

from detectron2.config import instantiate
from detectron2.engine import HookBase, SimpleTrainer, default_writers, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm

from ..checkpoint import CheckedCheckpointer
from ..data.datasets.coco_format import class_names
from ..errors import UserError
from ..evaluation import with_completed_annotations
from ..losses import SelfBalance
from ..modeling.micro_batches import set_micro_batch_size
from ..modeling.test_time_augmentation import DenseDetectorWithTTA
from .endings import CarefulFailures, StopsEarly
from .evaluation_hooks import evaluation_hooks
from .lazy_command import as_cfg_node, as_tuple, call_nodes, target_name
from .mixed_precision import MixedPrecisionTrainer
from .resuming import ContinuedMetrics, SeededIterations
from .trainer import (
    TrainingParts,
    distribute,
    epoch_length,
    synchronize_buffers,
)

_LOGGER = logging.getLogger(__name__)


def build_lazy_parts(cfg: DictConfig) -> TrainingParts:
    """Data first, as the model needs the length of an epoch; nothing is written."""
    options = cfg.dataloader.train
    seeding = SeededIterations(
        cfg.train.get("seed", -1),
        lambda: instantiate(options),
        as_tuple(options.dataset.names),
    )
    with _naming("dataloader.train"):
        loader = seeding.build_train_loader()
        num_images = seeding.num_images
        if num_images is None:
            num_images = len(instantiate(options.dataset))
    set_lazy_self_balance_period(cfg.model, epoch_length(num_images, options.total_batch_size))
    node = as_cfg_node(cfg)
    model = instantiate(cfg.model).to(cfg.train.device).train()
    set_micro_batch_size(model, node.SOLVER.MICRO_BATCH_SIZE, "train.micro_batch_size")
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    return TrainingParts(node, model, optimizer, loader, num_images, seeding)


def set_lazy_self_balance_period(model: DictConfig, period: int) -> None:
    """Set the period of every ``SelfBalance`` of a model that has none, in place."""
    for node in call_nodes(model):
        if target_name(node) == SelfBalance.__name__ and not node.get("period"):
            node.period = period
            _LOGGER.info(f"Self-balance period: {period} iterations, one epoch")


class _LazyTrainer(CarefulFailures, SimpleTrainer, StopsEarly):
    """Trains without a config of its own; failures are not followed by an evaluation."""


class _LazyAMPTrainer(CarefulFailures, MixedPrecisionTrainer, StopsEarly):
    """As ``_LazyTrainer``, in mixed precision."""


def _lazy_trainer(parts: TrainingParts, model: nn.Module) -> SimpleTrainer:
    amp, arguments = parts.cfg.SOLVER.AMP, (model, parts.data_loader, parts.optimizer)
    trainer = _LazyAMPTrainer(*arguments, amp.DTYPE) if amp.ENABLED else _LazyTrainer(*arguments)
    trainer.cfg = parts.cfg
    return trainer


def train_lazy(cfg: DictConfig, *, resume: bool = False) -> None:
    """Train; evaluate every ``train.eval_period`` iterations and at the end."""
    parts, evaluator = build_lazy_parts(cfg), build_lazy_evaluator(cfg)
    with _naming("train.ddp"):
        model = distribute(parts.model, **cfg.train.ddp)
    trainer = _lazy_trainer(parts, model)
    checkpointer = CheckedCheckpointer(
        model,
        cfg.train.output_dir,
        complete=False,
        class_names=class_names(parts.cfg.DATASETS.TRAIN),
        trainer=trainer,
    )

    def evaluate() -> dict[str, Any]:
        trainer._last_eval_results = evaluate_lazy(cfg, model, evaluator)  # as in DefaultTrainer
        return trainer._last_eval_results

    trainer.register_hooks(
        [
            parts.seeding,
            ContinuedMetrics(cfg.train.output_dir),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            *_main_only(lambda: hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)),
            hooks.EvalHook(cfg.train.eval_period, evaluate),
            *evaluation_hooks(
                parts.cfg, checkpointer, lambda: instantiate(cfg.dataloader.test.mapper)
            ),
            hooks.EvalHook(0, lambda: evaluate_lazy_with_tta(cfg, model)),
            # Behind the evaluation, to write its results.
            *_main_only(lambda: _writer(cfg)),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)


def build_lazy_evaluator(cfg: DictConfig) -> DatasetEvaluator:
    """``dataloader.evaluator``; annotation files are read and checked here."""
    with _naming("dataloader.evaluator"):
        return with_completed_annotations(instantiate(cfg.dataloader.evaluator))


def evaluate_lazy(cfg: DictConfig, model: nn.Module, evaluator: DatasetEvaluator) -> dict[str, Any]:
    """Results on ``dataloader.test``; empty but on the main process."""
    synchronize_buffers(model)
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def evaluate_lazy_with_tta(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    """Results on the versions of ``dataloader.tta_mapper``; {} without one.

    Evaluators write to a folder ``TTA`` beside theirs, and the names of tasks end with "_TTA".
    """
    if cfg.dataloader.get("tta_mapper") is None:
        return {}
    cfg = copy.deepcopy(cfg)
    for part in call_nodes(cfg.dataloader.evaluator):
        if "output_dir" in part:
            folder, name = os.path.split(os.path.normpath(part.output_dir))
            part.output_dir = os.path.join(folder, "TTA", name)
    model = DenseDetectorWithTTA(model, instantiate(cfg.dataloader.tta_mapper))
    results = evaluate_lazy(cfg, model, build_lazy_evaluator(cfg))
    return {f"{name}_TTA": values for name, values in results.items()}


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Tell whatever is raised while a part of the config is built as a mistake in it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what users write may raise anything
        text = " ".join(str(error).split())[:300]  # some list all that there is
        raise UserError(
            f"{key}: it cannot be built: {type(error).__name__}: {text.rstrip('.')}. Correct "
            f"{key} in the config."
        ) from error


def _main_only(build: Callable[[], HookBase]) -> list[HookBase]:
    return [build()] if comm.is_main_process() else []


def _writer(cfg: DictConfig) -> HookBase:
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    return hooks.PeriodicWriter(writers, period=cfg.train.log_period)
