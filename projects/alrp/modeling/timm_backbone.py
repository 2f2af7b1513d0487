"""Backbones of timm (PyTorch Image Models) for Detectron2. Nothing else here imports timm."""

from __future__ import annotations

import difflib
from types import ModuleType
from typing import Any, Sequence
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone

from ..errors import UserError
from ..head_nodes import head_node
from .backbone import (
    LastLevelP6P7NoReLU,
    PublishedFPN,
    build_published_fpn,
    head_reads_p6_or_p7,
    subsampled_last_level,
)


class TimmBackbone(Backbone):
    """A convolutional or hierarchical model of timm, as a bottom-up network.

    Its last feature of stride 2^k is called ``"res<k>"``, as in Detectron2's ResNet. Layers behind
    the last feature asked for are left out. ``net`` holds the others under timm's own names.

    Args:
        model_name: as ``timm.list_models()`` has it, with or without a tag of weights.
        out_features: such as ``["res3", "res4", "res5"]``, in order of stride.
        pretrained: start from the weights that timm downloads; on PyTorch's meta device, nothing
            is downloaded.
        freeze_at: 0 trains all; k freezes everything up to the features of stride 2^k, and makes
            batch norm constant there.
        norm: ``"BN"``, or ``"FrozenBN"`` for constant batch norm everywhere.

    Raises:
        UserError: without timm, for an unknown model, or for a feature that the model has not.
    """

    def __init__(
        self,
        model_name: str,
        out_features: Sequence[str],
        *,
        pretrained: bool = False,
        freeze_at: int = 0,
        norm: str = "BN",
    ) -> None:
        super().__init__()
        timm = _import_timm()
        with torch.device("meta"):
            twin = _create(timm, model_name)
        features = _features(twin, model_name)
        if not out_features or not set(out_features) <= set(features):
            raise UserError(
                f"MODEL.FPN.IN_FEATURES (out_features in Python) must name features of "
                f"{model_name}, which has {', '.join(features)}, but is {list(out_features)}."
            )
        if norm not in ("BN", "FrozenBN"):
            raise UserError(f'MODEL.TIMM.NORM must be "BN" or "FrozenBN", but is {norm!r}.')
        chosen = {name: features[name] for name in out_features}
        self._out_features = list(chosen)
        self._out_feature_channels = {name: info["num_chs"] for name, info in chosen.items()}
        self._out_feature_strides = {name: info["reduction"] for name, info in chosen.items()}
        self._indices = [info["index"] for info in chosen.values()]
        frozen = [i["index"] for i in features.values() if i["reduction"] <= 2**freeze_at]
        trained = _parameters_below(twin, self._indices)
        if freeze_at:
            trained -= _parameters_below(twin, frozen)
        is_meta = torch.empty(0).is_meta
        self.net = _create(timm, model_name, pretrained=pretrained and not is_meta)
        self.net.prune_intermediate_layers(self._indices, prune_norm=True)
        _freeze_all_but(self.net, trained, norm == "FrozenBN")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features by name, each (N, C, H / stride, W / stride), of images (N, 3, H, W)."""
        return dict(zip(self._out_features, _intermediates(self.net, x, self._indices)))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> PublishedFPN:
    """The model ``MODEL.TIMM.MODEL_NAME`` with an FPN on ``MODEL.FPN.IN_FEATURES``.

    A dense detector gets P6 and P7 on top of "res5" if its head reads them, an R-CNN P6 by
    subsampling if its RPN reads it. ``MODEL.BACKBONE.FREEZE_AT`` and ``NORM_EVAL`` hold as for the
    ResNets here.

    Raises:
        UserError: as of :class:`TimmBackbone`, for images of other than 3 channels, and for P6 and
            P7 without "res5".
    """
    options = cfg.MODEL.TIMM
    if input_shape.channels != 3:
        raise UserError(
            f"MODEL.PIXEL_MEAN must have 3 values for {options.MODEL_NAME}, but has "
            f"{input_shape.channels}."
        )
    bottom_up = TimmBackbone(
        options.MODEL_NAME,
        cfg.MODEL.FPN.IN_FEATURES,
        pretrained=options.PRETRAINED and not cfg.MODEL.WEIGHTS,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=options.NORM,
    )
    return build_published_fpn(cfg, bottom_up, _top_block(cfg, bottom_up))


def _top_block(cfg, bottom_up: TimmBackbone) -> nn.Module | None:
    """The levels above the bottom-up network that head or RPN read; None if they read none."""
    if head_node(cfg) == "ROI_HEADS":
        return subsampled_last_level(cfg) if "p6" in cfg.MODEL.RPN.IN_FEATURES else None
    if not head_reads_p6_or_p7(cfg):
        return None
    if "res5" not in bottom_up.output_shape():
        raise UserError(
            'MODEL.FPN.IN_FEATURES must hold "res5", from which P6 and P7 of the head come, but is '
            f"{cfg.MODEL.FPN.IN_FEATURES}."
        )
    channels = bottom_up.output_shape()["res5"].channels
    return LastLevelP6P7NoReLU(channels, cfg.MODEL.FPN.OUT_CHANNELS)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"timm, which this backbone needs, cannot be imported ({error}); run: "
            'pip install -e ".[timm]"'
        ) from error
    return timm


def _create(timm: ModuleType, model_name: str, *, pretrained: bool = False) -> nn.Module:
    """A classifier of timm; UserError if there is none of that name."""
    if not timm.is_model(model_name):
        near = difflib.get_close_matches(model_name.split(".")[0], timm.list_models(), n=5)
        raise UserError(
            f"MODEL.TIMM.MODEL_NAME (model_name in Python) {model_name!r} is no model of timm "
            f"{timm.__version__}; "
            + (f"near it are {', '.join(near)}." if near else "see timm.list_models().")
        )
    try:
        return timm.create_model(model_name, pretrained=pretrained, strict_img_size=False)
    except TypeError:  # only models of one image size, such as Swin, have this option
        return timm.create_model(model_name, pretrained=pretrained)


def _features(net: nn.Module, model_name: str) -> dict[str, dict[str, Any]]:
    """What timm says of the features of a model, by their names here, in order of stride."""
    infos = getattr(net, "feature_info", [])
    infos = getattr(infos, "info", infos)
    features = {}
    for index, info in enumerate(infos):
        exponent = info["reduction"].bit_length() - 1
        if 2**exponent == info["reduction"]:
            features[f"res{exponent}"] = {**info, "index": index}
    if len(features) < 2 or not hasattr(net, "prune_intermediate_layers"):
        raise UserError(
            f"MODEL.TIMM.MODEL_NAME {model_name!r} gives no features of several strides, which an "
            "FPN needs; choose a convolutional or hierarchical model, such as resnet50."
        )
    return features


def _intermediates(net: nn.Module, x: Tensor, indices: list[int]) -> list[Tensor]:
    return net.forward_intermediates(x, indices=indices, output_fmt="NCHW", intermediates_only=True)


@torch.enable_grad()
def _parameters_below(twin: nn.Module, indices: list[int]) -> set[str]:
    """Names of the parameters that features depend on.

    Args:
        twin: the model on the meta device, where this takes no time.
        indices: of the features; may be empty.
    """
    if not indices:
        return set()
    image = torch.empty(2, *twin.pretrained_cfg["input_size"], device="meta")
    total = sum(feature.sum() for feature in _intermediates(twin, image, indices))
    names, parameters = zip(*twin.named_parameters())
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return {name for name, gradient in zip(names, gradients) if gradient is not None}


def _freeze_all_but(net: nn.Module, trained: set[str], freezes_norm: bool) -> None:
    """Freeze all other parameters, and the batch norm they belong to, or all if asked."""
    from timm.layers import freeze_batch_norm_2d

    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in list(net.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        if freezes_norm or (module.weight is not None and not module.weight.requires_grad):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, freeze_batch_norm_2d(module))
