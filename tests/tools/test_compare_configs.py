"""tools/compare_configs.py: one real comparison on a tiny dataset, and its parts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
import pytest

from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "retinanet_R_18_FPN.yaml")


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "compare_configs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    output = tmp_path / "runs"
    assert tool.main(arguments(tmp_path / "data", output)) == 0
    first = capsys.readouterr().out
    folder = output / "retinanet_R_18_FPN" / "seed_1"
    console = folder / "console.txt"
    assert (folder / "model_final.pth").exists() and f"{folder}: AP " in first
    console.write_text("not run again")
    assert tool.main(arguments(tmp_path / "data", output)) == 0
    assert capsys.readouterr().out == first
    assert console.read_text() == "not run again"

    assert tool.main(arguments(tmp_path / "data", output, "SOLVER.BASE_LR", "0.1")) == 1
    assert "holds a run with other options" in capsys.readouterr().err


def test_a_failed_run_ends_with_its_last_lines(tool, tmp_path, capsys):
    assert tool.main(arguments(tmp_path / "absent", tmp_path / "runs")) == 1
    message = capsys.readouterr().err
    assert "seed_1 failed" in message and "absent/annotations/train.json" in message
    assert not (tmp_path / "runs" / "retinanet_R_18_FPN" / "seed_1" / "finished").exists()


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


def test_the_table_has_the_mean_and_the_sample_deviation(tool):
    runs = [[10.0] * 7, [12.0] * 7, [14.0] * 7]
    row = tool.table({"a": runs, "b": runs[:1]}).splitlines()
    assert row[2] == "| `a` | 3 | " + " | ".join(["12.0 ± 2.0"] * 7) + " |"
    assert row[3] == "| `b` | 1 | " + " | ".join(["10.0"] * 7) + " |"
