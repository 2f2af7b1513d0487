"""What a training command does around its ``main``: config, checks, launch, one clear error."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable
import torch
from torch.multiprocessing import ProcessRaisedException

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, launch
from detectron2.utils.file_io import PathManager

from ..checkpoint import TorchvisionPathHandler
from ..config import add_alrp_config
from ..data.datasets.coco_format import register_coco_format
from ..errors import UserError
from . import preflight


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's ``default_argument_parser`` with ``--dry-run``."""
    parser = default_argument_parser()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train one iteration, report memory and the time of the schedule, write nothing",
    )
    return parser


def setup_config(args) -> CfgNode:
    """Frozen config of a command, with its COCO-format datasets registered.

    Without a GPU ``MODEL.DEVICE`` starts as "cpu"; the file and the overrides may change it.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: if the file or an override does not fit.
    """
    cfg = get_cfg()
    add_alrp_config(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    try:
        if args.config_file:
            cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts or [])
    except (AssertionError, KeyError, ValueError, OSError) as error:
        message = error if isinstance(error, OSError) else error.args[0]
        raise UserError(
            f"config: {message}. Check --config-file {args.config_file!r} and the KEY VALUE pairs, "
            "which must come after all --options."
        ) from error
    register_coco_format(cfg)
    cfg.freeze()
    return cfg


def run_command(main, args, setup: Callable[[argparse.Namespace], CfgNode] = setup_config) -> int:
    """Check the config, launch ``main(args)`` in every process, and report errors of the user.

    Args:
        main: function of ``args`` at the top level of a module; it runs in spawned processes if
            there are several.
        args: of :func:`argument_parser` or Detectron2's ``default_argument_parser``.
        setup: function of ``args`` that gives the config to check.

    Returns:
        int: 0, or 1 after a message on standard error.
    """
    try:
        _check(setup(args), args)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (UserError, FloatingPointError) as error:
        return _fail(str(error))
    except ProcessRaisedException as error:
        # The parent knows the exception of a spawned process only by its printed traceback.
        for kind in (f"{UserError.__module__}.{UserError.__qualname__}", "FloatingPointError"):
            _, found, message = str(error).rpartition(f"\n{kind}: ")
            if found:
                return _fail(message.strip())
        raise
    return 0


def _check(cfg: CfgNode, args) -> None:
    """Everything that can be checked before a process or an output folder is made."""
    world_size = args.num_gpus * args.num_machines
    findings = preflight.check(cfg, for_training=not args.eval_only, world_size=world_size)
    preflight.report(findings)
    if args.eval_only and not cfg.MODEL.WEIGHTS and not args.resume:
        raise UserError(
            "--eval-only needs a checkpoint, but MODEL.WEIGHTS is empty; add MODEL.WEIGHTS FILE, "
            "or --resume to evaluate the last checkpoint of OUTPUT_DIR."
        )
    if cfg.MODEL.WEIGHTS.startswith(TorchvisionPathHandler.PREFIX) and not args.resume:
        PathManager.get_local_path(cfg.MODEL.WEIGHTS)  # here, and not in every process
    if "://" not in cfg.MODEL.WEIGHTS and not os.path.exists(cfg.MODEL.WEIGHTS or os.curdir):
        raise UserError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} does not exist; correct the path, or set it to "
            "'' to start training from random weights."
        )
    if torch.cuda.is_available() and world_size > 1 and cfg.MODEL.DEVICE == "cpu":
        raise UserError(
            "several processes use NCCL on a machine with GPUs, but MODEL.DEVICE is cpu; hide the "
            "GPUs with CUDA_VISIBLE_DEVICES= to run on the CPU."
        )


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1
