"""What a detector shows, what it gives to an evaluation, and how that follows its checkpoint."""

import math
import pytest
import torch
from helpers.detectors import FOVEABOX, HEADS, RETINANET, image, small_model, train_step
from helpers.rcnn_models import FULL, small_rcnn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.events import EventStorage

from alrp.errors import UserError
from alrp.modeling import DetectionThresholds, ThresholdedRCNN

DENSE = {"retinanet": RETINANET, "foveabox": FOVEABOX}
KEY = "shown.thresholds"


def build(name, **overrides):
    torch.manual_seed(0)
    if name in DENSE:
        overrides[f"MODEL.{HEADS[DENSE[name]]}.SCORE_THRESH_TEST"] = 0.0
        model = small_model(DENSE[name], **overrides)
    else:
        model = small_rcnn(name, **overrides)
    for layer_name, layer in model.named_modules():
        if layer_name.endswith("cls_score"):
            torch.nn.init.normal_(layer.weight, std=0.02)
    return model.eval()


@pytest.fixture(params=[*DENSE, "alrp"])
def name(request):
    return request.param


def detect(model, **more):
    with torch.no_grad():
        return model([{"image": image(64, 96)["image"], **more}])[0]["instances"]


def test_shown_is_what_reaches_the_least_score_of_its_class(name):
    model = build(name)
    everything = detect(model)
    least = everything.scores.median()
    model.shown.thresholds = torch.tensor([0.0, least, DetectionThresholds.NEVER])
    classes = everything.pred_classes
    expected = (classes == 0) | ((classes == 1) & (everything.scores >= least))
    assert 0 < expected.sum() < len(everything)
    shown = detect(model)
    assert torch.equal(shown.scores, everything.scores[expected])
    assert torch.equal(shown.pred_boxes.tensor, everything.pred_boxes.tensor[expected])


def test_an_evaluation_gets_all_detections(name):
    model = build(name)
    everything = detect(model)
    model.shown.thresholds = torch.full((3,), DetectionThresholds.NEVER)
    assert len(detect(model)) == 0
    evaluated = detect(model, image_id=0)
    assert torch.equal(evaluated.scores, everything.scores)
    assert torch.equal(evaluated.pred_boxes.tensor, everything.pred_boxes.tensor)


@pytest.mark.parametrize("least", [0.0, 0.4])
def test_a_number_in_the_config_takes_the_place_of_the_stored_scores(least):
    model = build("retinanet", **{"MODEL.ALRP.SCORE_THRESH_PREDICT": least})
    everything = detect(model, image_id=0)
    model.shown.thresholds = torch.full((3,), DetectionThresholds.NEVER)
    assert torch.equal(detect(model).scores, everything.scores[everything.scores >= least])


@pytest.mark.parametrize("before_loading", ["train", "eval"])
def test_scores_follow_the_checkpoint_of_detectron2s_own_checkpointer(
    name, before_loading, tmp_path
):
    model, other = build(name), build(name)
    model.shown.thresholds = torch.tensor([0.1, 0.2, 0.3])
    model.shown.calibration = torch.rand(2, 3, 7)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    getattr(other, before_loading)()
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert torch.equal(other.shown.thresholds, model.shown.thresholds)
    assert torch.equal(other.shown.calibration, model.shown.calibration)
    other.load_state_dict(build(name).state_dict())  # of a checkpoint without scores
    assert other.shown.thresholds is None and other.shown.calibration is None


@pytest.mark.parametrize("options", [{"calibrated": "no"}, {"least_score": 5}])
def test_values_without_a_meaning_are_refused(options):
    with pytest.raises(ValueError, match="expected .*, but got"):
        DetectionThresholds(3, **options)


def test_scores_of_another_number_of_classes_are_not_taken():
    model = build("retinanet")
    state = {**model.state_dict(), KEY: torch.rand(5)}
    assert model.load_state_dict(state, strict=False).unexpected_keys == [KEY]
    assert model.shown.thresholds is None


def test_a_training_step_forgets_the_scores_and_a_look_at_the_loss_does_not(name):
    model = build(name)
    assert KEY not in model.state_dict()
    model.shown.thresholds = torch.rand(3)
    with torch.no_grad():
        step_without_gradients(model)
    assert KEY in model.state_dict()
    train_step(model, [FULL])
    assert KEY not in model.state_dict()


def step_without_gradients(model):
    model.train()
    with EventStorage():
        model([FULL])


def test_what_is_shown_has_calibrated_scores_and_an_evaluation_has_not(name):
    model = build(name, **{"MODEL.ALRP.CALIBRATED_SCORES": True})
    everything = detect(model, image_id=0)
    middle = everything.scores.median()
    steps = torch.tensor([[0.0, middle], [0.0, middle], [2.0, math.inf]])
    shares = torch.tensor([[0.25, 0.5], [0.125, 0.75], [0.375, math.inf]])
    model.shown.calibration = torch.stack([steps, shares])
    shown = detect(model)
    is_upper = (everything.scores >= middle).long()
    is_upper[everything.pred_classes == 2] = 0
    assert is_upper.sum() > 0
    assert torch.equal(shown.scores, shares[everything.pred_classes, is_upper])
    assert torch.equal(shown.pred_boxes.tensor, everything.pred_boxes.tensor)
    assert torch.equal(detect(model, image_id=0).scores, everything.scores)
    train_step(model, [FULL])
    assert "shown.calibration" not in model.state_dict()
    with pytest.raises(UserError, match="holds no calibration; add it by tools/add_thresholds.py"):
        detect(model.eval())


def test_given_boxes_are_all_kept():
    model = build("mask")
    model.shown.thresholds = torch.full((3,), DetectionThresholds.NEVER)
    given = detect(model, image_id=0)[:2]
    given.remove("pred_masks")
    with torch.no_grad():
        outputs = model.inference([{"image": image(64, 96)["image"]}], [given])
    assert len(outputs[0]["instances"]) == 2


def test_the_former_name_of_the_r_cnn_still_builds_it():
    model = small_rcnn("alrp", **{"MODEL.META_ARCHITECTURE": "ShownRCNN"})
    assert isinstance(model, ThresholdedRCNN)
