"""Quantized kernels: W = scale · (q - zero point), scale and zero point for the whole tensor or for each filter.

A DequantizeLinear precedes the convolution, or it is a QLinearConv, or a ConvInteger, whose scale is multiplied in later. The
int32 bias of the first two has the scale of the image times the kernel's: stored with DequantizeLinear, implied in QLinearConv.
Both must follow a new kernel scale: with a stale one onnxruntime falls back to float for the first and is silently wrong for the
second.
Source: onnx/docs/Operators.md (DequantizeLinear, QLinearConv, ConvInteger).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from chkpt_channels.core.tensors import Quantization
from chkpt_channels.formats.onnx.model import OnnxModel, Weight
from chkpt_channels.formats.onnx.nodes import Node


def quantization(model: OnnxModel, node: Node, kernel: Weight) -> Quantization | None:
    """How a convolution's kernel is quantized, None where it is not, or not by the tensor or filter."""
    if node.op == "QLinearConv":
        return _record(kernel, 0, *(model.stored(node.given(index)) for index in (4, 5, 8)))
    if node.op == "ConvInteger":
        scale, _ = output_scale(model, node)
        per_filter = scale and max(scale.shape, default=1) > 1
        aligned = scale and scale.shape[-len(kernel.shape) + 1 :][:1] == kernel.shape[:1]
        return _record(kernel, 0, scale, model.stored(node.given(3))) if aligned or not per_filter else None
    source = model.producers.get(node.inputs[1])
    if source is None or source.op != "DequantizeLinear":
        return None
    scale = model.stored(source.inputs[1])
    filters = 1 if node.op == "ConvTranspose" else 0
    per_filter = scale and max(scale.shape, default=1) > 1
    if scale is None or (per_filter and source.integer("axis", 1) % len(kernel.shape) != filters):
        return None
    bias = model.producers.get(node.given(2))
    of_bias = bias.inputs[:2] if bias and bias.op == "DequantizeLinear" else ()
    operands = (model.stored(name) for name in (source.given(2), *of_bias))
    return _record(kernel, filters if per_filter else 0, scale, *operands)


Operand = Weight | None


def _record(
    kernel: Weight, axis: int, scale: Operand, zero: Operand, bias: Operand = None, bias_scale: Operand = None
) -> Quantization | None:
    """None where an operand has a dtype, or a number of elements, that the operators do not take."""
    names = (weight.name if weight else "" for weight in (bias, bias_scale))
    is_sound = scale and scale.dtype.floating and not (zero and zero.dtype.floating) and not (bias and bias.dtype.floating)
    if not scale or not is_sound or any(prod(w.shape) not in (1, kernel.shape[axis]) for w in (scale, zero) if w):
        return None
    return Quantization(scale.name, zero.name if zero else 0, axis, *names)


def output_scale(model: OnnxModel, node: Node) -> tuple[Weight | None, Sequence[Node]]:
    """A ConvInteger's kernel scale and the nodes that read it: its output is cast, then multiplied by that scale, or by the
    product of that scale and the image's. A bias that is added before the cast is divided by the same product."""
    value, division = node.outputs[0], None
    _, reader = model.only_reader(value)
    if reader is not None and reader.op == "Add":
        division = _bias_division(model, reader, value)
        value = reader.outputs[0] if division else ""
    _, cast = model.only_reader(value)
    at, times = model.only_reader(cast.outputs[0]) if cast and cast.op == "Cast" else (0, None)
    if times is None or times.op != "Mul":
        return None, ()
    ends = [(times, times.inputs[1 - at]), *([(division, division.inputs[1])] if division else [])]
    found = [_scale_in(model, product, end, [end for end, _ in ends]) for end, product in ends]
    names = {scale.name if scale else "" for scale, _ in found}
    return (found[0][0], [reader for _, reader in found]) if len(names) == 1 else (None, ())


def _bias_division(model: OnnxModel, add: Node, value: str) -> Node | None:
    """The division of a stored bias by the scales, which is rounded, cast and added: as onnxruntime quantized until 1.6."""
    steps: list[Node | None] = [model.producers.get(next((name for name in add.inputs if name != value), ""))]
    for _ in range(2):
        steps.append(model.producers.get(steps[-1].inputs[0]) if steps[-1] else None)
    cast, rounded, division = steps
    is_bias = cast and rounded and division and (cast.op, division.op) == ("Cast", "Div") and rounded.op in ("Floor", "Round")
    return division if is_bias and division and model.stored(division.inputs[0]) else None


def _scale_in(model: OnnxModel, product: str, reader: Node, readers: Sequence[Node]) -> tuple[Weight | None, Node]:
    """(scale, its reader) of a stored factor, or of one that is multiplied by the scale of the image for these readers alone."""
    inner = model.producers.get(product)
    if scale := model.stored(product):
        return scale, reader
    others = [node for node, _ in model.consumers.get(product, ()) if not any(node is one for one in readers)]
    if inner is None or inner.op != "Mul" or others or product in model.outputs:
        return None, reader
    stored = [weight for name in inner.inputs if (weight := model.stored(name))]
    return (stored[0], inner) if len(stored) == 1 else (None, reader)
