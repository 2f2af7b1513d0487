"""Matchers of anchors and ground-truth boxes.

Both answer the same call, ``matcher(gt_boxes, anchors_per_level) -> (matched_idxs, match_labels)``:

* ``gt_boxes``: (M, 4) XYXY absolute pixels; ``anchors_per_level``: L tensors (R_l, 4), R in all.
* ``matched_idxs``: (R,) int64, the matched ground truth of each positive anchor; undefined but
  valid as an index (0 if there is no ground truth) elsewhere.
* ``match_labels``: (R,) int8; 1 positive, 0 negative, -1 ignored.

Detectron2's ``Matcher`` sees a quality matrix only; ATSS needs the boxes and their levels. Wherever
the published rules leave a tie open, the lowest index wins, so that runs can be repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detectron2.structures import Boxes, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou

from ..errors import UserError

# At most this many distances are held at a time.
_BLOCK = 1 << 22


class ATSSMatcher:
    """Adaptive Training Sample Selection (Zhang et al., arXiv:1912.02424), as published with aLRP.

    A ground truth's candidates are the ``topk`` anchors of each level nearest to its centre.
    Candidates become positive if their IoU reaches the mean plus the standard deviation of all
    candidates' IoUs and their centre lies inside the box. ``topk`` counts anchors, not locations.
    There are no ignored anchors.

    Args:
        topk: candidates per level and ground truth; a level with fewer anchors offers all it has.
    """

    def __init__(self, topk: int = 9) -> None:
        if topk < 1:
            raise ValueError(f"ATSSMatcher: topk must be at least 1, but is {topk}.")
        self.topk = topk

    @torch.no_grad()
    def __call__(self, gt_boxes: Tensor, anchors: list[Tensor]) -> tuple[Tensor, Tensor]:
        all_anchors = torch.cat(anchors)
        num_anchors, num_gt = len(all_anchors), len(gt_boxes)
        matched_idxs = torch.zeros(num_anchors, dtype=torch.int64, device=all_anchors.device)
        match_labels = torch.zeros(num_anchors, dtype=torch.int8, device=all_anchors.device)
        if num_gt == 0 or num_anchors == 0:
            return matched_idxs, match_labels

        centers = _centers(all_anchors)
        candidates = self._candidates(_centers(gt_boxes), centers, [len(a) for a in anchors])
        num_candidates = candidates.shape[1]
        gt_idxs = torch.arange(num_gt, device=candidates.device).repeat_interleave(num_candidates)
        anchor_idxs = candidates.flatten()  # (M * C,), grouped by ground truth
        ious = matched_pairwise_iou(Boxes(gt_boxes[gt_idxs]), Boxes(all_anchors[anchor_idxs]))

        ious_per_gt = ious.view(num_gt, num_candidates)
        # The spread of a single candidate is 0, not 0 / 0.
        std = ious_per_gt.std(1, unbiased=num_candidates > 1)
        threshold = (ious_per_gt.mean(1) + std)[gt_idxs]
        positive = (ious >= threshold) & _strictly_inside(centers[anchor_idxs], gt_boxes[gt_idxs])
        gt_idxs, anchor_idxs, ious = gt_idxs[positive], anchor_idxs[positive], ious[positive]

        # An anchor kept by several ground truths goes to the one it overlaps most.
        best_iou = ious.new_zeros(num_anchors).scatter_reduce_(0, anchor_idxs, ious, "amax")
        winner = ious == best_iou[anchor_idxs]
        matched_idxs.fill_(num_gt).scatter_reduce_(0, anchor_idxs[winner], gt_idxs[winner], "amin")
        match_labels[anchor_idxs] = 1
        matched_idxs[matched_idxs == num_gt] = 0
        return matched_idxs, match_labels

    def _candidates(self, gt_centers: Tensor, centers: Tensor, num_per_level: list[int]) -> Tensor:
        """(M, C) indices of the anchors nearest to each ground truth, nearest first per level."""
        per_level = []
        start = 0
        for num_anchors, level_centers in zip(num_per_level, centers.split(num_per_level)):
            block = max(1, _BLOCK // max(num_anchors, 1))
            nearest = [
                _nearest(gt_block, level_centers, min(self.topk, num_anchors))
                for gt_block in gt_centers.split(block)
            ]
            per_level.append(torch.cat(nearest) + start)
            start += num_anchors
        return torch.cat(per_level, dim=1)


class MaxIoUMatcher:
    """Matching by greatest IoU, with the low-quality rule of the published heads.

    Unlike Detectron2's ``Matcher``, a low-quality match also replaces the ground truth the anchor
    was matched with (a later one wins over an earlier one), and needs a positive IoU of at least
    ``min_pos_iou``.

    Args:
        pos_threshold: positive from this IoU on.
        neg_threshold: negative below this IoU, ignored between the two.
        min_pos_iou: least IoU at which a ground truth claims the anchors it overlaps best.
        allow_low_quality_matches: whether it claims them at all.
    """

    def __init__(
        self,
        pos_threshold: float = 0.5,
        neg_threshold: float = 0.4,
        min_pos_iou: float = 0.0,
        allow_low_quality_matches: bool = True,
    ) -> None:
        if not 0 <= neg_threshold <= pos_threshold <= 1:
            raise ValueError(
                "MaxIoUMatcher: thresholds must satisfy 0 <= neg_threshold <= pos_threshold <= 1, "
                f"but are {neg_threshold} and {pos_threshold}."
            )
        self.pos_threshold = pos_threshold
        self.neg_threshold = neg_threshold
        self.min_pos_iou = min_pos_iou
        self.allow_low_quality_matches = allow_low_quality_matches

    @torch.no_grad()
    def __call__(self, gt_boxes: Tensor, anchors: list[Tensor]) -> tuple[Tensor, Tensor]:
        all_anchors = torch.cat(anchors)
        num_gt = len(gt_boxes)
        match_labels = torch.zeros(len(all_anchors), dtype=torch.int8, device=all_anchors.device)
        if num_gt == 0 or len(all_anchors) == 0:
            return torch.zeros_like(match_labels, dtype=torch.int64), match_labels

        ious = pairwise_iou(Boxes(gt_boxes), Boxes(all_anchors))  # (M, R)
        gt_idxs = torch.arange(num_gt, device=ious.device)[:, None]
        best_iou = ious.amax(0)
        matched_idxs = torch.where(ious == best_iou, gt_idxs, num_gt).amin(0)
        match_labels[best_iou >= self.neg_threshold] = -1
        match_labels[best_iou >= self.pos_threshold] = 1

        if self.allow_low_quality_matches:
            best_of_gt = ious.amax(1, keepdim=True)
            # Without the second test a ground truth that overlaps no anchor would claim them all.
            claims = (best_of_gt >= self.min_pos_iou) & (best_of_gt > 0) & (ious == best_of_gt)
            claimed_by = torch.where(claims, gt_idxs, -1).amax(0)
            matched_idxs = torch.where(claimed_by >= 0, claimed_by, matched_idxs)
            match_labels[claimed_by >= 0] = 1
        return matched_idxs, match_labels


def build_matcher(cfg):
    """The matcher named by ``MODEL.ALRP.MATCHER``: "ATSS" or "max_iou".

    Raises:
        UserError: for any other name.
    """
    name = cfg.MODEL.ALRP.MATCHER
    if name == "ATSS":
        return ATSSMatcher(cfg.MODEL.ATSS.TOPK)
    if name == "max_iou":
        neg_threshold, pos_threshold = cfg.MODEL.RETINANET.IOU_THRESHOLDS
        return MaxIoUMatcher(pos_threshold, neg_threshold, cfg.MODEL.ALRP.MIN_POS_IOU)
    raise UserError(f'MODEL.ALRP.MATCHER must be "ATSS" or "max_iou", but is "{name}".')


def _centers(boxes: Tensor) -> Tensor:
    """(R, 2) centres in pixels, to the nearest 1/1024.

    Corners are rounded, so that the centres of concentric anchors differ in the last bit. Snapped,
    they are equal and their distances tie exactly.
    """
    return ((boxes[:, :2] + boxes[:, 2:]) / 2 * 1024).round() / 1024


def _nearest(gt_centers: Tensor, centers: Tensor, k: int) -> Tensor:
    """(M, k) indices of the k centres nearest to each ground truth, equal distances by index."""
    distances = (gt_centers[:, None] - centers).float().pow(2).sum(2).sqrt()
    # Non-negative floats sort like their bit patterns, so one integer holds distance and index.
    keys = distances.view(torch.int32).long() << 32
    keys |= torch.arange(len(centers), device=centers.device)
    return keys.topk(k, dim=1, largest=False, sorted=True).values & 0xFFFFFFFF


def _strictly_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each point lies more than 0.01 pixels inside its box, as published."""
    return torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1).amin(1) > 0.01
