"""Two detectors side by side, and how far other images might change their difference.

Naming: D detections of one class over N images; K classes; B bootstrap samples of the images.
"""

from __future__ import annotations

import numpy as np
from typing import Mapping, NamedTuple

from .coco_matching import ImageMatches
from .lrp import mean_optimal_lrp, optimal_lrp
from .report import METRICS, aligned

_ENDS = (2.5, 97.5)  # percentiles of the samples between which an interval lies
_CHUNK = 2**24  # numbers of a (B, D) array that are held at a time


class Difference(NamedTuple):
    """One number of two detectors, in percent (0 to 100), NaN where undefined.

    Attributes:
        first, second: of the two.
        difference: second minus first; below 0 the second is better.
        lowest, highest: ends of the 95 % bootstrap interval of the difference.
    """

    first: float
    second: float
    difference: float
    lowest: float
    highest: float


def compare_lrp(
    first: Mapping[str, ImageMatches],
    second: Mapping[str, ImageMatches],
    *,
    tau: float = 0.5,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Difference]]:
    """Differences of optimal LRP and its parts, per class and in the mean.

    Images are drawn with replacement, the same ones for both detectors, so that what makes an image
    hard for both cancels out. If an interval holds 0, other images might turn the order.

    Args:
        first, second: matches by class name, of the same ground truth.
        tau: that they were matched with.
        num_samples: B.
        seed: of the draws.

    Returns:
        dict: by class name, and for "mean", the :class:`Difference` of each of METRICS.
    """
    num_images = len(next(iter(first.values())).num_gt) if first else 0
    shares = np.full(num_images, 1 / max(1, num_images))
    weights = np.random.default_rng(seed).multinomial(num_images, shares, num_samples)
    whole, sampled = zip(*(_optima(matches, weights, tau) for matches in (first, second)))
    table = {
        name: _differences(whole[0][i], whole[1][i], sampled[1][i] - sampled[0][i])
        for i, name in enumerate(first)
    }
    before, after = (np.array(mean_optimal_lrp(values)) for values in whole)
    table["mean"] = _differences(before, after, _mean(sampled[1]) - _mean(sampled[0]))
    return table


def _optima(
    matches: Mapping[str, ImageMatches], weights: np.ndarray, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """(K, 4) optimal LRP and its parts, and (K, B, 4) the same of every sample; fractions."""
    whole = [optimal_lrp(*match.matches, tau=tau)[:4] for match in matches.values()]
    sampled = [_sampled_optima(match, weights, tau) for match in matches.values()]
    num_samples = len(weights)
    return np.array(whole).reshape(-1, 4), np.array(sampled).reshape(-1, num_samples, 4)


def _sampled_optima(match: ImageMatches, weights: np.ndarray, tau: float) -> np.ndarray:
    """(B, 4) optimal LRP and its parts of a class, as fractions, for (B, N) counts of the images.

    As :func:`optimal_lrp`, with every detection and ground truth as often as its image.
    """
    scores, ious, ignored, _ = match.matches
    order = np.argsort(-scores, kind="stable")
    ious, ignored, images = ious[order], ignored[order], match.images[order]
    is_tp, is_fp = ~np.isnan(ious) & ~ignored, np.isnan(ious) & ~ignored
    errors = np.where(is_tp, 1.0 - ious, 0.0)
    step = max(1, _CHUNK // max(1, len(order)))
    chunks = []
    for begin in range(0, len(weights), step):
        chunk = weights[begin : begin + step]
        num_gt = chunk @ match.num_gt
        counts = chunk[:, images]
        tp, fp, loc_sum = (np.cumsum(counts * x, axis=1) for x in (is_tp, is_fp, errors))
        chunks.append(_best_prefix(tp, fp, loc_sum, num_gt, tau))
    return np.concatenate(chunks)


def _best_prefix(
    tp: np.ndarray, fp: np.ndarray, loc_sum: np.ndarray, num_gt: np.ndarray, tau: float
) -> np.ndarray:
    """(B, 4) from (B, D) sums over the prefixes of the ranking and (B,) numbers of objects."""
    rows, total = np.arange(len(num_gt)), num_gt[:, None]
    result = np.full((len(num_gt), 4), np.nan)
    result[num_gt > 0] = (1.0, np.nan, np.nan, 1.0)  # without a true positive
    if tp.shape[1] == 0:
        return result
    with np.errstate(divide="ignore", invalid="ignore"):
        lrp = (loc_sum / (1.0 - tau) + fp + (total - tp)) / (total + fp)
        best = np.argmin(lrp, axis=1)
        tp, fp, loc_sum = (sums[rows, best] for sums in (tp, fp, loc_sum))
        optima = [lrp[rows, best], loc_sum / tp, fp / (tp + fp), 1.0 - tp / num_gt]
    found = (num_gt > 0) & (tp > 0)
    result[found] = np.stack(optima, axis=1)[found]
    return result


def _mean(values: np.ndarray) -> np.ndarray:
    """(B, 4) means over the classes that define a value, from (K, B, 4)."""
    defined = ~np.isnan(values)
    sums = np.where(defined, values, 0.0).sum(0)
    with np.errstate(invalid="ignore"):
        return sums / defined.sum(0)


def _differences(
    first: np.ndarray, second: np.ndarray, sampled: np.ndarray
) -> dict[str, Difference]:
    """From (4,) fractions of each detector, and (B, 4) differences of the samples."""
    result = {}
    for i, metric in enumerate(METRICS):
        defined = sampled[~np.isnan(sampled[:, i]), i]
        ends = np.percentile(defined, _ENDS) if defined.size else (np.nan, np.nan)
        values = (first[i], second[i], second[i] - first[i], *ends)
        result[metric] = Difference(*(100.0 * float(value) for value in values))
    return result


def comparison_table(table: dict[str, dict[str, Difference]]) -> str:
    """Text of :func:`compare_lrp`: a row per class, then the mean; ``-`` where undefined."""
    head = ["class", "first", "second", *(f"{m} difference [95 %]" for m in METRICS)]
    rows = [
        [name, _number(values["oLRP"].first), _number(values["oLRP"].second)]
        + [
            f"{_number(d.difference, '+')} [{_number(d.lowest, '+')}, {_number(d.highest, '+')}]"
            for d in values.values()
        ]
        for name, values in table.items()
    ]
    return aligned(head, rows)


def _number(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{value:{sign}.2f}"
