"""FoveaBox's encoding of boxes; the anchors' encoding is tested with the heads' golden figures."""

from __future__ import annotations

import math
import pytest
import torch
from torch.testing import assert_close

from alrp.modeling import PointBoxTransform
from alrp.modeling.box_regression import decode_in_anchor_frame

TRANSFORM = PointBoxTransform()


def squares(points, base_edge):
    """Anchors (P, 4) of points (P, 2)."""
    return torch.cat([points - base_edge / 2, points + base_edge / 2], dim=1)


def test_deltas_are_logarithms_of_distances_over_the_base_edge():
    anchors = squares(torch.tensor([[20.0, 12.0]]), 16.0)
    deltas = TRANSFORM.get_deltas(anchors, torch.tensor([[4.0, 4.0, 52.0, 76.0]]))
    assert_close(deltas, torch.tensor([[16 / 16, 8 / 16, 32 / 16, 64 / 16]]).log())


@pytest.mark.parametrize("base_edge", [16.0, 48.0, 256.0])
def test_round_trip(generator, base_edge):
    points = 500 * torch.rand(50, 2, generator=generator)
    distances = base_edge * (0.07 + 15 * torch.rand(50, 4, generator=generator))
    boxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
    anchors = squares(points, base_edge)
    deltas = TRANSFORM.get_deltas(anchors, boxes)
    assert_close(TRANSFORM.apply_deltas(deltas, anchors), boxes, rtol=1e-5, atol=1e-3)


def test_targets_end_at_a_sixteenth_and_at_sixteen_base_edges():
    anchors = squares(torch.tensor([[100.0, 100.0]]), 16.0)
    # Left of it 1000 pixels, above half a pixel; its right side lies left of the point.
    gt_boxes = torch.tensor([[-900.0, 99.5, 90.0, 116.0]])
    limit = math.log(16)
    deltas = TRANSFORM.get_deltas(anchors, gt_boxes)
    assert_close(deltas, torch.tensor([[limit, -limit, -limit, 0.0]]))


def test_the_frame_of_a_cell_does_not_depend_on_its_place_and_level(generator):
    deltas = torch.randn(10, 4, generator=generator)
    points = 100 * torch.rand(10, 2, generator=generator)
    expected = torch.cat([-deltas[:, :2].exp(), deltas[:, 2:].exp()], dim=1)
    for base_edge in (16.0, 128.0):
        anchors = squares(points, base_edge)
        boxes = TRANSFORM.apply_deltas(deltas, anchors)
        assert_close((boxes - points.repeat(1, 2)) / base_edge, expected, rtol=1e-4, atol=1e-4)
        predicted, target = decode_in_anchor_frame(TRANSFORM, deltas, anchors, boxes)
        assert_close(predicted, expected)
        assert_close(target, expected.clamp(-16, 16), rtol=1e-3, atol=1e-3)


def test_exponents_are_bounded_from_above_without_gradient():
    deltas = torch.tensor([[200.0, -200.0, 9.0, float("inf")]], requires_grad=True)
    anchors = squares(torch.zeros(1, 2), 2.0)
    boxes = TRANSFORM.apply_deltas(deltas, anchors)
    largest = 2 * math.exp(10)
    assert_close(boxes, torch.tensor([[-largest, 0.0, 2 * math.exp(9), largest]]))
    boxes.sum().backward()
    assert deltas.grad[0, [0, 1, 3]].tolist() == [0, 0, 0] and deltas.grad[0, 2] > 0


def test_half_precision_is_decoded_in_float32():
    anchors = squares(torch.tensor([[1001.0, 2003.0]]), 256.0)
    boxes = TRANSFORM.apply_deltas(torch.zeros(1, 4, dtype=torch.float16), anchors)
    assert_close(boxes, torch.tensor([[745.0, 1747.0, 1257.0, 2259.0]]))


def test_nothing_is_encoded_and_decoded_to_nothing():
    deltas = torch.zeros(0, 4, requires_grad=True)
    boxes = TRANSFORM.apply_deltas(deltas, torch.zeros(0, 4))
    assert boxes.shape == TRANSFORM.get_deltas(torch.zeros(0, 4), boxes).shape == (0, 4)
    boxes.sum().backward()
    assert deltas.grad is not None
