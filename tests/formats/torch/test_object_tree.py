"""The pickled object as named tensors: paths, groups, channel counts and optimizers."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.formats.torch.object_tree import TorchObject
from tests.support.builders import Call, Global, Raw, conv, pickled, spelled


def read(value: Any, prefix: str = "") -> TorchObject:
    place = Location("a.pth")
    return TorchObject(Tree(pickled(value), place), place, prefix)


def test_names_are_paths_and_groups_lead_to_the_innermost_dict():
    found = read({"state_dict": {"conv1.weight": conv()}, "list": [conv()], "alone": conv()})
    assert found.groups == {"state_dict/conv1.weight": "state_dict", "list/0": "list", "alone": ""}


@pytest.mark.parametrize("pairs", [[("conv1.weight", conv()), ("epoch", 3)], (["conv1.weight", conv()],)])
def test_a_list_of_names_and_values_is_read_like_a_dict(pairs: Any):
    assert read({"model": pairs}).groups == {"model/conv1.weight": "model"}


@pytest.mark.parametrize("pairs", [[("a", conv()), ("a", conv("1"))], [("a", conv()), (1, conv("1"))], [("a", conv(), 1)]])
def test_another_list_of_pairs_is_a_list(pairs: Any):
    assert "0/1" in read(pairs).views


def test_a_part_of_an_archive_has_its_name_in_front():
    assert list(read((conv(),), "constants").views) == ["constants/0"]


def test_integers_that_are_called_like_channels_are_remembered():
    found = read({"hyper_parameters": {"in_channels": 3, "classes": 3}, "in_chans": "3"})
    assert list(found.counts) == ["hyper_parameters/in_channels"]


@pytest.mark.parametrize("name", ["channels", "ch"])
def test_a_count_of_one_word_is_one_in_a_dict_alone(name: str):
    """Attributes of that name are widths of layers as well."""
    module = Call(Global("models", "Net"), (), {name: 3, "yaml": {name: 3, "nc": 3}})
    assert list(read({"ema": module}).counts) == [f"ema/yaml/{name}"]


def test_an_optimizer_is_what_has_a_state_and_groups():
    state = {0: {"exp_avg": conv(), "step": 7}}
    found = read({"optimizer": {"state": state, "param_groups": []}, "other": {"state": state}})
    (entry,) = found.optimizers
    assert (entry.where, entry.parameter, list(entry.numbers)) == ("optimizer/state/0", "0", ["step"])
    assert found.numbers["optimizer/state/0/step"].target.value == 7


def test_state_in_a_list_is_emptied_and_not_shifted():
    state = [{"exp_avg": conv(), "step": 7}, {}]
    first, second = read({"opt": {"state": state, "hypers": []}, "other": {"state": state}}).optimizers
    assert (first.where, first.parameter, list(first.numbers), len(first.spans)) == ("opt/state/0", "0", ["step"], 2)
    assert (second.where, second.spans) == ("opt/state/1", [])


def test_an_optimizer_that_is_an_object_is_not_read():
    parts = {"state": {1: {"exp_avg": conv()}}, "param_groups": [{"params": [conv()]}], "defaults": {}}
    found = read({"model": {"w": conv()}, "run": {"optimizer": Call(Global("torch.optim.adam", "Adam"), (), parts)}})
    assert list(found.views) == ["model/w"]
    (entry,) = found.optimizers
    assert (entry.where, entry.whole) == ("run/optimizer", True)


@pytest.mark.parametrize("value", [{"a": {1: conv(), "1": conv()}}, {"a/b": conv(), "a": {"b": conv()}}])
def test_two_tensors_of_one_name_are_refused(value: Any):
    with pytest.raises(UnsupportedError, match="the name occurs twice in the file"):
        read(value)


@pytest.mark.parametrize("depth", [LIMITS.name_depth - 1, LIMITS.name_depth + 1])
def test_a_tensor_below_the_deepest_names_is_refused(depth: int):
    value = Raw(b"]" * depth + spelled(conv()) + b"a" * depth)  # lists in lists
    if depth <= LIMITS.name_depth:
        assert len(read(value).views) == 1
        return
    with pytest.raises(UnsupportedError, match=f"nested more than {LIMITS.name_depth} levels deep"):
        read(value)


def test_the_same_pickle_in_another_file_is_read_once():
    raw, here, other = pickled({"a": conv()}), Location("a.pth"), Location("b.pth", "data.pkl")
    first, again = TorchObject.of(raw, here), TorchObject.of(bytes(bytearray(raw)), other)
    assert again.views is first.views
    assert again.tree.root is first.tree.root
    assert (first.location, first.tree.location, again.location, again.tree.location) == (here, here, other, other)
    assert TorchObject.of(raw, here, "constants").views.keys() == {"constants/a"}
    assert TorchObject.of(raw[:-1] + b"0N.", other).tree.root is not first.tree.root
    with pytest.raises(DamagedError, match=r"b\.pth"):
        TorchObject.of(raw[:-1], other)
