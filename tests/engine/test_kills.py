"""kill -9 again and again, each followed by --resume, changes nothing of the result."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# 30 takes a minute or two.
NUM_KILLS = int(os.environ.get("ALRP_KILLS", "8"))

TINY = {
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
    "MODEL__WEIGHTS": "",
    "DATASETS__TEST": (),
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "SOLVER__MAX_ITER": 12 * NUM_KILLS,
}


def run(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(command_line, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run("train_net.py", *command_line(OUTPUT_DIR=whole, **TINY))
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = command_line("--resume", OUTPUT_DIR=killed, **TINY)
    done = run("tests/helpers/killed_runs.py", str(NUM_KILLS), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    hits = int(re.search(r"(\d+) of them while a checkpoint was written", done.stdout)[1])
    assert hits >= (NUM_KILLS + 2) // 3  # every third is placed there

    expected, found = (torch.load(folder / "model_final.pth") for folder in (whole, killed))
    assert found["iteration"] == TINY["SOLVER__MAX_ITER"] - 1
    assert found.pop("class_names") == expected.pop("class_names")  # no text in assert_close
    sets = [s["trainer"]["hooks"]["SeededIterations"].pop("datasets") for s in (found, expected)]
    assert sets[0] == sets[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    rows = [json.loads(line) for line in (killed / "metrics.json").read_text().splitlines()]
    losses = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in losses]
    assert not list(killed.glob(".alrp-*"))
