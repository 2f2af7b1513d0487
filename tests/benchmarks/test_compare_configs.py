"""benchmarks/compare_configs.py: one real comparison on a tiny dataset, and its parts."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
import pytest

from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "retinanet_R_18_FPN.yaml")


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("benchmarks/compare_configs.py")


def arguments(data, output, *more):
    splits = [[f"cmp_{s}", f"{data}/annotations/{s}.json", f"{data}/{s}"] for s in ("train", "val")]
    options = {
        "DATASETS.COCO_FORMAT": splits,
        "DATASETS.TRAIN": ("cmp_train",),
        "DATASETS.TEST": ("cmp_val",),
        "MODEL.FPN.OUT_CHANNELS": 32,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
    }
    pairs = [str(x) for pair in options.items() for x in pair]
    return [CONFIG, "--output", str(output), "--num-seeds", "1", "--opts", *pairs, *more]


def test_a_comparison_runs_once_and_is_read_again(tool, tmp_path, capsys):
    make_shapes_dataset(tmp_path / "data", 4, 2, 64)
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("MODEL: {RETINANET: {NUM_CONVS: 1}}\nTEST: {EVAL_PERIOD: 1}\n")
    output = tmp_path / "runs"
    figure = output / "figure.png"  # in a folder that is made

    def run(*more):
        command = arguments(tmp_path / "data", output, "SOLVER.MAX_ITER", "2", *more)
        return tool.main(["--overlay", str(overlay), "--figure", str(figure), *command])

    capsys.readouterr()
    assert run() == 0
    first = capsys.readouterr().out
    folder = output / "retinanet_R_18_FPN" / "seed_1"
    console = folder / "console.txt"
    assert (folder / "model_final.pth").exists() and f"{folder}: AP " in first
    content = (folder / "config_content.json").read_text()
    assert '"NUM_CONVS": 1' in content and '"META_ARCHITECTURE": "RetinaNet"' in content
    assert [row["iteration"] for row in tool.read_evaluations(folder)] == [0, 2]
    assert figure.read_bytes().startswith(b"\x89PNG")

    console.write_text("not run again")
    assert run() == 0
    assert capsys.readouterr().out == first
    assert console.read_text() == "not run again"

    assert run("SOLVER.BASE_LR", "0.1") == 1
    assert "holds a run with other options" in capsys.readouterr().err
    overlay.write_text("MODEL: {RETINANET: {NUM_CONVS: 2}}\n")
    assert run() == 1
    assert "another content of its config" in capsys.readouterr().err


def test_a_failed_run_ends_with_its_last_lines(tool, tmp_path, monkeypatch, capsys):
    assert tool.main(arguments(tmp_path / "absent", tmp_path / "runs")) == 1
    message = capsys.readouterr().err
    assert "seed_1 failed" in message and "absent/annotations/train.json" in message
    folder = tmp_path / "runs" / "retinanet_R_18_FPN" / "seed_1"
    assert not (folder / "finished").exists()
    # Nothing was trained, so the corrected command, and another failure, are let in. A script that
    # only says what it was asked for fails in place of the training from here on.
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text("import sys\nsys.exit(' '.join(sys.argv))\n")
    monkeypatch.setattr(tool, "TRAIN_NET", stand_in)
    assert tool.main(arguments(tmp_path / "nowhere", tmp_path / "runs")) == 1
    assert "nowhere/annotations/train.json" in capsys.readouterr().err
    # But what there is a checkpoint of stays recorded.
    (folder / "last_checkpoint").touch()
    assert tool.main(arguments(tmp_path / "nowhere", tmp_path / "runs")) == 1
    assert (folder / "command.json").exists()


def test_a_run_of_another_content_of_its_config_is_refused(tool, tmp_path):
    base, config, folder = tmp_path / "base.yaml", tmp_path / "config.yaml", tmp_path / "run"
    base.write_text("SOLVER: {BASE_LR: 0.1}")
    config.write_text('_BASE_: "base.yaml"\nSEED: 1')
    folder.mkdir()
    command = ["--resume", "--config-file", str(config), "SEED", "1"]
    (folder / "command.json").write_text(json.dumps(command))  # as before contents were recorded
    (folder / "finished").touch()
    tool.train(str(config), 1, folder, [])
    tool.train(str(config), 1, folder, [])
    base.write_text("SOLVER: {BASE_LR: 0.2}")
    with pytest.raises(UserError, match="another content of its config .*config_content.json"):
        tool.train(str(config), 1, folder, [])


def test_a_config_that_was_moved_is_the_same_one(tool, tmp_path):
    config, folder = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text("SOLVER: {BASE_LR: 0.1}")
    folder.mkdir()
    (folder / "finished").touch()
    tool.train(str(config), 1, folder, [])
    moved, elsewhere = tmp_path / "moved.yaml", tmp_path / "elsewhere"
    config.rename(moved)
    folder.rename(elsewhere)
    tool.train(str(moved), 1, elsewhere, [])
    with pytest.raises(UserError, match="other options.*command.json"):
        tool.train(str(moved), 2, elsewhere, [])


# A training that a killed command leaves behind.
LEAVES_A_PROCESS = """
import subprocess, sys
process = subprocess.Popen(["sleep", "600"], close_fds=False)
open(sys.argv[-1] + "/pid", "w").write(str(process.pid))
sys.exit("failed")
"""


def test_a_folder_that_is_trained_in_is_refused(tool, tmp_path, monkeypatch):
    stand_in, folder = tmp_path / "stand_in.py", tmp_path / "run"
    stand_in.write_text(LEAVES_A_PROCESS)
    monkeypatch.setattr(tool, "TRAIN_NET", stand_in)
    with pytest.raises(UserError, match="failed"):
        tool.train(CONFIG, 1, folder, [])
    pid = int((folder / "pid").read_text())
    try:
        with pytest.raises(UserError, match=f"another process trains in {folder}"):
            tool.train(CONFIG, 1, folder, [])
    finally:
        os.kill(pid, signal.SIGKILL)
    (folder / "finished").touch()
    for _ in range(6000):  # until it has ended
        with suppress(UserError):
            return tool.train(CONFIG, 1, folder, [])
        time.sleep(0.01)
    pytest.fail("the lock outlives its process")


@pytest.mark.parametrize("name", ["figure.text", "figure"])
def test_a_figure_of_an_unknown_kind_is_refused(tool, tmp_path, capsys, name):
    with pytest.raises(SystemExit):
        tool.main([CONFIG, "--output", str(tmp_path), "--figure", str(tmp_path / name)])
    assert "--figure: expected a" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file/figure.png", "folder.png"])
def test_a_figure_that_cannot_be_written_is_refused_at_once(tool, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    command = [CONFIG, "--output", str(tmp_path / "runs"), "--figure", str(tmp_path / name)]
    assert tool.main(command) == 1
    assert capsys.readouterr().err.startswith("error: --figure: ")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_held_is_refused(tool, tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to"):
        tool.train(CONFIG, 1, tmp_path, [])


def test_a_record_that_is_cut_off_is_refused(tool, tmp_path):
    (tmp_path / "command.json").write_text('["--resume", "--conf')
    with pytest.raises(UserError, match="other options.*command.json"):
        tool.train(CONFIG, 1, tmp_path, [])


@pytest.mark.parametrize("content", [None, "", "a: [", "a: *b"])
def test_a_config_that_cannot_be_read_is_named(tool, tmp_path, capsys, content):
    config = tmp_path / "config.yaml"
    if content is not None:
        config.write_text(content)
    assert tool.main([str(config), "--output", str(tmp_path / "runs")]) == 1
    assert f"cannot read {config}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_output_that_is_a_file_is_refused(tool, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert tool.main([CONFIG, "--output", str(tmp_path / "file")]) == 1
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err


def test_at_least_one_seed_is_asked_for(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([CONFIG, "--output", str(tmp_path), "--num-seeds", "0"])
    assert "--num-seeds: expected a whole number of at least 1" in capsys.readouterr().err


def test_two_configs_of_one_name_are_refused(tool, tmp_path, capsys):
    assert tool.main([CONFIG, CONFIG, "--output", str(tmp_path)]) == 1
    assert "same file name" in capsys.readouterr().err


def test_the_last_evaluation_counts(tool, tmp_path):
    rows = [dict.fromkeys(tool.METRICS, value) for value in (1.0, 2.0)]
    lines = [json.dumps(row) for row in [rows[0], {"iteration": 3}, rows[1], {"iteration": 4}]]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert tool.read_result(tmp_path) == [2.0] * len(tool.METRICS)
    (tmp_path / "metrics.json").write_text(json.dumps({"bbox/AP": 1.0}))
    with pytest.raises(UserError, match="has no bbox/AP50.*lrp/oLRP"):
        tool.read_result(tmp_path)


def test_a_line_that_is_cut_off_is_passed_over(tool, tmp_path):
    row = json.dumps(dict.fromkeys(tool.METRICS, 1.0))
    (tmp_path / "metrics.json").write_text(f"{row}\n{row[:30]}\n\n")
    assert tool.read_result(tmp_path) == [1.0] * len(tool.METRICS)


def test_a_finished_run_without_figures_is_named(tool, tmp_path):
    with pytest.raises(UserError, match="finished but has no metrics.json; remove the folder"):
        tool.read_result(tmp_path)


def test_the_table_has_the_mean_and_the_sample_deviation(tool):
    runs = [[10.0] * 7, [12.0] * 7, [14.0] * 7]
    row = tool.table({"a": runs, "b": runs[:1]}).splitlines()
    assert row[2] == "| `a` | 3 | " + " | ".join(["12.0 ± 2.0"] * 7) + " |"
    assert row[3] == "| `b` | 1 | " + " | ".join(["10.0"] * 7) + " |"
