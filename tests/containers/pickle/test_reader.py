"""The pickle reader: the same values as the unpickler's, where they are spelled, and nothing executed, expanded or recursed."""

from __future__ import annotations

import os
import pickle
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.containers.pickle.reader import OutOfData, Tree
from chkpt_channels.core.errors import Location

PLACE = Location("a.pth", "data.pkl")
PROTOCOLS = (1, 2, 3, 4, 5)

atoms = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text(max_size=5) | st.integers()
objects = st.recursive(
    atoms | st.frozensets(st.integers(), max_size=3) | st.sets(st.text(max_size=3), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | inner.map(lambda shared: [shared, (shared, shared), {"a": shared}])
    ),
    max_leaves=25,
)


def rebuilt(node: PickleNode, values: dict[PickleNode, Any] | None = None) -> Any:
    """The object that a tree describes, with other `values` at some of its nodes."""
    if values and node in values:
        return values[node]
    node = node.target
    match node.kind:
        case Kind.TUPLE:
            return tuple(rebuilt(child, values) for child in node.children)
        case Kind.LIST:
            return [rebuilt(child, values) for child in node.children]
        case Kind.DICT:
            return {rebuilt(key, values): rebuilt(value, values) for key, value in node.entries()}
        case Kind.SET:
            return {rebuilt(child, values) for child in node.children}
        case Kind.CALL if node.value[0].is_global("_codecs", "encode"):
            return rebuilt(node.value[1], values)[0].encode("latin1")
        case Kind.CALL if node.value[0].is_global("collections", "OrderedDict"):
            return OrderedDict((rebuilt(key, values), rebuilt(value, values)) for key, value in node.entries())
        case Kind.CALL:
            called = {"set": set, "frozenset": frozenset, "bytes": bytes}[node.value[0].target.value[1]]
            return called(*rebuilt(node.value[1], values))
    return node.value


def ints(root: PickleNode) -> list[PickleNode]:
    """The nodes that spell integers, each once."""
    found, seen, todo = [], set(), [root]
    while todo:
        node = todo.pop().target
        if node in seen:
            continue
        seen.add(node)
        if node.kind is Kind.INT:
            found.append(node)
        elif node.kind in (Kind.TUPLE, Kind.LIST, Kind.SET):
            todo += node.children
        elif node.kind is Kind.CALL:
            todo += [node.value[1], *(part for item in node.items or () for part in item)]
        for key, value in node.entries():
            todo += [key, value]
    return found


@given(objects, st.sampled_from(PROTOCOLS))
def test_a_tree_says_what_the_unpickler_makes(value: Any, protocol: int):
    data = pickle.dumps(value, protocol)
    tree = Tree.whole(data, PLACE)
    assert rebuilt(tree.root) == value
    assert (tree.start, tree.stop) == (0, len(data))
    for node in ints(tree.root):
        assert pickle.loads(data[node.start : node.stop] + b".") == node.value


def test_names_are_remembered_and_not_resolved(tmp_path: Path):
    class Marker:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "marker"),)

    for protocol in PROTOCOLS:
        tree = Tree.whole(pickle.dumps([Marker(), OrderedDict(), Counter()], protocol), PLACE)
        assert tree.globals.keys() == {("posix", "mkdir"), ("collections", "OrderedDict"), ("collections", "Counter")}
    assert not (tmp_path / "marker").exists()


def test_one_pickle_behind_the_other():
    data = b"".join(pickle.dumps(value, 2) for value in (1, [2, 3], "x"))
    trees: list[Tree] = []
    while not trees or trees[-1].stop < len(data):
        trees.append(Tree(data, PLACE, start=trees[-1].stop if trees else 0))
    assert [rebuilt(tree.root) for tree in trees] == [1, [2, 3], "x"]
    with pytest.raises(UnsupportedError, match=f"holds a second pickle behind the first, at byte {trees[0].stop}"):
        Tree.whole(data, PLACE)
    with pytest.raises(DamagedError, match="bytes follow the end of the pickle"):
        Tree.whole(data[: trees[0].stop] + b"\0", PLACE)


@given(objects, st.sampled_from(PROTOCOLS), st.data())
def test_cut_off_it_is_out_of_data(value: Any, protocol: int, data: st.DataObject):
    whole = pickle.dumps(value, protocol)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(OutOfData):
        Tree(whole[:cut], PLACE)
    with pytest.raises(DamagedError, match="cut off"):
        Tree.whole(whole[:cut], PLACE)


@settings(max_examples=400)
@given(objects, st.sampled_from(PROTOCOLS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_whatever_the_bytes_no_other_error_escapes(value: Any, protocol: int, changes: list[tuple[int, int]]):
    data = bytearray(pickle.dumps(value, protocol))
    for at, byte in changes:
        data[at % len(data)] = byte
    with suppress(DamagedError, UnsupportedError, OutOfData):
        Tree(bytes(data), PLACE)


def test_a_memo_index_may_be_anything():
    tree = Tree.whole(b"\x80\x02K\x05\x85r\xff\xff\xff\xff0j\xff\xff\xff\xff.", PLACE)
    assert plain(tree.root) == (5,)


def test_a_list_that_holds_itself():
    value: list[Any] = [1]
    value.append(value)
    root = Tree.whole(pickle.dumps(value, 4), PLACE).root
    assert root.children[1].target is root


def test_a_memo_bomb_is_not_expanded():
    """Sixty doublings: 2^60 elements for the unpickler's caller to walk, 60 nodes here."""
    doublings = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    root = Tree.whole(b"\x80\x02)" + doublings + b".", PLACE).root
    depth = 0
    while root.target.children:
        root, depth = root.target.children[0], depth + 1
    assert depth == 60
