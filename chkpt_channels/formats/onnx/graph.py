"""What an ONNX graph says: which kernels the image reaches, which operations precede them, what counts its channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from chkpt_channels.core.errors import Location, UsageError
from chkpt_channels.core.tensors import Declaration, FirstConv, PreprocessingOp, Quantization, Tensor, TensorEdit
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.formats.onnx import edits as onnx_edits
from chkpt_channels.formats.onnx import metadata
from chkpt_channels.formats.onnx.dataflow import padding
from chkpt_channels.formats.onnx.dataflow.image_inputs import image_traces
from chkpt_channels.formats.onnx.dataflow.shape_values import Load
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv
from chkpt_channels.formats.onnx.model import OnnxModel
from chkpt_channels.formats.onnx.quantization import quantization

NAMED_OPS = 4
"""How many of the operations before a kernel `why` names."""
FIRST_BROADCAST_OPSET = 7
"""Since then Add, Mul and their kin broadcast as numpy does. Source: onnx/docs/Changelog.md."""


class OnnxGraph(ModelGraph):
    """The main graph of a model; `tensors` are its stored ones."""

    knows_outputs = True

    def __init__(self, model: OnnxModel, tensors: Mapping[str, Tensor], load: Load, location: Location) -> None:
        self.model, self._tensors, self._load, self._location = model, tensors, load, location
        self._named: tuple[str, ...] = ()

    @cached_property
    def paths(self) -> list[ImageTrace]:
        """From each image input on. Raises UnsupportedError where it runs into one of the model's own functions."""
        paths = image_traces(self.model, self._load, self._named)
        for path in paths:
            self._refuse_inner_kernels(path)
            for constants in path.operations:
                node = constants.node
                if (node.domain, node.op) in self.model.functions:
                    raise self._location.at(node.label).unsupported(
                        f"the image reaches the model-local function {node.op}, which is not followed"
                    )
        return paths

    def _refuse_inner_kernels(self, path: ImageTrace) -> None:
        """Raise UnsupportedError where the image reaches a kernel that a subgraph stores."""
        for reached in path.reached:
            name = next((name for name in reached.node.inputs if name in self.model.inner), None)
            if name and reached.kernel is None:
                what = f"its weights are in a subgraph of {self.model.inner[name]}; only those of the main graph are edited"
                raise self._location.at(reached.node.label).unsupported(what)

    def select_inputs(self, names: Sequence[str]) -> bool:
        known = [info.name for info in self.model.inputs]
        for name in names:
            if name not in known:
                raise UsageError(f"no input is called {name!r}; it has {', '.join(known)}", file=self._location.file)
        self._named = tuple(names)
        return True

    def first_convs(self) -> Sequence[FirstConv]:
        convs: dict[str, FirstConv] = {}
        for path in self.paths:
            for reached in path.reached:
                if conv := self._first_conv(path, reached):
                    convs.setdefault(conv.tensor.name, conv)
        direct = [conv for conv in convs.values() if conv.layout]
        return direct or list(convs.values())

    def _first_conv(self, path: ImageTrace, reached: ReachedConv) -> FirstConv | None:
        if reached.kernel is None:
            return None
        why = f"the image {path.image.name!r} reaches it" + (f" through {_listed(path)}" if path.operations else "")
        tensor, channels = self._tensors[reached.kernel.name], reached.channels or path.image.dims[path.channel] or 0
        groups = reached.node.integer("group", 1) if reached.layout else 1
        return FirstConv(tensor, reached.layout, channels, "graph", why, groups)

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        operations = [op for conv in first_convs for reached in self._users(conv) for op in reached.operations]
        # what mixes channels anywhere between the image and a kernel makes every kernel edit wrong
        operations += [c.operation for path in self.paths for c in path.operations if c.operation.scale is None]
        return list(dict.fromkeys(operations))

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        broadcasts = self.model.opset >= FIRST_BROADCAST_OPSET and all(path.broadcasts and path.operations for path in self.paths)
        return ("broadcast", "stack") if broadcasts else ("stack",)

    def bias_target(self, conv: FirstConv) -> tuple[str, int] | None:
        users = self._users(conv)
        return onnx_edits.bias_target(self.model, users[0].node) if len(users) == 1 else None

    def padding(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]]:
        return [spans for reached in self._users(conv) for spans in padding.tap_spans(reached)]

    def _users(self, conv: FirstConv) -> list[ReachedConv]:
        """The convolutions that take the image with this kernel."""
        reached = [r for path in self.paths for r in path.reached if r.layout and r.kernel]
        return [r for r in reached if r.kernel and r.kernel.name == conv.tensor.name]

    def quantization(self, conv: FirstConv) -> Quantization | None:
        users = [] if conv.tensor.dtype.floating else self._users(conv)
        return quantization(self.model, users[0].node, self.model.weights[conv.tensor.name]) if users else None

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        shape = conv.tensor.shape
        return shape if channels == 1 else (shape[0], channels, *shape[2:])

    def shape_edits(self, channels: int) -> dict[str, TensorEdit]:
        counts = [count for path in self.paths for count in path.counts]
        return onnx_edits.count_edits(counts, channels, self._load)

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        inputs = self._declared_inputs()
        return [*inputs, *metadata.declarations(self.model.root, _counts(inputs, first_convs))]

    def _declared_inputs(self) -> list[Declaration]:
        declarations = []
        for path in self.paths:
            channels = path.image.dims[path.channel]
            if channels is not None:
                declarations.append(Declaration(f"graph.input {path.image.name}", channels))
        return declarations

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        inputs = [
            (Declaration(f"graph.input {path.image.name}", channels), width)
            for path in self.paths
            for width in path.widths
            if (channels := path.image.dims[path.channel]) is not None
        ]
        return [*inputs, *metadata.contradictions(self.model.root, _counts(self._declared_inputs(), first_convs))]


def _counts(declarations: Sequence[Declaration], first_convs: Sequence[FirstConv]) -> set[int]:
    """The channels of the images: as they are declared, or as the kernels take them."""
    return {declaration.channels for declaration in declarations} or {conv.in_channels for conv in first_convs}


def _listed(path: ImageTrace) -> str:
    kinds = list(dict.fromkeys(constants.operation.kind for constants in path.operations))
    return ", ".join(kinds[:NAMED_OPS])
