"""LRP and optimal LRP of one class from matches that were made elsewhere.

Naming: D detections of one class over all images, T true positives. A detection is a true positive
if it has a matched IoU and is not ignored, ignored if flagged so, a false positive otherwise.

Reference: Oksuz et al., "Localization Recall Precision (LRP): A New Performance Metric for Object
Detection", ECCV 2018, and "One Metric to Measure them All", arXiv:2011.10772.
"""

from __future__ import annotations

import numpy as np
from collections.abc import Iterable
from typing import NamedTuple

# An IoU of two identical boxes may exceed 1 by rounding.
_IOU_SLACK = 1e-9


class LRPError(NamedTuple):
    """LRP error of one detection set and its components, as fractions; NaN where undefined.

    ``lrp`` is in [0, 1]; ``loc`` is the mean of 1 - IoU over the true positives, in [0, 1 - tau];
    ``fp`` is FP / (TP + FP); ``fn`` is FN / (TP + FN).
    """

    lrp: float
    loc: float
    fp: float
    fn: float


class OptimalLRP(NamedTuple):
    """Lowest LRP error of a class over its score thresholds, as fractions; NaN where undefined.

    ``olrp``, ``loc``, ``fp`` and ``fn`` are as in :class:`LRPError`, taken at the optimum. Keeping
    the detections with ``score >= threshold`` reaches it if the score at the optimum is unique.
    A class is *absent* (no ground truth, nothing to measure) if :attr:`absent` is true; then all
    values are NaN. NaN with ``absent`` false means *undefined*: there is ground truth, but no
    detection that the value could be computed from.
    """

    olrp: float
    loc: float
    fp: float
    fn: float
    threshold: float
    num_gt: int

    @property
    def absent(self) -> bool:
        """bool: whether the class has no ground truth that counts."""
        return self.num_gt == 0


class MeanLRP(NamedTuple):
    """Means over classes, each over the classes that define the value; NaN if there is none."""

    olrp: float
    loc: float
    fp: float
    fn: float


class LRPCurve(NamedTuple):
    """LRP error after each of the D detections of a class, in descending score order.

    All fields are (D,) arrays: ``scores``; the cumulative counts ``tp``, ``fp`` and ``fn`` (int64);
    ``loc_sum``, the cumulative sum of 1 - IoU over the true positives; and ``lrp``.
    """

    scores: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    loc_sum: np.ndarray
    lrp: np.ndarray


def lrp_error(matched_ious, num_fp: int, num_fn: int, *, tau: float = 0.5) -> LRPError:
    """LRP error of one set of detections: (sum (1 - IoU) / (1 - tau) + FP + FN) / (TP + FP + FN).

    Args:
        matched_ious: (T,) IoU of every true positive with its ground truth, in [tau, 1].
        num_fp: number of false positives, >= 0.
        num_fn: number of missed ground truths, >= 0.
        tau: IoU a detection needs to count as correct, in (0, 1).
    Returns:
        LRPError: all NaN if there is neither a detection nor a ground truth.
    Raises:
        ValueError: on a value outside its range.
    Example:
        >>> error = lrp_error([0.78, 0.92], num_fp=1, num_fn=1)
        >>> round(error.lrp, 6), round(error.loc, 6)
        (0.65, 0.15)
    """
    ious = _vector("matched_ious", matched_ious, np.float64)
    if np.isnan(ious).any():
        raise ValueError("lrp_error: matched_ious holds NaN; pass the IoUs of true positives only.")
    check_matching_tau(tau)
    _check_ious(ious, tau)
    if num_fp < 0 or num_fn < 0:
        raise ValueError(f"lrp_error: counts must be >= 0, got num_fp={num_fp}, num_fn={num_fn}.")
    loc_sum = float(np.sum(1.0 - ious))
    total = ious.size + num_fp + num_fn
    return LRPError(
        _ratio(loc_sum / (1.0 - tau) + num_fp + num_fn, total),
        *_components(loc_sum, ious.size, num_fp, num_fn),
    )


def lrp_curve(scores, matched_ious, ignored, num_gt: int, *, tau: float = 0.5) -> LRPCurve:
    """LRP error of every prefix of the detections sorted by descending score.

    The sort is stable: equal scores keep the order given, and each of them is a prefix of its own.
    Ignored detections occupy a rank but count nowhere.

    Args:
        scores: (D,) finite scores of one class, images in ascending id, any order inside.
        matched_ious: (D,) IoU with the matched ground truth, in [tau, 1]; NaN where unmatched.
        ignored: (D,) bool, detections that are neither right nor wrong; None for none.
        num_gt: number of ground truths that are not ignored, >= 1.
        tau: IoU a detection needs to count as correct, in (0, 1).
    Returns:
        LRPCurve: (D,) arrays, float64 and int64.
    Raises:
        ValueError: on lengths that differ, values outside their range, or more true positives than
            ground truths.
    """
    scores = _vector("scores", scores, np.float64)
    ious = _vector("matched_ious", matched_ious, np.float64)
    flags = np.zeros(scores.size, bool) if ignored is None else _vector("ignored", ignored, bool)
    if not scores.size == ious.size == flags.size:
        raise ValueError(
            f"lrp_curve: scores, matched_ious and ignored have {scores.size}, {ious.size} and "
            f"{flags.size} elements; pass one of each per detection."
        )
    if not np.isfinite(scores).all():
        raise ValueError("lrp_curve: scores holds NaN or Inf; pass finite scores.")
    check_matching_tau(tau)
    order = np.argsort(-scores, kind="stable")
    scores, ious, flags = scores[order], ious[order], flags[order]
    is_tp = ~np.isnan(ious) & ~flags
    is_fp = np.isnan(ious) & ~flags
    _check_ious(ious[is_tp], tau)
    num_tp = int(np.count_nonzero(is_tp))
    if num_gt < max(1, num_tp):
        raise ValueError(
            f"lrp_curve: num_gt is {num_gt} with {num_tp} true positives; "
            "pass at least one ground truth, and one for each true positive."
        )
    tp, fp = np.cumsum(is_tp), np.cumsum(is_fp)
    fn = num_gt - tp
    loc_sum = np.cumsum(np.where(is_tp, 1.0 - ious, 0.0))
    # TP + FP + FN = num_gt + FP >= 1, so the quotient always exists.
    lrp = (loc_sum / (1.0 - tau) + fp + fn) / (tp + fp + fn)
    return LRPCurve(scores, tp, fp, fn, loc_sum, lrp)


def optimal_lrp(scores, matched_ious, ignored, num_gt: int, *, tau: float = 0.5) -> OptimalLRP:
    """Lowest LRP error over all score thresholds of one class (oLRP), with components there.

    Every prefix of the ranking is a candidate and the first of equal minima wins. A class with
    ground truth but without a true positive has ``olrp`` and ``fn`` 1 and the rest undefined.

    Args:
        scores, matched_ious, ignored, num_gt, tau: see :func:`lrp_curve`; ``num_gt`` may be 0 here.
    Returns:
        OptimalLRP: all NaN and ``absent`` if ``num_gt`` is 0, whatever the detections.
    Raises:
        ValueError: as :func:`lrp_curve`, for a class that is not absent.
    Example:
        >>> nan = float("nan")
        >>> best = optimal_lrp([0.9, 0.8, 0.7, 0.3], [0.78, nan, 0.92, nan], None, num_gt=3)
        >>> round(best.olrp, 6), best.threshold
        (0.65, 0.7)
    """
    nan = float("nan")
    if num_gt == 0:
        return OptimalLRP(nan, nan, nan, nan, nan, 0)
    curve = lrp_curve(scores, matched_ious, ignored, num_gt, tau=tau)
    if curve.tp.size == 0 or curve.tp[-1] == 0:
        return OptimalLRP(1.0, nan, nan, 1.0, nan, int(num_gt))
    best = int(np.argmin(curve.lrp))
    components = _components(curve.loc_sum[best], curve.tp[best], curve.fp[best], curve.fn[best])
    return OptimalLRP(
        float(curve.lrp[best]), *components, float(curve.scores[best]), num_gt=int(num_gt)
    )


def mean_optimal_lrp(results: Iterable[OptimalLRP]) -> MeanLRP:
    """Mean of each value over the classes that define it.

    The four means thus run over different sets of classes: one without a true positive adds 1 to
    ``olrp`` and ``fn`` and nothing to ``loc`` and ``fp``; an absent class adds nothing at all.
    """
    values = np.array([result[:4] for result in results], dtype=np.float64).reshape(-1, 4)
    defined = [column[~np.isnan(column)] for column in values.T]
    return MeanLRP(*(float(np.mean(column)) if column.size else float("nan") for column in defined))


def _components(loc_sum, num_tp, num_fp, num_fn) -> tuple[float, float, float]:
    return (
        _ratio(loc_sum, num_tp),
        _ratio(num_fp, num_tp + num_fp),
        _ratio(num_fn, num_tp + num_fn),
    )


def _ratio(part, whole) -> float:
    return float(part / whole) if whole else float("nan")


def _vector(name: str, values, dtype) -> np.ndarray:
    array = np.asarray(values, dtype=dtype)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}.")
    return array


def check_matching_tau(tau: float) -> None:
    """Raise a ValueError unless ``tau`` is in (0, 1)."""
    if not 0.0 < tau < 1.0:
        raise ValueError(f"tau must lie strictly between 0 and 1, got {tau}.")


def _check_ious(ious: np.ndarray, tau: float) -> None:
    if ious.size and (ious.min() < tau - _IOU_SLACK or ious.max() > 1.0 + _IOU_SLACK):
        raise ValueError(
            f"IoUs of true positives must lie in [tau, 1] = [{tau}, 1], got values in "
            f"[{ious.min()}, {ious.max()}]; match with the same tau, and use NaN for unmatched."
        )
