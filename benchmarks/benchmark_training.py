#!/usr/bin/env python
"""Seconds per iteration and peak memory of the aLRP RetinaNet, against Detectron2's RetinaNet.

    python benchmarks/benchmark_training.py [--config-file FILE] [--depth 50] [--size 512]
    python benchmarks/benchmark_training.py --batch 32 --micro-batch 4

Three detectors with one backbone and one batch train in turns, an iteration each: the config's own;
Detectron2's ``RetinaNet`` class with its nine anchors per location; and the same class with the
config's anchors, which tells the cost of the loss from that of the head. With ``--micro-batch`` the
config's own detector trains on the whole batch and in micro-batches.

The images are noise with 1 to 14 random boxes each. Weights are random and stay so, as the learning
rate is 0: logits are those of the start of training. Batch norm gets the statistics of the batch.
Matching and losses (forward and backward, down to the predictions) are also timed alone, on what
they got in an iteration. Peak memory is that of a process which trains this detector only: on a GPU
by PyTorch's allocator, on a CPU resident memory beyond that of the imported libraries. With
``--micro-batch`` the peak of all tensors is given too, which leaves out compilers and libraries.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
import torch
from fvcore.nn.precise_bn import update_bn_stats
from measuring import (
    device_name,
    environment,
    gpu_work,
    markdown,
    medians_in_turns,
    output_file,
    peak_bytes,
    peak_of_process,
    random_batch,
    whole_number,
    write_json,
)

from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from alrp.engine import Trainer, setup_config
from alrp.engine.mixed_precision import iteration_trainer
from alrp.errors import UserError, exit_status
from alrp.modeling.micro_batches import set_micro_batch_size

CONFIG = "configs/COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml"
DEPTHS = (18, 34, 50, 101, 152)
_SETTING = ("config_file", "depth", "size", "batch", "micro_batch", "opts")
_RATIOS = {"seconds": "time_ratio", "peak_bytes": "memory_ratio", "tensor_bytes": "tensor_ratio"}
NAMES = {
    "alrp": "this config",
    "detectron2": "Detectron2's RetinaNet",
    "detectron2_same_anchors": "the same, this config's anchors",
    "whole_batch": "this config, the whole batch at a time",
    "micro_batches": "this config, micro-batches",
}


def parse_args(argv=None):
    """Parsed command line."""
    at_least_1 = whole_number(1)
    parser = argparse.ArgumentParser(
        description="Compare training steps of the aLRP RetinaNet and Detectron2's RetinaNet.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config-file", default=CONFIG, help="of an ALRPRetinaNet")
    parser.add_argument("--depth", type=int, choices=DEPTHS, default=50, help="of the ResNet")
    parser.add_argument(
        "--size", type=whole_number(32), default=512, help="side of the images in pixels"
    )
    parser.add_argument("--batch", type=at_least_1, default=2, help="images")
    parser.add_argument(
        "--micro-batch",
        type=at_least_1,
        metavar="IMAGES",
        help="compare micro-batches of so many images with the whole batch",
    )
    parser.add_argument("--iterations", type=at_least_1, default=10, help="timed, of each detector")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=at_least_1, default=1, help="of the CPU")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures here as well"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser.parse_args(argv)


def make_configs(args) -> dict[str, CfgNode]:
    """The detectors to compare, by their keys in ``NAMES``."""
    cfg = setup_config(args).clone()
    if cfg.MODEL.META_ARCHITECTURE != "ALRPRetinaNet":
        raise UserError(
            "--config-file: expected MODEL.META_ARCHITECTURE ALRPRetinaNet, but it is "
            f"{cfg.MODEL.META_ARCHITECTURE}; name the config of a RetinaNet with a ranking loss."
        )
    cfg.defrost()
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.RESNETS.DEPTH = args.depth
    if args.depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.ALRP.SELF_BALANCE.PERIOD = 1000
    cfg.SOLVER.BASE_LR = 0.0
    if args.micro_batch:
        micro_batches = cfg.clone()
        micro_batches.SOLVER.MICRO_BATCH_SIZE = args.micro_batch
        return {"whole_batch": cfg, "micro_batches": micro_batches}
    same_anchors = cfg.clone()
    same_anchors.MODEL.META_ARCHITECTURE = "RetinaNet"
    same_anchors.MODEL.RETINANET.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    detectron2 = same_anchors.clone()
    anchors = detectron2.MODEL.ANCHOR_GENERATOR
    anchors.SIZES = [[sizes[0] * 2 ** (i / 3) for i in range(3)] for sizes in anchors.SIZES]
    anchors.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    return {"alrp": cfg, "detectron2": detectron2, "detectron2_same_anchors": same_anchors}


def make_trainer(cfg: CfgNode, args) -> SimpleTrainer:
    """Trainer of a new model on one batch that comes again and again."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="torch.meshgrid")  # Detectron2's call of it
    batch = random_batch(args.batch, args.size, cfg.MODEL.RETINANET.NUM_CLASSES)
    model = Trainer.build_model(cfg)
    model.backbone.bottom_up.train()  # NORM_EVAL is for trained statistics
    # A few of the images, as the memory that they need is not to be the peak.
    update_bn_stats(model.backbone, [model.preprocess_image(batch[:4]).tensor], num_iters=1)
    set_micro_batch_size(model, cfg.SOLVER.MICRO_BATCH_SIZE, "--micro-batch")
    optimizer = Trainer.build_optimizer(cfg, model)
    trainer = iteration_trainer(cfg, model, itertools.repeat(batch), optimizer)
    trainer.iter = 0
    return trainer


def step(trainer: SimpleTrainer) -> None:
    """One iteration: forward, backward, update."""
    with EventStorage(0) as trainer.storage:
        trainer.run_step()


def parts(trainer: SimpleTrainer) -> dict:
    """Functions that repeat the matching and the losses of an iteration."""
    model, arguments = trainer.model, {}

    def recording(name, method):
        def call(*args):
            arguments[name] = args
            return method(*args)

        return call

    for name in ("label_anchors", "losses"):
        setattr(model, name, recording(name, getattr(model, name)))
    step(trainer)
    del model.label_anchors, model.losses  # the recording ones, not the methods
    anchors, logits, gt_labels, deltas, gt_boxes = arguments["losses"]
    logits = [tensor.detach().requires_grad_() for tensor in logits]
    deltas = [tensor.detach().requires_grad_() for tensor in deltas]

    def losses():
        with EventStorage(0):
            values = model.losses(anchors, logits, gt_labels, deltas, gt_boxes)
        torch.autograd.grad(sum(values.values()), [*logits, *deltas])

    return {"matcher": lambda: model.label_anchors(*arguments["label_anchors"]), "losses": losses}


def train_briefly(cfg: CfgNode, args) -> None:
    """Two iterations; from the second on there are momenta."""
    trainer = make_trainer(cfg, args)
    for _ in range(2):
        step(trainer)


def measure(args) -> dict:
    """Figures of each detector by its key in ``NAMES``."""
    configs, device = make_configs(args), torch.device(args.device)
    results = {}
    for name, cfg in configs.items():  # first, while this process is small
        results[name] = {"peak_bytes": peak_of_process(train_briefly, cfg, args, device=device)}
    for name, cfg in configs.items() if args.micro_batch else ():
        results[name]["tensor_bytes"] = peak_bytes(lambda: train_briefly(cfg, args), device)
    trainers = {name: make_trainer(cfg, args) for name, cfg in configs.items()}
    steps = {name: lambda trainer=trainer: step(trainer) for name, trainer in trainers.items()}
    seconds = medians_in_turns(steps, args.iterations, device)
    for name, trainer in trainers.items():
        launches = gpu_work(steps[name], device).launches
        results[name].update(seconds=seconds[name], launches=launches)
        medians = medians_in_turns(parts(trainer), args.iterations, device)
        for part, value in medians.items():
            results[name][f"{part}_seconds"] = value
            results[name][f"{part}_share"] = value / results[name]["seconds"]
    base = results["whole_batch" if args.micro_batch else "detectron2"]
    for result in results.values():
        for figure, title in _RATIOS.items():
            if figure in base:
                result[title] = result[figure] / base[figure]
    return results


def table(results: dict) -> str:
    """Markdown: a row for each detector; ratios are to Detectron2's, or to the whole batch."""
    header = ["detector", "s / iteration", "ratio", "peak GiB", "ratio"]
    columns = {"seconds": 1, "time_ratio": 1, "peak_bytes": 2**-30, "memory_ratio": 1}
    if "micro_batches" in results:
        header += ["tensors GiB", "ratio"]
        columns.update(tensor_bytes=2**-30, tensor_ratio=1)
    header += ["matcher ms", "% of it", "losses ms", "% of it"]
    columns.update(matcher_seconds=1e3, matcher_share=100, losses_seconds=1e3, losses_share=100)
    if all(result["launches"] is not None for result in results.values()):  # on a GPU
        header.append("launches")
        columns["launches"] = 1
    rows = [
        [NAMES[key], *(r[k] * unit for k, unit in columns.items())] for key, r in results.items()
    ]
    return markdown(header, rows)


def run(args) -> None:
    """Measure and report; UserError if the config does not fit."""
    torch.set_num_threads(args.threads)
    results = measure(args)
    setting = {key: getattr(args, key) for key in _SETTING}
    document = {**setting, **environment(torch.device(args.device)), "detectors": results}
    print(", ".join(f"{k} {v}" for k, v in document.items() if k != "detectors"))
    print(f"\n{table(results)}")
    write_json(args.json, document)


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
