"""Cascade of box heads trained with ranking losses."""

from __future__ import annotations

from torch import Tensor

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances

from ..box_regression import BoxDeltaTransform
from .alrp_fast_rcnn import ALRPFastRCNNOutputLayers, ALRPROIHeads


@ROI_HEADS_REGISTRY.register()
class ALRPCascadeROIHeads(ALRPROIHeads, CascadeROIHeads):
    """``CascadeROIHeads`` of :class:`ALRPFastRCNNOutputLayers` that train on all proposals.

    Each stage ranks its own proposals. The losses of the stages are added up, and so are the
    gradients of the features, which Detectron2 divides by the number of stages.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        # Those of a cascade: ALRPROIHeads would replace a single predictor.
        ret = super(ALRPROIHeads, cls)._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            ALRPFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=BoxDeltaTransform(weights)
            )
            for head, weights in zip(
                ret["box_heads"], cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
            )
        ]
        return ret

    def _box_balance(self, losses: dict[str, Tensor]):
        # Masks have the proposals of the first stage.
        return self.box_predictor[0].head_losses.self_balance, losses["loss_cls_stage0"]

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int):
        """As the parent, without scaling gradients."""
        return self._predict_boxes(
            self.box_head[stage], self.box_predictor[stage], features, proposals
        )
