"""R-CNN that shows detections from the least score of their class on."""

from __future__ import annotations

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import GeneralizedRCNN

from ..detection_thresholds import DetectionThresholds


@META_ARCH_REGISTRY.register()
class ThresholdedRCNN(GeneralizedRCNN):
    """``GeneralizedRCNN`` with :class:`DetectionThresholds`; otherwise the same, with any heads."""

    @configurable
    def __init__(
        self, *, score_thresh_predict: float = -1.0, calibrated_scores: bool = False, **kwargs
    ) -> None:
        """
        Args:
            score_thresh_predict, calibrated_scores: of :class:`DetectionThresholds`.
            kwargs: of :class:`GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        self.shown = DetectionThresholds(
            self.roi_heads.num_classes, score_thresh_predict, calibrated_scores
        )

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        ret["score_thresh_predict"] = cfg.MODEL.ALRP.SCORE_THRESH_PREDICT
        ret["calibrated_scores"] = cfg.MODEL.ALRP.CALIBRATED_SCORES
        return ret

    def forward(self, batched_inputs):
        if self.training:
            self.shown.forget()
        return super().forward(batched_inputs)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        """As the parent; given boxes are all kept."""
        outputs = super().inference(batched_inputs, detected_instances, do_postprocess)
        if detected_instances is not None:
            return outputs
        return self.shown.of_outputs(outputs, batched_inputs)


@META_ARCH_REGISTRY.register()
class ShownRCNN(ThresholdedRCNN):
    """The former name of :class:`ThresholdedRCNN`, for configs that have it."""
