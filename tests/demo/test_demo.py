"""demo/train_demo.py and demo/demo.py, as processes on a tiny dataset and function by function."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from PIL import Image

from detectron2.structures import Instances

import alrp
from alrp.config import load_config
from alrp.errors import UserError
from alrp.modeling import DetectionThresholds

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "alrp_retinanet_R_18_FPN_ATSS_demo.yaml")
NAMES = ["disc", "rectangle", "triangle"]
SPLITS = ("train", "val")
LRP_KEYS = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("demo/train_demo.py")


@pytest.fixture(scope="module")
def demo(load_script):
    return load_script("demo/demo.py")


def overrides(root, **more):
    """KEY VALUE pairs of a run of seconds on a dataset in ``root``."""
    datasets = [[f"tiny_{s}", f"{root}/annotations/{s}.json", f"{root}/{s}"] for s in SPLITS]
    keys = {
        "DATASETS.COCO_FORMAT": datasets,
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": ("tiny_val",),
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MAX_SIZE_TRAIN": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 40,
        "SOLVER.STEPS": (),
        "SEED": 1,
    }
    keys.update({key.replace("__", "."): value for key, value in more.items()})
    return [str(x) for pair in keys.items() for x in pair]


def run(script, arguments, cwd):
    # The package that this process tests, also if it was found by a relative path.
    packages = str(Path(alrp.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, str(ROOT / script), "--config-file", CONFIG, *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": packages,
        },
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and standard output of one run of demo/train_demo.py."""
    folder = tmp_path_factory.mktemp("demo")
    sizes = ["--num-train", 8, "--num-val", 3, "--image-size", 64]
    done = run("demo/train_demo.py", ["--output", "out", *sizes, *overrides("data")], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def table_of(lines):
    """Cells of the result table by class."""
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["class", "AP"])
    return {line.split()[0]: line.split()[1:] for line in lines[start + 1 : start + 5]}


def as_cell(value, digits=1):
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


@pytest.mark.slow
def test_demo_announces_four_steps_and_its_files(finished):
    folder, output = finished
    lines = output.splitlines()
    assert [line[:5] for line in lines if line.startswith("(")] == [f"({i}/4)" for i in range(1, 5)]
    for name in ("curves.png", "detections.png", "overview.jpg", "model_final.pth", "log.txt"):
        assert f"  {Path('out') / name}" in lines
        assert (folder / "out" / name).stat().st_size > 0
    assert lines[-1].startswith("Training took 0:0")


@pytest.mark.slow
def test_demo_prints_the_losses_as_they_come(finished):
    folder, output = finished
    rows = [json.loads(x) for x in (folder / "out" / "metrics.json").read_text().splitlines()]
    expected = {
        f"{row['iteration'] + 1}/40": [f"{row['alrp/loss']:.3f}", f"{row['alrp/loc_error']:.3f}"]
        for row in rows
        if "alrp/loss" in row
    }
    printed = [line.split() for line in output.splitlines() if "/40 " in line]
    assert {cells[0]: cells[1:3] for cells in printed} == expected
    assert list(expected) == ["20/40", "40/40"]


@pytest.mark.slow
def test_demo_table_has_the_numbers_the_evaluation_wrote(finished):
    folder, output = finished
    last = json.loads((folder / "out" / "metrics.json").read_text().splitlines()[-1])
    lrp = json.loads((folder / "out" / "inference" / "lrp_results.json").read_text())
    table = table_of(output.splitlines())
    assert table["mean"][:3] == [as_cell(last[f"bbox/{key}"]) for key in ("AP", "AP50", "AP75")]
    assert table["mean"][3:7] == [as_cell(lrp[key]) for key in LRP_KEYS]
    for name in NAMES:
        values = lrp["per_class"][name]
        assert table[name][0] == as_cell(last[f"bbox/AP-{name}"])
        assert table[name][3:7] == [as_cell(values[key]) for key in LRP_KEYS]
        assert table[name][7] == as_cell(values["threshold"], 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size",
    [("curves.png", (1200, 975)), ("detections.png", (1536, 840)), ("overview.jpg", (819, 448))],
)
def test_demo_pictures_are_whole_and_not_blank(finished, name, size):
    with Image.open(finished[0] / "out" / name) as image:
        assert image.format == ("JPEG" if name.endswith("jpg") else "PNG")
        assert image.size == size
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colours) > 50


@pytest.mark.slow
def test_the_model_of_the_demo_brings_its_thresholds(finished):
    folder, _ = finished
    stored = torch.load(folder / "out" / "model_final.pth")["model"]["shown.thresholds"]
    lrp = json.loads((folder / "out" / "inference" / "lrp_results.json").read_text())["per_class"]
    scores = [lrp[name]["threshold"] for name in NAMES]
    assert stored.tolist() == pytest.approx(
        [s or DetectionThresholds.NEVER for s in scores], rel=2e-4
    )


@pytest.mark.slow
def test_trained_model_draws_into_images(finished, tmp_path):
    folder, _ = finished
    inputs = [folder / "data" / "val" / f"{i:06d}.png" for i in (1, 2)]
    weights = ["--opts", *overrides(folder / "data"), "MODEL.WEIGHTS", "out/model_final.pth"]
    options = ["--input", *inputs, "--output", tmp_path / "drawn"]
    done = run("demo/demo.py", [*options, *weights], folder)
    assert done.returncode == 0, done.stderr

    thresholds = folder / "out" / "inference" / "lrp_results.json"
    lrp = json.loads(thresholds.read_text())["per_class"]
    least = [lrp[name]["threshold"] for name in NAMES]
    results = json.loads((thresholds.parent / "coco_instances_results.json").read_text())
    for image_id, path in enumerate(inputs, start=1):
        kept = [r for r in results if r["image_id"] == image_id]
        kept = [r for r in kept if r["score"] >= (least[r["category_id"] - 1] or math.inf)]
        picture = tmp_path / "drawn" / path.name
        assert f"{path}: {len(kept)} objects, see {picture}" in done.stdout.splitlines()
        with Image.open(picture) as image:
            assert image.size == (600, 600)


@pytest.mark.slow
def test_failed_training_shows_its_log_and_leaves_no_earlier_result(tool, tmp_path):
    out = tmp_path / "out"
    (out / "inference").mkdir(parents=True)
    for name in (
        tool.MARK,
        "metrics.json",
        "detections.png",
        "inference/lrp_results.json",
        "notes",
    ):
        (out / name).touch()
    sizes = ["--num-train", 4, "--num-val", 1, "--image-size", 32]
    wrong = overrides("data", MODEL__RETINANET__NUM_CLASSES=5)
    done = run("demo/train_demo.py", ["--output", "out", *sizes, *wrong], tmp_path)
    assert done.returncode == 1
    assert "train_net.py failed; out/console.txt ends with" in done.stderr
    assert "the model has 5 classes, but dataset 'tiny_train' has 3" in done.stderr
    assert "Traceback" not in done.stderr
    left = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert left == {tool.MARK, "console.txt", "inference", "notes"}


def test_folder_of_someone_else_is_left_alone(tool, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(UserError, match="name another one with --output"):
        tool.clear_earlier_results(tmp_path)
    with pytest.raises(UserError, match="name another one with --output"):
        tool.clear_earlier_results(tmp_path / "metrics.json")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "mine"


def test_new_and_empty_folders_are_taken(tool, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/deep"):
        tool.clear_earlier_results(tmp_path / name)
        tool.clear_earlier_results(tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == [tool.MARK]


def config(tool, *pairs):
    arguments = ["--config-file", CONFIG, *overrides("data"), *map(str, pairs)]
    return tool.setup_config(tool.parse_args(arguments))


def test_dataset_goes_where_the_config_looks_for_it(tool):
    assert tool.dataset_root(config(tool)) == Path.cwd() / "data"


@pytest.mark.parametrize(
    "pairs, message",
    [
        (("DATASETS.TRAIN", "()"), "expected one training and one test dataset"),
        (("DATASETS.TEST", "()"), "expected one training and one test dataset"),
        (("DATASETS.TEST", "('tiny_train',)"), "expected one training and one test dataset"),
        (("DATASETS.TRAIN", "('unknown',)"), "expected one training and one test dataset"),
        (("MODEL.ALRP.LOSS_TYPE", "ap"), "expected MODEL.ALRP.LOSS_TYPE alrp"),
        (("SOLVER.MAX_ITER", 19), "SOLVER.MAX_ITER 20 or more, but got alrp and 19"),
    ],
)
def test_config_that_the_demo_cannot_use_is_refused_at_once(tool, pairs, message):
    with pytest.raises(UserError, match=message):
        tool.dataset_root(config(tool, *pairs))


def test_undefined_numbers_are_dashes(tool):
    undefined = dict.fromkeys((*LRP_KEYS, "threshold"))
    lrp = {**dict.fromkeys(LRP_KEYS, 12.34), "per_class": {"disc": undefined}}
    row = {"bbox/AP": 1.0, "bbox/AP50": 2.26, "bbox/AP75": math.nan, "bbox/AP-disc": math.nan}
    lines = tool.result_table(row, lrp).splitlines()
    assert lines[1].split() == ["disc", *["-"] * 8]
    assert lines[2].split() == ["mean", "1.0", "2.3", "-", *["12.3"] * 4, "-"]
    assert len({len(line) for line in lines}) == 1


def test_progress_line_tells_times_in_hours_minutes_seconds(tool):
    row = {"iteration": 39, "alrp/loss": 0.5, "alrp/loc_error": 0.25}
    row.update({"alrp/self_balance_weight": 50.0, "eta_seconds": 3725.2})
    cells = tool.progress_line(row, 1000, 61.4).split()
    assert cells == ["40/1000", "0.500", "0.250", "50.0", "0:01:01", "1:02:05"]


@pytest.mark.parametrize(
    "names, message",
    [
        (["missing.png"], "there is no file missing.png"),
        (["sub"], r"sub is a folder; name the images in it, as sub/\*"),
        (["a.png"], "a.png would be written to a.png, which is an input"),
        (["sub/b.jpg", "sub/b.png"], "sub/b.png would be written to b.png"),
    ],
)
def test_inputs_are_checked_before_the_model_is_built(demo, tmp_path, monkeypatch, names, message):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.jpg", "sub/b.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        demo.output_paths(names, ".")


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_is_a_file_is_refused(demo, tmp_path, capsys, output):
    (tmp_path / "file").touch()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    arguments = ["--config-file", CONFIG, "--input", str(tmp_path / "a.bmp")]
    assert demo.main([*arguments, "--output", str(tmp_path / output)]) == 1
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err


def test_missing_weights_are_explained_without_a_traceback(demo, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    arguments = ["--config-file", CONFIG, "--input", str(tmp_path / "a.bmp")]
    assert demo.main([*arguments, "--output", str(tmp_path / "out"), "--opts", "SEED", "1"]) == 1
    assert "error: MODEL.WEIGHTS: expected the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DEVICE", "foo"),
        ("MODEL.META_ARCHITECTURE", "Foo"),
        ("MODEL.RESNETS.DEPTH", "33"),
        ("INPUT.FORMAT", "XYZ"),
    ],
)
def test_wrong_keys_are_named_without_a_traceback(demo, tmp_path, capsys, key, value):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    arguments = ["--config-file", CONFIG, "--input", str(tmp_path / "a.bmp")]
    assert demo.main([*arguments, "--output", str(tmp_path / "out"), "--opts", key, value]) == 1
    assert f"error: {key}: " in capsys.readouterr().err


def test_a_dataset_of_another_number_of_classes_is_refused(demo, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    file = tmp_path / "four.json"
    categories = [{"id": i, "name": name} for i, name in enumerate("abcd", start=1)]
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    arguments = ["--config-file", CONFIG, "--input", str(tmp_path / "a.bmp")]
    arguments += ["--output", str(tmp_path / "out"), "--opts", "DATASETS.COCO_FORMAT"]
    arguments += [f"[['four', '{file}', '{tmp_path}']]", "DATASETS.TEST", "('four',)"]
    assert demo.main(arguments) == 1
    said = capsys.readouterr().err
    assert "error: MODEL.RETINANET.NUM_CLASSES: the model has 3 classes, but the dataset" in said


@pytest.mark.parametrize("confidence", ["nan", "-0.1", "50", "half"])
def test_a_confidence_that_is_no_score_is_refused(demo, capsys, confidence):
    arguments = ["--config-file", CONFIG, "--input", "a.png", "--output", "out"]
    with pytest.raises(SystemExit):
        demo.parse_args([*arguments, "--confidence", confidence])
    assert "argument --confidence: " in capsys.readouterr().err


def write_thresholds(path, **scores):
    path.parent.mkdir(exist_ok=True)
    per_class = {name: {"threshold": score} for name, score in scores.items()}
    path.write_text(json.dumps({"per_class": per_class}))
    return str(path)


def chosen_scores(demo, weights, *options, stored=None, asked=-1.0):
    args = demo.parse_args(["--config-file", "c", "--input", "i", "--output", "o", *options])
    cfg = load_config(CONFIG, ["MODEL.ALRP.SCORE_THRESH_PREDICT", str(asked)])
    cfg.MODEL.WEIGHTS = str(weights)
    model = DetectionThresholds(2)
    model.thresholds = stored
    return demo.least_scores(args, cfg, model, ["a", "b"]).tolist()


def test_scores_come_from_the_evaluation_beside_the_weights_unless_told(demo, tmp_path, capsys):
    weights = tmp_path / "model_final.pth"
    assert chosen_scores(demo, weights) == 0.5
    assert "which is a guess" in capsys.readouterr().out
    beside = write_thresholds(tmp_path / "inference" / "lrp_results.json", a=0.25, b=0.125)
    assert chosen_scores(demo, weights) == pytest.approx([0.25, 0.125], rel=2e-4)
    assert beside in capsys.readouterr().out
    assert chosen_scores(demo, weights, "--confidence", "0.75") == 0.75
    assert chosen_scores(demo, weights, asked=0.25) == 0.25
    other = write_thresholds(tmp_path / "other.json", a=0.5, b=None)
    expected = pytest.approx([0.5, DetectionThresholds.NEVER], rel=2e-4)
    assert chosen_scores(demo, weights, "--thresholds", other) == expected


def test_scores_of_the_checkpoint_come_before_those_beside_it(demo, tmp_path, capsys):
    weights, stored = tmp_path / "model_final.pth", torch.tensor([0.5, 0.25])
    write_thresholds(tmp_path / "inference" / "lrp_results.json", a=0.125, b=0.125)
    assert chosen_scores(demo, weights, stored=stored) == [0.5, 0.25]
    assert f"stored in {weights}" in capsys.readouterr().out
    assert chosen_scores(demo, weights, "--confidence", "0.75", stored=stored) == 0.75
    assert chosen_scores(demo, weights, stored=stored, asked=0.0) == 0.0


def test_an_evaluation_of_other_classes_beside_the_weights_is_not_used(demo, tmp_path, capsys):
    beside = write_thresholds(tmp_path / "inference" / "lrp_results.json", cat=0.25)
    assert chosen_scores(demo, tmp_path / "model_final.pth") == 0.5
    output = capsys.readouterr().out
    assert f"Not used: {beside}: the thresholds are of the classes ['cat']" in output


def test_a_picture_without_objects_says_why(demo):
    instances = Instances((8, 8), scores=torch.tensor([0.125, 0.25]))
    why = demo.why_nothing(instances, torch.tensor([0.5, 0.75], dtype=torch.float64))
    assert "its best detection scores 0.25, below 0.75" in why
    assert "SCORE_THRESH_TEST" in demo.why_nothing(instances[:0], torch.zeros(0))
    never = torch.full((2,), DetectionThresholds.NEVER)
    assert "of a class that is never shown" in demo.why_nothing(instances, never)
