"""What a node is made of, and a call or an id in one look: whatever was repeated, appended later or nested in itself."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest

from chkpt_channels.containers.pickle.nodes import Call, Kind, PickleNode, call_of, elements, plain
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location

CALLED = ("m", "f")


def root(opcodes: bytes) -> PickleNode:
    return Tree.whole(b"\x80\x02" + opcodes + b".", Location("a.pth")).root


def parsed(value: Any, protocol: int = 2) -> PickleNode:
    return Tree.whole(pickle.dumps(value, protocol), Location("a.pth")).root


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_elements_are_told_as_values(protocol: int):
    nodes, values = elements(parsed(("text", 7, (1, 2), (), None), protocol))
    assert values == ["text", 7, (1, 2), (), None]
    assert [node.kind for node in nodes[:2]] == [Kind.TEXT, Kind.INT]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, Kind.CONST),
        (1.0, Kind.FLOAT),
        (b"x", Kind.BYTES),
        (1 << 63, Kind.INT),
        ((1, "a"), Kind.TUPLE),
        ((1, 1 << 64), Kind.TUPLE),
        ([3], Kind.LIST),
        ({}, Kind.DICT),
        (OrderedDict(), Kind.CALL),
    ],
)
def test_anything_else_stays_a_node(value: Any, kind: int):
    """Above all a boolean, which is no number here, an integer that no size can be, and a list, which may grow later."""
    (node,) = elements(parsed([value], 4))[1]
    assert isinstance(node, PickleNode)
    assert node.kind is kind


def test_a_repeated_element_is_named_where_it_is_repeated():
    """(t, t): the second is a GET, which an edit names; its value is that of the first."""
    tree = Tree.whole(b"\x80\x02K\x05\x85q\x00h\x00\x86.", Location("a.pth"))
    (first, second), values = elements(tree.root)
    assert values == [(5,), (5,)]
    assert (second.kind, second.target) == (Kind.GET, first)
    assert tree.data[second.start : second.stop] == b"h\x00"


def test_what_is_appended_later_is_an_element():
    """A list that is memoized, put into a tuple and only then filled."""
    node = root(b"]q\x00\x85q\x010h\x00(K\x01K\x02e0h\x01")
    (filled,) = elements(node)[1]
    assert plain(filled) == (1, 2)


def test_a_list_that_holds_itself_is_looked_at_once():
    value: list[Any] = [1]
    value.append(value)
    number, itself = elements(parsed(value))[1]
    assert (number, itself.kind) == (1, Kind.LIST)
    assert elements(itself)[1][1] is itself
    assert plain(itself) is None


def test_what_has_no_elements_has_none():
    for value in (1, "text", {}, None):
        assert elements(parsed(value)) == ((), [])
    assert elements(parsed({"a": 1}))[1] == ["a"]


def call(opcodes: bytes) -> Call | None:
    node = root(opcodes)
    return call_of({CALLED}, *node.value)


@pytest.mark.parametrize("opcodes", [b"cm\nf\n(K\x01X\x01\0\0\0atR", b"(K\x01X\x01\0\0\0aim\nf\n", b"(cm\nf\nK\x01X\x01\0\0\0ao"])
def test_a_call_is_one_however_it_is_made(opcodes: bytes):
    found = call(opcodes)
    assert found is not None
    assert (found.name, found.values) == (CALLED, [1, "a"])
    assert [node.kind for node in found.nodes] == [Kind.INT, Kind.TEXT]


def test_function_and_arguments_may_be_repeated():
    found = call(b"cm\nf\nq\x000K\x01\x85q\x010h\x00h\x01R")
    assert found == (CALLED, found.nodes, [1]) if found else False


@pytest.mark.parametrize(
    "opcodes",
    [b"cm\ng\n)R", b"cn\nf\n)R", b"cm\nf\n]R", b"X\x01\0\0\0f)R", b"cm\nf\n)R)R"],
    ids=["another name", "another module", "a list of arguments", "a text", "what a call makes"],
)
def test_other_calls_are_not_taken_for_it(opcodes: bytes):
    assert call(opcodes) is None


def test_entries_and_lookup():
    node = parsed({"a": 1, 2: "b", "c": None})
    assert [(key.value, value.value) for key, value in node.entries()] == [("a", 1), (2, "b"), ("c", None)]
    assert node.lookup("a") is node.entries()[0][1]
    assert node.lookup("2") is None
    assert parsed([1, 2]).entries() == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, 7), ((1, 2), (1, 2)), ([1, 2], (1, 2)), ((), ()), ((1, "a"), None), (True, None), ("1", None), (1.0, None), ({}, None)],
)
def test_plain(value: Any, expected: Any):
    for protocol in (1, 2, 3, 4, 5):
        assert plain(parsed(value, protocol)) == expected
