"""tools/export_model.py on a tiny detector."""

import pytest
import torch

from detectron2.modeling import build_model

from alrp.config import load_config
from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.export import load_torchscript

CONFIG = "configs/Shapes/alrp_retinanet_R_18_FPN_ATSS_demo.yaml"


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("tools/export_model.py")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of a detector with random weights, and a data set with two test images."""
    root = tmp_path_factory.mktemp("export")
    make_shapes_dataset(root / "data", num_train=1, num_val=2, image_size=64)
    dataset = ["tiny_exported", f"{root}/data/annotations/val.json", f"{root}/data/val"]
    opts = ["MODEL.WEIGHTS", f"{root}/model.pth", "MODEL.FPN.OUT_CHANNELS", "32"]
    opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "INPUT.MIN_SIZE_TEST", "64"]
    opts += ["DATASETS.COCO_FORMAT", f"[{dataset}]"]
    opts += ["DATASETS.TRAIN", "('tiny_exported',)", "DATASETS.TEST", "('tiny_exported',)"]
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, opts))
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)
    torch.save({"model": model.state_dict()}, root / "model.pth")
    return ["--config-file", CONFIG], ["--opts", *opts]


def test_a_checked_file_is_written(tool, arguments, tmp_path, capsys):
    first, last = arguments
    path = tmp_path / "model.pt"
    assert tool.main([*first, "--output", str(path), *last]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4] == f"Wrote {path}: image -> boxes, scores, classes"
    assert [line.split(":")[0] for line in lines[-3:]] == ["  64 x 64", "  48 x 64", "  64 x 80"]
    assert len(load_torchscript(path)(torch.zeros(3, 40, 50))) == 3


def test_a_file_that_detects_something_else_is_not_left(tool, arguments, tmp_path, monkeypatch):
    first, last = arguments
    other = load_torchscript  # of the same input, moved by a pixel

    def moved(path):
        return lambda image: (other(path)(image)[0] + 1, *other(path)(image)[1:])

    monkeypatch.setattr(tool, "load_torchscript", moved)
    assert tool.main([*first, "--output", str(tmp_path / "model.pt"), *last]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "opts", "message"),
    [
        (["--sample-image", "none.png"], [], "there is no file none.png; name an image"),
        ([], ["DATASETS.TEST", "('nowhere',)"], "no image of DATASETS.TEST"),
        ([], ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.99999"], "the model finds nothing in it"),
        ([], ["MODEL.WEIGHTS", "none.pth"], "MODEL.WEIGHTS: expected the checkpoint"),
    ],
)
def test_what_is_missing_is_named(tool, arguments, tmp_path, capsys, options, opts, message):
    first, last = arguments
    path = tmp_path / "model.onnx"
    assert tool.main([*first, "--output", str(path), *options, *last, *opts]) == 1
    assert message in capsys.readouterr().err
    assert not path.exists()
