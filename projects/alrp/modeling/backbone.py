"""Backbones of the published detectors."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7

from ..errors import UserError
from ..head_nodes import head_node
from .deform_conv import make_deformable
from .micro_batches import MicroBatched, in_micro_batches


class LastLevelP6P7NoReLU(LastLevelP6P7):
    """P6 from C5 and P7 from P6, without the ReLU that Detectron2 puts between them."""

    def forward(self, c5):
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


class PublishedFPN(MicroBatched, FPN):
    """FPN with the published initialisation, and batch norm that may stay in eval mode.

    With ``norm_eval``, batch norm of the bottom-up network uses its stored statistics in training
    as well, while its scale and shift are still trained. Detectron2's ``FrozenBN`` freezes both.

    Args:
        norm_eval: keep batch norm layers of ``bottom_up`` in eval mode.
        kwargs: of Detectron2's ``FPN``.
    """

    def __init__(self, *, norm_eval: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.norm_eval = norm_eval
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("bottom_up."):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As the parent, in micro-batches where a two-stage detector trains in them."""
        if self.splits(len(x)):
            return in_micro_batches(super().forward, [x], self.micro_batch_size)
        return super().forward(x)

    def train(self, mode: bool = True) -> PublishedFPN:
        super().train(mode)
        if self.norm_eval:
            for module in self.bottom_up.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


@BACKBONE_REGISTRY.register()
def build_alrp_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> PublishedFPN:
    """ResNet with an FPN on ``MODEL.FPN.IN_FEATURES``, and P6 and P7 if the head reads them.

    ``MODEL.RESNETS.NORM`` "BN" with ``MODEL.BACKBONE.NORM_EVAL`` reproduces the published recipe.
    Deformable stages (``MODEL.RESNETS.DEFORM_*``) need no compiled operators.

    Raises:
        UserError: for a meta-architecture whose head is not known, see
            :func:`alrp.head_nodes.head_node`.
    """
    bottom_up = _build_bottom_up(cfg, input_shape)
    top_block = None
    if head_reads_p6_or_p7(cfg):
        c5_channels = bottom_up.output_shape()["res5"].channels
        top_block = LastLevelP6P7NoReLU(c5_channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_published_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_atss_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> PublishedFPN:
    """As :func:`build_alrp_resnet_fpn_backbone`, with P6 from P5 instead of C5, as in ATSS."""
    bottom_up = _build_bottom_up(cfg, input_shape)
    top_block = None
    if head_reads_p6_or_p7(cfg):
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        top_block = LastLevelP6P7NoReLU(channels, channels, in_feature="p5")
    return build_published_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_alrp_rcnn_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> PublishedFPN:
    """As :func:`build_alrp_resnet_fpn_backbone`, with one level more by subsampling the last."""
    return build_published_fpn(cfg, _build_bottom_up(cfg, input_shape), subsampled_last_level(cfg))


def subsampled_last_level(cfg) -> LastLevelMaxPool:
    """One level more than ``MODEL.FPN.IN_FEATURES`` gives, by subsampling the last of these."""
    top_block = LastLevelMaxPool()
    top_block.in_feature = cfg.MODEL.FPN.IN_FEATURES[-1].replace("res", "p")
    return top_block


def head_reads_p6_or_p7(cfg) -> bool:
    """Whether P6 and P7 are to be made.

    Unread, they would have parameters without gradient, which DistributedDataParallel refuses.

    Raises:
        UserError: for a meta-architecture whose head is not known.
    """
    node = head_node(cfg)
    if node is None or "IN_FEATURES" not in cfg.MODEL[node]:
        raise UserError(
            f"{cfg.MODEL.BACKBONE.NAME} must know which levels the head reads, but nothing is "
            f'known of MODEL.META_ARCHITECTURE "{cfg.MODEL.META_ARCHITECTURE}"; set '
            "MODEL.ALRP.HEAD_NODE to the node of MODEL that holds its IN_FEATURES."
        )
    return not {"p6", "p7"}.isdisjoint(cfg.MODEL[node].IN_FEATURES)


def _build_bottom_up(cfg, input_shape: ShapeSpec):
    resnets = cfg.MODEL.RESNETS
    plain_cfg = cfg.clone()
    plain_cfg.defrost()
    plain_cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    return make_deformable(
        build_resnet_backbone(plain_cfg, input_shape),
        resnets.DEFORM_ON_PER_STAGE,
        modulated=resnets.DEFORM_MODULATED,
        num_groups=resnets.DEFORM_NUM_GROUPS,
    )


def build_published_fpn(cfg, bottom_up: Backbone, top_block: nn.Module | None) -> PublishedFPN:
    """FPN by ``MODEL.FPN`` and ``MODEL.BACKBONE.NORM_EVAL``."""
    return PublishedFPN(
        norm_eval=cfg.MODEL.BACKBONE.NORM_EVAL,
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
