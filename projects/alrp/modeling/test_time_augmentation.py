"""Detections of several versions of an image: flipped, and of other sizes."""

from __future__ import annotations

import copy
import math
import sys
from typing import Callable
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from .dense_inference import best_detections


class DenseDetectorWithTTA(nn.Module):
    """A dense detector that sees several versions of each image; it is called like the detector.

    All candidates of all versions go through one non-maximum suppression, so that an object that a
    version finds better gets the box and the score of that version. Detectron2's
    :class:`GeneralizedRCNNWithTTA` is the same for R-CNN. Versions pass one by one, as padding to a
    common size would change what FoveaBox finds.

    Args:
        model: a ``DenseDetector`` with the attributes ``test_nms_thresh`` and
            ``max_detections_per_image``, such as a RetinaNet, FCOS or FoveaBox.
        tta_mapper: makes the versions of an input, like Detectron2's ``DatasetMapperTTA``.

    Raises:
        ValueError: for another model.
    """

    def __init__(self, model: nn.Module, tta_mapper: Callable[[dict], list[dict]]) -> None:
        super().__init__()
        self.model = getattr(model, "module", model)  # of DistributedDataParallel
        if not hasattr(self.model, "test_nms_thresh"):
            raise ValueError(
                "DenseDetectorWithTTA: expected a dense detector such as RetinaNet, but got a "
                f"{type(self.model).__name__}; for an R-CNN there is GeneralizedRCNNWithTTA."
            )
        self.tta_mapper = tta_mapper
        self.training = self.model.training

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections in pixels of the output image, as those of the detector in eval mode."""
        model = self._without_suppression()
        outputs = [{"instances": self._detect(given, model)} for given in batched_inputs]
        shown = getattr(self.model, "shown", None)
        return outputs if shown is None else shown.of_outputs(outputs, batched_inputs)

    @torch.no_grad()
    def _detect(self, given: dict, model: nn.Module) -> Instances:
        height, width = given["image"].shape[-2:]
        given = {"height": height, "width": width, **given}
        image_size = given["height"], given["width"]
        found = [_candidates(model, version) for version in self.tta_mapper(given)]
        boxes, scores, classes = map(torch.cat, zip(*found))
        merged = best_detections(
            Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes),
            self.model.test_nms_thresh,
            self.model.max_detections_per_image,
        )
        return detector_postprocess(merged, *image_size)  # clips, as the detector does

    def _without_suppression(self) -> nn.Module:
        """The detector with the same weights, which returns all candidates of an image."""
        model = copy.copy(self.model)
        model.test_nms_thresh, model.max_detections_per_image = math.inf, sys.maxsize
        return model


class _RCNNWithTTA(GeneralizedRCNNWithTTA):
    """As the parent; thresholds cut what was merged, not each version."""

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        # An input with an image_id gets all detections.
        outputs = super().__call__([{"image_id": None, **given} for given in batched_inputs])
        shown = getattr(self.model, "shown", None)
        return outputs if shown is None else shown.of_outputs(outputs, batched_inputs)


def _candidates(model: nn.Module, version: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in pixels of the output image, scores and classes of one version."""
    transforms = version.pop("transforms")
    images = model.preprocess_image([version])
    of_backbone = model.backbone(images.tensor)
    features = [of_backbone[name] for name in model.head_in_features]
    (instances,) = model.forward_inference(images, features, model.head(features))
    boxes = instances.pred_boxes.tensor
    original = transforms.inverse().apply_box(boxes.cpu().numpy())
    return torch.from_numpy(original).to(boxes), instances.scores, instances.pred_classes


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A detector that sees the versions of ``TEST.AUG`` of each image.

    Args:
        cfg: with ``TEST.AUG``; for an R-CNN the whole config.
        model: a ``GeneralizedRCNN``, or as for :class:`DenseDetectorWithTTA`.
    """
    if isinstance(getattr(model, "module", model), GeneralizedRCNN):
        return _RCNNWithTTA(cfg, model)
    return DenseDetectorWithTTA(model, DatasetMapperTTA(cfg))
