"""benchmark_evaluation.py: all evaluate the same detections, and what it writes."""

from __future__ import annotations

import json
import pytest


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("benchmarks/benchmark_evaluation.py")


def test_seconds_of_all_evaluations_are_written(tool, tmp_path, capsys, monkeypatch):
    results, on_files = {}, {}

    def keeping(function):
        def call(kind, *args):
            results[kind.__name__] = function(kind, *args)
            return results[kind.__name__]

        return call

    def keep_coco(*files, evaluate=tool.evaluate_by_pycocotools):
        on_files["coco"] = evaluate(*files)

    def keep_lrp(files, main=tool.alrp_evaluate.main):
        assert main([*files, "--json", str(tmp_path / "lrp.json")]) == 0
        on_files["lrp"] = json.loads((tmp_path / "lrp.json").read_text())["oLRP"]

    monkeypatch.setattr(tool, "evaluate", keeping(tool.evaluate))
    monkeypatch.setattr(tool, "evaluate_by_pycocotools", keep_coco)
    monkeypatch.setattr(tool.alrp_evaluate, "main", keep_lrp)
    path = tmp_path / "figures.json"
    options = "--images 12 --detections 30 --classes 5 --repeats 1".split()
    assert tool.main([*options, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["images"] == 12 and document["detections"] == 30
    assert list(document["seconds"]) == list(tool.RIVALS)
    assert all(seconds > 0 for seconds in document["seconds"].values())
    # Neither all right nor all wrong, or the evaluators would take short cuts.
    assert 5 < results["COCOEvaluator"]["bbox"]["AP"] < 95
    assert 5 < results["LRPEvaluator"]["lrp"]["oLRP"] < 95
    precision = on_files["coco"].eval["precision"][..., 0, -1]
    assert 100 * precision[precision >= 0].mean() == pytest.approx(
        results["COCOEvaluator"]["bbox"]["AP"]
    )
    assert on_files["lrp"] == pytest.approx(results["LRPEvaluator"]["lrp"]["oLRP"])
    output = capsys.readouterr().out
    for name in ("COCOEvaluator", "LRPEvaluator", "pycocotools", "alrp-evaluate"):
        assert f"| {name} |" in output


def test_detections_lie_in_their_image(tool, generator):
    args = tool.parse_args(["--images", "20", "--classes", "5"])
    images = [tool.make_image(args, generator) for _ in range(args.images)]
    assert all(len(detections) == 100 for _, detections in images)
    for objects, detections in images:
        boxes = detections.pred_boxes.tensor
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0 and boxes.max() <= 512
        assert detections.pred_classes.max() < 5 and len(objects) == tool.NUM_OBJECTS


def test_fewer_detections_than_objects_twice_are_refused(tool, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--detections", "13"])
    assert stopped.value.code == 2
    assert (
        "argument --detections: expected a whole number of at least 14" in capsys.readouterr().err
    )
