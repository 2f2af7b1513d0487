"""Detectron2 evaluator that reports the LRP error beside COCO's average precision."""

from __future__ import annotations

import logging
import numpy as np
import os

from detectron2.config import CfgNode
from detectron2.structures import BoxMode

from ..errors import UserError
from .average_precision import APEvaluator
from .calibration import calibration_line, summary_with_calibration
from .coco_input import DetectionColumns, category_names, detection_boxes
from .coco_matching import MatchSettings, match_boxes_by_image
from .report import METRICS, lrp_table, write_summary

_LOGGER = logging.getLogger(__name__)


class LRPEvaluator(APEvaluator):
    """Evaluate box detections by optimal LRP, under the task key ``"lrp"``.

    Use it next to a :class:`COCOEvaluator` in ``DatasetEvaluators``. The results are
    ``{"lrp": {"oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN", "oLRP-<class>", "threshold-<class>"}}`` in
    percent, NaN if undefined; thresholds are scores. As with the parent class, they are ``{}``
    off the main process, without predictions, and for a dataset without annotations. An image in
    which nothing was found is a prediction too: a model that finds nothing has an oLRP of 100.

    With ``output_dir`` the numbers, the components of every class and a calibration of its scores
    (:func:`summary_with_calibration`) go to ``lrp_results.json`` there. The predictions are left to
    :class:`COCOEvaluator` to save.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks=None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        tau: float = 0.5,
        max_dets_per_image: int | None = None,
        allow_cached_coco: bool = True,
    ):
        """
        Args:
            dataset_name, distributed, output_dir, allow_cached_coco: see :class:`COCOEvaluator`.
            tasks: None or ``("bbox",)``; LRP of masks and keypoints is not provided. A config is
                accepted with a warning, as by :class:`COCOEvaluator`, and means None.
            tau: IoU a detection needs to count as correct, in (0, 1).
            max_dets_per_image: best-scoring detections kept per image and class; 100 if None.
        Raises:
            ValueError: on another task or an argument outside its range.
            UserError: if the annotation file breaks a rule of COCO's format, for example by two
                classes of the same name.
        """
        if isinstance(tasks, CfgNode):
            _LOGGER.warning(
                "LRPEvaluator: a config as second argument is deprecated; leave it out."
            )
            tasks = None
        if tasks is not None and tuple(tasks) != ("bbox",):
            raise ValueError(
                f"LRPEvaluator evaluates boxes, got tasks {tuple(tasks)}; pass None or ('bbox',)."
            )
        max_dets = 100 if max_dets_per_image is None else max_dets_per_image
        self._settings = MatchSettings(tau, max_dets)
        super().__init__(
            dataset_name,
            ("bbox",),
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
            allow_cached_coco=allow_cached_coco,
        )
        # The parent saves predictions where it finds an output directory; once is enough.
        self._lrp_output_dir, self._output_dir = output_dir, None

    def process(self, inputs, outputs):
        """See the parent; keeps (boxes XYWH, scores, classes) arrays instead of a dict per box."""
        for image, output in zip(inputs, outputs):
            if "instances" not in output:
                continue
            instances = output["instances"].to(self._cpu_device)
            xywh = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            # In double precision, as NumPy has no bfloat16.
            columns = xywh.double(), instances.scores.double(), instances.pred_classes
            arrays = tuple(column.numpy() for column in columns)
            self._predictions.append({"image_id": image["image_id"], "instances": arrays})

    def _eval_predictions(self, predictions, img_ids=None):
        if not self._do_evaluation:
            _LOGGER.info("Annotations are not available for LRP evaluation.")
            return
        dataset = self._coco_api.dataset
        detections = detection_boxes(self._detection_columns(predictions), dataset)
        tau = self._settings.tau
        by_id = match_boxes_by_image(dataset, detections, self._settings, img_ids)
        names = category_names(dataset)
        summary = summary_with_calibration({names[i]: m for i, m in by_id.items()}, tau)
        _LOGGER.info(f"LRP error of boxes at tau {tau:g}:\n{lrp_table(summary)}")
        _LOGGER.info(calibration_line(summary["calibration"]))
        if self._lrp_output_dir:
            os.makedirs(self._lrp_output_dir, exist_ok=True)
            write_summary(summary, os.path.join(self._lrp_output_dir, "lrp_results.json"))
        self._results["lrp"] = {key: summary[key] for key in METRICS}
        for name, values in summary["per_class"].items():
            self._results["lrp"][f"oLRP-{name}"] = values["oLRP"]
            self._results["lrp"][f"threshold-{name}"] = values["threshold"]

    def _detection_columns(self, predictions) -> DetectionColumns:
        """All detections, with the class ids of the dataset in place of contiguous ones."""
        image_ids = [
            image_id
            for prediction in predictions
            for image_id in [prediction["image_id"]] * len(prediction["instances"][1])
        ]
        xywh, scores, classes = map(
            np.concatenate, zip(*(prediction["instances"] for prediction in predictions))
        )
        id_map = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if id_map is None:
            return DetectionColumns(image_ids, classes.tolist(), xywh, scores)
        dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in id_map.items()}
        try:
            category_ids = [dataset_ids[index] for index in classes.tolist()]
        except KeyError as error:
            raise UserError(
                f"A prediction has class {error}, but the dataset has classes 0 to "
                f"{len(dataset_ids) - 1}; set the model's number of classes to {len(dataset_ids)}."
            ) from error
        return DetectionColumns(image_ids, category_ids, xywh, scores)
