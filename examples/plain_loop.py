"""A loop of your own around a detector of this project, which saves and resumes.

    python examples/plain_loop.py --checkpoint plain_loop.pth --steps 100

Started again with more steps, it goes on from the checkpoint. Self-balance, its weight and its
unfinished epoch, is part of the model's state.
"""

import argparse
import numpy as np
import os
import torch

from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from alrp import model_zoo
from alrp.data.datasets.shapes import render, sample_scene


def scene(seed):
    """A generated image, as Detectron2's loaders give it."""
    drawn = sample_scene(np.random.default_rng(seed), 128)
    pixels, boxes, *_ = render(drawn)
    classes = torch.tensor([shape.category for shape in drawn.shapes])
    objects = Instances((128, 128), gt_boxes=Boxes(torch.from_numpy(boxes)), gt_classes=classes)
    return {"image": torch.from_numpy(pixels).permute(2, 0, 1), "instances": objects}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="plain_loop.pth")
    parser.add_argument("--steps", type=int, default=100, help="in all")
    parser.add_argument("--epoch", type=int, default=25, help="steps of one")
    args = parser.parse_args(argv)

    cfg = model_zoo.get_config("Shapes/alrp_retinanet_R_18_FPN_ATSS_demo.yaml")
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = args.epoch
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start = 0
    if os.path.exists(args.checkpoint):
        saved = torch.load(args.checkpoint, map_location=cfg.MODEL.DEVICE)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["steps"]
    for step in range(start, args.steps):
        losses = model([scene((step, i)) for i in range(4)])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        print(step, {name: round(loss.item(), 3) for name, loss in losses.items()})
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**parts, "steps": max(start, args.steps)}, args.checkpoint)


if __name__ == "__main__":
    main()
