"""The arrays of a pickle by name: the keys of dicts and the indexes of lists on the way to each, joined by "/"."""

from __future__ import annotations

from collections.abc import Iterator

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import OpaqueTensor
from chkpt_channels.formats.numpy_pickle.arrays import Array, NoNumbers, array_of

_DICTS = frozenset({"OrderedDict", "defaultdict", "Counter"})
PARAMETER_NAMES = "StructuredToParameterName@@"
"""The key under which paddle.save keeps what its parameters are called."""
_MARKS = frozenset({PARAMETER_NAMES, "matching_heuristics", "__author__", "blobs"})
"""Keys of Paddle, detectron2 and Detectron, whose kernels are OIHW."""


class Named(NamedTuple):
    """An array, the call that makes it, its group, and the span of its key and value in the dict that holds it, which an entry of
    a list has not."""

    array: Array
    call: PickleNode
    group: str
    span: tuple[int, int] | None


class _Step(NamedTuple):
    node: PickleNode
    name: str
    group: str
    depth: int
    span: tuple[int, int] | None = None
    inside: str = ""  # the class of the object that holds it


_HOLDING = frozenset({Kind.DICT, Kind.LIST, Kind.TUPLE, Kind.SET, Kind.CALL})
_PLAIN = "pickle.dump({name: array, …}, open('net.pkl', 'wb')), a dict of names and arrays"


class Walk:
    """The named `arrays` of a pickle and the `opaque` ones, `marks` by which a framework is known, and Paddle's `parameters` by
    the names of their arrays. Raises DamagedError, UnsupportedError for names that occur twice or are too deep."""

    def __init__(self, tree: Tree, location: Location) -> None:
        self._tree, self._location = tree, location
        self.arrays: dict[str, Named] = {}
        self.opaque: list[OpaqueTensor] = []
        self.marks: set[str] = set()
        self.parameters: dict[str, str] = {}
        self._read: dict[PickleNode, Array | NoNumbers | None] = {}
        self._name_bytes = 0
        todo, seen = [_Step(tree.root, "", "", 0)], set[PickleNode]()
        while todo:
            step = todo.pop()
            node = self._unwrapped(step)
            if node.kind is Kind.CALL and (array := self._array(node)):
                self._name(step, node, array)
            elif node not in seen and node.kind in _HOLDING:
                seen.add(node)
                self._check_made(node)
                if step.depth > LIMITS.name_depth:
                    raise location.unsupported(f"is nested more than {LIMITS.name_depth} levels deep")
                todo += reversed(list(self._below(step, node)))

    def _unwrapped(self, step: _Step) -> PickleNode:
        """The node, or the array in what paddle.save makes of a Tensor within other objects: tuple((its name, array))."""
        node = step.node.target
        made = node.value[0] if node.kind is Kind.CALL and len(node.value) == 2 else node
        if any(made.is_global(module, "tuple") for module in ("builtins", "__builtin__")):
            inner = next(iter(node.value[1].target.children), node).target
            if len(inner.children) == 2 and inner.children[0].target.kind is Kind.TEXT:
                self.marks.add(PARAMETER_NAMES)
                self.parameters[inner.children[0].target.value] = step.name
                return inner.children[1].target
        return node

    def _array(self, node: PickleNode) -> Array | NoNumbers | None:
        if node not in self._read:
            self._read[node] = array_of(node, self._location)
        return self._read[node]

    def _check_made(self, node: PickleNode) -> None:
        """Raise DamagedError for what Python does not make: a call of what is no function, a state of what takes none."""
        if node.kind is not Kind.CALL:
            wrong = node.state is not None
        else:
            wrong = node.value[0].target.kind is not Kind.GLOBAL or node.value[1].target.kind is not Kind.TUPLE
        if wrong or any(key.kind in (Kind.LIST, Kind.DICT, Kind.SET) for key, _ in node.entries()):
            raise self._location.damaged("its pickle makes something that Python makes not", at=node.start)

    def _name(self, step: _Step, call: PickleNode, array: Array | NoNumbers) -> None:
        name = step.name or "array"
        if name in self.arrays:
            raise self._location.at(name).unsupported("the name occurs twice in the file")
        if isinstance(array, Array) and not step.inside:
            self.arrays[name] = Named(array, call, step.group, step.span)
            return
        what, hint = (array.what, array.hint) if isinstance(array, NoNumbers) else (f"is in an object of {step.inside}", _PLAIN)
        if what:
            self.opaque.append(OpaqueTensor(name, array.shape, what, hint, step.group, (), len(self.arrays)))

    def _below(self, step: _Step, node: PickleNode) -> Iterator[_Step]:
        """What a container or an object holds that may be or hold an array."""
        if node.kind is Kind.DICT or _is_dict(node):
            yield from self._entries(step, node)
            return
        inside, parts = step.inside, node.children
        if node.kind is Kind.CALL:
            made = node.value[0].target
            inside, parts = ".".join(made.value) if made.kind is Kind.GLOBAL else "an unnamed class", node.inner
        for i, child in enumerate(parts):
            if child.target.kind in _HOLDING:
                yield _Step(child, self._path(step, str(i)), step.name, step.depth + 1, None, inside)

    def _entries(self, step: _Step, node: PickleNode) -> Iterator[_Step]:
        pairs = [*node.entries(), *_pairs(node)]
        values = {key.value: value.target for key, value in pairs if key.kind is Kind.TEXT}
        self.marks |= _MARKS & values.keys()
        if len(values) < sum(key.kind is Kind.TEXT for key, _ in pairs):
            raise self._location.at(step.name).unsupported("a name occurs twice in one of its dicts")
        if PARAMETER_NAMES in values:
            names = {str(value.target.value): str(key.value) for key, value in values[PARAMETER_NAMES].entries()}
            self.parameters |= {name: self._path(step, key) for name, key in names.items()}
        for key, value in pairs:
            if value.target.kind in _HOLDING:
                span = (key.start, self._tree.pair_stops[key]) if key in self._tree.pair_stops else None
                segment = str(key.value) if key.kind in (Kind.TEXT, Kind.INT) else "?"
                yield _Step(value, self._path(step, segment), step.name, step.depth + 1, span, step.inside)

    def _path(self, step: _Step, segment: str) -> str:
        name = f"{step.name}/{segment}" if step.name else segment
        self._name_bytes += len(name)
        self._location.check_limit("bytes in its names", self._name_bytes, LIMITS.name_bytes)
        return name


def _is_dict(node: PickleNode) -> bool:
    made = node.value[0].target if node.kind is Kind.CALL else node
    return made.kind is Kind.GLOBAL and made.value[0] == "collections" and made.value[1] in _DICTS


def _pairs(node: PickleNode) -> list[tuple[PickleNode, PickleNode]]:
    """The entries with which Python 2 calls an OrderedDict: a list of pairs."""
    arguments = node.value[1].target if node.kind is Kind.CALL else node
    if arguments.kind is not Kind.TUPLE or len(arguments.value) != 1:
        return []
    pairs = [pair.target.children for pair in arguments.value[0].target.children]
    return [(pair[0].target, pair[1]) for pair in pairs if len(pair) == 2]
