"""Names of torchvision's networks under Detectron2, and the network they then give."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.testing import assert_close

from detectron2.modeling import build_model

from alrp.checkpoint.resnet import is_torchvision_resnet, torchvision_to_detectron2
from alrp.config import load_config
from alrp.engine import CheckedCheckpointer
from alrp.errors import UserError


@pytest.mark.parametrize(
    "name, renamed",
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
        ("layer3.22.bn2.bias", "res4.22.conv2.norm.bias"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
    ],
)
def test_each_kind_of_name_is_renamed_and_its_tensor_passed_through(name, renamed):
    tensor = torch.ones(1)
    conversion = torchvision_to_detectron2({name: tensor})
    assert conversion.state == {renamed: tensor} and conversion.state[renamed] is tensor
    assert conversion.names == {name: renamed}
    assert (conversion.dropped, conversion.leftovers) == ([], [])


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "layer1.0.bn1.num_batches_tracked"])
def test_what_a_detector_has_no_place_for_is_dropped_and_named(name):
    conversion = torchvision_to_detectron2({name: torch.ones(1)})
    assert (conversion.state, conversion.dropped, conversion.leftovers) == ({}, [name], [])


@pytest.mark.parametrize(
    "name", ["layer5.0.conv1.weight", "layer1.0.se.weight", "conv1.bias2", "xconv1.weight"]
)
def test_what_no_rule_covers_is_reported(name):
    conversion = torchvision_to_detectron2({name: torch.ones(1)})
    assert (conversion.state, conversion.dropped, conversion.leftovers) == ({}, [], [name])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_nothing_is_left_over_of_a_torchvision_model(name):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    conversion = torchvision_to_detectron2(state)
    assert is_torchvision_resnet(state) and not is_torchvision_resnet(conversion.state)
    assert conversion.leftovers == []
    assert len(conversion.state) + len(conversion.dropped) == len(state)


def detector(depth=50, **overrides):
    cfg = load_config("configs/Base-ALRP-RetinaNet.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RESNETS.DEPTH = depth
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    return build_model(cfg)


def classifier(name):
    """A network whose batch norm has statistics and scales like no other layer's."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in ((module.weight.data, 0.5), (module.running_var, 0.5)):
                tensor.uniform_(low, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.2, 0.2)
    return network


def load(model, state, folder):
    path = folder / "network.pth"
    torch.save(state, path)
    CheckedCheckpointer(model, complete=False).load(str(path))
    return model


RESNEXT = {"MODEL.RESNETS.NUM_GROUPS": 64, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}


@pytest.mark.parametrize(
    "name, depth, options",
    [
        ("resnet18", 18, {}),
        ("resnet50", 50, {}),
        pytest.param("resnext101_64x4d", 101, RESNEXT, marks=pytest.mark.slow),
    ],
)
def test_the_backbone_gives_the_features_of_torchvision(name, depth, options, tmp_path):
    network = classifier(name)
    model = load(detector(depth, **options), network.state_dict(), tmp_path).eval()
    bottom_up = model.backbone.bottom_up
    conversion = torchvision_to_detectron2(network.state_dict())
    loaded = {k: v for k, v in bottom_up.state_dict().items() if "num_batches_tracked" not in k}
    assert set(loaded) == set(conversion.state)
    for key, tensor in loaded.items():
        assert_close(tensor, conversion.state[key], rtol=0, atol=0)

    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actual = bottom_up(x)
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for layer, stage in (("layer1", None), ("layer2", "res3"), ("layer3", "res4")):
            x = getattr(network, layer)(x)
            if stage:
                assert_close(actual[stage], x, rtol=1e-4, atol=1e-4 * x.abs().max().item())
        x = network.layer4(x)
    assert_close(actual["res5"], x, rtol=1e-4, atol=1e-4 * x.abs().max().item())


def test_a_deformable_backbone_takes_plain_weights(tmp_path):
    options = {
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
        "MODEL.RESNETS.DEFORM_MODULATED": True,
    }
    network = classifier("resnet50")
    model = load(detector(50, **options), network.state_dict(), tmp_path)
    block = model.backbone.bottom_up.res4[3]
    assert_close(block.conv2.weight, network.layer3[3].conv2.weight, rtol=0, atol=0)
    assert not block.conv2_offset.weight.any()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("layer3.1.conv1.weight"), "1 missing"),
        (lambda state: state.update({"layer3.2.conv1.weight": torch.ones(1)}), "1 unknown"),
        (
            lambda state: state.update({"layer3.1.conv1.weight": torch.ones(1)}),
            "1 of another shape",
        ),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_weights_of_another_backbone_are_refused(change, message, tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    change(state)
    with pytest.raises(UserError, match=f"another backbone.*{message}"):
        load(detector(18), state, tmp_path)


def test_a_backbone_without_its_last_stage_takes_what_it_has(tmp_path):
    options = {
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4"],
        "MODEL.FPN.IN_FEATURES": ["res3", "res4"],
        "MODEL.RETINANET.IN_FEATURES": ["p3", "p4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]],
    }
    network = classifier("resnet18")
    model = load(detector(18, **options), network.state_dict(), tmp_path)
    actual = model.backbone.bottom_up.res4[1].conv2.weight
    assert_close(actual, network.layer3[1].conv2.weight, rtol=0, atol=0)
