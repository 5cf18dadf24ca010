"""A graph that is being drawn: nodes, stored weights, and the value that the next node takes.

Axes have letters: N batch, C channels, T frames, H and W pixels. A layout is written as einops does: "N(TC)HW" has frames and
channels in one axis, color fastest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from random import Random
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 20
BARE = frozenset(("NCHW", "NHWC", "CHW", "HWC"))
"""Layouts of images that may declare no sizes."""
FRAMES = 4
KINDS = {"f4": TensorProto.FLOAT, "f2": TensorProto.FLOAT16, "f8": TensorProto.DOUBLE, "u1": TensorProto.UINT8}


class Image(NamedTuple):
    """An input that is an image: its layout, channels, and element type as numpy spells it."""

    name: str
    layout: str
    channels: int
    dtype: str

    @property
    def groups(self) -> list[str]:
        """The letters of each axis."""
        return [many or one for many, one in re.findall(r"\((\w+)\)|(\w)", self.layout)]

    def shape(self, channels: int) -> list[int]:
        """Of an image with so many channels."""
        return [prod(size(letter, channels) for letter in group) for group in self.groups]


def size(letter: str, channels: int) -> int:
    """The length of an axis."""
    return {"N": 1, "T": FRAMES, "C": channels}.get(letter, SIDE)


class Graph:
    """Nodes in the order in which they are drawn; `features` are the words that the tally counts by."""

    def __init__(self, chance: Random, *, dtype: str = "") -> None:
        self.chance, self.forced = chance, dtype
        self.opset = chance.choice((11, 13, 13, 17, 17, 20))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.images: list[Image] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.others: dict[str, np.ndarray] = {}
        self.outputs: dict[str, int] = {}
        self.features: set[str] = set()
        self.value, self.axes, self.channels, self.dtype = "", "", 0, ""
        self.quantized = False
        self._numbers: Counter[str] = Counter()
        self._noise = np.random.default_rng(chance.getrandbits(32))

    def name(self, stem: str) -> str:
        self._numbers[stem] += 1
        return f"{stem}{self._numbers[stem]}"

    def maybe(self, share: float) -> bool:
        return self.chance.random() < share

    def noise(self, *shape: int) -> np.ndarray:
        return self._noise.normal(size=shape).astype("f4")

    def level(self, *shape: int) -> np.ndarray:
        """Numbers between a half and one and a half, as scales are."""
        return (self._noise.random(shape) + 0.5).astype("f4")

    def stored(self, value: np.ndarray, *, plain: bool = False) -> str:
        """A constant: an initializer, or what people have in its place."""
        value = np.asarray(value)
        if plain or value.dtype.kind == "i" or self.maybe(0.6):
            name = self.name("w")
            self.weights[name] = value
            return name
        self.features.add("constant nodes")
        if self.maybe(0.7):
            return self.node("Constant", [], value=numpy_helper.from_array(value))
        parts = [self.stored(part, plain=True) for part in (value * 2, np.array(2, value.dtype))]
        return self.node("Div", parts)

    def node(self, op: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """A node beside the path; its first output."""
        names = [self.name("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def step(self, op: str, *more: str, axes: str = "", channels: int = 0, **attributes: Any) -> None:
        """A node on the path."""
        self.value = self.node(op, [self.value, *more], **attributes)
        self.axes, self.channels = axes or self.axes, channels or self.channels

    @property
    def kind(self) -> int:
        """The element type of the path, as ONNX counts them."""
        return KINDS[self.forced if self.dtype == "u1" and self.forced else self.dtype]

    @property
    def shape(self) -> list[int]:
        return [size(letter, self.channels) for letter in self.axes]

    def number(self, value: float) -> str:
        return self.stored(np.array(value, self.dtype), plain=True)

    def ints(self, *numbers: int) -> str:
        return self.stored(np.array(numbers, np.int64), plain=True)

    def declare(self, image: Image) -> None:
        """An input of the graph, with its sizes declared, some of them, or none: where nothing says how pixels in a row are to be
        read, they are not drawn without sizes."""
        ways = ("all", "all", "all", "pixels free", "symbols", "none")
        name, how = image.name, self.chance.choice(ways if image.layout in BARE else ways[:4])
        dims: list[int | str] | None = list(image.shape(image.channels))
        if how == "pixels free":
            dims = [n if "C" in letters else letters for n, letters in zip(dims, image.groups, strict=True)]
        elif how == "symbols":
            dims = [f"{name}_{letters}" for letters in image.groups]
        elif how == "none":
            dims = None
        if how in ("symbols", "none"):
            self.features.add(f"shape: {how}")
        kind = KINDS[self.forced if image.dtype == "u1" and self.forced else image.dtype]
        self.inputs.append(helper.make_tensor_value_info(name, kind, dims))
        self.images.append(image)

    def model(self) -> onnx.ModelProto:
        made = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in self.outputs]
        for value in made:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        read = set(names_read(self.nodes))
        stored = [numpy_helper.from_array(value, name) for name, value in self.weights.items() if name in read]
        graph = helper.make_graph(self.nodes, "g", self.inputs, made, stored)
        return helper.make_model(graph, opset_imports=self.opsets(), ir_version=8, functions=self.functions)

    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        domains = {"": self.opset, "com.microsoft": 1} | ({"local": 1} if self.functions else {})
        return [helper.make_opsetid(domain, version) for domain, version in domains.items()]


def names_read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """What nodes and the branches in them read."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from names_read(attribute.g.node)
