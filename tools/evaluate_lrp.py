#!/usr/bin/env python
"""LRP error of a COCO result file of any framework; needs only numpy and pycocotools."""

import argparse
import importlib.util
import logging
import os
import sys
from pathlib import Path

if importlib.util.find_spec("alrp") is None:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "projects"))

from alrp.errors import UserError  # noqa: E402
from alrp.evaluation import (  # noqa: E402
    MatchSettings,
    Sources,
    evaluate_lrp,
    lrp_summary,
    lrp_table,
    write_summary,
)
from alrp.files import read_json  # noqa: E402


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Print the optimal LRP error of box detections and of every class, in percent.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("ground_truth", metavar="GT.json", help="ground truth in COCO format")
    parser.add_argument("results", metavar="DT.json", help="detections in COCO result format")
    parser.add_argument("--json", metavar="OUT", help="also write the numbers to this file")
    parser.add_argument("--tau", type=float, default=0.5, help="IoU of a correct detection")
    parser.add_argument(
        "--max-dets", type=int, default=100, help="best detections of an image and class that count"
    )
    args = parser.parse_args(argv)
    try:
        MatchSettings(args.tau, args.max_dets)
    except ValueError as error:
        parser.error(str(error))
    for name in (args.ground_truth, args.results):
        if args.json is not None and os.path.realpath(args.json) == os.path.realpath(name):
            parser.error(
                f"--json names the input {name}, which it would replace; name another file"
            )
    return args


def main(argv=None) -> int:
    """Evaluate and print; returns the exit status, 2 on bad input."""
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        per_class = evaluate_lrp(
            read_json(args.ground_truth),
            read_json(args.results),
            tau=args.tau,
            max_dets=args.max_dets,
            sources=Sources(args.ground_truth, args.results),
        )
        summary = lrp_summary(per_class)
        if args.json is not None:
            write_summary(summary, args.json)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(lrp_table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
