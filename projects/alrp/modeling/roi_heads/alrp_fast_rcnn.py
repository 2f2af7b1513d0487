"""Box head on regions of interest, trained with a ranking loss.

Shapes: R regions of all images of the mini-batch, P of them positive, K foreground classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Instances

from ..box_losses import IterationBalance
from ..box_regression import BoxDeltaTransform
from ..bridge import RankingHeadLosses, best_scores, keep_checkpoint_names
from ..dense_inference import check_test_options
from ..head_losses import build_head_losses
from ..micro_batches import MicroBatched, in_micro_batches
from .all_proposals import AllProposals
from .dice_mask_head import DiceMaskHead


class ALRPFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Box predictor with one sigmoid unit per class, none for the background.

    ``losses`` ranks all regions and classes of the mini-batch. Boxes are compared in pixels,
    decoded with the deltas of the ground-truth class and not clipped to the image.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, head_losses: RankingHeadLosses, num_classes: int, **kwargs
    ) -> None:
        """
        Args:
            input_shape: of the features of a region.
            head_losses: classification and box losses of ``num_classes`` classes.
            num_classes: K.
            kwargs: of :class:`FastRCNNOutputLayers`; ``box2box_transform`` is a
                ``BoxDeltaTransform``. ``loss_weight`` applies to both losses. Options of
                Detectron2's own losses, such as ``smooth_l1_beta``, have no effect.

        Raises:
            ValueError: if a threshold in test is outside [0, 1], or the number of detections 0.
        """
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.head_losses = head_losses
        keep_checkpoint_names(self)
        self.cls_score = nn.Linear(self.cls_score.in_features, num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.constant_(self.cls_score.bias, 0)
        check_test_options(
            score_thresh=self.test_score_thresh,
            nms_thresh=self.test_nms_thresh,
            # Below 0 there is no limit, as in the parent.
            max_detections=1 if self.test_topk_per_image < 0 else self.test_topk_per_image,
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["box2box_transform"] = BoxDeltaTransform(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        ret["head_losses"] = build_head_losses(cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        return ret

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]):
        """As the parent; both losses are means over the positives of the mini-batch.

        The proposals get the field "best_scores", each one's greatest score over all classes, which
        a :class:`DiceMaskHead` reads.

        Args:
            predictions: logits (R, K) and deltas (R, K * 4), or (R, 4) if class-agnostic.
            proposals: per image, with ``proposal_boxes``, ``gt_classes`` (0..K-1, K background,
                -1 ignored) and, unless all are background, ``gt_boxes``.

        Returns:
            dict[str, Tensor]: scalars "loss_cls" and "loss_box_reg".
        """
        pred_logits, pred_deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals])
        rows = self.head_losses.positive_rows(gt_classes)  # (P,)
        boxes = cat([p.proposal_boxes.tensor for p in proposals])[rows]
        # Images without ground truth have proposals without it, none of them positive.
        gt_boxes = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        gt_boxes = cat([b.tensor for b in gt_boxes])[rows]

        num_outputs = pred_deltas.shape[1] // 4  # K or 1
        pred_deltas = pred_deltas.view(len(pred_deltas), num_outputs, 4)
        pred_deltas = pred_deltas[rows, gt_classes[rows].clamp(max=num_outputs - 1)]
        deltas = decoded = None
        if self.head_losses.compares_deltas:
            deltas = pred_deltas, self.box2box_transform.get_deltas(boxes, gt_boxes)
        if self.head_losses.compares_boxes:
            decoded = self.box2box_transform.apply_deltas(pred_deltas, boxes), gt_boxes
        losses = self.head_losses(
            pred_logits, gt_classes, *(decoded or deltas), deltas=deltas, rows=rows
        )
        scores = best_scores(pred_logits).split([len(p) for p in proposals])
        for proposals_i, scores_i in zip(proposals, scores):
            proposals_i.best_scores = scores_i
        return {name: self.loss_weight.get(name, 1.0) * loss for name, loss in losses.items()}

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]):
        """As the parent: per image (R_i, K + 1) scores, the last column 0 for the background."""
        scores = F.pad(predictions[0].sigmoid(), (0, 1))
        # Not by len(), which would fix the number of proposals in a traced model.
        return scores.split([p.proposal_boxes.tensor.shape[0] for p in proposals])


@ROI_HEADS_REGISTRY.register()
class ALRPROIHeads(AllProposals, MicroBatched, StandardROIHeads):
    """``StandardROIHeads`` with :class:`ALRPFastRCNNOutputLayers`, trained on all proposals.

    Mask and keypoint heads train on the foreground ones, as they do in the parent; without
    sampling there may be more of them.

    The loss of a :class:`DiceMaskHead` is balanced as that of the boxes, if this is by an
    :class:`IterationBalance`: it gets the value of the box head's classification loss.
    """

    @configurable
    def __init__(
        self,
        *,
        masks_per_image: int = 0,
        batch_size_per_image: int = 0,
        positive_fraction: float = 0.0,
        **kwargs,
    ) -> None:
        """
        Args:
            masks_per_image: positive proposals of an image that the mask head trains on at most,
                drawn at random; 0 for all.
            batch_size_per_image, positive_fraction: of the parent, without effect.
            kwargs: of the parent; ``proposal_append_gt`` is published as False with aLRP, and as
                True with RS Loss.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction, **kwargs
        )
        self.masks_per_image = masks_per_image

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["masks_per_image"] = cfg.MODEL.ALRP.MASKS_PER_IMAGE
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = ALRPFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], *targets):
        """As the parent; in micro-batches, the box head sees the regions of one at a time.

        Args:
            features: of the backbone, by name.
            proposals: per image.
            targets: that the parent takes if it is a cascade.
        """
        has_one_stage = isinstance(self.box_predictor, ALRPFastRCNNOutputLayers)
        # With train_on_pred_boxes the parent reads the predictions as well.
        if not self.splits(len(proposals)) or not has_one_stage or self.train_on_pred_boxes:
            return super()._forward_box(features, proposals, *targets)
        features = [features[name] for name in self.box_in_features]
        predictions = self._predict_boxes(self.box_head, self.box_predictor, features, proposals)
        return self.box_predictor.losses(predictions, proposals)

    def _predict_boxes(
        self,
        box_head: nn.Module,
        box_predictor: ALRPFastRCNNOutputLayers,
        features: list[Tensor],
        proposals: list[Instances],
    ) -> tuple[Tensor, Tensor]:
        """Logits and deltas of the regions of all images, which may pass in micro-batches."""

        def predict(*features_and_boxes):
            # Not unpacked by a star, which torch.compile takes for a tuple.
            features, boxes = list(features_and_boxes[:-1]), features_and_boxes[-1]
            return box_predictor(box_head(self.box_pooler(features, boxes)))

        inputs = [*features, [x.proposal_boxes for x in proposals]]
        if self.splits(len(proposals)):
            return tuple(in_micro_batches(predict, inputs, self.micro_batch_size))
        return predict(*inputs)

    def forward(self, images, features, proposals, targets=None):
        """As the parent."""
        proposals, losses = super().forward(images, features, proposals, targets)
        if "loss_mask" in losses and isinstance(self.mask_head, DiceMaskHead):
            balance, value = self._box_balance(losses)
            if isinstance(balance, IterationBalance):
                losses["loss_mask"] = balance(value, losses["loss_mask"]) * losses["loss_mask"]
        return proposals, losses

    def _box_balance(self, losses: dict[str, Tensor]) -> tuple[nn.Module | float | None, Tensor]:
        """Balance of the box head whose proposals the masks have, and its classification loss."""
        return self.box_predictor.head_losses.self_balance, losses["loss_cls"]

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]):
        """As the parent, on a limited number of proposals."""
        if self.training and self.mask_on and self.masks_per_image:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
            instances = [_drawn(instances_i, self.masks_per_image) for instances_i in instances]
        return super()._forward_mask(features, instances)


def _drawn(instances: Instances, most: int) -> Instances:
    """So many of them at most, drawn at random, with all their fields."""
    if len(instances) <= most:
        return instances
    return instances[torch.randperm(len(instances), device=instances.gt_classes.device)[:most]]
