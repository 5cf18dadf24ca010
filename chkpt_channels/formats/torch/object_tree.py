"""The object that torch.save pickled, read as named tensors over storages.

A tensor is a call of torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …) or one of its kin; a storage is a
persistent id ('storage', type, key, location, numel). Names are the path from the root: children of dicts and lists are
joined by "/", attributes and submodules of objects by ".", so that a whole module's kernel is called as in its state dict.
Source: torch/_utils.py, torch/serialization.py and torch/csrc/jit/serialization/pickler.cpp of torch 2.13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeGuard

from chkpt_channels.containers.pickle.nodes import Call, Kind, Node, call_of, elements, plain
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.dtypes import BY_STORAGE, BY_TORCH, DType
from chkpt_channels.core.errors import Place
from chkpt_channels.core.limits import LIMITS

CHANNEL_NAMES = frozenset(
    prefix + name
    for prefix in ("", "_")
    for name in (
        "in_channels",
        "in_chans",
        "in_chan",
        "in_ch",
        "num_channels",
        "input_channels",
        "in_dim",
        "img_channels",
        "image_channels",
    )
)
"""What modules, their configurations and training scripts call the number of input channels (torch, timm, transformers, smp)."""

_SUBCLASS = ("torch._tensor", "_rebuild_from_type_v2")
"""Makes a tensor of a subclass: its arguments are a function, the class, that function's arguments, and a state."""
_REBUILDS: dict[tuple[str, str], tuple[int, ...]] = {
    ("torch._utils", "_rebuild_tensor"): (4,),
    ("torch._utils", "_rebuild_tensor_v2"): (6, 7),
    ("torch._utils", "_rebuild_tensor_v3"): (7, 8),
    ("torch._utils", "_rebuild_qtensor"): (7,),
    ("torch._utils", "_rebuild_parameter"): (),
    ("torch._utils", "_rebuild_parameter_with_state"): (),
    _SUBCLASS: (),
}
"""What makes a tensor, and of how many arguments; of none where it wraps a call that makes one. Source: torch/_utils.py of
torch 2.13."""
_DEEPEST_WRAPPING = 8
"""A parameter wraps a tensor, a subclass wraps a call: torch itself nests two."""
_MODULE_DICTS = ("_parameters", "_buffers", "_modules")


@dataclass(eq=False, slots=True)
class Storage:
    """Bytes behind tensors. `counts` are the places that spell how many elements of `unit` bytes it has."""

    key: str
    dtype: DType | None
    unit: int
    count: int
    counts: list[Node] = field(default_factory=list)
    has_view: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return self.unit * self.count


@dataclass(eq=False, slots=True)
class View:
    """A tensor's geometry over its storage, in elements, and the nodes that spell it."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    nodes: tuple[Node, Node, Node]
    quantizer: Node | None = None

    @property
    def itemsize(self) -> int:
        return self.dtype.bits // 8

    @property
    def span(self) -> tuple[int, int]:
        """The first byte of the storage that the tensor uses, and the one behind its last."""
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


class Link:
    """One step of the path to a node. `attribute` steps are submodules and attributes of objects; `depth` counts the steps."""

    __slots__ = ("attribute", "depth", "node", "parent", "segment")

    def __init__(self, parent: Link | None, segment: str, attribute: bool, node: Node) -> None:
        self.parent, self.segment, self.attribute, self.node = parent, segment, attribute, node
        self.depth: int = parent.depth + 1 if parent else 0

    def path(self) -> tuple[str, str]:
        """(name, group): the group is the part that leads to the innermost dict or module tree."""
        links: list[Link] = []
        link: Link | None = self
        while link is not None and link.parent is not None:
            links.append(link)
            link = link.parent
        name, group, after_attribute = "", "", True
        for link in reversed(links):
            if name and not (link.attribute and after_attribute):
                group = name
                name += "/"
            elif name:
                name += "."
            name += link.segment
            after_attribute = link.attribute
        return name, group


@dataclass(eq=False, slots=True)
class OptimizerNode:
    """One parameter's entry in an optimizer's state: its slots, and the bytes that spell key and value."""

    where: str
    parameter: str
    slots: dict[str, Node]
    span: tuple[int, int]


class TorchObject:
    """The named tensors of one pickle. Raises DamagedError for geometry that leaves its storage, UnsupportedError for names
    that stand twice."""

    def __init__(self, tree: Tree, place: Place, prefix: str = "") -> None:
        self.tree, self.place, self._prefix = tree, place, prefix
        self.storages: dict[str, Storage] = {}
        self._by_persid: dict[Node, Storage] = {}
        for persid in tree.persids:
            self._storage(persid)
        self.views: dict[str, View] = {}
        self.groups: dict[str, str] = {}
        self.links: dict[str, Link] = {}
        self.optimizers: list[OptimizerNode] = []
        self.numbers: dict[str, Node] = {}  # the plain integers that edits may name, by where they stand
        self.counts: dict[str, Link] = {}  # the integers that are called like a number of input channels, by where they stand
        self.scales: dict[str, Node] = {}  # the numbers that are the scale of a whole quantized tensor, by its name
        self._views_by_call: dict[Node, View | None] = {}
        self._walk()

    def _storage(self, persid: Node) -> None:
        spelled, values = elements(persid.value)
        if not values or values[0] != "storage":
            return  # legacy files also mark modules this way
        if len(values) not in (5, 6) or not _is_global(values[1]) or not isinstance(values[2], str):
            raise self.place.damaged("a persistent id is no storage")
        (module, name), key, count = values[1].value, values[2], values[4]
        dtype = BY_STORAGE.get(name)
        if not module.startswith("torch") or (dtype is None and name != "UntypedStorage"):
            raise self.place.unsupported(f"a storage has the unknown type {module}.{name}")
        if not isinstance(count, int) or count < 0:
            raise self.place.inside(f"storage {key}").damaged("invalid element count")
        unit = dtype.bits // 8 if dtype else 1
        storage = self.storages.setdefault(key, Storage(key, dtype, unit, count))
        if (storage.count, storage.dtype) != (count, dtype):
            raise self.place.inside(f"storage {key}").damaged(
                f"element count {storage.count} in one place of the pickle, {count} in another"
            )
        storage.counts.append(spelled[4])
        storage.has_view |= len(values) == 6 and values[5] is not None
        self._by_persid[persid] = storage

    def _walk(self) -> None:
        todo = [Link(None, "", False, self.tree.root)]
        if self._prefix:
            todo = [Link(todo[0], self._prefix, False, self.tree.root)]
        seen: set[Node] = set()
        deep: list[Node] = []
        while todo:
            link = todo.pop()
            node = link.node.target
            if link.depth > LIMITS.name_depth:
                deep.append(node)
                continue
            if node.kind is Kind.CALL and (view := self._view(node)):
                self._name(link, view)
                continue
            if node.kind is Kind.INT and link.segment in CHANNEL_NAMES:
                self.counts.setdefault(link.path()[0], link)
            if node in seen:
                continue
            seen.add(node)
            try:
                todo += reversed(list(_children(link, node)))
            except _DuplicateKey as error:
                raise self.place.inside(str(error)).unsupported("the name stands twice in the file") from None
            self._find_optimizer(link, node)
        self._refuse_tensors(deep, seen)

    def _refuse_tensors(self, todo: list[Node], seen: set[Node]) -> None:
        """Below the deepest names: what is there is copied, unless it is a tensor, whose name could not be told."""
        while todo:
            node = todo.pop().target
            if node.kind is Kind.CALL and self._view(node):
                raise self.place.unsupported(f"a tensor stands more than {LIMITS.name_depth} levels deep, where none are read")
            if node not in seen:
                seen.add(node)
                todo += node.inner

    def _name(self, link: Link, view: View) -> None:
        name, group = link.path()
        if name in self.views:
            raise self.place.inside(name).unsupported("the name stands twice in the file")
        self.views[name], self.groups[name], self.links[name] = view, group, link
        if view.quantizer is not None:
            self._name_constants(name, link, view.quantizer.children)

    def _name_constants(self, name: str, link: Link, quantizer: Sequence[Node]) -> None:
        """What a quantized tensor's numbers mean, as tensors of their own: (torch.per_tensor_affine, scale, zero point) or
        (torch.per_channel_affine, scales, zero points, axis)."""
        if len(quantizer) == 3 and quantizer[1].target.kind is Kind.FLOAT:
            self.scales[f"{name}/scale"] = quantizer[1]
            self.groups[f"{name}/scale"] = self.groups[name]
        for part, node in zip(("scales", "zero_points"), quantizer[1:3], strict=False):
            if node.target.kind is Kind.CALL and (view := self._view(node.target)):
                key = f"{name}/{part}"
                self.views[key], self.groups[key], self.links[key] = view, self.groups[name], link

    def _view(self, call: Node) -> View | None:
        if call not in self._views_by_call:
            self._views_by_call[call] = self._read_view(call)
        return self._views_by_call[call]

    def _read_view(self, node: Node) -> View | None:
        for _ in range(_DEEPEST_WRAPPING):
            call = call_of(_REBUILDS, *node.value) if len(node.value) == 2 else None
            if call is not None and call.name == _SUBCLASS and len(call.spelled) == 4:
                call = call_of(_REBUILDS, call.spelled[0], call.spelled[2])
            if call is None:
                return None
            if counts := _REBUILDS[call.name]:
                if len(call.spelled) not in counts:
                    raise self.place.damaged(f"a tensor is made of {len(call.spelled)} arguments", at=node.start)
                return self._geometry(call)
            wrapped = call.values[0] if call.values else None
            if not isinstance(wrapped, Node) or wrapped.kind is not Kind.CALL:
                return None
            node = wrapped
        return None

    def _geometry(self, call: Call) -> View:
        (_, function), spelled, values = call
        storage = self._by_persid.get(values[0])
        if storage is None:
            raise self.place.damaged("a tensor has no storage", at=spelled[0].start)
        offset, shape, stride = values[1:4]
        dtype = storage.dtype
        if function == "_rebuild_tensor_v3":
            named = values[6] if _is_global(values[6]) else None
            dtype = BY_TORCH.get(named.value[1]) if named and named.value[0] == "torch" else None
        if dtype is None:
            raise self.place.unsupported("a tensor has an unknown element type")
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
        if (
            not isinstance(offset, int)
            or any(n is None or n < 0 for n in numbers)
            or not len(shape) == len(stride) <= LIMITS.axes
        ):
            raise self.place.damaged("invalid size, stride or storage offset", at=spelled[1].start)
        view = View(storage, dtype, offset, shape, stride, (spelled[1], spelled[2], spelled[3]))
        if function == "_rebuild_qtensor":
            view.quantizer = spelled[4].target
        if view.span[1] > storage.size or prod(shape) >= 1 << 63:
            raise self.place.inside(f"storage {storage.key}").damaged(
                f"a tensor of shape {list(shape)} reaches beyond its {storage.count} elements", at=spelled[1].start
            )
        return view

    def _find_optimizer(self, link: Link, node: Node) -> None:
        if node.items is None or len(node.items) < 2:
            return
        if (state := node.lookup("state")) is None or node.lookup("param_groups") is None:
            return
        items = [item for item in state.target.items or () if len(item) == 2 and item[0] in self.tree.pair_stops]
        path = link.path()[0] if items else ""
        for key, value in items:
            slots = {str(k.value): v for k, v in value.target.entries() if k.kind is Kind.TEXT}
            where = "/".join(filter(None, [path, "state", _segment(key.target)]))
            self.numbers |= {f"{where}/{slot}": v for slot, v in slots.items() if isinstance(plain(v), int)}
            span = key.start, self.tree.pair_stops[key]
            self.optimizers.append(OptimizerNode(where, _segment(key.target), slots, span))


def attributes(node: Node) -> Iterator[tuple[str, Node]]:
    """The instance attributes of an object, from the state that BUILD gave it."""
    states = [node.state.target] if node.state is not None else []
    if states and states[0].kind is Kind.TUPLE:
        states = [child.target for child in states[0].children]
    for state in states:
        for key, value in state.entries():
            if key.kind is Kind.TEXT:
                yield key.value, value


def _pairs(node: Node) -> Iterator[tuple[Node, Node]]:
    """The entries of a dict-like object; Python 2 pickled an OrderedDict as a call with a list of pairs."""
    yield from node.entries()
    if node.kind is Kind.CALL and node.value[0].is_global("collections", "OrderedDict"):
        for argument in node.value[1].target.children:
            for pair in argument.target.children:
                if len(pair.target.children) == 2:
                    yield pair.target.children[0].target, pair.target.children[1]


def _is_global(value: object) -> TypeGuard[Node]:
    return isinstance(value, Node) and value.kind is Kind.GLOBAL


def _children(link: Link, node: Node) -> Iterator[Link]:
    pairs = list(_pairs(node))
    keys = [_segment(key) for key, _ in pairs]
    if len(set(keys)) != len(keys) and all(key.kind is Kind.TEXT for key, _ in pairs):
        raise _DuplicateKey(Counter(keys).most_common(1)[0][0])
    for key, (_, value) in zip(keys, pairs, strict=True):
        yield Link(link, key, False, value)
    if node.kind in (Kind.TUPLE, Kind.LIST, Kind.SET):
        for i, child in enumerate(node.children):
            yield Link(link, str(i), False, child)
    elif node.kind is Kind.CALL:
        if not pairs:
            yield Link(link, "args", False, node.value[1])
        yield from _attribute_links(link, node)


def _attribute_links(link: Link, node: Node) -> Iterator[Link]:
    for name, value in attributes(node):
        if name in _MODULE_DICTS:
            for key, child in _pairs(value.target):
                yield Link(link, _segment(key), True, child)
        else:
            yield Link(link, name, True, value)


class _DuplicateKey(Exception):
    """A key that stands twice in one dict."""


def _segment(key: Node) -> str:
    if key.kind is Kind.INT and plain(key) is None:
        return "?"
    return str(key.value) if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT) else "?"
