"""Edits of torch tensors: which integers of the pickle and which bytes of the storages change.

A storage that the edited tensor owns alone gets new bytes. To one that other tensors use too, the new kernel is appended: the
offsets of the others stay valid, no storage is added, and the memo is not touched. Integers are never memoized, so that new
ones move no memo index; each reference to a storage encodes its element count, and every one of them is edited.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from chkpt_channels.containers.pickle.editor import edited, is_within
from chkpt_channels.containers.pickle.reader import PickleNode
from chkpt_channels.core.elements import dense_strides, strided
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Edits, TensorEdit
from chkpt_channels.formats.torch.graph import quantization_of
from chkpt_channels.formats.torch.object_tree import CLONED, TorchObject
from chkpt_channels.formats.torch.rebuild import Storage, View, without_values
from chkpt_channels.formats.torch.signs import with_signs


class StorageChange(NamedTuple):
    """A storage's new content: its first `keep` bytes, then the `size` bytes that `data` returns."""

    keep: int
    size: int
    data: Callable[[], bytes]


class TorchEdits:
    """The consequences of `edits` in one pickle: `pickle`, its new bytes, and `changes` and `removed` for its storages."""

    def __init__(self, torch_object: TorchObject, edits: Edits) -> None:
        self._object, self._location = torch_object, torch_object.location
        numbers = torch_object.numbers
        self._values: dict[PickleNode, Any] = {
            numbers[where]: value for where, value in edits.numbers.items() if where in numbers
        }
        self.changes: dict[str, StorageChange] = {}
        dropped = frozenset(edits.dropped)
        self._spans = spans = [span for node in torch_object.optimizers if node.where in dropped for span in node.spans]
        self.removed = _orphaned(torch_object, spans)
        # by name: of two names for one object, as a tied parameter has, one may be edited and the other not
        self._others = {
            name: view
            for name, view in torch_object.views.items()
            if name not in edits.tensors and not (spans and is_within(view.nodes[0].start, spans))
        }
        for name in edits.tensors.keys() & torch_object.scales.keys():
            self._values[torch_object.scales[name]] = float(edits.tensors[name].values())
        by_storage: defaultdict[Storage, dict[View, tuple[str, TensorEdit]]] = defaultdict(dict)
        for name, edit in edits.tensors.items():
            if name in torch_object.views:
                view = torch_object.views[name]
                by_storage[view.storage][view] = name, edit
        for storage, changed in by_storage.items():
            self._edit_storage(storage, changed)
        changes = bool(self._values or dropped)
        self.pickle = edited(torch_object.tree, self._values, spans) if changes else None

    def _edit_storage(self, storage: Storage, edited: Mapping[View, tuple[str, TensorEdit]]) -> None:
        for view, (name, _) in edited.items():
            self._check_editable(view, name)
        others = {n: v for n, v in self._others.items() if v.storage is storage}
        # one tensor may be pickled twice, as two calls with the same geometry (tied weights)
        distinct: dict[tuple[object, ...], tuple[str, TensorEdit, list[View]]] = {}
        for view, (name, edit) in edited.items():
            distinct.setdefault(view.place, (name, edit, []))[2].append(view)
        for name, _, views in distinct.values():
            self._check_alone(name, views[0], {**others, **{n: w[0] for n, _, w in distinct.values() if n != name}})
        views = next(iter(distinct.values()))[2]
        uses = [use for use in storage.uses if not is_within(use.start, self._spans)]
        alone = not others and len(distinct) == 1 and len(uses) == len(views)
        whole = alone and views[0].span == (0, storage.size)
        self._write_kernels(storage, list(distinct.values()), 0 if whole else storage.size)

    def _write_kernels(self, storage: Storage, edited: list[tuple[str, TensorEdit, list[View]]], keep: int) -> None:
        """Put the new kernels after the first `keep` bytes of the storage, each at a multiple of its element size: offsets
        count elements."""
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
                stride = dense_strides(edit.shape, view.memory_order)
                self._values |= {offset_node: end // itemsize, shape_node: edit.shape, stride_node: stride}
            parts.append(partial(_payload, edit, views[0]))
            end += prod(edit.shape) * itemsize
        for count in storage.counts:
            self._values[count] = end // storage.unit
        self.changes[storage.key] = StorageChange(keep, end - keep, lambda: b"".join(part() for part in parts))

    def _check_editable(self, view: View, name: str) -> None:
        location = self._location.at(name)
        if view.quantizer is not None and quantization_of(self._object, name) is None:
            raise location.unsupported("is quantized by a scheme that is not converted")
        if view.storage.absent:
            raise without_values(location)
        if view.repeated:
            raise location.unsupported("is given its elements once more by a state, which would keep the old ones", hint=CLONED)
        if view.storage.has_view:
            raise location.unsupported("its storage is a view into another one (torch before 0.2), which is not converted")
        if any(stride == 0 and size > 1 for size, stride in zip(view.shape, view.stride, strict=True)):
            raise location.unsupported("is an expanded tensor (stride 0): its elements share memory")

    def _check_alone(self, name: str, view: View, others: Mapping[str, View]) -> None:
        start, stop = view.span
        sharing = [other for other, shared in others.items() if shared.span[0] < stop and start < shared.span[1]]
        if not sharing:
            return
        what = f"shares its memory with {sharing[0]}" + (f" and {len(sharing) - 1} more" if len(sharing) > 1 else "")
        layers = " ".join(f"--layer {each}" for each in (name, *sharing))
        raise self._location.at(name).unsupported(
            f"{what}, which would keep the old values",
            hint=f"name {'all' if len(sharing) > 1 else 'both'} with --layer if they see the image: {layers}",
        )


def _payload(edit: TensorEdit, view: View) -> bytes:
    new, order = edit.tobytes(), view.memory_order
    if order != (*range(len(order)),):
        steps = dense_strides(edit.shape, range(len(order)))
        new = strided(new, view.itemsize, [edit.shape[axis] for axis in order], [steps[axis] for axis in order])
    return with_signs(new, view.signs)


def _orphaned(torch_object: TorchObject, spans: Sequence[tuple[int, int]]) -> frozenset[str]:
    """The storages that nothing but the dropped entries, which are encoded in `spans`, refers to."""
    return frozenset(
        key
        for key, storage in torch_object.storages.items()
        if spans and storage.counts and all(is_within(count.start, spans) for count in storage.counts)
    )
