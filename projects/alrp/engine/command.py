"""What a training command does around its ``main``: config, checks, launch, one clear error."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable
import torch
from torch.multiprocessing import ProcessRaisedException

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.utils.file_io import PathManager

from ..checkpoint import TorchvisionPathHandler
from ..config import load_config
from ..data.datasets.coco_format import expand_path, register_coco_format
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

    ``~`` and environment variables in ``OUTPUT_DIR`` and ``MODEL.WEIGHTS`` are replaced.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        UserError: if the file or an override does not fit, see :func:`alrp.config.load_config`.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.OUTPUT_DIR = expand_path(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    cfg.MODEL.WEIGHTS = expand_path(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
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
        int: 0; 1 after a message on standard error; 130 if interrupted.
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
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; --resume goes on from the last checkpoint\n")
        return 130
    except (UserError, FloatingPointError) as error:
        return _fail(_last_message(str(error)) or str(error))
    except ProcessRaisedException as error:
        message = _last_message(str(error))
        if message is None:
            raise
        return _fail(message)
    return 0


def _last_message(text: str) -> str | None:
    """Message of the last error of the user in a printed traceback; None if there is none.

    This is all that is known of an exception in a spawned process or a worker of a data loader.
    """
    for kind in (f"{UserError.__module__}.{UserError.__qualname__}", "FloatingPointError"):
        _, found, message = text.rpartition(f"\n{kind}: ")
        if found:
            return message.strip()
    return None


def _check(cfg: CfgNode, args) -> None:
    """Everything that can be checked before a process or an output folder is made."""
    _check_processes(cfg, args)
    findings = preflight.check(
        cfg,
        for_training=not args.eval_only,
        world_size=max(args.num_gpus, 1) * args.num_machines,
    )
    preflight.report(findings)
    _check_output_dir(cfg.OUTPUT_DIR)

    weights = cfg.MODEL.WEIGHTS
    if args.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return  # MODEL.WEIGHTS is not read
    if args.eval_only and not weights:
        raise UserError(
            "--eval-only needs a checkpoint, but MODEL.WEIGHTS is empty"
            + (f" and {cfg.OUTPUT_DIR} holds none to --resume" if args.resume else "")
            + "; add MODEL.WEIGHTS FILE, or --resume with the OUTPUT_DIR of a training run."
        )
    if weights.startswith(TorchvisionPathHandler.PREFIX):
        PathManager.get_local_path(weights)  # here, and not in every process
    elif weights and "://" not in weights and not os.path.exists(weights.split("?")[0]):
        raise UserError(
            f"MODEL.WEIGHTS {weights!r} does not exist; correct the path, or set it to '' to start "
            "training from random weights."
        )


def _check_output_dir(output_dir: str) -> None:
    """``OUTPUT_DIR`` can be made or written to; nothing is made here."""
    present = os.path.abspath(output_dir)
    while not os.path.exists(present):
        present = os.path.dirname(present)
    if not os.path.isdir(present) or not os.access(present, os.W_OK):
        raise UserError(
            f"OUTPUT_DIR {output_dir!r} cannot be written: {present} is no folder that you may "
            "write to; set OUTPUT_DIR to another one."
        )


def _check_processes(cfg: CfgNode, args) -> None:
    """The processes asked for can be started here."""
    num_gpus, num_machines, rank = args.num_gpus, args.num_machines, args.machine_rank
    if num_gpus < 0 or num_machines < 1 or not 0 <= rank < num_machines:
        raise UserError(
            "expected --num-gpus >= 0, --num-machines >= 1 and --machine-rank from 0 to "
            f"num-machines - 1, but got {num_gpus}, {num_machines} and {rank}; correct them."
        )
    if not torch.cuda.is_available() or num_gpus * num_machines <= 1:
        return
    if num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus is {num_gpus}, but this machine has {torch.cuda.device_count()}; lower it."
        )
    if cfg.MODEL.DEVICE == "cpu":
        raise UserError(
            "several processes use NCCL on a machine with GPUs, but MODEL.DEVICE is cpu; hide the "
            "GPUs with CUDA_VISIBLE_DEVICES= to run on the CPU."
        )


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1
