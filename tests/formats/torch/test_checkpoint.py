"""What both containers share: elements in C order, the line that loads a file, what else is in it, and shared memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.tensors import Edits
from tests.support.builders import Call, Global, conv, floats, storage, tensor, torch_legacy, torch_zip
from tests.support.files import FIXTURES, opened

BUILDERS = pytest.mark.parametrize("build", [torch_zip, torch_legacy])
Build = Callable[..., bytes]
RAW = floats(108)


@BUILDERS
def test_elements_come_in_c_order(build: Build, put: Callable[..., Path]):
    last = tensor(storage("0", 108), (4, 3, 3, 3), stride=(27, 1, 9, 3))
    with opened(put(build({"conv1.weight": last}, {"0": RAW}))) as checkpoint:
        stored = np.frombuffer(RAW, "f4").reshape(4, 3, 3, 3)
        assert np.array_equal(checkpoint.load("conv1.weight"), stored.transpose(0, 3, 1, 2))


@BUILDERS
def test_the_stride_of_an_axis_of_one_step_says_nothing(build: Build, put: Callable[..., Path]):
    one = tensor(storage("0", 108), (1, 12, 3, 3), stride=(2**62, 1, 36, 12))
    with opened(put(build({"conv1.weight": one}, {"0": RAW}))) as checkpoint:
        stored = np.frombuffer(RAW, "f4").reshape(1, 3, 3, 12)
        assert np.array_equal(checkpoint.load("conv1.weight"), stored.transpose(0, 3, 1, 2))


@BUILDERS
def test_tensors_on_the_same_bytes_share_them(build: Build, put: Callable[..., Path]):
    tied = {"a": conv(), "b": tensor(storage("0", 108), (27,)), "c": tensor(storage("0", 108), (81,), offset=27)}
    with opened(put(build(tied, {"0": RAW}))) as checkpoint:
        assert checkpoint.shared(["a", "b"]) == ("b", "a")
        assert checkpoint.shared(["b", "c"]) is None


@BUILDERS
@pytest.mark.parametrize(
    ("value", "group", "others", "line"),
    [
        ({"conv1.weight": conv()}, "", [], "torch.load('x.pth', weights_only=True)"),
        ((("w", conv()),), "", [], "dict(torch.load('x.pth', weights_only=True))"),
        ([("w", conv())], "", [], "dict(torch.load('x.pth', weights_only=True))"),
        ({"model": {"w": conv()}, "epoch": 3}, "model", ["epoch"], "torch.load('x.pth', weights_only=True)['model']"),
        ({"a": {"b": {"w": conv()}}, "c": 1}, "a/b", ["c"], "torch.load('x.pth', weights_only=True)['a']['b']"),
    ],
)
def test_what_is_beside_a_state_dict(
    build: Build, value: object, group: str, others: list[str], line: str, put: Callable[..., Path]
):
    with opened(put(build(value, {"0": RAW}))) as checkpoint:
        assert checkpoint.others(group) == others
        assert checkpoint.loading("x.pth").state == line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("torch_zip/scripted.pt", "model = torch.jit.load('x.pt')"),
        ("torch_zip/module.pth", "model = torch.load('x.pt', weights_only=False)"),
        ("torch_legacy/module.pth", "model = torch.load('x.pt', weights_only=False)"),
    ],
)
def test_modules_are_loaded_whole(name: str, line: str):
    with opened(FIXTURES / name) as checkpoint:
        assert checkpoint.loading("x.pt").statement == line


@BUILDERS
def test_a_module_in_a_dict_is_loaded_whole(build: Build, put: Callable[..., Path]):
    layer = Call(Global("torch.nn", "Conv2d"), (), {"_modules": {}, "_parameters": {"weight": conv()}})
    value = {"epoch": 3, "ema": Call(Global("models", "Net"), (), {"_modules": {"conv1": layer}})}
    with opened(put(build(value, {"0": RAW}))) as checkpoint:
        assert checkpoint.loading("x.pt").statement == "model = torch.load('x.pt', weights_only=False)['ema']"


@pytest.mark.parametrize("name", ["torch_zip/training.ckpt", "torch_legacy/training.pth"])
def test_an_optimizers_state_has_entries_of_tensors_and_numbers(name: str):
    with opened(FIXTURES / name) as checkpoint:
        assert checkpoint.optimizer_entries
        for entry in checkpoint.optimizer_entries:
            assert entry.tensors.keys() | entry.numbers.keys()
            assert {tensor.name for tensor in entry.tensors.values()} <= checkpoint.tensors.keys()


@pytest.mark.parametrize(
    ("name", "others", "hint"),
    [
        ("state_dict.pth", [], "-o NAME.safetensors"),
        ("module.pth", ["a pickled module"], "-o NAME.safetensors --state-dict ''"),
        ("scripted.pt", ["code"], "-o NAME.safetensors --state-dict ''"),
    ],
)
def test_what_cannot_be_taken_out_is_written_elsewhere(name: str, others: list[str], hint: str):
    with opened(FIXTURES / "torch_zip" / name) as checkpoint:
        first = next(iter(checkpoint.tensors.values()))
        assert checkpoint.others(first.group) == others
        with pytest.raises(UnsupportedError, match="is taken out by --fold-adapter") as caught:
            checkpoint.splices(Edits(removed=(first.name,)))
        assert caught.value.hint == hint


def test_a_module_inside_of_a_dict_is_named():
    with opened(FIXTURES / "torch_zip" / "module_in_dict.pt") as checkpoint:
        (group,) = {tensor.group for tensor in checkpoint.tensors.values()}
        assert checkpoint.others(group)[-1] == f"a pickled module in {group}"
