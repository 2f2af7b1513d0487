"""Region proposal network trained with a ranking loss."""

from __future__ import annotations

import math
import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.structures import Boxes, Instances

from ..box_regression import BoxDeltaTransform
from ..bridge import RankingHeadLosses, keep_checkpoint_names
from ..dense_losses import anchor_losses
from ..head_losses import build_head_losses
from ..matcher import max_iou_matcher
from ..micro_batches import MicroBatched, in_micro_batches
from ..targets import match_anchors, matched_boxes


@RPN_HEAD_REGISTRY.register()
class PriorRPNHead(MicroBatched, StandardRPNHead):
    """``StandardRPNHead`` whose scores start at a small probability.

    Args:
        prior_prob: objectness score of every anchor at the start of training, in (0, 1).
        kwargs: of :class:`StandardRPNHead`.
    """

    @configurable
    def __init__(self, *, prior_prob: float = 0.01, **kwargs) -> None:
        super().__init__(**kwargs)
        nn.init.constant_(self.objectness_logits.bias, math.log(prior_prob / (1 - prior_prob)))

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """As the parent, maybe in micro-batches."""
        if not self.splits(len(features[0])):
            return super().forward(features)
        forward = super().forward
        return in_micro_batches(lambda *x: forward(x), features, self.micro_batch_size)


@PROPOSAL_GENERATOR_REGISTRY.register()
class ALRPRPN(RPN):
    """RPN whose ``losses`` ranks all anchors of the mini-batch; nothing is sampled.

    Of Detectron2's :class:`RPN` it replaces the labels (:meth:`label_and_sample_anchors`) and the
    losses (:meth:`losses`), and it limits how far a proposal may shrink.
    """

    @configurable
    def __init__(
        self,
        *,
        head_losses: RankingHeadLosses,
        size_divisibility: int = 32,
        batch_size_per_image: int = 0,
        positive_fraction: float = 0.0,
        **kwargs,
    ) -> None:
        """
        Args:
            head_losses: classification and box losses of one class.
            size_divisibility: what the sides of an image are padded to a multiple of; anchors
                beyond the padding of their own image are ignored.
            batch_size_per_image, positive_fraction: of the parent, without effect.
            kwargs: of :class:`RPN`; ``anchor_matcher`` is a ``MaxIoUMatcher`` or an
                ``ATSSMatcher``, ``box2box_transform`` a ``BoxDeltaTransform``.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction, **kwargs
        )
        self.head_losses = head_losses
        keep_checkpoint_names(self)
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg, input_shape):
        """
        Raises:
            UserError: if ``MODEL.RPN.IOU_THRESHOLDS`` is not [negative below, positive from].
        """
        matcher = max_iou_matcher(cfg.MODEL.RPN.IOU_THRESHOLDS, "MODEL.RPN.IOU_THRESHOLDS")
        ret = super().from_config(cfg, input_shape)
        ret["anchor_matcher"] = matcher
        ret["box2box_transform"] = BoxDeltaTransform(cfg.MODEL.RPN.BBOX_REG_WEIGHTS)
        # An FPN pads to the stride of its coarsest input, as to that of p5 if this is res5. Without
        # one, as in the backbones C4 and DC5, images are not padded.
        levels = [name.replace("res", "p") for name in cfg.MODEL.FPN.IN_FEATURES[-1:]]
        ret["size_divisibility"] = max(
            (input_shape[name].stride for name in levels if name in input_shape), default=0
        )
        ret["head_losses"] = build_head_losses(cfg, 1, tau=matcher.pos_threshold, prefix="alrp_rpn")
        return ret

    @torch.no_grad()
    def label_and_sample_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]):
        """As the parent, without sampling.

        Anchors outside the image's own padded area are ignored, as are those whose best IoU lies
        between the thresholds, and those that reach over the border by more than
        ``anchor_boundary_thresh``.
        """
        matched_idxs, match_labels = match_anchors(
            self.anchor_matcher,
            anchors,
            gt_instances,
            self.size_divisibility,
            self.anchor_boundary_thresh,
        )
        gt_boxes = [
            matched_boxes(gt_i.gt_boxes.tensor, idxs_i)
            for gt_i, idxs_i in zip(gt_instances, matched_idxs)
        ]
        return match_labels, gt_boxes

    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """As the parent; both losses are means over the positives of the mini-batch."""
        losses = anchor_losses(
            self.head_losses,
            anchors,
            [logits[..., None] for logits in pred_objectness_logits],
            [_as_class(labels_i) for labels_i in gt_labels],
            pred_anchor_deltas,
            gt_boxes,
            box2box_transform=self.box2box_transform,
            event="rpn/num_pos_anchors",
        )
        losses = {
            "loss_rpn_cls": losses["loss_cls"],
            "loss_rpn_loc": losses["loss_box_reg"],
        }
        return {name: self.loss_weight.get(name, 1.0) * loss for name, loss in losses.items()}


def _as_class(labels: torch.Tensor) -> torch.Tensor:
    """Labels 1, 0, -1 as the only class, background, ignored: 0, 1, -1."""
    return torch.where(labels < 0, -1, 1 - labels.long())
