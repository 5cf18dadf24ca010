"""The content of HDF5 objects, read through h5py's handles: types of numbers, text attributes, boxes of elements, filters."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping
from math import prod
from typing import Any

from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage.overlay import OverlayFile
from chkpt_channels.storage.source import CHUNK_BYTES

LARGEST_COMPACT_BYTES = 60_000
"""An object's header has messages of less than 64 KiB: attributes, and the elements of a compact dataset."""
_KNOWN_FILTERS = frozenset({1, 2, 3, 5, 6, 32000})
"""deflate, shuffle, fletcher32, nbit, scaleoffset, lzf: all that h5py brings with it."""
_SCALEOFFSET = 6

_TREE_SIZES = 4, 16
"""Half the entries of a leaf of a group's tree, and of another node: what the library takes where nothing else is asked of it."""


def numpy_name(kind: Any) -> tuple[str, bool]:
    """numpy's name for a stored type, "" where it is no number, and whether it is stored as this machine keeps it."""
    import h5py

    try:
        dtype = kind.dtype
    except (TypeError, ValueError, NotImplementedError):
        return "", False
    if dtype.kind not in "biufc" and dtype.name != "bfloat16":
        return "", False
    plain = dtype == dtype.newbyteorder("<") and dtype.kind != "b" and kind.equal(h5py.h5t.py_create(dtype))
    return dtype.newbyteorder("=").name, plain


def tagged_name(opened: Any) -> str:
    """ "bfloat16" for a dataset that Keras 3 has marked as such: it stores opaque pairs of bytes and an attribute `dtype`."""
    return "bfloat16" if dict(texts(opened, frozenset({"dtype"}))).get("dtype") == "bfloat16" else ""


def attributes(opened: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object by name."""
    import h5py

    for index in range(h5py.h5a.get_num_attrs(opened)):
        attribute = h5py.h5a.open(opened, index=index)
        yield attribute.name.decode("utf-8", "replace"), attribute


def texts(opened: Any, wanted: frozenset[str]) -> Iterator[tuple[str, str | list[str]]]:
    """The attributes of an object that are text, or lists of texts, and have a wanted name. Keras splits an attribute of more
    than 64 KB into name0, name1, …: they are wanted too."""
    import h5py

    for name, attribute in attributes(opened):
        if name.rstrip("0123456789") not in wanted:
            continue
        if attribute.get_type().get_class() != h5py.h5t.STRING or attribute.shape is None:
            continue
        if attribute.get_storage_size() <= LIMITS.header_bytes and (text := _text(attribute)) is not None:
            yield name, text


def _text(attribute: Any) -> str | list[str] | None:
    import numpy as np

    out = np.empty(attribute.shape, attribute.dtype)
    attribute.read(out)
    try:
        texts = [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in out.reshape(-1).tolist()]
    except UnicodeDecodeError:
        return None
    return texts if attribute.shape else texts[0]


def object_at(root: Any, path: str) -> Any:
    """The library's handle of the object at `path`, "" for the root."""
    import h5py

    return h5py.h5o.open(root, path.encode("utf-8", "surrogateescape")) if path else root


def space_of(shape: tuple[int, ...]) -> Any:
    """A dataspace of this shape."""
    import h5py

    return h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)


def check_storage(opened: Any, location: Location) -> None:
    """Raise DamagedError for a dataset whose elements are in other files: h5py would read these files."""
    import h5py

    properties = opened.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        raise location.damaged("is a virtual dataset: its content is in other files")
    if layout == h5py.h5d.CONTIGUOUS and properties.get_external_count():
        raise location.damaged("its content is in another file")


def joined(spans: Mapping[int, tuple[int, str]]) -> list[list[Any]]:
    """(address, bytes, dataset) in the order of addresses, the chunks of a dataset that follow one another as one."""
    found: list[list[Any]] = []
    for start, (size, path) in sorted(spans.items()):
        if found and found[-1][2] == path and found[-1][0] + found[-1][1] == start:
            found[-1][1] += size
        else:
            found.append([start, size, path])
    return found


def stored_spans(opened: Any, taken: Container[int]) -> list[tuple[int, int]]:
    """(address, bytes) of a dataset's elements, or of its chunks up to the first whose address is `taken`: an index that many
    datasets share would take forever."""
    import h5py

    if (address := opened.get_offset()) is not None:
        return [(address, opened.get_storage_size())]
    spans = list[tuple[int, int]]()
    if opened.get_create_plist().get_layout() != h5py.h5d.CHUNKED:
        return spans

    def take(info: Any) -> bool | None:
        spans.append((info.byte_offset, info.size))
        return True if info.byte_offset in taken else None

    if hasattr(opened, "chunk_iter"):
        opened.chunk_iter(take)
    else:  # HDF5 before 1.12.3: each look counts from the first chunk on
        any(take(opened.get_chunk_info(index)) for index in range(opened.get_num_chunks()))
    return spans


def check_trees(root: Any, data: OverlayFile, location: Location) -> None:
    """Raise UnsupportedError where the file states other sizes of its trees' nodes than HDF5's own: where they are not those that
    the nodes have, an edit of the library would write over what stands behind them. Superblocks of version 0 and 1 state them, as
    half the entries of a leaf and of another node, 16 bytes behind their begin."""
    import h5py

    data.seek(h5py.h5i.get_file_id(root).get_create_plist().get_userblock())
    superblock = data.read(20)
    leaf, inner = struct.unpack_from("<2H", superblock, 16)
    if superblock[8] < 2 and (leaf, inner) != _TREE_SIZES:
        hint = "h5repack FILE NEW writes it with HDF5's own"
        raise location.unsupported(f"its groups' trees have nodes of {inner} and {leaf} entries and are not edited", hint=hint)


def check_type(opened: Any, location: Location) -> None:
    """Raise UnsupportedError for numbers in a form of their own: they would not read back as they were written."""
    import h5py

    kind = opened.get_type()
    if kind.get_class() in (h5py.h5t.FLOAT, h5py.h5t.INTEGER) and not kind.equal(h5py.h5t.py_create(kind.dtype)):
        raise location.unsupported("its numbers are stored in a form of their own, which is not written again")


def check_exact(opened: Any, location: Location) -> None:
    """Raise UnsupportedError for a filter that rounds: what is written does not read back."""
    properties = opened.get_create_plist()
    if _SCALEOFFSET in [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]:
        what = f"is packed by filter {_SCALEOFFSET} (scaleoffset), which rounds what is written"
        raise location.unsupported(what, hint="h5repack -f NONE FILE OTHER, and convert OTHER")


def check_filters(opened: Any, location: Location) -> None:
    """Raise UnsupportedError for filters that are not built in, DamagedError for chunks that are too large to unpack."""
    import h5py

    properties = opened.get_create_plist()
    for index in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(index)
        if code not in _KNOWN_FILTERS or not h5py.h5z.filter_avail(code):
            raise location.unsupported(f"is packed by filter {code} ({name.decode('ascii', 'replace')}), which is not built in")
    chunk = properties.get_chunk() if properties.get_layout() == h5py.h5d.CHUNKED else ()
    location.check_limit("bytes in a chunk", prod(chunk) * opened.get_type().get_size(), LIMITS.hdf5_chunk_bytes)


def check_attributes(opened: Any, location: Location) -> None:
    """Raise UnsupportedError for an attribute that only the newest kind of object holds: it could not be written again."""
    for name, attribute in attributes(opened):
        size = prod(attribute.shape or ()) * attribute.get_type().get_size()
        if attribute.shape is not None and size > LARGEST_COMPACT_BYTES:
            hint = f"del h5py.File(FILE, 'r+')[{location.where!r}].attrs[{name!r}]"
            raise location.unsupported(f"has an attribute of {size} bytes, which is not written again", hint=hint)


def elements(opened: Any, dtype: str, shape: tuple[int, ...], itemsize: int) -> Iterator[bytes]:
    """The elements of a dataset in C order, box by box, as this machine keeps `dtype`."""
    import numpy as np

    wanted = opened.get_type().dtype if dtype == "bfloat16" else np.dtype(dtype)
    for start, count in boxes(shape, itemsize):
        out = np.empty(count, wanted)
        space = opened.get_space()
        if shape:
            space.select_hyperslab(start, count)
        opened.read(space_of(count), space, out)
        yield out.tobytes()


def boxes(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(start, count) of boxes of at most CHUNK_BYTES bytes that cover `shape` in C order."""
    import numpy as np

    axis, inner = len(shape), itemsize
    while axis and inner * shape[axis - 1] <= CHUNK_BYTES:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    step = max(1, CHUNK_BYTES // inner)
    outer, inner_axes = shape[: axis - 1], shape[axis:]
    for before in np.ndindex(outer):
        for at in range(0, shape[axis - 1], step):
            count = min(step, shape[axis - 1] - at)
            yield (*before, at, *(0 for _ in inner_axes)), (*(1 for _ in outer), count, *inner_axes)
