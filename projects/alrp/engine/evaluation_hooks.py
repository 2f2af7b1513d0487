"""What a training does with each of its evaluations, by the keys of ``TEST``."""

from __future__ import annotations

from typing import Callable, Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import HookBase, hooks

from ..checkpoint import CheckedCheckpointer
from ..data.datasets.coco_format import class_names
from ..errors import UserError
from .best_metric import BestMetric
from .pictures import DrawDetections
from .thresholds import StoreThresholds
from .validation_loss import ValidationLoss, validation_loader


def evaluation_hooks(
    cfg: CfgNode, checkpointer: CheckedCheckpointer, build_mapper: Callable[[], Callable]
) -> list[HookBase]:
    """To be registered behind the hook that evaluates, and before those that write events.

    Args:
        cfg: with the keys of ``TEST``.
        checkpointer: of the run.
        build_mapper: builds the mapper of the evaluation.

    Raises:
        UserError: if a loss is asked for on test images without ground truth, or pictures of
            classes without names.
    """
    best = _best_metric(cfg, checkpointer)
    return [
        *_with_images(cfg, checkpointer, build_mapper),
        *([best] if best else []),
        StoreThresholds(checkpointer, best),
    ]


def before_writers(built: Sequence[HookBase], more: Sequence[HookBase]) -> list[HookBase]:
    """More hooks among those of a trainer, where what they measure still gets written."""
    writers = (i for i, hook in enumerate(built) if isinstance(hook, hooks.PeriodicWriter))
    place = next(writers, len(built))
    return [*built[:place], *more, *built[place:]]


def _with_images(
    cfg: CfgNode, checkpointer: CheckedCheckpointer, build_mapper: Callable[[], Callable]
) -> Iterator[HookBase]:
    test, model = cfg.TEST, checkpointer.model
    if not test.VALIDATION_LOSS and not test.NUM_PICTURES:
        return
    records = get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)
    mapper = build_mapper()
    if test.VALIDATION_LOSS:
        loss = ValidationLoss(model, validation_loader(cfg, records, mapper))
        yield hooks.EvalHook(test.EVAL_PERIOD, loss)
    if test.NUM_PICTURES:
        names = class_names(cfg.DATASETS.TEST)
        if not names:
            raise UserError(
                f"TEST.NUM_PICTURES: {cfg.DATASETS.TEST} of DATASETS.TEST have no class names to "
                "write beside the boxes; set thing_classes in their metadata, or "
                "TEST.NUM_PICTURES 0."
            )
        drawn = records[: test.NUM_PICTURES]
        yield DrawDetections(test.EVAL_PERIOD, model, drawn, mapper, names)


def _best_metric(cfg: CfgNode, checkpointer: CheckedCheckpointer) -> BestMetric | None:
    test = cfg.TEST
    if not test.BEST_METRIC:
        return None
    return BestMetric(test.EVAL_PERIOD, checkpointer, test.BEST_METRIC, test.PATIENCE)
