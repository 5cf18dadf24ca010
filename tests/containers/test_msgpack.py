"""MessagePack: what is walked is what a second reader reads, and heads are those that msgpack's own writer writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import DamagedError
from chkpt_channels.containers import msgpack
from chkpt_channels.containers.msgpack import (
    ARRAY,
    BYTES,
    EXT,
    FLOAT,
    INTEGER,
    MAP,
    PLAIN,
    TEXT,
    WINDOW_BYTES,
    MsgpackWalk,
    Token,
)
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source
from tests.support.messagepack import Ext, Map, Raw, packed, unpacked

Open = Callable[..., Source]
INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
TEXTS = st.text(max_size=40, alphabet=st.characters(exclude_categories=("Cs",)))
LEAVES = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=300)
EXTS = st.builds(Ext, st.integers(0, 127), st.binary(max_size=40))
TREES = st.recursive(
    LEAVES | EXTS,
    lambda inner: st.lists(inner, max_size=20) | st.lists(st.tuples(TEXTS, inner), max_size=20).map(Map),
    max_leaves=40,
)


@pytest.fixture
def walk(source: Open) -> Callable[[bytes], MsgpackWalk]:
    return lambda data: MsgpackWalk(source(data))


def value(walk: MsgpackWalk, data: bytes, head: Token) -> Any:
    """The whole value that begins with a head."""
    match head.kind:
        case "map":
            pairs = Map()
            for _ in range(head.value):
                key = value(walk, data, walk.next())
                pairs.append((key, value(walk, data, walk.next())))
            return pairs
        case "array":
            return [value(walk, data, walk.next()) for _ in range(head.value)]
        case "text":
            return walk.text(head)
        case "bytes":
            return data[head.body : head.stop]
        case "ext":
            return Ext(head.value, data[head.body : head.stop])
        case "integer":
            return head.value
        case _:
            return unpacked(data[head.start : head.stop])


def test_a_walk_reads_what_another_reader_reads(source: Open):
    @settings(max_examples=150, deadline=None)
    @given(TREES)
    def agrees(tree: Any) -> None:
        data = packed(tree)
        with source(data) as opened:
            steps = MsgpackWalk(opened)
            assert value(steps, data, steps.next()) == unpacked(data)
            assert steps.at == len(data)

    agrees()


@pytest.mark.parametrize(
    ("data", "kind", "value"),
    [
        (b"\x7f", INTEGER, 127),
        (b"\xe0", INTEGER, -32),
        (b"\xcd\x01\x00", INTEGER, 256),
        (b"\xd3" + b"\xff" * 8, INTEGER, -1),
        (b"\xcb" + bytes(8), FLOAT, 8),
        (b"\xc0", PLAIN, 0),
        (b"\x80", MAP, 0),
        (b"\xdd\0\0\0\0", ARRAY, 0),
        (b"\xd8\x05" + bytes(16), EXT, 5),
        (b"\xc4\x00", BYTES, 0),
    ],
)
def test_heads(data: bytes, kind: str, value: int, walk: Callable[[bytes], MsgpackWalk]):
    head = walk(data).next()
    assert (head.kind, head.value, head.stop) == (kind, value, len(data))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 16, 17, 31, 32, 255, 256, 65535, 65536])
def test_lengths_are_written_in_the_fewest_bytes(size: int):
    data = bytes(size)
    assert msgpack.sized(BYTES, size) + data == packed(data)
    assert msgpack.sized(TEXT, size) + data == packed(data.decode())
    assert msgpack.sized(EXT, size, 3) + data == packed(Ext(3, data))
    assert msgpack.integer(size) == packed(size)
    assert msgpack.array(size % 300) == packed([0] * (size % 300))[: -(size % 300) or None]


def test_a_length_beyond_32_bits_is_not_written():
    assert msgpack.sized(BYTES, (1 << 32) - 1) == b"\xc6\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="more than a length of 32 bits holds"):
        msgpack.sized(BYTES, 1 << 32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is cut off inside the value that begins here: 1 bytes are missing, at byte 0"),
        (b"\xc6\xff\xff\xff\xff", "4294967295 bytes are missing, at byte 0"),
        (b"\xdf\x3b\x9a\xca\x00\x00", "1999999999 bytes are missing, at byte 0"),
        (b"\xdc\xff", "is cut off"),
        (b"\xc1", "the byte 0xc1 begins no value, at byte 0"),
        (b"\xa1\xff", "a text is not UTF-8, at byte 0"),
    ],
)
def test_damage(data: bytes, message: str, walk: Callable[[bytes], MsgpackWalk]):
    steps = walk(data)
    with pytest.raises(DamagedError) as caught:
        steps.text(steps.next())
    assert message in str(caught.value)


def test_values_are_counted(walk: Callable[[bytes], MsgpackWalk], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(msgpack, "LIMITS", LIMITS._replace(msgpack_values=3))
    steps = walk(packed([1, 2, 3]))
    for _ in range(3):
        steps.next()
    with pytest.raises(DamagedError, match="has 4 values; 3 are the most"):
        steps.next()


def test_what_is_long_is_skipped(walk: Callable[[bytes], MsgpackWalk], monkeypatch: pytest.MonkeyPatch):
    steps = walk(packed([bytes(10 * WINDOW_BYTES), 1, Raw(b"\xc0")]))
    read, sizes = Source.read, list[int]()

    def counted(self: Source, start: int, stop: int) -> bytes:
        sizes.append(stop - start)
        return read(self, start, stop)

    monkeypatch.setattr(Source, "read", counted)
    assert [steps.next().kind for _ in range(4)] == [ARRAY, BYTES, INTEGER, PLAIN]
    assert sum(sizes) <= 2 * WINDOW_BYTES
