#!/usr/bin/env python
"""Detect objects in image files and write copies with the detections drawn in.

    python demo/demo.py --config-file FILE --input a.jpg b.jpg --output FOLDER \
        --opts MODEL.WEIGHTS output/model_final.pth

``a.jpg`` becomes ``FOLDER/a.png``. Drawn are detections from a least score on: --confidence, or
the LRP-optimal score of each class, of --thresholds, of the checkpoint, or of the evaluation that
lies beside it (``output/inference/lrp_results.json`` above). Works without a GPU.
"""

import argparse
import numpy as np
import os
import sys
import warnings
from pathlib import Path
import torch
from PIL import Image

from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer

from alrp.data.dataset_mapper import build_mapper
from alrp.data.images import read_image
from alrp.engine import load_trained_model, setup_config
from alrp.engine.thresholds import by_class_index, detection_thresholds_of, read_thresholds
from alrp.errors import UserError, exit_status
from alrp.files import check_folder, make_folder, replacing

RESULTS = Path("inference", "lrp_results.json")  # what an evaluation leaves beside the weights
CONFIDENCE = 0.5  # least score drawn if nothing better is known
MIN_SIDE = 600  # pixels of the longer side; smaller pictures are enlarged to keep text readable


def score(text: str) -> float:
    """Type of an option: a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a score from 0 to 1, but got {text}")
    return value


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Draw the detections of a trained model into copies of images."
    )
    parser.add_argument("--config-file", required=True, help="config the model was trained with")
    parser.add_argument("--input", nargs="+", required=True, metavar="IMAGE", help="image files")
    parser.add_argument("--output", required=True, help="folder of the pictures, made if absent")
    least = parser.add_mutually_exclusive_group()
    least.add_argument(
        "--confidence",
        type=score,
        help="least score drawn; default: the LRP-optimal one of each class in the checkpoint, or "
        f"in {RESULTS} beside it, or {CONFIDENCE} if there is none",
    )
    least.add_argument(
        "--thresholds",
        metavar="lrp_results.json",
        help="of another evaluation: draw each class from its LRP-optimal score",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser.parse_args(argv)


def output_paths(inputs: list, output: str) -> dict:
    """Picture to write for every input; UserError for a missing input or a clash of names."""
    check_folder(output, "--output")
    paths = {}
    for name in inputs:
        if os.path.isdir(name):
            raise UserError(f"--input: {name} is a folder; name the images in it, as {name}/*.")
        if not os.path.isfile(name):
            raise UserError(f"--input: there is no file {name}; correct the path.")
        path = Path(output) / f"{Path(name).stem}.png"
        if path in paths.values() or path.resolve() in {Path(other).resolve() for other in inputs}:
            raise UserError(
                f"--input: {name} would be written to {path}, which is an input or the picture of "
                "another one; choose another --output, or rename the image."
            )
        paths[name] = path
    return paths


def least_scores(args, cfg, model: torch.nn.Module, names: list) -> torch.Tensor:
    """(K,) least score drawn by class index, or a scalar for all; says where it is from."""
    weights, asked = cfg.MODEL.WEIGHTS, cfg.MODEL.ALRP.SCORE_THRESH_PREDICT
    if args.confidence is not None or asked >= 0:
        return torch.tensor(asked if args.confidence is None else args.confidence)
    if args.thresholds:
        return by_class_index(read_thresholds(args.thresholds), names)
    found = detection_thresholds_of(model)
    if found and found[1].thresholds is not None:
        print(f"Each class is drawn from its LRP-optimal score, stored in {weights}")
        return found[1].thresholds
    beside = Path(weights).parent / RESULTS
    if beside.is_file():
        try:
            thresholds = by_class_index(read_thresholds(str(beside)), names)
            print(f"Each class is drawn from its LRP-optimal score in {beside}")
            return thresholds
        except UserError as error:  # of another model: nobody asked for this file
            print(f"Not used: {beside}: {error}")
    print(
        f"Drawn from score {CONFIDENCE}, which is a guess: {weights} holds no LRP-optimal scores. "
        "Add them by tools/add_thresholds.py, or choose by --confidence or --thresholds"
    )
    return torch.tensor(CONFIDENCE)


def why_nothing(instances, least: torch.Tensor) -> str:
    """Why no detection of an image is drawn."""
    if not len(instances):
        return "the model detects nothing here above SCORE_THRESH_TEST of its config"
    best = int(instances.scores.argmax())
    if least[best] > 1:
        return (
            "its best detection is of a class that is never shown, as the evaluation found none of "
            "its objects; try --confidence"
        )
    return (
        f"its best detection scores {float(instances.scores[best]):.2f}, below "
        f"{float(least[best]):.2f}; scores of ranking losses are low: try a lower --confidence"
    )


def draw(image: np.ndarray, instances, names: list) -> np.ndarray:
    """Picture of the detections in an RGB image, enlarged if the image is small."""
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    labels = [f"{names[c] if names else c} {score:.0%}" for c, score in zip(classes, scores)]
    colours = colormap(rgb=True, maximum=1)
    visualizer = Visualizer(image, scale=max(1.0, MIN_SIDE / max(image.shape[:2])))
    # draw_instance_predictions would colour objects at random instead of by class.
    picture = visualizer.overlay_instances(
        boxes=instances.pred_boxes,
        labels=labels,
        assigned_colors=[colours[c % len(colours)] for c in classes],
    )
    return picture.get_image()


def run(args) -> None:
    """Detect and draw; UserError if something given does not fit."""
    paths = output_paths(args.input, args.output)
    cfg = setup_config(args)
    model, names = load_trained_model(cfg)
    scores = least_scores(args, cfg, model, names or []).double().cpu()
    found = detection_thresholds_of(model)
    mapper = build_mapper(cfg, is_train=False)
    make_folder(args.output, "--output")
    for name, path in paths.items():
        picture = read_image(name, "RGB")
        # Resized as in an evaluation; and with an image_id the model gives all that it detects.
        inputs = mapper({"file_name": name, "image_id": name})
        with torch.no_grad():
            instances = model([inputs])[0]["instances"].to("cpu")
        least = scores[instances.pred_classes] if scores.ndim else scores.expand(len(instances))
        drawn = instances[instances.scores.double() >= least]
        drawn = found[1].with_shown_scores(drawn) if found else drawn
        with replacing(path) as file:
            Image.fromarray(draw(picture, drawn, names or [])).save(file, "PNG")
        print(f"{name}: {len(drawn)} objects, see {path}")
        if not len(drawn):
            print(f"  {why_nothing(instances, least)}")


def main(argv=None) -> int:
    """Run the demo; returns the exit status."""
    # Detectron2's call of it, which users can do nothing about.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
