"""What stands between an image and its first convolutions: each step leaves a value that the next one takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper

from tests.support.graphs.draw import FRAMES, KINDS, SIDE, Graph

Step = Callable[[Graph], None]


def floats(g: Graph) -> bool:
    return g.dtype != "u1"


def cast(g: Graph) -> None:
    """To float32, by way of float16 or float64 at times."""
    kinds = ["f4"] if g.maybe(0.85) else [g.chance.choice(("f2", "f8")), "f4"]
    for kind in kinds:
        g.step("Cast", to=KINDS[kind])
        g.dtype = kind
    g.features.add("cast")


def per_channel(g: Graph) -> None:
    """A mean, a std, or both: in the shape that the layout asks for."""
    at = g.axes.index("C")
    shape = [g.channels if k == at else 1 for k in range(len(g.axes))]
    shape = shape[at:] if g.maybe(0.5) else shape
    g.features.add(f"constants in {g.axes}")
    for op in g.chance.choice((["Sub", "Div"], ["Mul", "Add"], ["Sub"], ["Mul"], ["Div"], ["Sub", "Mul"])):
        g.step(op, g.stored(g.level(*shape).astype(g.dtype)))


def one_number(g: Graph) -> None:
    op, value = g.chance.choice((("Div", 4.0), ("Mul", 0.5), ("Sub", 1.0), ("Add", 0.5)))
    g.step(op, g.number(value))


def swapped_operands(g: Graph) -> None:
    """1 - x."""
    g.value = g.node("Sub", [g.number(1.0), g.value])


def batch_norm(g: Graph) -> None:
    if g.axes not in ("NCHW", "NCTHW"):
        return per_channel(g)
    g.features.add("BatchNormalization in front")
    vectors = [g.stored(g.level(g.channels).astype(g.dtype), plain=True) for _ in range(4)]
    g.step("BatchNormalization", *vectors, epsilon=1e-3)
    return None


def instance_norm(g: Graph) -> None:
    """Each image by its own mean and spread: no map of the channels is beside it."""
    if g.axes == "NCHW":
        g.features.add("InstanceNormalization")
        g.step("InstanceNormalization", *(g.stored(g.level(g.channels).astype(g.dtype), plain=True) for _ in range(2)))


def clip(g: Graph) -> None:
    """Below what the constants in front leave of most values."""
    g.features.add("Clip")
    g.step("Clip", g.number(-0.2), g.number(g.chance.choice((0.4, 1.0, 300.0))))


def activation(g: Graph) -> None:
    g.features.add("activation in front")
    g.step(g.chance.choice(("Sigmoid", "Tanh", "Sqrt", "Abs")) if g.maybe(0.7) else "Relu")


def resize(g: Graph) -> None:
    if g.axes not in ("NCHW", "NHWC"):
        return
    g.features.add("Resize")
    if g.maybe(0.5) or "frames in the batch" in g.features:
        how = [roi(g), g.stored(np.array([2.0 if letter in "HW" else 1.0 for letter in g.axes], np.float32), plain=True)]
    else:
        how = [roi(g), roi(g), g.ints(*(2 * n if letter in "HW" else n for n, letter in zip(g.shape, g.axes, strict=True)))]
    g.step("Resize", *how, mode=g.chance.choice(("nearest", "linear") if g.axes == "NCHW" else ("nearest",)))
    shrink(g)


def roi(g: Graph) -> str:
    """Opset 11 asks for what later ones leave out."""
    return g.stored(np.zeros(0, np.float32), plain=True) if g.opset < 13 else ""


def shrink(g: Graph) -> None:
    """Back to the size that the letters stand for, every second pixel."""
    at = [k for k, letter in enumerate(g.axes) if letter in "HW"]
    g.step("Slice", g.ints(0, 0), g.ints(2 * SIDE, 2 * SIDE), g.ints(*at), g.ints(2, 2))


def pad(g: Graph) -> None:
    """A border, and one pixel less on the other side."""
    at = [k for k, letter in enumerate(g.axes) if letter in "HW"]
    if len(at) < 2:
        return
    begins = [int(k in at) for k in range(len(g.axes))]
    pads, mode = g.ints(*begins, *[0] * len(begins)), g.chance.choice(("constant", "constant", "constant", "reflect", "edge"))
    g.features.add(f"Pad {mode}")
    value = [g.number(g.chance.choice((0.0, 0.5, 1.0)))] if mode == "constant" and g.maybe(0.7) else []
    g.step("Pad", pads, *value, mode=mode)
    g.step("Slice", g.ints(0, 0), g.ints(SIDE, SIDE), g.ints(*at))


def swap_gather(g: Graph) -> None:
    g.features.add("channels swapped")
    g.step("Gather", g.ints(*reversed(range(g.channels))), axis=g.axes.index("C") - (len(g.axes) if g.maybe(0.3) else 0))


def swap_slice(g: Graph) -> None:
    g.features.add("channels swapped")
    g.step("Slice", g.ints(-1), g.ints(np.iinfo(np.int64).min + 1), g.ints(g.axes.index("C")), g.ints(-1))


def swap_split(g: Graph) -> None:
    """Split or three slices, and joined in another order, with arithmetic on each at times."""
    g.features.add("channels split")
    at, count = g.axes.index("C"), g.channels
    parts = [g.node("Slice", [g.value, g.ints(k), g.ints(k + 1), g.ints(at)]) for k in range(count)]
    if floats(g) and g.maybe(0.5):
        parts = [g.node("Sub", [part, g.number(0.1 * k)]) for k, part in enumerate(parts)]
    g.value = g.node("Concat", parts[::-1] if g.maybe(0.6) else parts, axis=at)


def without_alpha(g: Graph) -> None:
    if g.channels == 4:
        g.features.add("a channel left out")
        g.step("Slice", g.ints(0), g.ints(3), g.ints(g.axes.index("C")), channels=3)


def flip(g: Graph) -> None:
    if "W" in g.axes:
        g.step("Slice", g.ints(-1), g.ints(np.iinfo(np.int64).min + 1), g.ints(g.axes.index("W")), g.ints(-1))


def nothing(g: Graph) -> None:
    g.step("Identity")


def pooled(g: Graph) -> None:
    if g.axes == "NCHW":
        g.features.add("pooling in front")
        g.step(g.chance.choice(("AveragePool", "MaxPool")), kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def quantized(g: Graph) -> None:
    """A calibrated scale: it holds the pixels, whatever stands before it."""
    g.features.add("QDQ in front")
    g.quantized = True
    step = 1.0 if g.images[-1].dtype == "u1" else 2.0**-5
    scale, zero = g.stored(np.array(step, np.float32), plain=True), g.stored(np.array(64, np.uint8), plain=True)
    g.step("QuantizeLinear", scale, zero)
    g.step("DequantizeLinear", scale, zero)


def color_matrix(g: Graph) -> None:
    """A 1×1 convolution: to YUV, to BGR, or a normalization by hand."""
    if g.axes == "NCHW":
        g.features.add("a 1x1 Conv in front")
        matrix = np.eye(g.channels)[::-1] if g.maybe(0.3) else g.noise(g.channels, g.channels)
        bias = [g.stored(g.noise(g.channels), plain=True)] if g.maybe(0.5) else []
        g.step("Conv", g.stored(matrix.reshape(g.channels, g.channels, 1, 1).astype("f4"), plain=True), *bias)


def there_and_back(g: Graph) -> None:
    """Arithmetic in the other layout."""
    if g.axes == "NCHW":
        g.step("Transpose", perm=[0, 2, 3, 1], axes="NHWC")
        per_channel(g)
        g.step("Transpose", perm=[0, 3, 1, 2], axes="NCHW")


EVERYWHERE: tuple[tuple[Step, float], ...] = (
    *((swap_gather, 1), (swap_slice, 0.6), (swap_split, 0.6), (without_alpha, 3), (flip, 0.5), (nothing, 0.7)),
)
ON_FLOATS: tuple[tuple[Step, float], ...] = (
    *((per_channel, 4), (one_number, 2), (swapped_operands, 0.5), (batch_norm, 1.5), (instance_norm, 0.3), (clip, 0.6)),
    *((activation, 0.4), (resize, 1), (pad, 1.5), (pooled, 0.3), (quantized, 0.5), (color_matrix, 0.4), (there_and_back, 0.5)),
)


def decorated(g: Graph) -> None:
    """One step that keeps the layout."""
    from tests.support.graphs.wrap import wrapped

    steps = [*EVERYWHERE, *(ON_FLOATS if g.dtype == "f4" else ())]
    (step,) = g.chance.choices([step for step, _ in steps], [weight for _, weight in steps])
    wrapped(g, lambda: step(g))


def unsqueezed(g: Graph) -> None:
    g.features.add("no batch axis")
    if g.opset < 13:
        g.step("Unsqueeze", axes="N" + g.axes)
        g.nodes[-1].attribute.append(helper.make_attribute("axes", [0]))  # a name of `step`, too
    else:
        g.step("Unsqueeze", g.ints(0), axes="N" + g.axes)


def moved(g: Graph, axes: str) -> None:
    g.step("Transpose", perm=[g.axes.index(letter) for letter in axes], axes=axes)


def reshaped(g: Graph, shape: list[int], axes: str) -> None:
    g.step("Reshape", g.ints(*shape), axes=axes)


def towards(g: Graph, goal: str) -> None:
    """One move nearer to the layout that the kernels take."""
    match g.axes, goal:
        case "CHW" | "HWC", _:
            unsqueezed(g) if g.axes == "CHW" or g.maybe(0.5) else moved(g, "CHW")
        case "NHWC", _:
            moved(g, "NCHW")
        case "NTCHW", "NCHW":
            reshaped(g, [-1, g.channels, SIDE, SIDE], "NCHW")
            g.features.add("frames in the batch")
        case "NTHWC", _:
            moved(g, "NTCHW")
        case "NTCHW", "NCTHW":
            moved(g, "NCTHW")
        case "NCTHW", "NCHW":
            moved(g, "NTCHW")


def unfolded(g: Graph, layout: str) -> None:
    """What has frames or pixels in the axis of the channels becomes an image."""
    if layout == "(TC)HW":
        g.features.add("frames in the batch")
        reshaped(g, [-1, g.channels, SIDE, SIDE], "NCHW")
    elif layout == "N(TC)HW":
        reshaped(g, [-1, FRAMES, g.channels, SIDE, SIDE], "NTCHW")
    elif layout == "N(CHW)":
        reshaped(g, [-1, g.channels, SIDE, SIDE], "NCHW")
    elif layout == "N(HWC)":
        reshaped(g, [-1, SIDE, SIDE, g.channels], "NHWC")


def front(g: Graph, layout: str, goal: str) -> None:
    """From the input to a float value of the layout `goal`."""
    if "(" in layout:
        unfolded(g, layout)
    while True:
        if g.maybe(0.3):
            decorated(g)
        todo = [lambda: cast(g)] * (g.dtype != "f4") + [lambda: towards(g, goal)] * (g.axes != goal)
        if not todo:
            break
        g.chance.choice(todo)()
    while g.maybe(0.4):
        decorated(g)
