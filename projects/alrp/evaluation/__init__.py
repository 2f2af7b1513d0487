"""Localisation Recall Precision (LRP) error: numbers, COCO matching, reports, Detectron2 evaluator.

Names load on first use, so that ``alrp.evaluation.lrp`` needs numpy only, the COCO functions need
numpy and pycocotools, and the two evaluators alone need Detectron2.
"""

from importlib import import_module

_MODULE_OF = {
    "LRPCurve": "lrp",
    "LRPError": "lrp",
    "MeanLRP": "lrp",
    "OptimalLRP": "lrp",
    "lrp_curve": "lrp",
    "lrp_error": "lrp",
    "mean_optimal_lrp": "lrp",
    "optimal_lrp": "lrp",
    "DetectionColumns": "coco_input",
    "Sources": "coco_input",
    "ClassMatches": "coco_matching",
    "MatchSettings": "coco_matching",
    "evaluate_lrp": "coco_matching",
    "match_detections": "coco_matching",
    "Calibration": "calibration",
    "calibration_error": "calibration",
    "calibration_summary": "calibration",
    "fit_calibration": "calibration",
    "Difference": "comparison",
    "compare_lrp": "comparison",
    "comparison_table": "comparison",
    "lrp_summary": "report",
    "lrp_table": "report",
    "write_summary": "report",
    "APEvaluator": "average_precision",
    "with_completed_annotations": "average_precision",
    "LRPEvaluator": "lrp_evaluation",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted(set(globals()) | set(__all__))
