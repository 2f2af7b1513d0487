"""One set of rules for COCO's files: annotation files and lists of detections.

The check before a training, the data loader, the evaluators and ``tools/evaluate_lrp.py`` all use
it, so that a file that passes one of them passes the others. Needs NumPy only.
"""

from .annotation_rules import (
    Purpose,
    check_annotations,
    check_categories,
    check_fields,
    check_meaning,
    repeats_ids,
)
from .class_subset import check_class_names, of_classes
from .completion import completed
from .findings import Finding, raise_errors
from .result_rules import check_result_boxes, check_results

__all__ = [
    "Finding",
    "Purpose",
    "check_annotations",
    "check_categories",
    "check_class_names",
    "check_fields",
    "check_meaning",
    "check_result_boxes",
    "check_results",
    "completed",
    "of_classes",
    "raise_errors",
    "repeats_ids",
]
