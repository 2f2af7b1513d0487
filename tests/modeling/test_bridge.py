"""What the bridge refuses: shapes, classes, and codes that are not its own."""

from __future__ import annotations

import logging
import pytest
import torch

from alrp.modeling import ALRPHeadLosses, APHeadLosses, FocalHeadLosses, RSHeadLosses

BOX = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
every_bridge = pytest.mark.parametrize(
    "losses_class", [ALRPHeadLosses, APHeadLosses, RSHeadLosses, FocalHeadLosses]
)


def call(losses_class, *, columns=3, gt_classes=(0, 3), predicted=BOX, expected=BOX):
    logits = torch.zeros(2, columns)
    return losses_class(num_classes=3)(logits, torch.tensor(gt_classes), predicted, expected)


@every_bridge
def test_a_background_column_is_named(losses_class):
    with pytest.raises(ValueError, match=r"\(Q, 3\).*\(2, 4\); a background column has no place"):
        call(losses_class, columns=4)


@every_bridge
@pytest.mark.parametrize("columns", [1, 2, 81])
def test_another_number_of_columns_is_refused_without_that_guess(losses_class, columns):
    with pytest.raises(ValueError, match=rf"have shape \(2, {columns}\)\."):
        call(losses_class, columns=columns)


@every_bridge
@pytest.mark.parametrize("wrong", [4, 255, -2])
def test_a_class_out_of_range_is_named(losses_class, wrong):
    with pytest.raises(ValueError, match=f"0 to 2.*3 for the background.*hold {wrong}"):
        call(losses_class, gt_classes=(0, wrong))


@every_bridge
@pytest.mark.parametrize("gt_classes", [(0.0, 3.0), (0, 3, 3)])
def test_classes_are_one_integer_per_row(losses_class, gt_classes):
    with pytest.raises(ValueError, match=r"gt_classes must be \(2,\) integers"):
        call(losses_class, gt_classes=gt_classes)


@every_bridge
def test_boxes_are_pairs(losses_class):
    with pytest.raises(ValueError, match=r"both be \(P, 4\).*\(1, 4\) and \(2, 4\)"):
        call(losses_class, expected=BOX.repeat(2, 1))


@every_bridge
def test_background_coded_as_ignored_is_warned_of_once(losses_class, caplog):
    bridge = losses_class(num_classes=3)
    with caplog.at_level(logging.WARNING, logger="alrp"):
        for _ in range(2):
            bridge(torch.zeros(2, 3), torch.tensor([0, -1]), BOX, BOX)
    assert [record.getMessage().count("pass 3 instead") for record in caplog.records] == [1]


@every_bridge
@pytest.mark.parametrize("gt_classes", [(0, 3), (3, -1), (-1, 3), (0, 3)])
def test_ordinary_codes_are_not_warned_of(losses_class, gt_classes, caplog):
    boxes = BOX[: int(gt_classes[0] == 0)]
    with caplog.at_level(logging.WARNING, logger="alrp"):
        call(losses_class, gt_classes=gt_classes, predicted=boxes, expected=boxes)
    assert not caplog.records
