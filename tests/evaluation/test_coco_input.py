"""COCO input: what is left out, and what malformed files are told."""

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
    assert match_detections(ground_truth(stray), [])[1].num_gt == 0
    assert "1 of 1 annotations left out" in caplog.text


@pytest.mark.parametrize(
    "results, message",
    [
        ({"annotations": []}, "expected a list of detections, got dict"),
        ([detection(BOX), 3], "detection 1: expected an object, got 3"),
        ([{"image_id": 1, "category_id": 1, "bbox": BOX}], "detection 0 has no 'score'"),
        ([{"image_id": 1, "score": 1, "bbox": BOX}], "detection 0 has no 'category_id'"),
        ([detection(BOX), detection(BOX, image_id=5)], "detection 1 is of image 5"),
        ([detection(BOX, image_id=[1])], "detection 0: 'image_id' is"),
        ([detection([0, 0, 10])], "detection 0: 'bbox' is .* write"),
        ([detection(BOX), detection([0, 0, 10])], "detection 1: 'bbox' is"),
        ([detection([0, 0, 10, NAN])], "detection 0: 'bbox' is"),
        ([detection(BOX, "high")], "detection 0: 'score' is 'high'"),
        ([detection(BOX, None)], "detection 0: 'score' is None"),
        ([detection(BOX, float("inf"))], "detection 0: 'score' is inf"),
        (DetectionColumns([1], [1], np.array([[0, 0, NAN, 1]]), np.ones(1)), "detection 0: 'bbox'"),
    ],
)
def test_malformed_results_are_named(results, message):
    with pytest.raises(UserError, match=message):
        match_detections(ground_truth({"bbox": BOX}), results)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ([], "JSON object with a list 'images'"),
        ({"images": [], "categories": []}, "JSON object with a list 'annotations'"),
        (ground_truth(images=[{}]), "every entry of 'images' needs an 'id'"),
        (ground_truth(images=[{"id": 1}, {"id": "x"}]), "all numbers or all strings"),
        (ground_truth({"bbox": [0, 0, 1]}), "annotation 0: 'bbox' is"),
        (ground_truth({"segmentation": []}), "annotation 0 has no 'bbox'"),
        (ground_truth({"bbox": BOX, "area": None}), "annotation 0: 'area' is None"),
        (ground_truth({"bbox": BOX, "area": NAN}), "annotation 0: 'area' is nan"),
        (ground_truth(annotations=["x"]), "annotation 0: expected an object"),
    ],
)
def test_malformed_ground_truth_is_named(dataset, message):
    with pytest.raises(UserError, match=message):
        match_detections(dataset, [])


def test_two_classes_of_one_name_are_refused():
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "cat"}]
    with pytest.raises(UserError, match="categories 1 and 3 are both named 'cat'"):
        evaluate_lrp(ground_truth(categories=categories), [])


def test_classes_are_named_in_the_order_of_their_ids():
    categories = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2}]
    names = category_names(ground_truth(categories=categories))
    assert list(names.items()) == [(1, "dog"), (2, "2"), (3, "cat")]
