"""The command for LazyConfig files: training, resuming, evaluation, a dry run, mistakes."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
import pytest
import torch

from alrp.engine import argument_parser, run_command
from alrp.engine.lazy import _NEEDED, check_and_convert, setup_lazy_config
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
        "train.max_iter=2",
        "train.eval_period=0",
        "train.checkpointer.period=1",
        f"train.output_dir={tmp_path / 'output'}",
    ]

    def command(*options, more=()):
        arguments = ["--config-file", CONFIG, *options, *overrides, *more]
        args = argument_parser().parse_args(arguments)
        return run_command(
            lazyconfig_train_net.main, args, setup=check_and_convert, is_complete=False
        )

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

    evaluated = tmp_path / "evaluated"
    more = [f"train.init_checkpoint={folder / 'model_final.pth'}", f"train.output_dir={evaluated}"]
    assert run("--eval-only", more=more) == 0
    assert json.loads((evaluated / "inference" / "lrp_results.json").read_text()) == results


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(run, tmp_path):
    whole, interrupted = tmp_path / "output", tmp_path / "interrupted"
    more = ["train.max_iter=3", "train.seed=3", "dataloader.train.num_workers=1"]
    assert run(more=more) == 0
    interrupted.mkdir()
    shutil.copy(whole / "model_0000000.pth", interrupted)
    (interrupted / "last_checkpoint").write_text("model_0000000.pth")

    assert run("--resume", more=[*more, f"train.output_dir={interrupted}"]) == 0
    expected, found = (torch.load(f / "model_final.pth") for f in (whole, interrupted))
    assert found.pop("class_names") == expected.pop("class_names")  # no text in assert_close
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_dry_run_fills_in_the_epoch_and_writes_nothing(run, capsys, tmp_path):
    assert run("--dry-run") == 0
    rows = capsys.readouterr().out
    assert "12 images = 6 iterations" in rows
    assert "0.0005 = 0.008 at the reference batch of 32 (published: 0.008)" in rows
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.max_itr=5", "'train.max_itr'"),
        ("no_such.key=5", "'no_such.key'"),
        ("model.num_classes=80", "3"),
        ("dataloader.train.dataset.names=my_train", "'my_train'"),
        ("train.init_checkpoint=none.pth", "does not exist"),
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
    status = run_command(
        lazyconfig_train_net.main, args, setup=check_and_convert, is_complete=False
    )
    assert status == 1 and "train_net.py takes YAML" in capsys.readouterr().err


@pytest.mark.parametrize("key", _NEEDED)
def test_a_key_that_is_missing_in_the_file_is_named_in_full(tmp_path, key):
    parent, _, name = key.rpartition(".")
    owner = f"cfg.{parent}" if parent else "cfg"
    file = tmp_path / "lacking.py"
    file.write_text(
        "from detectron2.config import LazyConfig\n"
        f"cfg = LazyConfig.load({CONFIG!r})\n"
        f"del {owner}[{name!r}]\n"
        "model, dataloader, optimizer = cfg.model, cfg.dataloader, cfg.optimizer\n"
        "train, lr_multiplier = cfg.train, cfg.get('lr_multiplier')\n"
        "del cfg\n"
    )
    # Without a GPU the device has a value of its own.
    if key == "train.device" and not torch.cuda.is_available():
        pytest.skip("the device is set without a GPU")
    with pytest.raises(UserError, match=rf"the key\(s\) {key}, but .*lacking\.py"):
        setup_lazy_config(Namespace(config_file=str(file), opts=[]))


@pytest.mark.parametrize("value", ["train.amp=True", "train.amp=null", "train.amp='${none}'"])
def test_a_key_inside_of_what_holds_none_is_named(value):
    with pytest.raises(UserError, match="config: .*train.amp.enabled"):
        setup_lazy_config(Namespace(config_file=CONFIG, opts=[value]))
