"""Which node of a config belongs to which meta-architecture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
import pytest
from torch import nn

from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from alrp.config import load_config
from alrp.engine import setup_config
from alrp.errors import UserError
from alrp.head_nodes import head_node
from alrp.modeling import ALRPRetinaNet, FoveaBox

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class RetinaLikeDetector(nn.Module):
    """A user's own architecture that has nothing to do with RetinaNet but its name."""


class OwnFoveaBox(FoveaBox):
    """A user's subclass."""


class OwnDetector(ALRPRetinaNet):
    """A user's subclass without "Retina" in its name."""


@pytest.fixture
def own_architectures():
    classes = (RetinaLikeDetector, OwnFoveaBox, OwnDetector)
    for each in classes:
        META_ARCH_REGISTRY.register(each)
    yield
    for each in classes:
        del META_ARCH_REGISTRY._obj_map[each.__name__]


def config(architecture, **keys):
    cfg = load_config(str(CONFIGS / "Base-COCO.yaml"))
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    return cfg


@pytest.mark.parametrize(
    "architecture, node",
    [
        ("RetinaNet", "RETINANET"),
        ("ALRPRetinaNet", "RETINANET"),
        ("FoveaBox", "FOVEABOX"),
        ("GeneralizedRCNN", "ROI_HEADS"),
        ("PanopticFPN", "ROI_HEADS"),
        ("SemanticSegmentor", None),
        ("NoSuchRetinaNet", None),
        ("OwnFoveaBox", "FOVEABOX"),
        ("OwnDetector", "RETINANET"),
        ("RetinaLikeDetector", None),
    ],
)
def test_the_node_follows_from_the_class_and_not_from_its_name(
    own_architectures, architecture, node
):
    assert head_node(config(architecture)) == node


def test_an_own_head_node_is_named_by_the_config(own_architectures):
    cfg = config("RetinaLikeDetector", **{"MODEL.ALRP.HEAD_NODE": "FOVEABOX"})
    assert head_node(cfg) == "FOVEABOX"


@pytest.mark.parametrize("name", ["NO_SUCH_NODE", "META_ARCHITECTURE"])
def test_a_head_node_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=f"MODEL.ALRP.HEAD_NODE.*{name}"):
        head_node(config("RetinaNet", **{"MODEL.ALRP.HEAD_NODE": name}))


@pytest.mark.parametrize(
    "architecture, node", [("OwnDetector", ""), ("RetinaLikeDetector", "FOVEABOX")]
)
@pytest.mark.parametrize("levels", [["p3", "p4", "p5"], ["p3", "p4", "p5", "p6", "p7"]])
def test_p6_and_p7_are_built_if_the_own_head_reads_them(
    own_architectures, architecture, node, levels
):
    cfg = config(architecture, **{"MODEL.ALRP.HEAD_NODE": node})
    cfg.MODEL[node or "RETINANET"].IN_FEATURES = levels
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert isinstance(backbone.top_block, LastLevelP6P7) == ("p6" in levels)


def test_a_backbone_for_an_unknown_head_asks_for_its_node(own_architectures):
    with pytest.raises(UserError, match='"RetinaLikeDetector".*MODEL.ALRP.HEAD_NODE'):
        build_backbone(config("RetinaLikeDetector"), ShapeSpec(channels=3))


@pytest.mark.parametrize("in_file", [True, False])
def test_a_key_that_moved_is_refused_with_its_new_name(tmp_path, in_file):
    file = tmp_path / "old.yaml"
    file.write_text("MODEL:\n  ALRP:\n    NORM_EVAL: True\n" if in_file else "VERSION: 2\n")
    opts = [] if in_file else ["MODEL.ALRP.NORM_EVAL", "True"]
    with pytest.raises(UserError, match="NORM_EVAL was renamed to MODEL.BACKBONE.NORM_EVAL"):
        setup_config(Namespace(config_file=str(file), opts=opts))
