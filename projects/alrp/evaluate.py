"""The command ``alrp-evaluate``: LRP error of COCO results of any framework.

It needs NumPy and pycocotools, and Matplotlib for figures; neither PyTorch nor Detectron2.
"""

from __future__ import annotations

import argparse
import logging
import math
import numpy as np
import os
import re
import sys

from .errors import UserError, exit_status
from .evaluation.calibration import calibration_line, summary_with_calibration
from .evaluation.coco_input import Sources, category_names, check_ground_truth, detection_boxes
from .evaluation.coco_matching import (
    ALL_AREAS,
    ImageMatches,
    MatchSettings,
    match_boxes_by_image,
)
from .evaluation.comparison import compare_lrp, comparison_table
from .evaluation.lrp import lrp_curve
from .evaluation.report import lrp_table, write_summary
from .files import check_folder, check_new_file, make_folder, read_json, replacing

_LOGGER = logging.getLogger(__name__)

# COCO's ranges of the area of an object, in square pixels.
AREAS = {
    "all": ALL_AREAS,
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument("--area", choices=AREAS, default="all", help="objects that count, by area")
    parser.add_argument(
        "--figures",
        metavar="DIR",
        help="draw LRP and its parts over the score threshold, and precision against recall",
    )
    parser.add_argument(
        "--compare", metavar="OTHER.json", help="print how these detections differ from DT.json"
    )
    parser.add_argument(
        "--samples", type=int, default=1000, help="bootstrap samples of the images for --compare"
    )
    args = parser.parse_args(argv)
    try:
        args.settings = MatchSettings(args.tau, args.max_dets, AREAS[args.area])
    except ValueError as error:
        parser.error(str(error))
    if args.samples < 1:
        parser.error(f"--samples must be at least 1, got {args.samples}")
    for name in filter(None, (args.ground_truth, args.results, args.compare)):
        if args.json is not None and os.path.realpath(args.json) == os.path.realpath(name):
            parser.error(
                f"--json names the input {name}, which it would replace; name another file"
            )
    return args


def main(argv: list[str] | None = None) -> int:
    """Evaluate and print; returns the exit status, 2 on bad input."""
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_status(_run, args, mistake=2)


def _run(args: argparse.Namespace) -> None:
    """Evaluate, write the files, and print."""
    if args.json is not None:
        check_new_file(args.json, "--json")
    if args.figures:
        check_folder(args.figures, "--figures")
    dataset = read_json(args.ground_truth)
    check_ground_truth(dataset, Sources(args.ground_truth, args.results))
    matches, tau = _matches(dataset, args.results, args), args.settings.tau
    _warn_of_no_object(matches, args)
    _warn_of_no_match(matches, args.results, tau)
    summary = summary_with_calibration(matches, tau)
    if args.json is not None:
        write_summary(summary, args.json)
    if args.figures:
        _draw(matches, args.figures, tau)
    report = lrp_table(summary)
    if not math.isnan(summary["calibration"]["error"]):
        report += f"\n\n{calibration_line(summary['calibration'])}"
    if args.compare:
        others = _matches(dataset, args.compare, args)
        _warn_of_no_match(others, args.compare, tau)
        table = compare_lrp(matches, others, tau=tau, num_samples=args.samples)
        report += (
            f"\n\nfirst: {args.results}, second: {args.compare}; "
            f"below 0 the second is better\n{comparison_table(table)}"
        )
    sys.stdout.write(f"{report}\n")


def _matches(dataset: dict, file: str, args: argparse.Namespace) -> dict[str, ImageMatches]:
    """By class name."""
    sources = Sources(args.ground_truth, file)
    detections = detection_boxes(read_json(file), dataset, sources)
    by_id = match_boxes_by_image(dataset, detections, args.settings)
    names = category_names(dataset)
    return {names[category]: match for category, match in by_id.items()}


def _warn_of_no_object(by_name: dict[str, ImageMatches], args: argparse.Namespace) -> None:
    """Numbers of no meaning, whatever was detected."""
    if not any(match.matches.num_gt for match in by_name.values()):
        which = "" if args.area == "all" else f" for --area {args.area}"
        what = f"no object counts{which}; all values are undefined"
        _LOGGER.warning(f"{args.ground_truth}: {what}.")


def _warn_of_no_match(by_name: dict[str, ImageMatches], file: str, tau: float) -> None:
    """Numbers of a file of detections that say nothing of a detector."""
    matches = [match.matches for match in by_name.values()]
    has_both = any(m.num_gt for m in matches) and any(len(m.scores) for m in matches)
    if has_both and all(np.isnan(m.matched_ious).all() for m in matches):
        _LOGGER.warning(
            f"{file}: no detection meets an object of its image and class with an IoU "
            f"of {tau:g} or more; boxes must be [x, y, width, height] in pixels of the original "
            "image, and the ids of images and categories those of the ground truth."
        )


def _draw(by_name: dict[str, ImageMatches], folder: str, tau: float) -> None:
    """A figure of every class with objects and detections, and ``mean.png``."""
    try:
        from .vis.lrp_figures import lrp_figure
    except ModuleNotFoundError as error:
        raise UserError(f"--figures needs a package: pip install {error.name}") from error
    curves = {
        name: lrp_curve(*match.matches, tau=tau)
        for name, match in by_name.items()
        if match.matches.num_gt and len(match.matches.scores)
    }
    if not curves:
        raise UserError("--figures: no class has both objects and detections; nothing to draw.")
    figures = {"mean": (list(curves.values()), f"mean of {len(curves)} classes")}
    for i, (name, curve) in enumerate(curves.items(), start=1):
        figures[f"{i:03d}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)}"] = ([curve], name)
    make_folder(folder, "--figures")
    for file, (of_figure, title) in figures.items():
        with replacing(os.path.join(folder, f"{file}.png")) as png:
            lrp_figure(of_figure, title, tau=tau).savefig(png, format="png")


if __name__ == "__main__":
    sys.exit(main())
