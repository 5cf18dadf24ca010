"""How torch.save pickles a tensor: as a call of a rebuild function of torch, read here as a view of a storage.

A tensor is a call of torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …) or one of its kin; a storage is a
persistent id ('storage', type, key, location, numel). Dtypes without a storage class (float8, uint16, complex32) are
over an UntypedStorage, whose numel counts bytes: _rebuild_tensor_v3 then names the dtype. A tensor on the meta device has a
shape and no storage: _rebuild_meta_tensor_no_storage(dtype, size, stride, …). What is done to a tensor after that, by bits, by a
state or by BUILD, is read too, or refused.
Source: torch/_utils.py, torch/_tensor.py and torch/serialization.py of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeGuard

from chkpt_channels.containers.pickle.nodes import Call, Kind, PickleNode, call_of, elements
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.dtypes import BY_STORAGE, BY_TORCH, DType
from chkpt_channels.core.errors import Location, UnsupportedError
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.formats.torch.signs import UnreadableError, turned_signs

_SUBCLASS = {(f"torch.{module}", f"_rebuild_from_type{version}") for module in ("_tensor", "tensor") for version in ("", "_v2")}
"""Rebuild a tensor of a subclass: their arguments are a function, the class, that function's arguments, and a state. torch.load
takes the module torch.tensor of versions before 1.9 for torch._tensor."""
_REBUILDS: dict[tuple[str, str], tuple[int, ...]] = {
    ("torch._utils", "_rebuild_tensor"): (4,),
    ("torch._utils", "_rebuild_tensor_v2"): (6, 7),
    ("torch._utils", "_rebuild_tensor_v3"): (7, 8),
    ("torch._utils", "_rebuild_qtensor"): (7,),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): (4,),
    ("torch._utils", "_rebuild_parameter"): (),
    ("torch._utils", "_rebuild_parameter_with_state"): (),
    ("torch.nn.parameter", "Parameter"): (),
    ("torch", "Tensor"): (),
    **dict.fromkeys(_SUBCLASS, ()),
    **{("torch", f"{storage.removesuffix('Storage')}Tensor"): () for storage in BY_STORAGE},
}
"""The functions and classes that return a tensor, and how many arguments they take; none for those that wrap another call."""
_METADATA = {"_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}
"""Which argument holds the bits: a dict, in which a key sets its bit whatever its value is."""
_DATA, _ALTERING = "data", frozenset({"real", "imag", "grad"})
"""The attributes of a tensor through which torch changes its elements, or that must have its shape; any other is only kept."""
_MOST_WRAPPERS = 8
"""A parameter wraps a tensor, a subclass wraps a call: torch itself nests two."""


Nodes = tuple[PickleNode, PickleNode, PickleNode]
"""What encodes a tensor's offset, its shape and its strides."""


class Storage:
    """The bytes that tensors share. `counts` are the nodes that encode how many elements of `unit` bytes it has: one a reference
    in Python's pickles, one in TorchScript's. `has_view` says that it is part of another storage (torch before 0.2), `absent`
    that it is that of a meta tensor, which has no bytes, `location` on which device it was ("cuda:0"). `uses` is what takes it,
    for tensors without a name too."""

    __slots__ = ("absent", "count", "counts", "dtype", "has_view", "key", "location", "unit", "uses")

    def __init__(
        self, key: str, dtype: DType | None, unit: int, count: int, *, absent: bool = False, location: str = "cpu"
    ) -> None:
        self.key, self.dtype, self.unit, self.count = key, dtype, unit, count
        self.absent, self.location, self.has_view = absent, location, False
        self.counts: list[PickleNode] = []
        self.uses: list[PickleNode] = []

    @property
    def size(self) -> int:
        """In bytes."""
        return self.unit * self.count


class View:
    """A tensor's geometry over its storage, in elements, and the nodes that encode it. `signs` is what the bytes of each element
    are to be combined with by exclusive or: its sign bits, where torch negates or conjugates what is stored; mostly none.
    `repeated` says that a state gives it the same elements once more, as bitsandbytes pickles its parameters."""

    __slots__ = ("dtype", "nodes", "offset", "quantizer", "repeated", "shape", "signs", "storage", "stride")

    def __init__(
        self,
        storage: Storage,
        dtype: DType,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        nodes: Nodes,
    ) -> None:
        self.storage, self.dtype, self.offset, self.shape, self.stride, self.nodes = storage, dtype, offset, shape, stride, nodes
        self.quantizer: PickleNode | None = None
        self.signs, self.repeated = b"", False

    @property
    def itemsize(self) -> int:
        return self.dtype.bits // 8

    @property
    def place(self) -> tuple[object, ...]:
        """What two tensors with the same elements have in common."""
        return self.storage.key, self.dtype, self.offset, self.shape, self.stride, self.signs

    @property
    def span(self) -> tuple[int, int]:
        """The bytes [start, stop) of the storage that the tensor uses."""
        if 0 in self.shape:
            return self.offset * self.itemsize, self.offset * self.itemsize
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        return self.offset * self.itemsize, (last + 1) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """In C order without gaps; axes of size 1 do not matter."""
        axes = [(n, s) for n, s in zip(self.shape, self.stride, strict=True) if n != 1]
        return 0 in self.shape or all(s == prod(n for n, _ in axes[i + 1 :]) for i, (_, s) in enumerate(axes))

    @property
    def memory_order(self) -> tuple[int, ...]:
        """The axes from the slowest in memory to the fastest."""
        if self.is_contiguous:
            return tuple(range(len(self.shape)))
        return tuple(sorted(range(len(self.shape)), key=lambda axis: -self.stride[axis]))


class Tensors:
    """The storages of one pickle, by key, and the tensors over them. Raises DamagedError for geometry that leaves its storage."""

    def __init__(self, tree: Tree, location: Location) -> None:
        self.location = location
        self.storages: dict[str, Storage] = {}
        self._by_persid: dict[PickleNode, Storage] = {}
        self._views: dict[PickleNode, View | None] = {}
        self.refused: dict[PickleNode, str] = {}
        """What keeps a tensor from being read, in words that follow its name."""
        for persid in tree.persids:
            self._storage(persid)

    def _storage(self, persid: PickleNode) -> None:
        nodes, values = elements(persid.value)
        if not values or values[0] != "storage":
            return  # legacy files also mark modules this way
        if len(values) not in (5, 6) or not _is_global(values[1]) or not isinstance(values[2], str):
            raise self.location.damaged("a persistent id is not a storage")
        (module, name), key, count = values[1].value, values[2], values[4]
        dtype = BY_STORAGE.get(name)
        if not module.startswith("torch") or (dtype is None and name != "UntypedStorage"):
            # a class of another module could be any storage, and its element size with it
            raise self.location.unsupported(f"a storage has the unknown type {module}.{name}")
        where = f"storage {key}"
        if not isinstance(count, int) or count < 0:
            raise self.location.at(where).damaged("element count must be a non-negative integer")
        unit = dtype.bits // 8 if dtype else 1
        device = values[3] if isinstance(values[3], str) else ""
        storage = self.storages.setdefault(key, Storage(key, dtype, unit, count, location=device))
        if (storage.count, storage.dtype) != (count, dtype):
            raise self.location.at(where).damaged(f"element count {storage.count} in one place of the pickle, {count} in another")
        if persid.state is not None:  # torch would take another dtype, or other bytes, from it
            raise self.location.at(where).unsupported("is given a state, which is not read")
        storage.counts.append(nodes[4])
        storage.uses += [persid, *(persid.gets or ())]
        storage.has_view |= len(values) == 6 and values[5] is not None
        self._by_persid[persid] = storage

    def view(self, call: PickleNode) -> View | None:
        """The tensor that this call returns; None if it returns something else, or is `refused`. Raises as the class does."""
        if call not in self._views:
            try:
                self._views[call] = self._read(call)
            except UnreadableError as error:
                self._views[call], self.refused[call] = None, str(error)
        return self._views[call]

    def _read(self, node: PickleNode, *, inner: bool = False) -> View | None:
        parts, changed, states = node.value, _is_changed(node), list[PickleNode]()
        for _ in range(_MOST_WRAPPERS):
            if (call := _rebuilding(*parts)) is None:
                return None
            if changed or _alters(call, states) or (states and inner):
                raise UnreadableError("is changed by a state, which is not read")
            if counts := _REBUILDS[call.name]:
                if len(call.nodes) not in counts:
                    raise self.location.damaged(f"a tensor is rebuilt from {len(call.nodes)} arguments", at=node.start)
                return self._repeated(self._geometry(call), states)
            if call.name in _SUBCLASS and len(call.nodes) == 4:
                if _is_global(kind := call.nodes[1].target) and kind.value[1] in BY_STORAGE:
                    raise UnreadableError("is made a tensor of the class of storages")  # which is no class for torch
                parts, changed = (call.nodes[0], call.nodes[2]), False
                continue
            wrapped = call.values[0] if call.values else None
            if not isinstance(wrapped, PickleNode) or wrapped.kind is not Kind.CALL:
                return None
            parts, changed = wrapped.value, _is_changed(wrapped)
        return None

    def _repeated(self, view: View, states: list[PickleNode]) -> View:
        """The view, where what its states hold as its data is the same tensor."""
        for data in states:
            same = self._read(data, inner=True) if data.kind is Kind.CALL else None
            if same is None or same.place != view.place:
                raise UnreadableError("is changed by a state, which is not read")
            view.repeated = True
        return view

    def _geometry(self, call: Call) -> View:
        (_, function), nodes, values = call
        if function == "_rebuild_meta_tensor_no_storage":
            dtype = _named_dtype(values[0])
            # the storage that it would have: what is damaged in its geometry is found as it is elsewhere
            absent = Storage(f"meta {nodes[1].start}", dtype, dtype.bits // 8 if dtype else 1, 1 << 63, absent=True)
            return self._view(absent, dtype, (0, *values[1:3]), (nodes[1], nodes[1], nodes[2]))
        storage = self._by_persid.get(values[0])
        if storage is None:
            raise self.location.damaged("a tensor has no storage", at=nodes[0].start)
        dtype = _named_dtype(values[6]) if function == "_rebuild_tensor_v3" else storage.dtype
        view = self._view(storage, dtype, values[1:4], (nodes[1], nodes[2], nodes[3]))
        at = _METADATA.get(function, len(nodes))
        view.signs = turned_signs(view.dtype, nodes[at].target) if at < len(nodes) else b""
        if function == "_rebuild_qtensor":
            view.quantizer = nodes[4].target
        return view

    def _view(self, storage: Storage, dtype: DType | None, geometry: Sequence[Any], nodes: Nodes) -> View:
        """The view of (offset, shape, stride), which `nodes` encode, on a storage in a dtype."""
        offset, shape, stride = geometry
        if dtype is None:
            raise self.location.unsupported("a tensor has an unknown element type")
        if any(isinstance(part, PickleNode) and part.kind is Kind.LIST for part in (shape, stride)):
            raise UnreadableError("has its size or stride as a list, which is not read")
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
        if any(not isinstance(n, int) or n < 0 for n in numbers) or not len(shape) == len(stride) <= LIMITS.axes:
            raise self.location.damaged(
                "size, stride and storage offset must be non-negative integers, with one stride per axis", at=nodes[0].start
            )
        view = View(storage, dtype, offset, shape, stride, nodes)
        if view.span[1] > storage.size or prod(shape) >= 1 << 63:
            raise self.location.at(f"storage {storage.key}").damaged(
                f"a tensor of shape {list(shape)} reaches beyond its {storage.count} elements", at=nodes[0].start
            )
        return view


def without_values(location: Location) -> UnsupportedError:
    """The error for a tensor whose storage is absent."""
    hint = "load the weights into the model before torch.save"
    return location.unsupported("is on the meta device: it has a shape and no values", hint)


def _rebuilding(function: PickleNode, arguments: PickleNode, *keywords: PickleNode) -> Call | None:
    """The call of a function or class that returns a tensor, None of any other."""
    call = call_of(_REBUILDS, function, arguments)
    odd = keywords or arguments.target.kind in (Kind.LIST, Kind.DICT, Kind.SET, Kind.CALL) if call is None else keywords
    if odd and function.target.kind is Kind.GLOBAL and function.target.value in _REBUILDS:
        raise UnreadableError("is rebuilt from arguments that are no tuple")
    return call


def _is_changed(call: PickleNode) -> bool:
    """Whether BUILD or SETITEM is applied to what a call returns."""
    return call.state is not None or call.items is not None


def _alters(call: Call, states: list[PickleNode]) -> bool:
    """Whether a call has a state that changes its tensor; what it sets as the data goes to `states`. A class of another library
    may make anything of another state than attributes."""
    at = 3 if call.name in _SUBCLASS or call.name[1] == "_rebuild_parameter_with_state" else len(call.nodes)
    if at >= len(call.nodes):
        return False
    state, kind = call.nodes[at].target, call.nodes[1].target
    foreign = call.name in _SUBCLASS and kind.kind is Kind.GLOBAL and kind.value[0].partition(".")[0] != "torch"
    for part in [child.target for child in state.children] if state.kind is Kind.TUPLE else [state]:
        keys = [key for key, _ in part.entries()]
        if any(key.kind is not Kind.TEXT or key.value in _ALTERING for key in keys):
            return True
        states += [value.target for key, value in part.entries() if key.value == _DATA]
        if not foreign and part.kind is not Kind.DICT and not (part.kind is Kind.CONST and part.value is None):
            return True
    return False


def _named_dtype(value: object) -> DType | None:
    """The dtype that a global such as torch.bfloat16 names; None where it names none."""
    return BY_TORCH.get(value.value[1]) if _is_global(value) and value.value[0] == "torch" else None


def _is_global(value: object) -> TypeGuard[PickleNode]:
    return isinstance(value, PickleNode) and value.kind is Kind.GLOBAL
