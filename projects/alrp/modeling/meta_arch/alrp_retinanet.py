"""RetinaNet trained with a ranking loss."""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage, has_event_storage

from ..box_regression import BoxDeltaTransform, decode_positives
from ..matcher import build_matcher
from ..ranking_losses import RankingLosses, build_ranking_losses


@META_ARCH_REGISTRY.register()
class ALRPRetinaNet(RetinaNet):
    """RetinaNet whose ``losses`` ranks all anchors and classes of the mini-batch.

    Of Detectron2's :class:`RetinaNet` it replaces the matching (:meth:`label_anchors`), the losses
    (:meth:`losses`) and the selection before NMS (:meth:`_decode_per_level_predictions`).
    """

    @configurable
    def __init__(self, *, ranking_losses: RankingLosses, **kwargs) -> None:
        """
        Args:
            ranking_losses: classification and box losses.
            kwargs: of :class:`RetinaNet`; ``anchor_matcher`` is an ``ATSSMatcher`` or a
                ``MaxIoUMatcher``, ``box2box_transform`` a ``BoxDeltaTransform``.
        """
        super().__init__(**kwargs)
        self.ranking_losses = ranking_losses

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        ret["anchor_matcher"] = build_matcher(cfg)
        ret["box2box_transform"] = BoxDeltaTransform(cfg.MODEL.RETINANET.BBOX_REG_WEIGHTS)
        ret["ranking_losses"] = build_ranking_losses(cfg, cfg.MODEL.RETINANET.NUM_CLASSES)
        return ret

    @torch.no_grad()
    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]):
        """As the parent, except that anchors outside the image's own padded area are ignored.

        Images are padded to the largest of the batch; what an anchor sees beyond the padding of
        its own image depends on its neighbours in the batch.
        """
        gt_labels, matched_gt_boxes = [], []
        padded_sizes = [self._padded_size(gt_i.image_size) for gt_i in gt_instances]
        batch_size = tuple(max(sides) for sides in zip(*padded_sizes))
        all_anchors = [a.tensor for a in anchors]
        for gt_i, padded_size in zip(gt_instances, padded_sizes):
            if padded_size == batch_size:
                labels_i, boxes_i = self._label_image(all_anchors, gt_i)
            else:  # not for all images, because masks stall a GPU
                inside = _inside(all_anchors, padded_size)
                kept = [level[mask] for level, mask in zip(all_anchors, inside)]
                labels_i, boxes_i = self._label_image(kept, gt_i)
                mask = torch.cat(inside)
                labels_i = labels_i.new_full(mask.shape, -1).masked_scatter(mask, labels_i)
                boxes_i = boxes_i.new_zeros(len(mask), 4).masked_scatter(mask[:, None], boxes_i)
            gt_labels.append(labels_i)
            matched_gt_boxes.append(boxes_i)
        return gt_labels, matched_gt_boxes

    def _label_image(self, anchors: list[Tensor], gt: Instances) -> tuple[Tensor, Tensor]:
        """Labels (R,) and matched boxes (R, 4) of one image."""
        matched_idxs, match_labels = self.anchor_matcher(gt.gt_boxes.tensor, anchors)
        if len(gt) == 0:
            labels = torch.full_like(matched_idxs, self.num_classes)
            return labels, anchors[0].new_zeros(len(labels), 4)
        labels = gt.gt_classes[matched_idxs]
        labels = labels.masked_fill(match_labels == 0, self.num_classes)
        return labels.masked_fill(match_labels == -1, -1), gt.gt_boxes.tensor[matched_idxs]

    def _padded_size(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Height and width of an image after its own padding."""
        divisor = max(self.backbone.size_divisibility, 1)
        return tuple(-(-side // divisor) * divisor for side in image_size)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """As the parent; every loss is a mean over the positives of the mini-batch."""
        num_images = len(gt_labels)
        gt_labels = cat(gt_labels)  # (N * R,)
        positive = (gt_labels >= 0) & (gt_labels != self.num_classes)
        rows = positive.nonzero().squeeze(1)  # (P,)
        if has_event_storage():
            get_event_storage().put_scalar("num_pos_anchors", len(rows) / num_images)

        pred_logits = cat(pred_logits, dim=1).flatten(0, 1)  # (N * R, K)
        pred_deltas = cat(pred_anchor_deltas, dim=1).flatten(0, 1)[rows]  # (P, 4)
        gt_boxes = cat(gt_boxes)[rows]
        anchors = Boxes.cat(anchors).tensor
        anchors = anchors[rows % len(anchors)]
        if self.ranking_losses.compares_boxes:
            predicted, expected = decode_positives(
                pred_deltas, anchors, gt_boxes, self.box2box_transform.weights
            )
        else:
            predicted, expected = pred_deltas, self.box2box_transform.get_deltas(anchors, gt_boxes)
        return self.ranking_losses(pred_logits, gt_labels, predicted, expected)

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """As published: the anchors with the best scores, all their classes, clipped before NMS.

        Ranking losses do not fix the offset of the scores, so that very many may pass a threshold;
        the parent would then spend ``topk_candidates`` on pairs of few anchors.
        """
        # Scores far from 0 saturate and tie; then the lowest index wins.
        order = pred_scores.amax(1).sort(descending=True, stable=True).indices
        top_anchors = order[:topk_candidates]
        pred_scores = pred_scores[top_anchors]
        boxes = self.box2box_transform.apply_deltas(
            pred_deltas[top_anchors], anchors.tensor[top_anchors]
        )
        boxes = Boxes(boxes)
        boxes.clip(image_size)
        kept, classes = (pred_scores > score_thresh).nonzero(as_tuple=True)
        return Instances(
            image_size,
            pred_boxes=boxes[kept],
            scores=pred_scores[kept, classes],
            pred_classes=classes,
        )


def _inside(anchors: list[Tensor], size: tuple[int, ...]) -> list[Tensor]:
    """Per level, whether the centre of each anchor lies inside an area of (height, width)."""
    # Rounded corners can push a centre across the border by a fraction of a pixel.
    limit = anchors[0].new_tensor([size[1], size[0]]) - 1e-2
    return [((a[:, :2] + a[:, 2:]) / 2 < limit).all(1) for a in anchors]
