"""The command line on golden files, and what it says about bad ones."""

import json
import os
import subprocess
import sys
from pathlib import Path
import pytest

TESTS = Path(__file__).parents[1]
TOOL = TESTS.parent / "tools" / "evaluate_lrp.py"
CASE = TESTS / "golden" / "lrp" / "case_04_missing_classes"
GROUND_TRUTH, DETECTIONS = str(CASE / "ground_truth.json"), str(CASE / "detections.json")
QUANTITIES = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN", "threshold")

BLOCK_FRAMEWORKS = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "torch", "torchvision", "fvcore"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def main(load_script):
    return load_script("tools/evaluate_lrp.py").main


def percent(value, factor=100):
    return None if value in (None, -1.0) else pytest.approx(factor * value, abs=1e-7)


def test_json_holds_the_golden_numbers(main, tmp_path, capsys):
    out = tmp_path / "lrp.json"
    assert main([GROUND_TRUTH, DETECTIONS, "--json", str(out)]) == 0
    written = json.loads(out.read_text())
    expected = json.loads((CASE / "expected.json").read_text())
    for key in QUANTITIES[:4]:
        assert written[key] == percent(expected["mean_by_area"]["all"][key])
    ids = expected["settings"]["category_ids"]
    assert list(written["per_class"]) == [f"class_{category_id}" for category_id in ids]
    for index, category_id in enumerate(ids):
        for key in QUANTITIES:
            value = expected["per_class"][key][index][0][2]
            factor = 1 if key == "threshold" else 100
            assert written["per_class"][f"class_{category_id}"][key] == percent(value, factor)
    assert os.listdir(tmp_path) == ["lrp.json"]


def test_table_lists_classes_and_mean(main, capsys):
    assert main([GROUND_TRUTH, DETECTIONS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", *QUANTITIES]
    assert lines[-3].split()[:2] == ["mean", "90.011"]
    assert lines[-1].startswith("Calibration error of detections from the LRP-optimal scores on: ")


@pytest.mark.parametrize(
    "options, setting",
    [
        (["--tau", "0.75"], ("other_tau", "0.75")),
        (["--max-dets", "10"], ("other_max_dets", "10")),
    ],
)
def test_options_reach_the_evaluation(main, tmp_path, options, setting):
    out = tmp_path / "lrp.json"
    assert main([GROUND_TRUTH, DETECTIONS, "--json", str(out), *options]) == 0
    expected = json.loads((CASE / "expected.json").read_text())[setting[0]][setting[1]]
    written = json.loads(out.read_text())
    for key in QUANTITIES[:4]:
        assert written[key] == percent(expected["mean_by_area"]["all"][key])


def test_runs_from_a_checkout_without_any_deep_learning_framework():
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK_FRAMEWORKS, str(TOOL), GROUND_TRUTH, DETECTIONS],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "90.011" in done.stdout


def test_empty_list_of_detections_is_allowed(main, tmp_path, capsys):
    (tmp_path / "empty.json").write_text("[]")
    assert main([GROUND_TRUTH, str(tmp_path / "empty.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "mean",
        "100.000",
        "-",
        "-",
        "100.000",
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ("{}", "expected a list of detections, but got a dict"),
        (
            '[{"image_id": 1, "bbox": [0, 0, 2, 2], "score": 1}]',
            "'category_id' of each detection, but 1 have none: detection 0",
        ),
        (
            '[{"image_id": -5, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]',
            "detection 0 is of image -5",
        ),
    ],
)
def test_bad_results_give_one_message_and_status_2(main, tmp_path, capsys, content, message):
    (tmp_path / "results.json").write_text(content)
    out = tmp_path / "lrp.json"
    assert main([GROUND_TRUTH, str(tmp_path / "results.json"), "--json", str(out)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.json", DETECTIONS], "missing.json cannot be read"),
        ([DETECTIONS, GROUND_TRUTH], "detection results are not one"),
        (
            [GROUND_TRUTH, DETECTIONS, "--json", "missing/lrp.json"],
            "missing/lrp.json cannot be written",
        ),
    ],
)
def test_bad_files_give_one_message_and_status_2(main, capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_two_classes_of_one_name_are_refused(main, tmp_path, capsys):
    dataset = json.loads(Path(GROUND_TRUTH).read_text())
    dataset["categories"][0]["name"] = dataset["categories"][1]["name"]
    (tmp_path / "gt.json").write_text(json.dumps(dataset))
    assert main([str(tmp_path / "gt.json"), DETECTIONS]) == 2
    assert "are both named" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, message",
    [
        (["--tau", "1"], "tau must lie strictly between 0 and 1, got 1.0"),
        (["--tau", "0"], "tau must lie strictly between 0 and 1, got 0.0"),
        (["--max-dets", "0"], "max_dets must be at least 1, got 0"),
    ],
)
def test_options_outside_their_range_give_status_2_before_files_are_read(
    main, capsys, option, message
):
    with pytest.raises(SystemExit) as stop:
        main(["no_such_file", DETECTIONS, *option])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def _write(tmp_path, **contents):
    paths = []
    for name, content in contents.items():
        paths.append(str(tmp_path / f"{name}.json"))
        Path(paths[-1]).write_text(json.dumps(content))
    return paths


def _pair():
    """Ground truth without image sizes, and its boxes as detections."""
    boxes = [[10 + k, 5, 20, 30] for k in range(6)]
    dataset = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": k + 1, "image_id": 1 + k % 3, "category_id": 1 + k % 2, "bbox": box}
            for k, box in enumerate(boxes)
        ],
    }
    keys = ("image_id", "category_id", "bbox")
    return dataset, [{k: a[k] for k in keys} | {"score": 0.9} for a in dataset["annotations"]]


def test_an_empty_name_of_the_output_is_refused(main, tmp_path, capsys):
    dataset, results = _pair()
    assert main([*_write(tmp_path, gt=dataset, dt=results), "--json", ""]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("is_input", [0, 1], ids=["ground truth", "results"])
def test_an_output_that_is_an_input_is_refused(main, tmp_path, capsys, is_input):
    dataset, results = _pair()
    paths = _write(tmp_path, gt=dataset, dt=results)
    link = tmp_path / "link.json"
    link.symlink_to(paths[is_input])
    for out in (paths[is_input], str(link)):
        with pytest.raises(SystemExit) as stop:
            main([*paths, "--json", out])
        assert stop.value.code == 2
        assert "--json names the input" in capsys.readouterr().err
    assert json.loads(Path(paths[0]).read_text()) == dataset
    assert json.loads(Path(paths[1]).read_text()) == results


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d, r: [x["bbox"].__setitem__(2, -20) for x in r[:2]], "width or height of zero"),
        (
            lambda d, r: [x.update(bbox=[*x["bbox"][:2], x["bbox"][0] + 20, 35]) for x in r],
            "would fit it as two corners",
        ),
        (lambda d, r: d["annotations"][0].update(image_id=9), "images that are not listed"),
        (lambda d, r: r.append(dict(r[0])), "1 detections are listed more than once"),
        (lambda d, r: r[0].update(category_id=3), "1 of 6 detections left out"),
        (
            lambda d, r: [x.update(score=100 * x["score"]) for x in r],
            "scores lie outside of [0, 1]",
        ),
        (
            lambda d, r: [x.update(category_id=x["category_id"] - 1) for x in r],
            "look like numbers of the classes, counted from 0",
        ),
        (
            lambda d, r: [x.update(bbox=[v * 0.1 for v in x["bbox"][:2]] + [2, 2]) for x in r],
            "no detection meets an object",
        ),
        (
            lambda d, r: [a.update(iscrowd=1) for a in d["annotations"]],
            "all annotations are crowds",
        ),
        (lambda d, r: [a.update(iscrowd=1) for a in d["annotations"]], "no object counts"),
        (lambda d, r: [r.append(r[0] | {"score": k / 200}) for k in range(120)], "the 100 best"),
    ],
)
def test_oddities_are_warned_about(main, tmp_path, caplog, spoil, message):
    dataset, results = json.loads(json.dumps(_pair()))
    spoil(dataset, results)
    assert main(_write(tmp_path, gt=dataset, dt=results)) == 0
    assert message in caplog.text


@pytest.mark.parametrize(
    "spoil, name, message",
    [
        (lambda d, r: [x.update(category_id="1") for x in r], "dt", "these ids are text ('1')"),
        (lambda d, r: [x.update(bbox=[0.1, 0.2, 0.3, 0.4]) for x in r], "dt", "fractions"),
        (lambda d, r: [x.update(category_id=7) for x in r], "dt", "6 of 6 detections left out"),
        (
            lambda d, r: [x.update(category_id="a") for x in r],
            "dt",
            "these are names, not ids: the id of 'a' is 1",
        ),
        (
            lambda d, r: [
                d["images"][0].update(file_name="train/photo 1.jpg"),
                r[0].update(image_id="photo 1"),
            ],
            "dt",
            "these are names, not ids: the id of 'photo 1' is ",
        ),
        (lambda d, r: d["annotations"].append(d["annotations"][0]), "gt", "unique ids"),
        (lambda d, r: d["categories"].append({"id": 1, "name": "c"}), "gt", "unique ids"),
        (lambda d, r: [a["bbox"].__setitem__(2, -2) for a in d["annotations"]], "gt", "of zero"),
        (lambda d, r: [a.update(image_id="1") for a in d["annotations"]], "gt", "text ('1')"),
    ],
)
def test_mistakes_are_named_with_their_file(main, tmp_path, capsys, spoil, name, message):
    dataset, results = json.loads(json.dumps(_pair()))
    spoil(dataset, results)
    assert main(_write(tmp_path, gt=dataset, dt=results)) == 2
    printed = capsys.readouterr().err
    assert f"{name}.json: " in printed and message in printed and printed.count("\n") == 1


def test_figures_are_drawn_of_every_class_and_the_mean(main, tmp_path):
    folder = tmp_path / "figures"
    assert main([GROUND_TRUTH, DETECTIONS, "--figures", str(folder)]) == 0
    names = sorted(os.listdir(folder))
    assert names[-1] == "mean.png" and len(names) > 2
    assert all(name[3:].startswith("_class_") for name in names[:-1])


def test_figures_that_cannot_be_written_are_no_traceback(main, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([GROUND_TRUTH, DETECTIONS, "--figures", str(tmp_path / "file")]) == 2
    assert "error: --figures: " in capsys.readouterr().err


def test_two_files_are_compared(main, tmp_path, capsys):
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(json.loads(Path(DETECTIONS).read_text())[::2]))
    arguments = [GROUND_TRUTH, DETECTIONS, "--compare", str(worse), "--samples", "20"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (float(cell) for cell in lines[-1].split()[1:3])
    assert first == pytest.approx(90.011, abs=0.006) and second > first


def test_a_second_file_of_which_no_detection_meets_an_object_is_warned_of(main, tmp_path, caplog):
    shifted = [d | {"bbox": [0, 0, 2, 2]} for d in json.loads(Path(DETECTIONS).read_text())]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(shifted))
    assert main([GROUND_TRUTH, DETECTIONS, "--compare", str(other), "--samples", "20"]) == 0
    assert f"{other}: no detection meets an object" in caplog.text
    assert f"{DETECTIONS}: no detection" not in caplog.text


@pytest.mark.parametrize("area", ["small", "medium", "large"])
def test_areas_have_the_golden_numbers(main, area, tmp_path):
    out = tmp_path / "lrp.json"
    assert main([GROUND_TRUTH, DETECTIONS, "--area", area, "--json", str(out)]) == 0
    expected = json.loads((CASE / "expected.json").read_text())["mean_by_area"][area]
    written = json.loads(out.read_text())
    assert [written[key] for key in QUANTITIES[:4]] == [
        percent(expected[key]) for key in QUANTITIES[:4]
    ]
