#!/usr/bin/env python
"""Train a small aLRP detector on the built-in dataset, evaluate it and draw what it finds.

    python demo/train_demo.py --output output/demo [KEY VALUE ...]

Made for a few minutes on a CPU; a GPU is used if there is one. Left in the output folder: what
train_net.py writes (log.txt, metrics.json, model_final.pth, inference/), console.txt with all that
it printed, curves.png, detections.png and overview.jpg (the picture of the README).
"""

import argparse
import json
import numpy as np
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from PIL import Image

from detectron2.data import MetadataCatalog

from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.engine import setup_config
from alrp.errors import UserError, exit_status
from alrp.files import make_folder
from alrp.vis import LabelledBoxes, detections_figure, read_metrics, training_figure

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
CONFIG = "configs/Shapes/alrp_retinanet_R_18_FPN_ATSS_demo.yaml"
MARK = ".made_by_demo"  # in every folder whose results the demo may replace
RESULTS = "log.txt* console.txt metrics.json config.yaml events.out.tfevents.* model_*.pth".split()
RESULTS += "last_checkpoint curves.png detections.png overview.jpg".split()
RESULTS += ["inference/*.json", "inference/*.pth"]
LOG_PERIOD = 20  # iterations between rows of metrics.json
PICTURES = {"detections.png": (8, 120), "overview.jpg": (4, 64)}  # name: held-out images, dpi


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Train, evaluate and draw a small aLRP detector on the built-in dataset.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default="output/demo", help="folder of the results")
    parser.add_argument("--config-file", default=CONFIG, help="config with the built-in dataset")
    parser.add_argument("--num-train", type=int, default=1000, help="training images")
    parser.add_argument("--num-val", type=int, default=200, help="held-out images")
    parser.add_argument("--image-size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    args = parser.parse_args(argv)
    args.opts += ["OUTPUT_DIR", args.output]
    return args


def dataset_root(cfg) -> Path:
    """Where the config expects the built-in dataset; UserError if the demo cannot use it."""
    files = [
        MetadataCatalog.get(n).get("json_file") for n in cfg.DATASETS.TRAIN + cfg.DATASETS.TEST
    ]
    root = Path(files[-1] or "").parent.parent if files else Path()
    if files != [str(root / "annotations" / f"{split}.json") for split in ("train", "val")]:
        raise UserError(
            "demo: expected one training and one test dataset, FOLDER/annotations/train.json and "
            f"FOLDER/annotations/val.json, but got {files}; set DATASETS as in {CONFIG}."
        )
    if cfg.MODEL.ALRP.LOSS_TYPE != "alrp" or cfg.SOLVER.MAX_ITER < LOG_PERIOD:
        raise UserError(
            f"demo: expected MODEL.ALRP.LOSS_TYPE alrp and SOLVER.MAX_ITER {LOG_PERIOD} or more, "
            f"but got {cfg.MODEL.ALRP.LOSS_TYPE} and {cfg.SOLVER.MAX_ITER}; change what differs."
        )
    return root


def clear_earlier_results(output: Path) -> None:
    """Make the folder, or remove the results of an earlier demo; other files are left alone."""
    if output.exists() and not (output / MARK).exists():
        if not output.is_dir() or any(output.iterdir()):
            raise UserError(
                f"demo: expected a new folder or one of an earlier demo, but {output} holds "
                "something else; name another one with --output."
            )
    make_folder(output, "--output")
    (output / MARK).touch()
    for path in [path for pattern in RESULTS for path in output.glob(pattern)]:
        path.unlink()


def progress_line(row: dict, max_iter: int, seconds: float) -> str:
    """A row of the table that :func:`train` prints."""
    names = ("loss", "loc_error", "self_balance_weight")
    numbers = "{:9.3f} {:10.3f} {:7.1f}".format(*(row[f"alrp/{name}"] for name in names))
    left = timedelta(seconds=round(row["eta_seconds"])) if "eta_seconds" in row else "-"
    elapsed, iterations = timedelta(seconds=round(seconds)), f"{row['iteration'] + 1}/{max_iter}"
    return f"  {iterations:>11} {numbers} {str(elapsed):>9} {str(left):>9}"


def train(args, max_iter: int, output: Path) -> float:
    """Run train_net.py, follow its metrics, and return the seconds until the last iteration.

    Raises:
        UserError: with the end of its output, if it fails.
    """
    command = [sys.executable, str(TRAIN_NET), "--config-file", args.config_file, *args.opts]
    print(f"  {'iteration':>11} aLRP loss  loc error  weight   elapsed      left")
    started, num_seen, code, trained = time.monotonic(), 0, None, 0.0
    with open(output / "console.txt", "wb") as console:
        process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT)
    try:
        while code is None:
            time.sleep(0.2)
            code, seconds = process.poll(), time.monotonic() - started
            metrics = output / "metrics.json"
            rows = read_metrics(metrics) if metrics.exists() else []
            for row in rows[num_seen:]:
                if "alrp/loss" in row:
                    print(progress_line(row, max_iter, seconds))
                if row["iteration"] == max_iter - 1:
                    trained = seconds
                    print("  Trained; evaluating")
            num_seen = len(rows)
    finally:
        process.terminate()  # does nothing to a process that has ended
        process.wait()
    if code:
        tail = "\n".join((output / "console.txt").read_text(errors="replace").splitlines()[-20:])
        raise UserError(f"demo: train_net.py failed; {output / 'console.txt'} ends with\n\n{tail}")
    return trained


def result_table(row: dict, lrp: dict) -> str:
    """AP and LRP of every class and their means, in percent; "-" where there is no value."""
    ap_keys, lrp_keys = ("AP", "AP50", "AP75"), ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")
    lines = [["class", *ap_keys, "oLRP", "Loc", "FP", "FN", "threshold"]]
    for name, values in [*lrp["per_class"].items(), ("mean", lrp)]:
        suffix = "" if values is lrp else f"-{name}"
        numbers = [row.get(f"bbox/{key}{suffix}") for key in ap_keys]
        numbers += [values.get(key) for key in (*lrp_keys, "threshold")]
        formats = ["{:.1f}"] * 7 + ["{:.4f}"]
        present = [x is not None and x == x for x in numbers]  # neither null nor NaN
        cells = [f.format(x) if ok else "-" for f, x, ok in zip(formats, numbers, present)]
        lines.append([name, *cells])
    return "\n".join("  {:<12}{:>5}{:>7}{:>7}{:>8}{:>7}{:>7}{:>7}{:>11}".format(*x) for x in lines)


def draw(root: Path, output: Path, rows: list, lrp: dict) -> None:
    """Write curves.png, and PICTURES with the first held-out images."""
    training_figure(rows).savefig(output / "curves.png", dpi=150)
    data = json.loads((root / "annotations" / "val.json").read_text())
    results = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    # Nothing is drawn of a class without a threshold, as none of its detections is right.
    thresholds = {i: lrp["per_class"][name]["threshold"] for i, name in names.items()}
    thresholds = {i: np.inf if value is None else value for i, value in thresholds.items()}
    kept = [r for r in results if r["score"] >= thresholds[r["category_id"]]]
    images, boxes = data["images"][: max(number for number, _ in PICTURES.values())], []
    for records in (data["annotations"], kept):
        of_image = [[r for r in records if r["image_id"] == image["id"]] for image in images]
        boxes.append([LabelledBoxes.from_coco(part, list(names)) for part in of_image])
    pictures = [np.asarray(Image.open(root / "val" / image["file_name"])) for image in images]
    for name, (number, dpi) in PICTURES.items():
        shown = (part[:number] for part in (pictures, *boxes))
        figure = detections_figure(*shown, list(names.values()))
        figure.suptitle("Held-out images; each class from its LRP-optimal threshold", fontsize=13)
        figure.savefig(output / name, dpi=dpi)


def run(args) -> None:
    """The four steps; UserError if one of them cannot be done."""
    cfg, output = setup_config(args), Path(args.output)
    root = dataset_root(cfg)
    print(f"(1/4) Dataset: {args.num_train} + {args.num_val} images in {root}")
    make_shapes_dataset(root, args.num_train, args.num_val, args.image_size)
    clear_earlier_results(output)
    max_iter = cfg.SOLVER.MAX_ITER
    print(f"(2/4) Training, {max_iter} iterations on {cfg.MODEL.DEVICE}; it takes seconds to start")
    seconds = train(args, max_iter, output)
    rows = read_metrics(output / "metrics.json")
    lrp = json.loads((output / "inference" / "lrp_results.json").read_text())
    print(f"(3/4) Results on {args.num_val} held-out images in % (AP: more is better, oLRP: less)")
    print(result_table(next(row for row in reversed(rows) if "bbox/AP" in row), lrp))
    print("(4/4) Pictures")
    draw(root, output, rows, lrp)
    for name in ("curves.png", *PICTURES, "model_final.pth", "log.txt"):
        print(f"  {output / name}")
    print(f"Training took {timedelta(seconds=round(seconds))} (h:mm:ss, start included)")


def main(argv=None) -> int:
    """Run the demo; returns the exit status."""
    sys.stdout.reconfigure(line_buffering=True)
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
