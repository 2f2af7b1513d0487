"""Numbers, words and lists of a config that no run can use, whatever it builds from them."""

from __future__ import annotations

import math
import operator
from numbers import Number
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from detectron2.config import CfgNode

from ...coco import Finding
from ...losses.inputs import DELTA_RANGE
from .keys import default_config, leaves, value_of

_COUNT, _SIZE, _LAYERS = "[1, 1000000]", "[1, 65536]", "[0, 64]"
_POSITIVE, _NOT_NEGATIVE, _SHARE = "(0, inf)", "[0, inf)", "[0, 1]"

# Config key -> interval of its number, or of every number in its list. A square bracket belongs to
# the interval, a round one does not. Bounds of sizes and counts keep a mistyped exponent from
# filling the memory or building for ever.
_INTERVALS = {
    "DATALOADER.NUM_WORKERS": "[0, 1024]",
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "INPUT.CROP.SIZE": _POSITIVE,
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.MIN_SIZE_TEST": "[0, 65536]",
    "INPUT.MIN_SIZE_TRAIN": _SIZE,
    "INPUT.SQUARE_SIZE_TRAIN": _SIZE,
    "MODEL.ALRP.DELTA": f"[0, {DELTA_RANGE[1]:g}]",  # 0: as published
    "MODEL.ALRP.MASKS_PER_IMAGE": _NOT_NEGATIVE,
    "MODEL.ALRP.MIN_POS_IOU": _SHARE,
    "MODEL.ALRP.SCORE_THRESH_PREDICT": "[-1, 1]",  # negative: of the checkpoint
    "MODEL.ALRP.SELF_BALANCE.INIT_WEIGHT": "(0, 1e6]",
    "MODEL.ALRP.SELF_BALANCE.MAX_WEIGHT": "(0, 1e6]",
    "MODEL.ALRP.SELF_BALANCE.PERIOD": _NOT_NEGATIVE,
    "MODEL.ALRP.SELF_BALANCE.WEIGHT": "(0, 1e6]",
    "MODEL.ALRP.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.ALRP.TAU": "[0, 1)",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.OFFSET": "[0, 1)",
    "MODEL.ANCHOR_GENERATOR.SIZES": _POSITIVE,
    "MODEL.ATSS.TOPK": _COUNT,
    "MODEL.BACKBONE.FREEZE_AT": "[0, 5]",
    "MODEL.FOVEABOX.BASE_EDGES": _POSITIVE,
    "MODEL.FOVEABOX.FOCAL_LOSS_ALPHA": _SHARE,
    "MODEL.FOVEABOX.FOCAL_LOSS_GAMMA": _NOT_NEGATIVE,
    "MODEL.FOVEABOX.NMS_THRESH_TEST": _SHARE,
    "MODEL.FOVEABOX.NUM_CLASSES": _COUNT,
    "MODEL.FOVEABOX.NUM_CONVS": _LAYERS,
    "MODEL.FOVEABOX.PRIOR_PROB": "(0, 1)",
    "MODEL.FOVEABOX.SCALE_RANGES": _NOT_NEGATIVE,
    "MODEL.FOVEABOX.SCORE_THRESH_TEST": "[0, 1)",
    "MODEL.FOVEABOX.SIGMA": "(0, 1]",
    "MODEL.FOVEABOX.TOPK_CANDIDATES_TEST": "[1, inf)",
    "MODEL.FPN.OUT_CHANNELS": _SIZE,
    "MODEL.PIXEL_STD": _POSITIVE,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _NOT_NEGATIVE,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _SIZE,
    "MODEL.RESNETS.NUM_GROUPS": _SIZE,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _SIZE,
    "MODEL.RESNETS.RES5_DILATION": "[1, 2]",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _SIZE,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _SIZE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _POSITIVE,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": "[-1, 1]",  # negative: no weights
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _NOT_NEGATIVE,
    "MODEL.RETINANET.IOU_THRESHOLDS": _SHARE,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NUM_CLASSES": _COUNT,
    "MODEL.RETINANET.NUM_CONVS": _LAYERS,
    "MODEL.RETINANET.PRIOR_PROB": "(0, 1)",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "[0, 1)",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "[1, inf)",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _POSITIVE,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _SIZE,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _SIZE,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": _COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _LAYERS,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _LAYERS,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "[1, 1024]",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "[0, 1024]",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "(0, 1]",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "[0, 1)",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _SIZE,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _LAYERS,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "[1, 1024]",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "[0, 1024]",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _POSITIVE,
    "MODEL.RPN.IOU_THRESHOLDS": _SHARE,
    "MODEL.RPN.LOSS_WEIGHT": _POSITIVE,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.POSITIVE_FRACTION": "(0, 1]",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "[1, inf)",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "[1, inf)",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "[1, inf)",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "[1, inf)",
    "MODEL.RPN.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "SEED": "[-1, 4000000000]",  # NumPy's limit, less room for the rank that is added
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.BASE_LR_END": _NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": "[1, inf)",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": "(0, inf]",
    "SOLVER.GAMMA": _NOT_NEGATIVE,
    "SOLVER.IMS_PER_BATCH": "[1, 100000]",
    "SOLVER.MAX_ITER": "[1, inf)",
    "SOLVER.MICRO_BATCH_SIZE": "[0, 100000]",
    "SOLVER.MOMENTUM": "[0, 1)",
    "SOLVER.NUM_DECAYS": "[1, 10000]",
    "SOLVER.REFERENCE_WORLD_SIZE": "[0, 100000]",
    "SOLVER.STEPS": "[1, inf)",
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "TEST.AUG.MAX_SIZE": _COUNT,
    "TEST.AUG.MIN_SIZES": _SIZE,
    "TEST.DETECTIONS_PER_IMAGE": "[1, inf)",
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "TEST.NUM_PICTURES": "[0, 100]",
    "TEST.PATIENCE": _NOT_NEGATIVE,
    "TEST.PRECISE_BN.NUM_ITER": "[1, inf)",
    "VIS_PERIOD": _NOT_NEGATIVE,
}

# Words that Detectron2 looks at only when the run is under way, or not at all.
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_CHOICES = {
    "INPUT.FORMAT": ("RGB", "BGR", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "VERSION": (2,),
}

_LENGTHS = {
    "INPUT.CROP.SIZE": 2,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": 4,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": 4,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
    "MODEL.RPN.BBOX_REG_WEIGHTS": 4,
}

# Kinds that the defaults, which are empty, do not tell.
_ELEMENTS = {
    "DATASETS.CLASSES": str,
    "DATASETS.TEST": str,
    "DATASETS.TRAIN": str,
    "MODEL.FPN.IN_FEATURES": str,
    "SOLVER.WEIGHT_DECAY_BIAS": float,
}
_MAY_BE_EMPTY = (
    "DATASETS.CLASSES",
    "DATASETS.TEST",
    "DATASETS.TRAIN",
    "MODEL.RPN.CONV_DIMS",
    "SOLVER.STEPS",
)
_KIND_NAMES = {bool: "True or False", float: "numbers", str: "words"}


class Interval(NamedTuple):
    """A range of numbers, written like "(0, 1]"."""

    low: float
    high: float
    has_low: bool
    has_high: bool

    @classmethod
    def parse(cls, text: str) -> Interval:
        low, high = text[1:-1].split(",")
        return cls(float(low), float(high), text[0] == "[", text[-1] == "]")

    def __contains__(self, value: Number) -> bool:
        above = operator.ge if self.has_low else operator.gt
        below = operator.le if self.has_high else operator.lt
        return above(value, self.low) and below(value, self.high)

    def __str__(self) -> str:
        if math.isinf(self.high) and not self.has_high:
            return f"{'>=' if self.has_low else '>'} {self.low:g}"
        opening, closing = "[" if self.has_low else "(", "]" if self.has_high else ")"
        return f"in {opening}{self.low:.12g}, {self.high:.12g}{closing}"


def unusable_values(cfg: CfgNode) -> dict[str, Finding]:
    """Errors of single values: kind, length, choice, NaN or infinity, range.

    Relations between keys are not looked at, nor whether the run reads a key at all.

    Args:
        cfg: full config.

    Returns:
        dict[str, Finding]: at most one error per key.
    """
    return _errors(cfg, lambda *value: _wrong_kind(*value) or _wrong_value(*value))


def wrong_kinds(cfg: CfgNode) -> dict[str, Finding]:
    """Errors of kind and length alone, which are mistakes whether the run reads a key or not."""
    return _errors(cfg, _wrong_kind)


def _errors(cfg: CfgNode, problem: Callable[[str, Any, Any], str]) -> dict[str, Finding]:
    defaults, findings = default_config(), {}
    for key, value in leaves(cfg):
        default = value_of(defaults, key)
        # An empty default is for the models that do not read the key.
        expected = "" if value == default else problem(key, value, default)
        if expected:
            what = f"expected {expected}, but got {value!r}"
            fix = f"correct {key}; the default is {default!r}"
            findings[key] = Finding("error", key, what, fix)
    return findings


def _wrong_kind(key: str, value: Any, default: Any) -> str:
    """What was expected of a value in kind and length; empty if it is so."""
    elements, kinds = list(_elements(value)), _kinds(key, default)
    if any(not _is_of(element, kinds) for element in elements):
        names = " or ".join(name for kind, name in _KIND_NAMES.items() if kind in kinds)
        return f"a list of {names}" if isinstance(default, (list, tuple)) else "a number"
    if kinds and not elements and not (key in _MAY_BE_EMPTY and len(value) == 0):
        return "at least one value"
    if isinstance(default, (int, float)) and not isinstance(value, Number):
        return "a number"
    if key in _LENGTHS and len(value) != _LENGTHS[key]:
        return f"{_LENGTHS[key]} values"
    return ""


def _wrong_value(key: str, value: Any, default: Any) -> str:
    """What was expected of a value of the right kind; empty if it is so."""
    if key in _CHOICES and value not in _CHOICES[key]:
        return f"one of {list(_CHOICES[key])}"
    numbers = [x for x in _elements(value) if isinstance(x, Number) and not isinstance(x, bool)]
    many = "numbers" if isinstance(value, (list, tuple)) else "a number"
    if key == "SOLVER.STEPS" and list(value) != sorted(set(value)):
        return "numbers in ascending order, each once"
    if key in _INTERVALS:
        interval = Interval.parse(_INTERVALS[key])
        return "" if all(x in interval for x in numbers) else f"{many} {interval}"
    return "" if all(map(math.isfinite, numbers)) else f"{many}, not NaN or infinity"


def _kinds(key: str, default: Any) -> set[type]:
    """Types of a list's elements, by its default; empty if anything goes."""
    kinds = {type(element) for element in _elements(default)}
    if key in _ELEMENTS:
        kinds = {_ELEMENTS[key], *(kinds & {type(None)})}
    elif not isinstance(default, (list, tuple)):
        return set()
    return kinds | {int, float} if kinds & {int, float} else kinds


def _is_of(element: Any, kinds: Iterable[type]) -> bool:
    return not kinds or type(element) in kinds


def _elements(value: Any) -> Iterator[Any]:
    """All that is in a list and the lists within; a value that is no list is its own element."""
    if not isinstance(value, (list, tuple)):
        yield value
        return
    for element in value:
        yield from _elements(element)
