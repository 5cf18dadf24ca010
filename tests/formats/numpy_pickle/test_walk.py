"""Arrays by name: dicts and lists of any kind, objects, names that repeat, and structures that are made to hurt."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.numpy_pickle.walk import Walk

HERE = Location("a.pkl")
W = np.ones((2, 3), np.float32)


def walk(value: Any) -> Walk:
    data = value if isinstance(value, bytes) else pickle.dumps(value, 4)
    return Walk(Tree.whole(data, HERE), HERE)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"a": W, "b": {"c": W, "d": "text"}, 3: W}, {"a": "", "b/c": "b", "3": ""}),
        ([W, [W]], {"0": "", "1/0": "1"}),
        (OrderedDict(a=W), {"a": ""}),
        ({"a": defaultdict(list, b=W)}, {"a/b": "a"}),
        ({"a/b": W}, {"a/b": ""}),
        (W, {"array": ""}),
        ({}, {}),
    ],
)
def test_names(value: Any, names: dict[str, str]):
    assert {name: named.group for name, named in walk(value).arrays.items()} == names


def test_python_2_calls_an_ordered_dict_with_pairs():
    inner = pickle.dumps([["a", np.ones(2)]], 2)[2:-1]
    found = walk(b"\x80\2ccollections\nOrderedDict\n(" + inner + b"tR.")
    assert list(found.arrays) == ["a"]


def test_one_array_under_two_names():
    found = walk({"a": W, "b": W}).arrays
    assert found["a"].call is found["b"].call


def test_what_an_object_holds_is_there_and_not_read():
    found = walk({"scaler": SimpleNamespace(mean=W), "w": W})
    assert list(found.arrays) == ["w"]
    (opaque,) = found.opaque
    assert (opaque.shape, opaque.what) == ((2, 3), "is in an object of types.SimpleNamespace")


def test_names_of_paddle():
    found = walk({"model": {"0.weight": W, "StructuredToParameterName@@": {"0.weight": "linear_0.w_0"}}})
    assert (found.marks, found.parameters) == ({"StructuredToParameterName@@"}, {"linear_0.w_0": "model/0.weight"})


def twice(*keys: str) -> bytes:
    """A dict with these keys, each with an array."""
    array = pickle.dumps(W, 2)[2:-1]
    return b"\x80\2}(" + b"".join(b"X" + len(key).to_bytes(4, "little") + key.encode() + array for key in keys) + b"u."


@pytest.mark.parametrize("value", [twice("a", "a"), {"a/b": W, "a": {"b": W}}])
def test_a_name_that_occurs_twice(value: Any):
    with pytest.raises(UnsupportedError, match="occurs twice"):
        walk(value)


def test_too_deep():
    array = pickle.dumps(W, 2)[2:-1]
    data = b"\x80\2" + b"]" * 100_000 + array + b"a" * 100_000 + b"."
    with pytest.raises(UnsupportedError, match="is nested more than 500 levels deep"):
        walk(data)


def test_a_memo_bomb():
    """Each list holds the one before it twice: 2^60 paths to one array."""
    bomb: Any = [W]
    for _ in range(60):
        bomb = [bomb, bomb]
    assert len(walk({"bomb": bomb, "w": np.ones(3)}).arrays) == 2
