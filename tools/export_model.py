#!/usr/bin/env python
"""Export a trained detector to TorchScript or ONNX, and check that the file detects the same.

    python tools/export_model.py --config-file FILE --output model.onnx \
        [--sample-image IMAGE] --opts MODEL.WEIGHTS output/model_final.pth

A name that ends in .onnx is written as ONNX, any other as TorchScript, by tracing. The file takes
one image of any size: (3, H, W) float32 in the channel order of INPUT.FORMAT, 0 to 255, resized as
in an evaluation. It returns boxes (XYXY in pixels of that image), scores and classes, and with a
mask head the masks within the boxes. The names of the classes and the channel order lie in it.
"""

import argparse
import os
import sys
import warnings
import torch
from torch.nn.functional import interpolate

from detectron2.data import get_detection_dataset_dicts

from alrp.data.dataset_mapper import build_mapper
from alrp.engine import load_trained_model, setup_config
from alrp.errors import UserError, exit_status
from alrp.export import TracedDetector, compare_detections, load_onnx, load_torchscript
from alrp.files import check_new_file

# Heights and widths that the file is checked at, in those of the image that it is traced with.
SCALES = ((1.0, 1.0), (0.75, 1.0), (1.0, 1.25))


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Export a trained detector, and check that the file detects the same."
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="*.onnx for ONNX, others are TorchScript"
    )
    parser.add_argument(
        "--sample-image", metavar="IMAGE", help="to trace with; default: one of DATASETS.TEST"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser.parse_args(argv)


def sample_image(cfg, name: str | None) -> torch.Tensor:
    """(3, H, W) an image as the model takes it; UserError if there is none."""
    if name is None:
        name = first_test_image(cfg)
    if not os.path.isfile(name):
        raise UserError(f"--sample-image: there is no file {name}; name an image with objects.")
    return torch.as_tensor(build_mapper(cfg, is_train=False)({"file_name": name})["image"])


def first_test_image(cfg) -> str:
    """File of the first image of DATASETS.TEST."""
    try:
        return get_detection_dataset_dicts(cfg.DATASETS.TEST, filter_empty=False)[0]["file_name"]
    except (AssertionError, KeyError, OSError, UserError) as error:
        raise UserError(
            f"--sample-image: no image of DATASETS.TEST {list(cfg.DATASETS.TEST)} is there "
            f"({error}); name an image with objects."
        ) from error


def check(detector: TracedDetector, exported, image: torch.Tensor, max_detections: int) -> None:
    """Compare file and model at every one of SCALES; UserError if they differ."""
    for vertical, horizontal in SCALES:
        size = round(image.shape[1] * vertical), round(image.shape[2] * horizontal)
        resized = interpolate(image[None].float(), size)[0]
        agreement = compare_detections(
            detector(resized), exported(resized), max_detections=max_detections
        )
        print(
            f"  {size[0]} x {size[1]}: {agreement.num_expected} detections, at most "
            f"{agreement.largest_shift:.4f} pixels apart"
        )
        if agreement.num_unmatched:
            raise UserError(
                f"--output: {agreement.num_unmatched} detections of the file and the model differ "
                f"at {size[0]} x {size[1]} pixels; the file was removed. Report this."
            )


def export(args) -> None:
    """Write the file and check it; UserError if something given does not fit."""
    check_new_file(args.output, "--output")
    args.opts += ["MODEL.DEVICE", "cpu"]  # the files run on any
    cfg = setup_config(args)
    image = sample_image(cfg, args.sample_image)
    model, names = load_trained_model(cfg)
    metadata = {"class_names": names, "input_format": cfg.INPUT.FORMAT}
    detector = TracedDetector(model, image, metadata)
    if not len(detector(image)[0]):
        raise UserError(
            "--sample-image: the model finds nothing in it, which makes a wrong trace; name an "
            "image with objects."
        )
    if args.output.endswith(".onnx"):
        write, load = detector.write_onnx, load_onnx
    else:
        write, load = detector.write_torchscript, load_torchscript
    write(args.output)
    print(f"Wrote {args.output}: image -> {', '.join(detector.output_names)}")
    try:
        check(detector, load(args.output), image, cfg.TEST.DETECTIONS_PER_IMAGE)
    except UserError:
        os.remove(args.output)
        raise


def main(argv=None) -> int:
    """Export; returns the exit status."""
    # Detectron2's call of it, which users can do nothing about.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    return exit_status(export, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
