#!/usr/bin/env python
"""Train several configs with several seeds, one run after the other, and print one table.

    python benchmarks/compare_configs.py --output FOLDER CONFIG ... [--num-seeds 3] [--opts ...]

Each run is train_net.py in FOLDER/<name of the config>/seed_<n>. A run that is finished is not
repeated and one that was interrupted goes on, so the same command may be started again. The table
has the mean of each figure over the seeds and their sample standard deviation.
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

from alrp.errors import UserError
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


def keep_record(folder: Path, records: dict) -> None:
    """Write what a run is of, by file name; UserError if ``folder`` is of another run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"compare_configs: cannot make the folder {folder} ({error}); name another --output."
        ) from error
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


def read_result(folder: Path) -> list:
    """The figures of ``METRICS``, in percent, as the last evaluation logged them."""
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
    row = next((row for row in reversed(rows) if METRICS[0] in row), {})
    missing = [name for name in METRICS if name not in row]
    if missing:
        raise UserError(
            f"compare_configs: {path} has no {', '.join(missing)}; remove the folder to run it "
            "again."
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


def main(argv=None) -> int:
    """Run all that is missing; returns the exit status."""
    args = parse_args(argv)
    names = [Path(config_file).stem for config_file in args.config_files]
    results = {name: [] for name in names}
    try:
        if len(results) < len(names):
            raise UserError("compare_configs: two configs have the same file name; rename one.")
        for seed in range(1, args.num_seeds + 1):
            for name, config_file in zip(names, args.config_files):
                folder = Path(args.output) / name / f"seed_{seed}"
                train(config_file, seed, folder, args.opts)
                results[name].append(read_result(folder))
                figures = zip(HEADINGS, results[name][-1])
                print(f"{folder}: " + "  ".join(f"{k} {v:.1f}" for k, v in figures), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
