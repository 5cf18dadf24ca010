"""What a pickled module says of its convolutions, and a state dict does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from chkpt_channels.discovery.find import find_first_convs
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


@pytest.mark.parametrize(("name", "axis"), [("quantised.pth", 0), ("quantised_whole.pth", 0)])
def test_scales_and_zero_points_are_named(name: str, axis: int):
    with opened(FIXTURES / "torch_zip" / name) as checkpoint:
        (conv,) = find_first_convs(checkpoint).first_convs
        record = checkpoint.graph.quantization(conv)
        assert record is not None
        assert record.axis == axis
        assert record.scale in checkpoint.tensors
        assert isinstance(record.zero, int) or record.zero in checkpoint.tensors
