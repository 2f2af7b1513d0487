#!/usr/bin/env python
"""Time and memory of the ranking losses against focal loss, forward and backward.

    python benchmarks/benchmark_losses.py [--device cuda] [--json results.json]

One process; the losses take turns in an order drawn anew for every round; medians. Every loss gets
its targets in the form it wants, made outside the timing: int8 for the ranking losses, floats for
focal loss. Ratios are to fvcore's sigmoid_focal_loss_jit, which Detectron2's RetinaNet calls. Peak
memory is what PyTorch's allocators give one call beyond its inputs, the gradient included. Not
among it are the tables of the compiled loops, less than 100 bytes per positive and 0.1 MiB. On a
GPU there are also the number of kernels launched, the time that they run ("GPU ms", the rest is
launching), the bytes that they read and write for each logit (each tensor counted once per kernel),
and how often the call waits for the GPU.

A second table says how many times as long aLRP and RS Loss take with twice as many positives, or
logits.
"""

import argparse
import itertools
import sys
import warnings
from functools import partial
from typing import Callable, NamedTuple
import torch
from measuring import (
    MIB,
    bytes_moved,
    device_name,
    environment,
    gpu_work,
    medians_in_turns,
    output_file,
    peak_bytes,
    whole_number,
    write_json,
)
from torch import Tensor

from alrp.errors import exit_status
from alrp.losses import alrp_loss, ap_loss, rs_loss

BASELINE = "focal (fvcore, jit)"
# Pairs of a positive and an entry beyond which these take too much memory, or time.
MAX_PAIRS = {
    "alrp as a matrix": 1e8,
    "alrp as a loop": 1e9,
    "rs as a matrix": 1e8,
    "rs as a loop": 1e9,
}
WARM_UP = 2  # calls after which TorchScript has specialised
GROWTH_LINE = (
    "{size:>10,} {positives:>6} {stage:7} {loss:5} {twice_positives:>10.2f} {twice_logits:>7.2f}"
)
# Mean and deviation of the logits of negatives and of positives.
STAGES = {
    "start": (-4.6, 0.1, -4.6, 0.1),
    "middle": (-4.5, 1.2, -1.5, 1.5),
    "end": (-9, 1.5, 2, 1.5),
}


class Case(NamedTuple):
    """One problem: S logits, targets in both forms, P localisation errors and IoUs."""

    logits: Tensor  # (S,)
    targets: Tensor  # (S,) int8
    float_targets: Tensor  # (S,)
    errors: Tensor  # (P,)
    ious: Tensor  # (P,)


def make_case(size: int, positives: int, stage: str, device="cpu", dtype=torch.float32) -> Case:
    """Seeded logits as at one stage of a training.

    At the start all are what the bias of the classifier makes them; in the middle positives have
    risen and both spread; at the end nearly all negatives lie below every positive.
    """
    generator = torch.Generator().manual_seed(size + positives)
    mean, deviation, pos_mean, pos_deviation = STAGES[stage]
    logits = mean + deviation * torch.randn(size, generator=generator)
    places = torch.randperm(size, generator=generator)[:positives]
    logits[places] = pos_mean + pos_deviation * torch.randn(positives, generator=generator)
    targets = torch.zeros(size, dtype=torch.int8).index_fill_(0, places, 1)
    errors = 1.5 * torch.rand(positives, generator=generator)
    logits, errors = logits.to(device, dtype), errors.to(device, dtype)
    ious = torch.rand(positives, generator=generator).to(device, dtype)
    return Case(logits, targets.to(device), targets.to(device, dtype), errors, ious)


def differentiated(value: Callable[[Tensor, Case], Tensor]) -> Callable:
    """From a case to value and gradient, by autograd."""

    def run(case: Case) -> tuple:
        logits = case.logits.detach().requires_grad_()
        result = value(logits, case)
        result.backward()
        return result.detach(), logits.grad

    return run


def alrp(logits: Tensor, case: Case) -> Tensor:
    """Value of alrp_loss."""
    output = alrp_loss(logits, case.targets, case.errors)
    return output.cls + output.loc


def rs(logits: Tensor, case: Case) -> Tensor:
    """Value of rs_loss, with the delta of the others."""
    output = rs_loss(logits, case.targets, case.ious, delta=1.0)
    return output.ranking + output.sorting


def deterministic(loss: Callable) -> Callable:
    """The same loss under torch.use_deterministic_algorithms."""

    def run(case: Case) -> tuple:
        torch.use_deterministic_algorithms(True)
        try:
            return loss(case)
        finally:
            torch.use_deterministic_algorithms(False)

    return run


def step(x: Tensor) -> Tensor:
    """The smoothed step with delta 1."""
    return (x / 2 + 0.5).clamp(0, 1)


def alrp_parts(case: Case) -> tuple:
    """Logits of positives, places and logits of the negatives within reach of one of them."""
    pos = case.logits[case.targets == 1]
    near = ((case.targets == 0) & (case.logits >= pos.min() - 1)).nonzero().squeeze(1)
    return pos, near, case.logits[near]


def alrp_value(case: Case, pos: Tensor, false_positives: Tensor, rank: Tensor) -> Tensor:
    """Value of aLRP from (P,) false positives and ranks."""
    order = pos.argsort(descending=True, stable=True)
    loc = (case.errors[order].cumsum(0) / rank[order]).mean()
    return (false_positives / rank).mean() + loc


def alrp_matrix(case: Case) -> tuple:
    """All pairs at once (arXiv:2009.13592, Eqs. 9 and 10)."""
    pos, near, neg = alrp_parts(case)
    above = step(pos[None, :] - pos[:, None]).fill_diagonal_(0)
    negatives_above = step(neg[None, :] - pos[:, None])
    false_positives = negatives_above.sum(1)
    rank = 1 + above.sum(1) + false_positives
    errors = (false_positives + above @ case.errors) / rank / len(pos)
    errors = torch.where(false_positives > 1e-5, errors, 0)
    gradient = torch.zeros_like(case.logits)
    gradient[near] = torch.where(errors > 0, errors / false_positives, 0) @ negatives_above
    gradient[case.targets == 1] = -errors
    return alrp_value(case, pos, false_positives, rank), gradient


def rs_matrix(case: Case) -> tuple:
    """All pairs at once, those of positives too."""
    pos, near, neg = alrp_parts(case)
    above, negatives_above = step(pos[None, :] - pos[:, None]), step(neg[None, :] - pos[:, None])
    rank, false_positives = above.sum(1), negatives_above.sum(1)
    ranking = false_positives / (rank + false_positives)
    wrong = above * (case.ious[None, :] < case.ious[:, None])
    right, gaps = above - wrong, 1 - case.ious
    sorting = (above @ gaps / rank - right @ gaps / right.sum(1)).clamp(min=0)
    shares = torch.where(wrong.any(1), sorting / wrong.sum(1), 0)
    ranking_shares = torch.where(false_positives > 0, ranking / false_positives, 0)
    gradient = torch.zeros_like(case.logits)
    gradient[near] = ranking_shares @ negatives_above / len(pos)
    gradient[case.targets == 1] = (shares @ wrong - ranking - sorting) / len(pos)
    return ranking.mean() + sorting.mean(), gradient


def alrp_loop(case: Case) -> tuple:
    """One positive after the other, in memory for one row of the matrix."""
    pos, near, neg = alrp_parts(case)
    false_positives, rank, errors = (torch.zeros_like(pos) for _ in range(3))
    near_gradient = torch.zeros_like(neg)
    for i in range(len(pos)):
        above, negatives_above = step(pos - pos[i]), step(neg - pos[i])
        above[i] = 0
        false_positives[i] = negatives_above.sum()
        rank[i] = 1 + above.sum() + false_positives[i]
        if false_positives[i] > 1e-5:
            errors[i] = (false_positives[i] + above @ case.errors) / rank[i] / len(pos)
            near_gradient += errors[i] / false_positives[i] * negatives_above
    gradient = torch.zeros_like(case.logits)
    gradient[near] = near_gradient
    gradient[case.targets == 1] = -errors
    return alrp_value(case, pos, false_positives, rank), gradient


def rs_loop(case: Case) -> tuple:
    """One positive after the other, as the published function goes."""
    pos, near, neg = alrp_parts(case)
    ranking, sorting, pos_gradient = (torch.zeros_like(pos) for _ in range(3))
    near_gradient = torch.zeros_like(neg)
    gaps = 1 - case.ious
    for i in range(len(pos)):
        above, negatives_above = step(pos - pos[i]), step(neg - pos[i])
        rank, false_positives = above.sum(), negatives_above.sum()
        wrong = above * (case.ious < case.ious[i])
        right = above - wrong
        ranking[i] = false_positives / (rank + false_positives)
        sorting[i] = (above @ gaps / rank - right @ gaps / right.sum()).clamp(min=0)
        if false_positives > 0:
            near_gradient += ranking[i] / false_positives * negatives_above
        if wrong.any():
            pos_gradient += sorting[i] / wrong.sum() * wrong
    gradient = torch.zeros_like(case.logits)
    gradient[near] = near_gradient / len(pos)
    gradient[case.targets == 1] = (pos_gradient - ranking - sorting) / len(pos)
    return ranking.mean() + sorting.mean(), gradient


def make_losses() -> dict:
    """Name -> function from a case to value and gradient."""
    from fvcore.nn import sigmoid_focal_loss, sigmoid_focal_loss_jit
    from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

    def focal(function):
        return differentiated(
            lambda x, case: function(x, case.float_targets, alpha=0.25, gamma=2.0, reduction="sum")
        )

    return {
        BASELINE: focal(sigmoid_focal_loss_jit),
        "focal (fvcore)": focal(sigmoid_focal_loss),
        "focal (torchvision)": focal(torchvision_focal_loss),
        "alrp": differentiated(alrp),
        "alrp, deterministic": deterministic(differentiated(alrp)),
        "rs": differentiated(rs),
        "ap": differentiated(lambda logits, case: ap_loss(logits, case.targets)),
        "alrp as a matrix": alrp_matrix,
        "alrp as a loop": alrp_loop,
        "rs as a matrix": rs_matrix,
        "rs as a loop": rs_loop,
    }


def synchronisations(call: Callable, device: torch.device) -> int | None:
    """How often one call waits for the GPU; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def measure(case: Case, repeats: int) -> list:
    """One row per loss; what would take too long or too much memory has a reason instead."""
    device, pairs = case.logits.device, len(case.logits) * len(case.errors)
    skipped = {name: most for name, most in MAX_PAIRS.items() if pairs > most}
    calls = {
        name: partial(loss, case) for name, loss in make_losses().items() if name not in skipped
    }
    medians = medians_in_turns(calls, repeats, device, WARM_UP)
    work = {name: gpu_work(call, device) for name, call in calls.items()}
    rows = [
        {
            "loss": name,
            "milliseconds": 1e3 * medians[name],
            "ratio": medians[name] / medians[BASELINE],
            "peak_bytes": peak_bytes(call, device),
            "launches": work[name].launches,
            "gpu_milliseconds": work[name].milliseconds,
            "bytes_moved": bytes_moved(call, device),
            "synchronisations": synchronisations(call, device),
        }
        for name, call in calls.items()
    ]
    reasons = [(name, f"{pairs:.0e} pairs, limit {most:.0e}") for name, most in skipped.items()]
    return rows + [{"loss": name, "skipped": reason} for name, reason in reasons]


def measure_growth(
    loss: Callable, size: int, positives: int, stage: str, device: str, repeats: int
) -> dict:
    """How many times as long a loss takes with twice the positives, and with twice the logits."""
    shapes = {"once": (1, 1), "twice_positives": (1, 2), "twice_logits": (2, 1)}
    calls = {
        name: partial(
            differentiated(loss), make_case(size * grow, positives * times, stage, device)
        )
        for name, (grow, times) in shapes.items()
    }
    medians = medians_in_turns(calls, repeats, torch.device(device), WARM_UP)
    return {name: seconds / medians["once"] for name, seconds in medians.items() if name != "once"}


def line(result: dict) -> str:
    """A row of the first table as text."""
    text = "{size:>10,} {positives:>6} {stage:7} {loss:20}".format(**result)
    if "skipped" in result:
        return f"{text} skipped: {result['skipped']}"
    text += "{milliseconds:>10.1f} {ratio:>7.2f}".format(**result)
    moved = result["bytes_moved"]
    per_logit = None if moved is None else f"{moved / result['size']:.0f}"
    busy = result["gpu_milliseconds"]
    counts = result["launches"], busy and f"{busy:.3f}", per_logit, result["synchronisations"]
    cells = "".join(f" {'-' if x is None else x:>8}" for x in counts)
    return f"{text} {result['peak_bytes'] / MIB:>9.1f}{cells}"


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(
        description="Time and memory of the ranking losses against focal loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    at_least_1 = whole_number(1)
    numbers = {"type": at_least_1, "nargs": "+", "metavar": "N"}
    sizes, positives = [100_000, 700_000, 7_000_000, 28_000_000], [50, 400, 1600, 6400]
    parser.add_argument("--sizes", default=sizes, help="numbers of logits", **numbers)
    parser.add_argument("--positives", default=positives, help="among them", **numbers)
    parser.add_argument("--repeats", type=at_least_1, default=7, help="calls that are timed")
    parser.add_argument(
        "--threads", type=at_least_1, help="of the CPU; PyTorch's choice if not given"
    )
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--json", type=output_file, metavar="OUT", help="also write the numbers to this file"
    )
    parser.add_argument("--quick", action="store_true", help="one small problem, to see it run")
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.positives, args.repeats = [10_000], [50], 1
    most, size = max(args.positives), min(args.sizes)
    if 2 * most > size:
        parser.error(f"twice --positives {most} do not fit into --sizes {size}")
    return args


def run(args) -> None:
    """Measure, print two tables and write JSON."""
    if args.threads:
        torch.set_num_threads(args.threads)
    document = {**environment(torch.device(args.device)), "baseline": BASELINE}
    print(", ".join(f"{key}: {value}" for key, value in document.items()))
    columns = "logits", "pos.", "stage", "loss", "ms", "ratio", "MiB"
    columns += "launches", "GPU ms", "B/logit", "syncs"
    print("{:>10} {:>6} {:7} {:20}{:>10} {:>7} {:>9} {:>8} {:>8} {:>8} {:>8}".format(*columns))
    document.update(results=[], growth=[])
    cases = [
        dict(zip(("size", "positives", "stage"), values))
        for values in itertools.product(args.sizes, args.positives, STAGES)
    ]
    for case in cases:
        for row in measure(make_case(**case, device=args.device), args.repeats):
            document["results"].append({**case, **row})
            print(line(document["results"][-1]), flush=True)

    print("\ntimes as long with twice as many\n    logits   pos. stage   loss   positives  logits")
    for case, loss in itertools.product(cases, (alrp, rs)):
        row = measure_growth(loss, **case, device=args.device, repeats=args.repeats)
        document["growth"].append({**case, "loss": loss.__name__, **row})
        print(GROWTH_LINE.format(**document["growth"][-1]), flush=True)
    write_json(args.json, document)


def main(argv=None) -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
