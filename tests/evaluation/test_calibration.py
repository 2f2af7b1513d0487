"""Scores as shares of detections that are right: the fit, its error, and a summary of classes."""

from __future__ import annotations

import math
import numpy as np
import pytest

from alrp.evaluation import Calibration, OptimalLRP, calibration_error, fit_calibration
from alrp.evaluation.calibration import calibration_summary
from alrp.evaluation.coco_matching import ClassMatches, ImageMatches


def isotonic(scores, is_right):
    """The isotonic regression at each score by its closed form, the max of the min of means."""
    values = np.unique(scores)
    means = [
        [is_right[(scores >= a) & (scores <= b)].mean() if a <= b else math.inf for b in values]
        for a in values
    ]
    return {
        v: max(min(means[i][k] for k in range(j, len(values))) for i in range(j + 1))
        for j, v in enumerate(values)
    }


@pytest.mark.parametrize("levels", [5, 1000])
def test_the_fit_is_the_isotonic_regression(rng, levels):
    for number in (1, 2, 3, 40):
        scores = rng.integers(0, levels, number) / levels
        is_right = rng.random(number) < scores
        expected = isotonic(scores, is_right)
        fit = fit_calibration(scores, is_right)
        assert fit(np.array(list(expected))) == pytest.approx(list(expected.values()))
        assert (np.diff(fit.shares) > 0).all() and (np.diff(fit.least_scores) > 0).all()


def test_steps_hold_from_their_score_on_and_the_first_below_it():
    fit = Calibration(np.array([0.25, 0.5]), np.array([0.1, 0.9]))
    assert fit(np.array([0.0, 0.25, 0.4999, 0.5, 1.0])).tolist() == [0.1, 0.1, 0.1, 0.9, 0.9]
    nothing = fit_calibration([], [])
    assert nothing(np.array([0.3])).tolist() == [0.3]


def test_the_error_by_hand():
    # Bins [0, 0.04) and [0.88, 0.92): |0.9 - 1/2| of two, |0.02 - 0| of two detections.
    error = calibration_error([0.9, 0.9, 0.02, 0.02], [True, False, False, False])
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.02)
    assert calibration_error([1.0], [True]) == 0.0
    assert calibration_error([-3.0, 5.0], [False, True]) == 3.5  # logits, of which nothing is asked
    assert math.isnan(calibration_error([], []))


def test_what_a_calibration_was_fitted_to_has_no_error(rng):
    scores = rng.random(300)
    is_right = rng.random(300) < scores**3
    assert calibration_error(scores, is_right) > 0.1
    fit = fit_calibration(scores, is_right)
    assert calibration_error(fit(scores), is_right) == pytest.approx(0.0, abs=1e-12)


def class_matches(scores, is_right, images, ignored=()):
    ious = np.where(is_right, 0.75, np.nan)
    flags = np.isin(np.arange(len(scores)), ignored)
    match = ClassMatches(np.array(scores), ious, flags, 2)
    return ImageMatches(match, np.array(images), np.array([1, 1]))


def test_the_error_with_a_calibration_is_of_images_that_it_was_not_fitted_to():
    # On image 0 each detection is right, on image 1 none.
    matches = {
        "cat": class_matches([0.8, 0.7, 0.8, 0.7], [True, True, False, False], [0, 0, 1, 1]),
        "dog": class_matches([], [], []),
        "emu": class_matches([0.5, 0.5], [True, False], [0, 1], ignored=[0, 1]),
    }
    undefined = OptimalLRP(1.0, math.nan, math.nan, 1.0, math.nan, 2)
    per_class = {"cat": OptimalLRP(0.5, 0.1, 0.1, 0.1, 0.75, 2), "dog": undefined, "emu": undefined}
    summary = calibration_summary(matches, per_class)
    assert summary["per_class"] == {"cat": {"scores": [0.7], "shares": [0.5]}}
    assert summary["error"] == pytest.approx(30.0)  # of the two from 0.75 on
    assert summary["error_calibrated"] == 100.0  # by the other image, 0 for the right one, else 1
    of_one = {"cat": class_matches([0.8, 0.8], [True, True], [0, 1])}
    assert calibration_summary(of_one, per_class)["error_calibrated"] == 0.0
    assert math.isnan(calibration_summary({}, {})["error"])


@pytest.mark.parametrize("scores", [[80.0, 70.0], [0.5, -0.5]])
def test_scores_that_are_no_shares_have_a_calibration_but_no_error(scores):
    matches = {"cat": class_matches(scores, [True, False], [0, 1])}
    best = {"cat": OptimalLRP(0.5, 0.1, 0.1, 0.1, scores[0], 2)}
    summary = calibration_summary(matches, best)
    assert math.isnan(summary["error"]) and math.isnan(summary["error_calibrated"])
    assert summary["per_class"]["cat"]["shares"] == [0.0, 1.0]
