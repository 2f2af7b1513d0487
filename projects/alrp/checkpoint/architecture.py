"""Which of the published detectors a state dict is of, under either framework's names."""

from __future__ import annotations

import re
from collections import Counter
from typing import Mapping, NamedTuple
from torch import Tensor

from ..errors import UserError

RETINANET, ATSS, FOVEABOX, FASTER_RCNN = "RetinaNet", "ATSS", "FoveaBox", "Faster R-CNN"

# Config key of the number of classes.
CLASS_COUNT_KEYS = {
    RETINANET: "MODEL.RETINANET.NUM_CLASSES",
    ATSS: "MODEL.RETINANET.NUM_CLASSES",
    FOVEABOX: "MODEL.FOVEABOX.NUM_CLASSES",
    FASTER_RCNN: "MODEL.ROI_HEADS.NUM_CLASSES",
}


class Architecture(NamedTuple):
    """What the names and shapes of a state dict tell of its model.

    Attributes:
        detector: "RetinaNet", "ATSS" (without centerness), "FoveaBox" or "Faster R-CNN".
        depth: 50 or 101, of the ResNet.
        groups, width_per_group: of its 3x3 convolutions; 1 and 64, or those of a ResNeXt.
        is_deformable: whether res3 to res5 have deformable convolutions.
        anchors: per location, of the RetinaNet, ATSS or RPN; 1 for FoveaBox.
        has_background: whether the classifier has a unit for it (softmax).
        num_classes: without background.
    """

    detector: str = RETINANET
    depth: int = 50
    groups: int = 1
    width_per_group: int = 64
    is_deformable: bool = False
    anchors: int = 2
    has_background: bool = False
    num_classes: int = 80

    def __str__(self) -> str:
        backbone = f"ResNet-{self.depth}"
        if self.groups > 1:
            backbone = f"ResNeXt-{self.depth}-{self.groups}x{self.width_per_group}d"
        backbone += "-DCN" if self.is_deformable else ""
        head = f"{self.num_classes} {'softmax' if self.has_background else 'sigmoid'} classes"
        if self.detector != FOVEABOX:
            head = f"{self.anchors} anchors per location, {head}"
        return f"{self.detector}, {backbone}, {head}"


# Config of each published row (a stem in configs/COCO-Detection) and its architecture.
_R101, _X101 = {"depth": 101}, {"depth": 101, "groups": 64, "width_per_group": 4}
_FASTER = {"detector": FASTER_RCNN, "anchors": 3}
PUBLISHED_ROWS = {
    "ap_retinanet_R_50_FPN_maxiou_100e": Architecture(anchors=6),
    "alrp_retinanet_R_50_FPN_maxiou_100e": Architecture(anchors=6),
    "alrp_retinanet_R_50_FPN_ATSS_100e": Architecture(),
    "alrp_retinanet_R_101_FPN_ATSS_100e": Architecture(**_R101),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_100e": Architecture(**_X101),
    "alrp_retinanet_R_101_FPN_ATSS_800_100e": Architecture(**_R101, anchors=3),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_800_100e": Architecture(**_X101, anchors=3),
    "alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e": Architecture(
        **_X101, anchors=3, is_deformable=True
    ),
    "focal_foveabox_R_50_FPN_100e": Architecture(detector=FOVEABOX, anchors=1),
    "ap_foveabox_R_50_FPN_100e": Architecture(detector=FOVEABOX, anchors=1),
    "alrp_foveabox_R_50_FPN_100e": Architecture(detector=FOVEABOX, anchors=1),
    "ce_faster_rcnn_R_50_FPN_100e": Architecture(**_FASTER, has_background=True),
    "ce_giou_faster_rcnn_R_50_FPN_100e": Architecture(**_FASTER, has_background=True),
    "alrp_faster_rcnn_R_50_FPN_100e": Architecture(**_FASTER),
    "rs_retinanet_R_50_FPN_ATSS_1x": Architecture(detector=ATSS, anchors=3),
    "rs_faster_rcnn_R_50_FPN_1x": Architecture(**_FASTER),
}


class _Naming(NamedTuple):
    """Where one framework keeps what tells architectures apart."""

    conv2: str  # pattern with the groups stage and block
    offset: str  # pattern
    first_stage: int
    rpn: str
    outputs: dict[str, tuple[str, str]]  # detector -> layers of the classes and of the boxes


PUBLISHED = _Naming(
    conv2=r"backbone\.layer(\d)\.(\d+)\.conv2\.weight",
    offset=r"backbone\.layer\d\.\d+\.conv2\.conv_offset\.weight",
    first_stage=1,
    rpn="rpn_head.rpn_cls.weight",
    outputs={
        RETINANET: ("bbox_head.retina_cls", "bbox_head.retina_reg"),
        ATSS: ("bbox_head.atss_cls", "bbox_head.atss_reg"),
        FOVEABOX: ("bbox_head.fovea_cls", "bbox_head.fovea_reg"),
        FASTER_RCNN: ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
    },
)
DETECTRON2 = _Naming(
    conv2=r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv2\.weight",
    offset=r"backbone\.bottom_up\.res\d\.\d+\.conv2_offset\.weight",
    first_stage=2,
    rpn="proposal_generator.rpn_head.objectness_logits.weight",
    outputs={
        # FoveaBox, if it has one box a location; ATSS, if the boxes of each level are scaled.
        RETINANET: ("head.cls_score", "head.bbox_pred"),
        FASTER_RCNN: ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"),
    },
)

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def architecture_of(
    state: Mapping[str, Tensor], naming: _Naming, dense_detector: str | None = None
) -> Architecture:
    """Architecture of a state dict, of which single tensors may be missing.

    Args:
        state: names to tensors.
        naming: ``PUBLISHED`` or ``DETECTRON2``.
        dense_detector: which one it is if ``DETECTRON2`` names a RetinaNet or a FoveaBox; by
            default a FoveaBox if there is one box per location.

    Raises:
        UserError: if it is none that the published detectors could have.
    """
    found = [d for d, layers in naming.outputs.items() if f"{layers[0]}.weight" in state]
    if len(found) != 1:
        raise UserError(
            "expected the weights of a RetinaNet, an ATSS, a FoveaBox or a Faster R-CNN "
            f"({', '.join(f'{c}.weight' for c, _ in naming.outputs.values())}), but got another "
            f"detector: {_overview(state)}; only the models of the published tables are converted."
        )
    detector = found[0]
    layers = naming.outputs[detector]
    num_scores, num_values = (len(_weight(state, f"{layer}.weight")) for layer in layers)
    has_background = False
    if detector == FASTER_RCNN:
        anchors = len(_weight(state, naming.rpn))
        num_classes = num_values // 4
        has_background = num_scores == num_classes + 1
        is_whole = num_values % 4 == 0 and num_scores in (num_classes, num_classes + 1)
    else:
        anchors = num_values // 4
        num_classes = num_scores // max(anchors, 1)
        is_whole = num_values % 4 == 0 and num_scores == anchors * num_classes
        if naming is DETECTRON2:
            detector = dense_detector or (FOVEABOX if anchors == 1 else RETINANET)
            detector = ATSS if "head.scales.0.scale" in state else detector
    expected = {a.anchors for a in PUBLISHED_ROWS.values() if a.detector == detector}
    if not is_whole or num_classes < 1 or anchors not in expected:
        raise UserError(
            f"expected a {detector} with {' or '.join(map(str, sorted(expected)))} anchors per "
            f"location and boxes of each class, but {layers[0]} has {num_scores} and {layers[1]} "
            f"{num_values} outputs ({anchors} anchors); this head is in no published table."
        )
    return Architecture(detector, *_backbone(state, naming), anchors, has_background, num_classes)


def rows_of(architecture: Architecture) -> list[str]:
    """Configs of the published rows with this architecture, whatever the number of classes."""
    num_classes = architecture.num_classes
    return [
        row
        for row, published in PUBLISHED_ROWS.items()
        if published._replace(num_classes=num_classes) == architecture
    ]


def _backbone(state: Mapping[str, Tensor], naming: _Naming) -> tuple[int, int, int, bool]:
    """Depth, groups, width per group, and whether it is deformable."""
    num_blocks, shape = [0] * 4, None
    for name, tensor in state.items():
        match = re.fullmatch(naming.conv2, name)
        if match and 0 <= int(match[1]) - naming.first_stage < 4:
            stage = int(match[1]) - naming.first_stage
            num_blocks[stage] = max(num_blocks[stage], int(match[2]) + 1)
            shape = tensor.shape if stage == 0 else shape
    depths = [depth for depth, blocks in BLOCKS.items() if list(blocks) == num_blocks]
    if not depths or shape is None or len(shape) != 4:
        raise UserError(
            "expected the backbone ResNet-50 or -101, with "
            f"{' or '.join(str(list(b)) for b in BLOCKS.values())} blocks, but got {num_blocks}; "
            "only the models of the published tables are converted."
        )
    groups = shape[0] // shape[1]
    is_deformable = any(re.fullmatch(naming.offset, name) for name in state)
    return depths[0], groups, shape[0] // groups, is_deformable


def _weight(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(
            f"expected the tensor {name}, from which the model is recognised, but the checkpoint "
            "has none; use a complete one."
        )
    return state[name]


def _overview(state: Mapping[str, Tensor]) -> str:
    """Like "backbone.features (30 tensors), neck.convs (4)"."""
    counts = Counter(".".join(name.split(".")[:2]) for name in state)
    parts = [f"{part} ({count})" for part, count in counts.most_common(6)]
    return ", ".join(parts) + (", ..." if len(counts) > 6 else "")
