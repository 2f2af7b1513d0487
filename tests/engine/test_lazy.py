"""The command for LazyConfig files: training, resuming, evaluation, a dry run, mistakes."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import LazyConfig

from alrp.engine import argument_parser
from alrp.engine.checks import check_lazy_values, in_lazy_names
from alrp.engine.checks.lazy_values import _EXPECTED
from alrp.engine.lazy_command import run_lazy_command, setup_lazy_config
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "COCO-Detection" / "alrp_retinanet_R_50_FPN_ATSS_100e.py")


@pytest.fixture(scope="module")
def lazyconfig_train_net(load_script):
    """The module ``lazyconfig_train_net`` of the repository root."""
    return load_script("lazyconfig_train_net.py")


@pytest.fixture
def run(lazyconfig_train_net, shapes, tmp_path):
    """Status of a command on tiny images; further overrides as "path.key=value"."""
    entries = [
        [f"{shapes.name}_{split}", f"{shapes}/annotations/{split}.json", f"{shapes}/{split}"]
        for split in ("train", "val")
    ]
    overrides = [
        f"dataloader.coco_format={json.dumps(entries)}",
        f"dataloader.train.dataset.names={entries[0][0]}",
        f"dataloader.test.dataset.names={entries[1][0]}",
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "dataloader.train.mapper.augmentations.3.size=64",
        "dataloader.test.mapper.augmentations.0.max_short=64",
        "model.num_classes=3",
        "model.head.conv_dims=[16]",
        "optimizer.lr=0.0005",
        "train.init_checkpoint=''",
        "train.seed=1",
        "train.max_iter=2",
        "train.eval_period=0",
        "train.checkpointer.period=1",
        f"train.output_dir={tmp_path / 'output'}",
    ]

    def command(*options, more=()):
        arguments = ["--config-file", CONFIG, *options, *overrides, *more]
        args = argument_parser().parse_args(arguments)
        return run_lazy_command(lazyconfig_train_net.main, args)

    return command


@pytest.mark.slow
def test_training_resuming_and_evaluation(run, tmp_path):
    folder = tmp_path / "output"
    assert run() == 0
    state = torch.load(folder / "model_final.pth")
    assert state["iteration"] == 1
    assert state["model"]["ranking_losses.self_balance.count"] == 2

    assert run("--resume", more=["train.max_iter=3", "train.eval_period=3"]) == 0
    resumed = torch.load(folder / "model_final.pth")
    assert resumed["iteration"] == 2
    assert resumed["model"]["ranking_losses.self_balance.count"] == 3
    results = json.loads((folder / "inference" / "lrp_results.json").read_text())
    assert set(results["per_class"]) == {"disc", "rectangle", "triangle"}
    assert resumed["model"]["shown.thresholds"].shape == (3,)

    evaluated = tmp_path / "evaluated"
    more = [f"train.init_checkpoint={folder / 'model_final.pth'}", f"train.output_dir={evaluated}"]
    mapper = "{_target_: detectron2.modeling.DatasetMapperTTA, min_sizes: [64], max_size: 96"
    assert run("--eval-only", more=[*more, f"dataloader.tta_mapper={mapper}, flip: True}}"]) == 0
    assert (evaluated / "TTA" / "inference" / "lrp_results.json").is_file()
    assert json.loads((evaluated / "inference" / "lrp_results.json").read_text()) == results


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(run, tmp_path):
    whole, interrupted = tmp_path / "output", tmp_path / "interrupted"
    more = ["train.max_iter=3", "dataloader.train.num_workers=1"]
    assert run(more=more) == 0
    interrupted.mkdir()
    shutil.copy(whole / "model_0000000.pth", interrupted)
    (interrupted / "last_checkpoint").write_text("model_0000000.pth")

    assert run("--resume", more=[*more, f"train.output_dir={interrupted}"]) == 0
    expected, found = (torch.load(f / "model_final.pth") for f in (whole, interrupted))
    assert found.pop("class_names") == expected.pop("class_names")  # no text in assert_close
    sets = [s["trainer"]["hooks"]["SeededIterations"].pop("datasets") for s in (found, expected)]
    assert sets[0] == sets[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_training_ends_without_a_better_evaluation(run, tmp_path):
    more = ["train.max_iter=4", "train.eval_period=1", "train.num_pictures=1"]
    more += ["train.best_metric=lrp/oLRP", "train.patience=1", "train.validation_loss=True"]
    more += ["model.test_score_thresh=1.0"]  # no score is above it, so that oLRP stays at 100
    mapper = "{_target_: detectron2.modeling.DatasetMapperTTA, min_sizes: [64], max_size: 96"
    more += [f"dataloader.tta_mapper={mapper}, flip: True}}"]
    assert run(more=more) == 0
    folder = tmp_path / "output"
    assert torch.load(folder / "model_best.pth")["iteration"] == 0
    assert torch.load(folder / "model_final.pth")["iteration"] == 1
    rows = [json.loads(row) for row in (folder / "metrics.json").read_text().splitlines()]
    assert rows[-2]["validation/total_loss"] > 0
    assert rows[-1]["lrp_TTA/oLRP"] == 100  # behind the last iteration


def test_a_dry_run_fills_in_the_epoch_and_writes_nothing(run, capsys, tmp_path):
    assert run("--dry-run") == 0
    rows, messages = capsys.readouterr()
    assert "WARNING" not in messages
    assert "12 images = 6 iterations" in rows
    assert "0.0005 = 0.008 at the reference batch of 32 (published: 0.008)" in rows
    assert not (tmp_path / "output").exists()


def test_micro_batches_in_mixed_precision_are_reported(run, capsys):
    more = ["train.micro_batch_size=1", "train.amp.enabled=True", "train.amp.dtype=bfloat16"]
    assert run("--dry-run", more=more) == 0
    assert "2 images on 1 process(es), 1 at a time" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.max_itr=5", "'train.max_itr'"),
        ("no_such.key=5", "'no_such.key'"),
        ("model.num_classes=80", "To fix: set model.num_classes=3."),
        ("dataloader.train.dataset.names=my_train", "to dataloader.coco_format"),
        ("train.init_checkpoint=none.pth", "train.init_checkpoint 'none.pth' does not exist"),
        ("train.log_period=0", "train.log_period: expected a whole number >= 1, but got 0"),
        ("dataloader.train.sampler=5", "To fix: correct dataloader.train.sampler."),
        ("dataloader.evaluator.evaluators=[]", "dataloader.evaluator: expected"),
        (
            "dataloader.evaluator.evaluators.1.dataset_name=other",
            "dataloader.evaluator.evaluators.1.dataset_name: expected the dataset of",
        ),
        ("train.amp.enabled=True", "train.amp.dtype: float16 needs a GPU"),
        ("train.amp.dtype=float8", "train.amp.dtype: expected float16 or bfloat16"),
        (
            "train.best_metric=oLRP",
            "train.best_metric: expected one of validation/total_loss, bbox",
        ),
        ("dataloader.classes=[disk]", "dataloader.classes: there is no class 'disk' in dataset"),
        ("dataloader.classes=[disc]", "To fix: set model.num_classes=1."),
        ("dataloader.tta_mapper=flip", "dataloader.tta_mapper: expected a LazyCall"),
        (
            "dataloader.tta_mapper={_target_: detectron2.modeling.DatasetMapperTTA}",
            "building the test-time augmentation failed",
        ),
        ("train.best_metric=bbox/AP", "set train.eval_period to the iterations"),
        ("train.micro_batch_size=-1", "train.micro_batch_size: expected a whole number in [0, "),
    ],
)
def test_mistakes_end_with_one_message_before_anything_is_made(
    run, capsys, tmp_path, override, message
):
    assert run(more=[override]) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and message in error.split("error: ")[1]
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--resume", "--eval-only"])
def test_a_dry_run_goes_with_no_other_mode(run, capsys, option):
    assert run("--dry-run", option) == 1
    assert f"error: --dry-run does not go with {option}: " in capsys.readouterr().err


def test_divergence_in_the_last_iteration_is_not_hidden_by_an_evaluation(run, capsys, tmp_path):
    assert run(more=["optimizer.lr=1e30", "train.eval_period=1000"]) == 1
    printed = "".join(capsys.readouterr())
    assert printed.count("error: ") == 1 and "NaN or Inf" in printed
    assert "Traceback" not in printed and not (tmp_path / "output" / "inference").exists()


def test_a_yaml_file_is_sent_to_the_other_command(lazyconfig_train_net, capsys):
    config = str(ROOT / "configs" / "Base-ALRP-RetinaNet.yaml")
    args = argument_parser().parse_args(["--config-file", config])
    assert run_lazy_command(lazyconfig_train_net.main, args) == 1
    assert "train_net.py takes YAML" in capsys.readouterr().err


PARENTS = {key.rpartition(".")[0] for key in _EXPECTED}
NEEDED = [key for key, e in _EXPECTED.items() if e.needed and key not in PARENTS]


@pytest.mark.parametrize("key", NEEDED)
def test_a_key_that_is_missing_in_the_file_is_named_in_full(tmp_path, key):
    parent, _, name = key.rpartition(".")
    owner = f"cfg.{parent}" if parent else "cfg"
    file = tmp_path / "lacking.py"
    file.write_text(
        "from detectron2.config import LazyConfig\n"
        f"cfg = LazyConfig.load({CONFIG!r})\n"
        f"del {owner}[{name!r}]\n"
        "globals().update(cfg)\n"
        "del cfg\n"
    )
    # Without a GPU the device has a value of its own.
    if key == "train.device" and not torch.cuda.is_available():
        pytest.skip("the device is set without a GPU")
    with pytest.raises(UserError, match=rf"the key\(s\) {key}, but .*lacking\.py"):
        setup_lazy_config(Namespace(config_file=str(file), opts=[]))


def test_each_wrong_value_of_a_key_that_is_read_is_named():
    cfg = LazyConfig.load(CONFIG)
    cfg.dataloader.coco_format, cfg.train.seed = [], 1
    assert check_lazy_values(cfg) == []
    for key, expected in _EXPECTED.items():
        before = OmegaConf.select(cfg, key)
        for value in (None, -7, 1.5, True, {"a": 1}):
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            found = [finding.where for finding in check_lazy_values(cfg)]
            is_right = {
                "True or False": value is True,
                "arguments by name": value == {"a": 1},
                "a number > 0": value == 1.5,
                "text or null": value is None,
                "a LazyCall, or null for none": value is None,
            }.get(expected.what, False)
            # What lies below a right value may be missing; that is told elsewhere.
            assert (key in found) != is_right, (key, value, found)
        OmegaConf.update(cfg, key, before, merge=False, force_add=True)


def test_a_config_that_ends_the_process_ends_with_a_message(tmp_path):
    file = tmp_path / "ending.py"
    file.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="config: SystemExit: 3. Check --config-file"):
        setup_lazy_config(Namespace(config_file=str(file), opts=[]))


@pytest.mark.parametrize(
    "override, meant",
    [
        ("SOLVER.BASE_LR=0.1", "optimizer.lr"),
        ("train.max_itr=5", "train.max_iter"),
        ("dataloadr.test=5", "one of the config's own"),
    ],
)
def test_a_key_that_is_not_there_brings_the_one_that_is_meant(run, capsys, override, meant):
    assert run(more=[override]) == 1
    said = f"error: config: no key {override.split('=')[0]!r}; write {meant}"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "yaml, lazy",
    [
        ("set MODEL.ROI_HEADS.NUM_CLASSES 3.", "set model.roi_heads.num_classes=3."),
        ("set OUTPUT_DIR to another one.", "set train.output_dir to another one."),
        ("SOLVER.BASE_LR: 1 is far", "optimizer.lr: 1 is far"),
        ("set SOLVER.AMP.DTYPE a or SEED 1.", "set train.amp.dtype=a or train.seed=1."),
        ("set MODEL.MASK_ON False, or", "set model.roi_heads.mask_head=null, or"),
        ("/SEED/SEED.d/OUTPUT_DIR.json, $SEED", "/SEED/SEED.d/OUTPUT_DIR.json, $SEED"),
    ],
)
def test_messages_about_keys_of_yaml_are_told_with_those_of_a_lazy_config(yaml, lazy):
    assert in_lazy_names(yaml) == lazy
