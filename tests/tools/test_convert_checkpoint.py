"""The converter as a command: files in, files out, and what it says of those it cannot convert."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import resource
import shlex
import subprocess
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
import pytest
import torch
import torchvision
from helpers.published_shapes import MODELS, Model, published_state
from torch.testing import assert_close

from detectron2.modeling import build_model

from alrp.checkpoint.published import published_to_detectron2
from alrp.config import load_config
from alrp.engine import CheckedCheckpointer, argument_parser, setup_config
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "configs" / "COCO-Detection"
R50_ATSS = "alrp_retinanet_R_50_FPN_ATSS_100e"


@pytest.fixture(scope="module")
def main(load_script):
    return load_script("tools/convert_checkpoint.py").main


@pytest.fixture
def run(main, tmp_path, capsys, monkeypatch):
    """``run(content, *options)``: exit status and printed text for a file; OUT is "out.pth".

    ``content`` is to be saved, or the bytes of a file, or None for the "in.pth" that is there.
    """
    monkeypatch.chdir(tmp_path)

    def convert(content, *options, **saving):
        if isinstance(content, bytes):
            Path("in.pth").write_bytes(content)
        elif content is not None:
            torch.save(content, "in.pth", **saving)
        status = main(["in.pth", "out.pth", *map(str, options)])
        printed = capsys.readouterr()
        assert (status == 0) == (printed.err == "")
        return status, printed.out + printed.err

    return convert


@pytest.fixture
def fail(run):
    """As ``run``, of what must fail and leave an older OUT as it is; the text."""

    def convert(content, *options, **saving):
        Path("out.pth").write_bytes(b"older")
        status, text = run(content, *options, **saving)
        assert status == 1 and text.startswith("error: ")
        assert Path("out.pth").read_bytes() == b"older"
        assert sorted(os.listdir()) == ["in.pth", "out.pth"]
        return text

    return convert


def published(model=MODELS[R50_ATSS], **entries):
    return {"meta": {"CLASSES": ("a", "b")}, "state_dict": published_state(model), **entries}


def load_output():
    return torch.load("out.pth", weights_only=True)


def test_a_checkpoint_converts_and_the_command_to_evaluate_it_is_printed(run):
    status, text = run(published(optimizer={"state": {}}))
    assert status == 0
    assert "RetinaNet, ResNet-50, 2 anchors per location, 80 sigmoid classes" in text
    assert "354 tensors used\n0 dropped" in text and "0 left over" in text and "0 missing" in text
    assert "beside the weights: meta, optimizer" in text
    config = os.path.relpath(ROWS / f"{R50_ATSS}.yaml")
    assert f"--config-file {config} --eval-only MODEL.WEIGHTS out.pth" in text
    output = load_output()
    assert (output["__author__"], output["matching_heuristics"]) == ("alrp", False)
    assert output["meta"] == {"CLASSES": ("a", "b")} and "head.cls_score.weight" in output["model"]


@pytest.mark.parametrize("legacy", [False, True])
def test_the_way_back_restores_the_file(run, legacy):
    content = published(MODELS["alrp_retinanet_R_50_FPN_maxiou_100e"])
    assert run(content, _use_new_zipfile_serialization=not legacy)[0] == 0
    status, text = run(load_output(), "--reverse", "--verbose")
    assert status == 0
    assert "backbone.bottom_up.stem.conv1.weight -> backbone.conv1.weight" in text
    restored = load_output()
    assert restored["meta"] == content["meta"] and set(restored) == {"meta", "state_dict"}
    assert list(restored["state_dict"]) == list(content["state_dict"])
    for name, tensor in content["state_dict"].items():
        assert_close(restored["state_dict"][name], tensor, rtol=0, atol=0)


def test_all_configs_of_one_architecture_are_listed_and_one_can_be_chosen(run):
    status, text = run(published(MODELS["ce_faster_rcnn_R_50_FPN_100e"]))
    names = ["ce_faster_rcnn_R_50_FPN_100e", "ce_giou_faster_rcnn_R_50_FPN_100e"]
    assert status == 0 and all(f"\n  {os.path.relpath(ROWS / n)}.yaml" in text for n in names)
    chosen = ROWS / f"{names[1]}.yaml"
    status, text = run(load_output()["model"], "--reverse", "--config-file", chosen)
    assert status == 0 and f"of the model of {chosen}" in text
    status, text = run(load_output(), "--config-file", chosen)
    assert status == 0 and f"--config-file {chosen} --eval-only" in text


def test_another_number_of_classes_converts_and_says_which_key_to_set(run):
    status, text = run(published_state(Model(classes=7)))
    assert status == 0 and "2 anchors per location, 7 sigmoid classes" in text
    assert "it has 7 classes, unlike that config: set MODEL.RETINANET.NUM_CLASSES 7" in text
    assert "MODEL.WEIGHTS out.pth MODEL.RETINANET.NUM_CLASSES 7" in text
    assert len(load_output()["model"]["head.cls_score.bias"]) == 14


def test_a_config_of_another_model_is_named(fail):
    config = ROWS / "alrp_retinanet_R_50_FPN_maxiou_100e.yaml"
    text = fail(published(), "--config-file", config)
    assert f"does not fit the model of {config}" in text
    assert "head.bbox_pred.bias is (8,) and should be (24,)" in text


def test_an_architecture_of_no_published_row_needs_a_config_of_its_own(run):
    status, text = run(published_state(Model(anchors=3)))
    assert status == 0 and "no published config has this architecture" in text


def test_a_config_that_does_not_exist_is_named(fail):
    assert "nowhere.yaml" in fail(published(), "--config-file", "nowhere.yaml")


def test_torchvision_weights_become_a_backbone(run):
    network = torchvision.models.resnet18(weights=None)
    status, text = run(network.state_dict())
    assert status == 0 and "in.pth: a backbone" in text and "\n  fc.weight" in text
    cfg = load_config(str(ROOT / "configs" / "Shapes" / "retinanet_R_18_FPN.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    CheckedCheckpointer(model, complete=False).load("out.pth")
    expected = network.layer2[1].conv1.weight
    assert_close(model.backbone.bottom_up.res3[1].conv1.weight, expected, rtol=0, atol=0)


def test_torchvision_weights_are_checked_against_a_config(run, fail):
    backbone = torchvision.models.resnet50(weights=None).state_dict()
    status, text = run(backbone, "--config-file", ROWS / f"{R50_ATSS}.yaml")
    assert status == 0 and "MODEL.WEIGHTS out.pth, with any config of this backbone" in text
    text = fail(backbone, "--config-file", ROWS / "alrp_retinanet_R_101_FPN_ATSS_100e.yaml")
    assert "res4.6.conv1.weight is missing" in text


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone."])
def test_prefixes_of_a_lone_backbone_are_taken_off(run, prefix):
    backbone = torchvision.models.resnet18(weights=None).state_dict()
    status, text = run({f"{prefix}{name}": tensor for name, tensor in backbone.items()})
    assert status == 0 and "in.pth: a backbone" in text
    stem = load_output()["model"]["backbone.bottom_up.stem.conv1.weight"]
    assert_close(stem, backbone["conv1.weight"], rtol=0, atol=0)


def test_a_backbone_that_lacks_a_tensor_is_not_written(fail):
    backbone = torchvision.models.resnet18(weights=None).state_dict()
    del backbone["layer4.1.conv2.weight"]
    assert re.search(r"1 missing, .*\n  layer4.1.conv2.weight\n", fail(backbone))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("reverse", [False, True])
def test_weights_that_are_not_finite_are_refused(run, fail, value, reverse):
    content = published()
    if reverse:
        assert run(content)[0] == 0
        content = load_output()
    state = content["model" if reverse else "state_dict"]
    state["head.cls_score.bias" if reverse else "bbox_head.retina_cls.bias"][3] = value
    text = fail(content, *(["--reverse"] if reverse else []))
    renamed = "bbox_head.retina_cls.bias" if reverse else "head.cls_score.bias"
    assert f"tensor {renamed} holds NaN or Inf" in text


def test_the_detector_of_one_box_per_location_is_assumed_or_told_by_a_config(run, fail):
    assert run(published(MODELS["focal_foveabox_R_50_FPN_100e"]))[0] == 0
    converted = load_output()
    status, text = run(converted, "--reverse")
    assert status == 0 and "assumed to be a FoveaBox" in text
    fovea, retina = ROWS / "focal_foveabox_R_50_FPN_100e.yaml", ROWS / f"{R50_ATSS}.yaml"
    status, text = run(converted, "--reverse", "--config-file", fovea)
    assert status == 0 and "assumed" not in text
    text = fail(converted, "--reverse", "--config-file", retina)
    assert "expected a RetinaNet with 2 or 3 or 6 anchors" in text


def saved(content, **options):
    torch.save(content, "whole.pth", **options)
    data = Path("whole.pth").read_bytes()
    os.remove("whole.pth")
    return data


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.99])
def test_a_truncated_file_is_called_so(fail, share, legacy):
    state = {"state_dict": {"backbone.conv1.weight": torch.rand(64, 3, 7, 7)}}
    data = saved(state, _use_new_zipfile_serialization=not legacy)
    text = fail(data[: int(share * len(data))])
    assert "in.pth cannot be read" in text and "truncated" in text and "weights_only" not in text


def test_a_file_cut_off_in_the_name_of_a_class_is_called_truncated(fail):
    data = saved({"state_dict": {"a": torch.zeros(1)}}, _use_new_zipfile_serialization=False)
    text = fail(data[: data.index(b"_rebuild_tensor") + 8])
    assert "truncated" in text and "classes" not in text


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_classes_are_named_and_never_loaded(fail, legacy):
    content = published(config=argparse.Namespace(lr=1), version=Fraction(1, 2))
    text = fail(content, _use_new_zipfile_serialization=not legacy)
    found = "argparse.Namespace" if legacy else "argparse.Namespace, fractions.Fraction"
    assert f"objects of the classes {found} beside its tensors" in text
    assert "run code that the file chooses" in text


@pytest.mark.parametrize("legacy", [False, True])
def test_the_command_for_foreign_classes_makes_a_file_that_converts(fail, main, legacy):
    content = published(config=argparse.Namespace(lr=1))
    text = fail(content, _use_new_zipfile_serialization=not legacy)
    command = text.splitlines()[-1].strip()
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    os.remove("out.pth")
    assert main(["NEW.pth", "out.pth"]) == 0
    assert list(load_output()["model"]) == list(
        published_to_detectron2(published()["state_dict"]).state
    )


def test_the_command_to_evaluate_is_one_that_train_net_takes(main, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(published_state(Model(classes=7)), "in.pth")
    assert main(["in.pth", "out of it.pth"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:2] == ["python", "train_net.py"]
    args = argument_parser().parse_args(words[2:])
    cfg = setup_config(args)
    assert args.eval_only and cfg.MODEL.WEIGHTS.endswith("out of it.pth")
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 7


def with_mask_head():
    state = published_state(MODELS["ce_faster_rcnn_R_50_FPN_100e"])
    return {"state_dict": {**state, "roi_head.mask_head.conv_logits.bias": torch.zeros(80)}}


def without_p7():
    state = published_state(Model())
    del state["neck.fpn_convs.4.conv.bias"]
    return {"state_dict": state}


SSD = {"backbone.features.0.weight": torch.ones(1), "bbox_head.cls_convs.0.weight": torch.ones(1)}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>404</html>", r"cannot be read \(it is a text file\)"),
        (b"", r"cannot be read \(it is empty\)"),
        (pickle.dumps({"a": 1}, protocol=4), r"\(it is a plain pickle, not written by torch.save"),
        ([1, 2], "expected a dictionary, but the file holds a list"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "expected weights, .* 'optimizer'"),
        ({"state_dict": OrderedDict()}, "expected weights, .* 'state_dict'"),
        ({"state_dict": SSD}, r"another detector: backbone.features \(1\), bbox_head.cls_convs"),
        (with_mask_head(), r"1 left over, .*\n  roi_head.mask_head.conv_logits.bias\n"),
        (without_p7(), r"1 missing, .*\n  neck.fpn_convs.4.conv.bias\n"),
        ({"model": {"backbone.bottom_up.stem.conv1.weight": torch.ones(1)}}, "nothing to convert"),
    ],
    ids=[
        "html",
        "empty_file",
        "pickle",
        "list",
        "optimizer",
        "empty",
        "ssd",
        "mask_rcnn",
        "incomplete",
        "detectron2",
    ],
)
def test_what_cannot_be_converted_is_explained(fail, content, message):
    text = fail(content)
    assert re.search(message, text), text


@pytest.mark.parametrize("target", ["in.pth", "./in.pth", "link.pth"])
def test_the_input_is_never_overwritten(main, run, capsys, target):
    torch.save(published(), "in.pth")
    os.symlink("in.pth", "link.pth")
    before = Path("in.pth").read_bytes()
    assert main(["in.pth", target]) == 1
    assert "the same file" in capsys.readouterr().err
    assert Path("in.pth").read_bytes() == before


@pytest.mark.parametrize("target", ["folder", "nowhere/out.pth"])
def test_a_place_that_cannot_be_written_is_named(main, run, capsys, target):
    os.mkdir("folder")
    torch.save(published(), "in.pth")
    assert main(["in.pth", target]) == 1
    assert f"{target} cannot be written" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["folder", "in.pth"] and not os.listdir("folder")


def test_a_link_is_followed_and_stays(main, run):
    torch.save(published(), "in.pth")
    os.symlink("older.pth", "out.pth")
    Path("older.pth").write_bytes(b"older")
    assert main(["in.pth", "out.pth"]) == 0
    assert os.readlink("out.pth") == "older.pth" and "model" in load_output()


@pytest.mark.parametrize("target", ["pipe", "link.pth"])
def test_a_pipe_is_not_replaced_by_a_file(main, run, capsys, target):
    torch.save(published(), "in.pth")
    os.mkfifo("pipe")
    os.symlink("pipe", "link.pth")
    assert main(["in.pth", target]) == 1
    assert f"{target} cannot be written: it is no plain file" in capsys.readouterr().err
    assert Path("pipe").is_fifo()


def test_a_full_disk_leaves_the_older_file(fail):
    content = published(MODELS["alrp_retinanet_R_50_FPN_maxiou_100e"])  # 5 MB
    _, hard = limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    torch.save(content, "in.pth")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
        text = fail(None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "out.pth cannot be written" in text


def test_a_missing_file_is_named(main, run, capsys):
    assert main(["nowhere.pth", "out.pth"]) == 1
    assert "nowhere.pth is not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [published(), published_state(Model())], ids=["wrapped", "state_dict"]
)
def test_loading_a_published_file_without_converting_it_names_this_tool(main, tmp_path, content):
    torch.save(content, tmp_path / "published.pth")
    with pytest.raises(UserError, match="convert it first: ") as raised:
        CheckedCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "published.pth"))
    words = shlex.split(str(raised.value).rpartition("convert it first: ")[2])
    assert words[:2] == ["python", "tools/convert_checkpoint.py"]
    assert main([words[2], str(tmp_path / words[3])]) == 0
