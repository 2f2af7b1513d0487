"""Nearest points and IoU: equal to the plain rules, to the last bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectron2.structures import Boxes
from detectron2.structures import pairwise_iou as detectron2_pairwise_iou

from alrp.modeling.pairwise import nearest, pairwise_iou


@given(
    seed=st.integers(0, 2**32 - 1),
    num_points=st.integers(1, 1500),
    k=st.integers(1, 9),
    extent=st.sampled_from([1, 4, 20, 4000]),
)
def test_nearest_points_are_those_of_a_stable_sort(seed, num_points, k, extent):
    """Integers in any order: each square is exact, and in a small extent most distances tie."""
    rng = np.random.default_rng(seed)
    points, queries = (rng.integers(0, extent, (n, 2)) for n in (num_points, 5))
    k = min(k, num_points)
    squared = ((queries[:, None] - points) ** 2).sum(2)
    distances = np.sqrt(squared.astype(np.float32))
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    actual = nearest(torch.from_numpy(queries), torch.from_numpy(points), k)
    np.testing.assert_array_equal(actual, expected)


def test_ious_are_bit_for_bit_those_of_detectron2(generator, device):
    """Also of boxes without area, whose IoU with themselves is 0."""
    corners = torch.rand(2, 300, 2, generator=generator) * 100
    boxes = torch.cat([corners.amin(0), corners.amax(0)], dim=1).to(device)
    boxes[:5, 2:] = boxes[:5, :2]
    boxes, anchors = boxes[:40], torch.cat([boxes, boxes[:1]])
    expected = detectron2_pairwise_iou(Boxes(boxes), Boxes(anchors))
    actual = pairwise_iou(boxes, anchors.t().contiguous())
    assert actual[0, 0] == actual[0, -1] == 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
