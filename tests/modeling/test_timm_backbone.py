"""Models of timm as backbones: features, what is frozen, levels, checkpoints and messages."""

from __future__ import annotations

import sys
import pytest
import timm
import torch
from helpers.detectors import CONFIGS, RETINANET, image, small_config, train_step
from torch.testing import assert_close

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from alrp.checkpoint import CheckedCheckpointer
from alrp.config import load_config
from alrp.engine.checks import check_config
from alrp.errors import UserError
from alrp.modeling import PublishedFPN, TimmBackbone

SMALL = "test_efficientnet"  # timm's own model for tests
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def config(*overrides, base=RETINANET):
    """A RetinaNet on SMALL with the levels P3 and P4."""
    cfg = small_config(base, 2)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.MODEL_NAME = SMALL
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16.0], [32.0]]
    cfg.merge_from_list(list(overrides))
    return cfg


def levels(cfg):
    with torch.device("meta"):
        shapes = build_backbone(cfg).output_shape()
    return {name: shape.stride for name, shape in shapes.items()}


# HRNet's first features come from layers that its feature_info does not name; Swin is made for one
# size of images unless told otherwise.
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        SMALL,
        "test_convnext",
        "mobilenetv3_small_050",
        "hrnet_w18_small",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_features_have_the_strides_of_their_names_and_all_that_is_trained_has_a_gradient(name):
    backbone = TimmBackbone(name, ["res3", "res4"])
    features = backbone(IMAGES)
    for key, stride in (("res3", 8), ("res4", 16)):
        shape = backbone.output_shape()[key]
        assert shape.stride == stride
        assert features[key].shape == (2, shape.channels, 64 // stride, 96 // stride)
    sum(feature.sum() for feature in features.values()).backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize("name", ["test_resnet", SMALL])
def test_features_are_those_of_timm(name):
    backbone = TimmBackbone(name, ["res2", "res5"]).eval()
    network = timm.create_model(name, features_only=True).eval()
    network.load_state_dict(backbone.net.state_dict())
    with torch.no_grad():
        expected = dict(zip(("res1", "res2", "res3", "res4", "res5"), network(IMAGES)))
        for key, feature in backbone(IMAGES).items():
            assert_close(feature, expected[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    "freeze_at, frozen", [(0, ()), (2, ("conv_stem", "bn1", "blocks.0.", "blocks.1."))]
)
def test_frozen_are_all_layers_up_to_a_stride_and_their_batch_norm(freeze_at, frozen):
    backbone = TimmBackbone(SMALL, ["res3", "res4"], freeze_at=freeze_at).train()
    names = [name for name, p in backbone.net.named_parameters() if p.requires_grad]
    every = set(dict(TimmBackbone(SMALL, ["res3", "res4"]).net.named_parameters()))
    assert set(names) == {name for name in every if not name.startswith(frozen or "-")}
    before = {name: value.clone() for name, value in backbone.net.state_dict().items()}
    backbone(IMAGES)
    after = backbone.net.state_dict()
    moved = {n.rpartition(".")[0] for n, v in before.items() if not torch.equal(v, after[n])}
    norms = {n.rpartition(".")[0] for n in every if ".bn" in f".{n}"}
    assert moved == {name for name in norms if not name.startswith(frozen or "-")}


def test_frozen_batch_norm_is_the_constant_function_of_evaluation():
    trained = TimmBackbone(SMALL, ["res4"]).eval()
    frozen = TimmBackbone(SMALL, ["res4"], norm="FrozenBN").train()
    frozen.load_state_dict(trained.state_dict(), strict=False)
    assert_close(frozen(IMAGES), trained(IMAGES))


def test_norm_eval_keeps_the_statistics_of_batch_norm_and_trains_its_scale():
    backbone = build_backbone(config("MODEL.BACKBONE.FREEZE_AT", "0")).train()
    before = {n: b.clone() for n, b in backbone.bottom_up.named_buffers()}
    sum(feature.sum() for feature in backbone(IMAGES).values()).backward()
    assert all(torch.equal(b, before[n]) for n, b in backbone.bottom_up.named_buffers())
    assert backbone.bottom_up.net.bn1.weight.grad is not None


def test_a_retinanet_trains_and_infers_on_two_levels():
    cfg = config()
    model = build_model(cfg)
    assert levels(cfg) == {"p3": 8, "p4": 16}
    losses, _ = train_step(model, [image(64, 96, [[5, 5, 40, 50]], [1]), image(64, 96)])
    assert torch.isfinite(sum(losses.values()))
    model.eval()
    assert len(model([image(64, 96)])) == 1


def test_p6_and_p7_are_made_where_the_head_reads_them():
    cfg = config("MODEL.FPN.IN_FEATURES", '["res3", "res4", "res5"]')
    assert levels(cfg) == {"p3": 8, "p4": 16, "p5": 32}
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    assert levels(cfg) == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    with pytest.raises(UserError, match='IN_FEATURES must hold "res5"'):
        levels(cfg)


def test_an_rcnn_has_p6_by_subsampling():
    cfg = config(base="Base-ALRP-RCNN-FPN.yaml")
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    assert levels(cfg) == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert not any("top_block" in name for name, _ in build_backbone(cfg).named_parameters())


def test_a_lazy_config_gives_the_model_of_the_yaml_config():
    lazy = L(PublishedFPN)(
        bottom_up=L(TimmBackbone)(model_name=SMALL, out_features=["res3", "res4"], freeze_at=2),
        in_features=["res3", "res4"],
        out_channels=16,
        norm_eval=True,
    )
    of_lazy, of_yaml = instantiate(lazy), build_backbone(config())
    of_lazy.load_state_dict(of_yaml.state_dict(), strict=True)
    of_lazy.train(), of_yaml.train()
    assert of_lazy.norm_eval == of_yaml.norm_eval
    frozen = [
        [n for n, p in b.named_parameters() if not p.requires_grad] for b in (of_lazy, of_yaml)
    ]
    assert frozen[0] == frozen[1] != []


# Checkpoints


def test_a_file_in_the_names_of_timm_starts_a_training(tmp_path):
    network = timm.create_model(SMALL)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    model = build_model(config())
    CheckedCheckpointer(model, complete=False).load(str(tmp_path / "network.pth"))
    loaded = model.backbone.bottom_up.net.state_dict()
    for name, tensor in loaded.items():
        assert_close(tensor, network.state_dict()[name], rtol=0, atol=0)
    # A model trained here is no file of timm.
    checkpointer = CheckedCheckpointer(model, str(tmp_path))
    checkpointer.save("trained")
    CheckedCheckpointer(build_model(config())).load(str(tmp_path / "trained.pth"))


@pytest.mark.parametrize("name", ["test_resnet", "efficientnet_lite0"])
def test_a_file_of_another_model_of_timm_is_refused(name, tmp_path):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "network.pth")
    with pytest.raises(UserError, match="checkpoint (holds another backbone|does not fit)"):
        CheckedCheckpointer(build_model(config()), complete=False).load(
            str(tmp_path / "network.pth")
        )


@pytest.mark.parametrize(
    "weights, device, downloads",
    [("", "cpu", True), ("file.pth", "cpu", False), ("", "meta", False)],
)
def test_timm_downloads_where_it_is_asked_to_and_nothing_else_is_loaded(
    weights, device, downloads, monkeypatch
):
    asked, create = [], timm.create_model

    def without_network(name, pretrained=False, **options):
        asked.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    cfg = config("MODEL.TIMM.PRETRAINED", "True", "MODEL.WEIGHTS", weights)
    with torch.device(device):
        build_backbone(cfg)
    assert any(asked) == downloads


# Messages


def finding(*overrides):
    """The one error of the checks before a run."""
    path = CONFIGS / "LossComparison" / "rs_retinanet_Lite0_FPN_ATSS.yaml"
    (found,) = check_config(load_config(str(path), list(overrides)), for_training=True)
    assert found.severity == "error"
    return found


def test_a_misspelt_name_is_answered_with_names_that_exist():
    found = finding("MODEL.TIMM.MODEL_NAME", "efficientnet_light0")
    assert found.where == "MODEL.TIMM.MODEL_NAME"
    assert "'efficientnet_light0' is no model of timm" in found.what
    assert "efficientnet_lite0" in found.what


def test_a_name_like_no_other_is_answered_with_the_way_to_list_them():
    with pytest.raises(UserError, match=r"see timm.list_models\(\)"):
        TimmBackbone("?", ["res3"])


def test_a_model_without_a_pyramid_is_refused():
    assert "no features of several strides" in finding("MODEL.TIMM.MODEL_NAME", "test_vit").what


def test_features_that_the_model_has_not_are_named_beside_those_it_has():
    found = finding("MODEL.FPN.IN_FEATURES", '["res3", "res9"]')
    assert found.where == "MODEL.FPN.IN_FEATURES"
    assert "has res1, res2, res3, res4, res5, but is ['res3', 'res9']" in found.what


@pytest.mark.parametrize("norm", ["GN", ""])
def test_another_norm_is_refused(norm):
    assert finding("MODEL.TIMM.NORM", norm).where == "MODEL.TIMM.NORM"


def test_images_of_another_number_of_channels_are_refused():
    with pytest.raises(UserError, match="MODEL.PIXEL_MEAN must have 3 values"):
        build_backbone(config(), ShapeSpec(channels=1))


def test_without_timm_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert 'run: pip install -e ".[timm]"' in finding().what
