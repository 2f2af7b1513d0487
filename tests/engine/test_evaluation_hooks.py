"""What a training does with its evaluations: best weights, early end, validation loss, pictures."""

from __future__ import annotations

import json
import logging
import numpy as np
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from helpers.detectors import FOVEABOX, RETINANET, image, small_config, small_model
from helpers.interruption import Interruption
from helpers.rcnn_models import small_rcnn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.datasets import load_coco_json
from detectron2.engine import hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.events import EventStorage

from alrp.data.dataset_mapper import build_mapper
from alrp.data.datasets.shapes import make_shapes_dataset
from alrp.engine import Trainer, argument_parser, run_command, setup_config
from alrp.engine.best_metric import lower_is_better
from alrp.engine.checks import check_evaluation
from alrp.engine.checks.keys import default_config, with_value
from alrp.engine.validation_loss import ValidationLoss, validation_loader
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Scripted(Trainer):
    """Its evaluations give the values of a list in turn."""

    values: list[float] = []
    task, metric = "bbox", "AP"

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"lrp": {"threshold-disc": 0.5}} | {cls.task: {cls.metric: cls.values.pop(0)}}


@pytest.fixture
def trainer_of(command_line):
    """``trainer_of(trainer_class, *options, KEY=VALUE...)``: evaluated and saved each iteration."""

    def build(trainer_class, *options, **overrides):
        keys = {"TEST.EVAL_PERIOD": 1, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.MAX_ITER": 6}
        args = argument_parser().parse_args(command_line(*options, **{**keys, **overrides}))
        cfg = setup_config(args)
        torch.manual_seed(0)  # the first weights
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer

    return build


def values(*numbers, task="bbox", metric="AP"):
    return type("Scripted", (Scripted,), {"values": [*numbers], "task": task, "metric": metric})


def iteration_of(path):
    return torch.load(path)["iteration"]


@pytest.mark.parametrize(
    ("metric", "numbers"),
    [("bbox/AP", (1.0, 3.0, 2.0, 3.0)), ("lrp/oLRP", (90.0, 70.0, float("nan"), 75.0))],
)
def test_training_ends_without_a_better_evaluation(trainer_of, tmp_path, metric, numbers):
    task, name = metric.split("/")
    options = {"TEST.BEST_METRIC": metric, "TEST.PATIENCE": 2}
    trainer = trainer_of(values(*numbers, task=task, metric=name), **options)
    trainer.train()
    assert trainer._last_eval_results[task][name] == pytest.approx(numbers[-1], nan_ok=True)
    assert trainer.values == []  # the last evaluation is not repeated
    folder = tmp_path / "output"
    assert iteration_of(folder / "model_best.pth") == 1
    assert iteration_of(folder / "model_final.pth") == 3
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    best, second = (torch.load(folder / f"model_{n}.pth")["model"] for n in ("best", "0000001"))
    assert "trainer" not in torch.load(folder / "model_best.pth")
    assert best.keys() == second.keys()
    assert all(torch.equal(best[key], second[key]) for key in best)


def test_an_early_end_is_that_of_a_training_with_test_time_augmentation(trainer_of, tmp_path):
    options = {"TEST.BEST_METRIC": "bbox/AP", "TEST.PATIENCE": 2, "TEST.AUG.ENABLED": True}
    options["TEST.EXPECTED_RESULTS"] = [["bbox", "AP", 2.0, 0.1], ["bbox_TTA", "AP", 9.0, 0.1]]
    trainer = trainer_of(values(3.0, 1.0, 2.0, 9.0, 10.0), **options)
    trainer.add_test_with_TTA()
    trainer.register_hooks([hooks.EvalHook(0, lambda: trainer.test(None, None))])  # a user's
    results = trainer.train()  # verifies them
    assert (results["bbox"]["AP"], results["bbox_TTA"]["AP"]) == (2.0, 9.0)
    assert trainer.values == [] and trainer.iter == trainer.max_iter == 3
    rows = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(rows[-1])["bbox_TTA/AP"] == 9.0


def test_expected_results_of_test_time_augmentation_must_be_given(trainer_of):
    expected = [["bbox_TTA", "AP50", 9.0, 0.1]]
    trainer = trainer_of(values(9.0), **{"TEST.AUG.ENABLED": True})
    cfg = with_value(trainer.cfg, "TEST.EXPECTED_RESULTS", expected)
    with pytest.raises(UserError, match="there is no result 'AP50' of 'bbox_TTA'"):
        trainer.test_with_TTA(cfg, trainer.model)


class WithOwnParts(Trainer):
    """The evaluator as Detectron2's documentation overrides it; a mapper that notes its images."""

    mapped: list[str] = []

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR) / "own"))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        class Mapper(DatasetMapper):
            def __call__(self, record):
                cls.mapped.append(Path(record["file_name"]).name)
                return super().__call__(record)

        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))


def test_evaluators_and_mappers_of_a_subclass_are_used(trainer_of, tmp_path):
    keys = {"TEST.VALIDATION_LOSS": True, "TEST.NUM_PICTURES": 2, "SOLVER.MAX_ITER": 1}
    keys |= {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (64,)}
    trainer = trainer_of(WithOwnParts, **keys)
    trainer.add_test_with_TTA()
    trainer.train()
    # Two evaluations of four images, a validation loss of them, and two pictures.
    assert len(trainer.mapped) == 4 + 4 + 4 + 2
    for folder in ("own", "TTA/own"):
        assert (tmp_path / "output" / folder / "coco_instances_results.json").is_file()


def test_a_metric_that_is_not_measured_ends_the_training(trainer_of):
    trainer = trainer_of(values(1.0, 2.0), **{"TEST.BEST_METRIC": "keypoints/AP"})
    message = "'keypoints/AP' is not measured; set TEST.BEST_METRIC to one of bbox/AP, or"
    with pytest.raises(UserError, match=message):
        trainer.train()
    assert trainer.values == [2.0]


def test_a_metric_of_an_own_evaluator_chooses_the_best_weights(trainer_of, tmp_path):
    trainer = trainer_of(
        values(1.0, 3.0, 2.0, task="own"), **{"TEST.BEST_METRIC": "own/AP"} | {"SOLVER.MAX_ITER": 3}
    )
    trainer.train()
    assert iteration_of(tmp_path / "output" / "model_best.pth") == 1


@pytest.mark.parametrize(
    ("metric", "is_error"),
    [
        ("lrp/oLRP", True),
        ("my_val/lrp/oLRP_Loc", True),
        ("lrp/oLRP-cat/dog", True),
        ("validation/total_loss", True),
        ("validation/loss_cls", True),
        ("bbox/AP", False),
        ("validation/bbox/AP", False),  # of a set of that name
        ("lrp/segm/AP50", False),
        ("keypoints/AP", False),
    ],
)
def test_losses_and_lrp_errors_are_better_if_lower(metric, is_error):
    assert lower_is_better(metric) == is_error


def test_a_resumed_run_knows_the_best_evaluation_and_its_patience(trainer_of, tmp_path, caplog):
    options = {"TEST.BEST_METRIC": "bbox/AP", "TEST.PATIENCE": 2}
    trainer = trainer_of(values(1.0, 3.0), **options)
    trainer.register_hooks([Interruption(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = trainer_of(values(2.0, 2.5, 4.0), "--resume", **options)
    resumed.train()
    assert resumed.values == [4.0]
    assert iteration_of(tmp_path / "output" / "model_best.pth") == 1
    final = tmp_path / "output" / "model_final.pth"
    assert iteration_of(final) == 3

    with caplog.at_level(logging.WARNING, "alrp"):  # started again, it is only evaluated
        ended = trainer_of(values(2.5), "--resume", **options)
        ended.train()
    assert "has ended: bbox/AP was no better than 3.0 in the last 2 evaluations" in caplog.text
    assert "set TEST.PATIENCE (in a LazyConfig train.patience) to more than 2" in caplog.text
    assert ended.iter == 4 and ended.values == [] and iteration_of(final) == 3
    more_patient = trainer_of(values(2.0, 5.0), "--resume", **{**options, "TEST.PATIENCE": 3})
    more_patient.train()
    assert more_patient.values == [5.0] and iteration_of(final) == 4


def test_another_metric_begins_anew_when_resumed(trainer_of, tmp_path, caplog):
    trainer_of(values(9.0, 8.0), **{"TEST.BEST_METRIC": "bbox/AP", "SOLVER.MAX_ITER": 2}).train()
    resumed = values(50.0, metric="oLRP", task="lrp")
    options = {"TEST.BEST_METRIC": "lrp/oLRP", "SOLVER.MAX_ITER": 3}
    with caplog.at_level(logging.WARNING, "alrp"):
        trainer_of(resumed, "--resume", **options).train()
    assert "chosen by bbox/AP so far: the resumed run begins anew, by lrp/oLRP" in caplog.text
    assert iteration_of(tmp_path / "output" / "model_best.pth") == 2


def test_validation_loss_and_pictures_leave_the_training_as_it_is(trainer_of, tmp_path):
    plain = {"OUTPUT_DIR": tmp_path / "plain", "SOLVER.MAX_ITER": 2}
    trainer_of(Trainer, **plain).train()
    with_all = {"TEST.VALIDATION_LOSS": True, "TEST.NUM_PICTURES": 2, "SOLVER.MAX_ITER": 2}
    with_all |= {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (64,)}
    with_all["TEST.EXPECTED_RESULTS"] = [["lrp_TTA", "oLRP", 50, 50], ["bbox", "AP", 50, 50]]
    trainer = trainer_of(Trainer, **with_all, **{"TEST.BEST_METRIC": "validation/total_loss"})
    trainer.add_test_with_TTA()
    trainer.train()
    states = [torch.load(tmp_path / name / "model_final.pth") for name in ("plain", "output")]
    for part in (states[0]["model"], states[1]["model"]):
        part.pop("shown.thresholds", None)
    torch.testing.assert_close(states[1]["model"], states[0]["model"], rtol=0, atol=0)
    assert (tmp_path / "output" / "model_best.pth").is_file()

    rows = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert {"bbox/AP", "bbox_TTA/AP", "lrp_TTA/oLRP"} <= set(rows[-1])
    assert (tmp_path / "output" / "TTA" / "inference" / "lrp_results.json").is_file()
    losses = [row for row in rows if "validation/total_loss" in row]
    assert [row["iteration"] for row in losses] == [0, 2]
    for row in losses:
        parts = row["validation/loss_cls"] + row["validation/loss_box_reg"]
        assert row["validation/total_loss"] == pytest.approx(parts)
    events = EventAccumulator(str(tmp_path / "output"))
    events.Reload()
    assert [event.step for event in events.Images("validation/detections")] == [0, 2]


BATCH = [image(64, 96, [[5, 5, 40, 50], [30, 10, 90, 60]], [0, 2]), image(64, 64)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: small_model(RETINANET),
        lambda: small_model(RETINANET, **{"MODEL.META_ARCHITECTURE": "RetinaNet"}),
        lambda: small_model(FOVEABOX),
        lambda: small_rcnn("ce"),  # samples proposals
    ],
    ids=["alrp_retinanet", "retinanet", "foveabox", "faster_rcnn"],
)
def test_a_validation_loss_leaves_no_trace(build):
    model = build().train()
    with EventStorage():
        model(BATCH)  # Detectron2's RetinaNet begins its running mean of positives
    model.backbone.bottom_up.stem.eval()  # as a user might have set it
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with EventStorage() as storage:
        loss = ValidationLoss(model, [BATCH, BATCH[:1]])
        first = loss()
        assert loss() == first
        assert not storage.latest() and not storage._vis_data
    assert {"total_loss", "loss_cls", "loss_box_reg"} <= set(first["validation"])
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    for name, module in model.named_modules():
        assert vars(module) == attributes[name]
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])


def test_a_buffer_that_the_model_replaces_comes_back():
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, batch):
            self.count = self.count + len(batch)
            return {"loss": self.count.sum()}

    model = Counter()
    buffer = model.count
    assert ValidationLoss(model, [BATCH])()["validation"]["loss"] == 2.0
    assert model.count is buffer and buffer.item() == 0.0


def test_a_mapper_without_masks_reads_them_for_the_loss_of_a_mask_head(tmp_path):
    make_shapes_dataset(tmp_path, num_train=1, num_val=1, image_size=64, masks=True)
    cfg = small_config(RETINANET)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.DATALOADER.NUM_WORKERS = True, "bitmask", 0
    mapper = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    records = load_coco_json(tmp_path / "annotations" / "val.json", tmp_path / "val")
    (first, *_), *_ = validation_loader(cfg, records, mapper)
    assert len(first["instances"].gt_masks) == len(first["instances"].gt_boxes) > 0
    assert not mapper.use_instance_mask  # the evaluation's stays as it is


def test_pictures_need_class_names(trainer_of, monkeypatch):
    monkeypatch.setattr("alrp.engine.evaluation_hooks.class_names", lambda names: None)
    with pytest.raises(UserError, match="TEST.NUM_PICTURES: .* have no class names"):
        trainer_of(Trainer, **{"TEST.NUM_PICTURES": 1})


def test_a_validation_loss_is_the_mean_over_the_images():
    model = small_model(RETINANET)
    whole, rest = (ValidationLoss(model, [b])()["validation"] for b in (BATCH, BATCH[:1]))
    both = ValidationLoss(model, [BATCH, BATCH[:1]])()["validation"]
    for name in both:
        assert both[name] == pytest.approx((2 * whole[name] + rest[name]) / 3)
    assert ValidationLoss(model, [])() == {}


def test_images_without_annotations_have_no_loss():
    cfg = small_config(RETINANET)
    mapper = build_mapper(cfg, is_train=False)
    with pytest.raises(UserError, match="a.png of DATASETS.TEST has no annotations"):
        validation_loader(cfg, [{"file_name": "a.png"}], mapper)
    crowd = {"file_name": "b.png", "annotations": [{"iscrowd": 1}]}
    with pytest.raises(UserError, match="every image of DATASETS.TEST has no annotations"):
        validation_loader(cfg, [{"file_name": "a.png", "annotations": []}, crowd], mapper)
    with pytest.raises(UserError, match="function is no mapper like"):
        validation_loader(cfg, [], lambda record: record)


@pytest.mark.slow
def test_two_processes_with_uneven_shares_end_together(command_line, tmp_path):
    keys = {
        "TEST.EVAL_PERIOD": 1,
        "TEST.BEST_METRIC": "lrp/oLRP",
        "TEST.PATIENCE": 1,
        "TEST.VALIDATION_LOSS": True,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.99,  # finds nothing, so that oLRP stays at 100
        "DATASETS.TEST": ("uneven",),
    }
    line = command_line("--num-gpus", "2", **keys)
    place = line.index("DATASETS.COCO_FORMAT") + 1
    line[place] = str(_with_three_images(line[place], tmp_path))
    command = [sys.executable, str(ROOT / "train_net.py"), *line]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert iteration_of(tmp_path / "output" / "model_best.pth") == 0
    assert iteration_of(tmp_path / "output" / "model_final.pth") == 1


def _with_three_images(datasets, folder):
    """Entries of DATASETS.COCO_FORMAT with one more of three images, so that ranks have 2 and 1."""
    entries = json.loads(datasets.replace("'", '"'))
    _, annotations, images = entries[1]
    content = json.loads(open(annotations).read())
    content["images"] = content["images"][:3]
    kept = {entry["id"] for entry in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (folder / "uneven.json").write_text(json.dumps(content))
    return [*entries, ["uneven", str(folder / "uneven.json"), images]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"TEST.BEST_METRIC": "AP", "TEST.EVAL_PERIOD": 2},
            "one of validation/total_loss, bbox/AP,",
        ),
        ({"TEST.BEST_METRIC": "lrp/olrp", "TEST.EVAL_PERIOD": 2}, "TEST.BEST_METRIC lrp/oLRP."),
        ({"TEST.BEST_METRIC": "bbox/AP"}, "TEST.EVAL_PERIOD: the best evaluation by bbox/AP"),
        ({"TEST.BEST_METRIC": "bbox/AP", "TEST.EVAL_PERIOD": 4}, "a period of 4 there is one only"),
        ({"TEST.PATIENCE": 3}, "TEST.PATIENCE: 3 evaluations"),
        ({"TEST.BEST_METRIC": "validation/total_loss", "TEST.EVAL_PERIOD": 2}, "not measured"),
        ({"TEST.VALIDATION_LOSS": True, "DATASETS.TEST": ()}, "TEST.VALIDATION_LOSS needs a test"),
        ({"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (0,)}, "TEST.AUG.MIN_SIZES: expected"),
        ({"TEST.NUM_PICTURES": 1000}, "TEST.NUM_PICTURES: expected a number in [0, 100]"),
    ],
)
def test_a_wrong_key_is_one_message_before_the_start(
    train_net, command_line, capsys, tmp_path, keys, message
):
    args = argument_parser().parse_args(command_line(**keys))
    assert run_command(train_net.main, args) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_only_metrics_that_no_evaluator_can_give_are_refused_before_the_start():
    cfg = default_config().clone()
    cfg.defrost()
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST = 2, ("a", "b")

    def severities(metric, **options):
        cfg.TEST.BEST_METRIC = metric
        return [finding.severity for finding in check_evaluation(cfg, **options)]

    assert severities("b/bbox/AP", by_set=True) == []
    assert severities("bbox/AP", by_set=True) == ["error"]
    assert severities("bbox/AP", by_set=False) == []  # a LazyConfig
    assert severities("b/bbox/AP", by_set=False) == ["warning"]
    assert severities("lrp/oLRP-cat", by_set=False) == []
    assert severities("keypoints/AP", by_set=False) == ["warning"]
    assert severities("validation/loss_cls", by_set=False) == ["error"]
