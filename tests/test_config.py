"""Configs are read as data: values and tuples, but no code."""

from __future__ import annotations

from pathlib import Path
import pytest
import yaml

from detectron2.config import CfgNode, get_cfg

from alrp.config import add_alrp_config, load_config
from alrp.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "configs" / "Base-ALRP-RetinaNet.yaml"


@pytest.fixture
def write(tmp_path):
    """``write(text, name)``: path of a YAML file in a folder of its own."""

    def write_text(text, name="config.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_text


CODE = [
    '!!python/object/apply:os.mkdir ["{}"]',
    "!!python/object/new:pathlib.Path ['{}']",
    "!!python/name:os.system",
    "!!python/module:os",
    '!!python/object/apply:eval ["[1, 2]"]',
]


@pytest.mark.parametrize("value", CODE)
@pytest.mark.parametrize("in_base", [False, True])
def test_a_python_tag_is_named_and_not_followed(write, tmp_path, value, in_base):
    mark = tmp_path / "made"
    spoiled = write(f"SEED: 1\nMODEL:\n  WEIGHTS: {value.format(mark)}\n", "spoiled.yaml")
    file = write(f'_BASE_: ["{BASE}", "spoiled.yaml"]\n') if in_base else spoiled
    tag = value.split(" ")[0]
    with pytest.raises(UserError) as raised:
        load_config(file)
    message = str(raised.value)
    assert f"{spoiled}, line 3, holds the Python tag {tag}, which would run code" in message
    assert "write the value itself" in message and not mark.exists()


def test_a_base_of_detectron2_that_runs_code_is_refused_with_the_way_out(write):
    from detectron2 import model_zoo

    base = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    with pytest.raises(UserError, match=r"Base-RetinaNet.yaml, line \d+, .*must be copied"):
        load_config(write(f'_BASE_: "{base}"\n'))
    base = model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    assert load_config(write(f'_BASE_: "{base}"\n')).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


@pytest.mark.parametrize(
    "text", ["!!python/tuple [480, 512]", '"(480, 512)"', "(480, 512)", "[480, 512]"]
)
def test_tuples_can_be_written_in_four_ways(write, text):
    base = write(f'_BASE_: "{BASE}"\nINPUT:\n  MIN_SIZE_TRAIN: {text}\n', "base.yaml")
    cfg = load_config(write(f'_BASE_: "{base}"\nSEED: 3\n'))
    assert cfg.INPUT.MIN_SIZE_TRAIN == (480, 512) and cfg.SEED == 3


def test_a_tuple_of_tuples_is_one(write):
    text = "!!python/tuple [!!python/tuple [1, 2], [3]]"
    cfg = load_config(write(f"MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {text}\n"))
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [(1, 2), [3]]


def test_an_unknown_tag_is_a_mistake_of_the_config(write):
    with pytest.raises(UserError, match="config: .*!mine"):
        load_config(write("SEED: !mine 3\n"))


def test_every_config_of_the_project_is_data():
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yaml.safe_load(path.read_text())


def test_overrides_are_values():
    cfg = load_config("", ["SEED", "3", "INPUT.MIN_SIZE_TRAIN", "(480, 512)"])
    assert cfg.SEED == 3 and cfg.INPUT.MIN_SIZE_TRAIN == (480, 512)
    code = "__import__('os').getcwd()"
    assert load_config("", ["MODEL.WEIGHTS", code]).MODEL.WEIGHTS == code


def test_reading_a_config_leaves_safe_load_of_the_process_as_it_is(write):
    text = "!!python/tuple [1, 2]"
    assert load_config(write(f"INPUT:\n  MIN_SIZE_TRAIN: {text}\n")).INPUT.MIN_SIZE_TRAIN == (1, 2)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(text)


@pytest.mark.parametrize("in_base", [False, True])
def test_a_key_that_stands_twice_is_refused(write, in_base):
    path = write("SOLVER: {MAX_ITER: 5}\nSEED: 1\nSOLVER: {BASE_LR: 0.1}\n", "twice.yaml")
    if in_base:
        path = write(f'_BASE_: "{path}"\n')
    with pytest.raises(UserError, match="twice.yaml, line 3, holds the key 'SOLVER' a second time"):
        load_config(path)


def test_a_file_that_builds_on_itself_is_refused(write):
    path = write('_BASE_: "config.yaml"\n')
    with pytest.raises(UserError, match="leads back"):
        load_config(path)


def test_keys_of_other_projects_keep_their_values():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.MODEL.ATSS = "ADAMW", CfgNode({"TOPK": 13, "OTHER": 1})
    add_alrp_config(cfg)
    assert (cfg.SOLVER.OPTIMIZER, cfg.MODEL.ATSS.TOPK, cfg.MODEL.ATSS.OTHER) == ("ADAMW", 13, 1)
    assert cfg.MODEL.ALRP.LOSS_TYPE == "alrp"
    cfg.MODEL.ALRP.LOSS_TYPE = "ap"
    add_alrp_config(cfg)
    assert cfg.MODEL.ALRP.LOSS_TYPE == "ap"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MODEL: {ALRP: {LOSSTYPE: rs}}", "write MODEL.ALRP.LOSS_TYPE .*if that is meant"),
        ("SOLVER: {base_lr: 0.1}", "write SOLVER.BASE_LR .*if that is meant"),
        ("SOLVER.BASE_LR: 0.1", "in a file, write it as SOLVER: {BASE_LR: ...}"),
        ("MODEL.ATSS.TOPK: 3", "in a file, write it as MODEL: {ATSS: {TOPK: ...}}"),
        ("SOLVER: {BASE_LR: 5}", "SOLVER.BASE_LR: expected a number with .* got 5; write 5.0"),
        ("DATASETS: {TRAIN: mine}", "TRAIN: expected a list, but got mine; write \\['mine'\\]"),
        ("SEED: abc", "SEED: expected a whole number, but got abc"),
    ],
)
def test_a_wrong_key_or_value_brings_the_right_one(write, text, said):
    with pytest.raises(UserError, match=said):
        load_config(write(text))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["SEED", "1", "SOLVER.GAMMA=0.1", "SEED"], "write SOLVER.GAMMA 0.1 with a blank"),
        (["SEED", "1", "SOLVER.STEPS", "(3,", "4)"], "got 5 words; look at '4\\)'"),
        (["SEED", "1", "SOLVER.GAMMA"], "got 3 words; look at 'SOLVER.GAMMA'"),
    ],
)
def test_overrides_that_are_no_pairs_are_told_so(overrides, said):
    with pytest.raises(UserError, match=said):
        load_config("", overrides)
