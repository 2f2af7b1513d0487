"""Converted models give what the published code gave with the same weights, stage by stage.

The weights follow a rule (``published_model``), the figures were stored; ``golden/README.md``.
"""

from __future__ import annotations

import json
import numpy as np
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
import pytest
import torch
from helpers.published_model import golden_arrays, listed, network_input, published_image, weights
from PIL import Image
from torch import nn
from torch.testing import assert_close

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes, ImageList, Instances

from alrp.config import load_config
from alrp.data.dataset_mapper import build_mapper
from alrp.engine import CheckedCheckpointer

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"A": "alrp_retinanet_R_50_FPN_ATSS_100e", "E": "ce_faster_rcnn_R_50_FPN_100e"}
OUTPUTS = dict(rtol=0, atol=5e-4)
STAGES = dict(rtol=0, atol=2e-4)  # backbone and pyramid


class Converted(NamedTuple):
    """A model with the weights of a stored run."""

    model: nn.Module
    cfg: CfgNode
    file: Path  # converted checkpoint


def convert_and_load(tool, case, folder):
    """The model of a converted checkpoint; ``tool`` is the module of the converter."""
    published, file = folder / "published.pth", folder / "converted.pth"
    torch.save({"meta": {"CLASSES": ("person",)}, "state_dict": weights(case)}, published)
    assert tool.main([str(published), str(file)]) == 0
    cfg = load_config(str(ROOT / "configs" / "COCO-Detection" / f"{ROWS[case]}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    CheckedCheckpointer(model).load(str(file))
    return Converted(model, cfg, file)


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("tools/convert_checkpoint.py")


@pytest.fixture(scope="module")
def retinanet(tool, tmp_path_factory):
    return convert_and_load(tool, "A", tmp_path_factory.mktemp("A"))


@pytest.fixture(scope="module")
def faster_rcnn(tool, tmp_path_factory):
    return convert_and_load(tool, "E", tmp_path_factory.mktemp("E"))


def compare(figures, name, tensor, rtol, atol):
    """A tensor with what is stored of it: all, or a sample and three sums."""
    assert tensor.shape == tuple(figures[f"{name}_shape"]), name
    if name in figures:
        actual, expected = tensor, torch.from_numpy(figures[name])
    else:
        actual = tensor.flatten()[torch.from_numpy(figures[f"{name}_index"])]
        expected = torch.from_numpy(figures[f"{name}_values"])
    assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")
    if f"{name}_stats" in figures:
        _, absolute_sum, largest = figures[f"{name}_stats"]
        assert tensor.double().abs().sum().item() == pytest.approx(absolute_sum, rel=1e-4), name
        assert tensor.abs().max().item() == pytest.approx(largest, abs=atol), name


def assert_same_detections(actual, expected, atol_boxes=0.05, atol_scores=1e-4):
    """Two sets (boxes, scores, labels) match one to one by label and box, in any order."""
    boxes, scores, labels = map(torch.as_tensor, actual)
    expected_boxes, expected_scores, expected_labels = map(torch.as_tensor, expected)
    assert sorted(labels.tolist()) == sorted(expected_labels.tolist())
    distances = (boxes[:, None] - expected_boxes).abs().amax(2)
    distances[labels[:, None] != expected_labels] = float("inf")
    partners = distances.argmin(0)
    assert partners.unique().numel() == len(expected_boxes)
    assert distances.amin(0).max() <= atol_boxes
    assert_close(scores[partners], expected_scores, rtol=0, atol=atol_scores)


def arrays_of(instances):
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


def stored(figures, prefix="det"):
    return [figures[f"{prefix}_{part}"] for part in ("boxes", "scores", "labels")]


@pytest.mark.parametrize("case", ["A", "E"])
def test_the_rule_gives_the_weights_of_the_stored_run(case):
    figures, state = listed(case), weights(case)
    assert list(state) == list(figures)
    for name, (shape, total, absolute_total, first) in figures.items():
        values = state[name].double()
        assert list(values.shape) == shape
        sums = torch.stack([values.sum(), values.abs().sum()])
        expected = torch.tensor([total, absolute_total], dtype=torch.float64)
        assert_close(sums, expected, rtol=1e-6, atol=1e-6 * (1 + absolute_total))
        assert_close(values.flatten()[:3].tolist(), first, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def check_backbone(model, figures, image, level_names):
    """Compare backbone and pyramid; the levels of the latter."""
    compare(figures, "input", image, rtol=0, atol=0)
    for name, output in model.backbone.bottom_up(image).items():
        compare(figures, f"backbone_level{int(name[-1]) - 2}", output, **STAGES)
    features = model.backbone(image)
    for i, name in enumerate(level_names):
        compare(figures, f"fpn_level{i}", features[name], **STAGES)
    return features


@torch.no_grad()
def test_retinanet_agrees_from_the_network_input_to_the_detections(retinanet):
    model, figures, image = retinanet.model, golden_arrays("case_A_network"), network_input("A")
    features = check_backbone(model, figures, image, model.head_in_features)
    levels = [features[name] for name in model.head_in_features]
    predictions = model.head(levels)
    for kind, outputs in zip(("cls", "box"), predictions):
        for i, output in enumerate(outputs):
            compare(figures, f"{kind}_level{i}", output, **OUTPUTS)

    images = ImageList(image, [tuple(figures["img_shape"])])
    assert_same_detections(
        arrays_of(model.forward_inference(images, levels, predictions)[0]), stored(figures)
    )
    model.max_detections_per_image = 10**4
    uncapped = model.forward_inference(images, levels, predictions)[0]
    model.max_detections_per_image = retinanet.cfg.TEST.DETECTIONS_PER_IMAGE
    # The list was stored down to a score a little above the threshold.
    assert_same_detections(
        arrays_of(uncapped[uncapped.scores > 0.0505]), stored(figures, "det_uncapped")
    )


@pytest.fixture
def image_file(tmp_path):
    """The image of the stored run, as a file."""
    Image.fromarray(published_image()[..., ::-1]).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@torch.no_grad()
def test_retinanet_agrees_from_an_image_file_to_the_head(retinanet, image_file):
    model, figures = retinanet.model, golden_arrays("case_A_image")
    sample = build_mapper(retinanet.cfg, is_train=False)({"file_name": str(image_file)})
    assert (sample["height"], sample["width"], 3) == tuple(figures["ori_shape"])
    images = model.preprocess_image([sample])
    assert images.image_sizes[0] == tuple(figures["img_shape"][:2])
    assert images.tensor.shape[2:] == tuple(figures["pad_shape"][:2])
    compare(figures, "input", images.tensor, rtol=0, atol=1e-5)

    features = model.backbone(images.tensor)
    levels = [features[name] for name in model.head_in_features]
    predictions = model.head(levels)
    for kind, outputs in zip(("cls", "box"), predictions):
        for i, output in enumerate(outputs):
            compare(figures, f"{kind}_level{i}", output, **OUTPUTS)
    in_network_frame = model.forward_inference(images, levels, predictions)[0]
    assert_same_detections(arrays_of(in_network_frame), stored(figures, "det_network_frame"))


@pytest.mark.slow
def test_the_command_writes_the_published_detections_for_the_test_server(
    retinanet, image_file, tmp_path
):
    """The whole way: image file to result file, of a built-in dataset without annotations."""
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "test2017").mkdir()
    image_file.rename(coco / "test2017" / "image.png")
    metadata = MetadataCatalog.get("coco_2017_val")
    ids = list(metadata.thing_dataset_id_to_contiguous_id)
    info = {
        "images": [{"id": 17, "file_name": "image.png", "height": 333, "width": 517}],
        "categories": [{"id": i, "name": n} for i, n in zip(ids, metadata.thing_classes)],
    }
    (coco / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(info))
    done = subprocess.run(
        [sys.executable, "train_net.py", "--eval-only"]
        + ["--config-file", f"configs/COCO-Detection/{ROWS['A']}.yaml"]
        + ["MODEL.WEIGHTS", str(retinanet.file), "MODEL.DEVICE", "cpu"]
        + ["DATASETS.TEST", "('coco_2017_test-dev',)", "OUTPUT_DIR", str(tmp_path / "output")]
        + ["DATALOADER.NUM_WORKERS", "0"],
        cwd=ROOT,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "output" / "inference"
    assert not (folder / "lrp_results.json").exists()
    results = json.loads((folder / "coco_instances_results.json").read_text())
    assert {result["image_id"] for result in results} == {17}
    boxes = np.array([result["bbox"] for result in results], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([result["score"] for result in results], dtype=np.float32)
    labels = np.array([ids.index(result["category_id"]) for result in results])
    assert_same_detections((boxes, scores, labels), stored(golden_arrays("case_A_image")))


@torch.no_grad()
def test_faster_rcnn_agrees_from_the_network_input_to_the_detections(faster_rcnn):
    model, figures, image = faster_rcnn.model, golden_arrays("case_E_network"), network_input("E")
    rpn = model.proposal_generator
    features = check_backbone(model, figures, image, rpn.in_features)
    for kind, outputs in zip(("cls", "box"), rpn.rpn_head([features[n] for n in rpn.in_features])):
        for i, output in enumerate(outputs):
            compare(figures, f"rpn_{kind}_level{i}", output, **OUTPUTS)

    images = ImageList(image, [tuple(figures["img_shape"])])
    proposals = rpn(images, features)[0]
    compare_proposals(proposals[0], figures)
    detections = model.roi_heads(images, features, proposals)[0][0]
    assert_same_detections(arrays_of(detections), stored(figures))


def compare_proposals(proposals, figures):
    """All but proposals without area, which Detectron2 leaves out and then takes the next best."""
    expected = torch.from_numpy(figures["proposals"])
    has_area = (expected[:, 2:] > expected[:, :2]).all(1)
    assert len(proposals) == len(expected) and (~has_area).sum() == 1
    kept = proposals[: int(has_area.sum())]
    zeros = torch.zeros(len(kept), dtype=torch.int64)
    assert_same_detections(
        (kept.proposal_boxes.tensor, kept.objectness_logits.sigmoid(), zeros),
        (expected[has_area], figures["proposal_scores"][has_area.numpy()], zeros),
    )


@torch.no_grad()
def test_the_box_head_agrees_on_the_stored_proposals(faster_rcnn):
    figures, heads = golden_arrays("case_E_network"), faster_rcnn.model.roi_heads
    features = faster_rcnn.model.backbone(network_input("E"))
    proposals = torch.from_numpy(figures["proposals"])
    levels = assign_boxes_to_levels([Boxes(proposals)], 2, 5, 224, 4)
    assert_close(levels, torch.from_numpy(figures["proposal_pyramid_level"]), rtol=0, atol=0)

    first = Instances((256, 320), proposal_boxes=Boxes(proposals[:50]))
    pooled = heads.box_pooler(
        [features[name] for name in heads.box_in_features], [first.proposal_boxes]
    )
    compare(figures, "roi_features_first50", pooled, **STAGES)
    scores, deltas = heads.box_predictor(heads.box_head(pooled))
    assert_close(scores, torch.from_numpy(figures["roi_cls_first50"]), **OUTPUTS)
    assert_close(deltas, torch.from_numpy(figures["roi_box_first50"]), **OUTPUTS)
