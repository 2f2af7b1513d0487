"""Detectron2's evaluator of COCO's average precision, for the files that people have."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections import Counter
from pycocotools.coco import COCO

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from ..coco import Purpose, check_annotations, completed, of_classes, raise_errors, repeats_ids
from ..errors import UserError
from ..files import read_json

_LOGGER = logging.getLogger(__name__)


class APEvaluator(COCOEvaluator):
    """:class:`COCOEvaluator` whose annotation file is checked first and completed in memory.

    ``area`` and ``iscrowd`` may be left out, and ids of annotations may begin at 0; see
    :func:`alrp.coco.completed`. Arguments and results are those of the parent. Detections beyond
    the ``max_dets_per_image`` best of an image and class, 100 if None, are left out with a warning.
    """

    _coco_api: COCO

    def __init__(self, dataset_name: str, tasks=None, *args, **kwargs):
        """
        Args:
            dataset_name, tasks, args, kwargs: see :class:`COCOEvaluator`.
        Raises:
            UserError: if the annotation file cannot be read or breaks a rule of COCO's format.
        """
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if json_file is None:  # the parent makes one
            super().__init__(dataset_name, tasks, *args, **kwargs)
            self._coco_api = _indexed(completed(self._coco_api.dataset))
            return
        masks = isinstance(tasks, (tuple, list)) and "segm" in tasks
        path = PathManager.get_local_path(json_file)
        classes = tuple(MetadataCatalog.get(dataset_name).get("kept_classes", ()))
        checked = _checked_coco(dataset_name, json_file, masks, path, _version(path), classes)
        super().__init__(dataset_name, tasks, *args, **kwargs)  # reads the file itself as well
        self._coco_api = checked

    def _eval_predictions(self, predictions, img_ids=None):
        detections = [prediction["instances"] for prediction in predictions]
        self._check_masks(detections)
        self._warn_of_cut(detections)
        super()._eval_predictions(predictions, img_ids)

    def _check_masks(self, detections_per_image: list[list[dict]]) -> None:
        """Masks were predicted if they are to be evaluated."""
        first = next((detections[0] for detections in detections_per_image if detections), None)
        if "segm" in (self._tasks or ()) and first is not None and "segmentation" not in first:
            raise UserError(
                "AP: the task 'segm' evaluates masks, but the model predicts none; take 'segm' out "
                "of the tasks of the evaluator, or give the model a mask head."
            )

    def _warn_of_cut(self, detections_per_image: list[list[dict]]) -> None:
        """Say how many detections COCO's evaluation leaves out."""
        cap = self._max_dets_per_image[-1]
        cut = 0
        for detections in detections_per_image:
            if len(detections) > cap:
                counts = Counter(detection["category_id"] for detection in detections)
                cut += sum(max(0, count - cap) for count in counts.values())
        if cut:
            _LOGGER.warning(
                f"AP: {cut} detections left out: only the {cap} best of an image and class count; "
                "raise max_dets_per_image (config: TEST.DETECTIONS_PER_IMAGE) to count more."
            )


def with_completed_annotations(evaluator: DatasetEvaluator) -> DatasetEvaluator:
    """Let Detectron2's :class:`COCOEvaluator` take the annotation files that this project takes.

    It gets what they may leave out, and only the classes of ``DATASETS.CLASSES``.

    Args:
        evaluator: changed in place, also in a ``DatasetEvaluators``; others stay as they are.

    Returns:
        DatasetEvaluator: ``evaluator``.
    """
    if isinstance(evaluator, DatasetEvaluators):
        for part in evaluator._evaluators:
            with_completed_annotations(part)
    elif isinstance(evaluator, COCOEvaluator) and not isinstance(evaluator, APEvaluator):
        if evaluator._do_evaluation:
            dataset = completed(evaluator._coco_api.dataset)
            classes = evaluator._metadata.get("kept_classes", ())
            evaluator._coco_api = _indexed(of_classes(dataset, classes))
    return evaluator


# Two: a dataset and the same with masks. All evaluations of a training share them.
@functools.lru_cache(maxsize=2)
def _checked_coco(
    dataset_name: str,
    json_file: str,
    masks: bool,
    path: str,
    version: tuple[int, int],
    classes: tuple[str, ...],
) -> COCO:
    """Content of an annotation file, checked, completed and indexed.

    Evaluators share it: COCOeval writes into the records only what it derives from them again.

    Args:
        dataset_name, json_file: as registered, for messages.
        masks: whether masks are evaluated.
        path: of the file on this machine.
        version: of :func:`_version`; another one is read anew.
        classes: names of those that are evaluated; all if there are none.
    """
    purpose = Purpose(ids=True, masks=masks, tolerate_repeated_ids=repeats_ids(json_file))
    dataset = read_json(path)
    findings = check_annotations(f"dataset {dataset_name!r}, {json_file}", dataset, purpose)
    # Warnings are left to the check before the start: each evaluation would repeat them.
    raise_errors((f for f in findings if f.severity == "error"), _LOGGER)
    return _indexed(of_classes(completed(dataset), classes))


def _version(path: str) -> tuple[int, int]:
    """Time of the last change in nanoseconds and size in bytes; zeros if it cannot be read."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _indexed(dataset: dict) -> COCO:
    api = COCO()
    api.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api
