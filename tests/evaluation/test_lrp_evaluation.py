"""LRPEvaluator driven the way Detectron2's inference loop drives it."""

import json
import logging
import math
import os
import subprocess
import sys
import uuid
from pathlib import Path
import pytest
import torch
from torch.testing import assert_close

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, print_csv_format
from detectron2.structures import Boxes, Instances

import alrp.errors
from alrp.errors import UserError
from alrp.evaluation import APEvaluator, LRPEvaluator

METRICS = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")
# Detectron2 holds boxes in float32, so an IoU is good to 1e-6 and a percentage to 1e-4 or so.
TOLERANCE = dict(rtol=0, atol=1e-3)


@pytest.fixture
def register():
    """Register a COCO file under a fresh name; classes get contiguous ids if ``with_ids``."""
    names = []

    def add(json_file, with_ids=True):
        names.append(f"lrp_test_{uuid.uuid4().hex}")
        metadata = MetadataCatalog.get(names[-1]).set(json_file=str(json_file))
        if with_ids:
            categories = json.loads(Path(json_file).read_text())["categories"]
            categories.sort(key=lambda category: category["id"])
            metadata.thing_dataset_id_to_contiguous_id = {
                category["id"]: index for index, category in enumerate(categories)
            }
            metadata.thing_classes = [category["name"] for category in categories]
        return names[-1]

    yield add
    for name in names:
        MetadataCatalog.pop(name)


def model_output(detections, category_ids):
    """Instances of one image; class indices are positions in ``category_ids``."""
    boxes = torch.tensor([det["bbox"] for det in detections]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "instances": Instances(
            (480, 640),
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([det["score"] for det in detections], dtype=torch.float64),
            pred_classes=torch.tensor(
                [category_ids.index(det["category_id"]) for det in detections], dtype=torch.int64
            ),
        )
    }


def process_case(evaluator, case, images=slice(None)):
    category_ids = sorted(category["id"] for category in case.ground_truth["categories"])
    for image in case.ground_truth["images"][images]:
        detections = [det for det in case.detections if det["image_id"] == image["id"]]
        evaluator.process([{"image_id": image["id"]}], [model_output(detections, category_ids)])


def evaluate_case(evaluator, case):
    evaluator.reset()
    process_case(evaluator, case)
    return evaluator.evaluate()


def expected_percent(value):
    return math.nan if value in (None, -1.0) else 100 * value


def test_golden_values_in_percent(lrp_case, register):
    name = register(lrp_case.folder / "ground_truth.json")
    results = evaluate_case(LRPEvaluator(name, distributed=False), lrp_case)
    assert list(results) == ["lrp"]
    golden = lrp_case.expected["mean_by_area"]["all"]
    for metric in METRICS:
        assert_close(results["lrp"][metric], expected_percent(golden[metric]), **TOLERANCE)
    per_class = lrp_case.expected["per_class"]
    for index, category_id in enumerate(lrp_case.expected["settings"]["category_ids"]):
        olrp, threshold = (per_class[key][index][0][2] for key in ("oLRP", "threshold"))
        actual = results["lrp"][f"oLRP-class_{category_id}"]
        assert_close(actual, expected_percent(olrp), equal_nan=True, **TOLERANCE)
        actual = results["lrp"][f"threshold-class_{category_id}"]
        expected = math.nan if threshold in (None, -1.0) else threshold
        assert_close(actual, expected, equal_nan=True, rtol=0, atol=1e-12)


def test_cap_per_image_is_the_one_asked_for(tiny_case, register):
    name = register(tiny_case.folder / "ground_truth.json")
    evaluator = LRPEvaluator(name, distributed=False, max_dets_per_image=1)
    golden = tiny_case.expected["per_class"]["oLRP"][0][0][0]
    assert_close(evaluate_case(evaluator, tiny_case)["lrp"]["oLRP"], 100 * golden, **TOLERANCE)


def test_detections_in_bfloat16_are_taken(tiny_case, register):
    evaluator = LRPEvaluator(
        register(tiny_case.folder / "ground_truth.json"), distributed=False, max_dets_per_image=100
    )
    evaluator.reset()
    boxes = Boxes(torch.tensor([[0, 0, 8, 8]], dtype=torch.bfloat16))
    found = Instances((480, 640), pred_boxes=boxes, pred_classes=torch.tensor([0]))
    found.scores = torch.tensor([0.5], dtype=torch.bfloat16)
    image_id = tiny_case.ground_truth["images"][0]["id"]
    evaluator.process([{"image_id": image_id}], [{"instances": found}])
    assert 0 < evaluator.evaluate()["lrp"]["oLRP"] <= 100


def test_tau_is_the_one_asked_for(lrp_case, register):
    name = register(lrp_case.folder / "ground_truth.json")
    evaluator = LRPEvaluator(name, distributed=False, tau=0.75)
    golden = lrp_case.expected["other_tau"]["0.75"]["mean_by_area"]["all"]["oLRP"]
    assert_close(evaluate_case(evaluator, lrp_case)["lrp"]["oLRP"], 100 * golden, **TOLERANCE)


def test_classes_keep_their_ids_without_a_contiguous_id_map(tiny_case, register):
    name = register(tiny_case.folder / "ground_truth.json", with_ids=False)
    evaluator = LRPEvaluator(name, distributed=False)
    evaluator.reset()
    detections = [{**det, "category_id": 1} for det in tiny_case.detections]
    evaluator.process([{"image_id": 1}], [model_output(detections, [None, 1])])
    assert_close(evaluator.evaluate()["lrp"]["oLRP"], 65.0, **TOLERANCE)


def test_model_that_finds_nothing_has_an_olrp_of_100(tiny_case, register):
    evaluator = LRPEvaluator(register(tiny_case.folder / "ground_truth.json"), distributed=False)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [model_output([], [1])])
    results = evaluator.evaluate()["lrp"]
    assert (results["oLRP"], results["oLRP_FN"]) == (100.0, 100.0)
    assert math.isnan(results["oLRP_Loc"]) and math.isnan(results["threshold-class_1"])


@pytest.mark.parametrize("outputs", [[], [{"proposals": Instances((480, 640))}]], ids=len)
def test_without_detections_of_an_image_there_are_no_results(tiny_case, register, outputs):
    evaluator = LRPEvaluator(register(tiny_case.folder / "ground_truth.json"), distributed=False)
    evaluator.reset()
    evaluator.process([{"image_id": 1}] * len(outputs), outputs)
    assert evaluator.evaluate() == {}


def test_dataset_without_annotations_gives_no_results_and_says_so(
    tiny_case, register, tmp_path, caplog
):
    dataset = {key: tiny_case.ground_truth[key] for key in ("images", "categories", "info")}
    (tmp_path / "test-dev.json").write_text(json.dumps(dataset))
    evaluator = LRPEvaluator(register(tmp_path / "test-dev.json"), distributed=False)
    with caplog.at_level(logging.INFO, logger="alrp"):
        assert evaluate_case(evaluator, tiny_case) == {}
    assert "Annotations are not available" in caplog.text


def test_evaluating_twice_gives_the_same(missing_classes_case, register):
    name = register(missing_classes_case.folder / "ground_truth.json")
    evaluator = LRPEvaluator(name, distributed=False)
    first = evaluate_case(evaluator, missing_classes_case)
    assert_close(evaluator.evaluate()["lrp"], first["lrp"], rtol=0, atol=0, equal_nan=True)


def test_only_the_images_asked_for_count(tiny_case, register):
    evaluator = LRPEvaluator(register(tiny_case.folder / "ground_truth.json"), distributed=False)
    evaluate_case(evaluator, tiny_case)
    assert math.isnan(evaluator.evaluate(img_ids=[])["lrp"]["oLRP"])
    assert_close(evaluator.evaluate(img_ids=[1])["lrp"]["oLRP"], 65.0, **TOLERANCE)


def test_runs_beside_the_coco_evaluator(tiny_case, register, tmp_path):
    name = register(tiny_case.folder / "ground_truth.json")
    both = DatasetEvaluators(
        [
            COCOEvaluator(name, ("bbox",), False, str(tmp_path), use_fast_impl=False),
            LRPEvaluator(name, ("bbox",), False, str(tmp_path)),
        ]
    )
    results = evaluate_case(both, tiny_case)
    assert sorted(results) == ["bbox", "lrp"]
    assert_close(results["bbox"]["AP"], 100 * tiny_case.expected["summary"]["AP"], **TOLERANCE)
    assert sorted(os.listdir(tmp_path)) == [
        "coco_instances_results.json",
        "instances_predictions.pth",
        "lrp_results.json",
    ]


def test_summary_line_prints_the_means_and_no_class(tiny_case, register, caplog):
    name = register(tiny_case.folder / "ground_truth.json")
    results = evaluate_case(LRPEvaluator(name, distributed=False), tiny_case)
    with caplog.at_level(logging.INFO, logger="detectron2"):
        print_csv_format(results)
    assert "copypaste: oLRP,oLRP_Loc,oLRP_FP,oLRP_FN" in caplog.text
    assert "class_1" not in caplog.text


def test_table_of_the_classes_is_logged(tiny_case, register, caplog):
    evaluator = LRPEvaluator(register(tiny_case.folder / "ground_truth.json"), distributed=False)
    with caplog.at_level(logging.INFO, logger="alrp"):
        evaluate_case(evaluator, tiny_case)
    assert "class_1  65.000    15.000   33.333   33.333     0.7000" in caplog.text


def test_json_holds_the_returned_numbers(missing_classes_case, register, tmp_path):
    name = register(missing_classes_case.folder / "ground_truth.json")
    evaluator = LRPEvaluator(name, distributed=False, output_dir=str(tmp_path / "inference"))
    results = evaluate_case(evaluator, missing_classes_case)["lrp"]
    assert os.listdir(tmp_path / "inference") == ["lrp_results.json"]
    written = json.loads((tmp_path / "inference" / "lrp_results.json").read_text())
    assert {metric: written[metric] for metric in METRICS} == {m: results[m] for m in METRICS}
    assert written["per_class"]["class_11"]["oLRP"] == results["oLRP-class_11"]
    assert written["per_class"]["class_2"]["threshold"] is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(tasks=("bbox", "segm")), r"evaluates boxes, got tasks \('bbox', 'segm'\)"),
        (dict(tau=1.5), "tau must lie strictly between 0 and 1, got 1.5"),
        (dict(max_dets_per_image=0), "at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        LRPEvaluator("unused", **options)


def test_classes_of_one_name_are_refused_at_once(tiny_case, register, tmp_path):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    dataset = {**tiny_case.ground_truth, "categories": categories}
    (tmp_path / "gt.json").write_text(json.dumps(dataset))
    name = register(tmp_path / "gt.json")
    for evaluator in (APEvaluator, LRPEvaluator):
        with pytest.raises(UserError, match="both named 'cat'"):
            evaluator(name, distributed=False)


def test_class_index_beyond_the_dataset_is_explained(tiny_case, register):
    evaluator = LRPEvaluator(register(tiny_case.folder / "ground_truth.json"), distributed=False)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [model_output(tiny_case.detections, [None, 1])])
    with pytest.raises(UserError, match="has class 1, but the dataset has classes 0 to 0"):
        evaluator.evaluate()


WORKER = """
import importlib.util, json, os, sys
import torch.distributed as dist
test_file, conftest_file, meeting_point, rank = sys.argv[1:]

def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

tests = load("lrp_tests", test_file)
case = load("lrp_conftest", conftest_file).load_case("case_06_random_medium")
dist.init_process_group("gloo", init_method=meeting_point, rank=int(rank), world_size=2)
metadata = tests.MetadataCatalog.get("lrp").set(
    json_file=str(case.folder / "ground_truth.json")
)
ids = sorted(category["id"] for category in case.ground_truth["categories"])
metadata.thing_dataset_id_to_contiguous_id = {value: index for index, value in enumerate(ids)}
evaluator = tests.LRPEvaluator("lrp")
evaluator.reset()
tests.process_case(evaluator, case, slice(0, 15) if rank == "0" else slice(15, None))
print("RESULT " + json.dumps(evaluator.evaluate()), flush=True)
dist.barrier()
dist.destroy_process_group()
# Gloo's threads for the group that Detectron2 made may still run, and would abort a normal exit.
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_gather_on_the_first_and_the_other_returns_nothing(tmp_path):
    here = Path(__file__)
    source = str(Path(alrp.errors.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [source, os.environ.get("PYTHONPATH", "")])
    )
    command = [sys.executable, "-c", WORKER, here, here.with_name("conftest.py")]
    workers = [
        subprocess.Popen(
            [*map(str, command), f"file://{tmp_path}/meet", str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    first, second = (json.loads(stdout.rpartition("RESULT ")[2]) for stdout, _ in outputs)
    expected_file = here.parents[1] / "golden/lrp/case_06_random_medium/expected.json"
    golden = json.loads(expected_file.read_text())["mean_by_area"]["all"]
    assert_close(
        {metric: first["lrp"][metric] for metric in METRICS},
        {metric: 100 * golden[metric] for metric in METRICS},
        **TOLERANCE,
    )
    assert second == {}
