#!/usr/bin/env python
"""Memory of the box heads of Faster R-CNN in one training step, with as many regions as published.

    python benchmarks/benchmark_box_head.py [--images 8]

The aLRP box head trains on all 1,000 proposals of an image, the cross-entropy one on 512 samples of
them. Features, proposals and ground truth of 512-pixel images are made up; each head runs in a
process of its own. The figure is the peak of PyTorch's allocator on a GPU, else resident memory,
beyond model, features and the buffers of their gradients.
"""

import argparse
import sys
from pathlib import Path
import torch
from measuring import MIB, device_name, in_new_process, markdown, random_boxes, whole_number

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from alrp.config import load_config
from alrp.errors import exit_status
from alrp.memory import peak_memory

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "COCO-Detection"
NAMES = ("alrp_faster_rcnn_R_50_FPN_100e", "ce_faster_rcnn_R_50_FPN_100e")
SIDE, STRIDES, NUM_PROPOSALS, NUM_OBJECTS = 512, (4, 8, 16, 32), 1000, 8


def random_image(generator: torch.Generator) -> tuple[Instances, Instances]:
    """Ground truth, and proposals of which a fifth lie around it."""
    objects = random_boxes(NUM_OBJECTS, SIDE, generator)
    near = objects.repeat(NUM_PROPOSALS // 5 // NUM_OBJECTS, 1)
    near = (near + 6 * torch.randn(near.shape, generator=generator)).clamp(0, SIDE)
    proposals = torch.cat([random_boxes(NUM_PROPOSALS - len(near), SIDE, generator), near])
    return (
        Instances(
            (SIDE, SIDE),
            gt_boxes=Boxes(objects),
            gt_classes=torch.randint(80, (NUM_OBJECTS,), generator=generator),
        ),
        Instances(
            (SIDE, SIDE),
            proposal_boxes=Boxes(proposals),
            objectness_logits=torch.zeros(len(proposals)),
        ),
    )


def measure(name: str, num_images: int, device: torch.device) -> tuple[float, float, float, float]:
    """Positives and negatives per image, and MiB after forward and after backward."""
    generator = torch.Generator().manual_seed(0)
    cfg = load_config(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 1
    levels = {f"p{i}": stride for i, stride in enumerate(STRIDES, start=2)}
    shapes = {name: ShapeSpec(channels=256, stride=stride) for name, stride in levels.items()}
    heads = build_roi_heads(cfg, shapes).to(device).train()
    features = {
        name: torch.randn(num_images, 256, SIDE // stride, SIDE // stride, device=device)
        for name, stride in levels.items()
    }
    for tensor in [*features.values(), *heads.parameters()]:
        tensor.requires_grad_().grad = torch.zeros_like(tensor)
    images = [tuple(x.to(device) for x in random_image(generator)) for _ in range(num_images)]
    batch = ImageList(torch.zeros(num_images, 3, SIDE, SIDE), [(SIDE, SIDE)] * num_images)
    gt_instances, proposals = zip(*images)

    before = peak_memory(device)
    with EventStorage() as storage:
        losses = heads(batch, features, list(proposals), list(gt_instances))[1]
        counts = [storage.latest()[f"roi_head/num_{kind}_samples"][0] for kind in ("fg", "bg")]
    after_forward = peak_memory(device)
    sum(losses.values()).backward()
    return (
        *counts,
        (after_forward - before) / MIB,
        (peak_memory(device) - before) / MIB,
    )


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description="Memory of the box heads in a training step.")
    parser.add_argument(
        "--images", type=whole_number(1), default=8, help="images of a batch (default: 8)"
    )
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu or cuda")
    return parser.parse_args(argv)


def run(args) -> None:
    """Measure both heads and print a table."""
    rows = []
    for name in NAMES:
        figures = in_new_process(measure, name, args.images, torch.device(args.device))
        positives, negatives, *mebibytes = figures
        rows.append([f"`{name}`", f"{positives:.0f}, {negatives:.0f}", *mebibytes])
    header = ["box head", "positives, negatives per image", "MiB after forward", "after backward"]
    print(markdown(header, rows))


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
