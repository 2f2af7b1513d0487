"""A dataset to be spoiled before it is checked, and what is said of a finding about it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from PIL import Image

from alrp.coco import Finding
from alrp.engine.checks import check_datasets

TRAIN, VAL = "preflight_test_train", "preflight_test_val"


class Dataset:
    """A dataset of four 40x32 images with two boxes each, to be spoiled before it is checked."""

    def __init__(self, root: Path):
        self.json, self.folder = root / "annotations.json", root / "images"
        self.folder.mkdir(parents=True)
        for i in range(1, 5):
            Image.new("RGB", (40, 32), (i, 2 * i, 3 * i)).save(self.folder / f"{i}.png")
        self.content = {
            "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}],
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 40, "height": 32} for i in range(1, 5)
            ],
            "annotations": [
                {"id": 1 + i, "image_id": 1 + i // 2, "category_id": 1 + i % 2}
                | {"bbox": [1.0, 2.0, 10.0, 20.0], "area": 200.0, "iscrowd": 0}
                for i in range(8)
            ],
        }
        self.write()

    def write(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def set_boxes(self, *boxes: list) -> None:
        """Give the first annotations these boxes."""
        for annotation, box in zip(self.content["annotations"], boxes):
            area = box[2] * box[3] if len(box) == 4 and math.isfinite(sum(box)) else 1.0
            annotation.update(bbox=box, area=abs(area))
        self.write()

    def spoil(self, **fields) -> None:
        """Give all annotations these fields."""
        for annotation in self.content["annotations"]:
            annotation.update(fields)
        self.write()


def only(findings: list[Finding]) -> Finding:
    """The one finding that there is."""
    assert len(findings) == 1, findings
    return findings[0]


def assert_one(cfg, severity: str, where: str, what: str, fix: str = "", **options) -> None:
    """Exactly one finding, whose fields hold these texts; training unless said otherwise."""
    finding = only(check_datasets(cfg, **{"for_training": True} | options))
    assert finding.severity == severity, finding
    assert where in finding.where, finding
    assert what in finding.what, finding
    assert fix in finding.fix, finding
