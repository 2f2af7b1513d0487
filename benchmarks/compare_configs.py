#!/usr/bin/env python
"""Train several configs with several seeds, one run after the other, and print one table.

    python benchmarks/compare_configs.py --output FOLDER CONFIG ... [--overlay FILE]
        [--num-seeds 3] [--figure FILE] [--opts KEY VALUE ...]

Each run is train_net.py in FOLDER/<name of the config>/seed_<n>. A run that is finished is not
repeated and one that was interrupted goes on, so the same command may be started again. The first
seed of every config comes before the second of any. The table has the mean of each figure over the
seeds and their sample standard deviation; the figure shows AP and oLRP at each evaluation.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
import yaml
from measuring import whole_number

from detectron2.config import CfgNode

from alrp.errors import UserError, exit_status
from alrp.files import replacing

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "lrp/oLRP", "lrp/oLRP_Loc", "lrp/oLRP_FP")
METRICS += ("lrp/oLRP_FN",)
HEADINGS = [name.split("/")[-1].replace("oLRP_", "") for name in METRICS]


def parse_args(argv=None):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description="Train configs with several seeds and compare.")
    parser.add_argument("config_files", nargs="+", metavar="CONFIG", help="YAML config")
    parser.add_argument("--output", required=True, help="folder of all runs")
    parser.add_argument(
        "--num-seeds", type=whole_number(1), default=3, help="runs of each config (default: 3)"
    )
    parser.add_argument(
        "--overlay", metavar="FILE", help="YAML file without _BASE_, whose keys all configs get"
    )
    parser.add_argument("--figure", metavar="FILE", help="draw AP and oLRP over the iterations")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all configs"
    )
    return parser.parse_args(argv)


def config_content(config_file: str) -> str:
    """What a config and its bases set, without the defaults, which later versions may extend."""
    try:
        content = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
    except (
        AssertionError,
        AttributeError,
        OSError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as error:
        raise UserError(f"compare_configs: cannot read {config_file} ({error}).") from error
    return json.dumps(content, default=str, indent=1)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; UserError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"compare_configs: cannot make the folder {folder} ({error}); name another --output."
        ) from error


def keep_record(folder: Path, records: dict) -> None:
    """Write what a run is of, by file name; UserError if ``folder`` is of another run."""
    make_folder(folder)
    paths = {folder / name: text for name, text in records.items()}
    for path, text in paths.items():
        if path.exists() and path.read_text(errors="replace") != text:
            raise UserError(
                f"compare_configs: {folder} holds a run with other options or another content of "
                f"its config ({path}); name another folder with --output or remove that one."
            )
    for path, text in paths.items():
        with replacing(path) as file:
            file.write(text.encode())


def with_overlay(config_file: str, overlay: str, folder: Path) -> str:
    """Path of a config made in ``folder`` that has the keys of ``overlay`` over its own."""
    bases = [str(Path(file).resolve()) for file in (config_file, overlay)]
    make_folder(folder)
    path = folder / f"{Path(config_file).stem}.yaml"
    with replacing(path) as file:
        file.write(yaml.safe_dump({"_BASE_": bases}).encode())
    return str(path)


def train(config_file: str, seed: int, folder: Path, opts: list) -> None:
    """Train and evaluate in ``folder``, unless it holds the result of the same command."""
    command = ["--resume", "--config-file", config_file, *opts, "SEED", str(seed)]
    records = {"command.json": json.dumps(command)}
    records["config_content.json"] = config_content(config_file)
    keep_record(folder, records)
    if (folder / "finished").exists():
        return
    with open(folder / "console.txt", "wb") as console:
        command = [sys.executable, str(TRAIN_NET), *command, "OUTPUT_DIR", str(folder)]
        failed = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT).returncode
    if failed:
        if not (folder / "last_checkpoint").exists():  # nothing that a corrected command would mix
            for name in records:
                (folder / name).unlink()
        tail = (folder / "console.txt").read_text(errors="replace").splitlines()[-5:]
        raise UserError("\n".join([f"compare_configs: the run in {folder} failed:", *tail]))
    (folder / "finished").touch()


def read_evaluations(folder: Path) -> list[dict]:
    """The rows of a run's metrics.json that hold the figures of an evaluation, in percent."""
    path, rows = folder / "metrics.json", []
    if not path.is_file():
        raise UserError(
            f"compare_configs: {folder} is marked as finished but has no metrics.json; remove the "
            "folder to run it again."
        )
    for line in path.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # cut off, as a run was killed while it wrote
            continue
    return [row for row in rows if METRICS[0] in row]


def read_result(folder: Path) -> list:
    """The figures of ``METRICS``, in percent, as the last evaluation logged them."""
    row = (read_evaluations(folder) or [{}])[-1]
    missing = [name for name in METRICS if name not in row]
    if missing:
        raise UserError(
            f"compare_configs: {folder / 'metrics.json'} has no {', '.join(missing)}; remove the "
            "folder to run it again."
        )
    return [row[name] for name in METRICS]


def table(results: dict) -> str:
    """Markdown: a row for each config, from its results of every seed."""
    lines = [
        "| config | seeds | " + " | ".join(HEADINGS) + " |",
        "|---" * (len(HEADINGS) + 2) + "|",
    ]
    for name, runs in results.items():
        cells = [f"{statistics.fmean(values):.1f}" for values in zip(*runs)]
        if len(runs) > 1:
            spread = [statistics.stdev(values) for values in zip(*runs)]
            cells = [f"{cell} ± {s:.1f}" for cell, s in zip(cells, spread)]
        lines.append(f"| `{name}` | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_evaluations(output: Path, names: list[str], num_seeds: int, path: str) -> None:
    """Draw AP and oLRP over the iterations: mean of the seeds, and their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, metric in zip(figure.subplots(1, 2), ("bbox/AP", "lrp/oLRP")):
        for name in names:
            folders = [output / name / f"seed_{seed}" for seed in range(1, num_seeds + 1)]
            points: dict[int, list[float]] = {}
            for row in (row for folder in folders for row in read_evaluations(folder)):
                points.setdefault(row["iteration"], []).append(row[metric])
            iterations, values = sorted(points), [points[i] for i in sorted(points)]
            lines = ax.plot(iterations, [statistics.fmean(v) for v in values], "o-", label=name)
            low, high = [min(v) for v in values], [max(v) for v in values]
            ax.fill_between(iterations, low, high, color=lines[0].get_color(), alpha=0.15)
        ax.set(xlabel="iteration", ylabel=metric.split("/")[-1])
        ax.grid(True, color="#DDDDDD", linewidth=0.6)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=100)


def run_all(args: argparse.Namespace, names: list[str]) -> dict:
    """Run all that is missing; returns the results of every config, by name, seed after seed."""
    if len(set(names)) < len(names):
        raise UserError("compare_configs: two configs have the same file name; rename one.")
    results = {name: [] for name in names}
    for seed in range(1, args.num_seeds + 1):
        for name, config_file in zip(names, args.config_files):
            folder = Path(args.output) / name / f"seed_{seed}"
            if args.overlay:
                config_file = with_overlay(config_file, args.overlay, folder.parent)
            train(config_file, seed, folder, args.opts)
            results[name].append(read_result(folder))
            figures = zip(HEADINGS, results[name][-1])
            print(f"{folder}: " + "  ".join(f"{k} {v:.1f}" for k, v in figures), flush=True)
    return results


def run(args) -> None:
    """Run all that is missing and compare; UserError if a run fails."""
    names = [Path(config_file).stem for config_file in args.config_files]
    results = run_all(args, names)
    if args.figure:
        draw_evaluations(Path(args.output), names, args.num_seeds, args.figure)
    print("\n" + table(results))


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
