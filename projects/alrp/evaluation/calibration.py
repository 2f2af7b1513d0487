"""Scores as the share of such detections that are right, from matches that were made elsewhere."""

from __future__ import annotations

import numpy as np
from typing import Mapping, NamedTuple

from .coco_matching import ImageMatches
from .lrp import OptimalLRP, optimal_lrp
from .report import lrp_summary

_NUM_BINS = 25


class Calibration(NamedTuple):
    """A step function from scores to shares in [0, 1] that never falls.

    ``least_scores`` (B,) float64, ascending, is where each step begins, and ``shares`` (B,) its
    value; below the first, its share holds, too. B may be 0 if there was nothing to fit.
    """

    least_scores: np.ndarray
    shares: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Share of each score; the scores themselves if B is 0."""
        if not len(self.shares):
            return scores
        steps = np.searchsorted(self.least_scores, scores, side="right") - 1
        return self.shares[steps.clip(min=0)]


def fit_calibration(scores, is_right) -> Calibration:
    """Isotonic regression of detections that are right (1) or wrong (0) on their scores.

    Of all functions that never fall it has the least squared error (pool adjacent violators).
    Calibration by it: Zadrozny and Elkan, KDD 2002.

    Args:
        scores: (D,) of one class, in any order.
        is_right: (D,) bool.
    Example:
        >>> fit = fit_calibration([0.1, 0.2, 0.3, 0.4], [False, True, False, True])
        >>> fit.least_scores.tolist(), fit.shares.tolist()
        ([0.1, 0.2, 0.4], [0.0, 0.5, 1.0])
    """
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rights = np.bincount(place, weights=is_right, minlength=len(values))
    steps: list[tuple[float, float, int]] = []  # least score, detections that are right, and all
    for least, right, count in zip(values.tolist(), rights.tolist(), counts.tolist()):
        while steps and steps[-1][1] * count >= right * steps[-1][2]:  # no share below the last
            least, before, number = steps.pop()
            right, count = right + before, count + number
        steps.append((least, right, count))
    columns = np.array(steps, dtype=np.float64).reshape(-1, 3).T
    return Calibration(columns[0], columns[1] / columns[2])


def calibration_error(scores, is_right, num_bins: int = _NUM_BINS) -> float:
    """Expected calibration error of detections (Guo et al., arXiv:1706.04599, Eq. 3), in [0, 1].

    The scores are put into equal intervals of [0, 1]. In each, the mean score differs from the
    share of detections that are right; the mean of these differences, weighted by the detections
    of an interval, is the error.

    Args:
        scores: (D,) in [0, 1]; others are put into the first or the last interval.
        is_right: (D,) bool.
        num_bins: number of intervals.
    Returns:
        float: NaN without a detection.
    """
    scores, is_right = np.asarray(scores, np.float64), np.asarray(is_right, np.float64)
    if not scores.size:
        return float("nan")
    bins = (scores * num_bins).clip(0, num_bins - 1).astype(np.int64)
    differences = np.bincount(bins, weights=scores - is_right)  # sums; their sizes are the weights
    return float(np.abs(differences).sum() / scores.size)


def calibration_summary(
    matches: Mapping[str, ImageMatches], per_class: Mapping[str, OptimalLRP]
) -> dict:
    """Calibration of every class with detections, and the error without and with it in percent.

    The errors are of the detections from the LRP-optimal score on, in the mean of the classes that
    have some, and whose scores all lie in [0, 1]. The error with a calibration is that of
    detections that it was not fitted to: those of each half of the images are calibrated by the
    other half.

    Args:
        matches: by class name.
        per_class: optimal LRP by class name.
    Returns:
        dict: ``error``, ``error_calibrated``, NaN if undefined, and ``per_class`` with ``scores``
        and ``shares`` of each :class:`Calibration`.
    """
    errors, calibrated_errors, fitted = [], [], {}
    for name, (match, images, _) in matches.items():
        counts = ~match.ignored
        scores, is_right = match.scores[counts], ~np.isnan(match.matched_ious[counts])
        if not scores.size:
            continue
        fit = fit_calibration(scores, is_right)
        fitted[name] = {"scores": fit.least_scores.tolist(), "shares": fit.shares.tolist()}
        if scores.min() < 0 or scores.max() > 1:
            continue  # logits or percent are no shares
        shown = scores >= per_class[name].threshold  # nothing if there is none
        if shown.any():
            other = _calibrated_by_other_half(scores, is_right, images[counts])
            errors.append(calibration_error(scores[shown], is_right[shown]))
            calibrated_errors.append(calibration_error(other[shown], is_right[shown]))
    return {
        "error": _percent(errors),
        "error_calibrated": _percent(calibrated_errors),
        "per_class": fitted,
    }


def summary_with_calibration(matches: Mapping[str, ImageMatches], tau: float) -> dict:
    """The :func:`lrp_summary` of matches, with their :func:`calibration_summary` as "calibration".

    Args:
        matches: by class name.
        tau: that they were matched with.
    """
    per_class = {name: optimal_lrp(*match.matches, tau=tau) for name, match in matches.items()}
    return {**lrp_summary(per_class), "calibration": calibration_summary(matches, per_class)}


def calibration_line(summary: dict) -> str:
    """The errors of a :func:`calibration_summary` as a sentence; "nan" if undefined."""
    return (
        "Calibration error of detections from the LRP-optimal scores on: "
        f"{summary['error']:.2f}; with scores calibrated on the other half of the images: "
        f"{summary['error_calibrated']:.2f}"
    )


def _calibrated_by_other_half(scores, is_right, images) -> np.ndarray:
    result = np.empty_like(scores)
    for is_in_half in (images % 2 == 0, images % 2 == 1):
        fit = fit_calibration(scores[~is_in_half], is_right[~is_in_half])
        result[is_in_half] = fit(scores[is_in_half])
    return result


def _percent(values: list[float]) -> float:
    return 100.0 * float(np.mean(values)) if values else float("nan")
