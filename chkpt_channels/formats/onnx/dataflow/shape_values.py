"""The whole numbers that a graph computes shapes from: constants, sizes of values that come from the image, and
arithmetic on them.

Each is computed twice, for the image as it is and for one channel more. A number that should change with the channels and does
not is a constant, which must be edited where it is stored; one that changes is right already.
Source: onnx/docs/Operators.md (Shape, Gather, Concat, Slice, Reshape).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx.dataflow.axes import Axes, Axis, counted, size
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node
from chkpt_channels.formats.onnx.schema import ATTRIBUTE_FLOATS

PASSING = frozenset(("Identity", "Unsqueeze", "Squeeze", "Cast"))
"""What leaves the numbers as they are. A scalar and a list of one are the same here."""
INTEGER_TYPES = (6, 7)
"""int32 and int64 in onnx.proto's TensorProto.DataType."""
MOST_NUMBERS = 64
"""Of one shape tensor: no value has more axes."""
NUMBER_LIMIT = 1 << 62
"""Products of sizes stay below it: a hostile graph could square one at every node."""


class Number(NamedTuple):
    """One number `now`, and `then` with one channel more; where it is stored, position `at` of `weight` for the node `reader`."""

    now: int
    then: int
    weight: Weight | None = None
    at: int = 0
    reader: Node | None = None

    @property
    def follows(self) -> bool:
        """Whether it depends on the channels."""
        return self.now != self.then


class Numbers:
    """The known numbers by name, filled in the order of the graph."""

    def __init__(self, model: OnnxModel, channel: int, count: int, known: dict[str, list[Number]] | None = None) -> None:
        self._model, self.channel, self.count = model, channel, count
        self.known: dict[str, list[Number]] = {} if known is None else known

    def then(self, axis: Axis) -> int:
        """The steps of an axis with one channel more."""
        return counted(axis, self.channel, self.count + 1)

    def of(self, node: Node, index: int) -> list[Number] | None:
        """The numbers that an input of a node holds, None where they are not known."""
        name = node.given(index)
        if name in self.known:
            is_only_reader = len(self._model.consumers[name]) == 1  # else an edit would reach the other readers too
            return self.known[name] if is_only_reader else [number._replace(weight=None) for number in self.known[name]]
        weight = self._model.stored(name)
        if weight is None or weight.dtype.name not in ("I64", "I32") or weight.size > 8 * MOST_NUMBERS or len(weight.shape) > 1:
            return None
        return [Number(n, n, weight, i, node) for i, n in enumerate(map(int, self._model.load(weight).reshape(-1)))]

    def plain(self, node: Node, index: int, attribute: str) -> list[int] | None:
        """The numbers of an input, or of the attribute that it was in older versions, where they do not follow the channels."""
        values = self.of(node, index)
        if values is None:
            return None if node.given(index) else node.integers(attribute)
        return None if any(number.follows for number in values) else [number.now for number in values]

    def scales(self, node: Node) -> list[float]:
        """The factors of a Resize or Upsample, empty where they are not stored. Upsample 7 had them as an attribute."""
        attribute = node.attribute("scales")
        if attribute:
            return attribute.floats(ATTRIBUTE_FLOATS)
        return self.reals(node, 2 if node.op == "Resize" and len(node.inputs) > 2 else 1)

    def reals(self, node: Node, index: int) -> list[float]:
        """The stored numbers of an input, empty where they are not stored."""
        weight = self._model.stored(node.given(index))
        return [float(n) for n in self._model.load(weight).reshape(-1)] if weight and weight.size <= 8 * MOST_NUMBERS else []

    def shape_of(self, node: Node, axes: Axes) -> None:
        """Remember the result of a Shape or Size node."""
        sizes = [Number(size(axis), self.then(axis)) for axis in axes]
        if node.op == "Size":
            sizes = [Number(prod(n.now for n in sizes), prod(n.then for n in sizes))]
        self._keep(node, sizes if node.op == "Size" else sizes[node.integer("start", 0) : node.integer("end", len(axes))])

    def compute(self, node: Node) -> bool:
        """Compute a node whose inputs are such numbers. False for an operation that is not computed here."""
        result = self._result(node) if not node.domain else None
        if result is None or len(result) > MOST_NUMBERS:
            return False
        self._keep(node, result)
        return True

    def _keep(self, node: Node, numbers: list[Number]) -> None:
        if node.outputs[0]:
            self.known[node.outputs[0]] = numbers

    def _result(self, node: Node) -> list[Number] | None:
        inputs = [self.of(node, i) for i in range(len(node.inputs))]
        first = inputs[0] if inputs else None
        if first is None:
            return None
        if node.op in PASSING:
            return first if node.op != "Cast" or node.integer("to", 0) in INTEGER_TYPES else None
        known = [numbers for numbers in inputs if numbers is not None]
        if len(known) != len(inputs):
            return None
        if node.op == "Concat":
            return [number for numbers in known for number in numbers]
        if node.op == "Gather" and len(known) == 2:
            return _gathered(first, known[1])
        if node.op == "Slice" and len(known) >= 3:
            return _sliced(first, known[1:])
        return _arithmetic(node.op, known)


def _gathered(data: Sequence[Number], indices: Sequence[Number]) -> list[Number] | None:
    if any(not -len(data) <= i.now < len(data) or i.follows for i in indices):
        return None
    return [data[i.now] for i in indices]


def _sliced(data: list[Number], rest: Sequence[Sequence[Number]]) -> list[Number] | None:
    one = [Number(1, 1)]
    starts, ends, steps = rest[0], rest[1], rest[3] if len(rest) > 3 else one
    if any(len(numbers) != 1 or numbers[0].follows for numbers in (starts, ends, steps)) or not steps[0].now:
        return None
    return data[starts[0].now : ends[0].now : steps[0].now]


def _arithmetic(op: str, known: Sequence[Sequence[Number]]) -> list[Number] | None:
    rule = _RULES.get(op)
    if rule is None or len(known) != 2 or not all(known):
        return None
    a, b = known
    if 1 not in (len(a), len(b)) and len(a) != len(b):
        return None
    if op == "Div" and any(0 in (n.now, n.then) for n in b):
        return None
    pairs = [(a[i % len(a)], b[i % len(b)]) for i in range(max(len(a), len(b)))]
    results = [Number(rule(x.now, y.now), rule(x.then, y.then)) for x, y in pairs]
    return results if all(abs(number.then) < NUMBER_LIMIT > abs(number.now) for number in results) else None


_RULES: dict[str, Callable[[int, int], int]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) is (b < 0) else -1),  # ONNX truncates toward zero
}
