"""FRAMEs of an edited pickle: those that Python's own pickler would make; where another one framed it, only lengths change."""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels.containers.pickle import framing
from chkpt_channels.containers.pickle.editor import splices
from chkpt_channels.containers.pickle.nodes import PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.containers.pickle.window import FileBytes
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice, spliced

HEAD = 9


def changed(path: Path, change: Callable[[Tree], list[Splice]]) -> bytes:
    with Source(path) as source:
        edits = change(Tree.whole(FileBytes(source), source.location))
    return spliced(path.read_bytes(), [(edit.start, edit.stop, edit.data()) for edit in edits])


def values(chance: random.Random) -> dict[str, Any]:
    """Long and short values, enough of both for several frames."""
    makers: list[Callable[[], Any]] = [
        lambda: bytes(chance.randrange(300)),
        lambda: bytes(chance.randrange(60_000, 70_000)),
        lambda: bytearray(chance.randrange(200_000)),
        lambda: "é" * chance.randrange(50_000),
        lambda: {"list": list(range(chance.randrange(9_000))), "same": "same"},
        lambda: (1, 2, 3),
    ]
    return {f"{i}" * chance.randrange(1, 9): chance.choice(makers)() for i in range(chance.randrange(1, 20))}


@pytest.mark.parametrize("protocol", [4, 5])
def test_frames_are_foreseen(protocol: int, put: Callable[..., Path]):
    chance = random.Random(0)
    for _ in range(40):
        path = put(pickle.dumps(values(chance), protocol))
        with Source(path) as source:
            tree = Tree.whole(FileBytes(source), source.location)
            assert dict(framing._cut(tree, ())) == {at + HEAD: length for at, length in tree.frames}
            assert framing.splices(tree, []) == []


def payload(tree: Tree, key: str) -> PickleNode:
    node = tree.root.lookup(key)
    assert node is not None
    return node.target


def replaced(key: str, new: bytes) -> Callable[[Tree], list[Splice]]:
    def change(tree: Tree) -> list[Splice]:
        node = payload(tree, key)
        head = b"C" + bytes([len(new)]) if len(new) < 256 else b"B" + struct.pack("<I", len(new))
        return splices(tree, {}, (), [Splice.of(node.start, node.stop, head + new)])

    return change


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("old", [10, 30_000, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("new", [3, 10_000, 65_535, 65_536, 300_000])
def test_the_result_is_what_the_pickler_writes(protocol: int, old: int, new: int, put: Callable[..., Path]):
    more = {f"t{i}": bytes(20_000) + bytes([i]) for i in range(12)}
    before, after = {"a": 1, "w": b"o" * old, **more}, {"a": 1, "w": b"n" * new, **more}
    assert changed(put(pickle.dumps(before, protocol)), replaced("w", b"n" * new)) == pickle.dumps(after, protocol)


def test_other_frames_keep_their_places(put: Callable[..., Path]):
    """Two frames where the pickler makes one."""
    body = pickle.dumps({"a": 1, "w": b"o" * 100, "z": 2}, 4)[2 + HEAD :]
    at = body.index(b"C")
    data = b"\x80\4" + b"".join(b"\x95" + struct.pack("<Q", len(part)) + part for part in (body[:at], body[at:]))
    written = changed(put(data), replaced("w", b"n" * 50))
    assert pickle.loads(written) == {"a": 1, "w": b"n" * 50, "z": 2}
    assert (
        written
        == data[: data.index(b"C") - HEAD]
        + b"\x95"
        + struct.pack("<Q", len(body) - at - 50)
        + b"C\x32"
        + (b"n" * 50)
        + body[at + 102 :]
    )


def test_what_is_removed_takes_its_frames_along(put: Callable[..., Path]):
    before = {"a": 1, "w": [bytes(30_000) + bytes([i]) for i in range(9)], "z": 2}

    def change(tree: Tree) -> list[Splice]:
        key = next(key for key, _ in tree.root.entries() if key.value == "w")
        return splices(tree, {}, [(key.start, tree.pair_stops[key])])

    written = changed(put(pickle.dumps(before, 4)), change)
    assert pickle.loads(written) == {"a": 1, "z": 2}
    assert len(written) < 200
