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

from chkpt_channels.containers.pickle.nodes import Kind, Node, plain
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

_PLAIN = {"_rebuild_tensor": (4,), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8), "_rebuild_qtensor": (7,)}
"""What makes a tensor, and of how many arguments. Source: torch/_utils.py of torch 2.13."""
_WRAPPED = ("_rebuild_parameter", "_rebuild_parameter_with_state")
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
        self.scales: dict[str, Node] = {}  # the numbers that are the scale of a whole quantised tensor, by its name
        self._views_by_call: dict[Node, View | None] = {}
        self._walk()

    def _storage(self, persid: Node) -> None:
        parts = persid.value.target.children
        if not parts or parts[0].target.value != "storage":
            return  # legacy files also mark modules this way
        if len(parts) not in (5, 6) or parts[1].target.kind is not Kind.GLOBAL or parts[2].target.kind is not Kind.TEXT:
            raise self.place.damaged("a persistent id is no storage")
        (module, name), key, count = parts[1].target.value, parts[2].target.value, plain(parts[4])
        dtype = BY_STORAGE.get(name)
        if not module.startswith("torch") or (dtype is None and name != "UntypedStorage"):
            raise self.place.unsupported(f"a storage has the unknown type {module}.{name}")
        if not isinstance(count, int) or count < 0:
            raise self.place.inside(f"storage {key}").damaged("its number of elements is no such number")
        unit = dtype.bits // 8 if dtype else 1
        storage = self.storages.setdefault(key, Storage(key, dtype, unit, count))
        if (storage.count, storage.dtype) != (count, dtype):
            raise self.place.inside(f"storage {key}").damaged(f"is said to have {storage.count} elements and {count}")
        storage.counts.append(parts[4])
        storage.has_view |= len(parts) == 6 and parts[5].target.value is not None
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
            except _Twice as error:
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
        """What a quantised tensor's numbers mean, as tensors of their own: (torch.per_tensor_affine, scale, zero point) or
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

    def _read_view(self, call: Node) -> View | None:
        for _ in range(8):  # a parameter wraps a tensor, a tensor subclass wraps a call; torch nests no deeper
            if len(call.value) != 2:
                return None
            function, arguments = (node.target for node in call.value)
            if function.is_global("torch._tensor", "_rebuild_from_type_v2") and len(arguments.children) == 4:
                function, arguments = arguments.children[0].target, arguments.children[2].target
            if function.is_global("torch._utils", *_PLAIN) and arguments.kind is Kind.TUPLE:
                if len(arguments.children) not in _PLAIN[function.value[1]]:
                    raise self.place.damaged(f"a tensor is made of {len(arguments.children)} arguments", at=call.start)
                return self._geometry(function.value[1], arguments.children)
            if not function.is_global("torch._utils", *_WRAPPED) or not arguments.children:
                return None
            call = arguments.children[0].target
            if call.kind is not Kind.CALL:
                return None
        return None

    def _geometry(self, function: str, parts: list[Node]) -> View:
        storage = self._by_persid.get(parts[0].target)
        if storage is None:
            raise self.place.damaged("a tensor has no storage", at=parts[0].start)
        offset, shape, stride = (plain(part) for part in parts[1:4])
        dtype = storage.dtype
        if function == "_rebuild_tensor_v3":
            kind = parts[6].target if len(parts) > 6 else parts[0]
            dtype = BY_TORCH.get(kind.value[1]) if kind.kind is Kind.GLOBAL and kind.value[0] == "torch" else None
        if dtype is None:
            raise self.place.unsupported("a tensor has an unknown element type")
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
        if (
            not isinstance(offset, int)
            or any(n is None or n < 0 for n in numbers)
            or not len(shape) == len(stride) <= LIMITS.axes
        ):
            raise self.place.damaged("a tensor's size, stride or offset is no such thing", at=parts[1].start)
        view = View(storage, dtype, offset, shape, stride, (parts[1], parts[2], parts[3]))
        if function == "_rebuild_qtensor" and len(parts) > 4:
            view.quantizer = parts[4].target
        if view.span[1] > storage.size or prod(shape) >= 1 << 63:
            raise self.place.inside(f"storage {storage.key}").damaged(
                f"a tensor of shape {list(shape)} reaches beyond its {storage.count} elements", at=parts[1].start
            )
        return view

    def _find_optimizer(self, link: Link, node: Node) -> None:
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


def _children(link: Link, node: Node) -> Iterator[Link]:
    pairs = list(_pairs(node))
    keys = [_segment(key) for key, _ in pairs]
    if len(set(keys)) != len(keys) and all(key.kind is Kind.TEXT for key, _ in pairs):
        raise _Twice(Counter(keys).most_common(1)[0][0])
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


class _Twice(Exception):
    """A key that stands twice in one dict."""


def _segment(key: Node) -> str:
    if key.kind is Kind.INT and plain(key) is None:
        return "?"
    return str(key.value) if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT) else "?"
