"""Pickles that stay in their files: the same tree as in memory, long values skipped, and nothing large is read."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import DamagedError
from chkpt_channels.containers.pickle import window
from chkpt_channels.containers.pickle.machine import KEPT_BYTES
from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.containers.pickle.window import FileBytes
from chkpt_channels.storage.source import Source

VALUE = {"a": [1, 2.5, "x" * 300, (None, True)], "b": b"y" * 99, "c": {"d": 1 << 70}, "again": "a"}


def tree(path: Path) -> Tree:
    with Source(path) as source:
        return Tree.whole(FileBytes(source), source.location)


def spans(root: PickleNode) -> list[tuple[int, int, int]]:
    found, todo = [], [root]
    while todo:
        node = todo.pop()
        found.append((node.kind, node.start, node.stop))
        todo += node.inner
    return sorted(found)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("piece", [16, 1 << 18])
def test_the_tree_is_that_of_the_bytes(protocol: int, piece: int, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(window, "PIECE_BYTES", piece)
    data = pickle.dumps(VALUE, protocol)
    path = put(data)
    found, whole = tree(path), Tree.whole(data, found_at(path))
    assert spans(found.root) == spans(whole.root)
    assert (found.frames, found.globals, found.longs) == (whole.frames, whole.globals, list(whole.longs))


def found_at(path: Path) -> Any:
    with Source(path) as source:
        return source.location


@pytest.mark.parametrize("value", ["é" * KEPT_BYTES, b"x" * (KEPT_BYTES + 1), bytearray(70_000)])
def test_what_is_long_is_skipped(value: Any, put: Callable[..., Path]):
    data = pickle.dumps([value, 7], 5)
    found = tree(put(data))
    long, number = found.root.children
    raw = value.encode() if isinstance(value, str) else bytes(value)
    assert (long.target.kind, long.target.value, number.value) == (Kind.BYTES, None, 7)
    assert [data[begin:stop] for _, begin, stop in found.longs] == [raw]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\4\x8d" + struct.pack("<Q", 1 << 60) + b"abc.", "the pickle is cut off"),
        (b"\x80\4\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b".", "a number has 1048576 bytes"),
        (b"\x80\2c" + b"a" * 9000 + b"\nb\n.", "the pickle is cut off"),
        (b"\x80\4N.N", "bytes follow the end of the pickle"),
        (b"\x80\4", "the pickle is cut off"),
    ],
)
def test_lengths_that_lie(data: bytes, message: str, put: Callable[..., Path]):
    with pytest.raises(DamagedError, match=message):
        tree(put(data))
