"""Protobuf's wire format: what is read is what protobuf's own classes read, and edits are messages that these classes parse."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, helper

from chkpt_channels import DamagedError
from chkpt_channels.containers import protobuf
from chkpt_channels.containers.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    WINDOW_BYTES,
    Field,
    Message,
    Reader,
    WireEdits,
    bytes_field,
    deferred_field,
    number_field,
    varint,
)
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import spliced, streamed

Open = Callable[..., Source]
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
Tree = list[tuple[int, Any]]
"""A message of any schema: (field number, an integer, bytes, or a message)."""
NUMBERS = st.integers(1, 20)
TREES = st.recursive(
    st.lists(st.tuples(NUMBERS, INT64 | st.binary(max_size=200)), max_size=4),
    lambda inner: st.lists(st.tuples(NUMBERS, inner | st.binary(max_size=5)), max_size=4),
    max_leaves=20,
)


@pytest.fixture
def read(source: Open) -> Callable[[bytes], Message]:
    """Bytes as a message."""

    def message(data: bytes) -> Message:
        opened = source(data)
        return Message(Reader(opened), 0, opened.size)

    return message


Read = Callable[[bytes], Message]


def edited(data: bytes, edits: WireEdits) -> bytes:
    """What a copy with these edits is: in the order of the file, and at one place in the order of the splices."""
    splices = sorted(edits.splices(), key=lambda splice: (splice.start, splice.stop))
    return b"".join(streamed([data], splices))


def model() -> ModelProto:
    """A model with a message in a message in a message, each much shorter than 128 bytes."""
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [2, 1, 1, 1], [1.0, 2.0])
    value = helper.make_tensor("value", TensorProto.INT64, [2], [3, 4])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="first", pads=[1, 1, 1, 1]),
    ]
    graph = GraphProto(name="graph", node=nodes, initializer=[kernel])
    return ModelProto(ir_version=8, producer_name="tests", graph=graph, opset_import=[helper.make_opsetid("", 17)])


def encoded(tree: Tree) -> bytes:
    return b"".join(
        number_field(number, value)
        if isinstance(value, int)
        else bytes_field(number, encoded(value) if isinstance(value, list) else value)
        for number, value in tree
    )


def decoded(found: Message, like: Tree) -> Tree:
    """What a message holds, its length-delimited fields understood as those of `like` are."""
    out: Tree = []
    for field, (_, value) in zip(found.in_order(), like, strict=True):
        if isinstance(value, int):
            signed = found.reader.varint(field.value, field.stop)[0]
            out.append((field.number, signed - (1 << 64) if signed >> 63 else signed))
        else:
            out.append((field.number, decoded(found.message(field), value) if isinstance(value, list) else found.raw(field)))
    return out


def inside(root: Message, *numbers: int) -> Message:
    """The last message in each of these fields, one in another."""
    for number in numbers:
        root = root.messages(number)[-1]
    return root


# Varints


@pytest.mark.parametrize("length", range(1, 11))
def test_a_varint_of_every_length_is_read_and_written(length: int, source: Open):
    lowest = 1 << 7 * (length - 1) if length > 1 else 0
    highest = min((1 << 7 * length) - 1, (1 << 64) - 1)
    for value in (lowest, highest):
        raw = varint(value)
        assert len(raw) == length
        assert Reader(source(b"\xff" + raw + b"\xff")).varint(1, length + 2) == (value, length + 1)


@given(INT64)
def test_a_number_field_is_what_protobuf_reads(value: int):
    assert list(TensorProto.FromString(number_field(TensorProto.DIMS_FIELD_NUMBER, value)).dims) == [value]


@given(INT64)
def test_varints_are_the_shortest(value: int):
    raw = varint(value)
    unsigned = value & ((1 << 64) - 1)
    assert sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(raw)) == unsigned
    assert len(raw) == max(1, -(-unsigned.bit_length() // 7))


@pytest.mark.parametrize("more", range(1, 9))
def test_a_varint_may_be_longer_than_it_need_be(more: int, source: Open):
    raw = b"\x85" + b"\x80" * (more - 1) + b"\0"
    assert Reader(source(raw)).varint(0, len(raw)) == (5, 1 + more)


def test_what_a_varint_has_beyond_64_bits_is_dropped(source: Open):
    raw = b"\x85" + b"\x80" * 8 + b"\x7e"
    assert Reader(source(raw)).varint(0, 10) == (5, 10)
    assert list(TensorProto.FromString(b"\x08" + raw).dims) == [5]


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 9, b"\x80" * 10 + b"\0"], ids=["none", "one byte", "nine", "eleven"])
def test_a_varint_that_does_not_end_is_refused(raw: bytes, source: Open):
    with pytest.raises(DamagedError, match=r"^a\.bin: a varint has no end, at byte 0$"):
        Reader(source(raw)).varint(0, len(raw))


def test_a_varint_may_not_end_behind_its_message(source: Open):
    with pytest.raises(DamagedError, match="a varint has no end"):
        Reader(source(b"\x80\x01")).varint(0, 1)


# Reading


def test_the_window_holds_what_stands_behind(source: Open):
    """What is read next is there already: the file may be far away."""
    opened = source(bytes(WINDOW_BYTES))
    reader = Reader(opened)
    reader.bytes(0, 1)
    opened.close()
    assert reader.bytes(WINDOW_BYTES - 9, WINDOW_BYTES) == bytes(9)


@pytest.mark.parametrize("size", [0, 1, WINDOW_BYTES - 1, WINDOW_BYTES, WINDOW_BYTES + 1, 3 * WINDOW_BYTES])
def test_bytes_are_read_through_the_window_and_past_it(size: int, source: Open):
    data = bytes(range(251)) * (5 * WINDOW_BYTES // 251)
    reader = Reader(source(data))
    for start in (5, WINDOW_BYTES - 1, 7, len(data) - size):
        assert reader.bytes(start, start + size) == data[start : start + size]


def test_every_wire_type_has_its_span(read: Read):
    parts = [
        b"\x08\x96\x01",  # 1: varint
        b"\x11" + bytes(8),  # 2: eight bytes
        b"\x1a\x03abc",  # 3: length-delimited
        b"\x25" + bytes(4),  # 4: four bytes
        b"\xf8\xff\xff\xff\x0f\x00",  # the highest number, 2²⁹ - 1
    ]
    fields = read(b"".join(parts)).in_order()
    assert fields == [
        Field(1, VARINT, 0, 1, 3),
        Field(2, FIXED64, 3, 4, 12),
        Field(3, BYTES, 12, 14, 17),
        Field(4, FIXED32, 17, 18, 22),
        Field((1 << 29) - 1, VARINT, 22, 27, 28),
    ]


def test_the_spans_of_a_real_message_tile_it(read: Read):
    data = model().SerializeToString()
    for message in (root := read(data), inside(root, ModelProto.GRAPH_FIELD_NUMBER)):
        fields = message.in_order()
        assert [f.start for f in fields] == [message.start, *(f.stop for f in fields[:-1])]
        assert fields[-1].stop == message.stop


def test_nested_messages_know_their_span_and_what_is_around_them(read: Read):
    expected = model()
    data = expected.SerializeToString()
    root = read(data)
    graph = inside(root, ModelProto.GRAPH_FIELD_NUMBER)
    node = inside(graph, GraphProto.NODE_FIELD_NUMBER)
    assert ((root.depth, root.outer), (graph.depth, graph.outer), (node.depth, node.outer)) == ((0, None), (1, root), (2, graph))
    assert GraphProto.FromString(data[graph.start : graph.stop]) == expected.graph
    assert NodeProto.FromString(data[node.start : node.stop]) == expected.graph.node[1]
    assert node.field is graph.last(GraphProto.NODE_FIELD_NUMBER)
    assert graph.message(node.field) is node


def test_what_was_encoded_is_read(read: Read):
    @settings(max_examples=60)
    @given(TREES)
    def run(tree: Tree) -> None:
        assert decoded(read(encoded(tree)), tree) == tree

    run()


def test_values_are_those_that_protobuf_reads(read: Read):
    value = AttributeProto(name="a", f=0.5, i=-7, ints=[1, -1, 1 << 40], floats=[1.5, -2.0], strings=[b"x", b"", b"yz"])
    found = read(value.SerializeToString())
    assert found.text(AttributeProto.NAME_FIELD_NUMBER) == "a"
    assert found.number(AttributeProto.I_FIELD_NUMBER) == -7
    assert found.numbers(AttributeProto.INTS_FIELD_NUMBER) == [1, -1, 1 << 40]
    assert found.floats(AttributeProto.F_FIELD_NUMBER) == [0.5]
    assert found.floats(AttributeProto.FLOATS_FIELD_NUMBER) == [1.5, -2.0]
    assert found.texts(AttributeProto.STRINGS_FIELD_NUMBER) == ["x", "", "yz"]


def test_what_is_missing_is_empty(read: Read):
    found = read(b"")
    assert (found.text(1), found.texts(1), found.numbers(1), found.floats(1)) == ("", [], [], [])
    assert (found.number(1), found.number(1, 9), found.last(1), found.messages(1)) == (0, 9, None, [])


def test_the_last_of_several_single_fields_counts(read: Read):
    data = number_field(TensorProto.DATA_TYPE_FIELD_NUMBER, 1) + bytes_field(TensorProto.NAME_FIELD_NUMBER, b"first")
    data += bytes_field(TensorProto.NAME_FIELD_NUMBER, b"second") + number_field(TensorProto.DATA_TYPE_FIELD_NUMBER, 7)
    parsed, found = TensorProto.FromString(data), read(data)
    assert (parsed.data_type, parsed.name) == (7, "second")
    assert found.number(TensorProto.DATA_TYPE_FIELD_NUMBER) == parsed.data_type
    assert found.text(TensorProto.NAME_FIELD_NUMBER) == parsed.name
    assert found.last(TensorProto.NAME_FIELD_NUMBER) == found.fields[TensorProto.NAME_FIELD_NUMBER][1]


@pytest.mark.parametrize("packed", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_repeated_numbers_are_read_packed_and_not_and_mixed(packed: tuple[int, ...], read: Read):
    number, data = TensorProto.INT64_DATA_FIELD_NUMBER, b""
    for k, part in enumerate(([1, -1], [], [1 << 40, 0, -(1 << 63)])):
        if k in packed:
            data += bytes_field(number, b"".join(map(varint, part)))
        else:
            data += b"".join(number_field(number, n) for n in part)
    assert list(TensorProto.FromString(data).int64_data) == [1, -1, 1 << 40, 0, -(1 << 63)]
    assert read(data).numbers(number) == [1, -1, 1 << 40, 0, -(1 << 63)]


def test_floats_are_read_packed_and_not(read: Read):
    number = TensorProto.FLOAT_DATA_FIELD_NUMBER
    loose = varint(number << 3 | FIXED32)
    data = bytes_field(number, struct.pack("<2f", 1, 2)) + loose + struct.pack("<f", 3) + loose + struct.pack("<f", 4)
    assert list(TensorProto.FromString(data).float_data) == [1, 2, 3, 4]
    assert read(data).floats(number) == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_packed_floats_that_do_not_come_out_are_refused(size: int, read: Read):
    data = bytes_field(AttributeProto.FLOATS_FIELD_NUMBER, bytes(size))
    with pytest.raises(DecodeError):
        AttributeProto.FromString(data)
    with pytest.raises(DamagedError):
        read(data).floats(AttributeProto.FLOATS_FIELD_NUMBER)


def test_text_that_is_no_utf8_is_shown_escaped(read: Read):
    assert read(bytes_field(1, b"a\xff\xfeb")).text(1) == r"a\xff\xfeb"


WRONG_WIRE: dict[str, tuple[bytes, Callable[[Message], object], str]] = {
    "a number for a text": (number_field(1, 5), lambda m: m.text(1), "a field has the wire type 0 instead of 2, at byte 0"),
    "a text for a number": (bytes_field(1, b"5"), lambda m: m.number(1), "a field has the wire type 2 instead of 0, at byte 0"),
    "eight bytes for a number": (
        b"\x09" + bytes(8),
        lambda m: m.number(1),
        "a field has the wire type 1 instead of 0, at byte 0",
    ),
    "eight bytes in a list": (b"\x09" + bytes(8), lambda m: m.numbers(1), "a field has the wire type 1 instead of 0, at byte 0"),
    "a number for a float": (number_field(1, 5), lambda m: m.floats(1), "a field has the wire type 0 instead of 5, at byte 0"),
    "a number for a message": (number_field(1, 5), lambda m: m.messages(1), "a number takes the place of a message, at byte 0"),
    "an earlier one": (bytes_field(1, b"") + number_field(1, 2), lambda m: m.number(1), "wire type 2 instead of 0, at byte 0"),
}


@pytest.mark.parametrize("name", WRONG_WIRE)
def test_a_field_of_another_wire_type_is_refused(name: str, read: Read):
    """Readers that know the schema pass over such a field: what would be read here is not what they see."""
    data, ask, message = WRONG_WIRE[name]
    with pytest.raises(DamagedError, match=message):
        ask(read(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80" * 11, "a varint has no end, at byte 0"),
        (b"\x08\xff", "a varint has no end, at byte 1"),
        (b"\x0b\x0c", "a field has the wire type 3, which is not used, at byte 0"),
        (b"\x08\x01\x0c", "a field has the wire type 4, which is not used, at byte 2"),
        (b"\x0e", "a field has the wire type 6, which is not used, at byte 0"),
        (b"\x0f", "a field has the wire type 7, which is not used, at byte 0"),
        (b"\x08\x01\x00\x01", "a field has the number 0, at byte 2"),
        (b"\x02\x00", "a field has the number 0, at byte 0"),
        (b"\x0a\x03ab", "a field extends beyond its message, at byte 0"),
        (b"\x09" + bytes(7), "a field extends beyond its message, at byte 0"),
        (b"\x0d" + bytes(3), "a field extends beyond its message, at byte 0"),
        (b"\x0a\xff\xff\xff\xff\x0f", "a field extends beyond its message, at byte 0"),
        (b"\x8a\x80\x80\x80\x80\x00\x01a", "a field's number or length is encoded in 6 bytes; 5 are the most, at byte 0"),
        (b"\x0a\x81\x80\x80\x80\x80\x00a", "a field's number or length is encoded in 6 bytes; 5 are the most, at byte 0"),
    ],
    ids=[
        "endless tag",
        "cut number",
        "group",
        "its end",
        "6",
        "7",
        "0",
        "0 and bytes",
        "bytes",
        "eight",
        "four",
        "4 GiB",
        "wide tag",
        "wide length",
    ],
)
def test_what_is_no_field_is_refused(data: bytes, message: str, read: Read):
    with pytest.raises(DamagedError, match=f"^a\\.bin: {message}$"):
        _ = read(data).fields


@pytest.mark.parametrize("data", [b"\x8a\x80\x80\x80\x00\x01a", b"\x0a\x81\x80\x80\x80\x00a"], ids=["tag", "length"])
def test_a_tag_or_length_of_five_bytes_is_read(data: bytes, read: Read):
    assert read(data).texts(1) == ["a"]


def test_a_message_cut_at_any_byte_is_read_where_protobuf_reads_it(read: Read):
    whole = model().SerializeToString()
    fields, answers = read(whole).in_order(), set[bool]()
    for size in range(len(whole)):
        cut = whole[:size]
        try:
            ModelProto.FromString(cut)
        except DecodeError:
            with pytest.raises(DamagedError, match=r"a varint has no end|a field extends beyond its message"):
                _ = read(cut).fields
            answers.add(False)
        else:
            assert read(cut).in_order() == [f for f in fields if f.stop <= size]
            answers.add(True)
    assert answers == {True, False}


def test_a_message_in_a_message_ends_where_its_length_says(read: Read):
    inner = b"\x0a\x05ab"  # five bytes, of which the message around it has two
    outer = read(bytes_field(7, inner) + b"\x0a\x03abc")
    with pytest.raises(DamagedError, match="a field extends beyond its message, at byte 2"):
        _ = inside(outer, 7).fields


# Limits


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = bytes_field(1, data)
    return data


def test_messages_may_be_in_one_another_up_to_the_limit(read: Read):
    most = LIMITS.protobuf_depth
    assert inside(read(nested(most)), *[1] * most).depth == most
    with pytest.raises(DamagedError, match="has 65 messages inside one another; 64 are the most, at byte") as refused:
        inside(read(nested(most + 1)), *[1] * (most + 1))
    assert refused.value.excess == ("messages inside one another", most, most + 1)


def test_fields_are_counted_over_all_messages(read: Read, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protobuf, "LIMITS", LIMITS._replace(protobuf_fields=5))
    root = read(bytes_field(1, number_field(1, 1) * 3) + number_field(2, 1) * 2)
    assert len(root.in_order()) == 3
    with pytest.raises(DamagedError, match="has 6 fields; 5 are the most, at byte 6") as refused:
        _ = inside(root, 1).fields
    assert refused.value.excess == ("fields", 5, 6)


def test_a_name_may_be_as_long_as_the_limit(read: Read):
    most = LIMITS.protobuf_text_bytes
    assert read(bytes_field(1, b"a" * most)).text(1) == "a" * most
    with pytest.raises(DamagedError, match=f"has {most + 1} bytes in a name; {most} are the most, at byte 0"):
        read(bytes_field(1, b"a" * (most + 1))).text(1)


def test_no_edit_is_no_splice():
    assert WireEdits().splices() == []


def test_a_field_of_the_same_length_touches_no_length(read: Read):
    expected = model()
    data = expected.SerializeToString()
    graph, edits = inside(read(data), ModelProto.GRAPH_FIELD_NUMBER), WireEdits()
    edits.replace(graph, graph.last(GraphProto.NAME_FIELD_NUMBER), bytes_field(GraphProto.NAME_FIELD_NUMBER, b"other"))
    assert len(edits.splices()) == 1
    expected.graph.name = "other"
    assert ModelProto.FromString(edited(data, edits)) == expected


@pytest.mark.parametrize("size", [0, 1, 10, 60, 90, 127, 128, 300, 16383, 16384, 20000])
def test_a_name_of_any_length_mends_every_length_around_it(size: int, read: Read):
    """The deepest one: a tensor in an attribute in a node in the graph. Lengths of one byte become two and three."""
    expected = model()
    data, new = expected.SerializeToString(), "n" * size
    path = [ModelProto.GRAPH_FIELD_NUMBER, GraphProto.NODE_FIELD_NUMBER]
    node = inside(read(data), path[0]).messages(path[1])[0]
    tensor, edits = inside(node, NodeProto.ATTRIBUTE_FIELD_NUMBER, AttributeProto.T_FIELD_NUMBER), WireEdits()
    edits.replace(tensor, tensor.last(TensorProto.NAME_FIELD_NUMBER), bytes_field(TensorProto.NAME_FIELD_NUMBER, new.encode()))
    expected.graph.node[0].attribute[0].t.name = new
    assert edited(data, edits) == expected.SerializeToString()


@pytest.mark.parametrize("size", range(100, 140))
def test_the_step_from_one_byte_of_length_to_two(size: int, read: Read):
    """Around 127 the length of the inner message grows, or that of the outer one, or both."""
    entry = StringStringEntryProto(key="k", value="v")
    data = TensorProto(external_data=[entry], name="t").SerializeToString()
    root, edits = read(data), WireEdits()
    inner = inside(root, TensorProto.EXTERNAL_DATA_FIELD_NUMBER)
    edits.replace(inner, inner.last(2), bytes_field(2, b"v" * size))
    parsed = TensorProto.FromString(edited(data, edits))
    assert [(e.key, e.value) for e in parsed.external_data] == [("k", "v" * size)]
    assert parsed.name == "t"


def test_lengths_that_shrink_are_mended_too(read: Read):
    expected = model()
    expected.graph.name = "g" * 20000
    data = expected.SerializeToString()
    graph, edits = inside(read(data), ModelProto.GRAPH_FIELD_NUMBER), WireEdits()
    edits.replace(graph, graph.last(GraphProto.NAME_FIELD_NUMBER), b"")
    expected.graph.ClearField("name")
    assert edited(data, edits) == expected.SerializeToString()


def test_a_length_that_was_longer_than_it_need_be_is_mended(read: Read):
    inner = bytes_field(2, b"v")
    data = varint(1 << 3 | BYTES) + bytes([len(inner) | 0x80, 0x80, 0]) + inner + bytes_field(3, b"behind")
    root, edits = read(data), WireEdits()
    message = inside(root, 1)
    edits.replace(message, message.last(2), bytes_field(2, b"longer"))
    assert edited(data, edits) == bytes_field(1, bytes_field(2, b"longer")) + bytes_field(3, b"behind")


def test_edits_in_two_siblings_and_around_them(read: Read):
    expected = model()
    data = expected.SerializeToString()
    root, edits = read(data), WireEdits()
    graph = inside(root, ModelProto.GRAPH_FIELD_NUMBER)
    for k, node in enumerate(graph.messages(GraphProto.NODE_FIELD_NUMBER)):
        new = ("long" * 40, "s")[k]
        edits.replace(node, node.last(NodeProto.OUTPUT_FIELD_NUMBER), bytes_field(NodeProto.OUTPUT_FIELD_NUMBER, new.encode()))
        expected.graph.node[k].output[:] = [new]
    edits.replace(
        root, root.last(ModelProto.PRODUCER_NAME_FIELD_NUMBER), bytes_field(ModelProto.PRODUCER_NAME_FIELD_NUMBER, b"p")
    )
    expected.producer_name = "p"
    assert edited(data, edits) == expected.SerializeToString()


def test_one_field_becomes_several_or_none(read: Read):
    expected = model()
    data = expected.SerializeToString()
    tensor = inside(read(data), ModelProto.GRAPH_FIELD_NUMBER, GraphProto.INITIALIZER_FIELD_NUMBER)
    edits = WireEdits()
    for i, field in enumerate(tensor.fields[TensorProto.DIMS_FIELD_NUMBER]):
        new = b"".join(number_field(TensorProto.DIMS_FIELD_NUMBER, n) for n in (1, 2)) if i == 0 else b""
        edits.replace(tensor, field, new)
    expected.graph.initializer[0].dims[:] = [1, 2]
    assert ModelProto.FromString(edited(data, edits)) == expected


def test_fields_are_added_at_the_end_and_between_two(read: Read):
    expected = model()
    data = expected.SerializeToString()
    graph = inside(read(data), ModelProto.GRAPH_FIELD_NUMBER)
    second = graph.fields[GraphProto.NODE_FIELD_NUMBER][1]
    between = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Abs", ["b"], ["d"])]
    last, edits = helper.make_tensor("more", TensorProto.INT64, [1], [5]), WireEdits()
    edits.add(graph, bytes_field(GraphProto.INITIALIZER_FIELD_NUMBER, last.SerializeToString()))
    for node in between:
        edits.add(graph, bytes_field(GraphProto.NODE_FIELD_NUMBER, node.SerializeToString()), at=second.start)
    first, other = expected.graph.node
    nodes = [first, *between, other]
    changed = ModelProto()
    changed.CopyFrom(expected)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.append(last)
    assert ModelProto.FromString(edited(data, edits)) == changed


@pytest.mark.parametrize("outer_first", [False, True])
def test_what_is_added_where_two_messages_end_stays_in_its_own(outer_first: bool, read: Read):
    data = bytes_field(1, bytes_field(2, bytes_field(3, b"x")))
    root, edits = read(data), WireEdits()
    messages = [root, inside(root, 1), inside(root, 1, 2)]
    for message in messages if outer_first else messages[::-1]:
        edits.add(message, number_field(9, message.depth))
    inner = bytes_field(3, b"x") + number_field(9, 2)
    middle = bytes_field(2, inner) + number_field(9, 1)
    assert edited(data, edits) == bytes_field(1, middle) + number_field(9, 0)


def test_a_message_without_any_field_can_be_filled(read: Read):
    data = bytes_field(1, b"") + bytes_field(2, b"y")
    root, edits = read(data), WireEdits()
    edits.add(inside(root, 1), bytes_field(3, b"z" * 200))
    assert edited(data, edits) == bytes_field(1, bytes_field(3, b"z" * 200)) + bytes_field(2, b"y")


def test_unknown_fields_and_their_order_are_kept(read: Read):
    unknown = [number_field(1000, 5), b"\xc9\x3e" + b"8 bytes!", bytes_field(1002, b"?"), b"\xdd\x3e" + b"four"]
    name = bytes_field(TensorProto.NAME_FIELD_NUMBER, b"old")
    data = b"".join((*unknown[:2], name, *unknown[2:]))
    root, edits = read(data), WireEdits()
    edits.replace(root, root.last(TensorProto.NAME_FIELD_NUMBER), new := bytes_field(TensorProto.NAME_FIELD_NUMBER, b"another"))
    assert edited(data, edits) == b"".join((*unknown[:2], new, *unknown[2:]))


def test_content_that_is_made_late_is_made_once_it_is_written(read: Read):
    expected = model()
    data, made = expected.SerializeToString(), []

    def content() -> bytes:
        made.append(1)
        return b"late" * 100

    tensor, edits = inside(read(data), ModelProto.GRAPH_FIELD_NUMBER, GraphProto.INITIALIZER_FIELD_NUMBER), WireEdits()
    edits.replace(
        tensor, tensor.last(TensorProto.FLOAT_DATA_FIELD_NUMBER), deferred_field(TensorProto.RAW_DATA_FIELD_NUMBER, 400, content)
    )
    edits.add(tensor, deferred_field(TensorProto.DOC_STRING_FIELD_NUMBER, 400, content))
    assert sum(splice.size for splice in edits.splices()) > 800
    assert not made
    after = edited(data, edits)
    assert len(made) == 2
    expected.graph.initializer[0].ClearField("float_data")
    expected.graph.initializer[0].raw_data = b"late" * 100
    expected.graph.initializer[0].doc_string = "late" * 100
    assert ModelProto.FromString(after) == expected


def test_a_field_is_edited_once(read: Read):
    root, edits = read(bytes_field(1, b"a")), WireEdits()
    edits.replace(root, root.fields[1][0], b"")
    with pytest.raises(ValueError, match="the field at 0 is edited twice"):
        edits.replace(root, root.fields[1][0], b"")


def test_any_edits_of_a_model_are_the_model_with_these_edits(read: Read):
    """Texts at every depth are left, replaced, removed or added, in any order."""
    texts = st.text("ab", max_size=1).map(lambda text: text * 140) | st.text("ab", max_size=9)

    @given(st.data())
    def run(draw: st.DataObject) -> None:
        expected = model()
        data = expected.SerializeToString()
        edits, graph = WireEdits(), inside(read(data), ModelProto.GRAPH_FIELD_NUMBER)
        targets = [(graph, GraphProto.NAME_FIELD_NUMBER, expected.graph, "name")]
        for k, node in enumerate(graph.messages(GraphProto.NODE_FIELD_NUMBER)):
            targets.append((node, NodeProto.OP_TYPE_FIELD_NUMBER, expected.graph.node[k], "op_type"))
            attribute, known = inside(node, NodeProto.ATTRIBUTE_FIELD_NUMBER), expected.graph.node[k].attribute[0]
            targets.append((attribute, AttributeProto.NAME_FIELD_NUMBER, known, "name"))
        tensor = inside(graph, GraphProto.INITIALIZER_FIELD_NUMBER)
        targets.append((tensor, TensorProto.NAME_FIELD_NUMBER, expected.graph.initializer[0], "name"))
        for message, number, known, name in draw.draw(st.permutations(targets)):
            what, new = draw.draw(st.sampled_from(["leave", "replace", "remove", "add"])), draw.draw(texts)
            if what == "replace":
                edits.replace(message, message.last(number), bytes_field(number, new.encode()))
                setattr(known, name, new)
            elif what == "remove":
                edits.replace(message, message.last(number), b"")
                known.ClearField(name)
            elif what == "add":  # the last one counts
                edits.add(message, bytes_field(number, new.encode()))
                setattr(known, name, new)
        assert ModelProto.FromString(edited(data, edits)) == expected

    run()


def test_any_edits_of_any_message_are_the_edited_encoding(read: Read):
    """Fields are replaced, removed and added at any depth; the lengths around them grow and shrink, over a byte's worth too."""

    @settings(max_examples=100)
    @given(TREES, st.data())
    def run(tree: Tree, data: st.DataObject) -> None:
        raw, edits = encoded(tree), WireEdits()

        def edit(found: Message, tree: Tree) -> Tree:
            after: Tree = []
            for field, (number, value) in zip(found.in_order(), tree, strict=True):
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

        after = edit(read(raw), tree)
        assert spliced(raw, [(s.start, s.stop, s.data()) for s in edits.splices()]) == encoded(after)

    run()
