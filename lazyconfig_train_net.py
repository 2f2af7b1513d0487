#!/usr/bin/env python
"""Train or evaluate a ranking-loss detector from a LazyConfig; train_net.py takes YAML.

The options are those of Detectron2's ``tools/lazyconfig_train_net.py``, and ``--dry-run``:

    python lazyconfig_train_net.py --num-gpus 4 --config-file configs/COCO-Detection/NAME.py
    python lazyconfig_train_net.py --config-file FILE --eval-only train.init_checkpoint=CHECKPOINT
    python lazyconfig_train_net.py --config-file FILE --resume path.key=value ...

Without a GPU, ``--num-gpus N`` starts N processes on the CPU.
"""

import sys

from detectron2.config import instantiate
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from alrp.data.datasets.coco_format import class_names
from alrp.engine import CheckedCheckpointer, argument_parser, dry_run
from alrp.engine.lazy import (
    build_lazy_evaluator,
    build_lazy_parts,
    evaluate_lazy,
    evaluate_lazy_with_tta,
    train_lazy,
)
from alrp.engine.lazy_command import as_cfg_node, run_lazy_command, setup_lazy_config


def main(args):
    """Train or evaluate in one process."""
    cfg = setup_lazy_config(args)
    if args.dry_run:
        report = dry_run(build_lazy_parts(cfg))
        if comm.is_main_process():
            print(report)
        return
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="alrp")

    if args.eval_only:
        evaluator = build_lazy_evaluator(cfg)
        model = instantiate(cfg.model).to(cfg.train.device)
        checkpointer = CheckedCheckpointer(
            model, cfg.train.output_dir, class_names=class_names(as_cfg_node(cfg).DATASETS.TEST)
        )
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        evaluate_lazy(cfg, model, evaluator)
        evaluate_lazy_with_tta(cfg, model)
    else:
        train_lazy(cfg, resume=args.resume)


if __name__ == "__main__":
    sys.exit(run_lazy_command(main, argument_parser().parse_args()))
