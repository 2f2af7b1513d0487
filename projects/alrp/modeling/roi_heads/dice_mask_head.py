"""Mask head of RS Mask R-CNN.

Shapes: P positive regions of all images of the mini-batch, masks of S x S pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances

from ...errors import UserError
from ...head_nodes import lineage
from ..box_losses import pooled_mean
from ..bridge import ranking_group

# Added to what is divided by, as published: a prediction of nothing has no other area.
_LEAST_AREA = 1e-5


def dice_losses(pred_logits: Tensor, masks: Tensor) -> Tensor:
    """(P,) Dice losses in [0, 1], from logits and masks (P, S, S), at least float32.

    One minus twice the overlap over the sum of both areas (Milletari et al., arXiv:1606.04797),
    with squares in the areas. Of an empty mask it is 1, whatever is predicted.
    """
    dtype = torch.promote_types(pred_logits.dtype, torch.float32)
    predicted = pred_logits.to(dtype).sigmoid().flatten(1)
    masks = masks.to(dtype).flatten(1)
    areas = predicted.square().sum(1) + masks.square().sum(1)
    return 1 - 2 * (predicted * masks).sum(1) / (areas + _LEAST_AREA)


@ROI_MASK_HEAD_REGISTRY.register()
class DiceMaskHead(MaskRCNNConvUpsampleHead):
    """``MaskRCNNConvUpsampleHead`` trained with Dice loss, as RS Mask R-CNN is.

    Its loss is a mean over the positive regions in which each weighs what it scores in the box
    head. :class:`ALRPROIHeads` balance it with the loss of the box head.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, global_ranking: bool = False, **kwargs) -> None:
        """
        Args:
            input_shape: of the features of a region.
            global_ranking: average over the regions of all processes, instead of each its own.
            kwargs: of :class:`MaskRCNNConvUpsampleHead`.
        """
        super().__init__(input_shape, **kwargs)
        self.global_ranking = global_ranking

    @classmethod
    def from_config(cls, cfg, input_shape):
        """
        Raises:
            UserError: if the box head does not give each region its score.
        """
        name = cfg.MODEL.ROI_HEADS.NAME
        if "ALRPROIHeads" not in lineage(name, ROI_HEADS_REGISTRY):
            raise UserError(
                "MODEL.ROI_MASK_HEAD.NAME DiceMaskHead weights masks by scores that only "
                f'ALRPROIHeads and ALRPCascadeROIHeads give, but MODEL.ROI_HEADS.NAME is "{name}"; '
                "set it to one of them, or the mask head to MaskRCNNConvUpsampleHead."
            )
        ret = super().from_config(cfg, input_shape)
        ret["global_ranking"] = cfg.MODEL.ALRP.GLOBAL_RANKING
        return ret

    def forward(self, x: Tensor, instances: list[Instances]):
        """As the parent.

        Args:
            x: features of the regions.
            instances: per image; in training the positive regions, with ``proposal_boxes``,
                ``gt_classes``, ``gt_masks`` and ``best_scores``, the weights.

        Returns:
            dict[str, Tensor]: in training, scalar "loss_mask" in [0, 1] times ``loss_weight``.
        """
        if not self.training:
            return super().forward(x, instances)
        return {"loss_mask": self.loss_weight * self.losses(self.layers(x), instances)}

    def losses(self, pred_logits: Tensor, instances: list[Instances]) -> Tensor:
        """Scalar loss of the logits (P, K, S, S), or (P, 1, S, S) if class-agnostic.

        Without positives it is 0, with zero gradients.
        """
        # Images without ground truth have no masks.
        instances = [instances_i for instances_i in instances if len(instances_i)]
        group = ranking_group(self.global_ranking)
        if not instances:
            total = pred_logits.sum()  # of nothing
            return pooled_mean(total, total.detach(), group)
        size = pred_logits.shape[-1]
        masks = cat([i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, size) for i in instances])
        classes = cat([i.gt_classes for i in instances]).clamp(max=pred_logits.shape[1] - 1)
        losses = dice_losses(pred_logits[torch.arange(len(classes)), classes], masks)
        weights = cat([i.best_scores for i in instances])
        return pooled_mean((weights * losses).sum(), weights.sum(), group)
