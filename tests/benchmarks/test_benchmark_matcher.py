"""benchmark_matcher.py and what it measures with, on small inputs; no figure is a limit."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
import pytest
import torch
from helpers.emulated_gpu import EmulatedGPU
from torch.profiler import ProfilerActivity

CPU = torch.device("cpu")


@pytest.fixture
def measuring(load_script):
    return load_script("benchmarks/measuring.py")


def test_the_report_has_every_matcher_at_every_number_of_boxes(load_script, tmp_path, capsys):
    path = tmp_path / "matcher.json"
    arguments = ["--num-boxes", "2", "30", "--image-size", "128", "--repeats", "1"]
    assert (
        load_script("benchmarks/benchmark_matcher.py").main([*arguments, "--json", str(path)]) == 0
    )
    report = json.loads(path.read_text())
    assert report["num_anchors"] == 9 * (16**2 + 8**2 + 4**2 + 2**2 + 1)
    assert [result["num_boxes"] for result in report["results"]] == [2, 30]
    for result in report["results"]:
        for name in ("atss", "max_iou", "detectron2"):
            assert result[name]["seconds"] > 0 and result[name]["peak_bytes"] > 0
    # Detectron2 holds the matrix, and the widths and heights of the overlaps.
    assert report["results"][1]["detectron2"]["peak_bytes"] >= 3 * 30 * report["num_anchors"] * 4
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the emulation")
def test_on_a_gpu_launches_have_a_column(load_script, monkeypatch, capsys):
    """An emulated one, of which the profiler sees no kernel."""
    benchmark = load_script("benchmarks/benchmark_matcher.py")
    # Asked for events of a GPU without its driver, the profiler would print a message with a stack
    # for every operator, which takes seconds.
    activities = SimpleNamespace(CPU=ProfilerActivity.CPU, CUDA=ProfilerActivity.CPU)
    monkeypatch.setitem(benchmark.gpu_work.__globals__, "ProfilerActivity", activities)
    with EmulatedGPU():
        arguments = ["--num-boxes", "2", "--image-size", "64", "--repeats", "1"]
        assert benchmark.main([*arguments, "--device", "cuda"]) == 0
    header = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][0]
    assert "ATSS launches | max-IoU launches | Detectron2 launches |" in header


def test_the_anchors_are_those_of_detectron2s_retinanet(load_script):
    anchors = load_script("benchmarks/benchmark_matcher.py").make_anchors(1024, CPU)
    assert sum(map(len, anchors)) == 196416
    sides = (anchors[0][:9, 2:] - anchors[0][:9, :2]).prod(1).sqrt()
    expected = torch.tensor([32 * 2 ** (i / 3) for i in range(3)]).repeat_interleave(3)
    torch.testing.assert_close(sides, expected)


def test_peak_memory_is_what_is_held_at_a_time(measuring):
    def call():
        first = torch.zeros(1000, 1000)
        second = first + 1  # 8 MB are held
        del first
        return second.sum()

    assert 8e6 <= measuring.peak_bytes(call, CPU) < 8.1e6
    held = torch.zeros(1000, 1000)
    assert measuring.peak_bytes(lambda: held.add_(1), CPU) < 1e5


def test_functions_take_turns(measuring):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measuring.medians_in_turns(functions, 20, CPU)
    rounds = ["".join(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert len(rounds) == 1 + 20  # one is not timed
    assert set(rounds) == {"ab", "ba"}
    assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0


def test_numbers_in_a_table_have_three_digits(measuring):
    text = measuring.markdown(["name", "figure"], [["x", 12345.6], ["y", 0.012345], ["z", 0.0]])
    assert [row.split("|")[2].strip() for row in text.splitlines()[2:]] == ["12346", "0.0123", "0"]


def test_random_boxes_lie_in_the_image(measuring, generator):
    boxes = measuring.random_boxes(500, 100, generator)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= 100
    assert sides.min() > 100 / 33 and sides.max() < 51


@pytest.mark.parametrize(
    "options",
    [
        "--repeats 0",
        "--num-boxes -1",
        "--image-size 0",
        "--threads x",
        "--device x",
        "--json absent/a.json",
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(
    load_script, capsys, options
):
    with pytest.raises(SystemExit) as stopped:
        load_script("benchmarks/benchmark_matcher.py").main(options.split())
    assert stopped.value.code == 2
    assert f"error: argument {options.split()[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("text, value", [("20", 20), ("2e1", 20), ("2", 2)])
def test_whole_numbers_are_read_with_an_exponent_too(measuring, text, value):
    assert measuring.whole_number(2)(text) == value


@pytest.mark.parametrize("text", ["1", "2.5", "inf", "nan", "many", ""])
def test_other_numbers_are_refused(measuring, text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number of at least 2"):
        measuring.whole_number(2)(text)


def test_a_gpu_that_this_machine_has_not_is_refused(measuring):
    assert measuring.device_name("cpu") == "cpu"
    with pytest.raises(argparse.ArgumentTypeError, match="cuda:99 is not on this machine"):
        measuring.device_name("cuda:99")


def test_figures_are_written_to_a_file_in_a_folder_that_exists(measuring, tmp_path):
    path = str(tmp_path / "figures.json")
    assert measuring.output_file(path) == path
    for wrong in (tmp_path, tmp_path / "absent" / "figures.json"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a file in a folder"):
            measuring.output_file(str(wrong))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the emulation")
def test_bytes_moved_are_those_of_all_tensors_but_views(measuring):
    values = torch.zeros(1000)

    def call():
        leaf = values.to("cuda").view(10, 100).requires_grad_()
        (2 * leaf).sum().backward()
        leaf.detach().add_(torch.empty(100, device="cuda"))

    assert measuring.bytes_moved(call, CPU) is None
    with EmulatedGPU():
        moved = measuring.bytes_moved(call, torch.device("cuda"))
    # Moving, product and its derivative, addition in place (it takes and gives the leaf); sum; what
    # is left are 100 numbers and single ones.
    whole = 2 + 2 + 2 + 2 + 1
    assert 4000 * whole + 400 <= moved < 4000 * whole + 500


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_bytes_moved_by_kernels_of_triton_are_counted(measuring, monkeypatch):
    fused = pytest.importorskip("alrp.losses.backends.fused")
    monkeypatch.setattr(measuring, "_only_makes_room", lambda func: True)  # no operators
    monkeypatch.setattr(fused, "_BLOCK", 512)
    logits, targets = torch.zeros(1000), torch.zeros(1000, dtype=torch.int8)
    targets[3] = 1
    moved = measuring.bytes_moved(
        lambda: fused.survey(logits, targets, logits[:1]), torch.device("cuda")
    )
    facts, positives, pos_logits = 5 * 8, 8, 4
    assert moved == 4 * 1000 + 1000 + 4 + facts + positives + pos_logits
