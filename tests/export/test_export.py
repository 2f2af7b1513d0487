"""Exported detectors find what the models find, at sizes other than the traced one."""

import json
import pytest
import torch
from helpers.detectors import FOVEABOX, HEADS, RETINANET, image, small_model
from helpers.rcnn_models import small_rcnn
from torchvision.ops import deform_conv2d

from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from detectron2.structures import Boxes, Instances

from alrp.config import load_config
from alrp.errors import UserError
from alrp.export import TracedDetector, compare_detections, load_onnx, load_torchscript

SIZES = [(64, 96), (96, 64), (48, 136)]  # the first is traced
DENSE = {"retinanet": RETINANET, "foveabox": FOVEABOX}
LOAD = {"onnx": load_onnx, "pt": load_torchscript}


def spread_scores(model):
    """Random weights of a model of which all scores would tie otherwise."""
    torch.manual_seed(0)
    for name, layer in model.named_modules():
        if name.endswith(("cls_score", "objectness_logits")):
            torch.nn.init.normal_(layer.weight, std=0.05)
    return model.eval()


def model_of(name):
    if name not in DENSE:
        return small_rcnn(name)
    base = DENSE[name]
    return small_model(base, **{f"MODEL.{HEADS[base]}.SCORE_THRESH_TEST": 0.0})


@pytest.fixture(scope="module", params=[*DENSE, "alrp", "mask"])
def exported(request, tmp_path_factory):
    """A traced detector, and the folder of its files model.onnx and model.pt."""
    folder, pixels = tmp_path_factory.mktemp("export"), image(*SIZES[0])["image"]
    model = spread_scores(model_of(request.param))
    traced = TracedDetector(model, pixels, {"class_names": ["a", "b", "c"]})
    everything = traced(pixels)[1]
    # A little lower than a score, which rounding could take to either side.
    model.shown.thresholds = 0.9999 * everything.median() * torch.tensor([0.0, 1.0, 1.0])
    assert len(traced(pixels)[1]) < len(everything)
    steps = 0.9999 * torch.quantile(everything, torch.linspace(0, 1, 5))
    model.shown.calibration = torch.stack([steps, torch.linspace(0, 1, 5)])[:, None].repeat(1, 3, 1)
    model.shown.calibrated = True
    assert set(traced(pixels)[1].tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    traced.write_onnx(folder / "model.onnx")
    traced.write_torchscript(folder / "model.pt")
    return traced, folder


@pytest.mark.parametrize("suffix", LOAD)
def test_the_file_detects_what_the_model_detects(exported, suffix):
    traced, folder = exported
    run = LOAD[suffix](folder / f"model.{suffix}")
    for size in SIZES:
        pixels = image(*size)["image"]
        assert_same_detections(traced(pixels), run(pixels))


def assert_same_detections(expected, found):
    agreement = compare_detections(expected, found)
    assert agreement.num_expected > 10
    assert agreement.num_unmatched == 0, agreement
    assert [x.shape[1:] for x in found] == [x.shape[1:] for x in expected]
    assert [x.dtype for x in found] == [x.dtype for x in expected]


def test_outputs_and_class_names_are_named_in_the_file(exported):
    traced, folder = exported
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(folder / "model.onnx"))
    assert tuple(output.name for output in model.graph.output) == traced.output_names
    assert [entry.name for entry in model.graph.input] == ["image"]
    (entry,) = model.metadata_props
    assert json.loads(entry.value)["class_names"] == ["a", "b", "c"]
    extra = {entry.key: ""}
    torch.jit.load(str(folder / "model.pt"), _extra_files=extra)
    assert extra[entry.key].decode() == entry.value


@pytest.mark.parametrize("name", [*DENSE, "alrp"])
def test_scripting_is_refused_by_name(name):
    with pytest.raises(NotImplementedError, match="export them by tracing"):
        scripting_with_instances(model_of(name).eval(), {"pred_boxes": Boxes})


def c4_rcnn():
    """A small Faster R-CNN without an FPN, as TridentNet is, whose proposals come from ALRPRPN."""
    cfg = load_config("")
    small = {"DEPTH": 50, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}
    keys = {f"MODEL.RESNETS.{key}": value for key, value in small.items()}
    keys |= {"MODEL.DEVICE": "cpu", "MODEL.PROPOSAL_GENERATOR.NAME": "ALRPRPN"}
    keys |= {"MODEL.RPN.POST_NMS_TOPK_TEST": 50, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}
    keys |= {"MODEL.ROI_HEADS.NUM_CLASSES": 3}
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["retinanet", "alrp", "c4"])
def test_the_steps_of_detectron2s_export_model_trace_the_model(name):
    model = spread_scores(c4_rcnn() if name == "c4" else model_of(name))
    pixels = image(*SIZES[0])["image"]
    inference = without_postprocessing if isinstance(model, GeneralizedRCNN) else None
    adapter = TracingAdapter(model, [{"image": pixels}], inference)
    adapter.eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, (pixels,), check_trace=False)
        for height, width in SIZES:
            pixels = image(height, width)["image"]
            found = adapter.outputs_schema(traced(pixels))[0]["instances"]
            found = detector_postprocess(found, 2 * height, 2 * width)
            inputs = {"image": pixels, "height": 2 * height, "width": 2 * width}
            expected = model([inputs])[0]["instances"]
            assert_same_detections(*map(as_tensors, (expected, found)))


def without_postprocessing(model, inputs):
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


def as_tensors(instances):
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


def boxes(*rows):
    """Detections from rows of x, score and class, each a box of 10 pixels."""
    x, scores, classes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3).unbind(1)
    return torch.stack([x, x, x + 10, x + 10], dim=1), scores, classes.long()


@pytest.mark.parametrize(
    ("other", "num_unmatched"),
    [
        ([(50, 0.5, 1), (0, 0.9, 0)], 0),
        ([(0.04, 0.9, 0), (50, 0.5, 1)], 0),
        ([(0.06, 0.9, 0), (50, 0.5, 1)], 2),
        ([(0, 0.9, 1), (50, 0.5, 1)], 2),
        ([(0, 0.89, 0), (50, 0.5, 1)], 2),
        ([(0, 0.9, 0)], 1),
        ([(0, 0.9, 0), (50, 0.5, 1), (80, 0.1, 1)], 1),
        ([], 2),
    ],
)
def test_detections_without_a_partner_are_counted_on_both_sides(other, num_unmatched):
    expected = boxes((0, 0.9, 0), (50, 0.5, 1))
    assert compare_detections(expected, boxes(*other)).num_unmatched == num_unmatched


def test_what_may_have_fallen_off_a_full_list_needs_no_partner():
    expected, other = boxes((0, 0.9, 0), (50, 0.5, 1)), boxes((0, 0.9, 0), (90, 0.5004, 1))
    assert compare_detections(expected, other, max_detections=2).num_unmatched == 0
    assert compare_detections(expected, other, max_detections=3).num_unmatched == 2


class Deformable(torch.nn.Module):
    """A detector with an operator that ONNX has not."""

    def forward(self, inputs):
        pixels = inputs[0]["image"][None]
        offsets = pixels.new_zeros(1, 2, *pixels.shape[2:])
        boxes = deform_conv2d(pixels, offsets, pixels.new_ones(4, 3, 1, 1)).flatten(2)[0].T
        fields = {"pred_boxes": Boxes(boxes), "scores": boxes[:, 0], "pred_classes": boxes[:, 0]}
        return [{"instances": Instances((1, 1), **fields)}]


def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    traced = TracedDetector(Deformable(), torch.rand(3, 4, 4))
    with pytest.raises(UserError, match="deform_conv2d.* Export it as TorchScript"):
        traced.write_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
