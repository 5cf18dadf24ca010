"""First convolutions, and where their kernels come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support.graphs.draw import KINDS, Graph

MADE = 4
"""Channels that a stem makes."""


def kernel(g: Graph, value: np.ndarray) -> str:
    """The name of a kernel: stored, or made of constants."""
    way = g.chance.choices(list(KERNELS), [share for _, share in KERNELS.values()])[0]
    if way != "stored":
        g.features.add(f"kernel: {way}")
    return KERNELS[way][0](g, value)


def transposed(g: Graph, value: np.ndarray) -> str:
    """HWIO, as TensorFlow stores it."""
    order = [*range(2, value.ndim), 1, 0]
    back = [value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)]
    return g.node("Transpose", [g.stored(value.transpose(order), plain=True)], perm=back)


def reshaped(g: Graph, value: np.ndarray) -> str:
    shape = list(value.shape)
    if g.maybe(0.3):
        shape[g.chance.randrange(len(shape))] = -1
    return g.node("Reshape", [g.stored(value.reshape(len(value), -1), plain=True), g.ints(*shape)])


def scaled(g: Graph, value: np.ndarray) -> str:
    """weight_norm, or a gain: one number for each filter, or one for all."""
    gain = g.level(len(value), *[1] * (value.ndim - 1)) if g.maybe(0.7) else g.level()
    parts = [g.stored(value, plain=True), g.stored(gain, plain=True)]
    return g.node("Mul", parts if g.maybe(0.5) else parts[::-1])


def narrowed(g: Graph, value: np.ndarray) -> str:
    return g.node("Cast", [g.stored(value.astype("f2"), plain=True)], to=KINDS["f4"])


def named_again(g: Graph, value: np.ndarray) -> str:
    return g.node("Identity", [g.stored(value, plain=True)])


def dequantized(g: Graph, value: np.ndarray) -> str:
    """int8, with one scale or one for each filter."""
    each = g.maybe(0.5) and g.opset >= 13
    rows = value.reshape(len(value) if each else 1, -1)
    scale = (np.abs(rows).max(1) / 127).astype("f4")
    whole = np.round(rows / scale[:, None]).astype(np.int8).reshape(value.shape)
    scale = scale if each else scale[0]
    g.quantized = True
    parts = [g.stored(part, plain=True) for part in (whole, scale, np.zeros_like(scale, np.int8))]
    return g.node("DequantizeLinear", parts, **({"axis": 0} if each else {}))


KERNELS: dict[str, tuple[Callable[[Graph, np.ndarray], str], float]] = {
    "stored": (lambda g, value: g.stored(value, plain=True), 6),
    "a constant node": (lambda g, value: g.node("Constant", [], value=numpy_helper.from_array(value)), 0.7),
    "transposed": (transposed, 0.8),
    "reshaped": (reshaped, 0.8),
    "scaled": (scaled, 0.6),
    "cast": (narrowed, 0.6),
    "identity": (named_again, 0.5),
    "dequantized": (dequantized, 0.7),
}


def window(g: Graph) -> tuple[list[int], dict]:
    """Sizes of the kernel, and the attributes that go with it."""
    spatial = len(g.axes) - 2
    side = g.chance.choice((1, 3, 3, 3, 5 if spatial == 2 else 3))
    more = {"strides": [g.chance.choice((1, 1, 2))] * spatial}
    match g.chance.choice(("padded", "padded", "padded", "plain", "auto", "dilated")):
        case "padded":
            more["pads"] = [side // 2] * 2 * spatial
        case "auto":
            more["auto_pad"] = "SAME_UPPER"
        case "dilated" if side == 3 and spatial == 2:
            more |= {"dilations": [2] * spatial, "pads": [2] * 2 * spatial}
    return [side] * spatial, more


def conv(g: Graph) -> None:
    sides, more = window(g)
    bias = [g.stored(g.noise(MADE), plain=True)] if g.maybe(0.5) else []
    g.value = g.node("Conv", [g.value, kernel(g, g.noise(MADE, g.channels, *sides)), *bias], **more)
    if not bias and g.maybe(0.4):
        g.value = g.node("BatchNormalization", [g.value, *(g.stored(g.level(MADE), plain=True) for _ in range(4))])


def grouped(g: Graph) -> None:
    g.features.add("grouped")
    sides, more = window(g)
    g.value = g.node("Conv", [g.value, kernel(g, g.noise(MADE * g.channels, 1, *sides))], group=g.channels, **more)
    g.value = g.node("Conv", [g.value, g.stored(g.noise(MADE, MADE * g.channels, *[1] * len(sides)), plain=True)])


def from_behind(g: Graph) -> None:
    """A transposed convolution, whose kernel has its input channels first."""
    g.features.add("ConvTranspose")
    g.value = g.node("ConvTranspose", [g.value, kernel(g, g.noise(g.channels, MADE, 2, 2))], strides=[2, 2])


def two_branches(g: Graph) -> None:
    """RepVGG: two kernels, or one for two."""
    g.features.add("two branches")
    value, shared, spatial = g.value, g.maybe(0.4), len(g.axes) - 2
    one = kernel(g, g.noise(MADE, g.channels, *[3] * spatial))
    other = one if shared else kernel(g, g.noise(MADE, g.channels, *[1] * spatial))
    g.features.add("kernel: shared" if shared else "two branches")
    pads = [[1] * 2 * spatial, [int(shared)] * 2 * spatial]
    second = g.node("Relu", [value]) if shared else value
    parts = [g.node("Conv", [x, w], pads=p) for x, w, p in zip((value, second), (one, other), pads, strict=True)]
    g.value = g.node("Add", parts)


def patches(g: Graph) -> None:
    """A patch embedding as a product of matrices."""
    g.features.add("patches")
    side = 4
    rows = [-1, g.channels, 5, side, 5, side]
    value = g.node(
        "Transpose",
        [g.node("Reshape", [g.value, g.ints(*rows)])],
        perm=[0, 2, 4, 3, 5, 1] if g.maybe(0.5) else [0, 2, 4, 1, 3, 5],
    )
    flat = g.node("Reshape", [value, g.ints(-1, 25, g.channels * side * side)])
    made = g.node("MatMul", [flat, g.stored(g.noise(g.channels * side * side, MADE), plain=True)])
    g.value = g.node("Reshape", [g.node("Transpose", [made], perm=[0, 2, 1]), g.ints(-1, MADE, 5, 5)])


def deep(g: Graph) -> None:
    """Blocks of 2 × 2 pixels become channels, by slices or by one node."""
    g.features.add("space to depth")
    if g.maybe(0.5):
        g.value = g.node("SpaceToDepth", [g.value], blocksize=2)
    else:
        step, end = g.ints(2, 2), np.iinfo(np.int64).max
        corners = [(y, x) for x in (0, 1) for y in (0, 1)]
        g.value = g.node(
            "Concat", [g.node("Slice", [g.value, g.ints(*yx), g.ints(end, end), g.ints(2, 3), step]) for yx in corners], axis=1
        )
    g.value = g.node("Conv", [g.value, kernel(g, g.noise(MADE, 4 * g.channels, 3, 3))], pads=[1] * 4)


def in_integers(g: Graph) -> None:
    """onnxruntime's dynamic quantization."""
    g.features.add("ConvInteger")
    g.quantized = True
    x, y, z = (g.name("v") for _ in range(3))
    g.nodes.append(helper.make_node("DynamicQuantizeLinear", [g.value], [x, y, z]))
    whole = g.stored(np.clip(np.round(g.noise(MADE, g.channels, 3, 3) * 40 + 121), 0, 255).astype(np.uint8), plain=True)
    zero, scale = g.stored(np.array(121, np.uint8), plain=True), g.stored(np.array(0.025, np.float32), plain=True)
    summed = g.node("ConvInteger", [x, whole, z, zero], pads=[1] * 4)
    both = g.node("Mul", [y, scale])
    if g.maybe(0.4):  # the older way: the bias is quantized in the graph, with a scale of its own Mul
        bias = g.node(
            "Cast", [g.node("Floor", [g.node("Div", [g.stored(g.noise(1, MADE, 1, 1), plain=True), both])])], to=TensorProto.INT32
        )
        summed, both = g.node("Add", [summed, bias]), g.node("Mul", [scale, y])
    g.value = g.node("Mul", [g.node("Cast", [summed], to=TensorProto.FLOAT), both])


def fused(g: Graph) -> None:
    """As onnxruntime's optimizer writes it."""
    g.features.add("FusedConv")
    more = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    weights = [kernel(g, g.noise(MADE, g.channels, 3, 3)), g.stored(g.noise(MADE), plain=True)]
    g.value = g.node("FusedConv", [g.value, *weights], domain="com.microsoft", activation="Relu", **more)


def stem(g: Graph) -> None:
    """One of them; of video the plain ones. Patches are of images that declare their sizes: a Reshape alone does not say what it
    cuts."""
    flat, is_declared = len(g.axes) == 4, not g.features & {"shape: none", "shape: symbols"}
    ways = [(conv, 8), (two_branches, 1.2), (grouped, 0.6)]
    ways += [(from_behind, 0.3), (patches, 0.7 * is_declared), (deep, 0.6), (in_integers, 0.7), (fused, 0.4)] if flat else []
    (way,) = g.chance.choices([way for way, _ in ways], [weight for _, weight in ways])
    way(g)
    g.axes, g.channels = "", MADE
