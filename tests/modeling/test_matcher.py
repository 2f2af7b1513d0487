"""ATSSMatcher and MaxIoUMatcher: published figures, brute force, and the edges of both rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.largest_tensor import LargestTensor
from helpers.reference import atss_reference, max_iou_reference

from alrp.modeling import pairwise
from alrp.modeling.matcher import ATSSMatcher, MaxIoUMatcher

ATSS_ALONE = [
    "atss_assign_one_anchor_overlapping_and_tiny",
    "atss_assign_one_anchor_random",
    "atss_assign_two_anchors_random",
]
ATSS_HEADS = [
    "alrp_retina_atss_crowded",
    "alrp_retina_atss_random",
    "alrp_retina_atss_single_scale",
]
MAX_IOU_HEADS = [
    "alrp_retina_maxiou_classes80",
    "alrp_retina_maxiou_different_pad_shapes",
    "alrp_retina_maxiou_one_image_without_gt",
    "alrp_retina_maxiou_random",
    "ap_retina_random",
]
EMPTY = torch.zeros(0, 4)


def run(matcher, gt_boxes, anchors, device="cpu"):
    """(matched_idxs, labels) as int64 arrays, after a check of the contract."""
    gt_boxes = torch.as_tensor(gt_boxes, dtype=torch.float32, device=device).reshape(-1, 4)
    anchors = [torch.as_tensor(a, dtype=torch.float32, device=device) for a in anchors]
    idxs, labels = matcher(gt_boxes, anchors)
    count = sum(len(level) for level in anchors)
    assert idxs.shape == labels.shape == (count,)
    assert idxs.dtype == torch.int64 and labels.dtype == torch.int8
    assert idxs.device == labels.device == gt_boxes.device
    assert count == 0 or (idxs.min() >= 0 and idxs.max() < max(1, len(gt_boxes)))
    return idxs.cpu().numpy(), labels.cpu().numpy().astype(np.int64)


def published_form(idxs, labels):
    """g + 1 for a match with box g, 0 for background, -1 for ignored."""
    return np.where(labels == 1, idxs + 1, labels)


def split_levels(case):
    return np.split(case["anchors"], np.cumsum(case["num_anchors_per_level"])[:-1])


def grid_level(stride, size, sides, origin=0):
    """(size * size * len(sides), 4) squares centred on multiples of the stride, x fastest."""
    anchors = []
    for y in range(size):
        for x in range(size):
            cx, cy = origin + stride * x, origin + stride * y
            anchors += [[cx - s / 2, cy - s / 2, cx + s / 2, cy + s / 2] for s in sides]
    return np.array(anchors, np.float32)


@pytest.mark.parametrize("name", ATSS_ALONE)
def test_atss_gives_the_published_assignment(golden, name, device):
    case = golden(name)
    matcher = ATSSMatcher(topk=int(case["topk"]))
    actual = published_form(*run(matcher, case["gt_boxes"], split_levels(case), device))
    strict = case["assignment_sensitive"] == 0
    np.testing.assert_array_equal(actual[strict], case["assigned_gt_inds"][strict])


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("name", ATSS_HEADS)
def test_atss_gives_the_published_assignment_of_a_head(golden, name, image, device):
    case = golden(name)
    gt_boxes = case[f"gt_boxes_image{image}"]
    actual = published_form(*run(ATSSMatcher(topk=9), gt_boxes, split_levels(case), device))
    strict = case["assignment_sensitive"][image] == 0
    np.testing.assert_array_equal(actual[strict], case["assigned_gt_inds"][image][strict])


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("name", MAX_IOU_HEADS)
def test_max_iou_gives_the_published_assignment_of_a_head(golden, name, image, device):
    """The published head shows only the anchors inside the padded image to the assigner."""
    case = golden(name)
    valid = np.split(
        case["valid_anchor"][image] == 1, np.cumsum(case["num_anchors_per_level"])[:-1]
    )
    anchors = [level[inside] for level, inside in zip(split_levels(case), valid)]
    matcher = MaxIoUMatcher(0.5, 0.4, min_pos_iou=0.0)
    actual = published_form(*run(matcher, case[f"gt_boxes_image{image}"], anchors, device))
    inside = np.concatenate(valid)
    strict = case["assignment_sensitive"][image][inside] == 0
    expected = case["assigned_gt_inds"][image][inside]
    np.testing.assert_array_equal(actual[strict], expected[strict])


def test_atss_gives_the_published_positives_on_five_levels():
    sizes = {8: 32, 16: 16, 32: 8, 64: 4, 128: 3}
    anchors = [grid_level(stride, size, [4 * stride]) for stride, size in sizes.items()]
    gt_boxes = [[10.3, 20.7, 61.1, 72.2], [41.7, 38.9, 111.3, 99.4]]
    actual = published_form(*run(ATSSMatcher(topk=9), gt_boxes, anchors))
    of_box = {
        1: [164, 165, 196, 197, 228, 229, 1058, 1059, 1073, 1074, 1075, 1090],
        2: [1077, 1092, 1093, 1094, 1108, 1109, 1110],
    }
    expected = np.zeros(1369, np.int64)
    for number, places in of_box.items():
        expected[places] = number
    np.testing.assert_array_equal(actual, expected)


def integer_boxes(rng, count, extent, longest):
    corners = rng.integers(0, extent, (count, 2))
    return np.concatenate([corners, corners + rng.integers(1, longest, (count, 2))], 1)


def level_grids(concentric):
    """Three levels on one integer grid; concentric anchors tie in distance at every location."""
    sides = [(8, 12), (16, 24), (32, 48)] if concentric else [(16,), (32,), (64,)]
    return [grid_level(s, 64 // s, d) for s, d in zip((8, 16, 32), sides)]


@pytest.mark.parametrize("concentric", [False, True], ids=["one_anchor", "concentric"])
@pytest.mark.parametrize("seed", range(12))
def test_atss_equals_brute_force_with_exact_ties(seed, concentric):
    """Integer boxes make equal distances and equal IoUs common; the lowest index wins."""
    rng = np.random.default_rng(seed)
    anchors = level_grids(concentric)
    gt_boxes = integer_boxes(rng, 1 + seed, 48, 40)
    gt_boxes[-1] = gt_boxes[0]  # the same box twice: the first keeps every anchor
    topk = [1, 3, 9][seed % 3]
    actual = published_form(*run(ATSSMatcher(topk=topk), gt_boxes, anchors))
    lower, upper = (
        published_form(*atss_reference(gt_boxes, anchors, topk, slack)) for slack in (-1e-5, 1e-5)
    )
    decided = lower == upper  # the others lie within rounding of the threshold
    assert decided.mean() > 0.95
    np.testing.assert_array_equal(actual[decided], lower[decided])


@pytest.mark.parametrize("topk", [3, 9])
def test_atss_equals_brute_force_in_a_crowd_on_large_levels(topk, rng):
    """Levels of several thousand anchors are searched in two rounds."""
    anchors = [grid_level(4, 48, (8, 12)), grid_level(8, 24, (16, 24)), grid_level(64, 3, (128,))]
    gt_boxes = integer_boxes(rng, 25, 180, 40)
    actual = published_form(*run(ATSSMatcher(topk=topk), gt_boxes, anchors))
    lower, upper = (
        published_form(*atss_reference(gt_boxes, anchors, topk, slack)) for slack in (-1e-5, 1e-5)
    )
    decided = lower == upper
    assert decided.mean() > 0.99 and (actual > 0).sum() > 20
    np.testing.assert_array_equal(actual[decided], lower[decided])


@pytest.mark.parametrize(
    "thresholds", [(0.5, 0.4, 0.0), (0.5, 0.5, 0.0), (0.7, 0.3, 0.3), (0.5, 0.4, 2.0)], ids=str
)
@pytest.mark.parametrize("seed", range(6))
def test_max_iou_equals_brute_force_with_exact_ties(seed, thresholds):
    """Integer corners: IoUs are exactly rounded quotients, so float32 ties where float64 does."""
    pos, neg, min_pos_iou = thresholds
    rng = np.random.default_rng(seed)
    anchors = level_grids(concentric=True)
    gt_boxes = integer_boxes(rng, 2 + 2 * seed, 48, 40)
    gt_boxes[-1] = gt_boxes[0]
    matcher = MaxIoUMatcher(pos, neg, min_pos_iou)
    idxs, labels = run(matcher, gt_boxes, anchors)
    every = np.concatenate(anchors)
    expected = max_iou_reference(gt_boxes, every, pos, neg, min_pos_iou)
    np.testing.assert_array_equal(labels, expected[1])
    np.testing.assert_array_equal(idxs[labels == 1], expected[0][labels == 1])


@pytest.mark.parametrize("matcher", [ATSSMatcher(topk=9), MaxIoUMatcher()], ids=["atss", "max_iou"])
class TestBoth:
    def test_without_boxes_every_anchor_is_negative(self, matcher, device):
        idxs, labels = run(matcher, EMPTY, level_grids(concentric=True), device)
        assert not idxs.any() and not labels.any()

    def test_two_runs_agree(self, matcher, rng, device):
        gt_boxes, anchors = integer_boxes(rng, 20, 48, 40), level_grids(concentric=True)
        first = run(matcher, gt_boxes, anchors, device)
        np.testing.assert_array_equal(run(matcher, gt_boxes, anchors, device), first)

    @pytest.mark.parametrize("block", [1, 3000])
    def test_the_result_does_not_depend_on_the_block(self, matcher, block, rng, monkeypatch):
        gt_boxes = integer_boxes(rng, 40, 180, 40)
        anchors = [grid_level(4, 48, (8, 12)), grid_level(16, 12, (32, 48))]
        expected = run(matcher, gt_boxes, anchors)
        monkeypatch.setattr(pairwise, "BLOCK", block)
        np.testing.assert_array_equal(run(matcher, gt_boxes, anchors), expected)

    @pytest.mark.parametrize("block", [1, 10000])
    def test_no_tensor_holds_more_than_a_block_of_pairs(self, matcher, block, rng, monkeypatch):
        monkeypatch.setattr(pairwise, "BLOCK", block)
        gt_boxes = torch.from_numpy(integer_boxes(rng, 60, 180, 40)).float()
        anchors = [torch.from_numpy(grid_level(4, 48, (8, 12)))]
        with LargestTensor() as largest:
            matcher(gt_boxes, anchors)
        assert largest.numel <= max(block, anchors[0].numel()) < 60 * len(anchors[0]) / 4

    def test_an_empty_level_changes_nothing(self, matcher, rng):
        gt_boxes, anchors = integer_boxes(rng, 20, 48, 40), level_grids(concentric=True)
        anchors.insert(1, np.zeros((0, 4), np.float32))
        expected = run(matcher, gt_boxes, [level for level in anchors if len(level)])
        np.testing.assert_array_equal(run(matcher, gt_boxes, anchors), expected)

    @pytest.mark.cuda
    def test_a_gpu_is_never_waited_for(self, matcher, rng):
        gt_boxes = torch.from_numpy(integer_boxes(rng, 40, 180, 40)).float().cuda()
        anchors = [torch.from_numpy(grid_level(4, 48, (8, 12))).cuda()]
        matcher(gt_boxes, anchors)
        torch.cuda.set_sync_debug_mode("error")
        try:
            matcher(gt_boxes, anchors)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_no_graph_is_built(self, matcher):
        anchors = [torch.from_numpy(level).requires_grad_() for level in level_grids(False)]
        idxs, labels = matcher(torch.tensor([[4.0, 4, 30, 30]], requires_grad=True), anchors)
        assert not idxs.requires_grad and not labels.requires_grad


def test_atss_leaves_unmatched_indices_at_zero(rng):
    idxs, labels = run(ATSSMatcher(topk=9), integer_boxes(rng, 5, 48, 40), level_grids(True))
    assert labels.any() and not idxs[labels == 0].any() and set(labels) <= {0, 1}


def test_atss_takes_all_anchors_of_a_level_with_fewer_than_topk():
    anchors = [grid_level(8, 4, [16]), grid_level(16, 2, [32]), grid_level(32, 1, [64], 16)]
    gt_boxes = [[3, 5, 27, 30]]
    for topk in (9, 100):
        actual = published_form(*run(ATSSMatcher(topk=topk), gt_boxes, anchors))
        expected = published_form(*atss_reference(gt_boxes, anchors, topk))
        np.testing.assert_array_equal(actual, expected)


def test_atss_matches_a_single_anchor():
    """The standard deviation of one candidate is no number and must not hide the match."""
    _, labels = run(ATSSMatcher(topk=9), [[0, 0, 10, 10]], [[[1, 1, 9, 9]]])
    np.testing.assert_array_equal(labels, [1])


@pytest.mark.parametrize("left, label", [(8.5, 0), (8, 0), (7.995, 0), (7.98, 1)], ids=str)
def test_atss_needs_the_centre_more_than_a_hundredth_pixel_inside_the_box(left, label):
    # One candidate always reaches its own mean IoU; the centre of the anchor is (8, 8).
    _, labels = run(ATSSMatcher(topk=1), [[left, 0, 24, 16]], [[[0, 0, 16, 16]]])
    np.testing.assert_array_equal(labels, [label])


def test_atss_gives_a_contested_anchor_to_the_box_of_higher_iou():
    # Five candidates far away keep the threshold, mean + std, below the IoU of the first.
    anchors = [[[0, 0, 16, 16]] + [[40, 40, 44, 44]] * 5]
    for gt_boxes, winner in (
        ([[0, 0, 16, 12], [0, 0, 16, 15]], 1),
        ([[0, 0, 16, 15], [0, 0, 16, 12]], 0),
        ([[0, 1, 16, 16], [0, 0, 16, 15]], 0),  # equal IoU: the lower index
    ):
        idxs, labels = run(ATSSMatcher(topk=9), gt_boxes, anchors)
        np.testing.assert_array_equal(labels, [1, 0, 0, 0, 0, 0])
        assert idxs[0] == winner


def column(width):
    """A box inside the anchor [0, 0, 20, 20]; their IoU is ``width`` / 20."""
    return [0, 0, width, 20]


@pytest.mark.parametrize(
    "width, label", [(7, 0), (8, -1), (9, -1), (10, 1), (20, 1)], ids=lambda v: str(v)
)
def test_max_iou_thresholds_are_inclusive_upwards(width, label):
    matcher = MaxIoUMatcher(0.5, 0.4, min_pos_iou=2.0)
    _, labels = run(matcher, [column(width)], [[[0, 0, 20, 20]]])
    np.testing.assert_array_equal(labels, [label])


def test_a_low_quality_match_overwrites_the_better_box():
    """Box 1 has no better anchor, so it takes the one that fits box 0 exactly."""
    anchors = [[[0, 0, 20, 20], [60, 60, 80, 80]]]
    idxs, labels = run(MaxIoUMatcher(), [column(20), column(9)], anchors)
    np.testing.assert_array_equal(labels, [1, 0])
    assert idxs[0] == 1
    idxs, _ = run(MaxIoUMatcher(min_pos_iou=2.0), [column(20), column(9)], anchors)
    assert idxs[0] == 0


def test_of_two_equal_boxes_the_later_takes_the_low_quality_match():
    anchors = [[[0, 0, 20, 20], [1, 0, 21, 20]]]
    idxs, labels = run(MaxIoUMatcher(), [column(20), column(20)], anchors)
    np.testing.assert_array_equal(labels, [1, 1])
    np.testing.assert_array_equal(idxs, [1, 0])  # by best anchor, by threshold and lowest index


def test_every_anchor_of_the_best_iou_is_a_low_quality_match():
    anchors = [[[0, 0, 20, 20], [0, 0, 20, 20], [1, 0, 21, 20]]]
    _, labels = run(MaxIoUMatcher(), [column(5)], anchors)
    np.testing.assert_array_equal(labels, [1, 1, 0])


def test_low_quality_matches_need_min_pos_iou():
    for min_pos_iou, label in ((0.25, 1), (0.26, 0)):
        matcher = MaxIoUMatcher(0.7, 0.3, min_pos_iou=min_pos_iou)
        _, labels = run(matcher, [column(5)], [[[0, 0, 20, 20]]])
        np.testing.assert_array_equal(labels, [label])


def test_a_box_that_touches_no_anchor_claims_none():
    _, labels = run(MaxIoUMatcher(), [[500, 500, 510, 510]], level_grids(concentric=False))
    assert not labels.any()


@pytest.mark.parametrize("topk", [0, -1])
def test_atss_refuses_topk_below_one(topk):
    with pytest.raises(ValueError, match=f"topk.*{topk}"):
        ATSSMatcher(topk=topk)


@pytest.mark.parametrize("thresholds", [(0.4, 0.5), (1.5, 0.4), (0.5, -0.1)], ids=str)
def test_max_iou_refuses_thresholds_out_of_order(thresholds):
    with pytest.raises(ValueError, match="neg_threshold <= pos_threshold"):
        MaxIoUMatcher(*thresholds)
