"""Test sets without annotations: detections are written for a server, and nothing is evaluated."""

from __future__ import annotations

import json
import pytest
import torch

from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

from alrp.engine import run_command, setup_config


@pytest.fixture
def unlabelled(shapes, tmp_path):
    """Entry of DATASETS.COCO_FORMAT: the validation images without annotations, other ids."""
    info = json.loads((shapes / "annotations" / "val.json").read_text())
    del info["annotations"]
    for category in info["categories"]:
        category["id"] += 40
    (tmp_path / "image_info.json").write_text(json.dumps(info))
    return ["unlabelled", str(tmp_path / "image_info.json"), str(shapes / "val")]


def test_detections_are_written_with_the_ids_of_the_dataset(
    command_line, train_net, unlabelled, tmp_path
):
    weights = tmp_path / "weights.pth"
    arguments = command_line(
        "--eval-only",
        DATASETS__COCO_FORMAT=[unlabelled],
        DATASETS__TEST=("unlabelled",),
        MODEL__WEIGHTS=weights,
    )
    args = default_argument_parser().parse_args(arguments)
    torch.manual_seed(0)
    torch.save({"model": build_model(setup_config(args)).state_dict()}, weights)
    assert run_command(train_net.main, args) == 0

    folder = tmp_path / "output" / "inference"
    results = json.loads((folder / "coco_instances_results.json").read_text())
    info = json.loads((tmp_path / "image_info.json").read_text())
    assert {r["image_id"] for r in results} == {image["id"] for image in info["images"]}
    assert {r["category_id"] for r in results} <= {c["id"] for c in info["categories"]}
    assert all(set(r) == {"image_id", "category_id", "bbox", "score"} for r in results)
    assert not (folder / "lrp_results.json").exists()
