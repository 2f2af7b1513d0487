"""COCO input: what is left out, and what malformed files are told."""

import math
import numpy as np
import pytest

from alrp.errors import UserError
from alrp.evaluation import DetectionColumns, evaluate_lrp, match_detections
from alrp.evaluation.coco_input import category_names

NAN = float("nan")
BOX = [0, 0, 10, 10]


def ground_truth(*annotations, **fields):
    """One image and one class."""
    return {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"image_id": 1, "category_id": 1, **ann} for ann in annotations],
        **fields,
    }


def detection(box, score=0.5, image_id=1, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def test_detections_of_unlisted_classes_are_left_out_with_a_warning(caplog):
    results = [detection(BOX, 0.5), detection(BOX, 0.9, category_id=4)]
    best = evaluate_lrp(ground_truth({"bbox": BOX}), results)
    assert best["thing"].olrp == 0.0
    assert "1 of 2 detections left out: their category is not listed" in caplog.text


def test_annotations_of_unlisted_images_are_left_out_with_a_warning(caplog):
    stray = {"bbox": BOX, "image_id": 9}
    assert match_detections(ground_truth({"bbox": BOX}, stray), [])[1].num_gt == 1
    assert "1 annotations refer to images that are not listed" in caplog.text
    assert "they are left out" in caplog.text


@pytest.mark.parametrize(
    "results, message",
    [
        ({"annotations": []}, "expected a list of detections, but got a dict"),
        ([detection(BOX), 3], "expected an object .* detection 1 is 3"),
        ([{"image_id": 1, "category_id": 1, "bbox": BOX}], "'score' .* 1 have none: detection 0"),
        ([{"image_id": 1, "score": 1, "bbox": BOX}], "'category_id' .* 1 have none: detection 0"),
        ([detection(BOX), detection(BOX, image_id=5)], "detection 1 is of image 5"),
        ([detection(BOX, image_id=[1])], "detection 0: 'image_id' is"),
        (
            [detection([0, 0, 10])],
            r"four numbers \[x, y, width, height\] .* detection 0: 'bbox' is",
        ),
        ([detection(BOX), detection([0, 0, 10])], "detection 1: 'bbox' is"),
        ([detection(BOX), detection([0, 0, "10", 10])], "detection 1: 'bbox' is"),
        ([detection([0, 0, 10, NAN])], "not finite: detection 0 of image 1"),
        ([detection(BOX, "high")], "detection 0: 'score' is 'high'"),
        ([detection(BOX, None)], "detection 0: 'score' is None"),
        ([detection(BOX, True)], "detection 0: 'score' is True"),
        ([detection(BOX, float("inf"))], "detection 0: 'score' is inf"),
        ([detection(BOX, category_id="1")], r"text \('1'\), those listed are numbers \(1\)"),
        ([detection(BOX, image_id="1")], r"text \('1'\), those listed are numbers \(1\)"),
        ([detection(BOX, category_id=7)], "1 of 1 detections left out"),
        ([detection([0.1, 0.2, 0.3, 0.4])], "fractions of the image"),
        (
            DetectionColumns([1], [1], np.array([[0, 0, NAN, 1]]), np.ones(1)),
            "detection 0 has 'bbox'",
        ),
    ],
)
def test_malformed_results_are_named(results, message):
    with pytest.raises(UserError, match=f"^results: .*{message}"):
        match_detections(ground_truth({"bbox": BOX}), results)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([], "expected a JSON object with the lists 'images'"),
        ({"images": [{"id": 1}], "categories": [{"id": 1}]}, "a list 'annotations'"),
        (ground_truth(images=[]), "expected a non-empty list 'images'"),
        (ground_truth(images=[{}]), r"'id' of each of the images, .* images\[0\] is {}"),
        (ground_truth(images=[{"id": 1}, {"id": "x"}]), "some are numbers, others are text"),
        (ground_truth({"bbox": [0, 0, 1]}), r"annotations\[0\] is {'bbox': \[0, 0, 1\]"),
        (ground_truth({"segmentation": []}), r"'bbox' of each .* annotations\[0\]"),
        (ground_truth({"bbox": BOX, "area": None}), "{'area': None"),
        (ground_truth({"bbox": BOX, "area": NAN}), "{'area': nan"),
        (ground_truth({"bbox": BOX, "area": -1}), "{'area': -1"),
        (ground_truth({"bbox": BOX, "iscrowd": -1}), "{'iscrowd': -1"),
        (ground_truth({"bbox": BOX, "iscrowd": 2}), "{'iscrowd': 2"),
        (ground_truth({"bbox": BOX, "iscrowd": math.inf}), "{'iscrowd': inf"),
        (ground_truth({"bbox": BOX, "iscrowd": None}), "{'iscrowd': None"),
        (ground_truth({"bbox": [0, 0, 10, NAN]}), "not finite"),
        (ground_truth({"bbox": [0.1, 0.2, 0.3, 0.4]}), "fractions of the image"),
        (ground_truth({"bbox": BOX, "id": 7}, {"bbox": BOX, "id": 7}), r"unique .* 7 \(2 times\)"),
        (ground_truth({"bbox": BOX, "image_id": 9}), "images that are not listed"),
        (ground_truth(annotations=["x"]), r"annotations\[0\]"),
    ],
)
def test_malformed_ground_truth_is_named(dataset, message):
    with pytest.raises(UserError, match=f"^ground truth: .*{message}"):
        match_detections(dataset, [])


@pytest.mark.parametrize("crowd", [1, 1.0, True])
def test_crowd_flags_may_be_truth_values(crowd):
    assert match_detections(ground_truth({"bbox": BOX, "iscrowd": crowd}), [])[1].num_gt == 0


def test_two_classes_of_one_name_are_refused():
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "cat"}]
    with pytest.raises(UserError, match="categories 3 and 1 are both named 'cat'"):
        evaluate_lrp(ground_truth(categories=categories), [])


def test_classes_are_named_in_the_order_of_their_ids():
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2}]
    names = category_names(ground_truth(categories=categories))
    assert list(names.items()) == [(1, "dog"), (2, "2"), (3, "cat")]
