"""Protobuf's wire format: messages are read as they were encoded, and an edit is what encoding the edited message would give."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import DamagedError
from chkpt_channels.containers.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Message,
    Reader,
    WireEdits,
    bytes_field,
    check_length,
    deferred_field,
    number_field,
    varint,
)
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import spliced

Model = list[tuple[int, Any]]
"""A message: (field number, an integer, bytes, or a message)."""

numbers = st.integers(1, 20)
models = st.recursive(
    st.lists(st.tuples(numbers, st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(max_size=200)), max_size=4),
    lambda inner: st.lists(st.tuples(numbers, inner | st.binary(max_size=5)), max_size=4),
    max_leaves=20,
)


def encoded(model: Model) -> bytes:
    return b"".join(
        number_field(number, value)
        if isinstance(value, int)
        else bytes_field(number, encoded(value) if isinstance(value, list) else value)
        for number, value in model
    )


def message(data: bytes, folder: Path) -> Message:
    path = folder / "a.onnx"
    path.write_bytes(data)
    return Message(Reader(Source(path)), 0, len(data))


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Message]:
    return lambda data: message(data, tmp_path)


def decoded(found: Message, like: Model) -> Model:
    """What a message holds, its length-delimited fields understood as those of `like` are."""
    out: Model = []
    for field, (_, value) in zip(found.in_order(), like, strict=True):
        if isinstance(value, int):
            signed = found.reader.varint(field.value, field.stop)[0]
            out.append((field.number, signed - (1 << 64) if signed >> 63 else signed))
        else:
            out.append((field.number, decoded(found.message(field), value) if isinstance(value, list) else found.raw(field)))
    return out


@settings(max_examples=60)
@given(models)
def test_what_was_encoded_is_read(tmp_path_factory: pytest.TempPathFactory, model: Model):
    assert decoded(message(encoded(model), tmp_path_factory.getbasetemp()), model) == model


@settings(max_examples=100)
@given(models, st.data())
def test_an_edit_is_the_edited_encoding(tmp_path_factory: pytest.TempPathFactory, model: Model, data: st.DataObject):
    """Fields are replaced, removed and added at any depth; the lengths around them grow and shrink, over a byte's worth too."""
    raw, edits = encoded(model), WireEdits()
    root = message(raw, tmp_path_factory.getbasetemp())

    def edit(found: Message, model: Model) -> Model:
        after: Model = []
        for field, (number, value) in zip(found.in_order(), model, strict=True):
            what = data.draw(st.sampled_from(["keep", "replace", "remove", "defer"]))
            new = data.draw(st.binary(max_size=300))
            if what == "keep":
                after.append((number, edit(found.message(field), value) if isinstance(value, list) else value))
                continue
            if what == "defer":
                edits.replace(found, field, deferred_field(number, len(new), lambda new=new: new))
            else:
                edits.replace(found, field, bytes_field(number, new) if what == "replace" else b"")
            after += [(number, new)] if what != "remove" else []
        if data.draw(st.booleans()):
            edits.add(found, number_field(7, 300))
            after.append((7, 300))
        return after

    after = edit(root, model)
    assert spliced(raw, [(s.start, s.stop, s.data()) for s in edits.splices()]) == encoded(after)


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_varints_are_the_shortest(value: int):
    raw = varint(value)
    unsigned = value & ((1 << 64) - 1)
    assert sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(raw)) == unsigned
    assert len(raw) == max(1, -(-unsigned.bit_length() // 7))


def test_repeated_numbers_are_read_packed_and_not(read: Callable[[bytes], Message]):
    found = read(number_field(3, -1) + bytes_field(3, varint(5) + varint(1 << 40)) + number_field(3, 7))
    assert found.numbers(3) == [-1, 5, 1 << 40, 7]
    floats = read(bytes_field(1, struct.pack("<2f", 1, 2)) + varint(1 << 3 | FIXED32) + struct.pack("<f", 3))
    assert floats.floats(1) == [1, 2, 3]


def test_the_last_of_several_counts_and_nothing_is_a_default(read: Callable[[bytes], Message]):
    found = read(number_field(1, 2) + number_field(1, 9) + bytes_field(2, b"a") + bytes_field(2, b"b\xff"))
    assert (found.number(1), found.number(5), found.number(5, 4)) == (9, 0, 4)
    assert (found.text(2), found.texts(2), found.text(6), found.last(6)) == (r"b\xff", ["a", r"b\xff"], "", None)


DAMAGED = {
    "a tag that goes on": (b"\x80" * 11, "a number runs over its end", 0),
    "a number that is cut off": (b"\x08\xff", "a number runs over its end", 1),
    "a group": (b"\x0b", "wire type 3, which is not used", 0),
    "no number": (b"\x00\x01", "a field has no number", 0),
    "a length beyond": (b"\x0a\x05abc", "reaches beyond the message around it", 0),
    "eight bytes beyond": (varint(1 << 3 | FIXED64) + b"1234567", "reaches beyond the message around it", 0),
    "a long tag": (b"\x88\x80\x80\x80\x80\x00\x01", "encoded in 6 bytes; 5 are the most", 0),
    "a long length": (b"\x0a\x81\x80\x80\x80\x80\x00x", "encoded in 6 bytes; 5 are the most", 0),
}


@pytest.mark.parametrize(("data", "words", "at"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named_with_its_byte(data: bytes, words: str, at: int, read: Callable[[bytes], Message]):
    with pytest.raises(DamagedError, match=words) as caught:
        _ = read(data).fields
    assert caught.value.at == at


@pytest.mark.parametrize("ask", ["number", "numbers", "text", "floats", "messages"])
def test_a_field_of_another_type_is_damage(ask: str, read: Callable[[bytes], Message]):
    """A reader that knows the schema passes over it: what one reads and the other does not is refused."""
    wire = {"text": VARINT, "messages": VARINT, "floats": VARINT}.get(ask, FIXED64)
    found = read(varint(1 << 3 | wire) + (b"\x01" if wire == VARINT else bytes(8)))
    with pytest.raises(DamagedError):
        getattr(found, ask)(1)


def test_messages_are_nested_to_a_depth(read: Callable[[bytes], Message]):
    data = b""
    for _ in range(LIMITS.protobuf_depth + 1):
        data = bytes_field(1, data)
    found = read(data)
    for _ in range(LIMITS.protobuf_depth):
        (found,) = found.messages(1)
    with pytest.raises(DamagedError, match="messages around one another"):
        found.messages(1)


def test_a_name_has_a_length(read: Callable[[bytes], Message]):
    with pytest.raises(DamagedError, match="bytes in a name"):
        read(bytes_field(1, bytes(LIMITS.protobuf_text_bytes + 1))).text(1)


def test_no_field_is_edited_twice(read: Callable[[bytes], Message]):
    found, edits = read(number_field(1, 2)), WireEdits()
    (field,) = found.fields[1]
    edits.replace(found, field, b"")
    with pytest.raises(ValueError, match="edited twice"):
        edits.replace(found, field, b"")


def test_a_length_that_was_promised_is_checked(read: Callable[[bytes], Message]):
    found = read(bytes_field(1, b"abc"))
    field = found.last(1)
    assert field is not None
    assert field.wire == BYTES
    check_length(found.reader.location, field, 3)
    with pytest.raises(DamagedError, match="holds 3 bytes, 4 are needed"):
        check_length(found.reader.location, field, 4)
