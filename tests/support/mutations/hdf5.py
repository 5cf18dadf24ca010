"""HDF5 files, by way of h5py: attributes, links, shapes and types; and the bytes of its metadata, without any idea."""

from __future__ import annotations

import io
import struct
from random import Random
from typing import Any

import h5py
import numpy as np

from . import jsons
from .basics import EDGES, number, rounds, rows, text

LARGEST = 1 << 20
REFUSALS = (ValueError, KeyError, OSError, RuntimeError, TypeError)
"""What h5py raises where a change cannot be: a name that is taken, or is none."""
TYPES = ("<f4", ">f4", "<f8", "<f2", "<i4", "u1", "S4", "?")


def mutate(data: bytes, chance: Random) -> bytes:
    """The file, a few of its objects, attributes or metadata another."""
    if chance.random() < 0.3:
        return metadata(data, chance)
    held = io.BytesIO(data)
    with h5py.File(held, "r+") as file:
        for _ in rounds(chance):
            objects: list[Any] = [file]
            file.visititems(lambda _, item, found=objects: found.append(item))
            try:
                chance.choice(CHANGES)(objects, chance)
            except REFUSALS:
                continue
    return held.getvalue()


def metadata(data: bytes, chance: Random) -> bytes:
    """Other bytes outside of the tensors' elements."""
    taken = set[int]()
    with h5py.File(io.BytesIO(data)) as file:
        elements = [item.id for item in found(file) if isinstance(item, h5py.Dataset)]
        for dataset in elements:
            at = dataset.get_offset()
            taken.update(range(at or 0, (at or 0) + (dataset.get_storage_size() if at else 0)))
    free = [at for at in range(len(data)) if at not in taken and (data[at] or chance_of_zero(at))]
    out = bytearray(data)
    for _ in rounds(chance):
        at, width = chance.choice(free), chance.choice((1, 1, 1, 2, 4, 8))
        word = struct.pack("<Q", chance.choice(EDGES))[:width]
        out[at : at + width] = word if chance.random() < 0.5 else bytes([out[at] ^ 1 << chance.randrange(8)])
    return bytes(out)


def chance_of_zero(at: int) -> bool:
    """Most of the metadata are zeros that nobody reads: an eighth of them will do."""
    return not at % 8


def found(file: h5py.File) -> list[Any]:
    """Every object, each once."""
    objects: list[Any] = []
    file.visititems(lambda _, item: objects.append(item))
    return objects


def attribute(objects: list[Any], chance: Random) -> None:
    """Another value of an attribute, or none."""
    holders = [item for item in objects if len(item.attrs)]
    if not holders:
        return
    holder = chance.choice(holders)
    key = chance.choice(list(holder.attrs))
    old = holder.attrs[key]
    if chance.random() < 0.1:
        del holder.attrs[key]
        return
    if isinstance(old, bytes):
        old = old.decode()
    match old:
        case str() if old[:1] == "{":
            holder.attrs[key] = jsons.mutate(old.encode(), chance).decode()
        case str():
            holder.attrs[key] = text(old, chance, [item.name for item in objects])
        case np.ndarray():
            holder.attrs[key] = listed(old, chance)
        case _:
            holder.attrs[key] = chance.choice((number(3, chance) % (1 << 31), "text", np.zeros(3, "f4"), h5py.Empty("f4")))


def listed(old: np.ndarray[Any, Any], chance: Random) -> Any:
    """Other names in an attribute that lists some, in another order or as another kind of text."""
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in old.ravel()]
    if names and chance.random() < 0.5:
        i = chance.randrange(len(names))
        names[i] = text(names[i], chance, names)
    else:
        rows(names, chance)
    raw = [name.encode("utf-8", "replace") for name in names]
    if chance.random() < 0.2:
        return np.array(names, dtype=h5py.string_dtype()) if names else h5py.Empty("S1")
    return np.array(raw, dtype=f"S{max(map(len, raw), default=1) or 1}")


def dataset(objects: list[Any], chance: Random) -> None:
    """A dataset stored in another way, or another one in its place."""
    datasets = [item for item in objects if isinstance(item, h5py.Dataset)]
    if not datasets:
        return
    item = chance.choice(datasets)
    file, name, values, kept = item.file, item.name, np.array(3, "f4"), dict(item.attrs)
    if item.size and item.size < LARGEST:
        values = item[()]
    options = dict[str, Any]()
    match chance.choice(("shape", "turned", "type", "packed", "chunks", "one", "none", "promised", "values")):
        case "shape" if getattr(values, "size", 0):
            values = values.reshape(chance.choice(((-1,), (1, *values.shape), values.shape[::-1])))
        case "turned":
            values = np.ascontiguousarray(np.transpose(values))
        case "type":
            with np.errstate(all="ignore"):
                values = np.asarray(values).astype(chance.choice(TYPES))
        case "packed":
            options = {"compression": "gzip", "shuffle": chance.random() < 0.5, "fletcher32": chance.random() < 0.5}
        case "chunks":
            options = {"chunks": True, "maxshape": (None,) * values.ndim}
        case "one":
            values = np.float32(3)
        case "none":
            values = h5py.Empty("f4")
        case "promised":
            options, values = {"shape": (*values.shape[:-1], chance.choice((0, 1, 7, 1 << 40))), "dtype": "f4"}, None
        case _:
            values = np.full_like(values, chance.choice((0, np.nan, np.inf, -0.0, 1e38)))
    del file[name]
    made = file.create_dataset(name, data=values, **options) if values is not None else file.create_dataset(name, **options)
    made.attrs.update(kept)


def link(objects: list[Any], chance: Random) -> None:
    """An object gone, elsewhere, under two names, or copied; or a link to it that may lead nowhere."""
    if len(objects) < 2:
        return
    item = chance.choice(objects[1:])
    file, name, names = item.file, item.name, [other.name for other in objects]
    new = text(name, chance, names) if chance.random() < 0.8 else f"{name}/in_it"
    match chance.choice(("gone", "elsewhere", "two", "copy", "soft", "outside", "exchange")):
        case "gone":
            del file[name]
        case "elsewhere":
            file.move(name, new)
        case "two":
            file[new] = item
        case "copy":
            file.copy(item, new)
        case "soft":
            del file[name]
            file[name] = h5py.SoftLink(chance.choice(names))
        case "outside":
            file[new] = h5py.ExternalLink("outside.h5", name)
        case _:
            other = chance.choice(names[1:])
            file.move(name, "/aside")
            file.move(other, name)
            file.move("/aside", other)


def beside(objects: list[Any], chance: Random) -> None:
    """One object more."""
    group = chance.choice([item for item in objects if isinstance(item, h5py.Group)])
    if chance.random() < 0.5:
        group.create_group(f"more{chance.choice('012')}")
    else:
        group[f"vars{chance.choice('012')}"] = np.zeros(chance.choice(((), (3,), (3, 3, 3, 4))), "f4")


CHANGES = (attribute, attribute, attribute, dataset, dataset, link, beside)
