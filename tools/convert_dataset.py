#!/usr/bin/env python
"""Convert annotations of Pascal VOC or YOLO to COCO's format, or take some classes of a COCO file.

    python tools/convert_dataset.py voc ANNOTATIONS OUT.json
    python tools/convert_dataset.py yolo LABELS OUT.json --images IMAGES --names cat dog
    python tools/convert_dataset.py coco IN.json OUT.json --classes dog

Images stay where they are; name their folder in DATASETS.COCO_FORMAT.
"""

import argparse
import json
import os
import sys

from alrp.data.datasets.foreign_formats import voc_to_coco, with_classes, yolo_to_coco
from alrp.errors import UserError, exit_status
from alrp.files import read_json, replacing


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description="Convert annotations to COCO's format.")
    parser.add_argument("format", choices=("voc", "yolo", "coco"), help="of the input")
    parser.add_argument("input", help="folder of .xml or .txt files, or a COCO file")
    parser.add_argument("output", metavar="OUT.json", help="COCO file to write")
    parser.add_argument("--images", metavar="FOLDER", help="of the images; yolo only")
    parser.add_argument(
        "--names",
        nargs="+",
        help="of the classes by index; of voc, the same for all folders, default: those found",
    )
    parser.add_argument("--classes", nargs="+", help="keep these, in this order; default: all")
    args = parser.parse_args(argv)
    if args.format == "yolo" and not (args.images and args.names):
        parser.error("yolo needs --images and --names")
    if args.format == "coco" and args.names:
        parser.error("--names: a COCO file names its classes itself; --classes keeps some of them")
    for option, names in (("--names", args.names), ("--classes", args.classes)):
        if names and len(set(names)) < len(names):
            parser.error(f"{option}: expected different names, but got {names}")
    if os.path.realpath(args.input) == os.path.realpath(args.output):
        parser.error("the output is the input, which it would replace; name another file")
    for folder in (args.images, args.input if args.format != "coco" else None):
        if folder and not os.path.isdir(folder):
            parser.error(f"{folder} is no folder; correct the path")
    return args


def convert(args) -> dict:
    """The COCO file's content; UserError if the input cannot be read."""
    if args.format == "voc":
        content = voc_to_coco(args.input, args.names or ())
    elif args.format == "yolo":
        content = yolo_to_coco(args.input, args.images, args.names)
    else:
        content = read_json(args.input)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise UserError(f"{args.input} has no list {key!r}; name a COCO annotation file.")
            strange = [record for record in content[key] if not isinstance(record, dict)]
            if strange:
                raise UserError(
                    f"{args.input}: expected JSON objects in {key!r}, but there is "
                    f"{str(strange[0])[:80]}; correct the file."
                )
    return with_classes(content, args.classes, args.input) if args.classes else content


def run(args) -> None:
    """Convert and report; UserError, and nothing written, if something does not fit."""
    content = convert(args)
    with replacing(args.output) as file:
        file.write(json.dumps(content).encode())
    counts = ", ".join(f"{len(content[key])} {key}" for key in ("images", "annotations"))
    print(f"Wrote {args.output}: {counts}, {len(content['categories'])} classes")


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
