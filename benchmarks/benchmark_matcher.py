#!/usr/bin/env python
"""Time and memory of the matchers on one image, against Detectron2's Matcher with pairwise_iou.

    python benchmarks/benchmark_matcher.py [--num-boxes 1 5 20 100 500] [--image-size 1024]

Anchors are those of Detectron2's RetinaNet (five levels, nine per location; 196,416 at 1024
pixels), boxes are random. Detectron2 gets its anchors concatenated beforehand; the others do it
themselves. Times are medians of calls in turns.
"""

from __future__ import annotations

import argparse
import sys
import warnings
import torch
from measuring import (
    MIB,
    bytes_moved,
    device_name,
    environment,
    gpu_work,
    markdown,
    medians_in_turns,
    output_file,
    peak_bytes,
    random_boxes,
    whole_number,
    write_json,
)
from torch import Tensor

from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from alrp.errors import exit_status
from alrp.modeling import ATSSMatcher, MaxIoUMatcher

STRIDES = (8, 16, 32, 64, 128)
NAMES = {"atss": "ATSS", "max_iou": "max-IoU", "detectron2": "Detectron2"}


def parse_args(argv=None):
    """Parsed command line."""
    at_least_1 = whole_number(1)
    parser = argparse.ArgumentParser(
        description="Compare the matchers with Detectron2's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--num-boxes", type=at_least_1, nargs="+", default=[1, 5, 20, 100, 500])
    parser.add_argument("--image-size", type=at_least_1, default=1024, help="side in pixels")
    parser.add_argument("--repeats", type=at_least_1, default=5, help="timed calls of each")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=at_least_1, default=1, help="of the CPU")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures here as well"
    )
    return parser.parse_args(argv)


def make_anchors(size: int, device: torch.device) -> list[Tensor]:
    """Per level (R_l, 4), as Detectron2's RetinaNet has them."""
    generator = DefaultAnchorGenerator(
        sizes=[[4 * stride * 2 ** (octave / 3) for octave in range(3)] for stride in STRIDES],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=STRIDES,
    ).to(device)
    features = [torch.zeros(1, 1, -(-size // s), -(-size // s), device=device) for s in STRIDES]
    return [boxes.tensor for boxes in generator(features)]


def measure(gt_boxes: Tensor, anchors: list[Tensor], repeats: int) -> dict:
    """Seconds, peak bytes, launches and bytes moved of each matcher by its key in ``NAMES``."""
    device = gt_boxes.device
    atss, max_iou = ATSSMatcher(), MaxIoUMatcher()
    detectron2 = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    gt, all_anchors = Boxes(gt_boxes), Boxes(torch.cat(anchors))
    functions = {
        "atss": lambda: atss(gt_boxes, anchors),
        "max_iou": lambda: max_iou(gt_boxes, anchors),
        "detectron2": lambda: detectron2(pairwise_iou(gt, all_anchors)),
    }
    seconds = medians_in_turns(functions, repeats, device)
    work = {name: gpu_work(function, device) for name, function in functions.items()}
    return {
        name: {
            "seconds": seconds[name],
            "peak_bytes": peak_bytes(function, device),
            "launches": work[name].launches,
            "bytes_moved": bytes_moved(function, device),
        }
        for name, function in functions.items()
    }


def table(results: list[dict]) -> str:
    """Markdown: a row for each number of boxes; launches and bytes moved on a GPU only."""
    header = ["boxes", *(f"{name} ms" for name in NAMES.values())]
    header += ["ATSS / Detectron2", *(f"{name} MiB" for name in NAMES.values())]
    rows, on_gpu = [], results[0]["atss"]["launches"] is not None
    if on_gpu:
        header += [f"{name} launches" for name in NAMES.values()]
        header += [f"{name} MiB moved" for name in NAMES.values()]
    for result in results:
        figures = [result[key] for key in NAMES]
        rows.append([result["num_boxes"], *(figure["seconds"] * 1e3 for figure in figures)])
        rows[-1].append(result["atss"]["seconds"] / result["detectron2"]["seconds"])
        rows[-1] += [figure["peak_bytes"] / MIB for figure in figures]
        if on_gpu:
            rows[-1] += [figure["launches"] for figure in figures]
            rows[-1] += [figure["bytes_moved"] / MIB for figure in figures]
    return markdown(header, rows)


def run(args) -> None:
    """Measure and print a table."""
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # Detectron2's call of it
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    anchors = make_anchors(args.image_size, device)
    num_anchors = sum(map(len, anchors))
    results = []
    for num_boxes in args.num_boxes:
        generator = torch.Generator().manual_seed(num_boxes)
        gt_boxes = random_boxes(num_boxes, args.image_size, generator).to(device)
        results.append({"num_boxes": num_boxes, **measure(gt_boxes, anchors, args.repeats)})
    document = {"num_anchors": num_anchors, **environment(device), "results": results}
    print(f"{num_anchors:,} anchors; {environment(device)}\n\n{table(results)}")
    write_json(args.json, document)


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
