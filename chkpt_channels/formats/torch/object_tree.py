"""The object that torch.save pickled, read as named tensors over storages.

Which calls are tensors `rebuild` knows. A name is the path from the root: children of dicts and lists are joined by "/",
attributes and submodules of objects by ".", so that a whole module's kernel has the name that it has in its state dict.
Files hold far more than a state dict: it may be under "state_dict", "model", "ema" and many other keys, beside optimizers and
hyper-parameters.
Source: torch/serialization.py, torch/nn/modules/module.py and torch/csrc/jit/serialization/pickler.cpp of torch 2.13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode, plain
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import OpaqueTensor
from chkpt_channels.formats.torch.opaque import Opaque, OpaqueReader
from chkpt_channels.formats.torch.rebuild import Tensors, View

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
"""Names of the number of input channels in modules, their configurations and training scripts (torch in_channels, timm in_chans,
transformers num_channels, smp _in_channels)."""
_NAMES_IN_DICTS = CHANNEL_NAMES | {"channels", "ch"}
"""The same for the keys of dicts, such as the `yaml` from which a YOLO is built (`ch`, later `channels`)."""

CLONED = "save it again with torch: state_dict = {name: tensor.detach().clone() for name, tensor in state_dict.items()}"
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


@dataclass(eq=False, slots=True)
class OptimizerNode:
    """One parameter's entry in an optimizer's state: its slots, and the bytes that encode it. Without the entry of a dict these
    are its key and value; an element of a list stays, and its slots go. A `whole` optimizer was pickled as an object."""

    where: str
    parameter: str
    slots: dict[str, PickleNode]
    spans: list[tuple[int, int]]
    whole: bool = False


class TorchObject:
    """The named tensors of one pickle. Raises DamagedError for geometry that leaves its storage, UnsupportedError for names
    that occur twice."""

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
        self._name_bytes = 0
        self._walk()

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
                todo += reversed(list(_children(link, node)))
            except _DuplicateKey as error:
                raise self.location.at(str(error)).unsupported("the name occurs twice in the file") from None
            self._find_optimizer(link, node)
        self._refuse_tensors(deep, seen)

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
        slots = {str(k.value): v for k, v in entry.target.entries() if k.kind is Kind.TEXT}
        where = "/".join(filter(None, [path, "state", parameter]))
        self.numbers |= {f"{where}/{slot}": v for slot, v in slots.items() if isinstance(plain(v), int)}
        self.optimizers.append(OptimizerNode(where, parameter, slots, spans))


def attributes(node: PickleNode) -> Iterator[tuple[str, PickleNode]]:
    """The instance attributes of an object, from the state that BUILD gave it."""
    states = [node.state.target] if node.state is not None else []
    if states and states[0].kind is Kind.TUPLE:
        states = [child.target for child in states[0].children]
    for state in states:
        for key, value in state.entries():
            if key.kind is Kind.TEXT:
                yield key.value, value


def _is_whole_optimizer(node: PickleNode) -> bool:
    return node.state is not None and {"state", "param_groups"} <= {name for name, _ in attributes(node)}


def pairs_of(node: PickleNode) -> Iterator[tuple[PickleNode, PickleNode]]:
    """The entries of a dict-like object; Python 2 pickled an OrderedDict as a call with a list of pairs. A list of pairs, as
    list(state_dict.items()) is, is read like a dict."""
    yield from node.entries()
    if node.kind in (Kind.LIST, Kind.TUPLE):
        yield from _named_values(node)
    if node.kind is Kind.CALL and node.value[0].is_global("collections", "OrderedDict"):
        for argument in node.value[1].target.children:
            yield from argument.target.entries()
            for pair in argument.target.children:
                if len(pair.target.children) >= 2:  # torch refuses more, but for those that came after the call
                    yield pair.target.children[0].target, pair.target.children[1]


def _named_values(node: PickleNode) -> list[tuple[PickleNode, PickleNode]]:
    """The (name, value) pairs of a list that holds nothing else, each name once; none of another list."""
    pairs = []
    for child in node.children:
        pair = child.target
        # lengths first: many lists may hold one long list, and children are copied
        if pair.kind not in (Kind.LIST, Kind.TUPLE) or len(pair.value or ()) + len(pair.items or ()) != 2:
            return []
        key, value = pair.children
        if key.target.kind is not Kind.TEXT:
            return []
        pairs.append((key.target, value))
    return pairs if len({key.value for key, _ in pairs}) == len(pairs) else []


def _children(link: Link, node: PickleNode) -> Iterator[Link]:
    pairs = _once(pairs_of(node))
    for key, value in pairs:
        yield Link(link, _segment(key), False, value)
    if node.kind in (Kind.TUPLE, Kind.LIST, Kind.SET) and not pairs:
        for i, child in enumerate(node.children):
            yield Link(link, str(i), False, child)
    elif node.kind is Kind.CALL:
        if not pairs:
            yield Link(link, "args", False, node.value[1])
        yield from _attribute_links(link, node)


def _attribute_links(link: Link, node: PickleNode) -> Iterator[Link]:
    if repeated := [name for name, times in Counter(name for name, _ in attributes(node)).items() if times > 1]:
        raise _DuplicateKey(repeated[0])
    for name, value in attributes(node):
        if name in _MODULE_DICTS:
            for key, child in _once(pairs_of(value.target)):
                yield Link(link, _segment(key), True, child)
        else:
            yield Link(link, name, True, value)


def _once(pairs: Iterator[tuple[PickleNode, PickleNode]]) -> list[tuple[PickleNode, PickleNode]]:
    """The entries of a dict, of which a reader keeps the last one of each key. Raises _DuplicateKey where one occurs twice."""
    found = list(pairs)
    keys = Counter(key.value for key, _ in found if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT))
    if len(keys) < len(found) and keys and (most := keys.most_common(1)[0])[1] > 1:
        raise _DuplicateKey(str(most[0]))
    return found


class _DuplicateKey(Exception):
    """A key that occurs twice in one dict."""


def _segment(key: PickleNode) -> str:
    """A dict key as a step of a path; "?" for keys that are no text or number."""
    if key.kind is Kind.INT and plain(key) is None:
        return "?"
    return str(key.value) if key.kind in (Kind.TEXT, Kind.INT, Kind.CONST, Kind.FLOAT) else "?"
