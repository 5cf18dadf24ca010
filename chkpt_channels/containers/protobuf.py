"""Protobuf's wire format as nested spans, read where it is needed and edited by splices.

    message = field*      field = tag (varint: number << 3 | wire type), then by wire type:
    0 varint · 1 eight bytes · 2 length (varint) and that many bytes: text, bytes, packed numbers or a message · 5 four bytes

Source: https://protobuf.dev/programming-guides/encoding. Varints need not be minimal and unknown fields are legal: both are
kept. An edit replaces or adds a whole field, tag to end, and corrects the lengths of all messages around it.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDEST_BYTES = 5
"""protobuf reads field numbers and lengths as 32 bits, which a varint encodes in five bytes at most."""
HIGHEST_NUMBER = (1 << 29) - 1  # trap: onnxruntime cuts higher ones down to it
LONGEST_VARINT_BYTES = 10
"""64 bits, seven in a byte."""
WINDOW_BYTES = 1 << 16
"""One read serves the many small fields that follow one another; what is larger is read by itself."""


class Reader:
    """Small reads from a large file, through one window."""

    def __init__(self, source: Source) -> None:
        self.source, self.location = source, source.location
        self._start, self._window = 0, b""
        self.count = 0  # of all fields that were read

    def bytes(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop)."""
        if stop - start > WINDOW_BYTES:
            return self.source.read(start, stop)
        if not (self._start <= start and stop <= self._start + len(self._window)):
            self._start = start
            self._window = self.source.read(start, min(start + WINDOW_BYTES, self.source.size))
        return self._window[start - self._start : stop - self._start]

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        """(value, offset of what follows) of the varint at `at`, which must end before `stop`."""
        raw = self.bytes(at, min(at + LONGEST_VARINT_BYTES, stop))
        value = 0
        for i, byte in enumerate(raw):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at + i + 1
        raise self.location.damaged("a varint has no end", at=at)


class Field(NamedTuple):
    """One field: `start` is its tag, [value, stop) its content without the length. `number` of the schema, `wire` type."""

    number: int
    wire: int
    start: int
    value: int
    stop: int


class Message:
    """The content span of a message; its fields are read when they are first needed. It fills `field` of the message `outer`."""

    __slots__ = ("_fields", "_messages", "depth", "field", "outer", "reader", "start", "stop")

    def __init__(self, reader: Reader, start: int, stop: int, outer: Message | None = None, field: Field | None = None) -> None:
        self.reader, self.start, self.stop, self.outer, self.field = reader, start, stop, outer, field
        self.depth: int = outer.depth + 1 if outer else 0
        self._fields: dict[int, list[Field]] | None = None
        self._messages: dict[int, Message] | None = None
        reader.location.check_limit("messages inside one another", self.depth, LIMITS.protobuf_depth, at=start)

    @property
    def fields(self) -> dict[int, list[Field]]:
        """The fields by number, each list in file order. Raises DamagedError for what is no protobuf."""
        if self._fields is None:
            self._fields = defaultdict(list)
            for field in _fields(self.reader, self.start, self.stop):
                self._fields[field.number].append(field)
                self.reader.count += 1
                self.reader.location.check_limit("fields", self.reader.count, LIMITS.protobuf_fields, at=field.start)
        return self._fields

    def in_order(self) -> list[Field]:
        """All fields in file order."""
        return sorted((f for fields in self.fields.values() for f in fields), key=lambda f: f.start)

    def message(self, field: Field) -> Message:
        """The message that fills a field."""
        if field.wire != BYTES:
            raise self.reader.location.damaged("a number takes the place of a message", at=field.start)
        self._messages = {} if self._messages is None else self._messages
        if field.start not in self._messages:
            self._messages[field.start] = Message(self.reader, field.value, field.stop, self, field)
        return self._messages[field.start]

    def messages(self, number: int) -> list[Message]:
        """The messages in all fields of this number."""
        return [self.message(field) for field in self.fields.get(number, ())]

    def only(self, number: int) -> Message | None:
        """The message in the one field of this number. Raises DamagedError for several, which other readers join."""
        fields = self.fields.get(number, ())
        if len(fields) > 1:
            raise self.reader.location.damaged("a message occurs twice where there is one", at=fields[1].start)
        return self.message(fields[0]) if fields else None

    def last(self, number: int) -> Field | None:
        """The field of this number that counts: the last one."""
        fields = self.fields.get(number)
        return fields[-1] if fields else None

    def text(self, number: int) -> str:
        """A text field, empty where it is missing."""
        texts = self.texts(number)
        return texts[-1] if texts else ""

    def texts(self, number: int) -> list[str]:
        """All text fields of this number."""
        return [self._text(field) for field in self.fields.get(number, ())]

    def _expect(self, field: Field, *wires: int) -> None:
        """Raise DamagedError for a field of another wire type: readers that know the schema would skip it silently."""
        if field.wire not in wires:
            raise self.reader.location.damaged(f"a field has the wire type {field.wire} instead of {wires[0]}", at=field.start)

    def _text(self, field: Field) -> str:
        self._expect(field, BYTES)
        self.reader.location.check_limit("bytes in a name", field.stop - field.value, LIMITS.protobuf_text_bytes, at=field.start)
        return self.raw(field).decode("utf-8", "backslashreplace")

    def raw(self, field: Field) -> bytes:
        """The content of a length-delimited field."""
        return self.reader.bytes(field.value, field.stop)

    def number(self, number: int, default: int = 0) -> int:
        """An int64 field, `default` where it is missing."""
        for each in self.fields.get(number, ()):
            self._expect(each, VARINT)
        field = self.last(number)
        return next(self._varints(field)) if field else default

    def numbers(self, number: int) -> list[int]:
        """A repeated int64 field, packed or not."""
        return [value for field in self.fields.get(number, ()) for value in self._varints(field)]

    def _varints(self, field: Field) -> Iterator[int]:
        self._expect(field, VARINT, BYTES)
        at = field.value
        while at < field.stop:
            value, at = self.reader.varint(at, field.stop)
            yield value - ((value >> 63) << 64)

    def floats(self, number: int, *wires: int) -> list[float]:
        """A repeated float field, packed or not; or one of these wire types."""
        for field in self.fields.get(number, ()):
            self._expect(field, *(wires or (FIXED32, BYTES)))
            if (length := len(self.raw(field))) % 4:
                what = f"packed floats have {length} bytes, which is not a multiple of 4"
                raise self.reader.location.damaged(what, at=field.start)
        raw = b"".join(self.raw(field) for field in self.fields.get(number, ()))
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def _fields(reader: Reader, at: int, stop: int) -> Iterator[Field]:
    while at < stop:
        start = at
        tag, at = reader.varint(at, stop)
        number, wire, width, value = tag >> 3, tag & 7, at - start, at
        if wire == VARINT:
            _, at = reader.varint(at, stop)
        elif wire in (FIXED64, FIXED32):
            at += 8 if wire == FIXED64 else 4
        elif wire == BYTES:
            length, value = reader.varint(at, stop)
            width = max(width, value - at)
            at = value + length
        else:
            raise reader.location.damaged(f"a field has the wire type {wire}, which is not used", at=start)
        if width > WIDEST_BYTES:
            what = f"a field's number or length is encoded in {width} bytes; {WIDEST_BYTES} are the most"
            raise reader.location.damaged(what, at=start)
        if not 0 < number <= HIGHEST_NUMBER or at > stop:
            beyond = 0 < number <= HIGHEST_NUMBER
            what = "a field extends beyond its message" if beyond else f"a field has the number {number}"
            raise reader.location.damaged(what, at=start)
        yield Field(number, wire, start, value, at)


def varint(value: int) -> bytes:
    """The shortest varint of an int64."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number_field(number: int, value: int) -> bytes:
    """A whole varint field."""
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """A whole length-delimited field."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


class DeferredField(NamedTuple):
    """Bytes whose number is known before `data` makes them."""

    size: int
    data: Callable[[], bytes]


def deferred_field(number: int, size: int, data: Callable[[], bytes], head: bytes = b"") -> DeferredField:
    """A whole length-delimited field: `head`, and then `size` bytes that are made when they are written."""
    before = varint(number << 3 | BYTES) + varint(len(head) + size) + head
    return DeferredField(len(before) + size, lambda: before + data())


class WireEdits:
    """Collects replaced and added fields; `splices` corrects the lengths around them."""

    def __init__(self) -> None:
        self._splices: list[Splice] = []
        self._delta: dict[Message, int] = {}
        self._added: dict[tuple[Message, int], list[bytes | DeferredField]] = {}
        self._replaced: set[Field] = set()

    def replace(self, message: Message, field: Field, new: bytes | DeferredField) -> None:
        """Put `new`, a whole field or several or none, in the place of `field`."""
        if field in self._replaced:
            raise ValueError(f"the field at {field.start} is edited twice")
        self._replaced.add(field)
        self._put(message, field.start, field.stop, new)

    def replace_all(self, message: Message, fields: Iterable[Field], new: bytes | DeferredField = b"") -> None:
        """Put `new` in the place of the first of these fields, and nothing in the place of the others."""
        for i, field in enumerate(fields):
            self.replace(message, field, b"" if i else new)

    def replace_last(self, message: Message, number: int, new: bytes) -> None:
        """Put `new` in the place of the field of this number that counts, where there is one."""
        if field := message.last(number):
            self.replace(message, field, new)

    def add(self, message: Message, new: bytes | DeferredField, at: int | None = None) -> None:
        """Add `new`, whole fields, to `message` at offset `at`, between two fields; without it at the end."""
        self._added.setdefault((message, message.stop if at is None else at), []).append(new)

    def _put(self, message: Message, start: int, stop: int, new: bytes | DeferredField) -> None:
        splice = Splice.of(start, stop, new) if isinstance(new, bytes) else Splice(start, stop, new.size, new.data)
        self._splices.append(splice)
        self._delta[message] = self._delta.get(message, 0) + splice.size - (stop - start)

    def splices(self) -> list[Splice]:
        """All splices, lengths included."""
        # where two messages end at one offset, what is added to the inner one comes first
        for (message, at), parts in sorted(self._added.items(), key=lambda item: -item[0][0].depth):
            for part in parts:
                self._put(message, at, at, part)
        self._added.clear()
        by_depth: defaultdict[int, dict[Message, int]] = defaultdict(dict)
        for message in self._delta:
            by_depth[message.depth][message] = self._delta[message]
        lengths = []
        # from the innermost messages outward: a length that grows from one byte to two makes the message around it grow as well
        for depth in range(max(by_depth, default=0), 0, -1):
            for message, change in by_depth[depth].items():
                if message.outer is None or (field := message.field) is None:
                    continue
                tag_stop = message.reader.varint(field.start, field.stop)[1]
                new = varint(field.stop - field.value + change)
                if change:
                    lengths.append(Splice.of(tag_stop, field.value, new))
                    change += len(new) - (field.value - tag_stop)
                around = by_depth[depth - 1]
                around[message.outer] = around.get(message.outer, 0) + change
        return [*self._splices, *lengths]
