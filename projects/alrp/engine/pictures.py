"""Pictures of detections beside the ground truth, for TensorBoard."""

from __future__ import annotations

import copy
import numpy as np
from typing import Callable, Sequence
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from detectron2.engine import hooks
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm

from ..data.images import read_image
from ..vis import LabelledBoxes, detections_figure
from .thresholds import by_class_index, thresholds_of_results

_MOST_WITHOUT_THRESHOLDS = 10
_NAME = "validation/detections"


class DrawDetections(hooks.EvalHook):
    """Draws some test images after each evaluation; TensorBoard shows them.

    Each class is drawn from its LRP-optimal score of that evaluation on; without one, the ten best
    detections are.

    Args:
        eval_period: iterations between evaluations.
        model: a detector, without DistributedDataParallel.
        records: of the images to draw, in Detectron2's format.
        mapper: of the evaluation.
        class_names: by class index.
    """

    def __init__(
        self,
        eval_period: int,
        model: nn.Module,
        records: Sequence[dict],
        mapper: Callable[[dict], dict],
        class_names: Sequence[str],
    ) -> None:
        super().__init__(eval_period, self._draw)
        self._model, self._records, self._mapper = model, records, mapper
        self._class_names = class_names

    def _draw(self) -> None:
        if not comm.is_main_process():
            return
        with inference_context(self._model), torch.no_grad():
            outputs = [self._model([self._mapper(copy.deepcopy(r))])[0] for r in self._records]
        figure = detections_figure(
            [read_image(record["file_name"], "RGB") for record in self._records],
            [_ground_truth(record) for record in self._records],
            [self._shown(output["instances"].to("cpu")) for output in outputs],
            self._class_names,
        )
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1)
        self.trainer.storage.put_image(_NAME, np.ascontiguousarray(pixels))

    def _shown(self, instances: Instances) -> LabelledBoxes:
        found = thresholds_of_results(getattr(self.trainer, "_last_eval_results", None) or {})
        if found and sorted(found) == sorted(self._class_names):
            least = by_class_index(found, self._class_names)
            instances = instances[instances.scores >= least[instances.pred_classes]]
        else:
            best = instances.scores.argsort(descending=True)[:_MOST_WITHOUT_THRESHOLDS]
            instances = instances[best]
        parts = instances.pred_boxes.tensor, instances.pred_classes, instances.scores
        return LabelledBoxes(*(part.numpy() for part in parts))


def _ground_truth(record: dict) -> LabelledBoxes:
    """The boxes of a record that are no crowds."""
    annotations = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    boxes = [
        BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations
    ]
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    return LabelledBoxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), classes)
