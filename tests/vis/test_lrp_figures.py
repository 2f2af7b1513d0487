"""The numbers behind the figures of LRP over the score threshold."""

import numpy as np
from numpy.testing import assert_allclose
import pytest

from alrp.evaluation import lrp_curve, lrp_error, optimal_lrp
from alrp.vis.lrp_figures import lrp_at, lrp_figure

NAN = float("nan")
ARGUMENTS = ([0.9, 0.8, 0.7, 0.3], [0.78, NAN, 0.92, NAN], None, 3)


def test_errors_at_a_threshold_are_those_of_the_detections_that_reach_it():
    at = lrp_at(lrp_curve(*ARGUMENTS), np.array([0.3, 0.7, 0.75, 0.95]), 0.5).T
    assert_allclose(at[0], lrp_error([0.78, 0.92], 2, 1))
    assert_allclose(at[1], lrp_error([0.78, 0.92], 1, 1))
    assert_allclose(at[2], lrp_error([0.78], 1, 2))
    assert_allclose(at[3], [1.0, NAN, NAN, 1.0])


def test_the_optimum_is_marked_where_the_evaluation_finds_it():
    best = optimal_lrp(*ARGUMENTS)
    left, right = lrp_figure([lrp_curve(*ARGUMENTS)], "a").axes
    (mark,) = [line for line in left.lines if line.get_label().startswith("least LRP")]
    assert mark.get_label() == f"least LRP {best.olrp:.3f} at {best.threshold:.3f}"
    assert set(mark.get_xdata()) == {best.threshold}
    recall, precision = right.lines[0].get_data()
    assert precision[0] == 1.0
    assert precision[recall <= 2 / 3][-1] == pytest.approx(2 / 3)
    assert precision[-1] == 0.0


def test_the_mean_is_over_the_classes_that_define_a_value():
    found = lrp_curve(*ARGUMENTS)
    missed = lrp_curve([0.5], [NAN], None, 2)
    left, _ = lrp_figure([found, missed], "mean").axes
    thresholds, lrp = left.lines[0].get_data()
    expected = (lrp_at(found, thresholds, 0.5) + lrp_at(missed, thresholds, 0.5))[0] / 2
    assert_allclose(lrp, expected)
    localisation = left.lines[1].get_ydata()
    assert_allclose(localisation, lrp_at(found, thresholds, 0.5)[1])
