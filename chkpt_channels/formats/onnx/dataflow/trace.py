"""A forward data-flow analysis: from an image input to every convolution that it reaches, with the operations in between.

Each value that comes from the image has its axes in terms of the image's. An operation keeps the channels apart; or it applies
constants of their own to them (recorded with scale and shift); or it mixes, selects or cuts them (recorded without): then only
`stack` is right. The same walk without a place of the channels shows which axis of the image a convolution takes as channels
(image_inputs.py), and in which order they are folded with pixels.

Seen between image and stem: nothing (most exports); Sub, Div by [1,3,1,1] or [3,1,1]; Transpose, Cast, Div (uint8 NHWC); three
Gather, Mul, Add and a Concat (torchvision's transform_input); a Pad computed by some 75 shape nodes (tf_efficientnet); Reshape,
Transpose, Reshape (space-to-depth, Linear patches); x[:, [2,1,0]] as Gather, Slice or GatherND; Mul, Add by [1,1,1,3] before a
Transpose (Keras).
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import PreprocessingOp
from chkpt_channels.formats.onnx.dataflow import operators, values
from chkpt_channels.formats.onnx.dataflow.axes import NEW, NOWHERE, Axes, Piece, Place, around, holder, image_axes, resized, size
from chkpt_channels.formats.onnx.dataflow.kernel_source import KernelSource, kernel_source
from chkpt_channels.formats.onnx.dataflow.selections import followed, merged
from chkpt_channels.formats.onnx.dataflow.shape_ops import MOVES
from chkpt_channels.formats.onnx.dataflow.shape_values import Numbers
from chkpt_channels.formats.onnx.dataflow.values import Count, Flow, LocatedOp, ReachedConv
from chkpt_channels.formats.onnx.model import Info, OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node

INLINER = "onnx.inliner.inline_local_functions, and convert what it gives"  # where a function is in the way of an edit


class ImageTrace:
    """Everything that follows one graph input whose channels are at `place`; with None, the axes alone are followed."""

    def __init__(self, model: OnnxModel, image: Info, place: Place | None) -> None:
        self.model, self.image, self.place = model, image, place
        self.channel, self.count = (place.axis, place.channels) if place else (NOWHERE, 0)  # 0 where it is not known
        self.reached: list[ReachedConv] = []
        self.stems: dict[str, list[ReachedConv]] = {}  # of these what takes the channels as they are, by the kernel
        self.widths: list[int] = []  # of kernels that directly follow the image and contradict its channels
        self.operations: list[LocatedOp] = []
        self.counts: list[Count] = []
        self.lost: list[Node] = []  # behind which nothing is known of the axes
        axes = image_axes(image.dims, place)
        self.values: dict[str, Flow] = {image.name: Flow(axes, mixed=self.channel == NOWHERE)}
        self.broadcasts = True
        channels = size(tuple(piece for axis in axes for piece in axis if piece.of == self.channel))
        self._numbers = Numbers(model, self.channel, channels)
        self._sizes = Numbers(model, NOWHERE, channels, self._numbers.known)  # of values whose channels are not the image's own
        self._calls: set[str] = set()
        for node in model.computed.behind(image.name, lambda name: name in self.values or name in self._numbers.known):
            model.step(node, len(node.inputs))
            if node in model.computed.subgraphs:
                self._subgraphs(node)
            elif any(name in self.values for name in node.inputs):
                self._through(node)
            else:
                self._count(node)
        self.broadcasts &= not any(not flow.wide for name, flow in self.values.items() if name in model.outputs)

    def _through(self, node: Node) -> None:
        """Follow the image through one node."""
        op, flow = operators.kind(node), self.values.get(node.given(0))
        self._enter(node)
        if op in operators.CONVOLUTIONS and flow:
            self._reach(node, flow, operators.CONVOLUTIONS[op])
        elif op in operators.PRODUCTS:
            self._product(node)
        elif op in operators.BINARY:
            self._binary(node)
        elif op == "Concat":
            self._concat(node)
        elif operators.is_in_blocks(node) and flow:
            weight = self.model.stored(node.given(1))
            self._arrive(node, KernelSource(weight) if weight else None, flow)
        elif flow is None or flow.axes is None:
            self._mix(node)
        elif op in operators.SHAPES:
            (self._sizes if flow.mixed else self._numbers).shape_of(node, flow.axes)
        elif op in MOVES:
            self._move(node, flow, flow.axes)
        elif op in operators.LINEAR:
            self._give(node, flow)
        elif op in operators.ELEMENTWISE:
            self._elementwise(node, flow)
        elif op == "BatchNormalization":
            self._batch_normalization(node, flow)
        else:
            self._mix(node)

    def _enter(self, node: Node) -> None:
        """The nodes of a function are followed, but they serve every call of it, and are not edited."""
        if node.call and node.call.label not in self._calls:
            self._calls.add(node.call.label)
            operation = PreprocessingOp(node.call.label, f"call of the model's function {node.call.op}", hint=INLINER)
            self.operations.append(LocatedOp(operation, node))

    def _give(self, node: Node, flow: Flow) -> None:
        self.model.location.at(node.label).check_limit("operations before it", len(flow.operations), LIMITS.graph_operations)
        self.model.step(node, len(flow.operations))
        given = flow._replace(mixed=flow.mixed or node.call is not None)
        self.values |= dict.fromkeys(filter(None, node.outputs), given)

    def _mix(self, node: Node) -> None:
        """An operation that may select, mix or cut channels: what follows is reached, but without channels of its own."""
        flows = [self.values[name] for name in node.inputs if name in self.values]
        axes = [self.values[name].axes if name in self.values else None for name in node.inputs]
        self._spread(node, flows, None if node.domain else followed(node, axes, self.model, self._sizes))

    def _spread(self, node: Node, flows: Sequence[Flow], axes: Axes | None) -> None:
        """Give out a value whose channels are no longer the image's own."""
        if any(not flow.mixed for flow in flows):
            self._block(node)
        if axes is None and any(flow.axes is not None for flow in flows):
            self.lost.append(node)
        wide = bool(flows) and all(flow.wide for flow in flows)
        self.broadcasts &= wide
        self._give(node, Flow(axes, wide, mixed=True))

    def _block(self, node: Node) -> None:
        self.operations.append(LocatedOp(PreprocessingOp(node.label, node.op), node))

    def _subgraphs(self, node: Node) -> None:
        """A node with subgraphs, which may capture the image. Their own inputs (Loop, Scan) are not followed."""
        subs = self.model.computed.subgraphs[node]
        inner = [[self.values.get(name) for name in sub.outputs] for sub in subs]
        flows = [flow for outputs in inner for flow in outputs if flow]
        flows += [self.values[name] for name in node.inputs if name in self.values]
        if not flows and self._numbers.known.keys().isdisjoint(node.inputs):
            return
        branches = [each[0].axes if len(each) == 1 and each[0] else None for each in inner] if node.op == "If" else []
        self._spread(node, flows or [Flow(None)], merged(branches))

    def _count(self, node: Node) -> None:
        """A node that computes with sizes: a result that depends on the number of channels may only be another size."""
        if not self._numbers.compute(node) and any(n.follows for name in node.inputs for n in self._numbers.known.get(name, ())):
            self._block(node)
            self.broadcasts = False

    def _move(self, node: Node, flow: Flow, axes: Axes) -> None:
        moved = MOVES[node.op](node, axes, self._sizes if flow.mixed else self._numbers)
        if moved is None:
            self._mix(node)
            return
        for number, each in moved.counts:
            if number.weight and number.reader:
                self.counts.append(Count(number.weight, number.at, each, number.reader))
                self.broadcasts &= flow.wide
        flow = flow._replace(axes=moved.axes, padded=flow.padded or moved.zeros)
        self._give(node, values.after_nonlinear(flow, node) if moved.filled or node.op in operators.NONLINEAR_POOLS else flow)

    def _concat(self, node: Node) -> None:
        """Parts with equal axes and operations: along the channels they become the slower steps (Focus is four slices)."""
        flows = {self.values.get(name) for name in node.inputs}
        flow = flows.pop()
        if flows or flow is None or flow.axes is None:
            self._mix(node)
            return
        axes, k, parts = flow.axes, node.integer("axis", 1) % len(flow.axes), len(node.inputs)
        is_folded = flow.mixed or k == holder(axes, self.channel)
        axes = (*axes[:k], (Piece(NEW, parts), *axes[k]), *axes[k + 1 :]) if is_folded else resized(axes, k)
        self._give(node, flow._replace(axes=axes))

    def _elementwise(self, node: Node, flow: Flow) -> None:
        if node.op == "Neg":
            return self._give(node, values.after_constants(flow, PreprocessingOp(node.label, node.op, (-1.0,), (0.0,))))
        scale = self.model.stored(node.given(1))
        is_per_channel = scale is None or max(scale.shape, default=1) > 1
        if node.op in ("QuantizeLinear", "DequantizeLinear") and is_per_channel:
            self._mix(node)
            return
        first = node._replace(outputs=node.outputs[:1])  # the scale of DynamicQuantizeLinear is no image
        self._give(first, values.after_nonlinear(flow, node))

    def _reach(self, node: Node, flow: Flow, index: int) -> None:
        source, axes = kernel_source(self.model, node.given(index)), flow.own or ()
        is_followed = source and holder(axes, self.channel) == 1 and len(axes) == len(source.weight.shape)
        self._arrive(node, source, flow, axes[1] if is_followed else ())

    def _product(self, node: Node) -> None:
        """A matrix product over folded patches; over plain pixels it mixes the channels itself."""
        index = next(i for i, name in enumerate(node.inputs) if name in self.values)
        flow = self.values[node.inputs[index]]
        source, axes = kernel_source(self.model, node.given(1 - index)) if index < 2 else None, flow.own or ()
        is_followed = index == 0 and axes and holder(axes, self.channel) == len(axes) - 1
        self._arrive(node, source, flow, axes[-1] if is_followed else ())

    def _arrive(self, node: Node, source: KernelSource | None, flow: Flow, axis: tuple[Piece, ...] = ()) -> None:
        """Remember a convolution or product; one that does not take the image's channels as they are, in `axis`, without a
        layout."""
        self.model.step(node, 25)  # its source, its padding, what is declared of it
        self.broadcasts &= flow.wide
        layout, channels = self._taken(node, source.weight, axis) if source and axis else (None, 0)
        sizes = tuple(map(size, (flow.own or ())[2:]))
        reached = ReachedConv(node, source, layout, channels, flow.operations, sizes, flow.padded, flow.axes)
        is_inexact = any(any(op.shift or ()) for op in flow.operations) and not reached.keeps_constants
        is_grouped = node.integer("group", 1) > 1 and reached.stored != layout
        if channels and reached.stored and source and layout and not (is_inexact or is_grouped):
            self.counts += [Count(*count) for count in source.counts(layout.channel_axis, reached.width, self.model)]
            self.stems.setdefault(source.weight.name, []).append(reached)
        else:
            reached = reached._replace(layout=None)
            if not flow.mixed:
                self._block(node)
        self.reached.append(reached)

    def _taken(self, node: Node, kernel: Weight, axis: tuple[Piece, ...]) -> tuple[Layout | None, int]:
        """The layout of a kernel that takes this axis, and its channels; 0 where they are not those that the image declares."""
        slower, faster = around(axis, self.channel)
        layout = (values.product_layout if node.op in operators.PRODUCTS else values.kernel_layout)(node, kernel, slower, faster)
        width = kernel.shape[layout.channel_axis] * node.integer("group", 1) if layout else 0
        channels, rest = divmod(width, slower * faster)
        if channels < 0 or rest or self.count not in (0, channels):  # group may be any number
            channels = 0
        if width and not channels and not self.operations and slower == faster == 1:
            self.widths.append(width)
        return layout, channels

    def _binary(self, node: Node) -> None:
        """An operation on the image and a constant, or on two values that come from it (a residual, a sum of branches)."""
        tracked = [name for name in node.inputs if name in self.values]
        flow = self.values[tracked[0]]
        if len(tracked) == len(node.inputs):
            both = values.joined([self.values[name] for name in tracked], node)
            self._give(node, both) if both else self._mix(node)
            return
        index = next(i for i, name in enumerate(node.inputs) if name not in self.values)
        weight = self.model.stored(node.inputs[index]) if len(node.inputs) == 2 else None
        more = max(len(weight.shape) - len(flow.own), 0) if weight and flow.own else 0  # [1,3,1,1] makes a batch of [3,H,W]
        axes = (*((),) * more, *(flow.own or ()))
        channel_axis = holder(axes, self.channel)
        if weight is None or channel_axis is None or any(n > 1 for n in weight.shape[:more]):
            self._mix(node)
            return
        flow = flow._replace(axes=axes)
        axis = channel_axis - len(axes) + len(weight.shape)  # numpy broadcasting aligns the last axes
        if axis >= 0 and weight.shape[axis] > 1 and len(axes[channel_axis]) > 1:
            self._mix(node)  # one constant for each folded pixel too
        elif axis >= 0 and weight.shape[axis] > 1:
            self._constant(node, flow, weight, axis, index)
        elif all(n == 1 for n in weight.shape):
            self._scalar(node, flow, weight, index)
        else:
            is_linear = node.op == "Mul" or (node.op == "Div" and index == 1)
            self._give(node, values.after_pixels(flow, node) if is_linear else values.after_nonlinear(flow, node))

    def _scalar(self, node: Node, flow: Flow, weight: Weight, index: int) -> None:
        """A constant that all channels share: it is no obstacle, but it changes the zeros of earlier padding."""
        terms = values.affine(node.op, index, [float(v) for v in self.model.load(weight).reshape(-1)])
        operation = PreprocessingOp(node.label, node.op, *terms) if terms else None
        self._give(node, values.after_constants(flow, operation) if operation else values.after_nonlinear(flow, node))

    def _constant(self, node: Node, flow: Flow, weight: Weight, axis: int, index: int) -> None:
        """x ∘ constant or constant ∘ x, with one constant per channel."""
        is_per_channel = all(n == 1 for i, n in enumerate(weight.shape) if i != axis)
        terms = values.affine(node.op, index, [float(v) for v in self.model.load(weight).reshape(-1)]) if is_per_channel else None
        scale, shift = terms or (None, None)
        operation = PreprocessingOp(node.label, node.op, scale, shift, ((weight.name, axis),), apart=True)
        self.operations.append(LocatedOp(operation, node))
        self._give(node, values.after_constants(flow, operation)._replace(wide=True))

    def _batch_normalization(self, node: Node, flow: Flow) -> None:
        stored = [w for w in map(self.model.stored, node.inputs[1:5]) if w is not None]
        self.broadcasts &= flow.wide  # BatchNormalization does not broadcast one channel: only `stack` may precede it
        axes = flow.own or ()
        # with training_mode by the statistics of the batch, which are not stored
        is_stored = len(stored) == 4 and len({w.shape for w in stored}) == 1 and not node.integer("training_mode", 0)
        if not is_stored or holder(axes, self.channel) != 1 or len(axes[1]) > 1:
            self._mix(node)
            return
        scale, shift = values.normalizing(node, [self.model.load(w).astype("float64").reshape(-1) for w in stored])
        operation = PreprocessingOp(node.label, node.op, scale, shift, tuple((w.name, 0) for w in stored))
        self.operations.append(LocatedOp(operation, node))
        self._give(node, values.after_constants(flow, operation))
