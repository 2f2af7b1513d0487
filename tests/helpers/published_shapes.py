"""Every tensor of the published models, by name and shape, from the description of their layers.

Written without the tables of the package, to test them.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple
import torch
from torch import Tensor


class Model(NamedTuple):
    """A published model; the defaults are those of aLRP Loss (GIoU + ATSS), ResNet-50, 500."""

    head: str = "retina"  # or "atss", "fovea", "rcnn"
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 1
    base_width: int = 64  # of a group of the 3x3 convolution in the first stage
    deformable: bool = False
    anchors: int = 2
    background: int = 0  # units of the classifier beyond the classes
    classes: int = 80


_R101 = Model(blocks=(3, 4, 23, 3))
_X101 = _R101._replace(groups=64, base_width=4)
_FOVEA, _RCNN = Model("fovea"), Model("rcnn", anchors=3)
MODELS = {
    "ap_retinanet_R_50_FPN_maxiou_100e": Model(anchors=6),
    "alrp_retinanet_R_50_FPN_maxiou_100e": Model(anchors=6),
    "alrp_retinanet_R_50_FPN_ATSS_100e": Model(),
    "alrp_retinanet_R_101_FPN_ATSS_100e": _R101,
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_100e": _X101,
    "alrp_retinanet_R_101_FPN_ATSS_800_100e": _R101._replace(anchors=3),
    "alrp_retinanet_X_101_64x4d_FPN_ATSS_800_100e": _X101._replace(anchors=3),
    "alrp_retinanet_X_101_64x4d_DCN_FPN_ATSS_800_100e": _X101._replace(anchors=3, deformable=True),
    "focal_foveabox_R_50_FPN_100e": _FOVEA,
    "ap_foveabox_R_50_FPN_100e": _FOVEA,
    "alrp_foveabox_R_50_FPN_100e": _FOVEA,
    "ce_faster_rcnn_R_50_FPN_100e": _RCNN._replace(background=1),
    "ce_giou_faster_rcnn_R_50_FPN_100e": _RCNN._replace(background=1),
    "alrp_faster_rcnn_R_50_FPN_100e": _RCNN,
    "rs_retinanet_R_50_FPN_ATSS_1x": Model("atss", anchors=3),
    "rs_faster_rcnn_R_50_FPN_1x": _RCNN,
}


def published_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every entry of the published ``state_dict()``."""
    return dict([*_backbone(model), *_neck(model), *_heads(model)])


def published_state(model: Model) -> dict[str, Tensor]:
    """A state dict of full size that needs no memory, but for the layers of classes and boxes.

    Values of the latter are all different; of another tensor all are the same number, its own.
    """
    state = {}
    for i, (name, shape) in enumerate(published_shapes(model).items()):
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(i)
        elif name.rsplit(".", 2)[-2] in ("retina_cls", "retina_reg", "fovea_cls", "fovea_reg"):
            state[name] = torch.arange(torch.Size(shape).numel()).float().view(shape)
        else:
            state[name] = torch.tensor(i / 1000).expand(shape)
    return state


def _conv(name: str, out: int, into: int, kernel: int, bias: bool = True) -> Iterator:
    yield f"{name}.weight", (out, into, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def _linear(name: str, out: int, into: int) -> Iterator:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _norm(name: str, channels: int) -> Iterator:
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{kind}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _backbone(model: Model) -> Iterator:
    yield from _conv("backbone.conv1", 64, 3, 7, bias=False)
    yield from _norm("backbone.bn1", 64)
    into = 64
    for stage, num_blocks in enumerate(model.blocks, start=1):
        planes = 64 * 2 ** (stage - 1)
        width, out = planes * model.base_width // 64 * model.groups, 4 * planes
        for block in range(num_blocks):
            name = f"backbone.layer{stage}.{block}"
            yield from _conv(f"{name}.conv1", width, into, 1, bias=False)
            yield from _norm(f"{name}.bn1", width)
            yield from _conv(f"{name}.conv2", width, width // model.groups, 3, bias=False)
            if model.deformable and stage > 1:
                # Over all channels: two offsets and a mask for each of 9 taps.
                yield from _conv(f"{name}.conv2.conv_offset", 27, width, 3)
            yield from _norm(f"{name}.bn2", width)
            yield from _conv(f"{name}.conv3", out, width, 1, bias=False)
            yield from _norm(f"{name}.bn3", out)
            if block == 0:
                yield from _conv(f"{name}.downsample.0", out, into, 1, bias=False)
                yield from _norm(f"{name}.downsample.1", out)
            into = out


def _neck(model: Model) -> Iterator:
    channels = (256, 512, 1024, 2048)
    for i, into in enumerate(channels if model.head == "rcnn" else channels[1:]):
        yield from _conv(f"neck.lateral_convs.{i}.conv", 256, into, 1)
        yield from _conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    if model.head != "rcnn":
        yield from _conv("neck.fpn_convs.3.conv", 256, 256 if model.head == "atss" else 2048, 3)
        yield from _conv("neck.fpn_convs.4.conv", 256, 256, 3)


def _heads(model: Model) -> Iterator:
    if model.head == "rcnn":
        yield from _conv("rpn_head.rpn_conv", 256, 256, 3)
        yield from _conv("rpn_head.rpn_cls", model.anchors, 256, 1)
        yield from _conv("rpn_head.rpn_reg", 4 * model.anchors, 256, 1)
        head = "roi_head.bbox_head"
        yield from _linear(f"{head}.fc_cls", model.classes + model.background, 1024)
        yield from _linear(f"{head}.fc_reg", 4 * model.classes, 1024)
        yield from _linear(f"{head}.shared_fcs.0", 1024, 256 * 7 * 7)
        yield from _linear(f"{head}.shared_fcs.1", 1024, 1024)
        return
    is_atss = model.head == "atss"
    for i in range(4):
        for tower in ("cls_convs", "reg_convs"):
            yield from _conv(f"bbox_head.{tower}.{i}.conv", 256, 256, 3, bias=not is_atss)
            if is_atss:
                yield f"bbox_head.{tower}.{i}.gn.weight", (256,)
                yield f"bbox_head.{tower}.{i}.gn.bias", (256,)
    for i in range(5 if is_atss else 0):
        yield f"bbox_head.scales.{i}.scale", ()
    anchors = 1 if model.head == "fovea" else model.anchors
    yield from _conv(f"bbox_head.{model.head}_cls", anchors * model.classes, 256, 3)
    yield from _conv(f"bbox_head.{model.head}_reg", anchors * 4, 256, 3)
