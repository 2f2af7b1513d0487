#!/usr/bin/env python
"""Train several configs with several seeds, one run after the other, and print one table.

    python benchmarks/compare_configs.py --output FOLDER CONFIG ... [--overlay FILE]
        [--num-seeds 3] [--figure FILE] [--opts KEY VALUE ...]

Each run is train_net.py in FOLDER/<name of the config>/seed_<n>. A run that is finished is not
repeated and one that was interrupted goes on, so the same command may be started again; configs and
FOLDER may have been moved. The first seed of every config comes before the second of any. The table
has the mean of each figure over the seeds and their sample standard deviation; the figure shows AP
and oLRP at each evaluation.
"""

import argparse
import fcntl
import json
import statistics
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator
import yaml
from measuring import whole_number

from detectron2.config import CfgNode

from alrp.errors import UserError, exit_status
from alrp.files import check_folder, check_new_file, make_folder, read_json, replacing

TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
METRICS = ("bbox/AP", "bbox/AP50", "bbox/AP75", "lrp/oLRP", "lrp/oLRP_Loc", "lrp/oLRP_FP")
METRICS += ("lrp/oLRP_FN",)
HEADINGS = [name.split("/")[-1].replace("oLRP_", "") for name in METRICS]


def figure_file(text: str) -> str:
    """Type of an option: a name whose ending says which kind of picture it is."""
    from matplotlib.backend_bases import FigureCanvasBase

    if Path(text).suffix[1:].lower() not in FigureCanvasBase.filetypes:
        raise argparse.ArgumentTypeError(
            f"expected a name that ends like .png, .pdf or .svg, but got {text!r}"
        )
    return text


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
    parser.add_argument(
        "--figure", type=figure_file, metavar="FILE", help="draw AP and oLRP over the iterations"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all configs"
    )
    return parser.parse_args(argv)


def config_content(config_file: str) -> dict:
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
    return json.loads(json.dumps(content, default=str))


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Hold the folder of a run; UserError if another process does, or it cannot be written to.

    Yields:
        File descriptor of the lock. The system releases it when the last process that has it ends,
        however it does.
    """
    try:
        file = open(folder / "lock", "w")
    except OSError as error:
        raise UserError(
            f"compare_configs: {folder} cannot be written to ({error.strerror}); name another "
            "folder with --output."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"compare_configs: another process trains in {folder}; wait until it has ended, or "
                "name another folder with --output."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield file.fileno()


def keep_records(folder: Path, records: dict) -> None:
    """Write what a run is of, by file name; UserError if ``folder`` is of another run."""
    for name, record in records.items():
        path, found = folder / name, None
        if not path.exists():
            continue
        with suppress(UserError):
            found = read_json(path)
        if what_counts(found) != what_counts(record):
            raise UserError(
                f"compare_configs: {folder} holds a run with other options or another content of "
                f"its config ({path}); name another folder with --output or remove that one."
            )
    for name, record in records.items():
        with replacing(folder / name) as file:
            file.write(json.dumps(record, indent=1).encode())


def what_counts(record: list | dict | None) -> list | dict | None:
    """A record without the path of the config, which may have been moved; its content counts."""
    if isinstance(record, list) and "--config-file" in record:
        place = record.index("--config-file")
        return record[:place] + record[place + 2 :]
    return record


def with_overlay(config_file: str, overlay: str, folder: Path) -> str:
    """Path of a config made in ``folder`` that has the keys of ``overlay`` over its own."""
    bases = [str(Path(file).resolve()) for file in (config_file, overlay)]
    make_folder(folder, "--output")
    path = folder / f"{Path(config_file).stem}.yaml"
    with replacing(path) as file:
        file.write(yaml.safe_dump({"_BASE_": bases}).encode())
    return str(path)


def train(config_file: str, seed: int, folder: Path, opts: list) -> None:
    """Train and evaluate in ``folder``, unless it holds the result of the same command."""
    command = ["--resume", "--config-file", config_file, *opts, "SEED", str(seed)]
    records = {"command.json": command, "config_content.json": config_content(config_file)}
    make_folder(folder, "--output")
    with held(folder) as lock:
        keep_records(folder, records)
        if (folder / "finished").exists():
            return
        command = [sys.executable, str(TRAIN_NET), *command, "OUTPUT_DIR", str(folder)]
        with open(folder / "console.txt", "wb") as console:
            # A training that survives this process keeps the lock.
            status = subprocess.run(
                command, stdout=console, stderr=subprocess.STDOUT, pass_fds=[lock]
            ).returncode
        if status:
            # Without a checkpoint there is nothing that a corrected command would go on with.
            if not (folder / "last_checkpoint").exists():
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
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:].lower(), dpi=100)


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
    check_folder(args.output, "--output")
    if args.figure:  # known before hours of training
        make_folder(Path(args.figure).parent, "--figure")
        check_new_file(args.figure, "--figure")
    names = [Path(config_file).stem for config_file in args.config_files]
    results = run_all(args, names)
    print("\n" + table(results))
    if args.figure:
        draw_evaluations(Path(args.output), names, args.num_seeds, args.figure)


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    return exit_status(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
