"""Which detections a trained detector shows, and which it gives to an evaluation."""

from __future__ import annotations

from typing import Any, Sequence
import torch
from torch import Tensor, nn

from detectron2.structures import Instances

from ..errors import UserError


class DetectionThresholds(nn.Module):
    """Keeps the detections worth showing: those from a least score of their class on.

    The LRP-optimal score of a class is the one to deploy (Oksuz et al., arXiv:2011.10772), but
    average precision and LRP are of all detections. An evaluation is known by its inputs: each has
    an ``image_id``, which every evaluator of Detectron2 needs and no predictor sets.

    What is shown may have calibrated scores: of such detections, this share is right.

    Scores and calibration are part of the state dict once they are there, and follow the model into
    exported files. They hold for the weights they were found with, so a training step forgets them.

    Args:
        num_classes: K.
        least_score: 0 to 1, of every class; negative for the scores of the checkpoint, if it has
            any, and otherwise all detections. It is of scores that are not calibrated.
        calibrated: whether what is shown has calibrated scores.

    Attributes:
        thresholds: (K,) float32 buffer, least score by class index; above 1 for a class that is
            never shown; None if not known.
        calibration: (2, K, B) float32 buffer, ascending scores at which steps begin, and the share
            from there on; filled up with scores that none has; None if not known.
    """

    NEVER = 2.0

    def __init__(
        self, num_classes: int, least_score: float = -1.0, calibrated: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(calibrated, bool):  # as "no" from a command line
            raise ValueError(f"calibrated_scores: expected True or False, but got {calibrated!r}")
        if least_score > 1:
            raise ValueError(
                f"score_thresh_predict: expected a number of at most 1, but got {least_score}"
            )
        self.num_classes = num_classes
        self.least_score = least_score
        self.calibrated = calibrated
        self.thresholds: Tensor | None
        self.calibration: Tensor | None
        self.register_buffer("thresholds", None)
        self.register_buffer("calibration", None)

    def forward(self, instances: Instances) -> Instances:
        """The detections of one image that are shown, with the scores that are shown."""
        return self.with_shown_scores(self._cut(instances))

    def with_shown_scores(self, instances: Instances) -> Instances:
        """Detections of one image, in their order, with calibrated scores if that is asked for.

        Raises:
            UserError: if they are asked for, and the checkpoint has no calibration.
        """
        if not self.calibrated:
            return instances
        if self.calibration is None:
            raise UserError(
                "MODEL.ALRP.CALIBRATED_SCORES is True, but the checkpoint holds no calibration; "
                "add it by tools/add_thresholds.py, or set the key to False."
            )
        calibration = self.calibration.to(instances.scores.device)
        least_scores, shares = calibration[0], calibration[1]
        classes = instances.pred_classes
        steps = (least_scores[classes] <= instances.scores[:, None]).sum(1) - 1
        fields = {**instances.get_fields(), "scores": shares[classes, steps.clamp(min=0)]}
        return Instances(instances.image_size, **fields)

    def _cut(self, instances: Instances) -> Instances:
        least: float | Tensor = self.least_score
        if self.least_score < 0 and self.thresholds is None:
            return instances
        if self.least_score < 0:
            least = self.thresholds.to(instances.scores.device)[instances.pred_classes]
        # Each field that a mask picks from would wait for the GPU.
        return instances[(instances.scores >= least).nonzero().flatten()]

    def of_outputs(
        self, outputs: Sequence[dict[str, Any] | Instances], inputs: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any] | Instances]:
        """A model's outputs, of which those of inputs without ``image_id`` are what is shown.

        Args:
            outputs: per image, detections or a dict that has them under "instances".
            inputs: per image, what the model was given.
        """
        return [
            output if "image_id" in given else self._of_output(output)
            for output, given in zip(outputs, inputs)
        ]

    def _of_output(self, output: dict[str, Any] | Instances) -> dict[str, Any] | Instances:
        if isinstance(output, dict):
            return {**output, "instances": self(output["instances"])}
        return self(output)

    def forget(self) -> None:
        """To be called before a step: weights that train on need other scores."""
        if torch.is_grad_enabled():
            self.thresholds = self.calibration = None

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # A checkpoint may have them or not; those of another number of classes are reported as keys
        # of no use, like all else that does not fit.
        for name, shape in (("thresholds", []), ("calibration", [2])):
            values = state_dict.get(prefix + name)
            classes = [*shape, self.num_classes]
            fits = values is not None and list(values.shape[: len(classes)]) == classes
            setattr(self, name, torch.empty_like(values, dtype=torch.float32) if fits else None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        options = f"least_score={self.least_score}, calibrated={self.calibrated}"
        return f"num_classes={self.num_classes}, {options}"


class ShowsDetections:
    """Mixin of a detector whose outputs go through its :class:`DetectionThresholds`, ``shown``."""

    shown: DetectionThresholds

    def forward(self, batched_inputs: list[dict]):
        """As the parent; in inference see :meth:`DetectionThresholds.of_outputs`."""
        if self.training:
            self.shown.forget()
            return super().forward(batched_inputs)
        return self.shown.of_outputs(super().forward(batched_inputs), batched_inputs)
