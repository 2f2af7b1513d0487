"""Keys of a LazyConfig that the commands read: which values they take, and their names in YAML."""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...coco import Finding
from ...errors import UserError
from .keys import EVALUATION_KEYS
from .ranges import Interval


class Expected(NamedTuple):
    """What the value of a key must be.

    Attributes:
        what: for the messages.
        fits: whether a value is so.
        needed: whether the config must have the key.
    """

    what: str
    fits: Callable[[Any], bool]
    needed: bool = True


def _is_call(value: Any) -> bool:
    """Whether a value is a LazyCall, or what one would have made."""
    if isinstance(value, DictConfig):
        return "_target_" in value
    return value is not None and not isinstance(value, (ListConfig, str, int, float))


def _is_names(value: Any) -> bool:
    names = value if isinstance(value, ListConfig) else [value]
    return len(names) > 0 and all(isinstance(name, str) and name for name in names)


def _is_evaluator(value: Any) -> bool:
    if isinstance(value, DictConfig) and "evaluators" in value:
        parts = value.evaluators
        return isinstance(parts, ListConfig) and len(parts) > 0 and all(map(_is_call, parts))
    return _is_call(value)


def _whole(interval: str, *, needed: bool = True) -> Expected:
    allowed = Interval.parse(interval)
    return Expected(
        f"a whole number {allowed}", lambda value: type(value) is int and value in allowed, needed
    )


_TEXT = Expected("text", lambda value: isinstance(value, str))
_FLAG = Expected("True or False", lambda value: isinstance(value, bool))
_CALL = Expected("a LazyCall", _is_call)
_NODE = Expected("a LazyCall", lambda value: isinstance(value, DictConfig) and "_target_" in value)
_ARGUMENTS = Expected("arguments by name", lambda value: isinstance(value, DictConfig))
_NAMES = Expected("the name of a dataset, or a list of names", _is_names)
_WORKERS = "[0, 1024]"
_RATE = Interval.parse("(0, inf)")

# Parents first: of a parent that is wrong, nothing more is said.
_EXPECTED = {
    "train": _ARGUMENTS,
    "train.amp": _ARGUMENTS,
    "train.amp.enabled": _FLAG,
    "train.amp.dtype": Expected(
        "float16 or bfloat16", lambda value: value in ("float16", "bfloat16"), needed=False
    ),
    "train.best_metric": _TEXT._replace(needed=False),
    "train.checkpointer": _ARGUMENTS,
    "train.checkpointer.period": _whole("[1, inf)"),
    "train.checkpointer.max_to_keep": _whole("[1, inf)", needed=False),
    "train.ddp": _ARGUMENTS,
    "train.device": _TEXT,
    "train.eval_period": _whole("[0, inf)"),
    "train.init_checkpoint": Expected("text or null", lambda value: isinstance(value, str | None)),
    "train.log_period": _whole("[1, inf)"),
    "train.max_iter": _whole("[1, inf)"),
    "train.micro_batch_size": _whole("[0, 100000]", needed=False),
    "train.num_pictures": _whole("[0, 100]", needed=False),
    "train.output_dir": _TEXT,
    "train.patience": _whole("[0, inf)", needed=False),
    # NumPy's limit, less room for the rank that is added.
    "train.seed": _whole("[-1, 4000000000]", needed=False),
    "train.validation_loss": _FLAG._replace(needed=False),
    "dataloader": _ARGUMENTS,
    "dataloader.classes": Expected(
        "a list of names",
        lambda value: isinstance(value, ListConfig) and all(isinstance(x, str) for x in value),
        needed=False,
    ),
    "dataloader.coco_format": Expected(
        "a list of [name, annotation file, image folder]",
        lambda value: isinstance(value, ListConfig),
        needed=False,
    ),
    "dataloader.train": _NODE,
    "dataloader.train.aspect_ratio_grouping": _FLAG._replace(needed=False),
    "dataloader.train.dataset": _NODE,
    "dataloader.train.dataset.filter_empty": _FLAG._replace(needed=False),
    "dataloader.train.dataset.names": _NAMES,
    "dataloader.train.mapper": _CALL,
    "dataloader.train.num_workers": _whole(_WORKERS, needed=False),
    "dataloader.train.total_batch_size": _whole("[1, 100000]"),
    "dataloader.test": _NODE,
    "dataloader.test.batch_size": _whole("[1, 100000]", needed=False),
    "dataloader.test.dataset": _NODE,
    "dataloader.test.dataset.names": _NAMES,
    "dataloader.test.mapper": _CALL,
    "dataloader.test.num_workers": _whole(_WORKERS, needed=False),
    "dataloader.tta_mapper": Expected(
        "a LazyCall, or null for none", lambda value: value is None or _is_call(value), needed=False
    ),
    "dataloader.evaluator": Expected(
        "a LazyCall of an evaluator, or of DatasetEvaluators with at least one", _is_evaluator
    ),
    "model": _NODE,
    "optimizer": _NODE,
    "optimizer.lr": Expected(
        f"a number {_RATE}",
        lambda value: type(value) in (int, float) and value in _RATE,
    ),
    "optimizer.params": _NODE,
    "lr_multiplier": _CALL,
}
OPTIONAL_KEYS = frozenset(key for key, expected in _EXPECTED.items() if not expected.needed)
_ABSENT = object()

# Key of the YAML configs -> the same of a LazyConfig.
_LAZY_NAMES = {
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "DATASETS.CLASSES": "dataloader.classes",
    "DATASETS.COCO_FORMAT": "dataloader.coco_format",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "INPUT.MASK_FORMAT": "dataloader.train.mapper.instance_mask_format",
    "MODEL.DEVICE": "train.device",
    "MODEL.FOVEABOX.NUM_CLASSES": "model.num_classes",
    "MODEL.MASK_ON": "model.roi_heads.mask_head",
    "MODEL.RETINANET.NUM_CLASSES": "model.num_classes",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "SOLVER.AMP.DTYPE": "train.amp.dtype",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.MICRO_BATCH_SIZE": "train.micro_batch_size",
    "TEST.EVAL_PERIOD": "train.eval_period",
    **{f"TEST.{name}": f"train.{name.lower()}" for name in EVALUATION_KEYS},
}
_KEYS = "|".join(map(re.escape, _LAZY_NAMES))
# "set KEY VALUE or KEY VALUE", as one writes it on a command line.
_COMMAND = re.compile(rf"\b(set|add|try|or) ({_KEYS}) (?!to )")
# A key in quotes is one that a user wrote.
_KEY = re.compile(rf"(?<![\w.$/'])({_KEYS})(?![\w./]*\w)")


def in_lazy_names(message: str) -> str:
    """A message about the keys of a YAML config, with the keys of a LazyConfig.

    Example:
        >>> in_lazy_names("MODEL.DEVICE: no GPU. To fix: set MODEL.DEVICE cpu.")
        'train.device: no GPU. To fix: set train.device=cpu.'
    """
    message = message.replace("MODEL.MASK_ON False", "MODEL.MASK_ON null")
    message = _COMMAND.sub(lambda found: f"{found[1]} {_LAZY_NAMES[found[2]]}=", message)
    return _KEY.sub(lambda found: _LAZY_NAMES[found[1]], message)


def check_lazy_values(cfg: DictConfig) -> list[Finding]:
    """Errors of the values that the commands read, of a config that has all keys."""
    findings: dict[str, Finding] = {}
    for key, expected in _EXPECTED.items():
        if any(key.startswith(f"{wrong}.") for wrong in findings):
            continue
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is not _ABSENT and not expected.fits(value):
            what = f"expected {expected.what}, but got {_shown(value)}"
            findings[key] = Finding("error", key, what, f"correct {key}")
    return list(findings.values())


def check_complete(cfg: DictConfig, file: str) -> None:
    """The keys that every run reads are there, and what they refer to is, too.

    Raises:
        UserError: that names what is missing.
    """
    missing: list[str] = []
    for key, expected in _EXPECTED.items():
        parent = key.rpartition(".")[0]
        try:
            holder = OmegaConf.select(cfg, parent) if parent else cfg
            is_missing = OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT
        except OmegaConfBaseException as error:  # of a reference, or inside of a number
            raise UserError(
                f"config: {key} cannot be read from --config-file {file!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        # Of what is there and holds no keys, check_lazy_values tells.
        if expected.needed and is_missing and isinstance(holder, DictConfig):
            missing.append(key)
    if missing:
        raise UserError(
            f"config: expected the key(s) {', '.join(missing)}, but --config-file {file!r} and the "
            "overrides have none; add them to the file, as those in configs/common do."
        )


def _shown(value: Any) -> str:
    text = str(OmegaConf.to_container(value) if OmegaConf.is_config(value) else repr(value))
    return text if len(text) <= 100 else f"{text[:100]} ..."
