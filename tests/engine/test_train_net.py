"""The training command as people use it: processes, resuming, evaluation, mistakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def start(arguments, **environment):
    """A process of ``train_net.py`` with one thread, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, "train_net.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments, **environment):
    """Return code and output of a finished ``train_net.py``."""
    process = start(arguments, **environment)
    output, _ = process.communicate(timeout=280)
    return process.returncode, output


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_on_the_cpu(command_line, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    code, output = run(command_line("--num-gpus", "2", "--dist-url", url))
    assert code == 0, output
    checkpoint = torch.load(tmp_path / "output" / "model_final.pth")
    assert checkpoint["iteration"] == 3
    results = json.loads((tmp_path / "output" / "inference" / "lrp_results.json").read_text())
    assert set(results["per_class"]) == {"disc", "rectangle", "triangle"}


@pytest.mark.slow
def test_two_launches_act_as_two_machines(command_line, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        start(
            command_line(
                *("--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url),
                OUTPUT_DIR=tmp_path / f"machine{rank}",
            )
        )
        for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=280)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert (tmp_path / "machine0" / "model_final.pth").exists()
    assert not (tmp_path / "machine1" / "model_final.pth").exists()
    assert "World size: 2" in outputs[1]


@pytest.mark.slow
def test_a_killed_run_resumes_with_all_its_state(command_line, tmp_path):
    folder = tmp_path / "output"
    arguments = command_line(SOLVER__MAX_ITER=400, SOLVER__CHECKPOINT_PERIOD=3)
    process = start(arguments)
    deadline = time.monotonic() + 200
    while not (folder / "last_checkpoint").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    saved = torch.load(folder / (folder / "last_checkpoint").read_text())
    weight = saved["model"]["ranking_losses.self_balance.weight"]
    done = saved["iteration"] + 1
    assert done % 3 == 0 and weight != 50.0  # 12 images in batches of 4: a period is 3 steps

    end = done + 2
    code, output = run(command_line("--resume", SOLVER__MAX_ITER=end, SOLVER__CHECKPOINT_PERIOD=1))
    assert code == 0, output
    assert f"Starting training from iteration {done}" in output
    first = torch.load(folder / f"model_{done:07d}.pth")
    balance = {k.split(".")[-1]: v for k, v in first["model"].items() if "self_balance" in k}
    assert balance["count"] == 1 and balance["weight"] == weight
    optimizer = first["trainer"]["_trainer"]["optimizer"]
    momenta = [state["momentum_buffer"] for state in optimizer["state"].values()]
    assert momenta and all(momentum.any() for momentum in momenta)


@pytest.mark.slow
def test_evaluation_repeats_the_figures_of_the_training_run(command_line, tmp_path):
    code, output = run(command_line(SOLVER__MAX_ITER=6))
    assert code == 0, output
    trained = json.loads((tmp_path / "output" / "inference" / "lrp_results.json").read_text())
    last = metrics(tmp_path / "output")[-1]
    weights = tmp_path / "output" / "model_final.pth"
    code, output = run(
        command_line("--eval-only", MODEL__WEIGHTS=weights, OUTPUT_DIR=tmp_path / "evaluated")
    )
    assert code == 0, output
    evaluated = json.loads((tmp_path / "evaluated" / "inference" / "lrp_results.json").read_text())
    assert evaluated == trained
    assert f"{last['bbox/AP']:.4f}" in output
