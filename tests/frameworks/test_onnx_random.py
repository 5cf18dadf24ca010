"""Random ONNX graphs between the image and its kernels: converted and run by onnxruntime, or refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from onnx import helper  # noqa: E402 # behind importorskip

from chkpt_channels import UnsupportedError, convert, verify  # noqa: E402 # behind importorskip
from tests.frameworks.test_onnx_graphs import SIZE, ints, matrix, noise, run, save  # noqa: E402 # behind importorskip

Shape = list[int]
SEEDS = range(240)


class Graph:
    """Nodes and weights, with the shape of the last value."""

    def __init__(self, choose: random.Random, channels: int) -> None:
        self.choose, self.channels = choose, channels
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.value, self.shape = "image", [1, channels, SIZE, SIZE]
        self.linear = True

    def add(self, op: str, inputs: list[str], shape: Shape, **attributes: object) -> str:
        self.value, self.shape = f"v{len(self.nodes)}", shape
        self.nodes.append(helper.make_node(op, inputs, [self.value], **attributes))
        return self.value

    def stored(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = value
        return name

    def axis(self) -> int:
        return self.choose.randrange(len(self.shape))

    def transpose(self) -> None:
        order = self.choose.sample(range(len(self.shape)), len(self.shape))
        self.add("Transpose", [self.value], [self.shape[k] for k in order], perm=order)

    def reshape(self) -> None:
        """An axis cut in two, or two made one; the batch or one size left to the runtime, or read off the value's own shape."""
        k, shape = self.axis(), list(self.shape)
        if shape[k] % 2 == 0 and len(shape) < 6:
            shape[k : k + 1] = self.choose.choice([[shape[k] // 2, 2], [2, shape[k] // 2]])
        elif k + 1 < len(shape):
            shape[k : k + 2] = [shape[k] * shape[k + 1]]
        asked = list(shape)
        if self.choose.random() < 0.4:
            asked[self.choose.randrange(len(asked))] = -1
        self.add("Reshape", [self.value, self.stored(ints(*asked))], shape)

    def fold_computed(self) -> None:
        k, shape, before = self.axis(), list(self.shape), self.value
        if k + 1 == len(shape):
            return
        sizes = self.add("Shape", [before], [len(shape)])
        parts = [self.add("Gather", [sizes, self.stored(ints(i))], [1]) for i in range(len(shape))]
        folded = self.add("Mul", parts[k : k + 2], [1])
        target = self.add("Concat", [*parts[:k], folded, *parts[k + 2 :]], [len(shape) - 1], axis=0)
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
        self.add("Reshape", [before, target], shape)

    def halves(self) -> None:
        k, onto, shape, before = self.axis(), self.axis(), list(self.shape), self.value
        if shape[k] % 2:
            return
        shape[k] //= 2
        ends = [self.stored(ints(n)) for n in (np.iinfo(np.int64).max, k, 2)]
        parts = [self.add("Slice", [before, self.stored(ints(i)), *ends], shape) for i in (0, 1)]
        self.add("Concat", parts, [n * (1 + (i == onto)) for i, n in enumerate(shape)], axis=onto)

    def pad(self) -> None:
        k = self.axis()
        pads = [0] * 2 * len(self.shape)
        pads[k] = 1
        self.add("Pad", [self.value, self.stored(ints(*pads))], [n + (i == k) for i, n in enumerate(self.shape)])

    def constants(self) -> None:
        """A constant for each position of one axis: of the channels it is folded, of pixels it is no map of the channels."""
        k, shape = self.axis(), [1] * len(self.shape)
        shape[k] = self.shape[k]
        self.linear &= shape[k] in (1, self.channels)
        op = self.choose.choice(["Mul", "Sub"])
        self.add(op, [self.value, self.stored(noise(*shape) + 1)], self.shape)

    def number(self) -> None:
        self.add(self.choose.choice(["Add", "Mul"]), [self.value, self.stored(np.array(0.5, np.float32))], self.shape)

    def bend(self) -> None:
        self.linear = False
        self.add("Sigmoid", [self.value], self.shape)

    def resize(self) -> None:
        if len(self.shape) == 4:
            shape = [*self.shape[:2], 2 * self.shape[2], self.shape[3]]
            self.add("Resize", [self.value, "", "", self.stored(ints(*shape))], shape)

    def flip(self) -> None:
        k = self.axis()
        self.add("Gather", [self.value, self.stored(ints(*range(self.shape[k]))[::-1].copy())], self.shape, axis=k)

    def end(self) -> None:
        if len(self.shape) == 4:
            pads = self.choose.choice([[0] * 4, [1] * 4])
            window = [min(3, n) for n in self.shape[2:]]
            self.add("Conv", [self.value, self.stored(noise(5, self.shape[1], *window))], [], pads=pads)
        else:
            self.add("MatMul", [self.value, self.stored(noise(self.shape[-1], 5))], [])
        self.nodes[-1].output[0] = "out"


STEPS = (
    *(Graph.transpose, Graph.reshape, Graph.reshape, Graph.fold_computed, Graph.halves, Graph.pad),
    *(Graph.constants, Graph.number, Graph.bend, Graph.resize, Graph.flip),
)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_graph_is_converted_exactly_or_refused(seed, tmp_path):
    choose = random.Random(seed)
    graph = Graph(choose, choose.choice([1, 3, 3, 4]))
    for step in choose.choices(STEPS, k=choose.randrange(1, 5)):
        step(graph)
    graph.end()
    source = save(tmp_path / "in.onnx", graph.nodes, graph.weights, [1, graph.channels, SIZE, SIZE])
    for to, method in ((1, "auto"), (1, "sum"), (3, "auto"), (4, "auto")):
        if to != graph.channels:
            compare(graph, source, tmp_path / f"{to}{method}.onnx", to, method)


def compare(graph: Graph, source: Path, out: Path, to: int, method: str) -> None:
    try:
        report = convert(source, out, to=to, method=method)
    except UnsupportedError:
        assert not out.exists()
        return
    if report.in_channels[0] != graph.channels:  # a Conv says that it takes the columns for channels: so it does
        return
    assert verify(source, out, to, method=method).ok
    if onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_value != 1:  # or that it takes the batch for them
        return
    image = np.random.default_rng(1).random((1, to, SIZE, SIZE), np.float32)
    before = run(source, np.einsum("ij,bjhw->bihw", matrix(graph.channels, to), image).astype(np.float32))[0]
    after = run(out, image)[0]
    assert before.shape == after.shape
    at_border = "border_error" in {warning.code for warning in report.warnings}
    if not at_border and (to == 1 or graph.linear):
        assert np.abs(before - after).max() <= 1e-4 * max(np.abs(before).max(), 1e-3)
