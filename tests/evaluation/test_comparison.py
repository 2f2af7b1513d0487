"""Two detectors side by side: numbers against one sample after the other, and intervals."""

import numpy as np
from numpy.testing import assert_allclose
import pytest

from alrp.evaluation.coco_matching import ClassMatches, ImageMatches
from alrp.evaluation.comparison import _sampled_optima, compare_lrp, comparison_table
from alrp.evaluation.lrp import optimal_lrp
from alrp.evaluation.report import METRICS

NUM_IMAGES = 12


def random_matches(rng, num=40, share=0.5):
    """Of a class with one or two objects in every image; a share of the detections is right."""
    images = rng.integers(NUM_IMAGES, size=num)
    num_gt = rng.integers(1, 3, size=NUM_IMAGES)
    left, ious = num_gt.copy(), np.full(num, np.nan)
    for i in rng.permutation(num)[: int(share * num)]:
        if left[images[i]]:
            left[images[i]] -= 1
            ious[i] = rng.uniform(0.5, 1)
    ignored = np.isnan(ious) & (rng.random(num) < 0.1)
    matches = ClassMatches(rng.random(num), ious, ignored, int(num_gt.sum()))
    return ImageMatches(matches, images, num_gt)


def repeated(match, counts):
    """The arguments of optimal_lrp with every image as often as counted."""
    times = counts[match.images]
    columns = [np.repeat(column, times) for column in match.matches[:3]]
    return *columns, int(counts @ match.num_gt)


def test_a_sample_has_the_optimum_of_its_repeated_images(rng):
    match = random_matches(rng)
    weights = rng.multinomial(NUM_IMAGES, np.full(NUM_IMAGES, 1 / NUM_IMAGES), size=20)
    expected = [optimal_lrp(*repeated(match, counts))[:4] for counts in weights]
    assert_allclose(_sampled_optima(match, weights, 0.5), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["no detection", "no true positive", "no object"])
def test_samples_without_an_optimum_are_as_the_whole(rng, kind):
    match = random_matches(rng, num=0 if kind == "no detection" else 10, share=0)
    if kind == "no object":
        match = match._replace(
            num_gt=np.zeros(NUM_IMAGES, int), matches=match.matches._replace(num_gt=0)
        )
    weights = np.ones((3, NUM_IMAGES), int)
    assert_allclose(_sampled_optima(match, weights, 0.5), [optimal_lrp(*match.matches)[:4]] * 3)


def test_a_detector_does_not_differ_from_itself(rng):
    matches = {"a": random_matches(rng), "b": random_matches(rng)}
    for differences in compare_lrp(matches, matches, num_samples=20).values():
        assert list(differences) == list(METRICS)
        for difference in differences.values():
            assert difference.first == difference.second
            assert (difference.difference, difference.lowest, difference.highest) == (0, 0, 0)


def test_a_detector_that_finds_more_is_better_beyond_the_choice_of_images(rng):
    match = random_matches(rng, num=60, share=0.8)
    scores, ious, ignored, num_gt = match.matches
    worse = match._replace(
        matches=ClassMatches(scores, np.where(ious < 0.8, np.nan, ious), ignored, num_gt)
    )
    table = compare_lrp({"a": worse}, {"a": match}, num_samples=200)
    olrp = table["a"]["oLRP"]
    assert olrp.lowest < olrp.difference < olrp.highest < 0
    assert olrp.first == pytest.approx(100 * optimal_lrp(*worse.matches).olrp)
    assert table["mean"] == table["a"]
    lines = comparison_table(table).splitlines()
    assert lines[2].split()[:3] == ["a", f"{olrp.first:.2f}", f"{olrp.second:.2f}"]
    assert f"{olrp.difference:+.2f} [{olrp.lowest:+.2f}, {olrp.highest:+.2f}]" in lines[2]


def test_a_class_without_objects_does_not_count_in_the_mean(rng):
    match, other = random_matches(rng), random_matches(rng)
    absent = ImageMatches(match.matches._replace(num_gt=0), match.images, np.zeros(NUM_IMAGES, int))
    one = compare_lrp({"a": match}, {"a": other}, num_samples=20)
    two = compare_lrp({"a": match, "b": absent}, {"a": other, "b": absent}, num_samples=20)
    assert two["mean"] == one["mean"]
    assert all(np.isnan(two["b"]["oLRP"]))
    assert comparison_table(two).splitlines()[3].split()[:4] == ["b", "-", "-", "-"]
