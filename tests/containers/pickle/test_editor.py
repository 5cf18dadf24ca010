"""Edits of pickles: what the unpickler makes afterwards, and which bytes stay."""

from __future__ import annotations

import pickle
import pickletools
from collections import Counter, OrderedDict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import UnsupportedError
from chkpt_channels.containers.pickle.editor import edited, encode
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from tests.containers.pickle.test_reader import PLACE, PROTOCOLS, ints, objects, rebuilt

INTS = (
    st.integers(-(1 << 64), 1 << 64)
    | st.sampled_from([-129, -128, -1, 0, 127, 128, 255, 256, 65535, 65536])
    | st.sampled_from([2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63])
)
protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@given(INTS)
def test_spelled_as_the_pickler_does(value: int):
    assert encode(value) == pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize("size", range(6))
def test_tuples_are_spelled(size: int):
    assert pickle.loads(b"\x80\x02" + encode(tuple(range(size))) + b".") == tuple(range(size))


@given(objects, st.sampled_from(PROTOCOLS))
def test_unedited_bytes_are_identical(value: Any, protocol: int):
    data = pickle.dumps(value, protocol)
    tree = Tree.whole(data, PLACE)
    assert edited(tree, {}) == data
    assert edited(tree, {node: node.value for node in ints(tree.root)}) == data


@settings(max_examples=200)
@given(objects, st.sampled_from(PROTOCOLS), st.data())
def test_edited_ints(value: Any, protocol: int, data: st.DataObject):
    tree = Tree.whole(pickle.dumps(value, protocol), PLACE)
    found = [node for node in ints(tree.root) if not _is_key(tree, node)]
    values = {node: data.draw(INTS) for node in found if data.draw(st.booleans())}
    assert pickle.loads(edited(tree, values)) == rebuilt(tree.root, values)


def _is_key(tree: Tree, node: PickleNode) -> bool:
    """Two edited keys, or elements of a set, could become one."""
    return node in {key.target for key in tree.pair_stops} or _in_set(tree.root, node)


def _in_set(root: PickleNode, node: PickleNode) -> bool:
    todo, seen = [(root, False)], set()
    while todo:
        at, inside = todo.pop()
        at = at.target
        if at is node and inside:
            return True
        if (at, inside) in seen:
            continue
        seen.add((at, inside))
        inside = (
            inside or at.kind is Kind.SET or (at.kind is Kind.CALL and not at.value[0].is_global("collections", "OrderedDict"))
        )
        children = list(at.children) if at.kind in (Kind.TUPLE, Kind.LIST, Kind.SET) else []
        children += [at.value[1]] if at.kind is Kind.CALL else []
        todo += [(child, inside) for child in (*children, *(part for item in at.items or () for part in item))]
    return False


@protocols
@given(st.data(), st.integers(1, 6))
def test_a_shared_tuple_is_edited_where_it_was_asked_for(protocol: int, data: st.DataObject, size: int):
    """The first occurrence is spelled, the others are repetitions; any of them get values of their own."""
    shared = tuple(range(3, 3 + size))
    value = {"a": shared, "b": [shared, shared], "c": (shared, "x"), "d": "x", "e": shared}
    tree = Tree.whole(pickle.dumps(value, protocol), PLACE)
    entries = {key.value: node for key, node in tree.root.entries()}
    places = [entries["a"], *entries["b"].children, entries["c"].children[0], entries["e"]]
    assert {place.target for place in places} == {places[0]}
    new = st.tuples(*[INTS] * size)
    alike = data.draw(new)
    values = {place: data.draw(st.just(alike) | new) for place in places if data.draw(st.booleans())}
    assert pickle.loads(edited(tree, values)) == rebuilt(tree.root, values)


@protocols
def test_an_edit_and_its_undoing_give_the_same_bytes(protocol: int):
    shared = (3, 224, 224)
    value = {"shape": shared, "numel": 3 * 49 * 64, "other": [(1, 2), 70000]}
    data = pickle.dumps(value, protocol)
    there = _with(data, {"shape": (1, 224, 224), "numel": 49 * 64})
    assert pickle.loads(there) == {**value, "shape": (1, 224, 224), "numel": 49 * 64}
    assert there == pickle.dumps(pickle.loads(there), protocol)
    assert _with(there, {"shape": shared, "numel": 3 * 49 * 64}) == data


def _with(data: bytes, values: dict[str, Any]) -> bytes:
    tree = Tree.whole(data, PLACE)
    return edited(tree, {node: values[key.value] for key, node in tree.root.entries() if key.value in values})


LONG = {f"name {i}": [i, i * 1000, f"text {i}", (i, i)] for i in range(5000)} | {"blob": b"x" * 70_000, "last": 1}


@pytest.mark.parametrize("protocol", [4, 5])
def test_frames_are_mended(protocol: int):
    data = pickle.dumps(LONG, protocol)
    tree = Tree.whole(data, PLACE)
    assert len(tree.frames) > 3
    values = {node: node.value + 10**6 for node in ints(tree.root)[::7]}
    after = edited(tree, values)
    assert pickle.loads(after) == rebuilt(tree.root, values)
    assert_frames_fit(after)


def assert_frames_fit(data: bytes) -> None:
    """Every frame ends where an opcode begins, before the next frame and not behind the end."""
    starts = [at for _, _, at in pickletools.genops(data)] + [len(data)]
    frames = [(at + 9, at + 9 + length) for opcode, length, at in pickletools.genops(data) if opcode.name == "FRAME"]
    assert all(stop in starts for _, stop in frames)
    assert all(a[1] <= b[0] for a, b in pairwise(frames))


def without(data: bytes, *names: object) -> bytes:
    """The pickled dict without some entries."""
    tree = Tree.whole(data, PLACE)
    spans = [(item[0].start, tree.pair_stops[item[0]]) for item in tree.root.items or () if item[0].target.value in names]
    assert len(spans) == len(names)
    return edited(tree, {}, spans)


words = st.sampled_from(["alpha", "beta", "gamma", "delta" * 60, 2.5, None, 7, 10**20, OrderedDict, Counter])


@protocols
@given(st.data())
def test_removed_entries(protocol: int, data: st.DataObject):
    """What they memoized and others repeat is spelled at its first repetition, and later memo indices stay right."""
    pool = st.lists(words, max_size=5)
    value = data.draw(st.dictionaries(st.sampled_from(range(9)), pool, max_size=6))
    gone = [key for key in value if data.draw(st.booleans())]
    after = without(pickle.dumps(value, protocol), *gone)
    assert pickle.loads(after) == {key: kept for key, kept in value.items() if key not in gone}
    if protocol >= 4:
        assert_frames_fit(after)


@protocols
def test_a_removed_entry_that_others_share(protocol: int):
    shared = ["a", "b"]
    data = pickle.dumps({"x": shared, "y": [shared]}, protocol)
    with pytest.raises(UnsupportedError, match="shares objects"):
        without(data, "x")
    assert pickle.loads(without(data, "y")) == {"x": shared}


@pytest.mark.parametrize("protocol", [4, 5])
def test_entries_across_frames_are_removed(protocol: int):
    data = pickle.dumps(LONG, protocol)
    tree = Tree.whole(data, PLACE)
    edges = [at for at, _ in tree.frames[1:]]
    crossing = [
        item[0].target.value
        for item in tree.root.items or ()
        if any(item[0].start < at < tree.pair_stops[item[0]] for at in edges)
    ]
    assert crossing
    after = without(data, *crossing)
    assert pickle.loads(after) == {key: value for key, value in LONG.items() if key not in crossing}
    assert_frames_fit(after)
