"""benchmarks/benchmark_losses.py: the forms of each loss agree, and what it writes."""

from __future__ import annotations

import json
import pytest
import torch
from torch.testing import assert_close

FORMS = [
    "alrp, deterministic",
    "alrp as a matrix",
    "alrp as a loop",
    "rs as a matrix",
    "rs as a loop",
]


@pytest.fixture(scope="module")
def tool(load_script):
    pytest.importorskip("fvcore")
    return load_script("benchmarks/benchmark_losses.py")


@pytest.mark.parametrize("stage", ["start", "middle", "end"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_loss_gives_the_same_value_and_gradient(tool, form, stage):
    case = tool.make_case(3000, 20, stage, dtype=torch.float64)
    losses = tool.make_losses()
    value, gradient = losses[form.replace(",", "").split()[0]](case)
    assert value > 0
    assert_close(losses[form](case), (value, gradient), rtol=1e-9, atol=1e-12)


def test_the_focal_losses_agree_so_that_any_of_them_may_be_the_measure(tool):
    case = tool.make_case(3000, 20, "middle")
    losses = tool.make_losses()
    plain = losses["focal (fvcore)"](case)
    assert plain[1].any()
    for name in (tool.BASELINE, "focal (torchvision)"):
        assert_close(losses[name](case), plain, rtol=1e-4, atol=1e-6)


def test_the_stages_differ_in_how_many_negatives_are_within_reach(tool):
    shares = []
    for stage in tool.STAGES:
        case = tool.make_case(20_000, 50, stage)
        _, near, _ = tool.alrp_parts(case)
        shares.append(len(near) / 20_000)
    assert shares[0] > 0.95 and 0.3 < shares[1] and shares[2] < 0.05


def test_peak_memory_of_the_gradient_is_counted(tool):
    case = tool.make_case(100_000, 50, "start")
    cpu = torch.device("cpu")
    matrix = tool.peak_bytes(lambda: tool.alrp_matrix(case), cpu)
    assert 4 * 50 * 100_000 <= matrix  # one float32 matrix at the least
    alrp = tool.peak_bytes(lambda: tool.make_losses()["alrp"](case), cpu)
    # The gradient, and the cell of each logit.
    assert (4 + 2) * 100_000 <= alrp < matrix


def test_rows_have_ratios_to_the_baseline_or_say_why_not(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(tool.MAX_PAIRS, "alrp as a loop", 10_000)
    out = tmp_path / "results.json"
    arguments = ["--sizes", "2e3", "--positives", "3", "9", "--repeats", "2", "--json", str(out)]
    assert tool.main(arguments) == 0
    written = json.loads(out.read_text())
    rows = written["results"]
    assert written["baseline"] == tool.BASELINE and written["device"] == "CPU"
    assert len(rows) == 2 * 3 * len(tool.make_losses())
    for row in rows:
        if (row["loss"], row["positives"]) == ("alrp as a loop", 9):
            assert "pairs" in row["skipped"] and "ratio" not in row
            continue
        assert row["milliseconds"] > 0 and row["peak_bytes"] > 0
        assert row["synchronisations"] is None
        assert (row["ratio"] == 1.0) == (row["loss"] == tool.BASELINE)
    growth = written["growth"]
    assert len(growth) == 2 * 3 * 2
    for row in growth:
        assert row["twice_positives"] > 0 and row["twice_logits"] > 0
    table = capsys.readouterr().out
    assert table.count("skipped") == 3
    assert table.count("middle") == (len(rows) + len(growth)) // 3


def test_more_positives_than_logits_are_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--sizes", "10", "--positives", "6"])
    assert "twice --positives 6 do not fit into --sizes 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        "--repeats 0",
        "--sizes 0",
        "--positives -1",
        "--threads 0",
        "--device tpu",
        "--json absent/a.json",
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_measured(tool, capsys, options):
    with pytest.raises(SystemExit) as stopped:
        tool.main(options.split())
    assert stopped.value.code == 2
    assert f"error: argument {options.split()[0]}: " in capsys.readouterr().err
