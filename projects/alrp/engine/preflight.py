"""Checks of config and datasets that run before any output folder or worker process is made.

A run that would stop with a puzzling error after minutes of loading, or train on nonsense, is to
stop at once with messages that say where the mistake is and how to mend it.
"""

from __future__ import annotations

import logging
import os
from typing import Iterable

from detectron2.config import CfgNode

from ..coco import Finding
from ..errors import UserError
from .checks import (
    check_config,
    check_datasets,
    check_device,
    check_evaluation,
    check_training,
)

_LOGGER = logging.getLogger(__name__)


def check(
    cfg: CfgNode,
    *,
    for_training: bool,
    world_size: int = 1,
    without_overrides: CfgNode | None = None,
) -> list[Finding]:
    """Look for mistakes in a config and in the files of its datasets.

    ``register_coco_format(cfg)`` must have been called. In training, DATASETS.TRAIN and
    DATASETS.TEST are checked (the run ends with an evaluation), otherwise DATASETS.TEST only.

    Args:
        cfg: full config.
        for_training: whether the run trains, or only evaluates.
        world_size: total number of processes, one per GPU.
        without_overrides: the config as its file has it, to tell which key is to blame.

    Returns:
        list[Finding]: empty if all is well.
    """
    findings = check_config(cfg, for_training=for_training, without_overrides=without_overrides)
    if any(finding.severity == "error" for finding in findings):
        return findings  # what follows would be judged by wrong values
    options = {"for_training": for_training, "world_size": world_size, "by_set": True}
    return findings + check_surroundings(cfg, **options)


def check_surroundings(
    cfg: CfgNode, *, for_training: bool, world_size: int = 1, by_set: bool = False
) -> list[Finding]:
    """As :func:`check`, without what is built from the config: device, datasets, batch, rates.

    Args:
        cfg, for_training, world_size: as for :func:`check`.
        by_set: whether the metrics of several test sets begin with the name of the set, as those of
            ``Trainer`` do, and those of a LazyConfig do not.
    """
    findings = check_device(cfg, for_training=for_training, world_size=world_size)
    findings += check_datasets(cfg, for_training=for_training)
    if for_training:
        findings += check_training(cfg, world_size) + check_evaluation(cfg, by_set=by_set)
    return findings


def report(findings: Iterable[Finding]) -> None:
    """Show the warnings, and raise one UserError that lists all errors, if there are any.

    Raises:
        UserError: on one line if there is one error, otherwise with a paragraph for each.
    """
    findings = list(findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    _log_warnings(findings, logging.StreamHandler())
    if len(errors) == 1:
        raise UserError(_sentences(errors[0]))
    if errors:
        heading = f"{len(errors)} mistakes were found before the start."
        raise UserError("\n\n".join([heading, *map(_sentences, errors)]))


def write_log(findings: Iterable[Finding], output_dir: str) -> None:
    """Append the warnings to the log file of a run, which Detectron2 goes on with."""
    findings = list(findings)
    if any(finding.severity == "warning" for finding in findings):
        os.makedirs(output_dir, exist_ok=True)
        _log_warnings(findings, logging.FileHandler(os.path.join(output_dir, "log.txt")))


def _log_warnings(findings: list[Finding], handler: logging.Handler) -> None:
    """Log to one handler in Detectron2's format; its own are set up later."""
    form = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
    handler.setFormatter(logging.Formatter(form, datefmt="%m/%d %H:%M:%S"))
    for finding in findings:
        if finding.severity == "warning":
            record = _LOGGER.makeRecord(
                _LOGGER.name, logging.WARNING, __file__, 0, _sentences(finding), (), None
            )
            handler.handle(record)
    handler.close()


def _sentences(finding: Finding) -> str:
    return f"{finding.where}: {finding.what}. To fix: {finding.fix}."
