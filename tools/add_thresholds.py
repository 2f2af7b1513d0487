#!/usr/bin/env python
"""Store LRP-optimal score and calibration of each class in a checkpoint, from a validation set.

    python tools/add_thresholds.py --config-file FILE --output OUT.pth \
        --opts MODEL.WEIGHTS output/model_final.pth

evaluates the model on the first of DATASETS.TEST and writes a copy with both, or takes them from
the lrp_results.json of an earlier evaluation (--results). From then on the demo, a DefaultPredictor
and exported files show each class from its score on; with MODEL.ALRP.CALIBRATED_SCORES True, their
scores say which share of such detections is right. A training stores the LRP-optimal scores, too.
"""

import argparse
import os
import sys

from detectron2.utils.logger import setup_logger

from alrp.engine import Trainer, load_trained_model, setup_config
from alrp.engine.preflight import check_surroundings, report
from alrp.engine.thresholds import (
    add_thresholds,
    by_class_index,
    detection_thresholds_of,
    read_calibration,
    read_thresholds,
    thresholds_of_results,
)
from alrp.engine.trainer import results_folder
from alrp.errors import UserError, exit_status
from alrp.files import check_new_file


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Store LRP-optimal score and calibration of each class in a checkpoint."
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--output", required=True, metavar="OUT.pth", help="checkpoint to write")
    parser.add_argument(
        "--results", metavar="lrp_results.json", help="of an evaluation; default: evaluate"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser.parse_args(argv)


def run(args) -> None:
    """Evaluate and write; UserError if something given does not fit."""
    check_new_file(args.output, "--output")
    cfg = setup_config(args)
    model, names = load_trained_model(cfg)
    found = detection_thresholds_of(model)
    if found is None:
        raise UserError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE} has no place for thresholds; "
            'of Detectron2\'s architectures, take "ThresholdedRCNN" for GeneralizedRCNN.'
        )
    results = args.results
    if not results:
        report(check_surroundings(cfg, for_training=False))
        setup_logger(name="alrp")
        if not thresholds_of_results(Trainer.test(cfg, model)):
            raise UserError(
                f"DATASETS.TEST: {cfg.DATASETS.TEST[0]!r} has no ground truth, by which scores are "
                "chosen; name a set with annotations."
            )
        folder = results_folder(cfg, cfg.DATASETS.TEST[0])
        results = os.path.join(folder, "lrp_results.json")
    thresholds = read_thresholds(results)
    names = names or list(thresholds)
    tensors = {
        f"{found[0]}.thresholds": by_class_index(thresholds, names),
        f"{found[0]}.calibration": read_calibration(results, names),
    }
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    add_thresholds(cfg.MODEL.WEIGHTS, args.output, tensors)
    for name, score in thresholds.items():
        print(f"  {name}: {score:.4f}" if score == score else f"  {name}: never shown")
    print(f"Wrote {args.output}")


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
