"""The convolution that can be taken out, what goes with it, and the walk from what it gives."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto

from chkpt_channels import UnsupportedError
from chkpt_channels.core.tensors import Adapter
from chkpt_channels.formats.onnx.dataflow.folding import fold
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from tests.support.onnx_models import Dims, Open, floats, model, node, noise, opened

WEIGHTS = {"a": noise(3, 4, 1, 1), "t": floats(1, 2, 3), "w": noise(6, 3, 3, 3), "m": noise(1, 3, 1, 1)}
FRONT, STEM = node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["x", "w"], ["out"])


def folded(source: Open, nodes: list[NodeProto], shape: Dims = (1, 4, 8, 8), **weights: np.ndarray) -> tuple[Adapter, ImageTrace]:
    checkpoint = opened(source, model(nodes, {**WEIGHTS, **weights}, shape))
    users = [reached for reached in checkpoint.graph.paths[0].reached if reached.kernel and reached.kernel.name == "a"]
    return fold(checkpoint.model, users, checkpoint.location.at("a"), checkpoint.load_weight)


def test_what_goes_with_it(source: Open):
    adapter, path = folded(source, [FRONT, STEM])
    assert adapter == Adapter("x", "t", ("a", "t"))
    assert (path.image.name, path.image.dims, path.channel, path.count) == ("x", (1, 3, 8, 8), 1, 3)
    assert [(reached.node.outputs[0], reached.channels, reached.sizes) for reached in path.reached] == [("out", 3, (8, 8))]


def test_sizes_that_the_file_leaves_open(source: Open):
    assert folded(source, [FRONT, STEM], ("n", 4, "h", 8))[1].image.dims == (None, 3, None, 8)


def test_what_others_read_stays(source: Open):
    """A bias that an exporter merged with another one, and a kernel behind a node that makes it."""
    nodes = [FRONT, STEM, node("Conv", ["out", "v", "t"], ["more"])]
    assert folded(source, nodes, v=noise(3, 6, 1, 1))[0] == Adapter("x", "t", ("a",))
    nodes = [node("Identity", ["a"], ["k"]), node("Conv", ["image", "k"], ["x"]), STEM]
    assert folded(source, nodes)[0] == Adapter("x", "", ())


def test_operations_behind_it_are_its_own(source: Open):
    nodes = [node("Mul", ["image", "k"], ["i"]), node("Conv", ["i", "a"], ["r"]), node("Mul", ["r", "m"], ["x"]), STEM]
    path = folded(source, nodes, k=noise(1, 4, 1, 1))[1]
    assert [located.node.inputs[1] for located in path.operations] == ["m"]


REFUSED: dict[str, tuple[list[NodeProto], str]] = {
    "two nodes": ([FRONT, node("Conv", ["image", "a"], ["y"]), STEM], "a: is the kernel of 2 nodes: it is not folded"),
    "strides": ([node("Conv", ["image", "a"], ["x"], strides=[1, 2]), STEM], r"skips pixels by its strides \[1, 2\]"),
    "a scale": (
        [node("Mul", ["a", "k"], ["s"]), node("Conv", ["image", "s"], ["x"]), STEM],
        "is scaled or reshaped before the convolution",
    ),
    "a bias": (
        [node("Relu", ["t"], ["s"]), node("Conv", ["image", "a", "s"], ["x"]), STEM],
        "has a bias that is not stored: it is not folded",
    ),
    "an output": (
        [node("Conv", ["image", "a"], ["x"]), node("Identity", ["x"], ["out"])],
        "out: is an output that the adapter makes",
    ),
    "rounding": (
        [node("Conv", ["image", "a"], ["r"]), node("Cast", ["r"], ["i"], to=6), node("Cast", ["i"], ["x"], to=1), STEM],
        "i: this Cast rounds what the adapter gives",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_taken_out(source: Open, case: str):
    nodes, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        folded(source, nodes, k=floats(2))
