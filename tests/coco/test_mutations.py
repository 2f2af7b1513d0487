"""Hundreds of spoiled files: each gives the numbers of the sound one, or says what is wrong.

An annotation file goes through the check before the start, the loader, and both evaluators; a
result file through ``tools/evaluate_lrp.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple
import pytest
import torch
from helpers.mutations import mutations
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from alrp.coco import Purpose
from alrp.data.datasets.coco_check import check_coco_dataset
from alrp.data.datasets.coco_loader import CocoFiles, load_coco_format
from alrp.evaluation import APEvaluator, LRPEvaluator

NAME = "mutations_test"
NUM_MUTATIONS = 320


def ground_truth() -> dict:
    """Three images of two classes, every field of COCO in use."""
    boxes = [[2.0, 3.0, 12.0, 9.0], [20.0, 4.0, 10.5, 20.0], [5.0, 14.0, 30.0, 11.0]]
    return {
        "info": {"description": "made for a test"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32, "license": 1}
            for i in (1, 2, 3)
        ],
        "categories": [
            {"id": 1, "name": "disc", "supercategory": "shape"},
            {"id": 3, "name": "square", "supercategory": "shape"},
        ],
        "annotations": [
            {
                "id": 10 * i + k,
                "image_id": i,
                "category_id": (1, 3)[(i + k) % 2],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(i == 3 and k == 2),
                "segmentation": [[2, 3, 14, 3, 14, 12]],
            }
            for i in (1, 2, 3)
            for k, box in enumerate(boxes)
        ],
    }


def detections(dataset: dict) -> list[dict]:
    """Some right, some shifted, some of the wrong class; no two scores are equal."""
    shifts = [0.0, 1.0, 2.0, 6.0]
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"] if i % 4 else 4 - a["category_id"],
            "bbox": [a["bbox"][0] + shifts[i % 4], *a["bbox"][1:]],
            "score": round(0.95 - 0.07 * i, 2),
        }
        for i, a in enumerate(dataset["annotations"])
    ]


class Outcome(NamedTuple):
    """What became of a file: an error, or numbers and perhaps warnings."""

    error: str
    warnings: list[str]
    numbers: list[float]


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in (1, 2, 3):
        Image.new("RGB", (40, 32), (i, i, i)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def evaluate(folder):
    """``evaluate(data, for_training)``: outcome of an annotation file with these bytes."""
    found = detections(ground_truth())

    def run(data: bytes, for_training: bool) -> Outcome:
        path = folder / "annotations.json"
        path.write_bytes(data)
        summary = check_coco_dataset(
            NAME, str(path), str(folder), Purpose(training=for_training, images=True)
        )
        errors = [f for f in summary.findings if f.severity == "error"]
        if errors:
            assert all(str(path) in f.where or str(folder) in f.where for f in errors)
            return Outcome("\n".join(f"{f.what} {f.fix}" for f in errors), [], [])
        warnings = [f.what for f in summary.findings]
        return Outcome("", warnings, _numbers(path, folder, found))

    yield run
    MetadataCatalog.pop(NAME, None)


def _numbers(path: Path, folder: Path, found: list[dict]) -> list[float]:
    """AP and oLRP of the detections, through the loader and the evaluators."""
    if NAME in MetadataCatalog:
        MetadataCatalog.pop(NAME)
    metadata = MetadataCatalog.get(NAME).set(json_file=str(path), evaluator_type="coco")
    records = load_coco_format(NAME, CocoFiles(str(path), str(folder)))
    class_of = metadata.thing_dataset_id_to_contiguous_id
    results = {}
    for evaluator in (
        APEvaluator(NAME, ("bbox",), distributed=False),
        LRPEvaluator(NAME, distributed=False),
    ):
        evaluator.reset()
        for record in records:
            here = [d for d in found if d["image_id"] == record["image_id"]]
            here = [d for d in here if d["category_id"] in class_of]
            boxes = torch.tensor([d["bbox"] for d in here]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances(
                (record["height"], record["width"]),
                pred_boxes=Boxes(boxes),
                scores=torch.tensor([d["score"] for d in here]),
                pred_classes=torch.tensor([class_of[d["category_id"]] for d in here]).long(),
            )
            evaluator.process([record], [{"instances": instances}])
        results |= evaluator.evaluate()
    if not results:  # a test set whose annotations are secret; the evaluators say so
        assert "annotations" not in json.loads(path.read_text())
        return []
    objects = sum(len(record["annotations"]) for record in records)
    return [objects, *(results["bbox"][k] for k in ("AP", "AP50", "APs")), results["lrp"]["oLRP"]]


def _table(text: str) -> list[list[str]]:
    """Numbers of a printed table; a class without a name is called by its id."""
    return [line.split()[1:] for line in text.splitlines()]


def _same(first: list[float], second: list[float]) -> bool:
    return len(first) == len(second) and all(
        a == b or math.isnan(a) and math.isnan(b) for a, b in zip(first, second)
    )


@pytest.mark.parametrize("for_training", [True, False], ids=["training", "evaluation"])
def test_no_mutation_of_an_annotation_file_changes_a_number_in_silence(
    evaluate, for_training, capsys
):
    sound = evaluate(json.dumps(ground_truth()).encode(), for_training)
    assert (sound.error, sound.warnings) == ("", [])
    assert 20 < sound.numbers[1] < 80 and 20 < sound.numbers[-1] < 90
    counts = {"error": 0, "warning": 0, "same": 0}
    kept = frozenset({"license", "segmentation"})  # not read by a detector of boxes
    for mutation in mutations(ground_truth(), kept, NUM_MUTATIONS, seed=12):
        outcome = evaluate(mutation.data, for_training)
        if outcome.error:
            counts["error"] += 1
        elif _same(outcome.numbers, sound.numbers):
            counts["same"] += 1
        elif outcome.numbers:
            assert outcome.warnings, f"{mutation.label}: {outcome.numbers}, not {sound.numbers}"
            counts["warning"] += 1
    assert counts["error"] > 100 and counts["same"] > 50, counts


@pytest.mark.parametrize("spoiled", ["results", "ground truth"])
def test_no_mutation_changes_an_lrp_error_of_the_command_in_silence(
    load_script, tmp_path, capsys, caplog, spoiled
):
    main = load_script("tools/evaluate_lrp.py").main
    paths = {name: tmp_path / f"{name}.json" for name in ("ground truth", "results")}
    contents = {"ground truth": ground_truth(), "results": detections(ground_truth())}
    for name, path in paths.items():
        path.write_text(json.dumps(contents[name]))
    arguments = [str(path) for path in paths.values()]
    assert main(arguments) == 0
    sound = _table(capsys.readouterr().out)
    counts = {"error": 0, "warning": 0, "same": 0}
    kept = frozenset({"license", "segmentation", "score", "id", "width", "height"})
    for mutation in mutations(contents[spoiled], kept, NUM_MUTATIONS, seed=34):
        paths[spoiled].write_bytes(mutation.data)
        caplog.clear()
        status = main(arguments)
        printed = capsys.readouterr()
        if status:
            lines = printed.err.splitlines()
            assert status == 2 and printed.out == "", mutation.label
            assert lines[0].startswith("error: ") and "Traceback" not in printed.err
            assert all(str(paths[spoiled]) in line or "results" in line for line in lines), lines
            counts["error"] += 1
        elif _table(printed.out) == sound:
            counts["same"] += 1
        else:
            assert caplog.messages, f"{mutation.label}: {printed.out}"
            counts["warning"] += 1
    assert counts["error"] > 100 and counts["same"] > 30, counts
