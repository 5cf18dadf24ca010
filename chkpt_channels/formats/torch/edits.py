"""Edits of torch tensors: which integers of the pickle and which bytes of the storages change.

A storage that the edited tensor owns alone gets new bytes. To one that other tensors look into, the new kernel is appended:
offsets of the others stay valid, no storage is added, and the memo is not touched.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from chkpt_channels.containers.pickle.editor import edited
from chkpt_channels.containers.pickle.reader import Kind, Node, plain
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.formats.base import Declaration, Edits, FirstConv, OptimizerEntry, Tensor, TensorEdit
from chkpt_channels.formats.torch.object_tree import CHANNEL_NAMES, Link, OptimizerNode, Storage, TorchObject, View, attributes
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from numpy.typing import NDArray

ReadBytes = Callable[[Storage, int, int], Iterable[bytes]]


class StorageChange(NamedTuple):
    """A storage's new content: its first `keep` bytes, then `size` bytes made by `data`."""

    keep: int
    size: int
    data: Callable[[], bytes]


def tensors_of(torch_object: TorchObject) -> dict[str, Tensor]:
    """The named tensors, and the scales of quantised ones."""
    groups = torch_object.groups
    found = {name: Tensor(name, view.dtype, view.shape, groups[name]) for name, view in torch_object.views.items()}
    return found | {name: Tensor(name, BY_NAME["F64"], (), groups[name]) for name in torch_object.scales}


def quantiser(torch_object: TorchObject, name: str) -> Quantiser | None:
    """What a quantised tensor's numbers mean. Source: torch/_tensor.py, Tensor._reduce_ex_internal, of torch 2.13."""
    view = torch_object.views[name]
    parts = view.quantizer.children if view.quantizer is not None else []
    if view.dtype.name not in ("QI8", "QU8") or not parts:
        return None
    if parts[0].target.is_global("torch", "per_tensor_affine") and f"{name}/scale" in torch_object.scales:
        zero = plain(parts[2])
        return Quantiser(f"{name}/scale", zero) if isinstance(zero, int) else None
    if parts[0].target.is_global("torch", "per_channel_affine") and len(parts) == 4:
        axis = plain(parts[3])
        scales, zeros = (torch_object.views.get(f"{name}/{part}") for part in ("scales", "zero_points"))
        if not (isinstance(axis, int) and 0 <= axis < len(view.shape) and scales and zeros):
            return None
        if scales.shape == zeros.shape == (view.shape[axis],) and scales.dtype.floating and not zeros.dtype.floating:
            return Quantiser(f"{name}/scales", f"{name}/zero_points", axis)
    return None


def chunks_of(torch_object: TorchObject, name: str, read: ReadBytes) -> Iterable[bytes]:
    """The tensor's bytes in C order; streamed where it lies so in its storage."""
    if name in torch_object.scales:
        return [struct.pack("<d", torch_object.scales[name].target.value)]
    view = torch_object.views[name]
    start, stop = view.span
    if view.is_contiguous:
        return read(view.storage, start, stop)
    import numpy as np

    raw = np.frombuffer(b"".join(read(view.storage, start, stop)), f"V{view.itemsize}")
    steps = [stride * view.itemsize for stride in view.stride]
    return [np.lib.stride_tricks.as_strided(raw, view.shape, steps, writeable=False).tobytes()]


def load_line(torch_object: TorchObject, path: str, *, safe: bool) -> str:
    """The line of Python that loads the file: a state dict, one inside a checkpoint, or a whole module."""
    loaded = f"torch.load({path!r})" if safe else f"torch.load({path!r}, weights_only=False)"
    root = torch_object.tree.root.target
    if root.state is not None and root.items is None:
        return f"model = {loaded}"
    inside = {node.where[:at] for node in torch_object.optimizers for at in _ends(node.where)}
    models = [group for group in dict.fromkeys(torch_object.groups.values()) if group not in inside]
    keys = "".join(f"[{key!r}]" for key in models[0].split("/")) if models and models[0] else ""
    return f"model.load_state_dict({loaded}{keys})"


def _ends(where: str) -> Iterator[int]:
    """Where the parts of a path end, the empty one first."""
    yield 0
    yield from (i for i, letter in enumerate(where) if letter == "/")
    yield len(where)


def optimizer_entries(torch_object: TorchObject, tensors: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """Every optimizer's entries, with their tensors and plain integers by slot."""
    return tuple(_entry(torch_object, node, tensors) for node in torch_object.optimizers)


def _entry(torch_object: TorchObject, node: OptimizerNode, tensors: Mapping[str, Tensor]) -> OptimizerEntry:
    names = {slot: f"{node.where}/{slot}" for slot in node.slots}
    numbers = {slot: torch_object.numbers[name].target.value for slot, name in names.items() if name in torch_object.numbers}
    found = {slot: tensors[name] for slot, name in names.items() if name in tensors}
    return OptimizerEntry(node.where, node.parameter, found, numbers)


def declarations(torch_object: TorchObject, first_convs: Iterable[FirstConv]) -> list[Declaration]:
    """The integers in the modules around each kernel that count its channels; `torch_object.numbers` remembers their nodes."""
    found: dict[str, Declaration] = {}
    for conv in first_convs:
        link = torch_object.links.get(conv.tensor.name)
        link = link.parent if link else None
        while link is not None:
            where, _ = link.path()
            counts = list(_channel_counts(link, where))
            if conv.groups > 1 and (module := _own_numbers(link)):
                counts.append((f"{where}.groups".removeprefix("."), module["groups"]))
            for name, node in counts:
                if plain(node) == conv.in_channels:
                    found[name] = Declaration(name, conv.in_channels)
                    torch_object.numbers[name] = node
            link = link.parent
    return list(found.values())


def contradictions(torch_object: TorchObject, first_convs: Iterable[FirstConv]) -> list[tuple[Declaration, int]]:
    """The in_channels of the modules that own these kernels, where the kernels take others."""
    found = []
    for conv in first_convs:
        link = torch_object.links.get(conv.tensor.name)
        while link is not None and not (numbers := _own_numbers(link)):
            link = link.parent
        if link is None:
            continue
        told = plain(numbers["in_channels"])
        if isinstance(told, int) and told != conv.in_channels:
            found.append((Declaration(f"{link.path()[0]}.in_channels".removeprefix("."), told), conv.in_channels))
    return found


def hyper_parameters(torch_object: TorchObject, channels: int) -> list[Declaration]:
    """The integers outside of modules that are called like a number of input channels, and are it."""
    found = []
    for where, link in torch_object.counts.items():
        in_module = link.parent is not None and any(name == "_modules" for name, _ in attributes(link.parent.node.target))
        if plain(link.node) == channels and not in_module:
            torch_object.numbers[where] = link.node
            found.append(Declaration(where, channels))
    return found


def others(torch_object: TorchObject, group: str) -> list[str]:
    """What stands beside the tensors of one dict: on the way to it, and in it."""
    node, prefix = torch_object.tree.root.target, ""
    found: list[str] = []
    for step in [*group.split("/"), ""] if group else [""]:
        below = None
        if any(name == "_modules" for name, _ in attributes(node)):
            return [*found, f"{prefix}a pickled module"]
        for key, value in node.entries():
            name = f"{prefix}{key.value}"
            if step and key.value == step:
                below = value.target
            elif name not in torch_object.views or step:
                found.append(name)
        if step:
            if below is None:
                return [*found, group]
            node, prefix = below, f"{prefix}{step}/"
    return found


def shared(torch_object: TorchObject, names: Sequence[str]) -> tuple[str, str] | None:
    """Two tensors that look into the same bytes of one storage."""
    spans: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in names:
        view = torch_object.views.get(name)
        if view is not None and view.span[0] < view.span[1]:
            spans[view.storage.key].append((*view.span, name))
    for found in spans.values():
        found.sort()
        for (_, stop, name), (start, _, other) in pairwise(found):
            if start < stop:
                return name, other
    return None


def refined(torch_object: TorchObject, conv: FirstConv) -> FirstConv:
    """A pickled module says how many channels and groups its kernel is for."""
    link = torch_object.links.get(conv.tensor.name)
    numbers = _own_numbers(link.parent) if link and link.parent else {}
    if not numbers:
        return conv
    channels, groups = plain(numbers["in_channels"]), plain(numbers["groups"])
    if groups == 1 or channels != conv.in_channels * groups:
        return conv
    return conv._replace(in_channels=channels, groups=groups, why=f"{conv.why}; in {groups} groups")


def _own_numbers(link: Link) -> dict[str, Node]:
    """in_channels and groups of a convolution module, by name; empty for other objects."""
    found = {name: node for name, node in attributes(link.node.target) if name in ("in_channels", "groups")}
    return found if len(found) == 2 and all(isinstance(plain(node), int) for node in found.values()) else {}


def _channel_counts(link: Link, where: str) -> Iterable[tuple[str, Node]]:
    for name, value in attributes(link.node.target):
        if name in CHANNEL_NAMES and value.target.kind is Kind.INT:
            yield ".".join(filter(None, [where, name])), value
        if name == "config":
            for inner, count in attributes(value.target):
                if inner in CHANNEL_NAMES and count.target.kind is Kind.INT:
                    yield ".".join(filter(None, [where, "config", inner])), count


class TorchEdits:
    """The consequences of `edits` in one pickle: `pickle`, its new bytes, and `changes` and `removed` for its storages."""

    def __init__(self, torch_object: TorchObject, edits: Edits) -> None:
        self._object, self._place = torch_object, torch_object.place
        numbers = torch_object.numbers
        self._values: dict[Node, Any] = {numbers[where]: value for where, value in edits.numbers.items() if where in numbers}
        self.changes: dict[str, StorageChange] = {}
        dropped = [node for node in torch_object.optimizers if node.where in set(edits.dropped)]
        self.removed = _orphaned(torch_object, dropped)
        for name in edits.tensors.keys() & torch_object.scales.keys():
            self._values[torch_object.scales[name]] = float(edits.tensors[name].values())
        by_storage: defaultdict[Storage, dict[View, tuple[str, TensorEdit]]] = defaultdict(dict)
        for name, edit in edits.tensors.items():
            if name in torch_object.views:
                view = torch_object.views[name]
                by_storage[view.storage][view] = name, edit
        for storage, changed in by_storage.items():
            self._edit(storage, changed)
        touched = bool(self._values or dropped)
        self.pickle = edited(torch_object.tree, self._values, [node.span for node in dropped]) if touched else None

    def _edit(self, storage: Storage, edited: Mapping[View, tuple[str, TensorEdit]]) -> None:
        for view, (name, _) in edited.items():
            self._check_editable(view, name)
        others = {n: v for n, v in self._object.views.items() if v.storage is storage and v not in edited}
        distinct: dict[tuple[object, ...], tuple[str, TensorEdit, list[View]]] = {}
        for view, (name, edit) in edited.items():
            key = view.offset, view.shape, view.stride
            distinct.setdefault(key, (name, edit, []))[2].append(view)
        for name, _, views in distinct.values():
            self._check_alone(name, views[0], {**others, **{n: w[0] for n, _, w in distinct.values() if n != name}})
        first = next(iter(distinct.values()))[2][0]
        whole = not others and len(distinct) == 1 and first.span == (0, storage.size)
        self._place_anew(storage, list(distinct.values()), 0 if whole else storage.size)

    def _place_anew(self, storage: Storage, edited: list[tuple[str, TensorEdit, list[View]]], keep: int) -> None:
        """The new kernels behind the first `keep` bytes of the storage."""
        parts: list[Callable[[], bytes]] = []
        end = keep
        for _, edit, views in edited:
            itemsize = views[0].itemsize
            padding = -end % itemsize
            if padding:
                parts.append(partial(bytes, padding))
            end += padding
            for view in views:
                offset_node, shape_node, stride_node = view.nodes
                stride = _strides(edit.shape, view.memory_order)
                self._values |= {offset_node: end // itemsize, shape_node: edit.shape, stride_node: stride}
            parts.append(partial(_payload, edit, views[0].memory_order))
            end += prod(edit.shape) * itemsize
        for count in storage.counts:
            self._values[count] = end // storage.unit
        self.changes[storage.key] = StorageChange(keep, end - keep, lambda: b"".join(part() for part in parts))

    def _check_editable(self, view: View, name: str) -> None:
        place = self._place.inside(name)
        if view.quantizer is not None and quantiser(self._object, name) is None:
            raise place.unsupported("is quantised in a way that is not converted")
        if view.storage.has_view:
            raise place.unsupported("its storage is a view into another one (torch before 0.2), which is not converted")
        if any(stride == 0 and size > 1 for size, stride in zip(view.shape, view.stride, strict=True)):
            raise place.unsupported("is an expanded tensor (stride 0): its elements share memory")

    def _check_alone(self, name: str, view: View, others: Mapping[str, View]) -> None:
        start, stop = view.span
        for other, its in others.items():
            if its.span[0] < stop and start < its.span[1]:
                raise self._place.inside(name).unsupported(
                    f"shares its memory with {other}, which would keep the old values",
                    hint=f"name both with --layer if both see the image: --layer {name} --layer {other}",
                )


def _payload(edit: TensorEdit, order: tuple[int, ...]) -> bytes:
    values: NDArray[Any] = edit.values()
    return values.reshape(edit.shape).transpose(order).tobytes()


def _strides(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense tensor whose axes lie in memory in `order`, slowest first."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _orphaned(torch_object: TorchObject, dropped: list[OptimizerNode]) -> frozenset[str]:
    """The storages that nothing but the dropped entries refers to."""
    spans = [node.span for node in dropped]
    return frozenset(
        key
        for key, storage in torch_object.storages.items()
        if storage.counts and all(any(a <= count.start < b for a, b in spans) for count in storage.counts)
    )
