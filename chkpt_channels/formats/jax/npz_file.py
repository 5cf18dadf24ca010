"""An open .npz archive: the header of each array in it, and edits of whole members."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from math import prod

from chkpt_channels.containers.zip import editor
from chkpt_channels.containers.zip.member import Member
from chkpt_channels.containers.zip.reader import Archive
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import Edits, Notice, OpaqueTensor, Tensor, TensorEdit
from chkpt_channels.formats.base import Format, Loading
from chkpt_channels.formats.jax_names import NamedCheckpoint, layout_of, optimizer_entries
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Splice

MAGIC = b"\x93NUMPY"
NEAR_BYTES = 256
"""What is read of a member at once: its header, mostly."""
LONGEST_HEADER = 10_000
"""Characters of a header: numpy's own limit."""
ALIGN_BYTES = (64, 16)
"""What numpy pads headers to, since 1.14 and before."""
GROWTH_DIGITS = 21
"""The digits for which numpy leaves room behind the first side, so that an array can grow in place. Source: numpy/lib/format.py,
GROWTH_AXIS_MAX_DIGITS."""
_OTHERWISE = pattern(r"""(?s)(?=.*['"]descr['"])(?=.*['"]fortran_order['"])\{.*['"]shape['"] *: *\([\d, L]*\)""")
"""A header that numpy reads, as it reads any dict of these, and would write otherwise."""
_HEADER = pattern(
    r"\{'descr': (?P<descr>'[^']*'|\[.*\]), 'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[\d, L]*)\),? ?\} *\n",
    re.DOTALL,
)
_DESCR = pattern(r"'(?P<order>[<>|])(?P<kind>[fiubcOSUVmM])(?P<width>\d{0,9})(\[\w+\])?'")
_TYPES = {
    **{f"f{row.bits // 8}": row for row in BY_NAME.values() if row.numpy.startswith("float") and not row.extended},
    **{f"{row.numpy[0]}{row.bits // 8}": row for row in BY_NAME.values() if row.name[0] in "IU" and row.numpy},
    **{"b1": BY_NAME["BOOL"], "c8": BY_NAME["C64"], "c16": BY_NAME["C128"], "V2": BY_NAME["BF16"]},
}
"""By numpy's letters; V2 is what numpy calls JAX's bfloat16, and whatever else of two bytes it does not know."""


class _Array(NamedTuple):
    """The header of a .npy member: its text, with what precedes it `begin` bytes long, up to its elements at `elements`."""

    member: Member
    version: int
    text: str
    elements: int
    descr: str
    is_fortran: bool
    shape: tuple[int, ...]


class NpzArchive(NamedCheckpoint):
    """A zip of arrays. Whoever saved them chose their order: it says nothing."""

    ordered = False
    like_hint = "--like LIKE.npz, made by numpy.savez of the same network's arrays"

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self._archive = Archive(source)
        self._arrays: dict[str, _Array] = {}
        for member in self._archive.members.values():
            name = member.name.removesuffix(".npy")
            if name != member.name and name in self._archive.members:
                raise self.location.at(name).damaged("occurs twice, with and without .npy", at=member.start)
            if array := self._header(member):
                self._arrays[name] = array
        shapes = {name: array.shape for name, array in self._arrays.items()}
        for name, array in self._arrays.items():
            self._take(name, array, layout_of(name, shapes))
        self.untyped = frozenset(name for name in self.tensors if "V" in self._arrays[name].descr)
        self.optimizer_entries = optimizer_entries(self.tensors)

    def _header(self, member: Member) -> _Array | None:
        """The header of an array; None for a member that is none. Raises DamagedError."""
        raw = self._read(member, 0, NEAR_BYTES)
        if not raw.startswith(MAGIC):
            return None
        location = self.location.at(member.name)
        version, wide = (raw[6], 2 if raw[6] == 1 else 4) if len(raw) > 7 else (0, 0)
        begin = len(MAGIC) + 2 + wide
        if not 1 <= version <= 3 or raw[7]:
            raise location.damaged("its array has no version that is known: 1.0 to 3.0 are", at=member.data)
        length = int.from_bytes(raw[begin - wide : begin], "little")
        location.check_limit("characters in its header", length, LONGEST_HEADER, at=member.data)
        if begin + length > member.size:
            raise location.damaged(f"its header of {length} bytes is cut off", at=member.data)
        if begin + length > len(raw):
            raw = self._read(member, 0, begin + length)
        text = raw[begin : begin + length].decode("utf-8" if version == 3 else "latin-1", "replace")
        match = _HEADER.fullmatch(text)
        sides = re.findall(r"\d+", match["shape"]) if match else []
        if match is None and _OTHERWISE.match(text):
            raise location.unsupported("its header is not written as numpy writes it", hint="load it, and numpy.savez it anew")
        if match is None or max(map(len, sides), default=0) > len(str(1 << 63)):
            raise location.damaged("its header must be descr, fortran_order and shape, as numpy writes them", at=member.data)
        location.check_limit("axes", len(sides), LIMITS.axes, at=member.data)
        shape = tuple(map(int, sides))
        return _Array(member, version, text, begin + length, match["descr"], match["fortran"] == "True", shape)

    def _read(self, member: Member, start: int, stop: int) -> bytes:
        return b"".join(self._archive.chunks(member.name, start, min(stop, member.size)))

    def _take(self, name: str, array: _Array, layout: Layout | None) -> None:
        """Index an array, or what is known of one whose elements are no numbers of this machine."""
        location, match = self.location.at(name), _DESCR.fullmatch(array.descr)
        what = f"is of the type {array.descr}, whose elements are not read"
        if match is None:  # of fields, or as numpy spells none
            self._hide(name, array, what)
            return
        order, kind, width = match["order"], match["kind"], int(match["width"] or 0) * (4 if match["kind"] == "U" else 1)
        size = array.member.size - array.elements
        if kind != "O" and prod(array.shape) * width != size:
            needs = f"shape {list(array.shape)} of {array.descr} needs {prod(array.shape) * width} bytes, and {size} are there"
            raise location.damaged(needs, at=array.member.data)
        if kind == "O":
            self.warnings.append(Notice("object_array", f"{name}: holds Python objects, copied unread"))
        if (dtype := _TYPES.get(f"{kind}{width}")) and order != ">":
            self.tensors[name] = Tensor(name, dtype, array.shape, layout=layout)
        elif kind in "OfiucV":  # else it is text, or a time: no weight
            self._hide(name, array, what)

    def _hide(self, name: str, array: _Array, what: str) -> None:
        """Note an array that is copied, and refused where it could be the first convolution."""
        hint = "numpy.savez of float32, little-endian"
        self.opaque += (OpaqueTensor(name, array.shape, what, hint, follows=len(self.tensors)),)

    def chunks(self, name: str) -> Iterator[bytes]:
        array, tensor = self._arrays[name], self.tensors[name]
        stored = _without(self._archive.chunks(array.member.name), array.elements)  # read whole, so that its CRC is checked
        if not array.is_fortran or len(array.shape) < 2:
            yield from stored
            return
        yield self.array(tensor._replace(shape=array.shape[::-1]), stored).T.tobytes()

    def checks(self) -> Sequence[Checksum]:
        return self._archive.checks()

    def loading(self, path: str, group: str | None = None) -> Loading:
        statement = f"arrays = numpy.load({path!r})"
        return Loading(("import numpy",), statement, needs_model=True, model="the network that was trained")

    def splices(self, edits: Edits) -> list[Splice]:
        if edits.dropped:
            what = "whoever reads the state of its optimizer expects all of its arrays"
            raise self.location.at(edits.dropped[0]).unsupported(what, hint="--optimizer reset")
        for name in edits.tensors:  # what is replaced does not pass by: its checksum is checked here
            deque(self._archive.chunks(self._arrays[name].member.name), maxlen=0)
        changes = {self._arrays[name].member.name: self._changed(name, edit) for name, edit in edits.tensors.items()}
        return editor.splices(self._archive, changes)

    def _changed(self, name: str, edit: TensorEdit) -> editor.MemberEdit:
        array = self._arrays[name]
        head = _header_of(array, edit.shape)
        size = self.tensors[name]._replace(shape=edit.shape).size
        return editor.MemberEdit(len(head) + size, lambda: head + edit.values().tobytes("F" if array.is_fortran else "C"))


def _header_of(array: _Array, shape: tuple[int, ...]) -> bytes:
    """The header for another shape, padded as its writer pads: numpy of today, or of before."""
    begin = len(MAGIC) + 2 + (2 if array.version == 1 else 4)
    match = _HEADER.fullmatch(array.text)
    start, stop = match.span("shape") if match else (0, 0)
    rules = [(align, growth) for align in ALIGN_BYTES for growth in (GROWTH_DIGITS, 0)]
    bare = array.text.rstrip(" \n")

    def padded(text: str, sides: tuple[int, ...], align: int, growth: int) -> str:
        room = growth - len(str(sides[-1 if array.is_fortran else 0])) if growth and sides else 0
        return text + " " * room + " " * (align - (begin + len(text) + room + 1) % align) + "\n"

    rule = next((rule for rule in rules if padded(bare, array.shape, *rule) == array.text), (ALIGN_BYTES[0], 0))
    listed = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    text = padded(bare[:start] + listed + bare[stop:], shape, *rule)
    encoded = text.encode("utf-8" if array.version == 3 else "latin-1")
    return MAGIC + bytes([array.version, 0]) + len(encoded).to_bytes(begin - len(MAGIC) - 2, "little") + encoded


def _without(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The pieces without their first bytes."""
    for piece in pieces:
        yield piece[count:]
        count = max(0, count - len(piece))
