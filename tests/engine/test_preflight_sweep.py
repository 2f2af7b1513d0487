"""Wrong values of every key that a run reads: each ends in one error that names the key."""

from __future__ import annotations

from functools import cache
from pathlib import Path
import pytest

from alrp.config import load_config
from alrp.engine.checks import check_config
from alrp.engine.checks.effects import read_by_commands
from alrp.engine.checks.keys import changed_keys, value_of
from alrp.engine.checks.trial import try_config
from alrp.errors import UserError

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "Shapes"

# What the configs change, so that each reads many keys and builds in little time. A third of that
# time goes to batch norm, computed in Python on the meta device; the last config keeps it.
NO_NORM = ["MODEL.RESNETS.NORM", ""]
COMMON = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32"]
CONFIGS = {
    "alrp_retinanet_R_18_FPN_maxiou": ["MODEL.RETINANET.NUM_CONVS", "1", *NO_NORM]
    + ["SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    + ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(500,)"],
    "focal_foveabox_R_18_FPN": ["MODEL.FOVEABOX.NUM_CONVS", "1", *NO_NORM]
    + ["INPUT.CROP.ENABLED", "True"],
    "ce_faster_rcnn_R_18_FPN": ["MODEL.MASK_ON", "True", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", *NO_NORM]
    + ["TEST.PRECISE_BN.ENABLED", "True", "INPUT.AUGMENTATION", "detectron2"],
    "retinanet_R_18_FPN": ["MODEL.RETINANET.NUM_CONVS", "1"],
}

# Looked at with datasets, device, evaluations and files of a run, not with the other keys.
ELSEWHERE = {"MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "TEST.BEST_METRIC"}
ELSEWHERE |= {"DATASETS.CLASSES", "DATASETS.COCO_FORMAT", "DATASETS.TEST", "DATASETS.TRAIN"}


@cache
def keys_and_values(name, changes):
    """The config of a file with changes, as one list of overrides, which is read much faster."""
    cfg = load_config(str(SHAPES / f"{name}.yaml"), list(changes))
    pairs = [text for key in changed_keys(cfg) for text in (key, repr(value_of(cfg, key)))]
    assert load_config("", pairs) == cfg
    return pairs


def load(name, overrides=()):
    return load_config("", [*keys_and_values(name, (*COMMON, *CONFIGS[name])), *overrides])


def wrong_values(value):
    """Texts, as on a command line, that are wrong for most keys with such a value."""
    if isinstance(value, bool):
        return ["maybe"]
    if isinstance(value, int):
        return ["-1000000000", "0", "many"]
    if isinstance(value, float):
        return ["float('nan')", "-1e9", "1e999"]
    if isinstance(value, str):
        return ["no_such", "''"]
    if isinstance(value, (list, tuple)):
        return ["()", "[None]", "[[[]]]", "('no_such',)", "(-1.0,)", "(1,) * 40"]
    return ["'text'", "-1.0"]


# Values from above that are right: what is off, all, or none at all.
RIGHT = {
    (key, "0")
    for key in (
        "DATALOADER.NUM_WORKERS",
        "INPUT.MIN_SIZE_TEST",
        "MODEL.ALRP.SELF_BALANCE.PERIOD",
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
        "MODEL.ROI_MASK_HEAD.NUM_CONV",
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
        "MODEL.RPN.BOUNDARY_THRESH",
        "SEED",
        "SOLVER.MICRO_BATCH_SIZE",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "SOLVER.WARMUP_ITERS",
        "TEST.EVAL_PERIOD",
        "TEST.NUM_PICTURES",
        "TEST.PATIENCE",
        "VIS_PERIOD",
    )
}
RIGHT |= {("MODEL.RPN.BOUNDARY_THRESH", "-1000000000"), ("MODEL.RPN.CONV_DIMS", "(-1.0,)")}
RIGHT |= {(key, "()") for key in ("MODEL.RPN.CONV_DIMS", "SOLVER.STEPS", "TEST.EXPECTED_RESULTS")}
RIGHT |= {(f"MODEL.{node}.NORM", "''") for node in ("FOVEABOX", "FPN", "RESNETS", "RETINANET")}
RIGHT |= {(f"MODEL.ALRP.{k}", "''") for k in ("BOX_LOSS", "HEAD_NODE", "SELF_BALANCE.MODE")}
# No layer of these heads has a norm here.
RIGHT |= {
    (f"MODEL.{node}.NORM", text)
    for node in ("ROI_BOX_HEAD", "ROI_MASK_HEAD")
    for text in ("no_such", "''")
}


def keys_read(name):
    cfg = load(name)
    reads = [*try_config(cfg, for_training=True).reads, *read_by_commands(cfg, for_training=True)]
    return [key for key in dict.fromkeys(reads) if key not in ELSEWHERE]


def errors_of(name, key, text):
    """(where, what) of each error; an override of the wrong type is refused when it is read."""
    try:
        cfg = load(name, [key, text])
    except UserError as error:
        return [(str(error), "")]
    findings = check_config(cfg, for_training=True, without_overrides=load(name))
    return [(f.where, f.what) for f in findings if f.severity == "error"]


def count_swept(name, keys):
    """Number of wrong values, each of which was found to end in one error that names the key."""
    cfg, number = load(name), 0
    for key in keys:
        for text in wrong_values(value_of(cfg, key)):
            errors, number = errors_of(name, key, text), number + 1
            if (key, text) in RIGHT:
                assert errors == [], (key, text)
            else:
                assert len(errors) == 1 and key in " ".join(errors[0]), (key, text, errors)
                assert "\n" not in "".join(errors[0])
    return number


@pytest.mark.parametrize("name", CONFIGS)
def test_each_wrong_value_ends_in_one_error_that_names_the_key(name):
    assert count_swept(name, keys_read(name)) > 150


def test_the_keys_of_rs_loss_are_swept_too(monkeypatch):
    name = "alrp_retinanet_R_18_FPN_maxiou"
    monkeypatch.setitem(CONFIGS, name, [*CONFIGS[name], "MODEL.ALRP.LOSS_TYPE", "rs"])
    keys = [key for key in keys_read(name) if key.startswith("MODEL.ALRP.")]
    assert {"MODEL.ALRP.DELTA", "MODEL.ALRP.SELF_BALANCE.MAX_WEIGHT"} <= set(keys)
    assert count_swept(name, keys) > 10


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_of_the_sweep_are_right(name):
    assert errors_of(name, "SEED", "1") == []
