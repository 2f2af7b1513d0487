"""What a training command does around its ``main``: config, checks, launch, one clear error."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable
import torch

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..checkpoint import fetch_checkpoint, last_checkpoint
from ..coco import Finding
from ..config import load_config
from ..data.datasets.coco_format import expand_path, register_coco_format
from ..errors import UserError
from ..files import check_folder
from . import preflight
from .failures import explain
from .launch import ProcessFailure, Terminated, launch, refusal_is_told, world_size


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's ``default_argument_parser`` with ``--dry-run``; processes choose a free port."""
    parser = default_argument_parser()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train one iteration, report memory and the time of the schedule, write nothing",
    )
    # Detectron2's default is one port per user, which a second training finds in use.
    parser.set_defaults(dist_url="auto")
    return parser


def setup_config(args) -> CfgNode:
    """Frozen config of a command, with its COCO-format datasets registered.

    ``~`` and environment variables in ``OUTPUT_DIR`` and ``MODEL.WEIGHTS`` are replaced.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: if the file or an override does not fit, see :func:`alrp.config.load_config`.
    """
    if not args.config_file and not args.opts:
        raise UserError(
            "--config-file is missing; name a YAML file, such as one in configs/COCO-Detection."
        )
    cfg = load_config(args.config_file, args.opts)
    cfg.OUTPUT_DIR = expand_path(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    cfg.MODEL.WEIGHTS = expand_path(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    register_coco_format(cfg)
    cfg.freeze()
    return cfg


def run_command(
    main,
    args,
    setup: Callable[[argparse.Namespace], CfgNode] = setup_config,
    *,
    is_complete: bool = True,
    rephrase: Callable[[str], str] = str,
) -> int:
    """Check the config, launch ``main(args)`` in every process, and report errors of the user.

    Args:
        main: function of ``args`` at the top level of a module; it runs in spawned processes if
            there are several.
        args: of :func:`argument_parser` or Detectron2's ``default_argument_parser``.
        setup: function of ``args`` that gives the config to check.
        is_complete: whether all that the run is built from is in that config; otherwise only
            device, datasets, batch and rates are checked, and ``setup`` checks the rest.
        rephrase: what messages are passed through before they are shown.

    Returns:
        int: 0; 1 after a message on standard error; 130 after Ctrl-C and 143 after SIGTERM.
    """
    cfg = None
    try:
        with refusal_is_told(args):
            _check_dry_run(args)
            cfg = setup(args)
            _check(cfg, args, is_complete, rephrase)
        launch(main, args)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        what = "terminated (SIGTERM)" if terminated else "interrupted"
        return _fail(what + _resume_hint(cfg, args), 143 if terminated else 130)
    except Exception as error:
        failure = error.failure if isinstance(error, ProcessFailure) else explain(error)
        if failure is None:
            raise
        failure = failure.in_evaluation() if args.eval_only else failure
        hint = _resume_hint(cfg, args) if failure.from_outside else ""
        message = failure.message.rstrip(".") + hint if hint else failure.message
        return _fail(rephrase(message))
    return 0


def _check_dry_run(args) -> None:
    """``--dry-run`` stands alone: it trains one iteration from ``MODEL.WEIGHTS``."""
    others = [name for name in ("resume", "eval_only") if getattr(args, name)]
    if getattr(args, "dry_run", False) and others:
        options = " or ".join("--" + name.replace("_", "-") for name in others)
        raise UserError(
            f"--dry-run does not go with {options}: it trains one iteration from the weights of "
            "the config; leave out the one or the other."
        )


def _resume_hint(cfg: CfgNode | None, args) -> str:
    """Whether ``--resume`` can go on; nothing where there is nothing to go on with."""
    if cfg is None or args.eval_only or getattr(args, "dry_run", False):
        return ""
    try:
        path = last_checkpoint(cfg.OUTPUT_DIR)
    except UserError as error:
        return f"; {error}"
    return (
        f"; --resume goes on from {path}" if path else "; there is no checkpoint yet to go on from"
    )


def _check(cfg: CfgNode, args, is_complete: bool, rephrase: Callable[[str], str]) -> None:
    """Everything that can be checked before a process or an output folder is made."""
    _check_processes(args)
    options = {
        "for_training": not args.eval_only,
        "world_size": world_size(args),
    }
    if is_complete:
        options["without_overrides"] = _without_overrides(args)
    check = preflight.check if is_complete else preflight.check_surroundings
    findings = [
        Finding(f.severity, *map(rephrase, (f.where, f.what, f.fix)))
        for f in [*check(cfg, **options), *_check_earlier_training(cfg, args)]
    ]
    preflight.report(findings)
    _check_output_dir(cfg.OUTPUT_DIR)
    _check_weights(cfg, args)
    if args.machine_rank == 0 and not getattr(args, "dry_run", False):
        preflight.write_log(findings, cfg.OUTPUT_DIR)


def _check_earlier_training(cfg: CfgNode, args) -> list[Finding]:
    """A new training in the folder of another one would replace its checkpoints."""
    if args.resume or args.eval_only or getattr(args, "dry_run", False):
        return []
    try:
        path = last_checkpoint(cfg.OUTPUT_DIR)
    except UserError:
        path = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if path is None:
        return []
    what = f"an earlier training left {path}; a new one replaces its checkpoints"
    fix = "add --resume to go on with it, or set OUTPUT_DIR to another folder"
    return [Finding("warning", "OUTPUT_DIR", what, fix)]


def _without_overrides(args) -> CfgNode | None:
    """The config of the file alone; None if a part of it comes from elsewhere."""
    try:
        return load_config(args.config_file)
    except UserError:
        return None


def _check_weights(cfg: CfgNode, args) -> None:
    """The checkpoint to start from, or to evaluate, is there."""
    weights = cfg.MODEL.WEIGHTS
    if args.resume and last_checkpoint(cfg.OUTPUT_DIR):
        return  # MODEL.WEIGHTS is not read
    if args.eval_only and not weights:
        raise UserError(
            "--eval-only needs a checkpoint, but MODEL.WEIGHTS is empty"
            + (f" and {cfg.OUTPUT_DIR} holds none to --resume" if args.resume else "")
            + "; add MODEL.WEIGHTS FILE, or --resume with the OUTPUT_DIR of a training run."
        )
    if "://" in weights:
        fetch_checkpoint(weights)  # here, and not in every process
    elif weights and not os.path.isfile(weights.split("?")[0]):
        raise UserError(
            f"MODEL.WEIGHTS {weights!r} does not exist, or is no file; correct the path, or set it "
            "to '' to start training from random weights."
        )


# What a run writes into OUTPUT_DIR.
_FILES = ("config.yaml", "last_checkpoint", "log.txt", "metrics.json", "model_final.pth")
_FOLDERS = ("inference", "TTA")


def _check_output_dir(output_dir: str) -> None:
    """``OUTPUT_DIR`` and what it holds can be made or written to; nothing is made here."""
    if not output_dir:
        raise UserError('OUTPUT_DIR: expected a folder, but got ""; set OUTPUT_DIR to one.')
    check_folder(output_dir, "OUTPUT_DIR")
    for name in (*_FILES, *_FOLDERS):
        path = os.path.join(output_dir, name)
        if not os.path.exists(path):
            continue
        if os.path.isdir(path) == (name in _FILES) or not os.access(path, os.W_OK):
            kind = "file" if name in _FILES else "folder"
            raise UserError(
                f"OUTPUT_DIR: expected {path} to be a {kind} that you may write to; remove it, or "
                "set OUTPUT_DIR to another folder."
            )


def _check_processes(args) -> None:
    """The processes asked for can be started here."""
    num_gpus, num_machines, rank = args.num_gpus, args.num_machines, args.machine_rank
    if num_gpus < 0 or num_machines < 1 or not 0 <= rank < num_machines:
        raise UserError(
            "expected --num-gpus >= 0, --num-machines >= 1 and --machine-rank from 0 to "
            f"num-machines - 1, but got {num_gpus}, {num_machines} and {rank}; correct them."
        )
    if world_size(args) == 1 or not torch.cuda.is_available():
        return
    if num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus is {num_gpus}, but this machine has {torch.cuda.device_count()}; lower it."
        )


def _fail(message: str, status: int = 1) -> int:
    sys.stderr.write(f"error: {message}\n")
    return status
