"""Files given as weights: read as data whatever their kind, or refused with a way out."""

from __future__ import annotations

import fractions
import gzip
import io
import numpy as np
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alrp.checkpoint import CheckedCheckpointer
from alrp.checkpoint.pickles import ForeignClass, read_arrays
from alrp.checkpoint.serialization import read_zoo_pickle
from alrp.errors import UserError


class Network(nn.Module):
    """A model of two tensors."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)


@pytest.fixture
def state():
    weight = torch.arange(6.0).reshape(2, 3)
    return OrderedDict([("head.weight", weight), ("head.bias", torch.tensor([7.0, 8.0]))])


@pytest.fixture
def load(tmp_path):
    """``load(name)``: a model with the weights of a file in the folder of the test."""

    def load_file(name):
        model = Network()
        CheckedCheckpointer(model).load(str(tmp_path / name))
        return model

    return load_file


def assert_loaded(model, state):
    for name, tensor in model.state_dict().items():
        assert_close(tensor, state[name], rtol=0, atol=0)


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


LAYOUTS = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "iteration": 3},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "module": lambda state: {"model": {f"module.{n}": t for n, t in state.items()}},
    "plain_module": lambda state: {f"module.{n}": t for n, t in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_of_torch_save_are_loaded(tmp_path, load, state, layout, legacy):
    content = LAYOUTS[layout](state)
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    assert_loaded(load("a.pth"), state)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_are_loaded(tmp_path, load, state, name):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(dict(state), tmp_path / name)
    assert_loaded(load(name), state)


def test_safetensors_without_their_package_say_what_to_install(tmp_path):
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from alrp.checkpoint.serialization import read_checkpoint\n"
        f"read_checkpoint({str(tmp_path / 'a.safetensors')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: " in done.stderr and "pip install safetensors" in done.stderr


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda arrays: {"model": arrays, "__author__": "Detectron2 Model Zoo"},
        lambda arrays: {"model": arrays, "__author__": "x", "matching_heuristics": True},
        lambda arrays: {"blobs": {**arrays, "head.bias_momentum": np.ones(2)}, "cfg": "text"},
        lambda arrays: arrays,
    ],
    ids=["zoo", "heuristics", "detectron", "imagenet"],
)
def test_pickles_of_the_zoos_are_loaded(tmp_path, load, state, wrap, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrap(arrays(state)), protocol))
    assert_loaded(load("a.pkl"), state)


def test_a_pickle_of_python_2_is_loaded(tmp_path, load, state):
    """Byte strings of Python 2 hold the numbers; this is how its pickle writes them."""
    file = io.BytesIO()
    pickler = pickle._Pickler(file, protocol=2)
    as_text = {bytes: lambda self, data: self.write(b"T" + len(data).to_bytes(4, "little") + data)}
    pickler.dispatch = {**pickle._Pickler.dispatch, **as_text}
    pickler.dump({"model": arrays(state), "__author__": "x"})
    content = file.getvalue().replace(b"numpy._core.", b"numpy.core.")
    assert b"_codecs" not in content
    (tmp_path / "a.pkl").write_bytes(content)
    assert_loaded(load("a.pkl"), state)


def test_a_file_of_torch_save_that_is_called_pkl_is_loaded(tmp_path, load, state):
    torch.save({"model": state}, tmp_path / "a.pkl")
    assert_loaded(load("a.pkl"), state)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_kind_come_back_as_they_were(tmp_path, protocol):
    content = {
        "arrays": {
            **{kind: np.arange(6).astype(kind).reshape(2, 3) for kind in "?bBhHiIlLefdFD"},
            "big endian": np.array([1.5, -2.0], ">f4"),
            "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "every other": np.arange(6.0)[::2],
            "empty": np.zeros((0, 3)),
            "scalar": np.array(3.0),
        },
        "others": [1, 2.5, "é", b"\xff", bytearray(b"a"), 1j, None, True, {2}, frozenset([3])],
        "number": np.float32(2.5),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_arrays(str(tmp_path / "a.pkl"))
    assert read["others"] == content["others"] and read["number"] == 2.5
    for name, array in content["arrays"].items():
        assert read["arrays"][name].dtype == array.dtype, name
        np.testing.assert_array_equal(read["arrays"][name], array)


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(folder):
    mark = str(folder / "EXECUTED")
    return {
        "mkdir": Attack(os.mkdir, mark),
        "eval": Attack(eval, f"__import__('os').mkdir({mark!r})"),
        "getattr": Attack(getattr, "a", "upper"),
        "numpy": Attack(np.save, mark, 1),
        "load": Attack(np.load, mark),
        "object array": np.array([Attack(os.mkdir, mark)], dtype=object),
        "tensor": torch.zeros(1),
        "partial": Attack(__import__("functools").partial, os.mkdir, mark),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", attacks(Path(".")))
@pytest.mark.parametrize("place", ["alone", "in the weights", "beside them"])
def test_a_pickle_that_calls_functions_is_refused_by_name(tmp_path, state, name, place, protocol):
    attack = attacks(tmp_path)[name]
    content = {
        "alone": attack,
        "in the weights": {"model": {**arrays(state), "a": attack}, "__author__": "x"},
        "beside them": {"model": arrays(state), "__author__": "x", "a": attack},
    }[place]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match="holds objects of the classes .*run code") as raised:
        read_zoo_pickle(str(tmp_path / "a.pkl"))
    assert isinstance(raised.value.__cause__, ForeignClass)
    assert not (tmp_path / "EXECUTED").exists()


REFUSED_OPCODES = {
    "dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__init_subclass__\x93.",
    "persistent id": b"\x80\x02Pname\n.",
    "extension": b"\x80\x02\x82\x01.",
    "state of a function": b"\x80\x02c__builtin__\nset\n}X\x05\x00\x00\x00func_c_builtin\n.",
    "call of ndarray": b"\x80\x02cnumpy\nndarray\n)R.",
    "raw objects": b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
    "wrong size": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x08\x85cnumpy\ndtype\n"
        b"X\x02\x00\x00\x00f8\x85R\x89U\x01at\x62."
    ),
}


@pytest.mark.parametrize("name", REFUSED_OPCODES)
def test_what_only_a_forged_pickle_does_is_refused(tmp_path, name):
    (tmp_path / "a.pkl").write_bytes(REFUSED_OPCODES[name])
    with pytest.raises(UserError, match="a.pkl"):
        read_zoo_pickle(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_pickle_is_called_so(tmp_path, state, share):
    data = pickle.dumps({"model": arrays(state), "__author__": "x"})
    (tmp_path / "a.pkl").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="cannot be read .* may be truncated"):
        read_zoo_pickle(str(tmp_path / "a.pkl"))


def tar(path, state):
    torch.save(state, path.with_name("inner.pth"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inner.pth"), "inner.pth")


def zipped(path, state):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "text")


def scripted(path, state):
    torch.jit.script(nn.Linear(3, 2)).save(path)


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda path, state: path.write_text("<html>404</html>"), "a text file"),
        (lambda path, state: path.write_bytes(b""), "it is empty"),
        (lambda path, state: path.write_text("version https://git-lfs.x"), "Run git lfs pull"),
        (lambda path, state: path.write_bytes(gzip.compress(b"a")), "Unpack it"),
        (tar, "a tar archive.* Unpack it"),
        (zipped, "a zip archive of other files.* Unpack it"),
        (lambda path, state: path.write_bytes(pickle.dumps(arrays(state))), "a plain pickle"),
        (
            lambda path, state: path.write_bytes(random.Random(0).randbytes(1000)),
            "may be truncated or no",
        ),
        (lambda path, state: path.write_bytes(b"\x0f" + bytes(7) + b"{" + bytes(50)), "truncated"),
        (lambda path, state: torch.save(state["head.bias"], path), "the file holds a Tensor"),
        (lambda path, state: torch.save({"model": {"a": 1}}, path), "expected weights"),
    ],
    ids="html empty lfs gzip tar zip pickle noise safetensors tensor numbers".split(),
)
def test_other_files_are_called_what_they_are(tmp_path, load, state, write, said):
    write(tmp_path / "a.pth", state)
    with pytest.raises(UserError, match=f"a.pth.*{said}"):
        load("a.pth")


def whole_model(state):
    model = nn.Sequential(OrderedDict(head=nn.Linear(3, 2)))
    model.load_state_dict(state)
    return model


FOREIGN = {
    "state_dict": lambda s: {"state_dict": s, "config": fractions.Fraction(1, 2)},
    "model": lambda s: {"model": s, "args": fractions.Fraction(1, 2)},
    "no entry": lambda s: {**s, "version": fractions.Fraction(1, 2)},
    "ema": lambda s: {"model": None, "ema": whole_model(s), "epoch": 1},
    "module in an entry": lambda s: {"model": whole_model(s), "epoch": 1},
    "whole model": whole_model,
    "parallel model": lambda s: nn.DataParallel(whole_model(s)),
}


def run_suggestion(message, folder):
    """Run the command that a message ends with, in a shell."""
    command = message.splitlines()[-1].strip()
    assert command.startswith("python -c ")
    subprocess.run(
        command.replace("python", sys.executable, 1),
        shell=True,
        cwd=folder,
        check=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    "layout, legacy",
    [*((layout, False) for layout in FOREIGN), ("state_dict", True), ("parallel model", True)],
)
def test_the_command_for_foreign_files_makes_one_that_loads(tmp_path, load, state, layout, legacy):
    name = 'it\'s "$HOME" é.pth'
    torch.save(FOREIGN[layout](state), tmp_path / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="run code") as raised:
        load(name)
    message = str(raised.value)
    assert "a whole model" in message or "fractions.Fraction" in message
    run_suggestion(message, tmp_path)
    assert_loaded(load("NEW.pth"), state)


def test_the_command_for_torchscript_makes_a_file_that_loads(tmp_path, load, state):
    torch.jit.script(whole_model(state)).save(tmp_path / "a.pt")
    with pytest.raises(UserError, match="a TorchScript archive") as raised:
        load("a.pt")
    run_suggestion(str(raised.value), tmp_path)
    assert_loaded(load("NEW.pth"), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": arrays(s), "__author__": "x", "a": fractions.Fraction(1, 2)},
        lambda s: {"model": dict(s), "__author__": "Detectron2 Model Zoo"},
        lambda s: {"blobs": {**arrays(s), "a": fractions.Fraction(1, 2)}},
    ],
    ids=["zoo", "tensors", "detectron"],
)
def test_the_command_for_foreign_pickles_makes_one_that_loads(tmp_path, load, state, wrap):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(wrap(state)))
    with pytest.raises(UserError, match="run code") as raised:
        load("a.pkl")
    run_suggestion(str(raised.value), tmp_path)
    assert_loaded(load("NEW.pkl"), state)


def test_a_checkpointer_can_be_used_again_after_a_failure(tmp_path, state):
    torch.save({"model": state}, tmp_path / "a.pth")
    model = Network()
    checkpointer = CheckedCheckpointer(model)
    with pytest.raises(UserError):
        checkpointer.load(str(tmp_path / "nowhere.pth"))
    checkpointer.load(str(tmp_path / "a.pth"))
    assert_loaded(model, state)


def test_only_data_is_read_whatever_the_default_of_pytorch_is(tmp_path, monkeypatch):
    mark = tmp_path / "EXECUTED"
    torch.save({"model": Attack(os.mkdir, str(mark))}, tmp_path / "a.pth")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Attack(os.mkdir, str(mark))))
    (tmp_path / "c.pyth").write_bytes((tmp_path / "a.pth").read_bytes())
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name in ("a.pth", "b.pkl", "c.pyth"):
        with pytest.raises(UserError, match="run code"):
            CheckedCheckpointer(Network()).load(str(tmp_path / name))
    assert not mark.exists()
