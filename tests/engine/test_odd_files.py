"""Real trainings on files as people export them: the oddities cost no object and no number."""

from __future__ import annotations

import json
from pathlib import Path
import pytest

from alrp.engine import argument_parser, run_command


@pytest.fixture
def train(shapes, tmp_path, command_line, train_net):
    """``train(name, change)``: last metrics of a training on changed annotation files."""

    def run(name: str, change) -> dict:
        entries = []
        for split in ("train", "val"):
            content = json.loads((shapes / "annotations" / f"{split}.json").read_text())
            for annotation in content["annotations"]:
                change(annotation)
            path = tmp_path / f"{name}_{split}.json"
            path.write_text(json.dumps(content))
            entries.append([f"odd_{name}_{split}", str(path), str(shapes / split)])
        overrides = {
            "DATASETS.COCO_FORMAT": entries,
            "DATASETS.TRAIN": (entries[0][0],),
            "DATASETS.TEST": (entries[1][0],),
            "OUTPUT_DIR": tmp_path / name,
        }
        arguments = command_line(**{k.replace(".", "__"): v for k, v in overrides.items()})
        assert run_command(train_net.main, argument_parser().parse_args(arguments)) == 0
        lines = Path(tmp_path / name / "metrics.json").read_text().splitlines()
        timing = ("time", "eta_seconds")
        return {k: v for k, v in json.loads(lines[-1]).items() if not k.endswith(timing)}

    return run


def _as_exported(annotation: dict) -> None:
    """Ids from 0, nothing that has a default, and polygons that are none."""
    width, height = annotation["bbox"][2:]
    del annotation["iscrowd"]
    if annotation["area"] == width * height:
        del annotation["area"]
    kinds = ([[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], [[]], "text", 5, None)
    annotation["segmentation"] = kinds[annotation["id"] % len(kinds)]
    annotation["keypoints"] = "text"
    annotation["id"] -= 1


def test_oddities_that_mean_nothing_change_nothing(train):
    expected = train("sound", lambda annotation: None)
    assert "bbox/AP" in expected and "lrp/oLRP" in expected
    assert str(train("odd", _as_exported)) == str(expected)  # text, as NaN is not NaN
