"""Published state dicts of full size under the names of Detectron2, and back."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers.published_model import listed
from helpers.published_shapes import MODELS, Model, published_shapes, published_state
from torch.testing import assert_close

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model

from alrp.checkpoint.architecture import PUBLISHED_ROWS, RETINANET, rows_of
from alrp.checkpoint.conversion import conversion_report, shape_differences
from alrp.checkpoint.published import (
    detectron2_to_published,
    has_published_names,
    published_to_detectron2,
)
from alrp.checkpoint.resnet import imagenet_to_detectron2
from alrp.config import load_config
from alrp.errors import UserError

CONFIGS = "configs/COCO-Detection"
each_row = pytest.mark.parametrize("row", list(MODELS))


def config(row):
    cfg = load_config(f"{CONFIGS}/{row}.yaml")
    return cfg


def build(row):
    """The model of a config, without values."""
    cfg = config(row)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize(
    "case, row",
    [("A", "alrp_retinanet_R_50_FPN_ATSS_100e"), ("E", "ce_faster_rcnn_R_50_FPN_100e")],
)
def test_the_rule_of_these_tests_gives_the_names_of_the_published_code(case, row):
    expected = {name: tuple(entry[0]) for name, entry in listed(case).items()}
    assert published_shapes(MODELS[row]) == expected


def test_published_rs_atss_has_367_tensors():
    assert len(published_shapes(MODELS["rs_retinanet_R_50_FPN_ATSS_1x"])) == 367


@each_row
def test_nothing_is_left_over_and_the_model_of_the_config_has_exactly_these_tensors(row):
    state = published_state(MODELS[row])
    result = published_to_detectron2(state)
    assert row in rows_of(result.architecture)
    assert (result.dropped, result.leftovers, result.missing) == ([], [], [])
    assert list(result.names) == list(state)

    model = build(row)
    assert shape_differences(result.state, model.state_dict()) == []
    incompatible = model.load_state_dict(result.state, strict=False, assign=True)
    assert incompatible.unexpected_keys == []
    assert all("self_balance." in name for name in incompatible.missing_keys)


@each_row
def test_the_way_there_and_back_is_the_identity(row):
    state = published_state(MODELS[row])
    back = detectron2_to_published(published_to_detectron2(state).state).state
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert_close(back[name], tensor, rtol=0, atol=0)


def test_every_published_row_is_found_among_those_of_its_architecture():
    rows = list(PUBLISHED_ROWS)
    assert rows == list(MODELS)
    groups = {tuple(rows_of(architecture)) for architecture in PUBLISHED_ROWS.values()}
    assert sorted(len(group) for group in groups) == [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    assert sorted(row for group in groups for row in group) == sorted(rows)


@pytest.mark.parametrize(
    "row, text",
    [
        (
            "alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e",
            "RetinaNet, ResNeXt-101-64x4d-DCN, 3 anchors per location, 80 sigmoid classes",
        ),
        ("focal_foveabox_R_50_FPN_100e", "FoveaBox, ResNet-50, 80 sigmoid classes"),
        (
            "ce_faster_rcnn_R_50_FPN_100e",
            "Faster R-CNN, ResNet-50, 3 anchors per location, 80 softmax classes",
        ),
    ],
)
def test_an_architecture_is_described_in_words(row, text):
    assert str(PUBLISHED_ROWS[row]) == text


def test_the_channels_of_six_anchors_change_places():
    model = MODELS["alrp_retinanet_R_50_FPN_maxiou_100e"]
    state = published_state(model)
    converted = published_to_detectron2(state).state
    for layer, renamed, values in (("retina_cls", "cls_score", 80), ("retina_reg", "bbox_pred", 4)):
        for kind in ("weight", "bias"):
            old = state[f"bbox_head.{layer}.{kind}"]
            new = converted[f"head.{renamed}.{kind}"]
            for ratio in range(3):
                for scale in range(2):
                    published, ours = 2 * ratio + scale, 3 * scale + ratio
                    assert_close(
                        new[ours * values : (ours + 1) * values],
                        old[published * values : (published + 1) * values],
                        rtol=0,
                        atol=0,
                    )


@pytest.mark.parametrize("anchors", [2, 3])
def test_the_channels_of_square_anchors_stay(anchors):
    state = published_state(Model(anchors=anchors))
    converted = published_to_detectron2(state).state
    assert converted["head.cls_score.weight"] is state["bbox_head.retina_cls.weight"]
    assert converted["head.bbox_pred.bias"] is state["bbox_head.retina_reg.bias"]


def test_anchors_of_the_config_stand_where_the_channels_go():
    """Width and height of the published anchors of a location of stride 8, in their order."""
    published = [(45.25, 22.63), (64, 32), (32, 32), (45.25, 45.25), (22.63, 45.25), (32, 64)]
    order = [0, 2, 4, 1, 3, 5]
    strides = [ShapeSpec(stride=stride) for stride in (8, 16, 32, 64, 128)]
    generator = build_anchor_generator(config("alrp_retinanet_R_50_FPN_maxiou_100e"), strides)
    anchors = next(iter(generator.cell_anchors))
    sides = anchors[:, 2:] - anchors[:, :2]
    assert_close(sides, torch.tensor(published)[order], rtol=0, atol=0.005)
    assert_close(anchors[:, :2], -anchors[:, 2:])  # centred on the pixel (0, 0)


def test_the_prefix_of_a_parallel_model_is_taken_off():
    state = published_state(Model())
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    assert list(published_to_detectron2(wrapped).state) == list(
        published_to_detectron2(state).state
    )


def test_old_files_without_counters_of_batches_are_complete():
    state = published_state(Model())
    old = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    result = published_to_detectron2(old)
    assert (result.missing, result.leftovers) == ([], [])
    assert list(detectron2_to_published(result.state).state) == list(old)
    model = build("alrp_retinanet_R_50_FPN_ATSS_100e")
    assert shape_differences(result.state, model.state_dict()) == []


def test_missing_and_unknown_tensors_are_named():
    state = published_state(Model())
    del state["neck.fpn_convs.4.conv.bias"]
    state["bbox_head.scales.0.scale"] = torch.ones(1)
    result = published_to_detectron2(state)
    assert result.missing == ["neck.fpn_convs.4.conv.bias"]
    assert result.leftovers == ["bbox_head.scales.0.scale"]
    report = conversion_report(result)
    assert "353 tensors used" in report and "needed by the model:\n  neck.fpn_convs.4" in report
    assert "1 left over, covered by no rule:\n  bbox_head.scales.0.scale" in report
    line = "backbone.conv1.weight -> backbone.bottom_up.stem.conv1.weight"
    assert line not in report and line in conversion_report(result, verbose=True)


@pytest.mark.parametrize(
    "model",
    [
        Model(),
        Model("atss", anchors=3),
        Model("fovea"),
        Model("rcnn", anchors=3, background=1),
    ],
    ids=lambda m: m.head,
)
@pytest.mark.parametrize("classes", [1, 20])
def test_another_number_of_classes_converts_and_is_known(model, classes):
    state = published_state(model._replace(classes=classes))
    result = published_to_detectron2(state)
    assert result.architecture.num_classes == classes
    assert result.architecture.has_background == bool(model.background)
    assert (result.leftovers, result.missing) == ([], []) and rows_of(result.architecture)
    back = detectron2_to_published(result.state)
    assert back.architecture == result.architecture and list(back.state) == list(state)


def test_training_state_of_this_project_is_dropped_on_the_way_back():
    state = published_to_detectron2(published_state(Model())).state
    ours = ["ranking_losses.self_balance.weight", "ranking_losses.self_balance.count"]
    ours += ["shown.thresholds", "shown.calibration"]
    result = detectron2_to_published({**state, **dict.fromkeys(ours, torch.tensor(1))})
    assert (result.dropped, result.leftovers, result.missing) == (ours, [], [])
    assert list(result.state) == list(published_shapes(Model()))


def without(state, *parts):
    return {n: t for n, t in state.items() if not any(part in n for part in parts)}


@pytest.mark.parametrize(
    "state, message",
    [
        ({"backbone.features.0.weight": torch.ones(1)}, r"another detector: backbone.features \(1"),
        (
            without(published_state(Model()), "retina_reg"),
            "expected the tensor .*retina_reg.weight",
        ),
        (published_state(Model(anchors=9)), r"2 or 3 or 6 anchors .*\(9 anchors\)"),
        (published_state(Model(blocks=(3, 8, 36, 3))), r"ResNet-50 or -101, .* \[3, 8, 36, 3\]"),
        ({"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}, "those of Detectron2"),
    ],
    ids=["other", "without_boxes", "nine_anchors", "resnet_152", "detectron2"],
)
def test_another_model_is_refused(state, message):
    with pytest.raises(UserError, match=message):
        published_to_detectron2(state)


def test_a_head_with_one_box_for_all_classes_is_refused():
    state = published_state(Model("rcnn", anchors=3, background=1))
    for kind in ("weight", "bias"):
        name = f"roi_head.bbox_head.fc_reg.{kind}"
        state[name] = state[name][:4]
    with pytest.raises(UserError, match="81 and roi_head.bbox_head.fc_reg 4 outputs"):
        published_to_detectron2(state)


def test_the_way_back_starts_from_the_names_of_detectron2():
    with pytest.raises(UserError, match="leave --reverse out"):
        detectron2_to_published(published_state(Model()))


def test_a_mask_head_is_left_over():
    state = published_state(Model("rcnn", anchors=3, background=1))
    extra = "roi_head.mask_head.convs.0.conv.weight"
    assert published_to_detectron2({**state, extra: torch.ones(1)}).leftovers == [extra]


def test_an_imagenet_backbone_takes_the_place_of_the_backbone():
    detector = published_state(Model(groups=64, base_width=4, blocks=(3, 4, 23, 3)))
    backbone = {n[len("backbone.") :]: t for n, t in detector.items() if n.startswith("backbone.")}
    result = imagenet_to_detectron2({**backbone, "fc.weight": torch.ones(1), "se": torch.ones(1)})
    assert result.leftovers == ["se"] and "fc.weight" in result.dropped
    expected = published_to_detectron2(detector).state
    for name, tensor in result.state.items():
        assert tensor is expected[name]
    assert result.names["conv1.weight"] == "backbone.bottom_up.stem.conv1.weight"
    model = build("alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e").state_dict()
    assert shape_differences(result.state, model, "backbone.bottom_up.") == []


def imagenet_state(name="resnet50"):
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None).state_dict()


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet152", "wide_resnet50_2", "resnext50_32x4d"]
)
def test_every_depth_and_width_of_torchvision_is_complete(name):
    state = imagenet_state(name)
    result = imagenet_to_detectron2(state)
    assert (result.leftovers, result.missing) == ([], [])
    assert len(result.names) + len(result.dropped) == len(state)


def test_what_an_imagenet_backbone_lacks_is_named():
    state, lost = imagenet_state(), ["layer2.0.bn1.running_var", "layer4.2.conv3.weight"]
    for name in lost:
        del state[name]
    assert imagenet_to_detectron2(state).missing == lost


def test_an_imagenet_backbone_without_its_last_block_is_refused():
    state = without(imagenet_state(), "layer4.2.")
    with pytest.raises(UserError, match=r"3, 4, 6, 3\] \(ResNet-50\), .* got \[3, 4, 6, 2\]"):
        imagenet_to_detectron2(state)


def test_an_imagenet_backbone_of_other_shapes_is_refused():
    state = {**imagenet_state(), "conv1.weight": torch.ones(64, 1, 7, 7)}
    with pytest.raises(UserError, match=r"conv1.weight is \(64, 1, 7, 7\) and should be \(64, 3,"):
        imagenet_to_detectron2(state)


def test_one_box_per_location_is_a_foveabox_unless_it_is_said_to_be_a_retinanet():
    state = published_to_detectron2(published_state(Model("fovea", anchors=1))).state
    assert detectron2_to_published(state).architecture.detector == "FoveaBox"
    with pytest.raises(UserError, match=r"expected a RetinaNet with 2 or 3 or 6 .*\(1 anchors\)"):
        detectron2_to_published(state, RETINANET)


def test_shapes_that_differ_are_listed():
    state = published_to_detectron2(published_state(Model())).state
    state["head.bbox_pred.bias"] = torch.zeros(12)
    state["head.scale"] = state.pop("backbone.top_block.p7.bias")
    differences = shape_differences(state, build("alrp_retinanet_R_50_FPN_ATSS_100e").state_dict())
    assert sorted(differences) == [
        "backbone.top_block.p7.bias is missing",
        "head.bbox_pred.bias is (12,) and should be (8,)",
        "head.scale has no place in the model",
    ]


@pytest.mark.parametrize(
    "name, is_published",
    [
        ("backbone.conv1.weight", True),
        ("module.backbone.layer1.0.conv1.weight", True),
        ("backbone.bottom_up.stem.conv1.weight", False),
        ("conv1.weight", False),
    ],
)
def test_published_names_are_told_from_others(name, is_published):
    assert has_published_names({name: torch.ones(1)}) == is_published
