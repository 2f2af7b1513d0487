"""Deformable convolution: against plain convolution, by hand, and inside a residual network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import BottleneckBlock

from alrp.config import load_config
from alrp.errors import UserError
from alrp.modeling import DeformableBottleneckBlock, DeformConv2d


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def conv(groups=1, stride=1, channels=2, **kwargs):
    torch.manual_seed(0)
    return DeformConv2d(
        channels, channels, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False
    ).to(**kwargs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 64])
def test_without_displacement_it_is_a_plain_convolution_times_the_mask(groups, stride, device):
    # In float64, as a GPU rounds the inputs of plain convolutions in float32 to TF32.
    layer = conv(groups, stride, channels=64, device=device, dtype=torch.float64)
    x = tensor(2, 64, 9, 12, dtype=torch.float64).to(device)
    plain = F.conv2d(x, layer.weight, None, stride, 1, 1, groups)
    size = plain.shape[-2:]
    offset, mask = x.new_zeros(2, 18, *size), x.new_full((2, 9, *size), 0.5)
    assert_close(layer(x, offset), plain, rtol=1e-10, atol=1e-12)
    assert_close(layer(x, offset, mask), 0.5 * plain, rtol=1e-10, atol=1e-12)


def test_a_whole_offset_shifts_the_image():
    layer, x = conv(), tensor(1, 2, 8, 8)
    offset = torch.zeros(1, 18, 8, 8)
    offset[:, 0::2] = 1.0  # dy of all nine taps
    offset[:, 1::2] = -2.0  # dx
    shifted = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :8]  # row y + 1, column x - 2
    actual, expected = layer(x, offset), F.conv2d(shifted, layer.weight, padding=1)
    # Away from the border, where one pads before the shift and the other after it.
    assert_close(actual[..., 1:6, 3:7], expected[..., 1:6, 3:7], rtol=1e-4, atol=1e-5)


def test_one_displaced_tap_by_hand():
    layer, x = conv(channels=1), torch.arange(25.0).view(1, 1, 5, 5)
    torch.nn.init.ones_(layer.weight)
    offset = torch.zeros(1, 18, 5, 5)
    offset[0, 2 * 5, 2, 2], offset[0, 2 * 5 + 1, 2, 2] = 0.5, 1.0  # sixth tap: right neighbour
    mask = torch.ones(1, 9, 5, 5)
    mask[0, 0, 2, 2] = 0.0  # first tap: upper left neighbour, of value 6
    output = layer(x, offset, mask)[0, 0].detach()
    plain = F.conv2d(x, layer.weight, padding=1)[0, 0].detach()
    # The tap at (2, 3) of value 13 moves to (2.5, 4), between 14 and 19.
    assert output[2, 2].item() == pytest.approx(plain[2, 2].item() - 6 - 13 + 16.5)
    assert_close(output[:2], plain[:2])


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_to_input_offset_mask_and_weight(stride):
    layer = conv(groups=2, stride=stride, dtype=torch.float64)
    size = (-(-4 // stride), -(-5 // stride))
    x = tensor(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    # Fractions keep away from whole positions, where bilinear sampling has kinks.
    offset = (0.3 + 0.1 * tensor(1, 18, *size, seed=1).clamp(-1, 1).double()).requires_grad_()
    mask = tensor(1, 9, *size, seed=2).double().sigmoid().requires_grad_()

    def apply(x, offset, mask, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x, offset, mask))

    assert torch.autograd.gradcheck(apply, (x, offset, mask, layer.weight))


def block(stride=1, **options):
    torch.manual_seed(0)
    plain = BottleneckBlock(8, 16, bottleneck_channels=8, stride=stride, num_groups=4, **options)
    return plain, DeformableBottleneckBlock(plain, modulated=True, num_groups=2)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_fresh_block_is_the_plain_one_with_half_of_its_middle_convolution(stride):
    plain, deformable = block(stride, norm="")
    x = tensor(2, 8, 7, 9)
    expected = plain.conv1(x).relu()
    expected = (0.5 * F.conv2d(expected, plain.conv2.weight, None, stride, 1, 1, 4)).relu()
    expected = (plain.conv3(expected) + plain.shortcut(x)).relu()
    assert_close(deformable(x), expected)


def test_a_block_shares_the_parameters_and_uses_the_names_of_detectron2():
    plain, deformable = block(norm="BN")
    assert deformable.conv2.weight is plain.conv2.weight
    extra = {"conv2_offset.weight": (2 * 27, 8, 3, 3), "conv2_offset.bias": (2 * 27,)}
    state = deformable.state_dict()
    assert set(state) == set(plain.state_dict()) | set(extra)
    assert {name: tuple(state[name].shape) for name in extra} == extra
    assert not any(state[name].any() for name in extra)


def test_every_parameter_of_a_block_gets_a_gradient():
    _, deformable = block(stride=2, norm="BN")
    deformable(tensor(2, 8, 7, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in deformable.parameters())


def config(depth, on_per_stage, freeze_at=2):
    cfg = load_config("configs/Base-ALRP-RetinaNet.yaml")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = on_per_stage
    cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    return cfg


def test_only_the_chosen_stages_deform_and_a_frozen_one_is_frozen_whole():
    backbone = build_backbone(config(50, [True, False, False, True]), ShapeSpec(channels=3))
    names = {n for n, _ in backbone.named_parameters() if n.endswith("conv2_offset.weight")}
    stages = [("res2", 3), ("res5", 3)]
    assert names == {f"bottom_up.{s}.{i}.conv2_offset.weight" for s, n in stages for i in range(n)}
    res2 = backbone.bottom_up.res2
    assert not any(p.requires_grad for p in res2.parameters())
    assert isinstance(res2[0].conv2.norm, FrozenBatchNorm2d)
    assert all(p.requires_grad for p in backbone.bottom_up.res5.parameters())


def test_basic_blocks_cannot_deform():
    cfg = config(18, [False, True, True, True])
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    with pytest.raises(UserError, match="needs bottleneck blocks, but the stage has BasicBlock"):
        build_backbone(cfg, ShapeSpec(channels=3))
