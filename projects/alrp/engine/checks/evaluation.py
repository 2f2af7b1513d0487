"""Checks of evaluations, and of what a training does with them."""

from __future__ import annotations

import difflib

from detectron2.config import CfgNode

from ...coco import Finding
from ..best_metric import VALIDATION_LOSS, known_metrics
from .keys import EVALUATION_KEYS


def check_evaluation(cfg: CfgNode, *, by_set: bool) -> list[Finding]:
    """The metric to choose by can be measured, and there is more than one evaluation.

    Args:
        cfg: full config.
        by_set: see :func:`known_metrics`.
    """
    test, metric = cfg.TEST, cfg.TEST.BEST_METRIC
    key = next((f"TEST.{name}" for name in EVALUATION_KEYS if test[name]), None)
    if key is None:
        return []
    if not cfg.DATASETS.TEST:
        what = f"{key} needs a test set, but there is none"
        return [Finding("error", "DATASETS.TEST", what, "name one, such as ('my_val',)")]
    if test.PATIENCE and not metric:
        what = f"{test.PATIENCE} evaluations without a better value end the training, but no "
        what += "metric is chosen"
        fix = "set TEST.BEST_METRIC, for example to bbox/AP, or TEST.PATIENCE 0"
        return [Finding("error", "TEST.PATIENCE", what, fix)]
    if not metric:
        return []
    findings = _check_metric(cfg, known_metrics(cfg, by_set=by_set))
    end = cfg.SOLVER.MAX_ITER
    if not findings and not 0 < test.EVAL_PERIOD < end:
        what = f"the best evaluation by {metric} is asked for, but with a period of "
        what += f"{test.EVAL_PERIOD} there is one only, at the end of the training"
        fix = "set TEST.EVAL_PERIOD to the iterations between evaluations, such as those of one "
        fix += 'epoch, or TEST.BEST_METRIC ""'
        return [Finding("error", "TEST.EVAL_PERIOD", what, fix)]
    return findings


def _check_metric(cfg: CfgNode, metrics: list[str]) -> list[Finding]:
    """``TEST.BEST_METRIC``; a metric that an evaluator of one's own may measure is a warning."""
    metric, key = cfg.TEST.BEST_METRIC, "TEST.BEST_METRIC"
    is_loss = metric == VALIDATION_LOSS or metric.startswith("validation/loss_")
    if is_loss and not cfg.TEST.VALIDATION_LOSS:
        return [Finding("error", key, f"{metric} is not measured", "set TEST.VALIDATION_LOSS True")]
    task, _, name = metric.rpartition("/")
    if is_loss or metric in metrics or f"{task}/{name.split('-')[0]}" in metrics:  # of a class
        return []
    meant = next((m for m in metrics if f"/{m}".lower().endswith(f"/{metric}".lower())), None)
    what = f"expected one of {', '.join(metrics)}, but got {metric!r}"
    if meant is not None:
        return [Finding("error", key, what, f"set {key} {meant}")]
    (close,) = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.0)
    what += "; unless an evaluator of yours measures it, the first evaluation ends the training"
    return [Finding("warning", key, what, f"set {key} {close}, or bring an evaluator for it")]
