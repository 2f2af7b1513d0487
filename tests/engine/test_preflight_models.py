"""Checks that depend on the architecture: components, ranges, learning rates, class counts."""

from __future__ import annotations

import json
from pathlib import Path
import pytest
import torch
from torch import nn

from detectron2.config import LazyCall, LazyConfig, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    SwinTransformer,
    build_backbone,
)
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

from alrp.config import load_config
from alrp.data.datasets.coco_format import register_coco_format
from alrp.engine import Trainer
from alrp.engine.checks import check_config, published_learning_rate
from alrp.engine.checks.lazy_config import check_lazy_config
from alrp.engine.lazy_command import as_cfg_node
from alrp.engine.preflight import check
from alrp.modeling import ALRPRPN, ALRPRetinaNet, ALRPROIHeads, ThresholdedRCNN

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROWS = sorted(path.stem for path in (CONFIGS / "COCO-Detection").glob("*.yaml"))


def load_yaml(name):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"))
    return cfg


@pytest.fixture
def cfg(shapes):
    """The aLRP Faster R-CNN on a dataset of three classes, in which there is nothing to find."""
    cfg = load_yaml("Base-ALRP-RCNN-FPN")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.COCO_FORMAT = [
        [f"{shapes.name}_{split}", f"{shapes}/annotations/{split}.json", f"{shapes}/{split}"]
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((entry[0],) for entry in cfg.DATASETS.COCO_FORMAT)
    register_coco_format(cfg)
    assert check(cfg, for_training=True) == []
    return cfg


def node_of(cfg, key):
    """The node that holds a dotted key, and the last part of the key."""
    *nodes, last = key.split(".")
    for name in nodes:
        cfg = cfg[name]
    return cfg, last


def change(cfg, key, value):
    node, last = node_of(cfg, key)
    node[last] = value


@pytest.mark.parametrize(
    ("key", "wrong", "listed"),
    [
        ("MODEL.PROPOSAL_GENERATOR.NAME", "ALRP_RPN", "ALRPRPN"),
        ("MODEL.RPN.HEAD_NAME", "PriorHead", "PriorRPNHead"),
        ("MODEL.ROI_HEADS.NAME", "ALRPHeads", "ALRPROIHeads"),
        ("MODEL.ROI_BOX_HEAD.NAME", "ConvFCHead", "XavierConvFCHead"),
    ],
)
def test_an_unknown_part_of_an_rcnn_lists_the_choices(cfg, key, wrong, listed):
    change(cfg, key, wrong)
    (finding,) = check(cfg, for_training=True)
    assert (finding.severity, finding.where) == ("error", key)
    assert repr(wrong) in finding.what and listed in finding.what


@pytest.mark.parametrize("steps", [(95, 75), (75, 75)])
def test_steps_in_another_order_are_found(cfg, steps):
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.STEPS = "WarmupMultiStepLR", steps
    (finding,) = check(cfg, for_training=True)
    assert (finding.severity, finding.where) == ("error", "SOLVER.STEPS")
    assert "numbers in ascending order, each once" in finding.what


def test_parts_that_an_rcnn_does_not_use_are_not_judged(cfg):
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.MODEL.RPN.HEAD_NAME = ""
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.7, 0.3]
    assert not [f for f in check(cfg, for_training=True) if f.severity == "error"]


@pytest.mark.parametrize(
    ("key", "wrong", "expected"),
    [
        ("MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3], "[negative below, positive from]"),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.3, 1.0], "[negative below, positive from]"),
        ("MODEL.RPN.LOSS_WEIGHT", 0.0, "a number > 0"),
        ("MODEL.ALRP.DELTA", -1.0, "a number in [0, 1e+30]"),
        ("MODEL.ALRP.TAU", 1.0, "a number in [0, 1)"),
        ("MODEL.ALRP.SELF_BALANCE.PERIOD", -1, "a number >= 0"),
    ],
)
def test_a_number_out_of_range_is_found(cfg, key, wrong, expected):
    change(cfg, key, wrong)
    (finding,) = check(cfg, for_training=True)
    assert (finding.severity, finding.where) == ("error", key)
    assert expected in finding.what and str(wrong) in finding.what


def test_the_class_count_of_an_rcnn_is_checked(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    (finding,) = check(cfg, for_training=True)
    assert finding.where == "MODEL.ROI_HEADS.NUM_CLASSES"
    assert "80 classes" in finding.what and "NUM_CLASSES 3" in finding.fix


def test_a_learning_rate_far_from_that_of_the_faster_rcnn_is_a_warning(cfg):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 8, 0.012
    assert check(cfg, for_training=True) == []
    cfg.SOLVER.BASE_LR = 0.02
    (finding,) = check(cfg, for_training=True)
    assert (finding.severity, finding.where) == ("warning", "SOLVER.BASE_LR")
    assert "far from 0.003, the published 0.012 for 32 images" in finding.what


def test_group_norm_of_a_foveabox_needs_a_multiple_of_its_groups():
    cfg = load_yaml("Shapes/alrp_foveabox_R_18_FPN")
    cfg.MODEL.FPN.OUT_CHANNELS = 40
    (finding,) = check_config(cfg, for_training=True)
    assert "MODEL.FPN.OUT_CHANNELS" in finding.where and "divisible" in finding.what


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_the_published_learning_rate_of_its_batch(name):
    cfg = load_yaml(f"COCO-Detection/{name}")
    expected = cfg.SOLVER.BASE_LR * 32 / cfg.SOLVER.IMS_PER_BATCH
    assert published_learning_rate(cfg) == pytest.approx(expected)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    assert published_learning_rate(cfg) is None


@pytest.mark.parametrize("name", ROWS)
def test_the_checks_see_the_same_in_both_files(name):
    cfg = load_yaml(f"COCO-Detection/{name}")
    node = as_cfg_node(LazyConfig.load(str(CONFIGS / "COCO-Detection" / f"{name}.py")))
    keys = ["MODEL.META_ARCHITECTURE", "MODEL.ALRP.LOSS_TYPE"]
    if cfg.MODEL.META_ARCHITECTURE == "ThresholdedRCNN":
        keys += ["MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.ROI_HEADS.NAME"]
    for key in keys:
        (first, last), (second, _) = node_of(cfg, key), node_of(node, key)
        assert first[last] == second[last], key
    assert published_learning_rate(node) == published_learning_rate(cfg)


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [
        ("alrp_retinanet_R_50_FPN_ATSS_100e", "num_classes", "RETINANET"),
        ("alrp_foveabox_R_50_FPN_100e", "num_classes", "FOVEABOX"),
        ("alrp_faster_rcnn_R_50_FPN_100e", "roi_heads.num_classes", "ROI_HEADS"),
        ("ce_faster_rcnn_R_50_FPN_100e", "roi_heads.num_classes", "ROI_HEADS"),
    ],
)
def test_the_class_count_of_a_lazy_model_is_found(name, path, key):
    lazy = LazyConfig.load(str(CONFIGS / "COCO-Detection" / f"{name}.py"))
    LazyConfig.apply_overrides(lazy, [f"model.{path}=7"])
    assert as_cfg_node(lazy).MODEL[key].NUM_CLASSES == 7


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("COCO-Detection/alrp_faster_rcnn_R_50_FPN_100e", ("bbox",)),
        ("COCO-InstanceSegmentation/alrp_mask_rcnn_R_50_FPN_100e", ("bbox", "segm")),
    ],
)
def test_masks_are_evaluated_where_there_are_any(shapes, name, tasks, tmp_path):
    cfg = load_yaml(name)
    content = json.loads((shapes / "annotations" / "val.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 1, 9, 1, 5, 9]]
    (tmp_path / "masks.json").write_text(json.dumps(content))
    entry = [f"{shapes.name}_masks", str(tmp_path / "masks.json"), f"{shapes}/val"]
    cfg.DATASETS.COCO_FORMAT, cfg.DATASETS.TEST = [entry], (entry[0],)
    register_coco_format(cfg)
    coco, lrp = Trainer.build_evaluator(cfg, entry[0])._evaluators
    assert (tuple(coco._tasks), tuple(lrp._tasks)) == (tasks, ("bbox",))


def test_a_model_that_reads_values_in_its_constructor_is_not_refused(cfg):
    class Reader(nn.Module):
        """Drop rates as many backbones have them; meta tensors have no values to read."""

        def __init__(self, cfg):
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)]

    META_ARCH_REGISTRY.register(Reader)
    try:
        cfg.MODEL.META_ARCHITECTURE = "Reader"
        assert check(cfg, for_training=True) == []
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Reader")


def test_test_time_augmentation_needs_a_model_that_can_merge_its_versions(cfg):
    class WithoutNMS(DenseDetector):
        @configurable
        def __init__(self, backbone):
            super().__init__(backbone, nn.Identity(), pixel_mean=[0.0], pixel_std=[1.0])

        @classmethod
        def from_config(cls, cfg):
            return {"backbone": build_backbone(cfg)}

    META_ARCH_REGISTRY.register(WithoutNMS)
    try:
        cfg.MODEL.META_ARCHITECTURE, cfg.TEST.AUG.ENABLED = "WithoutNMS", True
        (finding,) = check_config(cfg, for_training=False)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("WithoutNMS")
    assert finding.where == "TEST.AUG.ENABLED" and "but got a WithoutNMS" in finding.what


def test_a_lazy_model_that_reads_values_in_its_constructor_is_not_refused():
    file = LazyConfig.load(str(CONFIGS / "COCO-Detection" / "alrp_retinanet_R_50_FPN_ATSS_1x.py"))
    file.model.backbone.bottom_up = LazyCall(SwinTransformer)(depths=[1, 1, 1, 1])
    file.model.backbone.in_features = ["p1", "p2", "p3"]
    assert check_lazy_config(file, file, for_training=True) == []


def test_files_of_proposals_are_refused_because_they_are_unpickled(cfg):
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    (finding,) = check(cfg, for_training=False)
    assert finding.where == "MODEL.LOAD_PROPOSALS" and "can run code" in finding.what


@pytest.fixture
def own_parts():
    """Subclasses as users write them, registered under their names."""
    own = {}
    for base, registry in (
        (GeneralizedRCNN, META_ARCH_REGISTRY),
        (ThresholdedRCNN, META_ARCH_REGISTRY),
        (ALRPRetinaNet, META_ARCH_REGISTRY),
        (ALRPROIHeads, ROI_HEADS_REGISTRY),
        (ALRPRPN, PROPOSAL_GENERATOR_REGISTRY),
    ):
        part = type(f"Own{base.__name__}", (base,), {})
        registry.register(part)
        own[part.__name__] = registry
    yield
    for name, registry in own.items():
        del registry._obj_map[name]


@pytest.mark.parametrize("key", ["MODEL.ROI_HEADS.NAME", "MODEL.PROPOSAL_GENERATOR.NAME"])
def test_an_unknown_part_of_an_own_rcnn_lists_the_choices(own_parts, cfg, key):
    cfg.MODEL.META_ARCHITECTURE = "OwnGeneralizedRCNN"
    change(cfg, key, "Nothing")
    (finding,) = check(cfg, for_training=True)
    assert finding.where == key and "no component 'Nothing' is registered" in finding.what


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("alrp_retinanet_R_50_FPN_ATSS_100e", ["MODEL.META_ARCHITECTURE"]),
        ("alrp_faster_rcnn_R_50_FPN_100e", ["MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME"]),
    ],
)
def test_subclasses_have_the_learning_rate_of_what_they_descend_from(own_parts, name, keys):
    cfg = load_yaml(f"COCO-Detection/{name}")
    expected = published_learning_rate(cfg)
    for key in keys:
        node, last = node_of(cfg, key)
        node[last] = f"Own{node[last]}"
        assert published_learning_rate(cfg) == expected
    cfg.MODEL.ALRP.LOSS_TYPE = "focal"
    assert published_learning_rate(cfg) is None


def test_options_without_effect_on_own_parts_of_an_rcnn_are_told(own_parts, cfg):
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.PROPOSAL_GENERATOR.NAME = "OwnALRPROIHeads", "OwnALRPRPN"
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = cfg.MODEL.RPN.POSITIVE_FRACTION = 0.1
    found = {finding.where for finding in check(cfg, for_training=True)}
    assert found == {"MODEL.ROI_HEADS.POSITIVE_FRACTION", "MODEL.RPN.POSITIVE_FRACTION"}


def test_masks_of_a_mapper_that_is_not_detectron2s_may_be_of_both_kinds():
    cfg = LazyConfig.load(str(CONFIGS / "COCO-Detection" / "alrp_retinanet_R_50_FPN_ATSS_100e.py"))
    mapper = cfg.dataloader.train.mapper
    assert as_cfg_node(cfg).INPUT.MASK_FORMAT == "polygon"
    mapper.instance_mask_format = "bitmask"
    assert as_cfg_node(cfg).INPUT.MASK_FORMAT == "bitmask"
    del mapper["instance_mask_format"]
    mapper._target_ = "somebody.mappers.TheirMapper"
    assert as_cfg_node(cfg).INPUT.MASK_FORMAT == "bitmask"
