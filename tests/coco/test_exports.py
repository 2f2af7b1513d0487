"""Files as other tools write them: what Detectron2 trains on rightly is not refused."""

from __future__ import annotations

import copy
import json
import pytest
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from alrp.coco import Finding, Purpose, check_annotations
from alrp.data.datasets.coco_check import check_coco_dataset
from alrp.data.datasets.coco_loader import CocoFiles, load_coco_format
from alrp.evaluation import APEvaluator, LRPEvaluator

NAME = "exports_test"
TRAINING = Purpose(training=True, images=True)


def with_boxes(*boxes: list[float]) -> dict:
    """An image of 640 x 480 for each box, with polygons."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 640, "height": 480}
            for i in range(1, 1 + len(boxes))
        ],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": box, "iscrowd": 0}
            | {"area": box[2] * box[3], "segmentation": [_outline(*box)]}
            for i, box in enumerate(boxes, start=1)
        ],
    }


def _outline(x, y, width, height) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


@pytest.fixture
def content() -> dict:
    return with_boxes([10, 20, 100, 120], [200, 100, 300, 200], [50, 60, 40, 30])


@pytest.fixture
def evaluate(tmp_path):
    """AP and oLRP of a model that finds every object, through check, loader and evaluators."""
    MetadataCatalog.pop(NAME, None)

    def run(content: dict, purpose: Purpose = TRAINING) -> tuple[list[Finding], dict]:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        for image in content["images"]:
            Image.new("RGB", (640, 480)).save(tmp_path / image["file_name"])
        findings = check_coco_dataset(NAME, str(path), str(tmp_path), purpose).findings
        MetadataCatalog.get(NAME).set(json_file=str(path), evaluator_type="coco")
        records = load_coco_format(NAME, CocoFiles(str(path), str(tmp_path), purpose.masks))
        tasks, results = ("bbox", "segm") if purpose.masks else ("bbox",), {}
        for evaluator in (
            APEvaluator(NAME, tasks, distributed=False),
            LRPEvaluator(NAME, distributed=False),
        ):
            evaluator.reset()
            for record in records:
                evaluator.process([record], [{"instances": _found(record)}])
            results |= evaluator.evaluate()
        return findings, results

    yield run
    MetadataCatalog.pop(NAME, None)


def _found(record: dict) -> Instances:
    boxes = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.zeros(len(boxes), record["height"], record["width"], dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = True
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(boxes),
        scores=torch.full((len(boxes),), 0.9),
        pred_classes=torch.tensor([a["category_id"] for a in record["annotations"]]),
        pred_masks=masks,
    )


@pytest.mark.parametrize("written", ["{}", "b7-{}"])
def test_annotation_ids_may_be_text(evaluate, content, written):
    for annotation in content["annotations"]:
        annotation["id"] = written.format(annotation["id"])
    findings, results = evaluate(content)
    assert findings == []
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["lrp"]["oLRP"] == pytest.approx(0, abs=1e-6)


def test_sizes_written_with_a_decimal_point_are_integers_to_detectron2(evaluate, content):
    for image in content["images"]:
        image.update(width=640.0, height=480.0)
    findings, results = evaluate(content, TRAINING._replace(masks=True))
    assert findings == [] and results["segm"]["AP"] == pytest.approx(100)


def test_sizes_that_detectron2_reads_itself_must_be_integers_with_masks(content):
    purpose = TRAINING._replace(masks=True, drops_broken_masks=True)
    assert check_annotations("file", content, purpose) == []
    content["images"][1]["width"] = 640.0
    (finding,) = check_annotations("file", content, purpose)
    assert "positive integer, without a decimal point, as 'width'" in finding.what


@pytest.mark.parametrize("fragment", [[1, 2, 3, 4], [1, 2], [], [1, 2, 3, 4, 5, 6, 7]], ids=str)
@pytest.mark.parametrize("first", [True, False])
def test_fragments_beside_polygons_are_left_out(evaluate, content, fragment, first):
    _, results = evaluate(copy.deepcopy(content), TRAINING._replace(masks=True))
    mask = content["annotations"][1]["segmentation"]
    content["annotations"][1]["segmentation"] = [fragment, *mask] if first else [*mask, fragment]
    (warning,), others = evaluate(content, TRAINING._replace(masks=True))
    assert warning.severity == "warning" and "annotation 2" in warning.what
    assert results["segm"]["AP"] == others["segm"]["AP"] == pytest.approx(100)
    # Without masks, Detectron2's loader takes the boxes of such annotations.
    purpose = TRAINING._replace(drops_broken_masks=True)
    assert check_annotations("file", content, purpose) == []


def test_boxes_of_one_pixel_are_no_fractions_of_the_image():
    content = with_boxes([200, 150, 1, 1], [20, 15, 1, 1])
    assert check_annotations("file", content, TRAINING) == []
    normalised = with_boxes([0.5, 0.5, 1, 1], [0.2, 0.7, 0.1, 0.2])
    (finding,) = check_annotations("file", normalised, TRAINING)
    assert "fractions of the image" in finding.what


@pytest.mark.parametrize("slip", [[10, 20, 0, 30], [700, 20, 10, 30]], ids=["empty", "outside"])
@pytest.mark.parametrize(("num_slips", "severity"), [(1, "warning"), (2, "error")])
def test_one_box_of_a_hundred_may_mean_nothing(slip, num_slips, severity):
    boxes = [[10, 20, 100, 120 + i] for i in range(100 - num_slips)]
    content = with_boxes(*boxes, *[slip] * num_slips)
    (finding,) = check_annotations("file", content, TRAINING)
    assert finding.severity == severity and f"{num_slips} boxes have" in finding.what


def test_large_boxes_that_end_a_little_outside_are_no_corners():
    (finding,) = check_annotations("file", with_boxes([60, 50, 590, 400]), TRAINING)
    assert finding.severity == "warning" and "a part outside" in finding.what
    (finding,) = check_annotations("file", with_boxes([400, 50, 590, 400]), TRAINING)
    assert "would fit it as two corners" in finding.what


def test_a_category_of_a_repeated_name_that_no_annotation_has_is_named(content):
    content["categories"].insert(0, {"id": 0, "name": "disc", "supercategory": "none"})
    (finding,) = check_annotations("file", content, TRAINING)
    assert "categories 0 and 1 are both named 'disc'" in finding.what
    assert "no annotation has category 0, which may be removed" in finding.fix


def test_images_of_lvis_are_named_by_the_end_of_an_address(content):
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    (finding,) = check_annotations("file", content, TRAINING)
    assert "the end of their 'coco_url'" in finding.fix


def test_a_file_of_panoptic_segmentation_is_called_so(content):
    content["annotations"] = [
        {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 1, "category_id": 1}]}
    ]
    (finding,) = check_annotations("file", content, TRAINING)
    assert "panoptic segmentation" in finding.what and "instances_*.json" in finding.fix


def test_annotations_with_boxes_may_have_segments_as_well(content):
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
    assert check_annotations("file", content, TRAINING) == []
