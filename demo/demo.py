#!/usr/bin/env python
"""Detect objects in image files and write copies with the detections drawn in.

    python demo/demo.py --config-file FILE --input a.jpg b.jpg --output FOLDER \
        --opts MODEL.WEIGHTS output/model_final.pth

``a.jpg`` becomes ``FOLDER/a.png``. Drawn are detections from a least score on: --confidence, or
the LRP-optimal score of each class, of --thresholds or of the evaluation that lies beside the
weights (``output/inference/lrp_results.json`` above). Works without a GPU.
"""

import argparse
import math
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
from alrp.errors import UserError
from alrp.files import read_json

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
        help=f"least score drawn; default: that of each class in {RESULTS} beside the weights, or "
        f"{CONFIDENCE} if there is none",
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
    place = Path(output).absolute()
    present = next(path for path in (place, *place.parents) if path.exists())
    if not present.is_dir():
        raise UserError(f"--output: {present} is a file; name a folder, which may be a new one.")
    paths = {}
    for name in inputs:
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


def read_thresholds(path: str, names: list) -> torch.Tensor:
    """(K,) float64 least score by class index; infinite for a class of which nothing was right."""
    try:
        per_class = read_json(path)["per_class"]
        scores = {name: values["threshold"] for name, values in per_class.items()}
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--thresholds: cannot read {path} ({error!r}); give the lrp_results.json that an "
            "evaluation wrote."
        ) from error
    if sorted(scores) != sorted(names):
        raise UserError(
            f"--thresholds: {path} has the classes {sorted(scores)}, but the config's datasets "
            f"have {sorted(names)}; give the file and the config of the same model."
        )
    least = [math.inf if scores[name] is None else scores[name] for name in names]
    return torch.tensor(least, dtype=torch.float64)


def least_scores(args, weights: str, names: list) -> torch.Tensor:
    """(K,) float64 least score drawn by class index, or a scalar for all; says where it is from."""
    if args.confidence is not None:
        return torch.tensor(args.confidence, dtype=torch.float64)
    if args.thresholds:
        return read_thresholds(args.thresholds, names)
    found = Path(weights).parent / RESULTS
    if found.is_file():
        try:
            thresholds = read_thresholds(str(found), names)
            print(f"Each class is drawn from its LRP-optimal score in {found}")
            return thresholds
        except UserError as error:  # of another model: nobody asked for this file
            print(f"Not used: {error}")
    print(f"Drawn from score {CONFIDENCE}; choose another with --confidence or --thresholds")
    return torch.tensor(CONFIDENCE, dtype=torch.float64)


def why_nothing(instances, least: torch.Tensor) -> str:
    """Why no detection of an image is drawn."""
    if not len(instances):
        return "the model detects nothing here above SCORE_THRESH_TEST of its config"
    best = int(instances.scores.argmax())
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
    scores = least_scores(args, cfg.MODEL.WEIGHTS, names or [])
    mapper = build_mapper(cfg, is_train=False)
    os.makedirs(args.output, exist_ok=True)
    for name, path in paths.items():
        picture = read_image(name, "RGB")
        with torch.no_grad():  # resized as in an evaluation
            instances = model([mapper({"file_name": name})])[0]["instances"].to("cpu")
        least = scores[instances.pred_classes] if scores.ndim else scores.expand(len(instances))
        drawn = instances[instances.scores.double() >= least]
        Image.fromarray(draw(picture, drawn, names or [])).save(path)
        print(f"{name}: {len(drawn)} objects, see {path}")
        if not len(drawn):
            print(f"  {why_nothing(instances, least)}")


def main(argv=None) -> int:
    """Run the demo; returns the exit status."""
    # Detectron2's call of it, which users can do nothing about.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    try:
        run(parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
