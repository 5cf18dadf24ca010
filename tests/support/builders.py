"""Small checkpoints made byte by byte, without a framework: for what no framework would write."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Zipped:
    """A member of a zip archive; what is not None overrules the truth in one of its headers, or in both. `extra` and `central`
    are the extra fields of the local header and of the directory's entry."""

    name: str
    data: bytes = b""
    method: int = 0
    flags: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    extra: bytes = b""
    central: bytes = b""
    local: Mapping[str, Any] | None = None

    def header(self, **fields: Any) -> tuple[int, int, int, int, int]:
        """Flags, method, CRC and the two sizes."""
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        size = len(self.data) if self.size is None else self.size
        truth = {"flags": self.flags, "method": self.method, "crc": crc, "packed": size if self.packed is None else self.packed}
        truth |= {"size": size} | fields
        return truth["flags"], truth["method"], truth["crc"], truth["packed"], truth["size"]


def zipped(
    *members: Zipped,
    before: bytes = b"",
    between: bytes = b"",
    gap: bytes = b"",
    behind: bytes = b"",
    comment: bytes = b"",
    end: Mapping[int, int] | None = None,
) -> bytes:
    """A zip archive byte by byte. `between` stands in front of the last member, `gap` in front of the directory, `behind`
    and `comment` at the end; `end` overrules fields of the end record by number."""
    out, directory = before, b""
    for i, member in enumerate(members):
        if between and i == len(members) - 1:
            out += between
        offset = len(out) if member.offset is None else member.offset
        flags, method, crc, packed, size = member.header(**(member.local or {}))
        name = (member.local or {}).get("name", member.name).encode()
        out += struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 33, crc, packed, size, len(name), len(member.extra))
        out += name + member.extra + member.data
        flags, method, crc, packed, size = member.header()
        name = member.name.encode()
        fields = (20, 20, flags, method, 0, 33, crc, packed, size, len(name), len(member.central), 0, 0, 0, 0, offset)
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name + member.central
    out += gap
    fields = [0, 0, len(members), len(members), len(directory), len(out), len(comment)]
    for i, value in (end or {}).items():
        fields[i] = value
    return out + directory + struct.pack("<4s4H2IH", b"PK\5\6", *fields) + comment + behind


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    data: bytes


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What REDUCE makes, and the state that BUILD gives it."""

    function: Any
    arguments: Any
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """A persistent id."""

    value: Any


def spelled(value: Any) -> bytes:
    """The opcodes of protocol 2 that make `value`; nothing is memoized."""
    match value:
        case Raw():
            return value.data
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            made = spelled(value.function) + spelled(value.arguments) + b"R"
            return made if value.state is None else made + spelled(value.state) + b"b"
        case Persistent():
            return spelled(value.value) + b"Q"
        case str():
            raw = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(raw)) + raw
        case tuple():
            return b"(" + b"".join(map(spelled, value)) + b"t"
        case list():
            return b"](" + b"".join(map(spelled, value)) + b"e"
        case dict():
            return b"}(" + b"".join(spelled(k) + spelled(v) for k, v in value.items()) + b"u"
        case _:
            return pickle.dumps(value, 2)[2:-1]


def pickled(value: Any) -> bytes:
    """`value` as a pickle of protocol 2."""
    return b"\x80\x02" + spelled(value) + b"."


def storage(key: Any, count: Any, kind: str = "Float") -> Persistent:
    return Persistent(("storage", Global("torch", f"{kind}Storage"), key, "cpu", count))


def tensor(store: Any, shape: Any, *, offset: Any = 0, stride: Any = None) -> Call:
    """A tensor over a storage, in C order unless `stride` says otherwise."""
    hooks = Call(Global("collections", "OrderedDict"), ())
    arguments = (store, offset, shape, c_strides(shape) if stride is None else stride, False, hooks)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def floats(count: int, seed: int = 0) -> bytes:
    """float32 elements."""
    return np.random.default_rng(seed).normal(size=count).astype("<f4").tobytes()


def conv(key: str = "0", shape: tuple[int, ...] = (4, 3, 3, 3)) -> Call:
    """A float32 kernel that has a storage of its own."""
    return tensor(storage(key, int(np.prod(shape))), shape)


def torch_zip(root: Any, storages: Mapping[str, bytes], more: Mapping[str, bytes] | None = None) -> bytes:
    """An archive as torch.load reads it, zipped by Python: `root` is a value for `pickled`, or a pickle."""
    members = {"data.pkl": root if isinstance(root, bytes) else pickled(root)}
    members |= {f"data/{key}": data for key, data in storages.items()} | {"version": b"3\n"} | dict(more or {})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return file.getvalue()


def one_conv(more: Mapping[str, Any] | None = None, **storages: bytes) -> bytes:
    """A torch zip with the kernel conv1.weight [4, 3, 3, 3], and `more` beside it."""
    return torch_zip({"conv1.weight": conv(), **(more or {})}, {"0": floats(108), **storages})


def torch_legacy(root: Any, storages: Mapping[str, bytes], *, keys: Any = None, counts: Mapping[str, int] | None = None) -> bytes:
    """A file as torch wrote it before 1.6: `root` is a value for `pickled`, or a pickle; `keys`, `counts` overrule the truth."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    listed = list(storages) if keys is None else keys
    head = b"".join(map(pickled, (Raw(pickle.dumps(LEGACY_MAGIC, 2)[2:-1]), 1001, system)))
    head += (root if isinstance(root, bytes) else pickled(root)) + pickled(listed)
    counted = {key: len(data) // 4 for key, data in storages.items()} | dict(counts or {})
    return head + b"".join(struct.pack("<q", counted[key]) + data for key, data in storages.items())


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header: a dict, or its JSON text."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(shape: Sequence[int], begin: int = 0, dtype: str = "F32", width: int = 4) -> dict[str, Any]:
    """A tensor's entry in such a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + int(np.prod(shape)) * width]}
