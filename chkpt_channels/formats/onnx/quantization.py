"""Quantized kernels: W = scale · (q - zero point), scale and zero point for the whole tensor or for each filter.

A DequantizeLinear precedes the convolution, or it is a QLinearConv, or a ConvInteger, whose scale is multiplied in later. The
int32 bias of the first two has the scale of the image times the kernel's: stored with DequantizeLinear, implied in QLinearConv.
Both must follow a new kernel scale: with a stale one onnxruntime falls back to float for the first and is silently wrong for the
second.
Source: onnx/docs/Operators.md (DequantizeLinear, QLinearConv, ConvInteger).
"""

from __future__ import annotations

from chkpt_channels.core.tensors import Quantization
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node


def quantization(model: OnnxModel, node: Node, kernel: Weight) -> Quantization | None:
    """How a convolution's kernel is quantized, None where it is not, or not by the tensor or filter."""
    if node.op == "QLinearConv":
        scale, zero = (model.stored(name) for name in node.inputs[4:6])
        bias = model.stored(node.inputs[8]) if len(node.inputs) > 8 else None
        return _record(scale, zero, bias)
    if node.op == "ConvInteger":
        scale, _ = output_scale(model, node)
        zero = model.stored(node.inputs[3]) if len(node.inputs) > 3 else None
        per_filter = scale and max(scale.shape, default=1) > 1
        aligned = scale and scale.shape[-len(kernel.shape) + 1 :][:1] == kernel.shape[:1]
        return _record(scale, zero) if aligned or not per_filter else None
    source = model.producers.get(node.inputs[1])
    if source is None or source.op != "DequantizeLinear":
        return None
    scale, zero = _scale_of(model, source)
    if scale is None or (max(scale.shape, default=1) > 1 and source.integer("axis", 1) % len(kernel.shape)):
        return None
    source_of_bias = model.producers.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if source_of_bias is not None and source_of_bias.op == "DequantizeLinear":
        bias_scale, _ = _scale_of(model, source_of_bias)
        return _record(scale, zero, model.stored(source_of_bias.inputs[0]), bias_scale)
    return _record(scale, zero)


def _record(
    scale: Weight | None, zero: Weight | None, bias: Weight | None = None, bias_scale: Weight | None = None
) -> Quantization | None:
    names = (weight.name if weight else "" for weight in (bias, bias_scale))
    return Quantization(scale.name, zero.name if zero else 0, 0, *names) if scale else None


def output_scale(model: OnnxModel, node: Node) -> tuple[Weight | None, tuple[Node, ...]]:
    """A ConvInteger's kernel scale and the nodes that read it: its output is cast, then multiplied by that scale, or by the
    product of that scale and the image's. A bias that is added before the cast is divided by such a product itself."""
    at, cast = _only_reader(model, node.outputs[0])
    divided: tuple[tuple[Weight, Node] | None, ...] = ()
    if cast and cast.op == "Add":
        divided = (_product(model, _divisor(model, cast.given(1 - at))),)
        _, cast = _only_reader(model, cast.outputs[0])
    at, times = _only_reader(model, cast.outputs[0]) if cast and cast.op == "Cast" else (0, None)
    if times is None or times.op != "Mul":
        return None, ()
    scale = model.stored(times.inputs[1 - at])
    read = (scale, times) if scale else _product(model, times.inputs[1 - at])
    if read is None or any(found is None or found[0] is not read[0] for found in divided):
        return None, ()
    return read[0], (read[1], *(found[1] for found in divided if found))


def _product(model: OnnxModel, name: str) -> tuple[Weight, Node] | None:
    """The stored factor of a product and its node, where one of the two is stored and the product is read once."""
    node = model.producers.get(name)
    if node is None or node.op != "Mul" or not _only_reader(model, name)[1]:
        return None
    stored = [weight for factor in node.inputs if (weight := model.stored(factor))]
    return (stored[0], node) if len(stored) == 1 else None


def _divisor(model: OnnxModel, name: str) -> str:
    """What a bias is divided by before it is rounded; empty where that is not what is done."""
    node = model.producers.get(name)
    while node is not None and node.op in ("Cast", "Floor", "Round"):
        node = model.producers.get(node.given(0))
    return node.given(1) if node is not None and node.op == "Div" and model.stored(node.given(0)) else ""


def _only_reader(model: OnnxModel, name: str) -> tuple[int, Node | None]:
    """(index of its input, the only node that reads a value); None where there are more or it is an output of the graph."""
    readers = model.consumers.get(name, [])
    return (readers[0][1], readers[0][0]) if len(readers) == 1 and name not in model.outputs else (0, None)


def _scale_of(model: OnnxModel, node: Node) -> tuple[Weight | None, Weight | None]:
    return model.stored(node.inputs[1]), model.stored(node.inputs[2]) if len(node.inputs) > 2 else None
