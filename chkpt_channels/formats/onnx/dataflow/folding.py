"""A convolution that stands between the image and a network, and the walk from what it gives: that is an image of its own.

Its node makes each channel of the old image of those of the new one, A · x + t. Nothing that precedes it changes. One that is not
1×1 goes into kernels that grow: along an axis its tap a is at s·u + d·a - p for the output u, so that tap b of the kernel behind
it meets it at s·(S·v + D·b - P) + d·a - p. The node of that kernel then has the strides s·S, the pads s·P + p, and dilations that
divide s·D and d. Source: onnx/docs/Operators.md (Conv).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from math import gcd, prod

from chkpt_channels.containers.protobuf import Message
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Adapter, PreprocessingOp, Window
from chkpt_channels.formats.onnx.dataflow.axes import OPEN, Place, size
from chkpt_channels.formats.onnx.dataflow.operators import LINEAR, SHAPES
from chkpt_channels.formats.onnx.dataflow.padding import Span, along, pads_along
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv
from chkpt_channels.formats.onnx.model import Info, OnnxModel
from chkpt_channels.formats.onnx.nodes import Node
from chkpt_channels.formats.onnx.schema import ATTRIBUTE_T, DTYPES, TENSOR_ELEMENTS

ORDERING = ("Cast", "Concat", "ConstantOfShape", "Identity", "Reshape", "Slice", "Transpose")
"""What makes the pads of a Pad of stored ones."""
MOST_PADS = 64
"""Numbers of one: two for each axis."""
MOST_FOLDED, MOST_TAPS = 256, 4096
"""The taps of an adapter, each of which is a mixing of its own; and those of the new kernel."""
LARGEST = 1 << 16
"""No stride, dilation or padding is larger."""
QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear")


def fold(model: OnnxModel, users: Sequence[ReachedConv], location: Location) -> tuple[Adapter, ImageTrace]:
    """The convolution that these users of the kernel at `location` are, and the walk from what it gives. Raises UnsupportedError
    where its node cannot be taken out, or where what it gives is needed as it is."""
    if why := _obstacle(model, users):
        raise location.unsupported(f"{why}: it is not folded")
    steps, node = _steps(users[0], location), users[0].node
    path = _behind(model, users[0], steps)
    own = {name for name, flow in path.values.items() if not flow.mixed}
    if given := sorted(own & model.outputs):
        raise location.at(given[0]).unsupported("is an output that the adapter makes: it is not folded")
    if rounding := next((each for each in model.computed.nodes if own.intersection(each.inputs) and _rounds(each)), None):
        what = f"this {rounding.op} rounds what the adapter gives, as fits its range and not the image's: it is not folded"
        raise location.at(rounding.label).unsupported(what)
    bias = model.stored(node.given(2))
    read = [name for name in node.inputs[1:] if name in model.weights and name not in model.outputs]
    alone = [name for name in read if all(reader is node for reader, _ in model.consumers[name])]
    windows = {} if all(step == _PIXEL for step in steps) else dict(_windows(model, steps, path, location))
    return Adapter(node.outputs[0], bias.name if bias else "", tuple(dict.fromkeys(alone)), windows), path


def _obstacle(model: OnnxModel, users: Sequence[ReachedConv], *more: str) -> str:
    """Why the node of a kernel, a Conv or one of `more`, cannot be edited as a whole, in words that follow the kernel's name."""
    if len(users) != 1:
        return f"is the kernel of {len(users)} nodes"
    node = users[0].node
    if all(node is not own for own in model.nodes):
        return "is used inside of a function or a subgraph"
    if node.op not in ("Conv", *more):
        return f"is the kernel of a {node.op}"
    if users[0].source and users[0].source.is_computed:
        return "is scaled or reshaped before the convolution"
    return "has a bias that is not stored" if node.given(2) and model.stored(node.given(2)) is None else ""


Step = tuple[int, int, int, Span]
"""Of a convolution along one axis: its taps, stride, dilation and pads."""
_PIXEL: Step = (1, 1, 1, (0, 0))


def _steps(user: ReachedConv, location: Location) -> list[Step]:
    """A convolution along each axis of pixels."""
    node, steps = user.node, []
    if min(node.integers("pads"), default=0) < 0:
        raise location.unsupported(f"crops by its pads {node.integers('pads')}: it is not folded")
    for i, taps in enumerate(user.kernel.shape[2:] if user.kernel else ()):
        pads = pads_along(node, i, taps, user.sizes[i])
        if pads is None:
            raise location.unsupported("pads by the size of the image, which is not stated: it is not folded")
        steps.append((taps, along(node, "strides", i), along(node, "dilations", i) if taps > 1 else 1, pads))
    return steps


def _behind(model: OnnxModel, user: ReachedConv, steps: Sequence[Step]) -> ImageTrace:
    """The walk from what such a convolution gives: a channel for each filter, and the pixels that it leaves of the image."""
    filters = user.kernel.shape[0] if user.kernel else 0
    dims: list[int | None] = [n if (n := size(axis)) < OPEN else None for axis in user.axes or ()]
    for i, (taps, stride, dilation, pads) in enumerate(steps, 2):
        if known := dims[i]:
            dims[i] = (known + sum(pads) - dilation * (taps - 1) - 1) // stride + 1
    dims[1] = filters
    return ImageTrace(model, Info(user.node.outputs[0], user.node.message, None, tuple(dims)), Place(1, filters))


def _windows(model: OnnxModel, steps: Sequence[Step], path: ImageTrace, location: Location) -> Iterator[tuple[str, Window]]:
    """How such a convolution goes into each kernel behind it, by its name. Raises UnsupportedError where it does not."""
    is_same = all(stride == 1 and sum(pads) == dilation * (taps - 1) for taps, stride, dilation, pads in steps)
    if (taps := prod(step[0] for step in steps)) > MOST_FOLDED:
        raise location.unsupported(f"is a convolution of {taps} pixels; {MOST_FOLDED} are the most: it is not folded")
    own = {name for name, flow in path.values.items() if not flow.mixed}
    measuring = [node for node in model.computed.nodes if node.op in SHAPES and own.intersection(node.inputs)]
    if measuring and not is_same:
        what = f"this {measuring[0].op} measures what the adapter gives: it is not folded"
        raise location.at(measuring[0].label).unsupported(what)
    for name, (user, *_) in path.stems.items():
        place = location.at(name)
        if why := _obstacle(model, [r for r in path.reached if r.kernel and r.kernel.name == name], "FusedConv"):
            raise place.unsupported(f"{why}, and takes a convolution of several pixels: it is not folded")
        if [axis[0].of for axis in user.axes or () if len(axis) == 1] != [*range(len(steps) + 2)]:
            raise place.unsupported("takes the pixels in another order than the adapter: it is not folded")
        around = 0
        for node in _between(model, user, path):
            padded = _padded(model, node, user, path, location)
            if padded and any(stride > 1 for _, stride, _, _ in steps):
                raise location.at(node.label).unsupported("this Pad follows an adapter that skips pixels: it is not folded")
            around += padded
        zeros = tuple(name for operation in user.operations for name in _added(operation))
        window = _composed(steps, _steps(user, place), around)._replace(zeros=zeros)
        if prod(window.settings["kernel_shape"]) > MOST_TAPS or max(chain(*window.settings.values())) > LARGEST:
            numbers = ", ".join(f"{name} {list(values)}" for name, values in window.settings.items())
            raise place.unsupported(f"would need {numbers}: no convolution is that large: it is not folded")
        yield name, window


def _between(model: OnnxModel, user: ReachedConv, path: ImageTrace) -> Iterator[Node]:
    """The nodes from a convolution back to the adapter."""
    name = user.node.given(0)
    while name != path.image.name:
        node = model.producers[name]
        yield node
        name = next(each for each in node.inputs if each in path.values)


def _added(operation: PreprocessingOp) -> list[str]:
    """The stored constants that an operation adds to the channels, one to each, where it adds something."""
    where = {"Add": (0, 1), "Sub": (0, 1), "BatchNormalization": (1, 3)}.get(operation.kind, (0, 0))
    return [name for name, _ in operation.tensors[slice(*where)]] if any(operation.shift or ()) else []


def _padded(model: OnnxModel, node: Node, user: ReachedConv, path: ImageTrace, location: Location) -> int:
    """How many zeros a node puts at a side of what the adapter gives, at most. Raises UnsupportedError for one behind which a
    window of several pixels is another than in front: in front of it the adapter's own zeros must stay zeros, so that a constant
    that is added is one for each channel, which then becomes zero, and is nothing else."""
    operation = next((op for op in user.operations if (op.where, op.kind) == (node.label, node.op)), None)
    names = Counter(name for located in path.operations for name, _ in located.operation.tensors)
    added = _added(operation) if operation else []
    if operation and operation.scale and (added or not any(operation.shift or ())) and all(names[name] == 1 for name in added):
        return 0
    if node.op == "Pad" and not operation and node.text("mode", "constant") == "constant":
        pads = node.integers("pads") or _numbers(model, node.given(1))
        if pads and min(pads) >= 0:
            return max(pads)
    elif node.op in (*LINEAR, "Transpose") and not node.domain:
        return 0
    what = f"this {node.op} follows an adapter that is not 1×1, and does not do the same in front of it: it is not folded"
    raise location.at(node.label).unsupported(what)


def _numbers(model: OnnxModel, name: str) -> list[int]:
    """The whole numbers of a value in any order; none where they are not stored. PyTorch fills up the pads of F.pad with zeros,
    and puts them into order, by nodes."""
    numbers, waiting, seen = [0], [name], set[str]()
    while waiting:
        each = waiting.pop()
        weight, node = model.stored(each), model.producers.get(each)
        if weight and weight.dtype.name in ("I32", "I64") and prod(weight.shape) <= MOST_PADS:
            numbers += [int(n) for n in model.load(weight).reshape(-1)]
        elif node is None or node.domain or node.op not in ORDERING or each in seen:
            return []
        elif node.op != "ConstantOfShape":
            waiting += node.inputs if node.op == "Concat" else node.inputs[:1]
        elif (value := node.attribute("value")) and not _is_zero(value.only(ATTRIBUTE_T)):
            return []
        seen.add(each)
    return numbers


def _is_zero(tensor: Message | None) -> bool:
    """Whether the bytes of the elements are, however they are stored."""
    return tensor is None or not any(any(tensor.raw(field)) for kind in TENSOR_ELEMENTS for field in tensor.fields.get(kind, ()))


def _composed(first: Sequence[Step], then: Sequence[Step], around: int) -> Window:
    """What a convolution and one behind it are together; `around` zeros are put between the two, beside the own pads."""
    near = [step[2] if step[0] > 1 else 0 for step in first]
    far = [a[1] * b[2] if b[0] > 1 else 0 for a, b in zip(first, then, strict=True)]
    apart = [gcd(*pair) or 1 for pair in zip(near, far, strict=True)]
    near, far = ([n // each or 1 for n, each in zip(steps, apart, strict=True)] for steps in (near, far))
    pads = [tuple(a[1] * each + own for each, own in zip(b[3], a[3], strict=True)) for a, b in zip(first, then, strict=True)]
    grown = [n * (a[0] - 1) + f * (b[0] - 1) + 1 for n, f, a, b in zip(near, far, first, then, strict=True)]
    settings = {
        "kernel_shape": tuple(grown),
        "strides": tuple(a[1] * b[1] for a, b in zip(first, then, strict=True)),
        "dilations": tuple(apart),
        "pads": (*(pad[0] for pad in pads), *(pad[1] for pad in pads)),
    }
    border = max(-(-(max(step[3]) + around) // step[1]) for step in then)
    edges = tuple((-(-(step[3][0] + step[1]) // g), -(step[3][1] + 1) // g + 1) for step, g in zip(first, apart, strict=True))
    return Window(tuple(step[0] for step in first), tuple(near), tuple(far), settings, border, edges)


def _rounds(node: Node) -> bool:
    """Whether a node makes integers of what it takes."""
    if node.op == "Cast" and not node.domain:
        kind = DTYPES.get(node.integer("to", 0), "")
        return kind not in BY_NAME or not BY_NAME[kind].floating
    return node.op in QUANTIZING and not node.domain
