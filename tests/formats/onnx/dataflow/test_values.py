"""What is known of a value on the way: constants as scale and shift, layouts of kernels, and the stored tensor behind a name."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import PreprocessingOp
from chkpt_channels.formats.onnx.dataflow.values import (
    Flow,
    affine,
    after_constants,
    after_nonlinear,
    kernel_layout,
    product_layout,
)
from tests.support.onnx_models import Open, floats, model, node, noise, opened, run

VALUES = [0.5, -2.0, 4.0]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_scale_and_shift_are_what_the_operation_does(op: str, index: int):
    made = affine(op, index, VALUES)
    if (op, index) == ("Div", 0):
        assert made is None
        return
    scale, shift = made
    image = noise(1, 3, 4, 4, seed=1)
    inputs = ["image", "c"] if index else ["c", "image"]
    (out,) = run(model([node(op, inputs, ["out"])], {"c": floats(*VALUES).reshape(3, 1, 1)}), image)
    said = np.array(scale).reshape(3, 1, 1) * image + np.array(shift).reshape(3, 1, 1)
    assert np.abs(out - said).max() < 1e-6


@pytest.mark.parametrize("op", ["Pow", "Min", "Max", "Mod", "PRelu"])
def test_what_is_not_affine_has_no_scale(op: str):
    assert affine(op, 1, VALUES) is None


def test_a_division_by_nothing_has_no_scale():
    assert affine("Div", 1, [1.0, 0.0]) is None


SHIFT, SCALE = PreprocessingOp("a", "Sub", (1.0,), (-0.5,)), PreprocessingOp("b", "Mul", (2.0,), (0.0,))


def test_constants_are_kept_in_the_order_of_the_graph():
    assert after_constants(after_constants(Flow(()), SHIFT), SCALE).operations == (SHIFT, SCALE)


@pytest.mark.parametrize(
    ("operation", "padded"),
    [(SHIFT, False), (SCALE, True), (PreprocessingOp("c", "PRelu"), True)],
    ids=["shift", "scale", "neither"],
)
def test_zeros_that_were_put_around_the_image_stay_zeros_unless_they_are_shifted(operation: PreprocessingOp, padded: bool):
    assert after_constants(Flow((), padded=True), operation).padded == padded
    assert not after_constants(Flow(()), operation).padded


def test_constants_in_front_of_what_is_not_linear_are_no_longer_numbers(source: Open):
    (relu,) = opened(source, model([node("Relu", ["image"], ["out"])])).model.nodes
    flow = after_nonlinear(Flow((), operations=(SHIFT,)), relu)
    assert [(op.kind, op.scale, op.apart) for op in flow.operations] == [("Sub before a Relu", None, True), ("Relu", None, True)]
    assert flow.axes == ()


LAYOUTS: dict[str, tuple[NodeProto, tuple[int, ...], int, int, str | None]] = {
    "Conv": (node("Conv", ["image", "k"], ["out"]), (5, 3, 3, 3), 1, 1, "OIHW"),
    "Conv over a line": (node("Conv", ["image", "k"], ["out"]), (5, 3, 3), 1, 1, "OIW"),
    "Conv over a volume": (node("Conv", ["image", "k"], ["out"]), (5, 3, 3, 3, 3), 1, 1, "OIDHW"),
    "Conv over nothing": (node("Conv", ["image", "k"], ["out"]), (5, 3), 1, 1, None),
    "ConvTranspose": (node("ConvTranspose", ["image", "k"], ["out"]), (3, 5, 3, 3), 1, 1, "IOHW"),
    "ConvTranspose over a volume": (node("ConvTranspose", ["image", "k"], ["out"]), (3, 5, 3, 3, 3), 1, 1, "IODHW"),
    "QLinearConv": (node("QLinearConv", [*"abcdefgh"], ["out"]), (5, 3, 3, 3), 1, 1, "OIHW"),
    "colors fastest": (node("Conv", ["image", "k"], ["out"]), (5, 12, 3, 3), 4, 1, "O(GI)HW"),
    "colors slowest": (node("Conv", ["image", "k"], ["out"]), (5, 12, 3, 3), 1, 4, "O(IG)HW"),
    "colors between": (node("Conv", ["image", "k"], ["out"]), (5, 12, 3, 3), 2, 2, None),
    "folded in groups": (node("Conv", ["image", "k"], ["out"], group=2), (6, 6, 3, 3), 4, 1, None),
    "folded over a line": (node("Conv", ["image", "k"], ["out"]), (5, 12, 3), 4, 1, None),
    "folded and transposed": (node("ConvTranspose", ["image", "k"], ["out"]), (12, 5, 3, 3), 4, 1, None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_of_a_convolution(name: str, source: Open):
    made, shape, slower, faster, expected = LAYOUTS[name]
    loaded = opened(source, model([made], {"k": noise(*shape)})).model
    assert kernel_layout(loaded.nodes[0], loaded.weights["k"], slower, faster) == (expected and Layout(expected))


def gemm(**attributes: object) -> NodeProto:
    return node("Gemm", ["image", "k"], ["out"], **attributes)


MATMUL = node("MatMul", ["image", "k"], ["out"])
PRODUCTS: dict[str, tuple[NodeProto, np.ndarray, int, int, str | None]] = {
    "colors fastest": (MATMUL, noise(12, 5), 4, 1, "(HWI)O"),
    "colors slowest": (MATMUL, noise(12, 5), 1, 4, "(IHW)O"),
    "turned": (gemm(transB=1), noise(5, 12), 4, 1, "O(HWI)"),
    "turned, colors slowest": (gemm(transB=1), noise(5, 12), 1, 4, "O(IHW)"),
    "colors between": (MATMUL, noise(12, 5), 2, 2, None),
    "single pixels": (MATMUL, noise(3, 5), 1, 1, None),
    "the image turned": (gemm(transA=1), noise(12, 5), 4, 1, None),
    "alpha": (gemm(alpha=0.5), noise(12, 5), 4, 1, None),
    "beta": (gemm(beta=0.5), noise(12, 5), 4, 1, None),
    "several kernels": (MATMUL, noise(2, 12, 5), 4, 1, None),
    "whole numbers": (MATMUL, np.ones((12, 5), np.int32), 4, 1, None),
    "MatMulInteger": (node("MatMulInteger", ["image", "k"], ["out"]), noise(12, 5), 4, 1, None),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_layout_of_a_product(name: str, source: Open):
    made, kernel, slower, faster, expected = PRODUCTS[name]
    loaded = opened(source, model([made], {"k": kernel})).model
    found = product_layout(loaded.nodes[0], loaded.weights["k"], slower, faster)
    assert found == (expected and Layout(expected))
