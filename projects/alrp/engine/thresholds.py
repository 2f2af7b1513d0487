"""LRP-optimal scores of an evaluation, stored in the checkpoint of the model that it was of."""

from __future__ import annotations

import logging
import math
import os
from contextlib import contextmanager
from typing import Any, Iterator, Mapping, Sequence
import torch
from torch import Tensor, nn

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import CheckedCheckpointer
from ..checkpoint.serialization import read_checkpoint, split_checkpoint, write_checkpoint
from ..errors import UserError
from ..files import read_json
from ..modeling import DetectionThresholds
from .best_metric import BEST_FILE, BestMetric

_LOGGER = logging.getLogger(__name__)
_MARGIN = 1e-4
_PREFIX = "threshold-"  # of the keys in the results of LRPEvaluator


def detection_thresholds_of(model: nn.Module) -> tuple[str, DetectionThresholds] | None:
    """Name and module of the part of a model that takes the scores; None if it has none."""
    model = getattr(model, "module", model)  # of DistributedDataParallel
    modules = model.named_modules()
    return next(((n, m) for n, m in modules if isinstance(m, DetectionThresholds)), None)


def thresholds_of_results(results: Mapping[str, Any]) -> dict[str, float]:
    """LRP-optimal score by class name, from the results of an evaluation; empty without LRP.

    Args:
        results: task to metrics, or of several test sets name to such results; then the first
            counts.
    """
    if results and "lrp" not in results:
        results = next(iter(results.values()))
    lrp = results.get("lrp", {}) if isinstance(results, Mapping) else {}
    return {k.removeprefix(_PREFIX): v for k, v in lrp.items() if k.startswith(_PREFIX)}


def read_thresholds(path: str) -> dict[str, float]:
    """LRP-optimal score by class name, from the ``lrp_results.json`` of an evaluation.

    Raises:
        UserError: if it is no such file, or cannot be read.
    """
    with _reading(path, "thresholds"):
        per_class = read_json(path)["per_class"]
        scores = {name: values["threshold"] for name, values in per_class.items()}
        return {name: math.nan if s is None else float(s) for name, s in scores.items()}


@contextmanager
def _reading(path: str, what: str) -> Iterator[None]:
    """Whatever a file that is no ``lrp_results.json`` raises becomes one message."""
    fix = "give the lrp_results.json that an evaluation wrote."
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {fix}") from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no {what} ({error!r}); {fix}") from error


def by_class_index(thresholds: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """(K,) float32 least scores in the order of ``names``; above 1 where a class has none.

    Each is lower by 0.01 %: an LRP-optimal score is that of one detection, which must not be lost
    to the rounding of another device or runtime.

    Raises:
        UserError: if the classes are others.
    """
    if sorted(thresholds) != sorted(names):
        raise UserError(
            f"the thresholds are of the classes {sorted(thresholds)}, but the model has "
            f"{sorted(names)}; evaluate the model on a dataset with its classes."
        )
    scores = torch.tensor([thresholds[name] for name in names], dtype=torch.float32)
    return (scores * (1 - _MARGIN)).nan_to_num(DetectionThresholds.NEVER)


def read_calibration(path: str, names: Sequence[str]) -> Tensor | None:
    """(2, K, B) calibration for :class:`DetectionThresholds`; None if the file has none.

    Steps begin 0.01 % lower, for the reason of :func:`by_class_index`. A class without a detection
    has the share 0.

    Args:
        path: ``lrp_results.json`` of an evaluation.
        names: of the classes, by class index.

    Raises:
        UserError: if it is no such file.
    """
    with _reading(path, "calibration"):
        content = read_json(path)
        if "calibration" not in content:
            return None
        per_class = content["calibration"]["per_class"]
        fits = [per_class.get(name, {"scores": [], "shares": []}) for name in names]
        calibration = torch.zeros(2, len(names), max(1, *(len(f["shares"]) for f in fits)))
        calibration[0] = DetectionThresholds.NEVER  # a checkpoint may hold finite values only
        for i, fit in enumerate(fits):
            for part, values in zip(calibration, (fit["scores"], fit["shares"])):
                part[i, : len(values)] = torch.tensor(values)
        calibration[0] *= 1 - _MARGIN
        return calibration


def add_thresholds(source: str, target: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint of this project with thresholds in its model; all else is as it was.

    Args:
        source: checkpoint to read.
        target: file to write, which may be ``source``.
        tensors: of :func:`by_class_index` and :func:`read_calibration`, by their keys in the
            model's state dict.

    Raises:
        UserError: if a file cannot be read or written.
    """
    _write_with(read_checkpoint(source), source, target, tensors)


def _write_with(content: Any, source: str, target: str, tensors: Mapping[str, Tensor]) -> None:
    """Write what was read from ``source`` with more tensors in its model."""
    state, beside = split_checkpoint(content, source)
    content = {name: content[name] for name in beside}
    write_checkpoint({**content, "model": {**state, **tensors}}, target)


class StoreThresholds(HookBase):
    """Adds what an evaluation found to the checkpoints of its iteration.

    That are the LRP-optimal scores, and the best evaluation so far. A checkpoint is written before
    its evaluation, which may fail. To be registered behind all three.

    Args:
        checkpointer: that writes the checkpoints.
        best: hook with the best evaluation, if there is one.
    """

    def __init__(self, checkpointer: CheckedCheckpointer, best: BestMetric | None = None) -> None:
        self._checkpointer = checkpointer
        self._best = best
        self._stored: Mapping | None = None

    def after_step(self) -> None:
        self._store(self.trainer.iter)

    def after_train(self) -> None:
        self._store(self.trainer.iter - 1)

    def _store(self, iteration: int) -> None:
        results = getattr(self.trainer, "_last_eval_results", None)
        if not comm.is_main_process() or not results or results is self._stored:
            return
        self._stored = results
        try:
            tensors = self._thresholds(results)
            for path in self._paths(iteration) if tensors or self._best else ():
                content = read_checkpoint(path)
                if content.get("iteration") != iteration:  # an earlier one, evaluated by itself
                    continue
                if self._best and "trainer" in content:
                    hooks = content["trainer"].setdefault("hooks", {})
                    hooks[type(self._best).__qualname__] = self._best.state_dict()
                _write_with(content, path, path, tensors)
                _LOGGER.info(f"Stored what the evaluation found in {path}")
        except UserError as error:  # no reason to end a training
            _LOGGER.warning(f"The checkpoint is left without its evaluation: {error}")

    def _thresholds(self, results: Mapping) -> dict[str, Tensor]:
        """LRP-optimal scores by their name in the model's state dict; empty if there are none."""
        found = detection_thresholds_of(self._checkpointer.model)
        thresholds = thresholds_of_results(results) if found else {}
        if not thresholds:
            return {}
        names = self._checkpointer.class_names or list(thresholds)
        try:
            return {f"{found[0]}.thresholds": by_class_index(thresholds, names)}
        except UserError as error:  # no reason to end a training
            _LOGGER.warning(f"The checkpoint is left without LRP-optimal scores: {error}")
            return {}

    def _paths(self, iteration: int) -> list[str]:
        """Files that may hold the model as it was evaluated."""
        folder = self._checkpointer.save_dir
        names = {f"model_{iteration:07d}.pth", f"{BEST_FILE}.pth", "model_final.pth"}
        paths = {os.path.join(folder, name) for name in names}
        paths.add(self._checkpointer.get_checkpoint_file())
        return [path for path in sorted(paths) if os.path.isfile(path)]
