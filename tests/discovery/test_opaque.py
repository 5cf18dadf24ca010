"""Weights that cannot be read: where one of them could be the first conv, no other kernel is taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.tensors import OpaqueTensor
from chkpt_channels.discovery.find import find_first_convs, select_first_convs
from chkpt_channels.discovery.opaque import searched
from chkpt_channels.discovery.request import SearchRequest
from tests.support.memory import Memory, kernel

REST = {"bn1.weight": kernel(8), "conv2.weight": kernel(20, 8, 3, 3), "fc.weight": kernel(4, 20)}
STEM = {"conv1.weight": kernel(8, 3, 3, 3)}
BYTES = np.ones((8, 3, 3, 3), "i1")


def store(arrays: Mapping[str, Any], *weights: OpaqueTensor) -> Memory:
    memory = Memory({"": arrays})
    memory.opaque = weights
    return memory


def weight(name: str = "conv1.weight", shape: tuple[int, ...] | None = (8, 3, 3, 3), **words: Any) -> OpaqueTensor:
    return OpaqueTensor(name, shape, "is a sparse tensor", "make it dense", **words)


def names(memory: Memory) -> list[str]:
    return [conv.tensor.name for conv in find_first_convs(memory).first_convs]


def test_without_the_weight_the_second_kernel_would_be_the_first():
    assert names(Memory({"": REST})) == ["conv2.weight"]


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), None], ids=["shape", "no shape"])
def test_a_first_conv_that_cannot_be_read_is_refused(shape: tuple[int, ...] | None):
    memory = store(REST, weight(shape=shape))
    candidates = find_first_convs(memory).candidates
    assert (candidates[0].key, candidates[0].why_not) == ("conv1.weight", "is a sparse tensor")
    with pytest.raises(UnsupportedError, match=r"^a\.pth: conv1\.weight: is a sparse tensor$") as refused:
        select_first_convs(memory, SearchRequest())
    assert refused.value.hint == "make it dense"


@pytest.mark.parametrize("name", ["conv1.weight", "conv1.weight._data", "conv1._weight_qdata", "conv1.kernel"])
def test_a_first_conv_of_integers_without_a_scale_is_refused(name: str):
    with pytest.raises(UnsupportedError, match=f"^a.pth: {name}: its I8 numbers have no scale that is known"):
        select_first_convs(Memory({"": {name: BYTES, **REST}}), SearchRequest())


@pytest.mark.parametrize(
    "memory",
    [
        store({**STEM, **REST}, weight("conv3.weight", (32, 20, 3, 3), follows=3)),
        store({**STEM, **REST}, weight("loss.weight", (10,))),
        store({**STEM, **REST}, weight("batch", (8, 3, 32, 32))),
        Memory({"": {**STEM, **REST, "conv3.weight": np.ones((32, 20, 3, 3), "i1")}}),
        Memory({"": {**STEM, **REST}, "images": {"0": np.ones((8, 3, 32, 32), "u1")}}),
    ],
    ids=["an inner kernel", "a vector", "no weight", "inner integers", "pictures"],
)
def test_what_cannot_be_the_first_conv_changes_nothing(memory: Memory):
    assert names(memory) == ["conv1.weight"]


def test_another_model_that_cannot_be_read_keeps_the_file_from_being_half_converted():
    memory = Memory({"model": {**STEM, **REST}, "ema": REST})
    memory.opaque = (weight("ema/conv1.weight", group="ema", follows=4),)
    assert names(memory) == []
    assert [c.key for c in find_first_convs(memory).candidates[:2]] == ["ema/conv1.weight", "model/conv1.weight"]


def test_layer_names_another_kernel_but_not_the_weight_itself():
    memory = store(REST, weight())
    found = select_first_convs(memory, SearchRequest(layers=("conv2",)))
    assert [conv.tensor.name for conv in found.first_convs] == ["conv2.weight"]
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: is a sparse tensor"):
        select_first_convs(memory, SearchRequest(layers=("conv1",)))


def test_where_nothing_is_found_arrays_in_a_list_are_the_reason():
    with pytest.raises(UnsupportedError, match=r"^a\.pth: 0: is a sparse tensor$"):
        select_first_convs(store({}, weight("0"), weight("1", (8,))), SearchRequest())


def test_each_is_searched_in_its_place_and_its_parts_are_not():
    memory = store(
        {"a.weight": kernel(8), "conv1.weight/args/0": kernel(9), **REST}, weight(follows=1, parts=["conv1.weight/args/0"])
    )
    assert [tensor.name for tensor in searched(memory).tensors] == ["a.weight", "conv1.weight", *REST]


def test_what_is_ambiguous_is_not_settled_by_a_name_that_cannot_be_read():
    # the second network may take the image, or the colors that the first makes
    rivals = {"g.0.weight": kernel(8, 3, 3, 3), "g.1.weight": kernel(3, 8, 3, 3), "d.0.weight": kernel(16, 3, 3, 3)}
    memory = store({**rivals, "d.1.weight": kernel(4, 16, 3, 3)}, weight("e.0.weight", (24, 3, 9, 9), follows=4))
    with pytest.raises(UnsupportedError) as refused:
        select_first_convs(memory, SearchRequest())
    assert "g.0" in refused.value.hint
    assert "e.0" not in refused.value.hint
    assert {c.key: c.why_not for c in refused.value.candidates}["e.0.weight"] == "is a sparse tensor"
