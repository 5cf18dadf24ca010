"""What a pickled module says of its convolutions, and a state dict does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from chkpt_channels.discovery.find import find_first_convs
from tests.support.builders import Call, Global, Raw, conv, floats, spelled, torch_zip
from tests.support.files import FIXTURES, opened

MODULES = [FIXTURES / "torch_zip" / "module.pth", FIXTURES / "torch_legacy" / "module.pth"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_a_module_declares_its_channels(path: Path):
    with opened(path) as checkpoint:
        convs = find_first_convs(checkpoint).first_convs
        declared = checkpoint.graph.declarations(convs)
        assert [d.channels for d in declared] == [3] * len(declared)
        assert any(d.where.endswith("in_channels") for d in declared)
        assert not checkpoint.graph.contradictions(convs)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_a_kernel_of_other_channels_contradicts_its_module(path: Path):
    with opened(path) as checkpoint:
        (conv,) = find_first_convs(checkpoint).first_convs
        ((declaration, actual),) = checkpoint.graph.contradictions([conv._replace(in_channels=5)])
        assert (declaration.channels, actual) == (3, 5)
        assert declaration.where == f"{conv.tensor.key.removesuffix('.weight')}.in_channels"


def test_a_state_dict_says_nothing():
    with opened(FIXTURES / "torch_zip" / "state_dict.pth") as checkpoint:
        convs = find_first_convs(checkpoint).first_convs
        assert convs
        graph = checkpoint.graph
        assert not graph.declarations(convs)
        assert not graph.contradictions(convs)
        assert graph.with_groups(convs[0]) is convs[0]


def test_training_leaves_counts_beside_the_model():
    with opened(FIXTURES / "torch_zip" / "lightning.ckpt") as checkpoint:
        where = [d.where for d in checkpoint.graph.hyper_parameters(3)]
        assert where
        assert all(name.startswith("hyper_parameters/") for name in where)
        assert not checkpoint.graph.hyper_parameters(31)


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [("module.pth", "conv1.weight", True), ("scripted.pt", "conv1.weight", True), ("state_dict.pth", "conv1.weight", False)],
)
def test_a_tensor_belongs_to_a_module_or_to_a_dict(name: str, tensor: str, expected: bool):
    with opened(FIXTURES / "torch_zip" / name) as checkpoint:
        assert checkpoint.graph.is_in_module(tensor) == expected
        assert not checkpoint.graph.is_in_module("there is none")


@pytest.mark.parametrize("passing", [{"p"}, Call(Global("__builtin__", "set"), (["p"],))], ids=["protocol 4", "protocol 2"])
@pytest.mark.parametrize("more", [{}, {"_modules": {}}])
def test_what_a_state_dict_leaves_out(passing: set[str] | Call, more: Mapping[str, object], tmp_path: Path):
    state = {"_parameters": {"w": conv(), "none": None}, "_buffers": {"b": conv(), "p": conv()}, "a": conv(), **more}
    tree = pickled_module({**state, "_non_persistent_buffers_set": spelled_set(passing)})
    (tmp_path / "net.pth").write_bytes(torch_zip(tree, {"0": floats(108)}))
    with opened(tmp_path / "net.pth") as checkpoint:
        beside = {name: checkpoint.graph.is_beside_state_dict(name) for name in checkpoint.tensors}
    assert beside == {"w": False, "b": False, "p": True, "a": True}


def pickled_module(state: Mapping[str, object]) -> Call:
    return Call(Global("models", "Net"), (), dict(state))


def spelled_set(value: set[str] | Call) -> Raw | Call:
    """A set as protocol 4 encodes it."""
    return value if isinstance(value, Call) else Raw(b"\x8f(" + b"".join(map(spelled, value)) + b"\x90")


@pytest.mark.parametrize("name", ["conv1.weight", "there is none"])
def test_a_state_dict_leaves_nothing_out(name: str):
    with opened(FIXTURES / "torch_zip" / "state_dict.pth") as checkpoint:
        assert not checkpoint.graph.is_beside_state_dict(name)
    with opened(FIXTURES / "torch_zip" / "scripted.pt") as checkpoint:
        assert not checkpoint.graph.is_beside_state_dict(name)


@pytest.mark.parametrize(("name", "axis"), [("quantised.pth", 0), ("quantised_whole.pth", 0)])
def test_scales_and_zero_points_are_named(name: str, axis: int):
    with opened(FIXTURES / "torch_zip" / name) as checkpoint:
        (conv,) = find_first_convs(checkpoint).first_convs
        record = checkpoint.graph.quantization(conv)
        assert record is not None
        assert record.axis == axis
        assert record.scale in checkpoint.tensors
        assert isinstance(record.zero, int) or record.zero in checkpoint.tensors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("backbone=dict(type='ResNet', in_channels = 3),\nneck=dict(in_channels=[256])", "in_channels=3"),
        ("backbone=dict(type='ResNet')", ""),
        ("neck=dict(in_channels=32)", ""),
        (5, ""),
    ],
)
def test_a_count_in_the_text_that_mmengine_builds_the_network_from(text: object, told: str, put: Callable[..., Path]):
    root = {"meta": {"cfg": text, "epoch": 1}, "state_dict": {"conv1.weight": conv(), "conv2.weight": conv("1", (8, 4, 3, 3))}}
    with opened(put(torch_zip(root, {"0": floats(108), "1": floats(288)}))) as checkpoint:
        notices = checkpoint.graph.notices(find_first_convs(checkpoint).first_convs)
        assert [notice.code for notice in notices] == (["config_text"] if told else [])
        assert all(told in notice.message for notice in notices)
