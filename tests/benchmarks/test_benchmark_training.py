"""benchmarks/benchmark_training.py on a tiny network; no figure is a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
import pytest

import alrp

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = str(Path(alrp.__file__).resolve().parents[1])
TINY = "--depth 18 --size 64 --batch 1 --iterations 1".split()
RETINANET = "configs/COCO-Detection/alrp_retinanet_R_50_FPN_ATSS_100e.yaml"


@pytest.mark.slow
def test_the_report_compares_three_detectors(tmp_path):
    path = tmp_path / "training.json"
    command = [sys.executable, "benchmarks/benchmark_training.py", *TINY, "--json", str(path)]
    result = subprocess.run(
        [*command, "--opts", "MODEL.FPN.OUT_CHANNELS", "32"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert (report["config_file"], report["size"], report["threads"]) == (RETINANET, 64, 1)
    detectors = report["detectors"]
    assert list(detectors) == ["alrp", "detectron2", "detectron2_same_anchors"]
    for figures in detectors.values():
        assert figures["peak_bytes"] > 1e7
        assert 0 < figures["matcher_seconds"] < figures["seconds"]
        assert figures["losses_share"] == figures["losses_seconds"] / figures["seconds"]
    stock = detectors["detectron2"]
    assert stock["time_ratio"] == stock["memory_ratio"] == 1
    assert detectors["alrp"]["time_ratio"] == detectors["alrp"]["seconds"] / stock["seconds"]
    assert len([row for row in result.stdout.splitlines() if row.startswith("|")]) == 5


def test_micro_batches_are_compared_with_the_whole_batch(load_script):
    benchmark = load_script("benchmarks/benchmark_training.py")
    args = benchmark.parse_args([*TINY, "--micro-batch", "3"])
    sizes = {key: c.SOLVER.MICRO_BATCH_SIZE for key, c in benchmark.make_configs(args).items()}
    assert sizes == {"whole_batch": 0, "micro_batches": 3}


def test_a_config_of_another_detector_is_refused(load_script, tmp_path, capsys):
    config = tmp_path / "other.yaml"
    config.write_text(f'_BASE_: "{ROOT / RETINANET}"\nMODEL: {{META_ARCHITECTURE: "RetinaNet"}}\n')
    main = load_script("benchmarks/benchmark_training.py").main
    assert main(["--config-file", str(config), *TINY]) == 1
    message = "expected MODEL.META_ARCHITECTURE ALRPRetinaNet, but it is RetinaNet"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        "--iterations 0",
        "--batch 0",
        "--micro-batch 0",
        "--size 31",
        "--depth 17",
        "--threads 0",
        "--device x",
        "--json absent/a.json",
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(
    load_script, capsys, options
):
    with pytest.raises(SystemExit) as stopped:
        load_script("benchmarks/benchmark_training.py").main(options.split())
    assert stopped.value.code == 2
    assert f"error: argument {options.split()[0]}: " in capsys.readouterr().err
