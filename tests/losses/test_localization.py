"""localization_error: (1 - GIoU) / (2 (1 - tau)) of matched boxes."""

from __future__ import annotations

import pytest
import torch
from helpers.reference import localization_error_reference
from torch.testing import assert_close

from alrp.losses import localization_error


def random_boxes(count, generator, dtype=torch.float64, scale=1.0):
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    sides = 0.2 + torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return (scale * torch.cat([corners, corners + sides], dim=1)).to(dtype)


# Boxes one can check by hand; in pixels of hundreds, so that eps does not show.
HAND_WORKED = {
    # IoU 1, nothing wasted in the enclosure
    "identical": ([0, 0, 200, 200], 0.0),
    # inter 1, union 7, enclosure 9: GIoU 1/7 - 2/9 = -5/63
    "overlapping_corner": ([100, 100, 300, 300], (1 + 5 / 63) / 2),
    # inter 0, union 8, enclosure 8: GIoU 0
    "touching": ([200, 0, 400, 200], 1 / 2),
    # inter 0, union 8, enclosure 2 x 10: GIoU -12/20
    "far_apart": ([800, 0, 1000, 200], (1 + 12 / 20) / 2),
    # inter 1, union 4, enclosure 4: GIoU 1/4
    "inside": ([0, 0, 100, 100], (1 - 1 / 4) / 2),
}


@pytest.mark.parametrize("case", HAND_WORKED)
@pytest.mark.parametrize("tau", [0.0, 0.5, 0.7])
def test_hand_worked_boxes(case, tau, device):
    box, half = HAND_WORKED[case]
    pred = torch.tensor([box], dtype=torch.float32, device=device)
    gt = torch.tensor([[0.0, 0, 200, 200]], device=device)
    actual = localization_error(pred, gt, tau=tau).cpu()
    assert_close(actual, torch.tensor([half / (1 - tau)]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize("tau", [0.5, 0.7])
def test_equals_the_oracle_with_eps_in_union_and_enclosure(generator, scale, tau):
    """At scale 1e-3 areas are near eps, so its place in the formula decides the value."""
    pred, gt = (random_boxes(64, generator, scale=scale) for _ in range(2))
    actual = localization_error(pred, gt, tau=tau)
    expected = torch.from_numpy(localization_error_reference(pred, gt, tau))
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_default_tau_is_one_half():
    pred, gt = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 1, 2]])
    assert_close(localization_error(pred, gt), localization_error(pred, gt, tau=0.5))


def test_errors_lie_between_zero_and_one_over_one_minus_tau(generator):
    pred, gt = random_boxes(500, generator), random_boxes(500, generator)
    pred[::3] += 100  # far away: GIoU near -1
    for tau in (0.0, 0.5, 0.9):
        errors = localization_error(pred, gt, tau=tau)
        assert errors.min() >= 0 and errors.max() <= 1 / (1 - tau)
    assert errors.max() > 0.99 / (1 - tau)


def test_moving_and_stretching_an_axis_changes_nothing(generator):
    pred, gt = (random_boxes(64, generator, scale=100) for _ in range(2))
    stretch = torch.tensor([3.0, 0.5, 3.0, 0.5]).double()
    shift = torch.tensor([40.0, -7.0, 40.0, -7.0]).double()
    moved = localization_error(pred * stretch + shift, gt * stretch + shift)
    assert_close(moved, localization_error(pred, gt), rtol=0, atol=1e-8)


@pytest.mark.parametrize("tau", [0.5, 0.7])
def test_gradcheck_in_both_boxes(generator, tau):
    """Random corners are nowhere equal, hence away from the kinks of min and max."""
    pred = random_boxes(12, generator).requires_grad_()
    gt = random_boxes(12, generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, g: localization_error(p, g, tau=tau), (pred, gt))


def test_disjoint_boxes_still_attract():
    pred = torch.tensor([[500.0, 0, 600, 100]], requires_grad=True)
    localization_error(pred, torch.tensor([[0.0, 0, 100, 100]])).sum().backward()
    assert pred.grad[0, 0] + pred.grad[0, 2] > 0  # moving the box left lowers the error


def test_no_boxes_give_no_errors_and_a_graph():
    pred = torch.zeros(0, 4, requires_grad=True)
    errors = localization_error(pred, torch.zeros(0, 4))
    assert errors.shape == (0,)
    errors.sum().backward()
    assert pred.grad is not None and pred.grad.shape == (0, 4)


@pytest.mark.parametrize("side", [0.0, 1e-6])
def test_empty_boxes_give_finite_errors_and_gradients(side):
    pred = torch.tensor([[5.0, 5, 5 + side, 5 + side]], requires_grad=True)
    for gt in ([5.0, 5, 5 + side, 5 + side], [0.0, 0, 10, 10]):
        errors = localization_error(pred, torch.tensor([gt]))
        (grad,) = torch.autograd.grad(errors.sum(), pred)
        assert errors.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_boxes_are_compared_in_full_precision(generator, dtype):
    pred, gt = (random_boxes(32, generator, dtype, scale=300) for _ in range(2))
    pred.requires_grad_()
    errors = localization_error(pred, gt)  # areas of 90 000 do not fit float16
    errors.sum().backward()
    expected = torch.from_numpy(localization_error_reference(pred.detach().double(), gt.double()))
    assert_close(errors.double(), expected, rtol=1e-5, atol=1e-5)
    assert pred.grad.dtype == dtype and pred.grad.isfinite().all()


def test_autocast_changes_nothing(generator):
    pred, gt = (random_boxes(32, generator, torch.float32, scale=300) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = localization_error(pred, gt)
    assert_close(errors, localization_error(pred, gt), rtol=0, atol=0)


def test_non_contiguous_boxes_equal_contiguous_ones(generator):
    pred, gt = (random_boxes(8, generator) for _ in range(2))
    spread = torch.stack([pred, gt], dim=2)
    assert_close(localization_error(spread[..., 0], spread[..., 1]), localization_error(pred, gt))


@pytest.mark.parametrize(
    "pred, gt", [((3, 4), (2, 4)), ((3, 5), (3, 5)), ((4,), (4,)), ((1, 4), (3, 4))], ids=str
)
def test_unmatched_shapes_are_refused(pred, gt):
    with pytest.raises(ValueError, match=r"\(P, 4\).*pairs"):
        localization_error(torch.zeros(pred), torch.zeros(gt))


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.2, 0.8], [0.5, 0.5, 0.8, 0.2]])
def test_ground_truth_with_crossed_corners_is_refused(box):
    gt = torch.tensor([[0.0, 0, 1, 1], box])
    with pytest.raises(ValueError, match=r"row 1 is \[0.5, 0.5, 0.[28].*centre and size\?"):
        localization_error(gt + 0.01, gt)


@pytest.mark.cuda
def test_ground_truth_with_crossed_corners_gives_nan_without_waiting_for_a_gpu():
    gt = torch.tensor([[0.0, 0, 1, 1], [0.5, 0.5, 0.2, 0.3]], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        errors = localization_error(gt + 0.01, gt)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert errors.isnan().tolist() == [False, True]


def test_predicted_boxes_may_have_crossed_corners(generator):
    pred = random_boxes(8, generator)[:, [2, 1, 0, 3]].requires_grad_()
    errors = localization_error(pred, random_boxes(8, generator))
    errors.sum().backward()
    assert (errors >= 0.5).all() and pred.grad.isfinite().all() and pred.grad.any()


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
def test_eps_must_be_a_number_at_least_zero(eps):
    with pytest.raises(ValueError, match=f"eps .* but is {eps};"):
        localization_error(torch.zeros(1, 4), torch.zeros(1, 4), eps=eps)


@pytest.mark.parametrize("tau", [1.0, 1.5, -0.1, float("nan")])
def test_tau_outside_the_half_open_unit_interval_is_refused(tau):
    with pytest.raises(ValueError, match=f"tau.*{tau}"):
        localization_error(torch.zeros(1, 4), torch.zeros(1, 4), tau=tau)
