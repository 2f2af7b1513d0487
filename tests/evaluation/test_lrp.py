"""LRP numbers of given matches: hand-computed, golden, and laws."""

import doctest
import numpy as np
import os
import subprocess
import sys
from numpy.testing import assert_allclose, assert_array_equal
from pathlib import Path
import hypothesis.strategies as st
import pytest
from hypothesis import given

import alrp.errors
import alrp.evaluation.lrp as lrp_module
from alrp.evaluation.lrp import (
    MeanLRP,
    OptimalLRP,
    lrp_curve,
    lrp_error,
    mean_optimal_lrp,
    optimal_lrp,
)

NAN = float("nan")
# IoU 0.78 (right), none, 0.92 (right), none, in the order of the scores; there are 3 ground truths.
HAND = dict(scores=[0.9, 0.8, 0.7, 0.3], matched_ious=[0.78, NAN, 0.92, NAN], ignored=None)


@st.composite
def detections(draw, max_size=30):
    """Matches of one class; scores from a small grid, so that ties are common."""
    size = draw(st.integers(0, max_size))
    kinds = draw(st.lists(st.sampled_from("tfi"), min_size=size, max_size=size))
    scores = draw(st.lists(st.integers(1, 20), min_size=size, max_size=size))
    ious = draw(st.lists(st.floats(0.5, 1.0), min_size=size, max_size=size))
    extra_gt = draw(st.integers(0, 5))
    return dict(
        scores=[score / 20 for score in scores],
        matched_ious=[iou if kind == "t" else NAN for kind, iou in zip(kinds, ious)],
        ignored=[kind == "i" for kind in kinds],
        num_gt=kinds.count("t") + extra_gt,
    )


def prefix_search(scores, matched_ious, ignored, num_gt, tau):
    """Optimum by plain counting over prefixes of a stable sort, rule by rule."""
    ranked = sorted(zip(scores, matched_ious, ignored), key=lambda row: -row[0])
    best = float("inf")
    for length in range(1, len(ranked) + 1):
        kept = [row for row in ranked[:length] if not row[2]]
        errors = [1 - iou for _, iou, _ in kept if iou == iou]
        wrong, missed = len(kept) - len(errors), num_gt - len(errors)
        value = (sum(errors) / (1 - tau) + wrong + missed) / (len(errors) + wrong + missed)
        best = min(best, value)
    return best


def test_lrp_of_two_hits_one_false_alarm_and_one_miss_is_065():
    error = lrp_error([0.78, 0.92], num_fp=1, num_fn=1)
    assert_allclose(error, (0.65, 0.15, 1 / 3, 1 / 3), atol=1e-12)


def test_lrp_of_nothing_to_find_and_nothing_found_is_undefined():
    assert_array_equal(lrp_error([], 0, 0), [NAN] * 4)


def test_lrp_without_true_positive_is_one_and_its_location_error_undefined():
    assert_array_equal(lrp_error([], 2, 3), [1.0, NAN, 1.0, 1.0])


def test_curve_of_the_hand_computed_case():
    curve = lrp_curve(**HAND, num_gt=3)
    assert_array_equal(curve.tp, [1, 1, 2, 2])
    assert_array_equal(curve.fp, [0, 1, 1, 2])
    assert_array_equal(curve.fn, [2, 2, 1, 1])
    assert_allclose(curve.loc_sum, [0.22, 0.22, 0.30, 0.30], atol=1e-12)
    assert_allclose(curve.lrp, [2.44 / 3, 0.86, 0.65, 0.72], atol=1e-12)


def test_optimum_of_the_hand_computed_case():
    best = optimal_lrp(**HAND, num_gt=3)
    assert_allclose(best, (0.65, 0.15, 1 / 3, 1 / 3, 0.7, 3), atol=1e-12)


def test_localisation_component_is_not_divided_by_one_minus_tau():
    best = optimal_lrp([0.9], [0.9], None, 1, tau=0.8)
    assert_allclose((best.olrp, best.loc), (0.5, 0.1), atol=1e-12)


def test_golden_curves_and_their_optimum_are_reproduced(lrp_case):
    assert lrp_case.curves
    for golden in lrp_case.curves:
        tp, fp = np.diff(golden["tp"], prepend=0), np.diff(golden["fp"], prepend=0)
        ious = np.where(tp == 1, 1 - np.diff(golden["one_minus_iou_sum"], prepend=0), NAN)
        ignored = (tp == 0) & (fp == 0)
        arguments = (golden["score"], ious, ignored, golden["num_ground_truths"])
        curve = lrp_curve(*arguments)
        for field in ("tp", "fp", "fn"):
            assert_array_equal(getattr(curve, field), golden[field])
        assert_allclose(curve.loc_sum, golden["one_minus_iou_sum"], rtol=0, atol=1e-12)
        assert_allclose(curve.lrp, golden["lrp"], rtol=0, atol=1e-12)
        best = optimal_lrp(*arguments)
        assert best.threshold == golden["score"][golden["argmin"]]
        assert_allclose(best.olrp, golden["lrp"][golden["argmin"]], rtol=0, atol=1e-12)


def test_class_without_ground_truth_is_absent_whatever_was_detected():
    best = optimal_lrp([0.9], [NAN], None, 0)
    assert best.absent
    assert_array_equal(best[:5], [NAN] * 5)


@pytest.mark.parametrize("scores", [[], [0.9, 0.2]], ids=["no detection", "false positives only"])
def test_class_never_found_has_olrp_and_misses_one_and_the_rest_undefined(scores):
    best = optimal_lrp(scores, [NAN] * len(scores), None, 4)
    assert not best.absent
    assert_array_equal(best, [1.0, NAN, NAN, 1.0, NAN, 4])


@pytest.mark.parametrize(
    "ignored, fp", [([False, False], 1.0), ([True, False], NAN)], ids=["wrong", "ignored"]
)
def test_flat_curve_selects_its_first_rank(ignored, fp):
    # The only match has IoU tau, so every prefix has LRP 1.
    best = optimal_lrp([0.9, 0.8], [NAN, 0.5], ignored, 2)
    assert_array_equal(best, [1.0, NAN, fp, 1.0, 0.9, 2])


def test_first_of_equal_minima_wins():
    # LRP is (0 + 0 + 1) / 2 after rank 1 and (0 + 2 + 0) / 4 after rank 4.
    best = optimal_lrp([0.9, 0.8, 0.7, 0.6], [1.0, NAN, NAN, 1.0], None, 2)
    assert_array_equal(best, [0.5, 0.0, 0.0, 0.5, 0.9, 2])


def test_every_position_among_equal_scores_is_a_candidate():
    found_first = optimal_lrp([0.5, 0.5], [1.0, NAN], None, 1)
    found_last = optimal_lrp([0.5, 0.5], [NAN, 1.0], None, 1)
    assert (found_first.olrp, found_last.olrp) == (0.0, 0.5)


def test_means_run_over_the_classes_that_define_a_value():
    results = [
        OptimalLRP(0.4, 0.1, 0.2, 0.3, 0.5, 7),
        OptimalLRP(1.0, NAN, NAN, 1.0, NAN, 2),
        OptimalLRP(NAN, NAN, NAN, NAN, NAN, 0),
    ]
    assert_allclose(mean_optimal_lrp(results), (0.7, 0.1, 0.2, 0.65), atol=1e-12)


def test_mean_over_absent_classes_is_undefined():
    absent = OptimalLRP(NAN, NAN, NAN, NAN, NAN, 0)
    assert_array_equal(mean_optimal_lrp([absent]), MeanLRP(NAN, NAN, NAN, NAN))
    assert_array_equal(mean_optimal_lrp([]), [NAN] * 4)


@given(detections(), st.sampled_from([0.1, 0.3, 0.5]))
def test_optimum_equals_a_plain_count_over_prefixes(case, tau):
    best = optimal_lrp(**case, tau=tau)
    if best.absent:
        assert case["num_gt"] == 0
    elif np.isnan(case["matched_ious"]).all():
        assert best.olrp == 1.0 and np.isnan(best.threshold)
    else:
        expected = prefix_search(**case, tau=tau)
        assert_allclose(best.olrp, expected, rtol=1e-12, atol=1e-12)


@given(detections())
def test_values_stay_between_zero_and_one(case):
    best = optimal_lrp(**case)
    values = np.array(best[:4])
    values = values[~np.isnan(values)]
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    assert best.absent or not np.isnan(best.olrp)


@given(detections())
def test_a_false_positive_below_all_others_changes_nothing(case):
    longer = dict(
        scores=[*case["scores"], 0.0],
        matched_ious=[*case["matched_ious"], NAN],
        ignored=[*case["ignored"], False],
        num_gt=case["num_gt"],
    )
    assert_array_equal(optimal_lrp(**longer), optimal_lrp(**case))


@given(detections())
def test_a_false_positive_above_all_others_never_helps(case):
    longer = dict(
        scores=[2.0, *case["scores"]],
        matched_ious=[NAN, *case["matched_ious"]],
        ignored=[False, *case["ignored"]],
        num_gt=case["num_gt"],
    )
    before, after = optimal_lrp(**case), optimal_lrp(**longer)
    assert after.absent or after.olrp >= before.olrp - 1e-12


@given(detections())
def test_ignored_detections_do_not_change_the_optimum(case):
    keep = ~np.array(case["ignored"], dtype=bool)
    without = optimal_lrp(
        np.array(case["scores"])[keep],
        np.array(case["matched_ious"])[keep],
        None,
        case["num_gt"],
    )
    assert_allclose(optimal_lrp(**case).olrp, without.olrp, rtol=0, atol=1e-12)


@given(detections())
def test_only_the_order_of_scores_matters(case):
    mapped = {**case, "scores": [np.exp(7 * score) - 100 for score in case["scores"]]}
    assert_array_equal(optimal_lrp(**mapped)[:4], optimal_lrp(**case)[:4])


@given(st.integers(1, 20))
def test_perfect_detections_have_no_error(num_gt):
    best = optimal_lrp(np.linspace(0.9, 0.1, num_gt), np.ones(num_gt), None, num_gt)
    assert best[:4] == (0.0, 0.0, 0.0, 0.0)


@given(detections())
def test_one_more_missed_ground_truth_never_helps(case):
    before = optimal_lrp(**case)
    after = optimal_lrp(**{**case, "num_gt": case["num_gt"] + 1})
    assert before.absent or after.olrp >= before.olrp - 1e-12


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(scores=[0.9]), "have 1, 4 and 1 elements; pass one of each"),
        (dict(scores=[[0.9, 0.8, 0.7, 0.3]]), r"one dimension, got shape \(1, 4\)"),
        (dict(scores=[0.9, NAN, 0.7, 0.3]), "NaN or Inf"),
        (dict(matched_ious=[0.4, NAN, NAN, NAN]), r"lie in \[tau, 1\]"),
        (dict(matched_ious=[1.2, NAN, NAN, NAN]), r"lie in \[tau, 1\]"),
        (dict(num_gt=1), "num_gt is 1 with 2 true positives"),
        (dict(num_gt=-1), "num_gt is -1"),
        (dict(tau=1.0), "strictly between 0 and 1"),
    ],
)
def test_inconsistent_matches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        optimal_lrp(**{**HAND, "num_gt": 3, **change})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([NAN], 0, 0), "holds NaN"),
        (([0.3], 0, 0), r"lie in \[tau, 1\]"),
        (([], -1, 0), "must be >= 0"),
    ],
)
def test_lrp_error_refuses_values_outside_their_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        lrp_error(*arguments)


def test_documented_examples_hold():
    assert doctest.testmod(lrp_module).failed == 0
    assert doctest.testmod(lrp_module).attempted > 0


def test_core_needs_numpy_only_and_matching_no_deep_learning_framework():
    code = """
import sys
class Block:
    blocked = {"detectron2", "torch", "pycocotools"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.blocked:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from alrp.evaluation import optimal_lrp
from alrp.evaluation.lrp import lrp_error
Block.blocked = {"detectron2", "torch"}
from alrp.evaluation import evaluate_lrp, lrp_summary
try:
    from alrp.evaluation import LRPEvaluator
except ImportError as error:
    assert "detectron2 is blocked" in str(error), error
else:
    raise AssertionError("the evaluator came without Detectron2")
"""
    paths = [str(Path(alrp.errors.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
