"""The head of ATSS: a factor per level on the boxes, and no bias before a norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from alrp.modeling import ATSSHead


def options(norm):
    shapes = [ShapeSpec(channels=8, stride=stride) for stride in (8, 16)]
    return dict(input_shape=shapes, num_classes=3, num_anchors=2, conv_dims=[64], norm=norm)


@pytest.mark.parametrize("norm", ["", "GN"])
def test_each_level_scales_its_boxes_and_nothing_else_differs_from_retinanet(norm, generator):
    head, plain = ATSSHead(**options(norm)), RetinaNetHead(**options(norm))
    plain.load_state_dict(head.state_dict(), strict=False)  # biases start at 0
    features = [torch.randn(1, 8, size, size, generator=generator) for size in (4, 2)]
    assert_close(head(features), tuple(plain(features)), rtol=0, atol=0)
    with torch.no_grad():
        head.scales[1].scale.fill_(3.0)
    (logits, deltas), (plain_logits, plain_deltas) = head(features), plain(features)
    assert_close(logits, plain_logits, rtol=0, atol=0)
    assert_close(deltas, [plain_deltas[0], 3 * plain_deltas[1]])


@pytest.mark.parametrize("norm", ["", "GN"])
def test_only_a_convolution_before_a_norm_has_no_bias(norm):
    head = ATSSHead(**options(norm))
    for tower in (head.cls_subnet, head.bbox_subnet):
        (convolution,) = [layer for layer in tower if isinstance(layer, nn.Conv2d)]
        assert (convolution.bias is None) == bool(norm)
    assert head.cls_score.bias is not None and head.bbox_pred.bias is not None
