"""LIKE, opened: a checkpoint in any container, a folder, or a state dict in memory; and the options that follow from it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from chkpt_channels.core.errors import Location, UnsupportedError, UsageError
from chkpt_channels.discovery.find import compare_with_like
from chkpt_channels.discovery.like import OtherNetworkError
from chkpt_channels.discovery.request import Like, LikeGroup, LikeTensor
from chkpt_channels.folders.model import Model, Part
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.storage.source import STDIO
from chkpt_channels.transform.options import Options

IN_MEMORY = "the state dict given as like"


def with_like(model: Model, options: Options) -> Options:
    """The options completed from LIKE, where there is one. Raises what opening it raises, and what `settled` does."""
    given = options.plain["like"]
    return options if given is None else settled(options, open_like(given), [part.store for part in model.parts], model.location)


def settled(options: Options, like: Like, stores: Sequence[TensorStore], location: Location) -> Options:
    """The options with LIKE, and with the target that it shows. Raises UnsupportedError where it is of another architecture or
    shows several targets, UsageError where it contradicts the target that is given."""
    request = options.search._replace(like=like._replace(target=options.rule.to))
    channels, failures = set(), []
    for store in stores:
        store.follows_links = options.plain["follow_links"]
        try:
            channels.add(compare_with_like(store, request).channels)
        except OtherNetworkError as error:  # of a folder's parts LIKE may hold some
            failures.append(error)
    if len(failures) == len(stores):
        raise failures[0]
    channels.discard(None)
    if len(channels) > 1:
        listed = " and ".join(f"{pair[0]} to {pair[1]}" for pair in sorted(filter(None, channels)))
        raise location.unsupported(f"{like.file} changes its parts differently: {listed} channels")
    pair = next(iter(channels), None)
    if pair is None:
        return options._replace(search=request)
    search = request._replace(like=like._replace(channels=pair))
    return options._replace(search=search, rule=options.rule._replace(to=pair[1]).validated())


def state_dict_of(given: Any) -> Any:
    """The state dict of a module, which is whatever has a method `state_dict`, as torch's have; all else as it is given."""
    method = None if isinstance(given, type | Mapping) else getattr(given, "state_dict", None)
    return method() if callable(method) else given


def open_like(given: str | os.PathLike[str] | Mapping[str, Any]) -> Like:
    """The names and shapes of LIKE, of a module too: no value is read, and no dtype. Raises what opening raises; UsageError for
    standard input and for a mapping of something else than arrays."""
    given = state_dict_of(given)
    if isinstance(given, Mapping):
        tensors = tuple(_in_memory(name, array) for name, array in given.items())
        return Like(IN_MEMORY, (LikeGroup("", "", tensors),))
    if os.fspath(given) == STDIO:
        raise UsageError("--like names a file: standard input is read for the source alone")
    with open_model(given) as model:
        groups = [group for part in model.parts for group in _groups(part)]
        counts = {count for part in model.parts for count in _graph_channels(part.store)}
    return Like(os.fspath(given), tuple(groups), counts.pop() if len(counts) == 1 else 0)


def _groups(part: Part) -> list[LikeGroup]:
    by_place: defaultdict[str, list[LikeTensor]] = defaultdict(list)
    store = part.store
    for tensor in store.model_tensors():
        beside = store.graph.is_beside_state_dict(tensor.name)
        by_place[tensor.group].append(LikeTensor(tensor.key, tensor.shape, store.memory(tensor.name), beside))
    return [LikeGroup(part.name, place, tuple(tensors)) for place, tensors in by_place.items()]


def _graph_channels(store: TensorStore) -> set[int]:
    """The input channels by the graph; none where it cannot be followed: names and shapes are enough."""
    try:
        return {conv.in_channels for conv in store.graph.first_convs()}
    except UnsupportedError:
        return set()


def _in_memory(name: Any, array: Any) -> LikeTensor:
    if not isinstance(name, str) or not hasattr(array, "shape"):
        hint = f"like=like[{name!r}]" if isinstance(array, Mapping) else "like=model.state_dict()"
        raise UsageError(f"{name!r} is of type {type(array).__name__}, not an array", file=IN_MEMORY, hint=hint)
    return LikeTensor(name, tuple(int(size) for size in array.shape), memory_of(name, array))


def memory_of(name: str, array: Any) -> Hashable:
    """What tells an array's memory: equal for two names of one parameter. Also of tensors that have no values (meta)."""
    storage = getattr(array, "untyped_storage", None)
    if storage is not None:
        return storage()._cdata, array.storage_offset(), tuple(array.shape), array.stride()
    place = getattr(array, "__array_interface__", {}).get("data")
    return (place[0], tuple(array.shape), array.strides) if place and 0 not in array.shape else name
