"""Keys that were changed and do nothing in a run."""

from __future__ import annotations

from typing import Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY

from ...coco import Finding
from ...head_nodes import lineage
from .keys import EVALUATION_KEYS, changed_keys, value_of

# Read by the commands and the trainer, not by what a trial builds.
_READ_BY_COMMANDS = (
    "CUDNN_BENCHMARK",
    "DATASETS.CLASSES",
    "DATASETS.COCO_FORMAT",
    "DATASETS.TEST",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SEED",
    "TEST.AUG.ENABLED",
    "TEST.EXPECTED_RESULTS",
    "VERSION",
)
_READ_BY_TRAINING = (
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "DATASETS.TRAIN",
    "SOLVER.AMP.ENABLED",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "TEST.EVAL_PERIOD",
    "TEST.PRECISE_BN.ENABLED",
    *(f"TEST.{name}" for name in EVALUATION_KEYS),
)

# What to set instead, for keys that are often taken for others.
_ALTERNATIVES = {
    "INPUT.MAX_SIZE_TRAIN": "INPUT.SQUARE_SIZE_TRAIN has, with INPUT.AUGMENTATION 'published'",
    "INPUT.MIN_SIZE_TRAIN": "INPUT.SQUARE_SIZE_TRAIN has, with INPUT.AUGMENTATION 'published'",
    "INPUT.SQUARE_SIZE_TRAIN": "INPUT.MIN_SIZE_TRAIN has, with INPUT.AUGMENTATION 'detectron2'",
}


def keys_without_effect(cfg: CfgNode, reads: Iterable[str]) -> list[str]:
    """Keys with another value than their default that a training run does not use.

    Args:
        cfg: full config.
        reads: dotted keys that the trial of a training run reads.
    """
    used = {*reads, *read_by_commands(cfg, for_training=True)}.difference(_read_in_vain(cfg))
    if cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone":
        # The bases set them for ResNets, and a config of another backbone cannot leave them out.
        used.update(f"MODEL.RESNETS.{name}" for name in cfg.MODEL.RESNETS)
    unused = [key for key in changed_keys(cfg) if key not in used]
    # An empty list asks for nothing, such as SOLVER.STEPS () where no schedule has steps.
    return [key for key in unused if value_of(cfg, key) not in ((), [])]


def check_effects(cfg: CfgNode, reads: Iterable[str]) -> list[Finding]:
    """One warning for each key without effect."""
    findings = []
    for key in keys_without_effect(cfg, reads):
        what = f"{value_of(cfg, key)!r} has no effect in this run"
        what += f" ({_ALTERNATIVES[key]})" if key in _ALTERNATIVES else ""
        findings.append(Finding("warning", key, what, f"leave {key} out"))
    return findings


def read_by_commands(cfg: CfgNode, *, for_training: bool) -> Iterator[str]:
    """Keys that a run reads beside those from which model, mappers and optimizer are built."""
    yield from _READ_BY_COMMANDS
    if cfg.TEST.AUG.ENABLED:
        yield from ("TEST.AUG.FLIP", "TEST.AUG.MAX_SIZE", "TEST.AUG.MIN_SIZES")
    if cfg.MODEL.KEYPOINT_ON:
        yield "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE"
    if not for_training:
        return
    yield from _READ_BY_TRAINING
    if cfg.SOLVER.AMP.ENABLED:
        yield "SOLVER.AMP.DTYPE"
    if cfg.TEST.PRECISE_BN.ENABLED:
        yield "TEST.PRECISE_BN.NUM_ITER"
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED:
        yield "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"
    if clipping.ENABLED and clipping.CLIP_TYPE != "value":
        yield "SOLVER.CLIP_GRADIENTS.NORM_TYPE"


def _read_in_vain(cfg: CfgNode) -> Iterator[str]:
    """Keys that Detectron2 reads for options which parts of this project, or others, leave unused.

    Nothing of this can be seen from outside, so it is listed here.
    """
    model = cfg.MODEL
    kinds = lineage(model.META_ARCHITECTURE)
    is_rcnn = "GeneralizedRCNN" in kinds
    if "ALRPRetinaNet" in kinds:
        names = ["BBOX_REG_LOSS_TYPE", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA", "IOU_LABELS"]
        names += ["SMOOTH_L1_LOSS_BETA"] + ["IOU_THRESHOLDS"] * (model.ALRP.MATCHER == "ATSS")
        yield from (f"MODEL.RETINANET.{name}" for name in names)
    generator = lineage(model.PROPOSAL_GENERATOR.NAME, PROPOSAL_GENERATOR_REGISTRY)
    if is_rcnn and "ALRPRPN" in generator:
        names = ["BATCH_SIZE_PER_IMAGE", "BBOX_REG_LOSS_TYPE", "IOU_LABELS", "POSITIVE_FRACTION"]
        names += ["SMOOTH_L1_BETA"]
        yield from (f"MODEL.RPN.{name}" for name in names)
    if is_rcnn and "ALRPROIHeads" in lineage(model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY):
        yield from ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION")
        names = ["BBOX_REG_LOSS_TYPE", "FED_LOSS_NUM_CLASSES", "SMOOTH_L1_BETA", "USE_FED_LOSS"]
        names += ["USE_SIGMOID_CE"]
        yield from (f"MODEL.ROI_BOX_HEAD.{name}" for name in names)
    if not model.ROI_BOX_HEAD.USE_FED_LOSS:
        yield "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES"
    if not model.MASK_ON:
        yield "INPUT.MASK_FORMAT"
