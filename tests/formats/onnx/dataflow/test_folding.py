"""The convolution that can be taken out, what goes with it, and the walk from what it gives."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, numpy_helper

from chkpt_channels import UnsupportedError
from chkpt_channels.core.tensors import Adapter, Window
from chkpt_channels.formats.onnx.dataflow.folding import fold
from chkpt_channels.formats.onnx.dataflow.trace import ImageTrace
from tests.support.onnx_models import Dims, Open, floats, ints, model, node, noise, opened

WEIGHTS = {"a": noise(3, 4, 1, 1), "t": floats(1, 2, 3), "w": noise(6, 3, 3, 3), "m": noise(1, 3, 1, 1)}
FRONT, STEM = node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["x", "w"], ["out"])


def folded(
    source: Open, nodes: list[NodeProto], shape: Dims = (1, 4, 8, 8), name: str = "a", **weights: np.ndarray
) -> tuple[Adapter, ImageTrace]:
    checkpoint = opened(source, model(nodes, {**WEIGHTS, **weights}, shape))
    users = [reached for reached in checkpoint.graph.paths[0].reached if reached.kernel and reached.kernel.name == name]
    return fold(checkpoint.model, users, checkpoint.location.at(name))


def test_what_goes_with_it(source: Open):
    adapter, path = folded(source, [FRONT, STEM])
    assert adapter == Adapter("x", "t", ("a", "t"))
    assert (path.image.name, path.image.dims, path.channel, path.count) == ("x", (1, 3, 8, 8), 1, 3)
    assert [(reached.node.outputs[0], reached.channels, reached.sizes) for reached in path.reached] == [("out", 3, (8, 8))]


def test_sizes_that_the_file_leaves_open(source: Open):
    assert folded(source, [FRONT, STEM], ("n", 4, "h", 8))[1].image.dims == (None, 3, None, 8)


def test_how_a_window_goes_into_the_kernel(source: Open):
    """Strides multiply, pads are those of the adapter beyond those of the kernel, and dilations have a common divisor."""
    front = node("Conv", ["image", "k"], ["r"], strides=[1, 2], dilations=[2, 1], pads=[2, 1, 2, 0])
    nodes = [front, node("Conv", ["r", "w"], ["out"], strides=[3, 1], dilations=[2, 3], pads=[1, 0, 0, 2])]
    adapter, path = folded(source, nodes, (1, 4, 20, 20), name="k", k=noise(3, 4, 3, 2))
    settings = {"kernel_shape": (5, 14), "strides": (3, 2), "dilations": (2, 1), "pads": (3, 1, 2, 4)}
    assert adapter.windows == {"w": Window((3, 2), (1, 1), (1, 6), settings, 2, ((2, -1), (3, 0)))}
    assert path.image.dims == (1, 3, 20, 10)


def test_zeros_between_are_part_of_the_border(source: Open):
    nodes = [node("Conv", ["image", "k"], ["r"]), node("Pad", ["r", "p"], ["x"]), STEM]
    adapter, _ = folded(source, nodes, name="k", k=noise(3, 4, 3, 3), p=ints(0, 0, 3, 1, 0, 0, 0, 2))
    settings = {"kernel_shape": (5, 5), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    assert adapter.windows == {"w": Window((3, 3), (1, 1), (1, 1), settings, 3, ((1, 0), (1, 0)))}


def test_constants_that_are_added_become_zero(source: Open):
    norm = {name: floats(1, 2, 3) for name in "nbvs"}
    nodes = [node("Conv", ["image", "k"], ["r"]), node("Sub", ["r", "m"], ["d"]), node("Mul", ["d", "f"], ["e"])]
    nodes += [node("BatchNormalization", ["e", *"nbvs"], ["x"]), STEM]
    adapter, _ = folded(source, nodes, name="k", k=noise(3, 4, 3, 3), f=noise(1, 3, 1, 1), **norm)
    assert adapter.windows["w"].zeros == ("m", "b", "v")


def test_pads_that_nodes_put_into_order(source: Open):
    """As PyTorch exports F.pad."""
    made = [node("ConstantOfShape", ["n"], ["z"]), node("Concat", ["p", "z"], ["c"], axis=0), node("Reshape", ["c", "s"], ["f"])]
    made += [node("Transpose", ["f"], ["g"], perm=[1, 0]), node("Reshape", ["g", "one"], ["h"])]
    nodes = [node("Conv", ["image", "k"], ["r"]), *made, node("Pad", ["r", "h"], ["x"]), STEM]
    numbers = {"n": ints(4), "p": ints(2, 1, 0, 1), "s": ints(-1, 2), "one": ints(-1)}
    assert folded(source, nodes, name="k", k=noise(3, 4, 3, 3), **numbers)[0].windows["w"].border == 2
    ones = node("ConstantOfShape", ["n"], ["z"], value=numpy_helper.from_array(np.array([1])))
    for other in (node("Range", ["p", "s", "n"], ["z"]), node("Cast", ["h"], ["z"], to=7), ones):
        nodes[1] = other
        with pytest.raises(UnsupportedError, match="this Pad follows an adapter that is not 1×1"):
            folded(source, nodes, name="k", k=noise(3, 4, 3, 3), **numbers)


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
    "negative pads": ([node("Conv", ["image", "a"], ["x"], pads=[0, -1, 0, 0]), STEM], r"crops by its pads \[0, -1, 0, 0\]"),
    "a flip": (
        [node("Conv", ["image", "a"], ["r"], pads=[1] * 4), node("Transpose", ["r"], ["x"], perm=[0, 1, 3, 2]), STEM],
        "w: takes the pixels in another order than the adapter",
    ),
    "too many taps": (
        [node("Conv", ["image", "many"], ["x"], pads=[8] * 4), STEM],
        "many: is a convolution of 289 pixels; 256 are the most",
    ),
    "too large a kernel": (
        [node("Conv", ["image", "large"], ["x"]), node("Conv", ["x", "w"], ["out"], dilations=[50, 50])],
        r"w: would need kernel_shape \[116, 116\], .*: no convolution is that large",
    ),
    "too much padding": (
        [node("Conv", ["image", "a"], ["x"], pads=[1 << 40] * 4), STEM],
        "w: would need .*: no convolution is that large",
    ),
    "a residual": (
        [node("Conv", ["image", "a"], ["r"], pads=[1] * 4), node("Add", ["r", "r"], ["x"]), STEM],
        "this Add follows an adapter that is not 1×1",
    ),
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
    name = next((name for n in nodes for name in n.input if name in ("large", "many")), "a")
    with pytest.raises(UnsupportedError, match=message):
        folded(source, nodes, name=name, k=floats(2), large=noise(3, 4, 16, 16), many=noise(3, 4, 17, 17))
