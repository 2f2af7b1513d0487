#!/usr/bin/env python
"""Train or evaluate a ranking-loss detector.

The options are those of Detectron2's ``tools/train_net.py``, and ``--dry-run``, which trains one
iteration, reports memory and the time of the schedule, and writes nothing:

    python train_net.py --num-gpus 4 --config-file configs/COCO-Detection/NAME.yaml
    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS CHECKPOINT
    python train_net.py --config-file FILE --resume KEY VALUE ...
    python train_net.py --config-file FILE --dry-run

Without a GPU, ``--num-gpus N`` starts N processes on the CPU.
"""

import sys

from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from alrp.data.datasets.coco_format import class_names
from alrp.engine import (
    CheckedCheckpointer,
    Trainer,
    argument_parser,
    dry_run,
    run_command,
    setup_config,
)


def main(args):
    """Train or evaluate in one process; returns the results on the main process."""
    cfg = setup_config(args)
    if getattr(args, "dry_run", False):  # Detectron2's own parser does not know it
        report = dry_run(
            Trainer.build_parts(Trainer.auto_scale_workers(cfg, comm.get_world_size()))
        )
        if comm.is_main_process():
            print(report)
        return report
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="alrp")

    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = CheckedCheckpointer(
            model, cfg.OUTPUT_DIR, class_names=class_names(cfg.DATASETS.TEST)
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.add_test_with_TTA()
    return trainer.train()


if __name__ == "__main__":
    sys.exit(run_command(main, argument_parser().parse_args()))
