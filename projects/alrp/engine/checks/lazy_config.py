"""Checks of a LazyConfig, with a trial of what is built from it."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, Iterator
import torch
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader

from ...coco import Finding
from ...modeling.micro_batches import set_micro_batch_size
from ...modeling.test_time_augmentation import DenseDetectorWithTTA
from .blame import blamed, error_of
from .trial import (
    TrialFailure,
    first_failure,
    map_picture,
    pass_image,
    record,
    stand_in,
)


def check_lazy_config(cfg: DictConfig, file: DictConfig, *, for_training: bool) -> list[Finding]:
    """Look for values with which a run cannot work, beside those that the commands read.

    Args:
        cfg: full LazyConfig; it stays as it is.
        file: without the overrides of the command line, to tell which one is to blame.
        for_training: whether the run trains, or only evaluates.

    Returns:
        list[Finding]: empty if all is well.
    """
    findings = []
    for key, value in _leaves(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            what = f"expected a number, not NaN or infinity, but got {value}"
            findings.append(Finding("error", key, what, f"correct {key}"))
    findings += _check_evaluated_names(cfg.dataloader)
    if findings:
        return findings
    failure = _try(cfg, for_training)
    if failure is None or failure.is_of_trial:
        return []
    return [_blame(cfg, file, failure, for_training)]


def _check_evaluated_names(loader: DictConfig) -> list[Finding]:
    """The evaluators are for the dataset that is passed through the model."""
    names, root = loader.test.dataset.names, "dataloader.evaluator"
    parts = {root: loader.evaluator}
    if isinstance(loader.evaluator, DictConfig):
        for number, part in enumerate(loader.evaluator.get("evaluators", [])):
            parts[f"{root}.evaluators.{number}"] = part
    findings = []
    for place, part in parts.items():
        key = f"{place}.dataset_name"
        name = part.get("dataset_name") if isinstance(part, DictConfig) else None
        if isinstance(name, str) and name not in ([names] if isinstance(names, str) else names):
            what = f"expected the dataset of dataloader.test, {names}, but got {name!r}"
            findings.append(Finding("error", key, what, f"correct {key}"))
    return findings


def _try(cfg: DictConfig, for_training: bool) -> TrialFailure | None:
    """As ``try_config``."""
    cfg, parts = copy.deepcopy(cfg), {}
    steps = [
        ("building the model", partial(_build_model, cfg, parts)),
        ("preparing an image for the test", partial(_map, cfg.dataloader.test, parts)),
        ("passing an image through the model", lambda: pass_image(parts["model"], parts["image"])),
        ("building the test-time augmentation", partial(_build_tta, cfg, parts)),
        ("building the test loader", partial(_build_loader, cfg.dataloader.test)),
    ]
    if for_training:
        steps += [
            ("setting the size of micro-batches", partial(_set_micro_batch_size, cfg, parts)),
            ("preparing an image for the training", partial(_map, cfg.dataloader.train, parts)),
            ("building the optimizer", partial(_build_optimizer, cfg)),
            ("building the learning rate schedule", partial(_build_schedule, cfg)),
            ("building the training loader", partial(_build_loader, cfg.dataloader.train)),
        ]
    return first_failure(steps)


def _build_model(cfg: DictConfig, parts: dict) -> None:
    with torch.device("meta"):
        parts["model"] = instantiate(cfg.model)


def _build_tta(cfg: DictConfig, parts: dict) -> None:
    mapper = cfg.dataloader.get("tta_mapper")
    if mapper is not None:
        DenseDetectorWithTTA(parts["model"], instantiate(mapper))


def _set_micro_batch_size(cfg: DictConfig, parts: dict) -> None:
    key = "train.micro_batch_size"
    set_micro_batch_size(parts["model"], OmegaConf.select(cfg, key, default=0), key)


def _map(loader: DictConfig, parts: dict) -> None:
    parts["image"] = map_picture(instantiate(loader.mapper))


def _build_optimizer(cfg: DictConfig) -> None:
    cfg.optimizer.params.model = stand_in()
    instantiate(cfg.optimizer)


def _build_schedule(cfg: DictConfig) -> None:
    schedule = instantiate(cfg.lr_multiplier)
    if isinstance(schedule, ParamScheduler):
        schedule(0.0)


def _build_loader(loader: DictConfig) -> None:
    if loader._target_ not in (build_detection_train_loader, build_detection_test_loader):
        return  # nothing is known of what it reads
    loader.dataset = LazyCall(_one_record)()
    instantiate(loader)


def _one_record() -> list[dict]:
    """A dataset that is not read."""
    return [record("")]


def _blame(cfg: DictConfig, file: DictConfig, failure: TrialFailure, for_training: bool) -> Finding:
    """The error of a failed trial, with the overrides that are to blame."""
    in_file = dict(_leaves(file))
    candidates = {k: v for k, v in _leaves(cfg) if k not in in_file or v != in_file[k]}

    def fails_without(key: str) -> TrialFailure | None:
        other = copy.deepcopy(cfg)
        if key in in_file:
            OmegaConf.update(other, key, in_file[key])
        else:
            parent, _, name = key.rpartition(".")
            holder = OmegaConf.select(other, parent)
            holder.pop(int(name) if isinstance(holder, ListConfig) else name)
        return _try(other, for_training)

    keys = blamed(failure, candidates, fails_without)
    values = {k: candidates[k] for k in keys}
    others = {k: in_file[k] for k in keys if k in in_file}
    return error_of(failure, values, others, sign="=")


def _leaves(cfg: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value; those that refer to others are left out."""
    keys = range(len(cfg)) if isinstance(cfg, ListConfig) else cfg.keys()
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        if isinstance(cfg[key], (DictConfig, ListConfig)):
            yield from _leaves(cfg[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", cfg[key]
