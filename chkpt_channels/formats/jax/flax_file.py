"""An open Flax file: the spans of its arrays, found without reading them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from chkpt_channels.containers import msgpack
from chkpt_channels.containers.msgpack import ARRAY, BYTES, EXT, FLOAT, INTEGER, MAP, TEXT, MsgpackWalk, Token
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Edits, OpaqueTensor, Tensor, TensorEdit
from chkpt_channels.formats.base import Format, Joined, Loading, TensorStore
from chkpt_channels.formats.jax_names import NamedArrays, NamedCheckpoint, layout_of, optimizer_entries
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

CHUNKED = "__msgpack_chunked_array__"
_ARRAYS = (1, 3)
"""The types of the extensions that hold an array and a scalar of numpy's."""
_COMPLEX = 2
"""That of Python's complex numbers: [real, imaginary]."""
_IN_CHUNKS = (
    "is stored in chunks, as flax stores what is larger than MAX_CHUNK_SIZE",
    "flax.serialization.MAX_CHUNK_SIZE = 2**32 - 1, before it is saved",
)
"""What an array in chunks is, and what to do."""
_BY_NUMPY = {row.numpy: row for row in reversed(BY_NAME.values()) if row.numpy}


class _Array(NamedTuple):
    """An array's extension at [start, stop): its elements begin at `elements`."""

    ext: int
    start: int
    elements: int
    stop: int
    dtype: str
    shape: tuple[int, ...]


class FlaxFile(NamedCheckpoint):
    """Maps in maps around arrays, each named by its path. Trees of JAX are sorted by name: their order says nothing."""

    ordered = False
    like_hint = '--like LIKE.msgpack, made by open("LIKE.msgpack", "wb").write(flax.serialization.to_bytes(NET.init(KEY, GRAY)))'

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self._arrays: dict[str, _Array] = {}
        self._numbers: dict[str, int] = {}
        self._chunked: list[str] = []
        walk = MsgpackWalk(source)
        self._read_maps(walk)
        if walk.at != source.size:
            raise self.location.damaged(f"{source.size - walk.at} bytes follow its map", at=walk.at)
        self._index()

    def _read_maps(self, walk: MsgpackWalk) -> None:
        """Fill the index. A stack, and no recursion: the file says how deep it is."""
        root = walk.next()
        if root.kind != MAP:
            raise self.location.damaged(f"begins with a value of the kind {root.kind}, not with a map", at=0)
        stack: list[tuple[str, Token, int, set[str]]] = [("", root, 0, set())]
        length = 0
        while stack:
            path, outer, done, keys = stack.pop()
            if done == outer.value:
                continue
            stack.append((path, outer, done + 1, keys))
            at = walk.at
            key = self._key(walk, path) if outer.kind == MAP else str(done)
            name = f"{path}/{key}" if path else key
            if key in keys or name in self._arrays:
                raise self.location.at(name).damaged("occurs twice in its map", at=at)
            if outer.kind == MAP:  # those of a list count themselves
                keys.add(key)
            length += len(name)
            self.location.check_limit("bytes of names", length, LIMITS.name_bytes, at=at)
            value = walk.next()
            if value.kind in (MAP, ARRAY):  # a list, which flax itself makes a map of
                self.location.check_limit("containers around a value", len(stack), LIMITS.name_depth, at=value.start)
                stack.append((name, value, 0, set()))
            else:
                self._leaf(walk, name, value)

    def _key(self, walk: MsgpackWalk, path: str) -> str:
        head = walk.next()
        if head.kind != TEXT:
            raise self.location.at(path).damaged(f"has a key of the kind {head.kind}, and not of text", at=head.start)
        return walk.text(head)

    def _leaf(self, walk: MsgpackWalk, name: str, value: Token) -> None:
        if value.kind == EXT:
            walk.at = value.body
            if value.value in _ARRAYS:
                self._arrays[name] = self._array(walk, name, value)
            elif value.value != _COMPLEX or not _is_complex(walk, value):
                what = f"has an extension of the type {value.value} that flax cannot read"
                raise self.location.at(name).damaged(what, at=value.start)
        elif value.kind == INTEGER and "/shape/" in name:
            self._numbers[name] = value.value
        if name.rpartition("/")[2] == CHUNKED:
            self._chunked.append(name.rpartition("/")[0])

    def _array(self, walk: MsgpackWalk, name: str, ext: Token) -> _Array:
        """What an extension holds: [shape, the dtype's name, bytes], to its last byte."""
        outer, sides = walk.next(), walk.next()
        if (outer.kind, outer.value, sides.kind) != (ARRAY, 3, ARRAY):
            raise self.location.at(name).damaged("its array must hold a shape, a dtype and bytes", at=ext.start)
        self.location.at(name).check_limit("axes", sides.value, LIMITS.axes, at=sides.start)
        shape = [walk.next() for _ in range(sides.value)]
        dtype, elements = walk.next(), walk.next()
        if any(side.kind != INTEGER or side.value < 0 for side in shape):
            raise self.location.at(name).damaged("its shape must list non-negative integers", at=sides.start)
        if (dtype.kind, elements.kind) != (TEXT, BYTES) or elements.stop != ext.stop:
            raise self.location.at(name).damaged("its array must end with a dtype and bytes", at=ext.start)
        sizes = tuple(side.value for side in shape)
        return _Array(ext.value, ext.start, elements.body, ext.stop, walk.text(dtype), sizes)

    def _index(self) -> None:
        shapes = {name: array.shape for name, array in self._arrays.items()}
        chunks: dict[str, list[str]] = {path: [] for path in self._chunked}
        for name in shapes if chunks else ():
            chunks.get(name.rpartition("/chunks/")[0], []).append(name)
        apart = {name for names in chunks.values() for name in names}
        for name, array in self._arrays.items():
            dtype = _BY_NUMPY.get(array.dtype)
            if dtype is None:
                raise self.location.at(name).unsupported(f"holds elements of the dtype {array.dtype}, which is not known")
            tensor = Tensor(name, dtype, array.shape, layout=None if name in apart else layout_of(name, shapes))
            if tensor.size != (size := array.stop - array.elements):
                what = f"shape {list(array.shape)} of {array.dtype} needs {tensor.size} bytes, and {size} are there"
                raise self.location.at(name).damaged(what, at=array.start)
            self.tensors[name] = tensor
        for path, names in chunks.items():
            if {*names} != {f"{path}/chunks/{i}" for i in range(len(names))}:
                raise self.location.at(path).damaged("its chunks must be arrays, numbered from 0")
            sides = [self._numbers.get(f"{path}/shape/{i}", -1) for i in range(LIMITS.axes)] + [-1]
            shape = tuple(sides[: sides.index(-1)])
            if prod(shape) != (count := sum(prod(shapes[name]) for name in names)):
                raise self.location.at(path).damaged(
                    f"shape {list(shape)} needs {prod(shape)} elements, and its chunks hold {count}"
                )
            self.opaque += (OpaqueTensor(path, shape, *_IN_CHUNKS, parts=names, follows=len(self.tensors)),)
        self.optimizer_entries = optimizer_entries(self.tensors)

    def joined(self, shards: TensorStore, *, ordered: bool) -> Joined:
        """The tree, which shards cut between any two arrays: a module's bias may be in another than its kernel."""
        return Joined(NamedArrays(shards), optimizer_entries(shards.tensors))

    def chunks(self, name: str) -> Iterator[bytes]:
        return self.source.chunks(self._arrays[name].elements, self._arrays[name].stop)

    def loading(self, path: str, group: str | None = None) -> Loading:
        statement = f"variables = flax.serialization.msgpack_restore(open({path!r}, 'rb').read())"
        return Loading(("import flax.serialization",), statement, needs_model=True, model="the Flax module that was trained")

    def splices(self, edits: Edits) -> list[Splice]:
        if edits.dropped:
            what = "flax restores an optimizer's state with all of its entries or not at all"
            raise self.location.at(edits.dropped[0]).unsupported(what, hint="--optimizer reset")
        return [self._splice(name, edits.tensors[name]) for name in self._arrays if name in edits.tensors]

    def _splice(self, name: str, edit: TensorEdit) -> Splice:
        array = self._arrays[name]
        size = self.tensors[name]._replace(shape=edit.shape).size
        dtype = array.dtype.encode()
        inner = msgpack.array(3) + msgpack.array(len(edit.shape)) + b"".join(map(msgpack.integer, edit.shape))
        inner += msgpack.sized(TEXT, len(dtype)) + dtype + msgpack.sized(BYTES, size)
        head = msgpack.sized(EXT, len(inner) + size, array.ext) + inner
        return Splice(array.start, array.stop, len(head) + size, lambda: head + edit.tobytes())


def _is_complex(walk: MsgpackWalk, ext: Token) -> bool:
    """Whether an extension holds two numbers and nothing else."""
    outer = walk.next()
    parts = [walk.next() for _ in range(2)] if (outer.kind, outer.value) == (ARRAY, 2) else []
    return len(parts) == 2 and all(part.kind in (INTEGER, FLOAT) for part in parts) and walk.at == ext.stop
