"""Quantized kernels in their three forms: what is found, and that the edited model computes the new kernel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto

from chkpt_channels import UnsupportedError, convert, verify
from chkpt_channels.core.tensors import Edits, Quantization, TensorEdit
from chkpt_channels.formats.onnx.checkpoint import Onnx
from chkpt_channels.formats.onnx.quantization import output_scale, quantization
from chkpt_channels.transform.quantization import kernel, kernel_edits
from tests.support.onnx_models import (
    Open,
    Weights,
    declared,
    edited,
    floats,
    initializers,
    model,
    newer_onnx,
    node,
    noise,
    opened,
    run,
)

WHOLE = np.random.default_rng(1).integers(-120, 120, (5, 3, 3, 3), np.int8)
FILTERS = floats(0.01, 0.02, 0.03, 0.04, 0.05)
ZERO = np.array([1, 0, -1, 2, -2], np.int8)


def dequantized_kernel(
    scale: np.ndarray, zero: np.ndarray | None, *, bias: str = "", **attributes: int
) -> tuple[list[NodeProto], Weights]:
    """DequantizeLinear in front of a Conv; its bias is float, or whole numbers behind another DequantizeLinear."""
    made = [node("DequantizeLinear", ["q", "scale", *(["zero"] if zero is not None else [])], ["kernel"], **attributes)]
    weights = {"q": WHOLE, "scale": scale, **({} if zero is None else {"zero": zero})}
    if bias == "whole":
        made.append(node("DequantizeLinear", ["b", "bias_scale"], ["bias"], axis=0))
        weights |= {"b": np.array([100, -200, 300, -400, 500], np.int32), "bias_scale": np.float32(0.001) * scale}
    elif bias:
        weights |= {"bias": noise(5)}
    made.append(node("Conv", ["image", "kernel", *(["bias"] if bias else [])], ["out"]))
    return made, weights


FORMS: dict[str, tuple[tuple[list[NodeProto], Weights], Quantization | None]] = {
    "one scale": (dequantized_kernel(np.float32(0.02), None), Quantization("scale")),
    "one scale in a list": (dequantized_kernel(floats(0.02), None), Quantization("scale")),
    "a scale for each filter": (dequantized_kernel(FILTERS, ZERO, axis=0), Quantization("scale", "zero")),
    "counted from behind": (dequantized_kernel(FILTERS, ZERO, axis=-4), Quantization("scale", "zero")),
    "a float bias": (dequantized_kernel(FILTERS, None, bias="float", axis=0), Quantization("scale")),
    "a whole bias": (
        dequantized_kernel(FILTERS, None, bias="whole", axis=0),
        Quantization("scale", bias="b", bias_scale="bias_scale"),
    ),
    "a scale for each channel": (dequantized_kernel(floats(1, 2, 3), None), None),
    "a scale that is fed": (
        ([node("DequantizeLinear", ["q", "fed"], ["kernel"]), node("Conv", ["image", "kernel"], ["out"])], {"q": WHOLE}),
        None,
    ),
    "no DequantizeLinear": (
        ([node("Cast", ["q"], ["kernel"], to=1), node("Conv", ["image", "kernel"], ["out"])], {"q": WHOLE}),
        None,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_kernel_behind_dequantizelinear(name: str, source: Open):
    (nodes, weights), expected = FORMS[name]
    found = opened(source, model(nodes, weights, inputs={"fed": []})).model
    assert quantization(found, found.nodes[-1], found.weights["q"]) == expected


@pytest.mark.parametrize("to", [4, "bgr"])
def test_a_transposed_kernel_has_its_filters_second(to: Any, tmp_path: Path):
    """A scale for each input channel is no scale of filters."""
    weights = {"q": WHOLE[:3], "scale": FILTERS[:3], "zero": np.zeros(3, np.int8)}
    nodes = [
        node("DequantizeLinear", ["q", "scale", "zero"], ["kernel"], axis=1),
        node("ConvTranspose", ["image", "kernel"], ["out"]),
    ]
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model(nodes, weights, opset=19), source)
    matrix = np.array(convert(source, out, to).result()["matrix"], np.float32)
    image = noise(1, matrix.shape[1], 8, 8, seed=2)
    (old,), (new,) = run(onnx.load(source), np.einsum("ij,bjhw->bihw", matrix, image)), run(onnx.load(out), image)
    np.testing.assert_allclose(new, old, atol=(0.02 if to == 4 else 1e-6) * np.abs(old).max())
    nodes[0] = node("DequantizeLinear", ["q", "scale", "zero"], ["kernel"], axis=0)
    onnx.save(model(nodes, weights, opset=19), source)
    with pytest.raises(UnsupportedError, match="holds I8 numbers without a known scale"):
        convert(source, tmp_path / "refused.onnx", to, method="zero" if to == 4 else "auto")


QLINEAR = {
    **{"xs": np.float32(0.01), "xz": np.array(0, np.uint8), "q": WHOLE, "scale": FILTERS, "zero": np.zeros(5, np.int8)},
    **{"ys": np.float32(0.5), "yz": np.array(128, np.uint8), "b": np.array([1000, -2000, 3000, -4000, 5000], np.int32)},
}


def qlinear(*, bias: bool) -> list[NodeProto]:
    inputs = ["x", "xs", "xz", "q", "scale", "zero", "ys", "yz", *(["b"] if bias else [])]
    return [
        node("QuantizeLinear", ["image", "xs", "xz"], ["x"]),
        node("QLinearConv", inputs, ["y"]),
        node("DequantizeLinear", ["y", "ys", "yz"], ["out"]),
    ]


@pytest.mark.parametrize("bias", [False, True])
def test_a_qlinearconv(bias: bool, source: Open):
    found = opened(source, model(qlinear(bias=bias), QLINEAR)).model
    expected = Quantization("scale", "zero", bias="b" if bias else "")
    assert quantization(found, found.nodes[1], found.weights["q"]) == expected


def dynamic(scale: str, *, product: bool) -> list[NodeProto]:
    """As onnxruntime quantizes on the fly: the scale of the kernel meets that of the image behind the convolution."""
    nodes = [
        node("DynamicQuantizeLinear", ["image"], ["x", "xs", "xz"]),
        node("ConvInteger", ["x", "q", "xz", "zero"], ["y"]),
        node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    if product:
        return [*nodes, node("Mul", ["xs", scale], ["both"]), node("Mul", ["z", "both"], ["out"])]
    return [*nodes, node("Mul", ["z", scale], ["w"]), node("Mul", ["w", "xs"], ["out"])]


ON_THE_FLY = {"q": WHOLE, "zero": np.array(0, np.int8), "one": np.float32(0.02), "each": FILTERS.reshape(5, 1, 1)}


@pytest.mark.parametrize("product", [False, True], ids=["one by one", "as a product"])
@pytest.mark.parametrize("scale", ["one", "each"])
def test_a_convinteger(scale: str, product: bool, source: Open):
    found = opened(source, model(dynamic(scale, product=product), ON_THE_FLY)).model
    conv = found.nodes[1]
    assert quantization(found, conv, found.weights["q"]) == Quantization(scale, "zero")
    weight, readers = output_scale(found, conv)
    assert (weight and weight.name, readers) == (scale, [found.nodes[3]])


def with_bias(*, shared: bool) -> list[NodeProto]:
    """As onnxruntime quantized until 1.6: the bias is divided by the scales in the graph."""
    first, second = node("Mul", ["one", "xs"], ["s1"]), node("Mul", ["xs", "one"], ["s2"])
    return [
        *(node("DynamicQuantizeLinear", ["image"], ["x", "xs", "xz"]), first, *([] if shared else [second])),
        *(node("Div", ["bias", "s1"], ["b1"]), node("Floor", ["b1"], ["b2"]), node("Cast", ["b2"], ["b3"], to=6)),
        *(node("ConvInteger", ["x", "q", "xz", "zero"], ["y"]), node("Add", ["y", "b3"], ["w"])),
        *(node("Cast", ["w"], ["z"], to=1), node("Mul", ["z", "s1" if shared else "s2"], ["out"])),
    ]


@pytest.mark.parametrize(("to", "method"), [(4, "auto"), (4, "zero"), ("bgr", "auto"), ("gray", "sum")])
@pytest.mark.parametrize("shared", [False, True], ids=["two products", "one product"])
def test_a_convinteger_whose_bias_is_quantized_in_the_graph(shared: bool, to: Any, method: str, tmp_path: Path):
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model(with_bias(shared=shared), {**ON_THE_FLY, "bias": noise(1, 5, 1, 1)}), source)
    report = convert(source, out, to, method=method)
    matrix = np.array(report.result()["matrix"], np.float32)
    image = noise(1, matrix.shape[1], 8, 8, seed=2)
    (old,), (new,) = run(onnx.load(source), np.einsum("ij,bjhw->bihw", matrix, image)), run(onnx.load(out), image)
    np.testing.assert_allclose(new, old, atol=(1e-6 if to == "bgr" else 0.05) * np.abs(old).max())
    assert verify(source, out, to, method=method).ok


NO_SCALE: dict[str, list[NodeProto]] = {
    "given out": [node("ConvInteger", ["image", "q"], ["out"])],
    "read twice": [
        node("ConvInteger", ["image", "q"], ["y"]),
        node("Cast", ["y"], ["z"], to=1),
        node("Mul", ["z", "one"], ["out"]),
        node("Mul", ["z", "one"], ["other"]),
    ],
    "not multiplied": [
        node("ConvInteger", ["image", "q"], ["y"]),
        node("Cast", ["y"], ["z"], to=1),
        node("Add", ["z", "one"], ["out"]),
    ],
    "not cast": [node("ConvInteger", ["image", "q"], ["y"]), node("Mul", ["y", "one"], ["out"])],
    "by what is fed": [
        node("ConvInteger", ["image", "q"], ["y"]),
        node("Cast", ["y"], ["z"], to=1),
        node("Mul", ["z", "fed"], ["out"]),
    ],
    "two scales": [
        node("ConvInteger", ["image", "q"], ["y"]),
        node("Cast", ["y"], ["z"], to=1),
        node("Mul", ["one", "other_one"], ["both"]),
        node("Mul", ["z", "both"], ["out"]),
    ],
    "a scale for each column": [
        node("ConvInteger", ["image", "q"], ["y"]),
        node("Cast", ["y"], ["z"], to=1),
        node("Mul", ["z", "columns"], ["out"]),
    ],
}


@pytest.mark.parametrize("name", NO_SCALE)
def test_a_convinteger_whose_scale_is_not_known(name: str, source: Open):
    weights = {"q": WHOLE, "one": np.float32(1), "other_one": np.float32(2), "columns": noise(1, 1, 6)}
    found = opened(source, model(NO_SCALE[name], weights, inputs={"fed": []})).model
    assert quantization(found, found.nodes[0], found.weights["q"]) is None


def summed(checkpoint: Onnx) -> tuple[ModelProto, set[str]]:
    """The model with its one kernel summed over the channels, and what was edited for it."""
    (conv,) = checkpoint.graph.first_convs()
    values = kernel(checkpoint, conv)
    edits = kernel_edits(checkpoint, conv, TensorEdit((5, 1, 3, 3), lambda: values.sum(1, keepdims=True)))
    return edited(checkpoint, Edits(edits, channels=1)), set(edits)


EDITED: dict[str, tuple[Sequence[NodeProto], Weights, set[str]]] = {
    "one scale": (*FORMS["one scale"][0], {"q", "scale"}),
    "each filter": (*FORMS["a scale for each filter"][0], {"q", "scale"}),
    "float bias": (*FORMS["a float bias"][0], {"q", "scale"}),
    "whole bias": (*FORMS["a whole bias"][0], {"q", "scale", "b", "bias_scale"}),
    "QLinearConv": (qlinear(bias=False), QLINEAR, {"q", "scale"}),
    "QLinearConv, bias": (qlinear(bias=True), QLINEAR, {"q", "scale", "b"}),
    "ConvInteger": (dynamic("one", product=False), ON_THE_FLY, {"q", "one"}),
    "ConvInteger, each filter": (dynamic("each", product=True), ON_THE_FLY, {"q", "each"}),
}


@pytest.mark.parametrize("name", [pytest.param(one, marks=newer_onnx) if one.startswith("QLinear") else one for one in EDITED])
def test_an_edited_kernel_computes_what_the_old_one_did_on_gray(name: str, source: Open):
    nodes, weights, expected = EDITED[name]
    before = model(nodes, weights, opset=19, inferred=True)
    after, changed = summed(opened(source, before))
    assert changed == expected
    gray = (noise(1, 1, 8, 8, seed=3) + np.float32(0.4)) * 2
    (old,), (new,) = run(before, gray.repeat(3, 1)), run(after, gray)
    assert np.abs(old - new).max() <= 0.02 * np.abs(old).max() + (0.5 if name.startswith("QLinear") else 0)
    assert initializers(after)["q"].shape == (5, 1, 3, 3)
    assert declared(after)["image"] == [1, 1, 8, 8]


def test_a_bias_follows_the_scale_of_its_kernel(source: Open):
    """As it stands for bias · scale of the image · scale of the kernel: the value stays, its number does not."""
    before = model(*FORMS["a whole bias"][0])
    after, _ = summed(opened(source, before))
    old, new = initializers(before), initializers(after)
    assert not np.array_equal(old["scale"], new["scale"])
    assert np.allclose(new["bias_scale"] / old["bias_scale"], new["scale"] / old["scale"], rtol=1e-6)
    assert np.abs(new["b"] * new["bias_scale"] - old["b"] * old["bias_scale"]).max() <= new["bias_scale"].max()


def test_a_copied_channel_keeps_its_numbers_and_scales(source: Open):
    checkpoint = opened(source, model(*FORMS["a whole bias"][0]))
    (conv,) = checkpoint.graph.first_convs()
    values = kernel(checkpoint, conv)
    edits = kernel_edits(checkpoint, conv, TensorEdit((5, 2, 3, 3), lambda: values[:, [2, 0]]))
    after = initializers(edited(checkpoint, Edits(edits, channels=2)))
    assert np.array_equal(after["q"], WHOLE[:, [2, 0]])
    assert np.array_equal(after["scale"], FILTERS)
    assert after["b"].tolist() == [100, -200, 300, -400, 500]


def test_a_bias_that_does_not_fit_is_cut_at_the_limit(source: Open):
    nodes, weights = FORMS["a whole bias"][0]
    weights = {**weights, "q": np.full((5, 3, 3, 3), 1, np.int8), "b": np.full(5, (1 << 31) - 1, np.int32)}
    checkpoint = opened(source, model(nodes, weights))
    (conv,) = checkpoint.graph.first_convs()
    edits = kernel_edits(checkpoint, conv, TensorEdit((5, 1, 3, 3), lambda: np.full((5, 1, 3, 3), 0.001)))
    assert edits["b"].values().tolist() == [(1 << 31) - 1] * 5


def test_a_kernel_without_a_known_scale_cannot_be_read(source: Open):
    checkpoint = opened(source, model(FORMS["no DequantizeLinear"][0][0], {"q": WHOLE}))
    (conv,) = checkpoint.graph.first_convs()
    assert (checkpoint.graph.quantization(conv), kernel(checkpoint, conv)) == (None, None)


def test_a_scale_of_the_bias_that_cannot_follow_is_refused(source: Open):
    nodes, weights = FORMS["a whole bias"][0]
    checkpoint = opened(source, model(nodes, {**weights, "bias_scale": floats(0.001)}))
    (conv,) = checkpoint.graph.first_convs()
    with pytest.raises(UnsupportedError, match="bias_scale: has 1 number, and the kernel's scale 5") as refused:
        kernel_edits(checkpoint, conv, TensorEdit((5, 1, 3, 3), lambda: np.zeros((5, 1, 3, 3))))
    assert refused.value.hint == "--method adapter"


def test_an_input_that_is_left_out_is_nobodys_output(source: Open):
    """An output that is left out has no name either."""
    nodes, weights = dequantized_kernel(FILTERS, ZERO, axis=0)
    other = [node("DequantizeLinear", ["q2", "scale2"], ["b2"]), node("Dropout", ["out"], ["end", ""])]
    checkpoint = opened(source, model([*nodes, *other], {**weights, "q2": np.zeros(5, np.int32), "scale2": np.float32(1)}))
    (conv,) = checkpoint.graph.first_convs()
    assert checkpoint.graph.quantization(conv) == Quantization("scale", "zero")
    assert "" not in checkpoint.model.producers
    assert checkpoint.model.stored("") is None
