"""The graph of a seed: images, what stands in front, first convolutions, and what follows them."""

from __future__ import annotations

from random import Random

from onnx import helper

from tests.support.graphs.draw import KINDS, Graph, Image
from tests.support.graphs.front import front, roi
from tests.support.graphs.stems import MADE, stem
from tests.support.graphs.wrap import unsorted, wrapped

FLAT = {"NCHW": 10, "NHWC": 4, "CHW": 1, "HWC": 1.2, "N(CHW)": 0.4, "N(HWC)": 0.3, "NTCHW": 0.7, "(TC)HW": 0.3}
VIDEO = {"NCTHW": 0.7, "NTCHW": 0.7, "NTHWC": 0.4, "N(TC)HW": 0.3}
LAYOUTS = [(layout, "NCHW", share) for layout, share in FLAT.items()] + [
    (layout, "NCTHW", share) for layout, share in VIDEO.items()
]
NAMES = ("image", "input", "images", "x", "pixel_values", "input_1:0")


def image(g: Graph, layout: str, channels: int) -> Image:
    """An input, and the path that begins at it."""
    taken = {image.name for image in g.images}
    dtype = g.chance.choices(("f4", "u1", "f2", "f8"), (7, 2.5, 0.5, 0.3))[0]
    made = Image(g.chance.choice([name for name in NAMES if name not in taken]), layout, channels, dtype)
    g.declare(made)
    g.value, g.axes, g.channels, g.dtype = made.name, layout, channels, dtype
    if dtype == "u1":
        g.features.add("bytes")
    return made


def branch(g: Graph, layout: str, goal: str, channels: int) -> str:
    """An image and its stem; what the stem makes."""
    image(g, layout, channels)
    g.features.add(f"image {layout}")
    front(g, layout, goal)
    wrapped(g, lambda: stem(g))
    return g.value


def joined(g: Graph, parts: list[str]) -> None:
    """What several stems make, as vectors where their sizes differ."""
    pooled = [g.node("GlobalAveragePool", [part]) for part in parts]
    g.value = g.node("Concat", pooled, axis=1)
    g.outputs = {g.value: 0, **{g.node("Relu", [part]): 2 for part in parts}}


def several(g: Graph, channels: int) -> None:
    """Two images of one kind through one kernel, an image and its depth, an image and a mask, and numbers beside an image."""
    match g.chance.choice(("siblings", "depth", "depth", "numbers")):
        case "siblings":
            g.features.add("two images, one kernel")
            weights = g.stored(g.noise(MADE, channels, 3, 3), plain=True)
            parts = []
            for _ in range(2):
                image(g, "NCHW", channels)
                front(g, "NCHW", "NCHW")
                parts.append(g.node("Conv", [g.value, weights], pads=[1] * 4) if g.channels == channels else branch_end(g))
            joined(g, parts)
        case "depth":
            g.features.add("images of two counts")
            joined(
                g, [branch(g, "NCHW", "NCHW", count) for count in g.chance.choice(((channels, 1), (1, channels), (channels, 2)))]
            )
        case _:
            g.features.add("numbers beside the image")
            g.others["meta"] = g.noise(1, 5)
            g.inputs.append(helper.make_tensor_value_info("meta", KINDS["f4"], [1, 5]))
            beside = g.node("MatMul", ["meta", g.stored(g.noise(5, MADE), plain=True)])
            made = branch(g, "NCHW", "NCHW", channels)
            g.outputs = {
                g.node("Add", [g.node("GlobalAveragePool", [made]), g.node("Reshape", [beside, g.ints(1, MADE, 1, 1)])]): 0,
                made: 2,
            }


def branch_end(g: Graph) -> str:
    """A stem of its own, where the channels have changed on the way."""
    stem(g)
    return g.value


def trunk(g: Graph, spatial: int) -> None:
    """What follows: a second convolution, and where the image itself is used once more."""
    value = g.node("Relu", [g.value])
    value = g.node("Conv", [value, g.stored(g.noise(3, MADE, *[1] * spatial), plain=True)])
    first = g.images[0]
    if spatial == 2 and first.layout == "NCHW" and "shape: none" not in g.features and g.maybe(0.15):
        g.features.add("the image's size is read")
        height = g.node("Slice", [g.node("Shape", [first.name]), g.ints(2), g.ints(4), g.ints(0)])
        sizes = g.node("Concat", [g.ints(1, 3), height], axis=0)
        value = g.node("Resize", [value, roi(g), roi(g), sizes], mode="nearest")
    elif spatial == 2 and first.layout == "NCHW" and first.dtype == "f4" and first.channels == 3 and g.maybe(0.06):
        g.features.add("the image past the stem")
        sizes = g.node("Shape", [value])
        value = g.node("Add", [value, g.node("Resize", [first.name, roi(g), roi(g), sizes], mode="nearest")])
    g.outputs = {value: spatial}


def drawn(seed: int, *, dtype: str = "") -> Graph:
    """The graph of a seed. With `dtype` images of bytes have this type, and their casts do nothing."""
    chance = Random(seed)
    g = Graph(chance, dtype=dtype)
    channels = chance.choices((3, 1, 4, 6), (8, 1.2, 1, 0.4))[0]
    if g.maybe(0.15):
        several(g, channels)
    else:
        ((layout, goal, _),) = chance.choices(LAYOUTS, [share for *_, share in LAYOUTS])
        branch(g, layout, goal, channels)
        trunk(g, len(goal) - 2)
    unsorted(g)
    return g
