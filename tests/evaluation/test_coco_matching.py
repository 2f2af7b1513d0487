"""Matching by COCOeval: golden figures, and its special cases."""

import contextlib
import copy
import io
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from alrp.evaluation import (
    DetectionColumns,
    evaluate_lrp,
    match_detections,
    mean_optimal_lrp,
    optimal_lrp,
)

NAN = float("nan")
QUANTITIES = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN", "threshold")


def ground_truth(*boxes, **fields):
    """One image and one class; ``boxes`` are XYWH or dicts of annotation fields."""
    annotations = []
    for number, box in enumerate(boxes):
        box = dict(box) if isinstance(box, dict) else {"bbox": box}
        annotations.append({"id": number + 1, "image_id": 1, "category_id": 1, **box})
    return {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": annotations,
        **fields,
    }


def detection(box, score=0.5, image_id=1, category_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def results_by_class(dataset, results, tau=0.5, **options):
    matches = match_detections(dataset, results, tau=tau, **options)
    return {category: optimal_lrp(*match, tau=tau) for category, match in matches.items()}


def assert_equals_golden(results, category_ids, golden):
    """``golden``: a list over classes for each quantity, -1 where absent, None where undefined."""
    for column, quantity in enumerate(QUANTITIES):
        for category_id, expected in zip(category_ids, golden[quantity]):
            result = results[category_id]
            assert result.absent == (expected == -1.0)
            if result.absent or expected is None:
                assert np.isnan(result[column])
            else:
                assert_allclose(result[column], expected, rtol=0, atol=1e-9)


def assert_means_equal_golden(results, golden):
    for mean, quantity in zip(mean_optimal_lrp(results.values()), QUANTITIES):
        expected = NAN if golden[quantity] == -1.0 else golden[quantity]
        assert_allclose(mean, expected, rtol=0, atol=1e-9)


def test_golden_values_for_every_class_area_and_cap(lrp_case):
    settings, golden = lrp_case.expected["settings"], lrp_case.expected["per_class"]
    for area, area_range in enumerate(settings["area_ranges"]):
        for cap, max_dets in enumerate(settings["max_dets"]):
            results = results_by_class(
                lrp_case.ground_truth,
                lrp_case.detections,
                area_range=area_range,
                max_dets=max_dets,
            )
            assert list(results) == settings["category_ids"]
            setting = {
                quantity: [areas[area][cap] for areas in golden[quantity]]
                for quantity in QUANTITIES
            }
            assert_equals_golden(results, settings["category_ids"], setting)


def test_golden_means_for_every_area(lrp_case):
    settings = lrp_case.expected["settings"]
    for label, area_range in zip(settings["area_labels"], settings["area_ranges"]):
        results = results_by_class(
            lrp_case.ground_truth, lrp_case.detections, area_range=area_range
        )
        assert_means_equal_golden(results, lrp_case.expected["mean_by_area"][label])


@pytest.mark.parametrize("tau", ["0.6", "0.75", "0.9"])
def test_golden_values_at_other_iou_thresholds(lrp_case, tau):
    golden, settings = lrp_case.expected["other_tau"][tau], lrp_case.expected["settings"]
    for label, area_range in zip(settings["area_labels"], settings["area_ranges"]):
        results = results_by_class(
            lrp_case.ground_truth, lrp_case.detections, tau=float(tau), area_range=area_range
        )
        assert_means_equal_golden(results, golden["mean_by_area"][label])
        if label == "all":
            assert_equals_golden(
                results, settings["category_ids"], golden["per_class_all_maxdets100"]
            )


@pytest.mark.parametrize("max_dets", ["10", "50", "300", "1000"])
def test_golden_values_at_other_caps(lrp_case, max_dets):
    golden, settings = lrp_case.expected["other_max_dets"][max_dets], lrp_case.expected["settings"]
    results = results_by_class(lrp_case.ground_truth, lrp_case.detections, max_dets=int(max_dets))
    assert_means_equal_golden(results, golden["mean_by_area"]["all"])
    assert_equals_golden(results, settings["category_ids"], golden["per_class_all"])


def test_golden_values_with_labels_ignored(lrp_case):
    dataset, results = copy.deepcopy((lrp_case.ground_truth, lrp_case.detections))
    # COCO lists the boxes of an image by class before it forgets the class.
    for boxes in (dataset["annotations"], results):
        boxes.sort(key=lambda box: box["category_id"])
        for box in boxes:
            box["category_id"] = 1
    dataset["categories"] = [{"id": 1, "name": "any"}]
    golden = lrp_case.expected["class_agnostic"]
    best = results_by_class(dataset, results)[1]
    assert_allclose(best[:5], [golden[quantity] for quantity in QUANTITIES], rtol=0, atol=1e-9)


def test_golden_matches_of_every_detection(missing_classes_case, tiny_case):
    for case in (missing_classes_case, tiny_case):
        matches = match_detections(case.ground_truth, case.detections)
        for category_id, match in matches.items():
            golden = sorted(
                (entry for entry in case.matches if entry["category_id"] == category_id),
                key=lambda entry: entry["image_id"],
            )

            def column(name):
                return [value for entry in golden for value in entry[name]]

            ids, ious = np.array(column("matched_ground_truth_id")), np.array(column("iou"))
            assert_array_equal(match.scores, column("scores"))
            assert_array_equal(match.ignored, np.array(column("detection_ignored"), dtype=bool))
            expected = np.where(ids == 0, NAN, ious)
            assert_allclose(match.matched_ious, expected, rtol=0, atol=1e-12)
            assert match.num_gt == column("ground_truth_ignored").count(False)


def random_scene(seed):
    """Crowds, ties, areas on the borders of the ranges, classes without either kind of box."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in range(1, 7):
        for _ in range(rng.integers(0, 12)):
            x, y, w, h = (float(v) for v in rng.integers(0, 60, 4) + [0, 0, 5, 5])
            category_id = int(rng.integers(1, 5))
            area = float(rng.choice([w * h, 1024.0]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, w, h],
                    "area": area,
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
            for _ in range(rng.integers(0, 4)):
                box = [x, y, w, h] + rng.integers(-3, 4, 4)
                score = float(rng.integers(1, 6) / 5)
                results.append(detection(box.tolist(), score, image_id, category_id))
        results.append(detection([0.0, 0.0, 32.0, 32.0], 0.5, image_id, 5))
    order = rng.permutation(len(results))
    images, categories = ([{"id": i, "name": str(i)} for i in range(1, n)] for n in (7, 7))
    dataset = {"images": images, "categories": categories, "annotations": annotations}
    return dataset, [results[index] for index in order]


@pytest.mark.parametrize("area_range", [(0, 1e10), (0, 1024), (1024, 9216)])
@pytest.mark.parametrize("max_dets", [2, 100])
@pytest.mark.parametrize("seed", range(4))
def test_matches_equal_a_run_of_cocoeval_on_the_whole_dataset(seed, max_dets, area_range):
    dataset, results = random_scene(seed)
    matches = match_detections(dataset, results, max_dets=max_dets, area_range=area_range)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(dataset)
        api.createIndex()
        official = COCOeval(api, api.loadRes(copy.deepcopy(results)), "bbox")
        official.params.iouThrs = np.array([0.5])
        official.params.areaRng = [list(area_range)]
        official.params.maxDets = [max_dets]
        official.evaluate()
    for category_id, match in matches.items():
        images = [e for e in official.evalImgs if e and e["category_id"] == category_id]
        found = [image["dtMatches"][0] > 0 for image in images]
        ignored = [image["dtIgnore"][0] for image in images]
        scores = [image["dtScores"] for image in images]
        assert_array_equal(~np.isnan(match.matched_ious), np.concatenate([[], *found]))
        assert_array_equal(match.ignored, np.concatenate([[], *ignored]))
        assert_array_equal(match.scores, np.concatenate([[], *scores]))
        assert match.num_gt == sum((image["gtIgnore"] == 0).sum() for image in images)


def test_match_with_a_crowd_is_ignored_and_leaves_the_crowd_free():
    crowd = {"bbox": [0, 0, 100, 100], "iscrowd": 1}
    inside = [detection([10, 10, 20, 20], 0.9), detection([50, 50, 20, 20], 0.8)]
    match = match_detections(ground_truth(crowd, [200, 0, 10, 10]), inside)[1]
    assert_array_equal(match.ignored, [True, True])
    assert_array_equal(match.matched_ious, [1.0, 1.0])  # intersection over area of the detection
    assert match.num_gt == 1


def test_ground_truth_is_preferred_to_a_crowd_of_higher_overlap():
    crowd = {"bbox": [0, 0, 100, 100], "iscrowd": 1}
    dataset = ground_truth(crowd, [0, 0, 20, 15])
    match = match_detections(dataset, [detection([0, 0, 20, 20])])[1]
    assert_array_equal(match.ignored, [False])
    assert_array_equal(match.matched_ious, [0.75])


@pytest.mark.parametrize("ids", [(0, 1), (-1, 0), ("a", "b")])
def test_annotation_ids_do_not_matter(ids):
    boxes = [[0, 0, 10, 10], [50, 50, 10, 10]]
    dataset = ground_truth(*({"bbox": box, "id": id_} for box, id_ in zip(boxes, ids)))
    match = match_detections(dataset, [detection(box) for box in boxes], area_range=(0, 50))[1]
    # Both are matched, to ground truths that are too large, hence ignored.
    assert_array_equal(match.matched_ious, [1.0, 1.0])
    assert_array_equal(match.ignored, [True, True])


def test_image_and_category_ids_may_be_zero_or_text():
    dataset = {
        "images": [{"id": "b"}, {"id": "a"}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [{"image_id": "b", "category_id": 0, "bbox": [0, 0, 10, 10]}],
    }
    results = [detection([0, 0, 10, 10], 0.9, "b", 0), detection([0, 0, 10, 10], 0.8, "a", 0)]
    match = match_detections(dataset, results)[0]
    assert_array_equal(match.scores, [0.8, 0.9])  # ascending image id
    assert_array_equal(match.matched_ious, [NAN, 1.0])


def test_omitted_area_and_crowd_flag_mean_box_area_and_no_crowd():
    match = match_detections(ground_truth([0, 0, 10, 10]), [], area_range=(100, 100))[1]
    assert match.num_gt == 1


def test_ignore_field_of_a_ground_truth_has_no_effect():
    dataset = ground_truth({"bbox": [0, 0, 10, 10], "ignore": 1})
    assert match_detections(dataset, [])[1].num_gt == 1


def test_equal_scores_are_capped_in_file_order():
    results = [detection([90, 90, 5, 5], 0.5), detection([0, 0, 10, 10], 0.5)]
    match = match_detections(ground_truth([0, 0, 10, 10]), results, max_dets=1)[1]
    assert_array_equal(match.matched_ious, [NAN])


def test_iou_equal_to_tau_is_a_match():
    match = match_detections(ground_truth([0, 0, 10, 10]), [detection([0, 0, 10, 5])])[1]
    assert_array_equal(match.matched_ious, [0.5])


@pytest.mark.parametrize("last, second_iou", [("right", NAN), ("left", 11 / 13)])
def test_last_ground_truth_in_the_file_wins_among_equal_ious(last, second_iou):
    boxes = {"left": [0, 0, 12, 10], "right": [2, 0, 12, 10]}
    dataset = ground_truth(*sorted(boxes.values(), key=lambda box: box == boxes[last]))
    # The first detection lies half-way; the second reaches tau with the right box only.
    results = [detection([1, 0, 12, 10], 0.9), detection([3, 0, 12, 10], 0.8)]
    match = match_detections(dataset, results, tau=0.7)[1]
    assert_allclose(match.matched_ious, [11 / 13, second_iou], rtol=1e-12)


def test_no_detection_at_all_means_everything_is_missed():
    best = evaluate_lrp(ground_truth([0, 0, 10, 10]), [])["thing"]
    assert_array_equal(best, [1.0, NAN, NAN, 1.0, NAN, 1])


def test_dataset_without_boxes_leaves_every_class_absent():
    assert evaluate_lrp(ground_truth(), [detection([0, 0, 10, 10])])["thing"].absent


def test_only_the_images_asked_for_count(missing_classes_case):
    dataset, results = missing_classes_case.ground_truth, missing_classes_case.detections
    chosen = sorted(image["id"] for image in dataset["images"])[3:8]
    part = {
        **dataset,
        "images": [image for image in dataset["images"] if image["id"] in chosen],
        "annotations": [ann for ann in dataset["annotations"] if ann["image_id"] in chosen],
    }
    expected = evaluate_lrp(part, [r for r in results if r["image_id"] in chosen])
    actual = evaluate_lrp(dataset, results, image_ids=chosen)
    assert_array_equal(list(actual.values()), list(expected.values()))


def test_columns_give_the_same_as_a_list_of_dicts(missing_classes_case):
    dataset, results = missing_classes_case.ground_truth, missing_classes_case.detections
    columns = DetectionColumns(
        [result["image_id"] for result in results],
        [result["category_id"] for result in results],
        np.array([result["bbox"] for result in results]),
        np.array([result["score"] for result in results]),
    )
    expected = evaluate_lrp(dataset, results)
    assert_array_equal(list(evaluate_lrp(dataset, columns).values()), list(expected.values()))


def test_inputs_are_not_modified(missing_classes_case):
    inputs = (missing_classes_case.ground_truth, missing_classes_case.detections)
    before = copy.deepcopy(inputs)
    evaluate_lrp(*inputs)
    assert inputs == before


def test_nothing_is_printed(tiny_case, capsys):
    evaluate_lrp(tiny_case.ground_truth, tiny_case.detections)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tau=0.0), "strictly between 0 and 1"),
        (dict(max_dets=0), "at least 1"),
        (dict(area_range=(5, 1)), r"\(lowest, highest\)"),
    ],
)
def test_arguments_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        match_detections(ground_truth(), [], **options)
