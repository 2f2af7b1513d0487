"""What the command of a LazyConfig does before it trains, and the keys that its checks read.

A config has ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train`` as in
Detectron2, and optionally ``dataloader.coco_format``, a list like ``DATASETS.COCO_FORMAT``.
"""

from __future__ import annotations

import difflib
from typing import Any, Callable, Iterator, Sequence
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)

from ..config import add_alrp_config
from ..data.datasets.coco_format import expand_path, register_coco_format
from ..errors import UserError
from ..head_nodes import HEAD_NODES
from ..modeling.head_losses import HEAD_LOSSES
from .checks import (
    EVALUATION_KEYS,
    OPTIONAL_KEYS,
    check_complete,
    check_lazy_config,
    check_lazy_values,
    in_lazy_names,
)
from .command import run_command
from .preflight import report

# Name of the losses' class -> MODEL.ALRP.LOSS_TYPE.
_LOSS_TYPES = {losses.__name__: name for name, losses in HEAD_LOSSES.items()}


def setup_lazy_config(args) -> DictConfig:
    """Config of a command, with its COCO-format datasets registered.

    The file is Python code, which is run: read it before, if it is not yours.

    Without a GPU ``train.device`` starts as "cpu"; overrides may change it. ``~`` and environment
    variables in ``train.output_dir`` and ``train.init_checkpoint`` are replaced.

    Args:
        args: of ``argument_parser``; overrides are written ``path.key=value``.

    Raises:
        UserError: if the file or an override does not fit.
    """
    if not args.config_file.endswith(".py"):  # Detectron2 runs the Python tags of a YAML file
        raise UserError(
            f"--config-file {args.config_file!r} is no LazyConfig, whose name ends with .py; "
            "train_net.py takes YAML files."
        )
    try:
        cfg = LazyConfig.load(args.config_file)
        if not torch.cuda.is_available():
            OmegaConf.update(cfg, "train.device", "cpu", force_add=True)
        _check_keys(cfg, args.opts or [])
        cfg = LazyConfig.apply_overrides(cfg, args.opts or [])
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is Python code, hydra documents no errors
        raise UserError(
            f"config: {type(error).__name__}: {str(error).strip().rstrip('.')}. Check "
            f"--config-file {args.config_file!r}, which must be a Python LazyConfig (train_net.py "
            "takes YAML), and the path.key=value overrides, which must come after all --options."
        ) from error
    check_complete(cfg, args.config_file)
    report(check_lazy_values(cfg))
    for key in ("output_dir", "init_checkpoint"):
        cfg.train[key] = expand_path(cfg.train[key] or "", f"train.{key}")
    register_coco_format(as_cfg_node(cfg))
    return cfg


def run_lazy_command(main: Callable, args) -> int:
    """As ``run_command``, for a LazyConfig, whose keys the messages name."""
    return run_command(main, args, check_and_convert, is_complete=False, rephrase=in_lazy_names)


def check_and_convert(args) -> CfgNode:
    """The keys of a command's config that the further checks read; what is built is checked here.

    Args:
        args: as for :func:`setup_lazy_config`.

    Raises:
        UserError: if the file, an override or a value does not fit.
    """
    cfg = setup_lazy_config(args)
    node, file = as_cfg_node(cfg), LazyConfig.load(args.config_file)
    report(check_lazy_config(cfg, file, for_training=not args.eval_only))
    return node


def as_cfg_node(cfg: DictConfig) -> CfgNode:
    """The keys that the checks and the dry run read, from their places in a LazyConfig."""
    node = get_cfg()
    add_alrp_config(node)
    train, loader, model = cfg.train, cfg.dataloader, cfg.model
    architecture = target_name(model)
    if architecture in META_ARCH_REGISTRY:
        node.MODEL.META_ARCHITECTURE = architecture
    _set_class_count(node, model)
    _set_component_names(node, model)
    # Whether masks and keypoints are read from the annotation files.
    heads = model.get("roi_heads") or {}
    node.MODEL.MASK_ON = heads.get("mask_head") is not None
    node.MODEL.KEYPOINT_ON = heads.get("keypoint_head") is not None
    # Sizes are those of the mappers, which name the image that does not fit.
    node.INPUT.AUGMENTATION = "published"
    node.MODEL.DEVICE = train.device
    node.MODEL.WEIGHTS = train.init_checkpoint
    node.DATASETS.TRAIN = as_tuple(loader.train.dataset.names)
    node.DATASETS.TEST = as_tuple(loader.test.dataset.names)
    node.DATASETS.COCO_FORMAT = OmegaConf.to_container(
        OmegaConf.create(loader.get("coco_format", []))
    )
    _set_mask_format(node, loader.train.get("mapper"))
    node.DATALOADER.NUM_WORKERS = loader.test.get("num_workers", 0)
    node.TEST.EVAL_PERIOD = train.eval_period
    for name in EVALUATION_KEYS:
        node.TEST[name] = train.get(name.lower(), node.TEST[name])
    node.DATASETS.CLASSES = tuple(loader.get("classes", ()))
    node.SOLVER.IMS_PER_BATCH = loader.train.total_batch_size
    node.SOLVER.OPTIMIZER = target_name(cfg.optimizer)
    node.SOLVER.BASE_LR = cfg.optimizer.lr
    node.SOLVER.AMP.ENABLED = train.amp.enabled
    node.SOLVER.AMP.DTYPE = train.amp.get("dtype", node.SOLVER.AMP.DTYPE)
    node.SOLVER.MICRO_BATCH_SIZE = train.get("micro_batch_size", 0)
    # Milestones and warm-up of a multiplier are relative, so that none can lie beyond the end.
    node.SOLVER.MAX_ITER, node.SOLVER.STEPS, node.SOLVER.WARMUP_ITERS = train.max_iter, (), 0
    node.OUTPUT_DIR = train.output_dir
    node.SEED = train.get("seed", -1)
    node.freeze()
    return node


def _set_mask_format(node: CfgNode, mapper: Any) -> None:
    """A mapper that is not Detectron2's, and does not say, may read masks of both kinds."""
    if not isinstance(mapper, DictConfig) or "_target_" not in mapper:
        return
    if target_name(mapper) not in ("DatasetMapper", "ALRPDatasetMapper"):
        node.INPUT.MASK_FORMAT = "bitmask"
    node.INPUT.MASK_FORMAT = mapper.get("instance_mask_format", node.INPUT.MASK_FORMAT)


def _set_class_count(node: CfgNode, model: DictConfig) -> None:
    """Written to every node: which one counts is known for registered architectures only."""
    parts = [model.get("roi_heads"), model]
    counts = [part.num_classes for part in parts if part is not None and "num_classes" in part]
    for name in HEAD_NODES.values():
        node.MODEL[name].NUM_CLASSES = counts[0] if counts else 80


def _set_component_names(node: CfgNode, model: DictConfig) -> None:
    """Losses, and of an R-CNN its parts, by the classes that the model is made of."""
    for part in map(target_name, call_nodes(model)):
        node.MODEL.ALRP.LOSS_TYPE = _LOSS_TYPES.get(part, node.MODEL.ALRP.LOSS_TYPE)
    for key, registry in (
        ("proposal_generator", PROPOSAL_GENERATOR_REGISTRY),
        ("roi_heads", ROI_HEADS_REGISTRY),
    ):
        if key in model and target_name(model[key]) in registry:
            node.MODEL[key.upper()].NAME = target_name(model[key])


def _check_keys(cfg: DictConfig, overrides: list[str]) -> None:
    """Detectron2 adds a mistyped key without a word; only arguments of a call may be new."""
    for override in overrides:
        key = override.split("=")[0].lstrip("+~")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        known = isinstance(node, ListConfig) or (
            isinstance(node, DictConfig) and (name in node or "_target_" in node)
        )
        if not known and key not in OPTIONAL_KEYS:
            close = in_lazy_names(key)
            if close == key and isinstance(node, DictConfig):
                near = difflib.get_close_matches(name, map(str, node), n=1)
                close = ".".join(filter(None, (parent, *near))) if near else key
            meant = f"{close} if that is meant" if close != key else "one of the config's own"
            raise UserError(
                f"config: no key {key!r}; write {meant}, as path.key=value, for example "
                "train.max_iter=1000."
            )


def target_name(node: DictConfig) -> str:
    """Last part of the name of what a node calls."""
    target = node._target_
    return target.rsplit(".", 1)[-1] if isinstance(target, str) else target.__name__


def call_nodes(cfg: DictConfig) -> Iterator[DictConfig]:
    """Every node of a config that calls something, parents first."""
    if "_target_" in cfg:
        yield cfg
    for value in cfg.values():
        for child in value if isinstance(value, ListConfig) else [value]:
            if isinstance(child, DictConfig):
                yield from call_nodes(child)


def as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of datasets, of which a LazyConfig may have a single one without a list."""
    return (names,) if isinstance(names, str) else tuple(names)
