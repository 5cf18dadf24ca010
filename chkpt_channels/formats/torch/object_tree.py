"""The object that torch.save pickled, read as named tensors over storages.

Which calls are tensors `rebuild` knows. A name is the path from the root: children of dicts and lists are joined by "/",
attributes and submodules of objects by ".", so that a whole module's kernel has the name that it has in its state dict.
Files hold far more than a state dict: it may be under "state_dict", "model", "ema" and many other keys, beside optimizers and
hyper-parameters.
Source: torch/serialization.py, torch/nn/modules/module.py and torch/csrc/jit/serialization/pickler.cpp of torch 2.13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import OpaqueTensor, Tensor
from chkpt_channels.formats.torch.entries import DuplicateKey, attributes, is_ordered_dict, once, pairs_of, read_pairs, states
from chkpt_channels.formats.torch.opaque import Opaque, OpaqueReader
from chkpt_channels.formats.torch.rebuild import Tensors, View

_COUNTS = (
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
CHANNEL_NAMES = frozenset(prefix + name for prefix in ("", "_") for name in _COUNTS)
"""Names of the number of input channels in modules, their configurations and training scripts (torch in_channels, timm in_chans,
transformers num_channels, smp _in_channels)."""
_NAMES_IN_DICTS = CHANNEL_NAMES | {"channels", "ch"}
"""The same for the keys of dicts, such as the `yaml` from which a YOLO is built (`ch`, later `channels`)."""

CLONED = "save it again with torch: state_dict = {name: tensor.detach().clone() for name, tensor in state_dict.items()}"
_MOST_SHARED = 200_000
"""Entries that are read once more for another object; torch's own files have none."""
_REMEMBERED, _REMEMBERED_BYTES = 2, 1 << 18
"""So many pickles of so many bytes: checkpoints of one network have the same one, to the byte, around other elements, and so have
their conversions."""
_MODULE_DICTS = ("_parameters", "_buffers", "_modules")


class Link:
    """One step of the path to a node; names are joined when one is asked for, as a deep tree has quadratically many letters.
    `attribute` steps are submodules and attributes of objects; `depth` counts the steps; `parts` takes the names of the tensors
    below a weight that is no tensor, None elsewhere."""

    __slots__ = ("attribute", "depth", "node", "parent", "parts", "segment")

    def __init__(self, parent: Link | None, segment: str, attribute: bool, node: PickleNode) -> None:
        self.parent, self.segment, self.attribute, self.node = parent, segment, attribute, node
        self.depth: int = parent.depth + 1 if parent else 0
        self.parts: list[str] | None = parent.parts if parent else None

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


class OptimizerNode:
    """One parameter's entry in an optimizer's state: its plain integers by slot, and the bytes that encode it. Without the entry
    of a dict these are its key and value; an element of a list stays, and its slots go. A `whole` optimizer was pickled as an
    object."""

    def __init__(
        self, where: str, parameter: str, numbers: dict[str, int], spans: list[tuple[int, int]], *, whole: bool = False
    ) -> None:
        self.where, self.parameter, self.numbers, self.spans, self.whole = where, parameter, numbers, spans, whole


class TorchObject:
    """The named tensors of one pickle. Raises DamagedError for geometry that leaves its storage, UnsupportedError for names
    that occur twice."""

    _last: ClassVar[tuple[TorchObject, ...]] = ()

    def __init__(self, tree: Tree, location: Location, prefix: str = "") -> None:
        self.tree, self.location, self._prefix = tree, location, prefix
        self._tensors = Tensors(tree, location)
        self.storages = self._tensors.storages
        self.views: dict[str, View] = {}
        self.opaque: list[OpaqueTensor] = []  # the weights that are no dense tensors, in file order
        self.groups: dict[str, str] = {}
        self.links: dict[str, Link] = {}
        self._reader = OpaqueReader()
        self.optimizers: list[OptimizerNode] = []
        self.numbers: dict[str, PickleNode] = {}  # the plain integers that edits may name, by path
        self.counts: dict[str, Link] = {}  # the integers named like a number of input channels, by path
        self.scales: dict[str, PickleNode] = {}  # the scales of tensors quantized as a whole, by name
        self._name_bytes = self._links = 0
        self._walk()

    @classmethod
    def of(cls, data: bytes, location: Location, prefix: str = "") -> TorchObject:
        """The same of the pickle that fills `data`; the last small ones are read once, and are not changed once they are made.
        Raises as `Tree.whole` too."""
        for known in cls._last:
            if known.tree.data == data and known._prefix == prefix:
                other = object.__new__(TorchObject)
                other.__dict__.update(known.__dict__, tree=known.tree.elsewhere(location), location=location)
                return other
        made = cls(Tree.whole(data, location), location, prefix)
        if len(data) <= _REMEMBERED_BYTES:
            cls._last = (made, *cls._last)[:_REMEMBERED]
        return made

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The named tensors, and the scales of quantized ones."""
        named = {name: Tensor(name, view.dtype, view.shape, self.groups[name]) for name, view in self.views.items()}
        return named | {name: Tensor(name, BY_NAME["F64"], (), self.groups[name]) for name in self.scales}

    def _path(self, link: Link) -> tuple[str, str]:
        """A link's name and group. Raises DamagedError where the names are too long in all: each has its whole path."""
        name, group = link.path()
        self._name_bytes += len(name)
        if self._name_bytes > LIMITS.name_bytes:
            self.location.check_limit("bytes in its names", self._name_bytes, LIMITS.name_bytes)
        return name, group

    def _walk(self) -> None:
        todo = [Link(None, "", False, self.tree.root)]
        if self._prefix:
            todo = [Link(todo[0], self._prefix, False, self.tree.root)]
        seen: set[PickleNode] = set()
        deep: list[PickleNode] = []
        while todo:
            link = todo.pop()
            node = link.node.target
            if link.depth > LIMITS.name_depth:
                deep.append(node)
                continue
            if node.kind is Kind.CALL and (view := self._tensors.view(node)):
                self._name(link, view)
                continue
            if what := self._tensors.refused.get(node):
                raise self.location.at(link.path()[0]).unsupported(what, hint=CLONED)
            if node.kind is Kind.INT and link.segment in (CHANNEL_NAMES if link.attribute else _NAMES_IN_DICTS):
                self.counts.setdefault(self._path(link)[0], link)
            if link.parts is None and (reading := self._reader.read(node, link.segment)):
                self._name_opaque(link, reading)
            if node in seen:
                continue
            seen.add(node)
            if _is_whole_optimizer(node):  # its state is keyed by the parameters themselves, which are not names
                self.optimizers.append(OptimizerNode(self._path(link)[0], "", {}, [], whole=True))
                continue
            try:
                todo += reversed(children := list(_children(link, node)))
            except DuplicateKey as error:
                raise self.location.at(str(error)).unsupported("the name occurs twice in the file") from None
            self._check_shared(len(children))
            self._find_optimizer(link, node)
        self._refuse_tensors(deep, seen)

    def _check_shared(self, count: int) -> None:
        """Raise DamagedError where objects have far more entries than the pickle encodes: many share a state, or pairs."""
        self._links += count
        if self._links > (size := self.tree.stop - self.tree.start) + _MOST_SHARED:
            raise self.location.damaged(f"its objects share their entries: {self._links} in {size} bytes of pickle")

    def _refuse_tensors(self, todo: list[PickleNode], seen: set[PickleNode]) -> None:
        """Below the deepest names everything is copied, but a tensor there would have no name: refuse it."""
        while todo:
            node = todo.pop().target
            if node.kind is Kind.CALL and (self._tensors.view(node) or node in self._tensors.refused):
                raise self.location.unsupported(
                    f"a tensor is nested more than {LIMITS.name_depth} levels deep, where none are read"
                )
            if node not in seen:
                seen.add(node)
                todo += node.inner

    def _name(self, link: Link, view: View) -> None:
        name, group = self._path(link)
        if name in self.views:
            raise self.location.at(name).unsupported("the name occurs twice in the file")
        self.views[name], self.groups[name], self.links[name] = view, group, link
        if link.parts is not None:
            link.parts.append(name)
        if view.quantizer is not None:
            self._name_constants(name, link, view.quantizer.children)

    def _name_opaque(self, link: Link, reading: Opaque) -> None:
        link.parts = []
        name, group = self._path(link)
        weight = OpaqueTensor(name, reading.shape, reading.what, "", group, link.parts, len(self.views))
        self.opaque.append(weight._replace(hint=reading.hint.replace("KEY", repr(weight.key))))

    def _name_constants(self, name: str, link: Link, quantizer: Sequence[PickleNode]) -> None:
        """Name the constants of a quantized tensor as tensors: (torch.per_tensor_affine, scale, zero point) or
        (torch.per_channel_affine, scales, zero points, axis)."""
        if len(quantizer) == 3 and quantizer[1].target.kind is Kind.FLOAT:
            self.scales[f"{name}/scale"] = quantizer[1]
            self.groups[f"{name}/scale"] = self.groups[name]
        for part, node in zip(("scales", "zero_points"), quantizer[1:3], strict=False):
            if node.target.kind is Kind.CALL and (view := self._tensors.view(node.target)):
                key = f"{name}/{part}"
                self.views[key], self.groups[key], self.links[key] = view, self.groups[name], link

    def _find_optimizer(self, link: Link, node: PickleNode) -> None:
        """Remember the entries of an optimizer's state dict: torch's {"state": {parameter: {slot: value}}, "param_groups": […]},
        or fastai's {"state": [{slot: value}, …], "hypers": […]}."""
        if node.items is None or len(node.items) < 2:
            return
        if (state := node.lookup("state")) is None or not any(node.lookup(key) for key in ("param_groups", "hypers")):
            return
        path, stops = self._path(link)[0], self.tree.pair_stops
        if state.target.kind is Kind.LIST:
            for i, child in enumerate(state.target.children):
                spans = [(key.start, stops[key]) for key, *_ in child.target.items or () if key in stops]
                self._add_optimizer(path, str(i), child, spans)
            return
        for key, value in (item for item in state.target.items or () if len(item) == 2 and item[0] in stops):
            self._add_optimizer(path, _segment(key.target), value, [(key.start, stops[key])])

    def _add_optimizer(self, path: str, parameter: str, entry: PickleNode, spans: list[tuple[int, int]]) -> None:
        where = "/".join(filter(None, [path, "state", parameter]))
        numbers = {str(k.value): v for k, v in entry.target.entries() if k.kind is Kind.TEXT and isinstance(plain(v), int)}
        self.numbers |= {f"{where}/{slot}": node for slot, node in numbers.items()}
        self.optimizers.append(OptimizerNode(where, parameter, {slot: plain(v) for slot, v in numbers.items()}, spans))


def _is_whole_optimizer(node: PickleNode) -> bool:
    return node.state is not None and {"state", "param_groups"} <= {name for name, _ in attributes(node)}


def _children(link: Link, node: PickleNode) -> Iterator[Link]:
    yield from _parts(link, node, attribute=False)
    if repeated := [name for name, times in Counter(name for name, _ in attributes(node)).items() if times > 1]:
        raise DuplicateKey(repeated[0])
    for name, value in attributes(node):
        if name in _MODULE_DICTS:
            yield from _parts(link, value.target, attribute=True)
        else:
            yield Link(link, name, True, value)
    for state in states(node):  # of another class, or for a __setstate__ that takes no attributes
        if state.kind in (Kind.CALL, Kind.LIST, Kind.SET) and not any(pairs_of(state)):
            yield Link(link, "state", False, state)


def _parts(link: Link, node: PickleNode, *, attribute: bool) -> Iterator[Link]:
    """The entries or elements of a node, and what a call that returns none of them is made of."""
    pairs = once(pairs_of(node))
    for key, value in pairs:
        yield Link(link, _segment(key), attribute, value)
    if node.kind in (Kind.TUPLE, Kind.LIST, Kind.SET) and not pairs:
        for i, child in enumerate(node.children):
            yield Link(link, str(i), attribute, child)
    elif node.kind is Kind.CALL:
        for part in read_pairs(node)[1] if is_ordered_dict(node) else node.value[1:]:
            yield Link(link, "args", False, part)


def _segment(key: PickleNode) -> str:
    """A dict key as a step of a path; "?" for keys that are no text or number."""
    if key.kind is Kind.INT and plain(key) is None:
        return "?"
    return str(key.value) if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT) else "?"
