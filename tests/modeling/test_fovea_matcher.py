"""Target assignment of FoveaBox: by hand, against painting box by box, and at the edges."""

from __future__ import annotations

import math
import numpy as np
import pytest
import torch
from helpers.largest_tensor import LargestTensor
from torch.testing import assert_close

from alrp.modeling import FoveaMatcher, PointBoxTransform

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
GRIDS = ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2))  # of 256 x 256 pixels


def positives(gt_boxes, matcher=FoveaMatcher(STRIDES, RANGES), grids=GRIDS):
    """{(level, row, column): ground truth} of all positive cells."""
    matched_idxs, match_labels = matcher(torch.tensor(gt_boxes).float().reshape(-1, 4), grids)
    sizes = [height * width for height, width in grids]
    assert matched_idxs.shape == match_labels.shape == (sum(sizes),)
    assert matched_idxs.dtype == torch.int64 and match_labels.dtype == torch.int8
    assert not matched_idxs[match_labels == 0].any()
    found = {}
    pairs = zip(matched_idxs.split(sizes), match_labels.split(sizes))
    for level, ((_, width), (idxs, labels)) in enumerate(zip(grids, pairs)):
        for cell in labels.nonzero().flatten().tolist():
            found[level, cell // width, cell % width] = idxs[cell].item()
    return found


def test_two_boxes_by_hand():
    gt_boxes = [[10.3, 20.7, 61.1, 72.2], [41.7, 38.9, 111.3, 99.4]]
    expected = {(0, row, column): 0 for row in (5, 6) for column in (3, 4, 5)}
    expected.update({(1, 2, 2): 0, (1, 3, 2): 0, (1, 4, 4): 1, (1, 4, 5): 1, (2, 2, 2): 1})
    assert positives(gt_boxes) == expected

    # The cell in row 5, column 3 of the first level, whose base edge is 16.
    cell = torch.tensor([[28.0, 44.0, 28.0, 44.0]]) + torch.tensor([-8.0, -8, 8, 8])
    deltas = PointBoxTransform().get_deltas(cell, torch.tensor(gt_boxes[:1]))
    expected = torch.tensor([[0.100976, 0.375865, 0.726945, 0.566733]])
    assert_close(deltas, expected, rtol=0, atol=1e-6)


def paint(gt_boxes, grids, strides, ranges, sigma):
    """The published rule box by box, largest first, in float32."""
    painted = [np.full(grid, -1) for grid in grids]
    boxes = np.asarray(gt_boxes, dtype=np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-areas, kind="stable"):
        for level, (stride, (low, high)) in enumerate(zip(strides, ranges)):
            if not low <= np.sqrt(areas[i]) <= high:
                continue
            slices = []
            for axis in (1, 0):  # y, then x
                start, end = boxes[i, axis] / stride, boxes[i, axis + 2] / stride
                half = np.float32(0.5) * (end - start)
                first = math.ceil(start + np.float32(1 - sigma) * half - np.float32(0.5))
                last = math.floor(start + np.float32(1 + sigma) * half - np.float32(0.5))
                limit = grids[level][1 - axis] - 1
                slices.append(slice(min(max(first, 0), limit), min(max(last, 0), limit) + 1))
            painted[level][tuple(slices)] = i
    return {
        (level, row, column): int(cells[row, column])
        for level, cells in enumerate(painted)
        for row, column in zip(*np.nonzero(cells >= 0))
    }


@pytest.mark.parametrize("sigma", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("num_gt", [7, 60])
def test_as_painting_box_by_box(rng, num_gt, sigma):
    """Boxes of all sizes, over the border too, on a quarter-pixel grid with equal areas."""
    corners = np.round(rng.uniform(-20, 250, (num_gt, 2)) * 4) / 4
    sides = np.round(np.exp(rng.uniform(0, 5.5, (num_gt, 2))) * 4) / 4
    boxes = np.concatenate([corners, corners + sides], axis=1)
    boxes = np.concatenate([boxes, boxes[::2] + 8])
    matcher = FoveaMatcher(STRIDES, RANGES, sigma)
    expected = paint(boxes, GRIDS, STRIDES, RANGES, sigma)
    assert expected and positives(boxes, matcher) == expected


def test_the_smaller_of_two_overlapping_boxes_wins():
    large, small = [32.0, 32, 96, 96], [48.0, 48, 80, 80]
    for order in ([large, small], [small, large]):
        found = positives(order, grids=GRIDS)
        small_index = order.index(small)
        assert found[0, 7, 7] == small_index and set(found.values()) == {0, 1}
        # On the second level its fovea holds no centre of a cell.
        assert all(i != small_index for (level, _, _), i in found.items() if level > 0)


def test_of_equal_boxes_the_last_wins():
    found = positives([[32.0, 32, 96, 96]] * 3)
    assert found and set(found.values()) == {2}


@pytest.mark.parametrize(
    "side, levels",
    [
        (0.99, set()),
        (1, {0}),
        (16, {0}),
        (32, {0, 1}),
        (64, {0, 1, 2}),
        (128, {1, 2, 3}),
        (256, {2, 3, 4}),
        (512, {3, 4}),
        (2048, {4}),
        (2049, set()),
    ],
)
def test_a_box_is_used_on_exactly_the_levels_whose_range_holds_it_ends_included(side, levels):
    """Its fovea, here all of it, holds the centre of a cell on each of these levels."""
    box = [132 - side / 2] * 2 + [132 + side / 2] * 2
    found = positives([box], FoveaMatcher(STRIDES, RANGES, sigma=1.0))
    assert {level for level, _, _ in found} == levels


def test_a_box_smaller_than_a_cell_is_positive_only_around_a_centre():
    assert positives([[18.0, 18, 22, 22]]) == {(0, 2, 2): 0}  # around (20, 20)
    assert positives([[22.0, 22, 26, 26]]) == {}  # around the corner of four cells


def test_a_tiny_box_at_the_border_takes_the_outermost_cell():
    """Its fovea holds no centre of a cell; both of its ends are moved to the first or last one."""
    assert positives([[0.0, 0, 3, 3]]) == {(0, 0, 0): 0}
    assert positives([[253.0, 253, 256, 256]]) == {(0, 31, 31): 0}


def test_a_box_larger_than_the_image_stays_within_the_grids():
    found = positives([[-500.0, -500, 900, 900]])
    assert {level for level, _, _ in found} == {4}
    assert found == {(4, row, column): 0 for row in range(2) for column in range(2)}


@pytest.mark.parametrize("box", [[10, 10, 10.5, 10.5], [0, 0, 3000, 3000], [40, 40, 40, 90]])
def test_a_box_in_no_range_is_lost(box):
    assert positives([box]) == {}


def test_without_ground_truth_all_cells_are_negative():
    assert positives([]) == {}


def test_work_grows_with_claims_not_with_cells_times_boxes(rng):
    """Of 2000 x 1364 pairs of a box and a cell, all but the claimed ones stay out of memory."""
    corners = rng.uniform(0, 240, (2000, 2))
    boxes = torch.tensor(np.concatenate([corners, corners + 16], axis=1)).float()
    matcher = FoveaMatcher(STRIDES, RANGES)
    with LargestTensor() as largest:
        _, match_labels = matcher(boxes, GRIDS)
    assert match_labels.any()
    # A fovea of 6.4 pixels claims at most one cell; all boxes in cells of all levels are larger.
    assert largest.numel <= 4 * len(boxes) * len(STRIDES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((STRIDES, RANGES[:4]), "5 strides but 4 scale ranges"),
        ((STRIDES[:1], [(64, 1)]), r"0 <= low <= high.*\(64, 1\)"),
        ((STRIDES, RANGES, 0.0), r"sigma must be in \(0, 1\], but is 0.0"),
        ((STRIDES, RANGES, 1.5), r"sigma must be in \(0, 1\], but is 1.5"),
    ],
)
def test_options_out_of_place_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FoveaMatcher(*arguments)
