"""What a checkpoint carries beside the weights, and where a run is resumed from."""

from __future__ import annotations

import copy
import logging
import os
import resource
import pytest
import torch
from torch import nn

from alrp.checkpoint import CheckedCheckpointer, last_checkpoint
from alrp.checkpoint.pixels import other_pixels
from alrp.checkpoint.training_state import resumable_state
from alrp.errors import UserError
from alrp.losses import SelfBalance


class Detector(nn.Module):
    """A head and its self-balance."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.balance = SelfBalance(period=10)


def save(folder, **options):
    CheckedCheckpointer(Detector(), str(folder), **options).save("model_final", iteration=4)
    return str(folder / "model_final.pth")


def test_class_names_travel_with_the_weights(tmp_path):
    path = save(tmp_path, class_names=("cat", "dog"))
    extra = CheckedCheckpointer(Detector(), class_names=["cat", "dog"]).load(path)
    assert extra["class_names"] == ["cat", "dog"] and extra["iteration"] == 4


@pytest.mark.parametrize("names", [["dog", "cat"], ["cat", "bird"]])
def test_weights_of_other_classes_are_not_evaluated(tmp_path, names):
    path = save(tmp_path, class_names=["cat", "dog"])
    with pytest.raises(UserError, match=f"trained on the classes cat, dog, .*{', '.join(names)}"):
        CheckedCheckpointer(Detector(), class_names=names).load(path)


def test_weights_of_classes_in_another_order_start_a_training_with_a_warning(tmp_path, caplog):
    path = save(tmp_path, class_names=["cat", "dog"])
    CheckedCheckpointer(Detector(), class_names=["bird", "cow"], complete=False).load(path)
    assert "classes" not in caplog.text
    CheckedCheckpointer(Detector(), class_names=["dog", "cat"], complete=False).load(path)
    assert "starts with its classes exchanged" in caplog.text


@pytest.mark.parametrize("saved, present", [(None, ["cat", "dog"]), (["cat", "dog"], None)])
def test_names_that_are_not_known_are_not_compared(tmp_path, saved, present):
    CheckedCheckpointer(Detector(), class_names=present).load(save(tmp_path, class_names=saved))


@pytest.mark.parametrize(
    "name, value", [("weight", -5.0), ("weight", float("inf")), ("count", -1000)]
)
def test_an_impossible_self_balance_is_one_mistake(tmp_path, name, value):
    path = save(tmp_path)
    content = torch.load(path, weights_only=True)
    content["model"][f"balance.{name}"].fill_(value)
    torch.save(content, path)
    with pytest.raises(UserError, match=f"balance.{name}"):
        CheckedCheckpointer(Detector()).load(path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path):
    path = save(tmp_path)
    model = nn.Linear(1000, 1000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limit[1]))
    try:
        with pytest.raises(UserError, match="model_final.pth cannot be written: File too large"):
            CheckedCheckpointer(model, str(tmp_path)).save("model_final")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    CheckedCheckpointer(Detector()).load(path)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert last_checkpoint(str(tmp_path)) is None
    assert last_checkpoint(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize(
    "address, mean, std, wanted",
    [
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", (103.5, 116.3, 123.7), 1.0, ""),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", (123.7, 116.3, 103.5), 1.0, "BGR"),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", (103.5, 116.3, 123.7), 58.0, "BGR"),
        ("torchvision://resnet50", (123.7, 116.3, 103.5), 58.0, ""),
        ("torchvision://resnet50", (103.5, 116.3, 123.7), 58.0, "RGB"),
        ("detectron2://ImageNetPretrained/torchvision/R-50.pkl", (123.7, 116.3, 103.5), 1.0, "RGB"),
        ("torchvision://resnet50", (0.485, 0.456, 0.406), 0.225, ""),
        ("torchvision://resnet50", (0.485, 0.456, 0.406), 1 / 255, "RGB"),
        ("torchvision://resnet50", (0.0, 0.0, 0.0), 1.0, ""),
        ("output/of_torchvision/model_final.pth", (103.5, 116.3, 123.7), 1.0, ""),
    ],
)
def test_pixels_that_weights_were_not_trained_on_are_told_of(address, mean, std, wanted):
    detector = Detector()
    detector.pixel_mean = torch.tensor(mean).view(3, 1, 1)
    detector.pixel_std = torch.full((3, 1, 1), std)
    assert other_pixels(detector, address).startswith(f"INPUT.FORMAT {wanted}" if wanted else "")
    assert bool(other_pixels(detector, address)) == bool(wanted)
    assert other_pixels(Detector(), address) == ""


def test_a_damaged_last_checkpoint_brings_the_name_of_an_earlier_one(tmp_path):
    path = save(tmp_path)
    (tmp_path / "model_0000003.pth").touch()
    with open(path, "r+b") as file:
        file.truncate(900)
    checkpointer = CheckedCheckpointer(Detector(), str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be read .*last_checkpoint, such as model_0000003"):
        checkpointer.resume_or_load("", resume=True)
    with pytest.raises(UserError) as raised:  # of another run: there is nothing to go on with
        CheckedCheckpointer(Detector(), str(tmp_path)).load(path)
    assert "earlier checkpoint" not in str(raised.value)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_random_weights_that_stay_so_are_told_of(tmp_path, caplog, is_frozen):
    detector = Detector()
    detector.head.requires_grad_(not is_frozen)
    CheckedCheckpointer(detector, str(tmp_path), complete=False).resume_or_load("", resume=False)
    assert ("2 parameters are frozen, such as head.weight" in caplog.text) == is_frozen


def test_without_its_tag_a_run_goes_on_from_the_latest_checkpoint(tmp_path, caplog):
    for name in ("model_0000009.pth", "model_0000019.pth", "model_best.pth"):
        (tmp_path / name).touch()
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0000019.pth")
    checkpointer = CheckedCheckpointer(Detector(), str(tmp_path))
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000019.pth")
    assert caplog.text.count("last_checkpoint is missing: going on from the latest") == 1


@pytest.mark.parametrize(
    "content, said",
    [
        (b"model_0000019.pth", "names the checkpoint 'model_0000019.pth', which is no file"),
        (b"", "names the checkpoint '', which is no file"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_tag_that_leads_nowhere_is_one_mistake(tmp_path, content, said):
    tag = tmp_path / "last_checkpoint"
    tag.mkdir() if content is None else tag.write_bytes(content)
    (tmp_path / "model_0000009.pth").touch()
    with pytest.raises(UserError, match=f"{said}.*to go on from the latest one, model_0000009"):
        last_checkpoint(str(tmp_path))


def trainer_state(optimizer_class=torch.optim.SGD, groups=1, scaler=None, **settings):
    """State of a simple trainer after a step at 1/10 of its rate."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(4)]
    size = len(parameters) // groups
    split = [{"params": parameters[i * size : (i + 1) * size]} for i in range(groups)]
    optimizer = optimizer_class(split, **{"lr": 0.1, **settings})
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        group["lr"] *= 0.1
    sum(p.sum() for p in parameters).backward()
    optimizer.step()
    state = {"iteration": 4, "optimizer": optimizer.state_dict()}
    state["hooks"] = {"LRScheduler": {"base_lrs": [settings.get("lr", 0.1)] * groups}}
    return state if scaler is None else {**state, "grad_scaler": scaler}


def test_the_same_settings_change_nothing(caplog):
    saved = trainer_state(momentum=0.9)
    before = copy.deepcopy(saved)
    state = resumable_state(saved, trainer_state(momentum=0.9), "a.pth")
    assert str(state) == str(before) == str(saved) and caplog.text == ""


def test_rates_and_settings_follow_the_config_with_one_warning(caplog):
    saved = trainer_state(momentum=0.9, weight_decay=0.1)
    state = resumable_state(saved, trainer_state(lr=0.02, momentum=0.8, weight_decay=0.1), "a.pth")
    (group,) = state["optimizer"]["param_groups"]
    assert (group["initial_lr"], group["momentum"]) == (0.02, 0.8)
    assert group["lr"] == pytest.approx(0.002) and state["iteration"] == 4
    assert state["hooks"]["LRScheduler"]["base_lrs"] == [0.02]
    assert state["optimizer"]["state"] == saved["optimizer"]["state"]
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "lr 0.02 instead of 0.1" in record.message
    assert "momentum 0.8 instead of 0.9" in record.message and "weight_decay" not in record.message


@pytest.mark.parametrize("current", [{"optimizer_class": torch.optim.AdamW}, {"groups": 2}])
def test_another_optimizer_is_refused_with_the_way_out(current):
    current = trainer_state(**current)
    with pytest.raises(UserError, match="another optimizer or other .*set MODEL.WEIGHTS .* a.pth"):
        resumable_state(trainer_state(momentum=0.9), current, "a.pth")


@pytest.mark.parametrize("saved", [None, {}, {"iteration": 3}, [], {"_trainer": {}}])
def test_weights_alone_are_not_resumed(saved):
    with pytest.raises(UserError, match="a.pth holds no state of a training"):
        resumable_state(saved, trainer_state(), "a.pth")


@pytest.mark.parametrize("iteration", [None, -1, 4.0, "4", True], ids=repr)
def test_an_iteration_that_cannot_be_counted_on_from_is_refused(iteration):
    edited = {**trainer_state(), "iteration": iteration}
    with pytest.raises(UserError, match="a.pth: expected its iteration to be a whole number"):
        resumable_state(edited, trainer_state(), "a.pth")
    nested = {"iteration": iteration, "_trainer": trainer_state()}
    with pytest.raises(UserError, match="a.pth: expected its iteration to be a whole number"):
        resumable_state(nested, {"iteration": 0, "_trainer": trainer_state()}, "a.pth")


def test_mixed_precision_may_begin_and_end_with_a_resumed_run(caplog):
    scale = {"scale": 65536.0}
    begun = resumable_state(trainer_state(), trainer_state(scaler=scale), "a.pth")
    assert begun["grad_scaler"] == scale and "begins with the resumed run" in caplog.text
    resumable_state(trainer_state(scaler=scale), trainer_state(), "a.pth")
    assert "now is not" in caplog.text
    kept = resumable_state(trainer_state(scaler={"scale": 2.0}), trainer_state(scaler=scale), "a")
    assert kept["grad_scaler"] == {"scale": 2.0}
    caplog.clear()
    bfloat16 = trainer_state(scaler={})
    assert resumable_state(trainer_state(), bfloat16, "a")["grad_scaler"] == {}
    assert "begins with the resumed run" in caplog.text
    resumable_state(bfloat16, trainer_state(), "a")
    assert "now is not" in caplog.text
    float16 = resumable_state(bfloat16, trainer_state(scaler=scale), "a")
    assert float16["grad_scaler"] == scale and "loss scale of float16 begins" in caplog.text
    caplog.clear()
    assert resumable_state(bfloat16, bfloat16, "a")["grad_scaler"] == {} and not caplog.text


def test_the_state_of_a_default_trainer_is_nested():
    saved, current = trainer_state(), trainer_state(lr=0.02)
    hooks = saved.pop("hooks")
    outer = {"iteration": 4, "hooks": hooks, "_trainer": saved}
    state = resumable_state(outer, {"iteration": 0, "_trainer": current}, "a.pth")
    assert state["_trainer"]["optimizer"]["param_groups"][0]["initial_lr"] == 0.02
    assert state["hooks"]["LRScheduler"]["base_lrs"] == [0.02]
    with pytest.raises(UserError, match="no state of a training by this command"):
        resumable_state(saved, {"iteration": 0, "_trainer": current}, "a.pth")
