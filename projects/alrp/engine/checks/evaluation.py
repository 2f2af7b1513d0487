"""Checks of evaluations, and of what a training does with them."""

from __future__ import annotations

import difflib

from detectron2.config import CfgNode

from ...coco import Finding
from ...head_nodes import lineage
from ..best_metric import VALIDATION_LOSS, known_metrics

_KEYS = ("BEST_METRIC", "PATIENCE", "VALIDATION_LOSS", "NUM_PICTURES")


def check_test_time_augmentation(cfg: CfgNode) -> list[Finding]:
    """The model can see several versions of an image, if that is asked for."""
    names = lineage(cfg.MODEL.META_ARCHITECTURE)
    is_known = {"DenseDetector", "GeneralizedRCNN"} & {*names}
    if not cfg.TEST.AUG.ENABLED or (is_known and not cfg.MODEL.KEYPOINT_ON):
        return []
    what = "expected a dense detector or an R-CNN without keypoints, but the model is "
    what += f"{names[0]}{' with keypoints' * cfg.MODEL.KEYPOINT_ON}"
    return [Finding("error", "TEST.AUG.ENABLED", what, "set TEST.AUG.ENABLED False")]


def check_evaluation(cfg: CfgNode) -> list[Finding]:
    """The metric to choose by exists and is measured, and there is more than one evaluation."""
    test, metric = cfg.TEST, cfg.TEST.BEST_METRIC
    key = next((f"TEST.{name}" for name in _KEYS if test[name]), None)
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
    metrics = list(known_metrics(cfg))
    if metric not in metrics:
        close = difflib.get_close_matches(metric, metrics, n=1, cutoff=0.3) or metrics[1:2]
        what = f"expected one of {', '.join(metrics)}, but got {metric!r}"
        return [Finding("error", "TEST.BEST_METRIC", what, f"set TEST.BEST_METRIC {close[0]}")]
    if metric == VALIDATION_LOSS and not test.VALIDATION_LOSS:
        what = f"{metric} is not measured"
        fix = "set TEST.VALIDATION_LOSS True"
        return [Finding("error", "TEST.BEST_METRIC", what, fix)]
    if test.EVAL_PERIOD == 0:
        what = f"the best evaluation by {metric} is asked for, but with a period of 0 there is one "
        what += "only, at the end of the training"
        fix = "set TEST.EVAL_PERIOD to the iterations between evaluations, such as those of one "
        fix += 'epoch, or TEST.BEST_METRIC ""'
        return [Finding("error", "TEST.EVAL_PERIOD", what, fix)]
    return []
