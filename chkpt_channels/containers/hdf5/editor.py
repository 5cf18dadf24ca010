"""Edits of HDF5 files as splices: datasets get new content or are added, text attributes get new text.

The library edits an OverlayFile: it appends the new objects, unlinks the old ones and updates its own tables. The same edits give
the same bytes every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chkpt_channels.containers.hdf5 import objects
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.storage.isolation import run_isolated
from chkpt_channels.storage.overlay import OverlayFile
from chkpt_channels.storage.splice import Splice

if TYPE_CHECKING:
    from numpy.typing import NDArray


class NewDataset(NamedTuple):
    """What a dataset becomes."""

    shape: tuple[int, ...]
    values: NDArray[Any]


Datasets = Mapping[str, NewDataset | None]
"""What datasets become by their paths; None where they are left out, as groups can be."""
Texts = Mapping[tuple[str, str], str | Sequence[str]]
"""Attributes by (path of the object, name), and what each becomes."""


def splices(file: Hdf5, datasets: Datasets, texts: Texts) -> list[Splice]:
    """The splices, counted from the HDF5 file's first byte, that give datasets new content or leave them out, and attributes new
    text or lists of it. Stored dtypes, creation properties, attributes and all other links stay. Datasets that the file does not
    hold are added, in the dtype of their values, with the groups that they are in."""
    if not datasets and not texts:
        return []
    answer = run_isolated(lambda: _edited(file, datasets, texts), file.location, file.source)
    spans = json.loads(next(answer))
    return [Splice.of(start, stop, data) for (start, stop), data in zip(spans, list(answer), strict=True)]


def _edited(file: Hdf5, datasets: Datasets, texts: Texts) -> Iterator[bytes]:
    """The spans that change, and what each becomes."""
    names = {path: [path, *(alias for alias, of in file.aliases.items() if of == path)] for path in datasets}
    with file.opened(writable=True) as (root, overlay):
        objects.check_trees(root, overlay, file.location)
        for path, new in datasets.items():
            if new is None:
                root.unlink(path.encode("utf-8", "surrogateescape"))
                continue
            if path not in file.datasets:
                _add(root, path.encode(), new)
                continue
            for check in (objects.check_type, objects.check_filters, objects.check_exact, objects.check_attributes):
                check(objects.object_at(root, path), file.location.at(path))
            _replace(root, [name.encode("utf-8", "surrogateescape") for name in names[path]], new)
        for (path, name), text in texts.items():
            if isinstance(text, str):
                _set_text(objects.object_at(root, path), name.encode(), text.encode())
            else:
                _set_list(objects.object_at(root, path), name, text)
        del root
    edits = overlay.splices()
    _check_kept(file, datasets, overlay)
    yield json.dumps([(splice.start, splice.stop) for splice in edits]).encode()
    yield from (splice.data() for splice in edits)


def _check_kept(file: Hdf5, datasets: Datasets, overlay: OverlayFile) -> None:
    """Raise DamagedError where the library has written over elements that are not edited: they lie over the file's structure."""
    edited = tuple(f"{path}/" for path in datasets)  # a group that is left out takes all in it along
    for start, size, path in file.spans:
        if not f"{file.aliases.get(path, path)}/".startswith(edited) and overlay.is_changed(start, start + size):
            raise file.location.at(path).damaged("its elements lie over the file's own structure", at=start)


def _add(root: Any, name: bytes, new: NewDataset) -> None:
    """Put a dataset where there is none."""
    import h5py

    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    kind = h5py.h5t.py_create(new.values.dtype, logical=True)
    _write(h5py.h5d.create(root, name, kind, objects.space_of(new.shape), properties, lcpl=links), kind, new)


def _replace(root: Any, names: Sequence[bytes], new: NewDataset) -> None:
    """Put a new dataset in the place of the one that all of `names` lead to."""
    import h5py

    old = h5py.h5d.open(root, names[0])
    kind, properties, space = old.get_type(), _creation_properties(old, new), _dataspace(old, new.shape)
    stored = h5py.Dataset(old).attrs
    attributes = [(name, stored[name], stored.get_id(name).shape, stored.get_id(name).dtype) for name in stored]
    del old, stored  # trap: the space of a dataset that is open when it is unlinked is never reused, and the file grows
    for name in names:
        root.unlink(name)
    dataset = h5py.h5d.create(root, names[0], kind, space, properties)
    _write(dataset, kind, new)
    for name, value, shape, dtype in attributes:  # they went with the old dataset
        h5py.Dataset(dataset).attrs.create(name, value, shape, dtype)
    for name in names[1:]:
        root.link(names[0], name)


def _creation_properties(old: Any, new: NewDataset) -> Any:
    """The creation properties of the old dataset, as far as the new shape allows."""
    import h5py

    properties = old.get_create_plist()
    properties.set_obj_track_times(False)  # a time stamp would make each output different
    if properties.get_layout() == h5py.h5d.CHUNKED:  # HDF5 refuses chunks larger than the dataset; clipped, filters survive
        properties.set_chunk(
            tuple(min(chunk, max(size, 1)) for chunk, size in zip(properties.get_chunk(), new.shape, strict=True))
        )
    elif properties.get_layout() == h5py.h5d.COMPACT and new.values.nbytes > objects.LARGEST_COMPACT_BYTES:
        properties.set_layout(h5py.h5d.CONTIGUOUS)
    return properties


def _dataspace(old: Any, shape: tuple[int, ...]) -> Any:
    """A dataspace of the new shape that may grow where the old one might."""
    import h5py

    if not shape:
        return objects.space_of(shape)
    sizes, most = (old.get_space().get_simple_extent_dims(maxdims) for maxdims in (False, True))
    limits = [
        size if limit == was else limit if limit == h5py.h5s.UNLIMITED else max(limit, size)
        for size, was, limit in zip(shape, sizes, most, strict=True)
    ]
    return h5py.h5s.create_simple(shape, tuple(limits))


def _write(dataset: Any, kind: Any, new: NewDataset) -> None:
    import h5py
    import numpy as np

    values = np.ascontiguousarray(new.values).reshape(new.shape)
    if not values.size:
        return
    if kind.get_class() == h5py.h5t.OPAQUE:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values.view(f"V{values.itemsize}"), mtype=kind)
    else:
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def _set_text(owner: Any, name: bytes, text: bytes) -> None:
    """Give a text attribute another value; one of fixed length is made anew in the new length."""
    import h5py
    import numpy as np

    attribute = h5py.h5a.open(owner, name)
    kind, space = attribute.get_type(), attribute.get_space()
    if kind.is_variable_str():  # as h5py writes a str; other writers fix the length
        value = np.array(text, dtype=attribute.dtype).reshape(attribute.shape)
        attribute.write(value)
        return
    kind = kind.copy()
    kind.set_size(len(text) + 1)
    del attribute
    h5py.h5a.delete(owner, name)
    h5py.h5a.create(owner, name, kind, space).write(np.array(text, dtype=f"S{len(text) + 1}"))


def _set_list(owner: Any, name: str, texts: Sequence[str]) -> None:
    """Give an object an attribute that is a list of texts, in the place of the one that it has."""
    import h5py

    attributes = h5py.AttributeManager(h5py.Group(owner))
    if name in attributes:
        del attributes[name]
    attributes.create(name, list(texts), dtype=h5py.string_dtype())
