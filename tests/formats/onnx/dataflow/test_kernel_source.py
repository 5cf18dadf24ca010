"""Kernels that nodes make of a stored tensor: its layout in the file, and conversions that onnx's reference computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from chkpt_channels import UnsupportedError, convert, verify
from chkpt_channels.core.layout import Layout
from chkpt_channels.formats.onnx.dataflow.kernel_source import kernel_source
from tests.support.onnx_models import Open, floats, initializers, ints, model, node, noise, opened, run

KERNEL = noise(5, 3, 2, 2)
LAST = [node("Conv", ["image", "x"], ["out"], pads=[1] * 4)]
Case = tuple[list[NodeProto], dict[str, np.ndarray], str | None]
MADE: dict[str, Case] = {
    "itself": ([], {"x": KERNEL}, "OIHW"),
    "Identity": ([node("Identity", ["k"], ["x"])], {"k": KERNEL}, "OIHW"),
    "Cast": ([node("Cast", ["k"], ["x"], to=1)], {"k": KERNEL.astype("f2")}, "OIHW"),
    "HWIO": ([node("Transpose", ["k"], ["x"], perm=[3, 2, 0, 1])], {"k": KERNEL.transpose(2, 3, 1, 0)}, "HWIO"),
    "OHWI": ([node("Transpose", ["k"], ["x"], perm=[0, 3, 1, 2])], {"k": KERNEL.transpose(0, 2, 3, 1)}, "OHWI"),
    "a matrix": ([node("Reshape", ["k", "to"], ["x"])], {"k": KERNEL.reshape(5, 12), "to": ints(5, 3, 2, 2)}, "O(IHW)"),
    "a matrix of the rest": (
        [node("Reshape", ["k", "to"], ["x"])], {"k": KERNEL.reshape(5, 12), "to": ints(0, -1, 2, 2)}, "O(IHW)",
    ),
    "a matrix and what is left": (
        [node("Reshape", ["k", "to"], ["x"])], {"k": KERNEL.reshape(5, 12), "to": ints(5, -1, 2, 2)}, "O(IHW)",
    ),
    "windows as one axis": ([node("Reshape", ["k", "to"], ["x"])], {"k": KERNEL.reshape(5, 3, 4), "to": ints(5, 3, 2, 2)}, None),
    "a gain": ([node("Mul", ["k", "g"], ["x"])], {"k": KERNEL, "g": noise(5, 1, 1, 1)}, "OIHW"),
    "a gain in front": ([node("Mul", ["g", "k"], ["x"])], {"k": KERNEL, "g": floats(0.5)}, "OIHW"),
    "divided": ([node("Div", ["k", "g"], ["x"])], {"k": KERNEL, "g": floats(0.5)}, "OIHW"),
    "a gain for each channel": ([node("Mul", ["k", "g"], ["x"])], {"k": KERNEL, "g": noise(3, 1, 1)}, None),
    "a matrix with a gain, turned": (
        [node("Mul", ["k", "g"], ["y"]), node("Reshape", ["y", "to"], ["z"]), node("Transpose", ["z"], ["x"], perm=[3, 0, 1, 2])],
        {"k": noise(12, 5), "g": floats(0.5), "to": ints(3, 2, 2, 5)},
        "(IHW)O",
    ),
}  # fmt: skip
CONVERSIONS: tuple[tuple[Any, str], ...] = ((4, "zero"), ("gray", "sum"), ("gray", "auto"), ("bgr", "auto"))


@pytest.mark.parametrize("name", MADE)
def test_the_layout_of_what_is_stored(name: str, source: Open):
    nodes, weights, expected = MADE[name]
    loaded = opened(source, model([*nodes, *LAST], weights))
    found = kernel_source(loaded.model, "x")
    assert found
    assert (found.weight.name, found.weight.shape) == ("k" if nodes else "x", (5, 3, 2, 2))
    assert found.layout(Layout("OIHW")) == (expected and Layout(expected))


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(("to", "method"), CONVERSIONS)
def test_they_are_edited_or_left_alone(to: Any, method: str, name: str, tmp_path: Path):
    """Where no kernel edit is right the graph stacks toward gray, and an adapter is put in front otherwise."""
    nodes, weights, layout = MADE[name]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model([*nodes, *LAST], weights, inferred=True), path)
    if layout is None and method != "auto":
        with pytest.raises(UnsupportedError, match="no kernel edit is exact"):
            convert(path, out, to, method=method)
        return
    report = convert(path, out, to, method=method)
    matrix, after = np.array(report.result()["matrix"], np.float32), onnx.load(out)
    onnx.checker.check_model(after, full_check=True)
    image = noise(1, matrix.shape[1], 8, 8, seed=2)
    (old,), (new,) = run(onnx.load(path), np.einsum("ij,bjhw->bihw", matrix, image)), run(after, image)
    np.testing.assert_allclose(new, old, atol=1e-5 if name != "Cast" else 1e-2)
    assert verify(path, out, to, method=method).ok


def test_a_gain_that_is_as_large_as_the_new_kernel(tmp_path: Path):
    """Which of the two is the kernel does not show in the result."""
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    nodes = [node("Mul", ["g", "k"], ["x"]), node("Conv", ["image", "x"], ["out"])]
    onnx.save(model(nodes, {"k": noise(5, 3, 1, 1), "g": noise(5, 1, 1, 1)}), path)
    assert convert(path, out, "gray").in_channels == (3, 1)
    gray = noise(1, 1, 8, 8, seed=2)
    (old,), (new,) = run(onnx.load(path), gray.repeat(3, 1)), run(onnx.load(out), gray)
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert verify(path, out, "gray").ok


def test_what_is_computed_for_other_layers_too_is_not_edited(tmp_path: Path):
    nodes = [
        *(node("Transpose", ["k"], ["x"], perm=[0, 3, 1, 2]), node("Conv", ["image", "x"], ["a"], pads=[1] * 4)),
        *(node("ReduceMax", ["x"], ["b"], keepdims=0), node("Mul", ["a", "b"], ["out"])),
    ]
    path = tmp_path / "in.onnx"
    onnx.save(model(nodes, {"k": KERNEL.transpose(0, 2, 3, 1)}), path)
    with pytest.raises(UnsupportedError, match="k: this kernel is computed for other layers too: no kernel edit is exact"):
        convert(path, tmp_path / "4.onnx", 4, method="repeat")
    assert convert(path, tmp_path / "gray.onnx", "gray").result()["method"] == "stack"


def test_constants_before_a_computed_kernel_are_not_folded_into_it(tmp_path: Path):
    """Its values and its taps are not those that are stored."""
    nodes = [node("Sub", ["image", "m"], ["y"]), node("Mul", ["k", "g"], ["x"]), node("Conv", ["y", "x"], ["out"], pads=[1] * 4)]
    path = tmp_path / "in.onnx"
    onnx.save(model(nodes, {"k": KERNEL, "g": noise(5, 1, 1, 1), "m": noise(3, 1, 1)}), path)
    with pytest.raises(UnsupportedError, match="no kernel edit is exact"):
        convert(path, tmp_path / "4.onnx", 4, method="repeat")
    assert convert(path, tmp_path / "gray.onnx", "gray").result()["method"] == "broadcast"


def test_a_bias_is_of_the_type_that_the_convolution_takes(tmp_path: Path):
    """The kernel is stored in half of the bits, and cast."""
    nodes = [node("Sub", ["image", "m"], ["y"]), node("Cast", ["k"], ["x"], to=1), node("Conv", ["y", "x"], ["out"])]
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model(nodes, {"k": KERNEL.astype("f2"), "m": noise(3, 1, 1)}), path)
    convert(path, out, 4)
    assert {name: value.dtype for name, value in initializers(onnx.load(out)).items()}["k_bias"] == np.float32
    matrix, image = np.array([[0.75, 0, 0, 0.75], [0, 0.75, 0, 0], [0, 0, 0.75, 0]], np.float32), noise(1, 4, 8, 8, seed=3)
    (old,), (new,) = run(onnx.load(path), np.einsum("ij,bjhw->bihw", matrix, image)), run(onnx.load(out), image)
    np.testing.assert_allclose(new, old, atol=2e-2)


UNKNOWN: dict[str, list[NodeProto]] = {
    "what is fed": [node("Identity", ["image"], ["x"])],
    "two of one size": [node("Mul", ["k", "k"], ["y"]), node("Add", ["y", "k"], ["x"])],
    "a circle": [node("Identity", ["x"], ["y"]), node("Cast", ["y"], ["x"], to=1)],
    "a shape that is computed": [node("Shape", ["k"], ["to"]), node("Reshape", ["k", "to"], ["x"])],
    "no such order": [node("Transpose", ["k"], ["x"], perm=[0, 0, 1, 2])],
    "another count": [node("Reshape", ["k", "five"], ["x"])],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_followed(name: str, source: Open):
    loaded = opened(source, model([*UNKNOWN[name], *LAST], {"k": KERNEL, "five": ints(5, 5)}))
    assert kernel_source(loaded.model, "x") is None
