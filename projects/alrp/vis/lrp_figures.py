"""What a score threshold does to the LRP error, and the precision that each recall costs."""

from __future__ import annotations

import numpy as np
from typing import Protocol, Sequence
from matplotlib.figure import Figure

# Colours of Okabe and Ito, told apart with any colour vision.
_LINES = {
    "LRP": "#111111",
    "localisation (mean of 1 - IoU)": "#0072B2",
    "false positives": "#D55E00",
    "false negatives": "#009E73",
}
_NUM_THRESHOLDS = 501  # of the mean over classes
_RECALLS = np.linspace(0.0, 1.0, 101)  # as of COCO


class Curve(Protocol):
    """What is drawn of a class with ground truth, as :func:`alrp.evaluation.lrp_curve` gives it.

    (D,) arrays in descending order of ``scores``: numbers of true positives ``tp``, false positives
    ``fp`` and false negatives ``fn`` of each prefix, and ``loc_sum``, the sum of 1 - IoU.
    """

    scores: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    loc_sum: np.ndarray


def lrp_figure(curves: Sequence[Curve], title: str, *, tau: float = 0.5) -> Figure:
    """LRP and its three parts over the score threshold, beside precision against recall.

    Of several classes the means are drawn: at each threshold over the classes that define a value,
    and at each recall of the interpolated precision. The threshold of least LRP is marked.

    Args:
        curves: of one class or several, each with at least one detection.
        title: of the figure.
        tau: IoU that the matches were made with.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    thresholds = _thresholds(curves)
    parts = np.stack([lrp_at(curve, thresholds, tau) for curve in curves])  # (K, 4, T)
    means = _mean(parts)
    for (label, colour), values in zip(_LINES.items(), means):
        left.plot(
            thresholds, values, color=colour, label=label, linewidth=2 if label == "LRP" else 1
        )
    best = int(np.argmin(means[0]))
    label = f"least LRP {means[0][best]:.3f} at {thresholds[best]:.3f}"
    left.axvline(thresholds[best], color="#CC79A7", linestyle="--", label=label)
    left.set(xlabel="score threshold", ylabel="error", ylim=(0, 1.02))
    left.legend(fontsize="small")
    recall, precision = _precision_recall(curves)
    right.plot(recall, precision, color="#111111", drawstyle="steps-pre")
    right.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def lrp_at(curve: Curve, thresholds: np.ndarray, tau: float) -> np.ndarray:
    """(4, T) LRP, localisation, FP and FN error of the detections that reach each threshold."""
    num_kept = np.searchsorted(-curve.scores, -thresholds, side="right")
    num_gt = curve.tp[0] + curve.fn[0]
    none_kept = (0, 0, num_gt, 0.0)
    columns = (curve.tp, curve.fp, curve.fn, curve.loc_sum)
    tp, fp, fn, loc_sum = (
        np.concatenate([[first], column])[num_kept] for first, column in zip(none_kept, columns)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is kept or nothing is right
        lrp = (loc_sum / (1 - tau) + fp + fn) / (tp + fp + fn)
        return np.stack([lrp, loc_sum / tp, fp / (tp + fp), fn / (tp + fn)])


def _thresholds(curves: Sequence[Curve]) -> np.ndarray:
    """Of one class all that matter, of several a fine grid, ascending."""
    if len(curves) == 1:
        return np.unique(curves[0].scores)
    scores = np.concatenate([curve.scores for curve in curves])
    return np.linspace(scores.min(), scores.max(), _NUM_THRESHOLDS)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(0) / defined.sum(0)


def _precision_recall(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's 101 recalls and the mean of the best precision at each recall or a higher one."""
    rows = []
    for curve in curves:
        recall = curve.tp / (curve.tp[0] + curve.fn[0])
        precision = curve.tp / np.maximum(1, curve.tp + curve.fp)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        rows.append(np.append(best, 0.0)[np.searchsorted(recall, _RECALLS)])
    return _RECALLS, np.mean(rows, axis=0)
