"""Matchers of anchors and ground-truth boxes.

Both answer the same call, ``matcher(gt_boxes, anchors_per_level) -> (matched_idxs, match_labels)``:

* ``gt_boxes``: (M, 4) XYXY absolute pixels; ``anchors_per_level``: L tensors (R_l, 4), R in all.
* ``matched_idxs``: (R,) int64, the matched ground truth of each positive anchor; undefined but
  valid as an index (0 if there is no ground truth) elsewhere.
* ``match_labels``: (R,) int8; 1 positive, 0 negative, -1 ignored.

``matcher.match_batch(gt_boxes, anchors_per_level, inside)`` matches N images at once, which needs
fewer launches on a GPU, with the same result: ``gt_boxes`` (N, M, 4) are filled up with zeros, the
results are (N, R), and anchors that are not ``inside``, (N, R) bool, take no part.

Detectron2's ``Matcher`` sees a quality matrix only; ATSS needs the boxes and their levels. Wherever
the published rules leave a tie open, the lowest index wins, so that runs can be repeated.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Sequence
import torch
from torch import Tensor

from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou

from ..errors import UserError
from .pairwise import LOW_WORD, blocks, nearest_per_level, pairwise_iou, sortable

# Centres are rounded to this part of a pixel.
_CENTER_UNITS = 1024
# Pixels from the centre of a positive anchor to the nearest side of its ground truth, as published.
_LEAST_INSET = 0.01


class _AnchorMatcher(ABC):
    """What the two matchers of anchors share: one image is a batch of one."""

    @abstractmethod
    def match_batch(
        self, gt_boxes: Tensor, anchors: list[Tensor], inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the module."""

    def __call__(self, gt_boxes: Tensor, anchors: list[Tensor]) -> tuple[Tensor, Tensor]:
        matched_idxs, match_labels = self.match_batch(gt_boxes[None], anchors)
        return matched_idxs[0], match_labels[0]


class ATSSMatcher(_AnchorMatcher):
    """Adaptive Training Sample Selection (Zhang et al., arXiv:1912.02424), as published with aLRP.

    A ground truth's candidates are the ``topk`` anchors of each level nearest to its centre.
    Candidates become positive if their IoU reaches the mean plus the standard deviation of all
    candidates' IoUs and their centre lies inside the box. ``topk`` counts anchors, not locations.
    There are no ignored anchors. IoUs are computed of candidates only.

    Args:
        topk: candidates per level and ground truth; a level with fewer anchors offers all it has.
    """

    def __init__(self, topk: int = 9) -> None:
        if topk < 1:
            raise ValueError(f"ATSSMatcher: topk must be at least 1, but is {topk}.")
        self.topk = topk

    @torch.no_grad()
    def match_batch(
        self, gt_boxes: Tensor, anchors: list[Tensor], inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the module."""
        all_anchors = torch.cat(anchors)
        num_images, num_gt, num_anchors = *gt_boxes.shape[:2], len(all_anchors)
        best = torch.zeros(num_images, num_anchors, dtype=torch.int64, device=all_anchors.device)
        if num_gt == 0 or num_anchors == 0:
            return best, best.to(torch.int8)

        gt_boxes = gt_boxes.flatten(0, 1)  # (N * M, 4), image by image
        if inside is not None:
            inside = inside.repeat_interleave(num_gt, dim=0)
        centers = _centers(all_anchors)
        levels = centers.split([len(a) for a in anchors])
        candidates = nearest_per_level(_centers(gt_boxes), levels, self.topk, inside)
        num_candidates = candidates.shape[1]
        is_candidate = None if inside is None else inside.gather(1, candidates)
        candidates = candidates.flatten()  # (N * M * C,), grouped by ground truth
        gt_of_candidate = gt_boxes.repeat_interleave(num_candidates, dim=0)
        is_central = _strictly_inside(centers[candidates], gt_of_candidate)
        ious = matched_pairwise_iou(Boxes(gt_of_candidate), Boxes(all_anchors[candidates]))
        ious, is_central = ious.view(-1, num_candidates), is_central.view(-1, num_candidates)
        positive = is_central & (ious >= _least_iou(ious, is_candidate)[:, None])
        if is_candidate is not None:
            positive &= is_candidate

        # An anchor kept by several ground truths goes to the one it overlaps most, of equal ones
        # to the first: the greatest (IoU, num_gt - index), of which 0 means that there is none.
        ranks = num_gt - torch.arange(num_gt, device=best.device)
        keys = sortable(ious.view(num_images, num_gt, -1), ranks[:, None])
        keys = keys.flatten(1).masked_fill(~positive.view(num_images, -1), 0)
        best.scatter_reduce_(1, candidates.view(num_images, -1), keys, "amax")
        matched = best > 0
        return (num_gt - (best & LOW_WORD)).mul_(matched), matched.to(torch.int8)


class MaxIoUMatcher(_AnchorMatcher):
    """Matching by greatest IoU, with the low-quality rule of the published heads.

    Each ground truth claims the anchors it overlaps best, however little. Such a low-quality match
    needs an IoU above 0 and of at least ``min_pos_iou``. Unlike in Detectron2's ``Matcher``, it
    also replaces the ground truth that the anchor overlaps best; of two claims the later wins.

    Args:
        pos_threshold: positive from this IoU on.
        neg_threshold: negative below this IoU, ignored between the two.
        min_pos_iou: least IoU at which a ground truth claims the anchors it overlaps best; above 1
            none does.
    """

    def __init__(
        self,
        pos_threshold: float = 0.5,
        neg_threshold: float = 0.4,
        min_pos_iou: float = 0.0,
    ) -> None:
        # At 1 a prediction would have to be exact, and the tau of an RPN must be below it.
        if not 0 <= neg_threshold <= pos_threshold < 1:
            raise ValueError(
                "MaxIoUMatcher: thresholds must satisfy 0 <= neg_threshold <= pos_threshold < 1, "
                f"but are {neg_threshold} and {pos_threshold}."
            )
        if not min_pos_iou >= 0:
            raise ValueError(
                f"MaxIoUMatcher: min_pos_iou must be at least 0, but is {min_pos_iou}."
            )
        self.pos_threshold = pos_threshold
        self.neg_threshold = neg_threshold
        self.min_pos_iou = min_pos_iou

    @torch.no_grad()
    def match_batch(
        self, gt_boxes: Tensor, anchors: list[Tensor], inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the module."""
        all_anchors = torch.cat(anchors)
        num_images, num_gt = gt_boxes.shape[:2]
        best_iou = all_anchors.new_zeros(num_images, len(all_anchors))
        matched_idxs = torch.zeros_like(best_iou, dtype=torch.int64)
        claimed_by = torch.full_like(best_iou, -1, dtype=torch.int32)
        if num_gt > 0 and len(all_anchors) > 0:
            corners = all_anchors.t().contiguous()  # (4, R)
            start = 0
            for block in blocks(gt_boxes, len(all_anchors)):
                ious = pairwise_iou(block, corners)
                if inside is not None:
                    ious.masked_fill_(~inside[:, None], 0.0)  # which matches nothing
                block_best, block_idxs = ious.max(1)  # of equal ones the first, as documented
                # A later block has to overlap more.
                matched_idxs = torch.where(block_best > best_iou, block_idxs + start, matched_idxs)
                best_iou = torch.maximum(best_iou, block_best)
                claimed_by = torch.maximum(claimed_by, self._claims(ious, start))
                start += block.shape[1]

        # Positive 2 - 1 = 1, ignored 0 - 1 = -1, negative 0 - 0 = 0.
        match_labels = 2 * (best_iou >= self.pos_threshold).to(torch.int8)
        match_labels -= (best_iou >= self.neg_threshold).to(torch.int8)
        claimed = claimed_by >= 0
        matched_idxs = torch.where(claimed, claimed_by, matched_idxs)
        return matched_idxs, match_labels.masked_fill_(claimed, 1)

    def _claims(self, ious: Tensor, start: int) -> Tensor:
        """(N, R) int32 the last ground truth that overlaps each anchor best of all, or -1.

        Args:
            ious: (N, B, R) of the ground truths from number ``start`` on.
        """
        best_of_gt = ious.amax(2, keepdim=True)
        # Without the second test a ground truth that overlaps no anchor would claim them all.
        able = (best_of_gt >= self.min_pos_iou) & (best_of_gt > 0)
        claims = ious == best_of_gt.masked_fill(~able, math.inf)
        end = start + ious.shape[1]
        gt_idxs = torch.arange(start, end, dtype=torch.int32, device=ious.device)
        return torch.where(claims, gt_idxs[:, None], -1).amax(1)


def build_matcher(cfg):
    """The matcher named by ``MODEL.ALRP.MATCHER``: "ATSS" or "max_iou".

    Raises:
        UserError: for any other name.
    """
    name = cfg.MODEL.ALRP.MATCHER
    if name == "ATSS":
        return ATSSMatcher(cfg.MODEL.ATSS.TOPK)
    if name == "max_iou":
        thresholds, min_pos_iou = cfg.MODEL.RETINANET.IOU_THRESHOLDS, cfg.MODEL.ALRP.MIN_POS_IOU
        return max_iou_matcher(thresholds, "MODEL.RETINANET.IOU_THRESHOLDS", min_pos_iou)
    raise UserError(f'MODEL.ALRP.MATCHER must be "ATSS" or "max_iou", but is "{name}".')


def max_iou_matcher(
    thresholds: Sequence[float], key: str, min_pos_iou: float | None = None
) -> MaxIoUMatcher:
    """A ``MaxIoUMatcher`` by a config.

    Args:
        thresholds: [negative below, positive from].
        key: of the config that holds them.
        min_pos_iou: of :class:`MaxIoUMatcher`; None for the lower threshold.

    Raises:
        UserError: if they are anything else.
    """
    try:
        low, high = thresholds
        return MaxIoUMatcher(high, low, low if min_pos_iou is None else min_pos_iou)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{key} must be [negative below, positive from], such as "[0.3, 0.7]", but is '
            f"{thresholds}: {error}"
        ) from error


def _least_iou(ious: Tensor, is_candidate: Tensor | None) -> Tensor:
    """(M,) mean plus standard deviation of the IoUs (M, C) of each ground truth's candidates."""
    if is_candidate is None:
        # The spread of a single candidate is 0, not 0 / 0.
        return ious.mean(1) + ious.std(1, unbiased=ious.shape[1] > 1)
    ious, counts = ious.double(), is_candidate.sum(1)
    mean = (ious * is_candidate).sum(1) / counts
    squares = ((ious - mean[:, None]).square() * is_candidate).sum(1)
    return (mean.float() + (squares / (counts - 1).clamp(min=1)).sqrt().float()).nan_to_num()


def _centers(boxes: Tensor) -> Tensor:
    """(R, 2) centres in pixels, to the nearest 1/1024.

    Corners are rounded, so the centres of concentric anchors differ in the last bit. On the grid
    of ``_CENTER_UNITS`` they are equal, and so are their distances to a ground truth.
    """
    half_units = _CENTER_UNITS // 2  # the centre is half the sum of two corners
    return (boxes[:, :2] + boxes[:, 2:]).mul_(half_units).round_().div_(_CENTER_UNITS)


def _strictly_inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each point lies more than ``_LEAST_INSET`` inside its box."""
    sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)
    return sides.amin(1) > _LEAST_INSET
