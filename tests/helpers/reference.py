"""Brute-force oracles of the ranking losses and matchers: float64, straight from the equations.

Nothing here is fast and nothing is shared with the package: the step is evaluated for every pair,
every anchor is compared with every box. Notation: ``s`` logits, ``E`` localisation errors, ``H``
the smoothed step; row i of a matrix belongs to the positive whose rank is computed, the column to
the entry compared with it.
"""

from __future__ import annotations

import numpy as np
from typing import NamedTuple


class RankingReference(NamedTuple):
    cls: float
    grad_logits: np.ndarray  # (S,) gradient of ``cls``
    rank: np.ndarray  # (P,)


class RSReference(NamedTuple):
    ranking: float
    sorting: float
    grad_ranking: np.ndarray  # (S,) gradient of ``ranking``
    grad_sorting: np.ndarray  # (S,) gradient of ``sorting``


class LocReference(NamedTuple):
    loc: float
    grad_loc_errors: np.ndarray  # (P,) gradient of ``loc``


def smoothed_step(x: np.ndarray, delta: float) -> np.ndarray:
    """H: 0 below -delta, 1 above delta, linear between, 1/2 at 0."""
    return np.clip(x / (2 * delta) + 0.5, 0.0, 1.0)


def pairwise_relations(logits, targets, delta):
    """R (P, P) with a zero diagonal, B (P, N), and the places of positives and negatives."""
    s = np.asarray(logits, dtype=np.float64)
    targets = np.asarray(targets)
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    R = smoothed_step(s[positives][None, :] - s[positives][:, None], delta)
    np.fill_diagonal(R, 0.0)
    B = smoothed_step(s[negatives][None, :] - s[positives][:, None], delta)
    return R, B, positives, negatives


def _gradient(size, error, B, FP, positives, negatives) -> np.ndarray:
    """Error-driven: positive i is pushed up by its error, the negatives share it as B_ij / FP_i."""
    grad = np.zeros(size)
    count = len(positives)
    for i, place in enumerate(positives):
        if error[i] != 0:
            grad[place] -= error[i] / count
            grad[negatives] += error[i] / count * B[i] / FP[i]
    return grad


def alrp_reference(logits, targets, loc_errors, delta=1.0, eps=1e-5) -> RankingReference:
    """Classification part of aLRP: value 1 - mean precision, gradient with localisation errors."""
    R, B, positives, negatives = pairwise_relations(logits, targets, delta)
    size = len(np.asarray(logits))
    if len(positives) == 0:
        return RankingReference(0.0, np.zeros(size), np.zeros(0))
    E = np.asarray(loc_errors, dtype=np.float64)
    FP = B.sum(axis=1)
    rank = 1 + R.sum(axis=1) + FP
    error = np.where(FP > eps, (FP + R @ E) / rank, 0.0)
    grad = _gradient(size, error, B, FP, positives, negatives)
    return RankingReference(float(np.mean(FP / rank)), grad, rank)


def loc_reference(logits, targets, loc_errors, delta=1.0) -> LocReference:
    """Localisation part: hard cumulative sums of E by descending logit, over the smoothed rank.

    Equal logits keep the order of ``targets`` (a stable descending sort).
    """
    rank = alrp_reference(logits, targets, loc_errors, delta).rank
    P = len(rank)
    if P == 0:
        return LocReference(0.0, np.zeros(0))
    E = np.asarray(loc_errors, dtype=np.float64)
    s = np.asarray(logits, dtype=np.float64)[np.asarray(targets) == 1]
    pi = sorted(range(P), key=lambda i: (-s[i], i))
    loc, grad = 0.0, np.zeros(P)
    for m in range(P):
        for n in range(m + 1):
            loc += E[pi[n]] / rank[pi[m]] / P
            grad[pi[n]] += 1 / rank[pi[m]] / P
    return LocReference(loc, grad)


def ap_reference(logits, targets, delta=1.0) -> RankingReference:
    """AP loss: precision made non-increasing in recall by a running maximum from the bottom."""
    R, B, positives, negatives = pairwise_relations(logits, targets, delta)
    size = len(np.asarray(logits))
    if len(positives) == 0:
        return RankingReference(0.0, np.zeros(size), np.zeros(0))
    FP = B.sum(axis=1)
    rank = 1 + R.sum(axis=1) + FP
    precision = (rank - FP) / rank
    interpolated, best = np.zeros(len(positives)), 0.0
    for i in np.argsort(np.asarray(logits, dtype=np.float64)[positives], kind="stable"):
        best = max(best, precision[i])
        interpolated[i] = best
    error = np.where(FP > 0, 1 - interpolated, 0.0)
    grad = _gradient(size, error, B, FP, positives, negatives)
    return RankingReference(float(np.mean(1 - interpolated)), grad, rank)


def rs_reference(logits, targets, ious, delta=0.5) -> RSReference:
    """RS loss: primary terms of all pairs; a positive gives its own away and takes those of others.

    Unlike in aLRP and AP, a positive is compared with itself too: H(0) is 0.5, and 1 for delta 0.
    """
    s, y = np.asarray(logits, dtype=np.float64), np.asarray(ious, dtype=np.float64)
    targets = np.asarray(targets)
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    P, grads = len(positives), np.zeros((2, len(s)))
    if P == 0:
        return RSReference(0.0, 0.0, *grads)

    def step(x):
        return smoothed_step(x, delta) if delta else (x >= 0).astype(np.float64)

    H = step(s[positives][None, :] - s[positives][:, None])
    B = step(s[negatives][None, :] - s[positives][:, None])
    FP = B.sum(axis=1)
    ranking_error = FP / (H.sum(axis=1) + FP)
    is_lower = y[None, :] < y[:, None]
    kept, wrong = np.where(is_lower, 0.0, H), np.where(is_lower, H, 0.0)
    current, target = H @ (1 - y) / H.sum(axis=1), kept @ (1 - y) / kept.sum(axis=1)
    M = wrong.sum(axis=1)
    sorting_error = np.where(M > 0, current - target, 0.0)
    for i in range(P):
        if FP[i] > 0:
            grads[0, negatives] += ranking_error[i] * B[i] / FP[i] / P
            grads[0, positives[i]] -= ranking_error[i] / P
        if M[i] > 0:
            grads[1, positives] += sorting_error[i] * wrong[i] / M[i] / P
            grads[1, positives[i]] -= sorting_error[i] / P
    return RSReference(ranking_error.mean(), sorting_error.mean(), *grads)


def giou_reference(box, other, eps=1e-6) -> float:
    """GIoU of two XYXY boxes; eps enters the union and the enclosing area."""
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    area = (box[2] - box[0]) * (box[3] - box[1])
    other_area = (other[2] - other[0]) * (other[3] - other[1])
    union = area + other_area - width * height + eps
    enclosure_width = max(box[2], other[2]) - min(box[0], other[0])
    enclosure_height = max(box[3], other[3]) - min(box[1], other[1])
    enclosure = enclosure_width * enclosure_height + eps
    return width * height / union - (enclosure - union) / enclosure


def localization_error_reference(pred_boxes, gt_boxes, tau=0.5) -> np.ndarray:
    """(1 - GIoU) / (2 (1 - tau)) of each pair."""
    pairs = zip(np.asarray(pred_boxes, np.float64), np.asarray(gt_boxes, np.float64))
    return np.array([(1 - giou_reference(p, g)) / (2 * (1 - tau)) for p, g in pairs])


def iou_matrix(gt_boxes, anchors) -> np.ndarray:
    """(M, R) IoU; exact in float64 for boxes with small integer corners, up to one division."""
    gt = np.asarray(gt_boxes, np.float64).reshape(-1, 1, 4)
    anchors = np.asarray(anchors, np.float64).reshape(1, -1, 4)
    sides = np.minimum(gt[..., 2:], anchors[..., 2:]) - np.maximum(gt[..., :2], anchors[..., :2])
    overlap = np.prod(np.clip(sides, 0, None), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (gt, anchors)]
    return overlap / np.maximum(areas[0] + areas[1] - overlap, 1e-6)


def max_iou_reference(gt_boxes, anchors, pos, neg, min_pos_iou):
    """The max-IoU rule, one anchor at a time: (matched_idxs, labels), labels in {-1, 0, 1}."""
    iou = iou_matrix(gt_boxes, anchors)
    M, R = iou.shape
    idxs, labels = np.zeros(R, np.int64), np.zeros(R, np.int64)
    if M == 0:
        return idxs, labels
    for a in range(R):
        idxs[a] = min(range(M), key=lambda g: (-iou[g, a], g))
        best = iou[idxs[a], a]
        labels[a] = 0 if best < neg else (1 if best >= pos else -1)
    for g in range(M):  # a later box overwrites an earlier one, and the matches by threshold
        best = iou[g].max()
        for a in range(R):
            if best > 0 and best >= min_pos_iou and iou[g, a] == best:
                idxs[a], labels[a] = g, 1
    return idxs, labels


def atss_reference(gt_boxes, anchors_per_level, topk=9, slack=0.0):
    """ATSS, one box at a time: (matched_idxs, labels), labels in {0, 1}.

    Ties go to the lowest index, of anchors among candidates and of boxes for contested anchors.
    ``slack`` moves the IoU threshold: anchors that change with it hang on the last bits.
    """
    anchors = np.concatenate([np.asarray(level, np.float64) for level in anchors_per_level])
    gt = np.asarray(gt_boxes, np.float64)
    iou = iou_matrix(gt, anchors)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    idxs, best_iou = np.zeros(len(anchors), np.int64), np.full(len(anchors), -1.0)
    for g in range(len(gt)):
        squared = np.sum((centres - (gt[g, :2] + gt[g, 2:]) / 2) ** 2, axis=1)
        candidates, start = [], 0
        for level in anchors_per_level:
            places = range(start, start + len(level))
            candidates += sorted(places, key=lambda a: (squared[a], a))[:topk]
            start += len(level)
        values = iou[g, candidates]
        threshold = values.mean() + (values.std(ddof=1) if len(values) > 1 else 0.0) + slack
        for a in candidates:
            (x, y), (x1, y1, x2, y2) = centres[a], gt[g]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if inside and iou[g, a] >= threshold and iou[g, a] > best_iou[a]:
                idxs[a], best_iou[a] = g, iou[g, a]
    return idxs, (best_iou >= 0).astype(np.int64)
