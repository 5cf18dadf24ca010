"""Weights in a pickle that are no dense tensor: sparse, distributed, without a storage, numpy arrays, lists of numbers.

They are recognized, so that a search for the first conv knows that a weight is there; their values are not read.
Source: torch/_utils.py, torch/_tensor.py and torch/nn/parameter.py of torch 2.13, numpy/_core/multiarray.py and numeric.py of
numpy 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple, pattern

Shape = tuple[int, ...]

_WEIGHT = pattern(r"(^|[./])(weight|kernel)$")
_KEY = pattern(r"[./](weight|kernel)$")
"""Of a weight in a state dict: a `weight` alone may be a state dict itself."""
_MOST_WRAPPERS = 8
"""A parameter wraps a call, a subclass wraps another one: torch itself nests two."""
_MOST_STEPS = 64
"""Into an unknown object, to the storages or bytes that make it a weight."""
MOST_NODES = 1_000_000
"""That are looked at in one pickle for that: a second."""
_MOST_ARGUMENTS = 16
"""Of a rebuild function, and of an unknown object: torch's have up to eight, numpy's state has five."""
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KERNEL_RANKS = range(3, 6)
"""Of nested lists: a list of numbers, or a table, is a setting."""


class Opaque(NamedTuple):
    """What a node is, in words that follow its name, and what to do about it, where KEY is to be its key; `shape` is None where
    it is not known."""

    what: str
    hint: str
    shape: Shape | None = None


class OpaqueReader:
    """What the values of one pickle are that are weights and no dense tensors."""

    def __init__(self) -> None:
        self._readings: dict[tuple[PickleNode, bool], Opaque | None] = {}
        self._left = MOST_NODES

    def read(self, node: PickleNode, name: str) -> Opaque | None:
        """What the value called `name` is; None for a tensor, and for what is no weight."""
        key = node, bool(_KEY.search(name))  # many names may share a value
        if key not in self._readings:
            self._readings[key] = self._call(node, name) if node.kind is Kind.CALL else self._container(node, name)
        return self._readings[key]

    def _call(self, node: PickleNode, name: str) -> Opaque | None:
        for _ in range(_MOST_WRAPPERS):
            if node.kind is not Kind.CALL or node.value[0].target.kind is not Kind.GLOBAL:
                return None
            (module, function), arguments = node.value[0].target.value, _elements(node.value[1])
            if (module, function) == ("torch._tensor", "_rebuild_from_type_v2") and len(arguments) == 4:
                rebuild, kind = arguments[0], arguments[1]
                made_by = rebuild.value[1] if rebuild.kind is Kind.GLOBAL else ""
                return _known(made_by, node, _elements(arguments[2])) or _unknown(_dotted(kind))
            if module.startswith(("torch.", "numpy.")) and (known := _known(function, node, arguments)):
                return known
            if node.items is not None or _is_bytes(node):
                return self._container(node, name)
            if not function.startswith("_rebuild_parameter") or not arguments:
                return _unknown(f"{module}.{function}") if _WEIGHT.search(name) and self._holds_values(node) else None
            node = arguments[0]
        return None

    def _container(self, node: PickleNode, name: str) -> Opaque | None:
        """Numbers in nested lists, whatever their name; bytes, and a list or dict around tensors, under the key of a weight."""
        shape = _nested_shape(node)
        if len(shape) in _KERNEL_RANKS:
            return Opaque("is a nested list of numbers, and no tensor", _TENSOR, shape)
        if _KEY.search(name) and self._holds_values(node):
            return Opaque("is a list, a dict or bytes, and no tensor", _PLAIN)
        return None

    def _holds_values(self, node: PickleNode) -> bool:
        """Whether something that is no module and no number of numpy's holds a storage or bytes, as far as its first parts show.
        A file with so many of them that none can be looked at is no model's: there each does."""
        if node.kind is Kind.CALL and any(node.value[0].is_global(module, "scalar") for module in _NUMPY):
            return False
        todo = [node]
        for _ in range(_MOST_STEPS):
            if not todo or self._left <= 0:
                return bool(todo)
            node = todo.pop().target
            self._left -= 1
            if node.kind is Kind.PERSID or _is_bytes(node):
                return True
            if node.kind is Kind.TEXT and node.value in _NO_VALUES:
                return False
            todo += reversed(list(islice(_inside(node), _MOST_ARGUMENTS)))
        return False


def _elements(arguments: PickleNode) -> list[PickleNode]:
    """The elements of a tuple; none of a tuple that is longer than those of all rebuild functions."""
    arguments = arguments.target
    if arguments.kind is not Kind.TUPLE or len(arguments.value) > _MOST_ARGUMENTS:
        return []
    return [child.target for child in arguments.value]


_TENSOR = "state_dict[KEY] = torch.tensor(state_dict[KEY]), before torch.save"
_ARRAY = "torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, FILE)"
_FULL = "torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), FILE)"
_PLAIN = "convert the checkpoint of plain tensors that it was made from"
_DENSE = "state_dict[KEY] = state_dict[KEY].to_dense(), before torch.save"


def _sparse(arguments: Sequence[PickleNode]) -> Opaque:
    """(layout, (indices, values, size, …)), with one tensor of indices or with two."""
    sizes = [_size(part) for part in _elements(arguments[1])] if len(arguments) == 2 else []
    return Opaque("is a sparse tensor, and only dense ones are converted", _DENSE, next(filter(None, sizes), None))


def _size(node: PickleNode) -> Shape | None:
    """The integers of a tuple or of a torch.Size."""
    if node.kind is Kind.CALL and len(node.value) == 2 and node.value[0].is_global("torch", "Size"):
        node = next(iter(_elements(node.value[1])), node)
    return _shape(node)


def _wrapper(arguments: Sequence[PickleNode]) -> Opaque:
    """(class, dtype, size, stride, …): a subclass without a storage of its own."""
    name, shape = _dotted(arguments[0]) if arguments else "", _shape(arguments[2]) if len(arguments) > 2 else None
    if name.rpartition(".")[2] == "DTensor":
        return Opaque("is a DTensor, of which each process saves its own part", _FULL, shape)
    return _unknown(name, shape)


def _unknown(name: str, shape: Shape | None = None) -> Opaque:
    return Opaque(f"is of the class {name}, which alone can read its values", _PLAIN, shape)


_NO_VALUES = frozenset({"_modules", "step", "exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum"})
"""Keys of a module, and of an optimizer's state of a parameter by its name."""
_ELSEWHERE = "was saved from a device that keeps no storages", "move the model to the CPU before torch.save: model.cpu()"
_PLAIN_KINDS = {
    "_rebuild_nested_tensor": ("is a nested tensor, and only dense ones are converted", _PLAIN),
    "_rebuild_device_tensor_from_numpy": _ELSEWHERE,
    "_rebuild_device_tensor_from_cpu_tensor": _ELSEWHERE,
    "UninitializedParameter": ("is not initialized: its lazy module never ran", "run the model once before torch.save"),
    "_reconstruct": ("is a numpy array, and no tensor", _ARRAY),
    "_frombuffer": ("is a numpy array, and no tensor", _ARRAY),
}
"""What the functions return that say no more of it than their names: what it is, and what to do about it."""


def _known(function: str, node: PickleNode, arguments: Sequence[PickleNode]) -> Opaque | None:
    """What a function of torch or numpy returns. The state of numpy's _reconstruct is (version, shape, dtype, order, bytes), and
    _frombuffer of pickle protocol 5 takes (bytes, dtype, shape, order)."""
    if function in ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"):
        return _sparse(arguments)
    if function == "_rebuild_wrapper_subclass":
        return _wrapper(arguments)
    if function not in _PLAIN_KINDS:
        return None
    shaped = {"_reconstruct": _elements(node.state)[1:2] if node.state is not None else [], "_frombuffer": arguments[2:3]}
    return Opaque(*_PLAIN_KINDS[function], next(map(_shape, shaped.get(function, ())), None))


def _dotted(node: PickleNode) -> str:
    return ".".join(node.value) if node.kind is Kind.GLOBAL else "tensor of an unnamed class"


def _shape(node: PickleNode) -> Shape | None:
    node = node.target
    if node.kind is not Kind.TUPLE or len(node.value) > LIMITS.axes:
        return None
    value: Any = plain(node)
    return value if isinstance(value, tuple) and all(side >= 0 for side in value) else None


def _nested_shape(node: PickleNode) -> Shape:
    """The lengths of a list, of its first list, and so on down to a number; () where that ends in anything else."""
    shape: list[int] = []
    while node.kind in (Kind.LIST, Kind.TUPLE) and len(shape) < _KERNEL_RANKS.stop:
        inner = next(_inside(node), None)
        if inner is None:
            return ()
        shape.append(len(node.value or ()) + len(node.items or ()))
        node = inner.target
    return tuple(shape) if node.kind in (Kind.INT, Kind.FLOAT) else ()


def _inside(node: PickleNode) -> Iterator[PickleNode]:
    """What a node is made of, one by one: a list that many names share is not copied for each."""
    if node.kind in (Kind.LIST, Kind.TUPLE, Kind.SET, Kind.CALL):
        yield from node.value or ()
    for item in node.items or ():
        yield from item
    if node.state is not None:
        yield node.state


def _is_bytes(node: PickleNode) -> bool:
    """Below protocol 3 they are a call of _codecs.encode, with their letters."""
    return node.kind is Kind.BYTES or (node.kind is Kind.CALL and node.value[0].is_global("_codecs", "encode"))
