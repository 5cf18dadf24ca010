"""Every opcode does what the unpickler does, or says what is wrong and where; no length is believed, no depth recursed."""

from __future__ import annotations

import pickle
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.containers.pickle.reader import OutOfData, Tree
from chkpt_channels.core.errors import Location
from tests.support.files import within

PLACE = Location("a.pth", "data.pkl")


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"(ios\nsystem\n", ("os", "system")),
        (b"(cos\nsystem\no", ("os", "system")),
        (b"cos\nsystem\n)\x81", ("os", "system")),
        (b"cos\nsystem\n)}\x92", ("os", "system")),
        (b"\x8c\x02os\x8c\x06system\x93", ("os", "system")),
        (b"\x82\x07", ("copyreg", "extension 7")),
    ],
    ids=["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1"],
)
def test_every_way_to_name_something(opcodes: bytes, name: tuple[str, str]):
    assert list(Tree.whole(b"\x80\x04" + opcodes + b".", PLACE).globals) == [name]


@settings(max_examples=400)
@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)] + [b"\x80\x02", b"K\x01", b"h\0", b"q\0", b"(", b")"])))
def test_whatever_the_opcodes_no_other_error_escapes(opcodes: list[bytes]):
    with suppress(DamagedError, UnsupportedError, OutOfData):
        Tree(b"".join(opcodes), PLACE)


DAMAGED = {
    "no opcode": (b"\x80\x02\xff.", "0xff is not an opcode", 2),
    "empty stack": (b"\x80\x02.", "more or fewer values than one", 2),
    "two values": (b"\x80\x02K\x01K\x01.", "more or fewer values than one", 6),
    "open mark": (b"\x80\x02(K\x01.", "more or fewer values than one", 5),
    "underflow": (b"\x80\x02K\x01\x86.", "stack underflows", 4),
    "underflow below a mark": (b"\x80\x02K\x01(\x85.", "stack underflows", 5),
    "no mark": (b"\x80\x02K\x01t.", "stack underflows", 4),
    "empty OBJ": (b"\x80\x02(o.", "stack underflows", 3),
    "memo not written": (b"\x80\x02h\x07.", "memo 7 is read before it is written", 2),
    "odd pairs": (b"\x80\x02}(K\x01u.", "a key has no value", 6),
    "text": (b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8", 2),
    "global without a text": (b"\x80\x04K\x01K\x02\x93.", "name is not text", 6),
    "protocol": (b"\x80\x06N.", "protocol 6 does not exist", 0),
    "frame in a frame": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x95\x01\0\0\0\0\0\0\0N.", "FRAME begins inside", 11),
    "negative LONG4": (b"\x80\x02\x8b\xff\xff\xff\xff.", "length is negative", 2),
    "no decimal": (b"\x80\x02I12x\n.", "is not written in decimal digits", 2),
    "an endless decimal": (b"\x80\x02I" + b"9" * 5000 + b"\n.", "is not written in decimal digits", 2),
    "no float": (b"\x80\x02Fabc\n.", "is not written in decimal digits", 2),
}


@pytest.mark.parametrize(("data", "words", "at"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named_with_its_byte(data: bytes, words: str, at: int):
    with pytest.raises(DamagedError, match=words) as caught:
        Tree(data, PLACE)
    assert caught.value.at == at


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"\1.",
        b"\x80\x02T" + struct.pack("<I", (1 << 32) - 1) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.",
    ],
    ids=["BINUNICODE8", "BINBYTES8", "LONG4", "BINSTRING", "FRAME"],
)
def test_a_length_is_checked_before_it_is_believed(data: bytes):
    with pytest.raises(OutOfData):
        Tree(data, PLACE)


@pytest.mark.parametrize("value", [["a"], {"a": 1}], ids=["list", "dict"])
def test_protocol_0_is_refused_by_name(value: Any):
    with pytest.raises(UnsupportedError, match="protocol 0"):
        Tree.whole(pickle.dumps(value, 0), PLACE)


DEEP = 10**6


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02)" + b"\x85" * DEEP + b".",
        b"\x80\x02" + b"}K\0" * DEEP + b"N" + b"s" * DEEP + b".",
        b"\x80\x02N" + b"0N" * DEEP + b".",
    ],
    ids=["lists", "tuples", "dicts", "pops"],
)
def test_depth_costs_no_recursion(data: bytes):
    with within(10):
        tree = Tree.whole(data, PLACE)
        del tree


AMBIGUOUS = {
    "BUILD twice": (b"cm\nf\n)\x81}b}b.", "is given a state twice"),
    "BUILD twice, by the memo": (b"cm\nf\n)\x81q\0}bh\0}b\x86.", "is given a state twice"),
    "SETITEM in a list": (b"]K\0K\1s.", "entries are set in something in its pickle that is no dict"),
    "SETITEMS in a persistent object": (b"K\0Q(K\0K\1u.", "entries are set in something in its pickle that is no dict"),
    "an argument that grows": (b"]q\0cm\nf\nh\0\x85R\x86h\0K\1a\x86.", "gets more after a call has read it"),
    "a state that grows": (b"cm\nf\n)\x81}q\0bh\0K\0K\1s\x86.", "gets more after a call has read it"),
    "an argument of OBJ that grows": (b"(cm\nf\n]q\0oh\0K\1a\x86.", "gets more after a call has read it"),
}


@pytest.mark.parametrize(("opcodes", "words"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_objects_are_cannot_be_seen_from_what_they_become(opcodes: bytes, words: str):
    with pytest.raises(UnsupportedError, match=words):
        Tree(b"\x80\x02" + opcodes, PLACE)


def test_a_function_that_is_given_a_state_is_named():
    """torch's own functions have defaults that a state may set: the name tells that something was done to it."""
    assert ("torch._utils", "f.__setstate__") in Tree(b"\x80\x02ctorch._utils\nf\n}b.", PLACE).globals
