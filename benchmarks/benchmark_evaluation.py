#!/usr/bin/env python
"""Time of LRP evaluation and of COCO's, on as many images and detections as COCO has.

    python benchmarks/benchmark_evaluation.py [--images 5000] [--detections 100]

Ground truth and detections are made up: 7 objects per image, most of them found, once well and once
badly, and false positives of all classes. Two pairs are timed:

- Detectron2's COCOEvaluator and this project's LRPEvaluator, each fed one image at a time, as an
  inference loop does. COCOEvaluator runs its compiled matching if Detectron2 has it, else that of
  pycocotools.
- pycocotools and the command alrp-evaluate, without figures, each on two files, reading included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import uuid
from pathlib import Path
import torch
from measuring import (
    environment,
    markdown,
    medians_in_turns,
    output_file,
    random_boxes,
    whole_number,
    write_json,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import Boxes, BoxMode, Instances

from alrp import evaluate as alrp_evaluate
from alrp.errors import exit_status
from alrp.evaluation import LRPEvaluator

SIDE, NUM_OBJECTS = 512, 7
EVALUATORS = {"coco": COCOEvaluator, "lrp": LRPEvaluator}
# What the seconds of each are compared with.
RIVALS = {
    "coco": "coco",
    "lrp": "coco",
    "pycocotools": "pycocotools",
    "alrp-evaluate": "pycocotools",
}


def parse_args(argv=None):
    """Parsed command line."""
    at_least_1 = whole_number(1)
    parser = argparse.ArgumentParser(
        description="Time of LRP evaluation against COCO evaluation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=at_least_1, default=5000, help="of the dataset")
    parser.add_argument(
        "--detections", type=whole_number(2 * NUM_OBJECTS), default=100, help="per image"
    )
    parser.add_argument("--classes", type=at_least_1, default=80, help="of the dataset")
    parser.add_argument("--repeats", type=at_least_1, default=3, help="timed runs of each")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures here as well"
    )
    return parser.parse_args(argv)


def make_image(args, generator: torch.Generator) -> tuple[Instances, Instances]:
    """Ground truth and detections of one image."""
    objects = random_boxes(NUM_OBJECTS, SIDE, generator)
    classes = torch.randint(args.classes, (NUM_OBJECTS,), generator=generator)
    num_others = args.detections - 2 * NUM_OBJECTS
    shift = torch.tensor([1.0, 6.0]).repeat_interleave(NUM_OBJECTS)[:, None]
    found = objects.repeat(2, 1)
    found = (found + shift * torch.randn(found.shape, generator=generator)).clamp(0, SIDE)
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    boxes = torch.cat([found, random_boxes(num_others, SIDE, generator)])
    others = torch.randint(args.classes, (num_others,), generator=generator)
    scores = torch.rand(args.detections, generator=generator)
    scores[2 * NUM_OBJECTS :] *= 0.8
    size = (SIDE, SIDE)
    return (
        Instances(size, gt_boxes=Boxes(objects), gt_classes=classes),
        Instances(
            size,
            pred_boxes=Boxes(boxes),
            scores=scores,
            pred_classes=torch.cat([classes, classes, others]),
        ),
    )


def coco_annotations(ground_truth: list[Instances], num_classes: int) -> dict:
    """The content of a COCO annotation file."""
    annotations = []
    for image_id, instances in enumerate(ground_truth):
        boxes = BoxMode.convert(instances.gt_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        for box, cls in zip(boxes.tolist(), instances.gt_classes.tolist()):
            number = len(annotations) + 1
            entry = {"id": number, "image_id": image_id, "category_id": cls + 1, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    sides = {"height": SIDE, "width": SIDE}
    images = [{"id": i, "file_name": f"{i}.jpg", **sides} for i in range(len(ground_truth))]
    categories = [{"id": c + 1, "name": f"class {c}"} for c in range(num_classes)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def evaluate(kind: type, name: str, detections: list[Instances]) -> dict:
    """All that an evaluator does with the outputs of a model."""
    evaluator = kind(name, distributed=False)
    evaluator.reset()
    for image_id, instances in enumerate(detections):
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def coco_results(detections: list[Instances]) -> list[dict]:
    """The content of a COCO result file."""
    return [
        {**result, "category_id": result["category_id"] + 1}
        for image_id, instances in enumerate(detections)
        for result in coco_evaluation.instances_to_coco_json(instances, image_id)
    ]


def evaluate_by_pycocotools(ground_truth: str, results: str) -> COCOeval:
    """COCO's evaluation of two files."""
    api = COCO(ground_truth)
    coco_eval = COCOeval(api, api.loadRes(results), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    return coco_eval


def measure(args) -> dict:
    """Seconds of each evaluation, by its key in ``RIVALS``."""
    generator = torch.Generator().manual_seed(0)
    images = [make_image(args, generator) for _ in range(args.images)]
    ground_truth, detections = zip(*images)
    name = f"benchmark_{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{file}.json") for file in ("annotations", "results")]
        Path(files[0]).write_text(json.dumps(coco_annotations(ground_truth, args.classes)))
        Path(files[1]).write_text(json.dumps(coco_results(detections)))
        metadata = MetadataCatalog.get(name).set(json_file=files[0])
        metadata.thing_dataset_id_to_contiguous_id = {c + 1: c for c in range(args.classes)}
        metadata.thing_classes = [f"class {c}" for c in range(args.classes)]
        runs = {
            key: lambda kind=kind: evaluate(kind, name, detections)
            for key, kind in EVALUATORS.items()
        }
        runs["pycocotools"] = lambda: evaluate_by_pycocotools(*files)
        runs["alrp-evaluate"] = lambda: alrp_evaluate.main(files)
        with contextlib.redirect_stdout(io.StringIO()):  # what COCO and the command print
            return medians_in_turns(runs, args.repeats, torch.device("cpu"), warm_up=0)


def run(args) -> None:
    """Measure and print a table."""
    seconds = measure(args)
    document = {
        **{key: getattr(args, key) for key in ("images", "detections", "classes")},
        **environment(torch.device("cpu")),
        "coco_matching": coco_evaluation.COCOeval_opt.__module__,
        "seconds": seconds,
    }
    print(", ".join(f"{k} {v}" for k, v in document.items() if k != "seconds"), end="\n\n")
    names = {key: kind.__name__ for key, kind in EVALUATORS.items()}
    rows = [[names.get(key, key), s, s / seconds[RIVALS[key]]] for key, s in seconds.items()]
    print(markdown(["evaluation", "seconds", "ratio"], rows))
    write_json(args.json, document)


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
