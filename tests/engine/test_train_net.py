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


def start(arguments, script="train_net.py"):
    """A process of a script on the CPU with one thread, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments, script="train_net.py"):
    """Return code and output of a finished script."""
    process = start(arguments, script)
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
def test_both_ranks_hold_the_same_weights_and_self_balance_state(command_line, tmp_path):
    arguments = command_line("--num-gpus", "2", SOLVER__MAX_ITER=5)
    code, output = run([str(tmp_path), *arguments], script="tests/engine/rank_state.py")
    assert code == 0, output
    first, second = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))
    assert first == second
    assert first["weight"] != 50.0  # 12 images in batches of 4: a period is 3 steps
    assert first["count"] == 2 and first["sum_cls"] > 0 and first["sum_loc"] > 0


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
    assert not (tmp_path / "machine1" / "model_final.pth").exists()  # the second is no main process
    log = (tmp_path / "machine0" / "log.txt").read_text()
    assert "Rank of current process: 0. World size: 2" in log


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
