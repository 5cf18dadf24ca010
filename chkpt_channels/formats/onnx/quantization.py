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


def output_scale(model: OnnxModel, node: Node) -> tuple[Weight | None, Node]:
    """A ConvInteger's kernel scale and the node that reads it: its output is cast, then multiplied by that scale, or by the
    product of that scale and the image's."""
    _, cast = _only_reader(model, node.outputs[0])
    at, times = _only_reader(model, cast.outputs[0]) if cast and cast.op == "Cast" else (0, None)
    if times is None or times.op != "Mul":
        return None, node
    other = times.inputs[1 - at]
    inner = model.producers.get(other)
    if model.stored(other) is None and inner is not None and inner.op == "Mul" and _only_reader(model, other)[1]:
        stored = [weight for name in inner.inputs if (weight := model.stored(name))]
        return (stored[0], inner) if len(stored) == 1 else (None, node)
    return model.stored(other), times


def _only_reader(model: OnnxModel, name: str) -> tuple[int, Node | None]:
    """(index of its input, the only node that reads a value); None where there are more or it is an output of the graph."""
    readers = model.consumers.get(name, [])
    return (readers[0][1], readers[0][0]) if len(readers) == 1 and name not in model.outputs else (0, None)


def _scale_of(model: OnnxModel, node: Node) -> tuple[Weight | None, Weight | None]:
    return model.stored(node.inputs[1]), model.stored(node.inputs[2]) if len(node.inputs) > 2 else None
