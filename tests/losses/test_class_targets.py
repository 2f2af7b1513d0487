"""Targets from the classes of candidates."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import one_hot

from alrp.losses import class_targets


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_targets_are_one_hot_without_the_background(dtype, num_classes):
    gt_classes = torch.arange(num_classes + 1, dtype=dtype).repeat(3)
    expected = one_hot(gt_classes.long(), num_classes + 1)[:, :-1].to(torch.int8)
    found = class_targets(gt_classes, num_classes)
    assert found.dtype == torch.int8 and torch.equal(found, expected.flatten())


def test_all_columns_of_an_ignored_candidate_are_ignored():
    assert class_targets(torch.tensor([-1, 3]), 3).tolist() == [-1, -1, -1, 0, 0, 0]


def test_the_order_of_positives_is_that_of_the_candidates():
    gt_classes = torch.randint(0, 4, (100,), generator=torch.Generator().manual_seed(0))
    rows = class_targets(gt_classes, 3).nonzero().squeeze(1) // 3
    assert torch.equal(rows, (gt_classes < 3).nonzero().squeeze(1))


def test_without_candidates_there_are_no_targets():
    assert class_targets(torch.zeros(0, dtype=torch.int64), 3).shape == (0,)


@pytest.mark.parametrize("wrong", [[4], [-2], [[1]], [1.0], [True + 0j]])
def test_what_is_no_class_is_refused(wrong):
    with pytest.raises(ValueError, match="gt_classes must be"):
        class_targets(torch.tensor(wrong), 3)
