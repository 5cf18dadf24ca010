"""Weights in a pickle that are no dense tensor: sparse, distributed, without a storage, numpy arrays, lists of numbers.

They are recognized, so that a search for the first conv knows that a weight is there; their values are not read.
Source: torch/_utils.py, torch/_tensor.py and torch/nn/parameter.py of torch 2.13, numpy/_core/multiarray.py and numeric.py of
numpy 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, elements, plain

Shape = tuple[int, ...]

_WEIGHT = re.compile(r"(^|[./])(weight|kernel)$")
_MOST_WRAPPERS = 8
"""A parameter wraps a call, a subclass wraps another one: torch itself nests two."""
_MOST_NODES = 64
"""Of an unknown object, looked through for the storages or bytes that make it a weight."""
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KERNEL_RANKS = range(3, 6)
"""Of nested lists: a list of numbers, or a table, is a setting."""


class Opaque(NamedTuple):
    """What a node is, in words that follow its name, and what to do about it, where KEY is to be its key; `shape` is None where
    it is not known."""

    what: str
    hint: str
    shape: Shape | None = None


def opaque(node: PickleNode, name: str) -> Opaque | None:
    """What the value called `name` is, if it is a weight and no dense tensor; None for anything else."""
    if node.kind in (Kind.LIST, Kind.TUPLE):
        shape = _nested_shape(node)
        return Opaque("is a nested list of numbers, and no tensor", _TENSOR, shape) if len(shape) in _KERNEL_RANKS else None
    for _ in range(_MOST_WRAPPERS):
        if node.kind is not Kind.CALL or len(node.value) != 2 or node.value[0].target.kind is not Kind.GLOBAL:
            return None
        (module, function), arguments = node.value[0].target.value, _elements(node.value[1])
        if (module, function) == ("torch._tensor", "_rebuild_from_type_v2") and len(arguments) == 4:
            rebuild, kind = arguments[0], arguments[1]
            if rebuild.kind is Kind.GLOBAL and (known := _KNOWN.get(rebuild.value[1])):
                return known(node, _elements(arguments[2]))
            return _unknown(_dotted(kind))
        if module.startswith(("torch.", "numpy.")) and (known := _KNOWN.get(function)):
            return known(node, arguments)
        if not function.startswith("_rebuild_parameter") or not arguments:
            return _unknown(f"{module}.{function}") if _WEIGHT.search(name) and _holds_values(node) else None
        node = arguments[0]
    return None


def _elements(arguments: PickleNode) -> list[PickleNode]:
    return [child.target for child in elements(arguments).nodes]


_TENSOR = "state_dict[KEY] = torch.tensor(state_dict[KEY]), before torch.save"
_ARRAY = "torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, FILE)"
_FULL = "torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), FILE)"
_PLAIN = "convert the checkpoint of plain tensors that it was made from"
_DENSE = "state_dict[KEY] = state_dict[KEY].to_dense(), before torch.save"


def _sparse(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    """(layout, (indices, values, size, …)), with one tensor of indices or with two."""
    sizes = [_size(part) for part in _elements(arguments[1])] if len(arguments) == 2 else []
    return Opaque("is a sparse tensor, and only dense ones are converted", _DENSE, next(filter(None, sizes), None))


def _size(node: PickleNode) -> Shape | None:
    """The integers of a tuple or of a torch.Size."""
    if node.kind is Kind.CALL and len(node.value) == 2 and node.value[0].is_global("torch", "Size"):
        node = next(iter(_elements(node.value[1])), node)
    return _shape(node)


def _wrapper(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    """(class, dtype, size, stride, …): a subclass without a storage of its own."""
    name, shape = _dotted(arguments[0]) if arguments else "", _shape(arguments[2]) if len(arguments) > 2 else None
    if name.rpartition(".")[2] == "DTensor":
        return Opaque("is a DTensor, of which each process saves its own part", _FULL, shape)
    return _unknown(name, shape)


def _meta(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    """(dtype, size, stride, requires_grad)"""
    shape = _shape(arguments[1]) if len(arguments) > 1 else None
    return Opaque("is on the meta device and has no values", "load the weights into the model before torch.save", shape)


def _uninitialized(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    return Opaque("is not initialized: its lazy module never ran", "run the model once before torch.save")


def _elsewhere(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    return Opaque("was saved from a device that keeps no storages", "move the model to the CPU before torch.save: model.cpu()")


def _nested(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    return Opaque("is a nested tensor, and only dense ones are converted", _PLAIN)


def _array(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    """numpy's _reconstruct, whose state is (version, shape, dtype, order, bytes)."""
    state = _elements(node.state) if node.state is not None else []
    return Opaque("is a numpy array, and no tensor", _ARRAY, _shape(state[1]) if len(state) > 1 else None)


def _buffer(node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque:
    """numpy's _frombuffer of pickle protocol 5: (bytes, dtype, shape, order)."""
    return Opaque("is a numpy array, and no tensor", _ARRAY, _shape(arguments[2]) if len(arguments) > 2 else None)


def _unknown(name: str, shape: Shape | None = None) -> Opaque:
    return Opaque(f"is of the class {name}, which alone can read its values", _PLAIN, shape)


_KNOWN: dict[str, Callable[[PickleNode, Sequence[PickleNode]], Opaque]] = {
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_sparse_csr_tensor": _sparse,
    "_rebuild_wrapper_subclass": _wrapper,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_device_tensor_from_numpy": _elsewhere,
    "_rebuild_device_tensor_from_cpu_tensor": _elsewhere,
    "UninitializedParameter": _uninitialized,
    "_reconstruct": _array,
    "_frombuffer": _buffer,
}


def _dotted(node: PickleNode) -> str:
    return ".".join(node.value) if node.kind is Kind.GLOBAL else "tensor of an unnamed class"


def _shape(node: PickleNode) -> Shape | None:
    value: Any = plain(node)
    return value if isinstance(value, tuple) and all(side >= 0 for side in value) else None


def _nested_shape(node: PickleNode) -> Shape:
    """The lengths of a list, of its first list, and so on down to a number; () where that ends in anything else."""
    shape: list[int] = []
    while node.kind in (Kind.LIST, Kind.TUPLE) and len(shape) <= _KERNEL_RANKS.stop and (children := node.children):
        shape.append(len(children))
        node = children[0].target
    return tuple(shape) if node.kind in (Kind.INT, Kind.FLOAT) else ()


def _holds_values(node: PickleNode) -> bool:
    """Whether an object, which is no module, no dict and no number of numpy's, holds a storage or bytes not far inside. Below
    protocol 3 bytes are a call of _codecs.encode."""
    if node.items is not None or any(node.value[0].is_global(module, "scalar") for module in _NUMPY):
        return False
    todo = [node]
    for _ in range(_MOST_NODES):
        if not todo:
            return False
        node = todo.pop().target
        if node.kind in (Kind.PERSID, Kind.BYTES) or node.is_global("_codecs", "encode"):
            return True
        if any(key.value == "_modules" for key, _ in node.entries() if key.kind is Kind.TEXT):
            return False
        todo += node.inner
    return False
