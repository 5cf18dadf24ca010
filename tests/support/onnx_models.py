"""Small ONNX models that onnx itself writes, checks and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from chkpt_channels.core.tensors import Edits
from chkpt_channels.formats.onnx import FORMATS
from chkpt_channels.formats.onnx.checkpoint import Onnx
from chkpt_channels.formats.onnx.dataflow.axes import Place
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice, streamed

SIZE = 8
RGB = (1, 3, SIZE, SIZE)
Dims = Sequence[int | str | None]
Weights = Mapping[str, np.ndarray]
Open = Callable[..., Source]
node = helper.make_node
newer_onnx = pytest.mark.skipif(
    "FLOAT8E8M0" not in TensorProto.DataType.keys(),  # noqa: SIM118 (an enum of protobuf is no mapping)
    reason="before 1.19 onnx reads floats of 4 and 8 bits as float32, and its reference is wrong for some convolutions",
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) - 0.4).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def model(
    nodes: Sequence[NodeProto],
    weights: Weights | None = None,
    shape: Dims = RGB,
    *,
    inputs: Mapping[str, Dims] | None = None,
    outputs: Sequence[str] = ("out",),
    opset: int = 17,
    inferred: bool = False,
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """A model of these nodes from `image` to `outputs`; `inputs` are further ones. `inferred` declares what is between."""
    kinds = {"chosen": TensorProto.BOOL}
    given = {"image": shape, **(inputs or {})}
    values = [helper.make_tensor_value_info(name, kinds.get(name, kind), dims) for name, dims in given.items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", values, made, stored)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(whole, data_prop=True) if inferred else whole


def branch(
    name: str,
    nodes: Sequence[NodeProto],
    weights: Weights | None = None,
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.GraphProto:
    """A graph for an attribute; it gives out what its last node makes unless `outputs` says otherwise."""
    made = outputs or [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()]
    return helper.make_graph(nodes, name, list(inputs), list(made), stored)


def opened(source: Open, made: ModelProto) -> Onnx:
    """The model, read by the package."""
    checkpoint = FORMATS[0].open(source(made.SerializeToString(), "a.onnx"))
    assert isinstance(checkpoint, Onnx)
    return checkpoint


def traced(source: Open, made: ModelProto, channel: int = 1) -> ImageTrace:
    """What becomes of the first input of a model, if that axis holds the channels."""
    checkpoint = opened(source, made)
    image = checkpoint.model.inputs[0]
    return ImageTrace(checkpoint.model, image, Place(channel, image.dims[channel] or 0))


def rewritten(checkpoint: Onnx, splices: Sequence[Splice]) -> ModelProto:
    """The model that a file is with these splices."""
    data = checkpoint.source.read(0, checkpoint.source.size)
    after = b"".join(streamed([data], sorted(splices, key=lambda splice: (splice.start, splice.stop))))
    assert len(after) == len(data) + sum(s.size - (s.stop - s.start) for s in splices)
    return ModelProto.FromString(after)


def edited(checkpoint: Onnx, edits: Edits) -> ModelProto:
    """The edited model, which onnx's checker accepts with its shapes."""
    after = rewritten(checkpoint, checkpoint.splices(edits))
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True, data_prop=True))
    return after


def run(made: ModelProto, image: np.ndarray, **more: np.ndarray) -> list[np.ndarray]:
    """What onnx's reference implementation computes."""
    return ReferenceEvaluator(made).run(None, {"image": image, **more})


def initializers(made: ModelProto) -> dict[str, np.ndarray]:
    return {stored.name: numpy_helper.to_array(stored) for stored in made.graph.initializer}


def declared(made: ModelProto) -> dict[str, list[int | str]]:
    """Every declared shape of the main graph."""
    graph = made.graph
    values = {info.name: info.type.tensor_type.shape.dim for info in (*graph.input, *graph.output, *graph.value_info)}
    return {
        name: [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims] for name, dims in values.items()
    }
