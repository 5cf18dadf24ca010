"""The adapter: a 1×1 convolution in front, judged by onnxruntime and Keras.

The reference is the old network on the adapter's own output, which is read from the graph: everything behind the adapter must be
as it was, and what the adapter gives must be A · x + t.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
ort = pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 # behind importorskip

from chkpt_channels import UnsupportedError, check, convert, verify  # noqa: E402 # behind importorskip

ort.set_default_logger_severity(4)
node = helper.make_node
SIZE = 8
Nodes = list[Any]
Weights = dict[str, np.ndarray]
KINDS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) - 0.4).astype(np.float32)


def save(path: Path, nodes: Nodes, weights: Weights, shape: list, *, kind: int = TensorProto.FLOAT, opset: int = 17) -> Path:
    """A model of these nodes from `image` to `out`, what is between declared."""
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    out = TensorProto.FLOAT16 if kind == TensorProto.FLOAT16 else TensorProto.FLOAT
    given, made = helper.make_tensor_value_info("image", kind, shape), helper.make_tensor_value_info("out", out, None)
    graph = helper.make_graph(nodes, "graph", [given], [made], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def run(model: Any, image: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"image": image}
    )


def in_front(old: Any, new: Any) -> tuple[Any, str]:
    """(the new model with what its adapter gives as its last output, the adapter's kernel)."""
    known = {value for n in old.graph.node for value in n.output}
    added = [n for n in new.graph.node if not known & {*n.output}]
    assert sum(n.op_type == "Conv" for n in added) == 1
    opened = onnx.ModelProto.FromString(new.SerializeToString())
    kind = TensorProto.FLOAT16 if new.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16 else TensorProto.FLOAT
    opened.graph.output.append(helper.make_tensor_value_info(added[-1].output[0], kind, None))
    return opened, next(n for n in added if n.op_type == "Conv").input[1]


def judge(
    before: Path, after: Path, matrix: Any, offset: Any = 0.0, *, axis: int = 1, exact: bool = False, scale: float = 1.0
) -> None:
    """Raise AssertionError unless the adapter gives A · x + t, the rest is the old network, and `verify` and `check` agree."""
    old, new = onnx.load(before), onnx.load(after)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(new, check_type=True, strict_mode=True, data_prop=True))
    kind = new.graph.input[0].type.tensor_type
    dims = [d.dim_value or 2 for d in kind.shape.dim]
    assert dims[axis] == len(matrix[0])
    image = (np.random.default_rng(1).random(dims) * scale).astype(KINDS[kind.elem_type])
    opened, _ = in_front(old, new)
    *outputs, adapted = run(opened, image)
    half = adapted.dtype == np.float16
    wanted = np.moveaxis(np.tensordot(np.asarray(matrix, np.float64), np.moveaxis(image, axis, 0).astype(np.float64), 1), 0, axis)
    wanted = wanted + np.reshape(offset, [-1 if k == axis else 1 for k in range(len(dims))])
    assert np.abs(adapted - wanted).max() <= (1e-3 if half else 1e-6) * np.abs(wanted).max()
    fed = adapted.astype(KINDS[kind.elem_type])
    assert np.array_equal(fed, adapted)
    for a, b in zip(run(old, fed), outputs, strict=True):
        assert np.abs(a).max() > 0
        assert (
            np.array_equal(a, b)
            if exact
            else np.abs(a.astype(np.float64) - b).max() <= (2e-3 if half else 1e-6) * np.abs(a).max()
        )


REPEAT = {4: [[0.75, 0, 0, 0.75], [0, 0.75, 0, 0], [0, 0, 0.75, 0]], 1: [[1], [1], [1]]}


def plain(path: Path, **more: Any) -> Path:
    """A padded stem behind a normalization."""
    mean, std, w = np.float32([0.4, 0.5, 0.6]).reshape(3, 1, 1), np.float32([0.2, 0.3, 0.4]).reshape(3, 1, 1), noise(6, 3, 3, 3)
    nodes = [node("Sub", ["image", "mean"], ["a"]), node("Div", ["a", "std"], ["b"])]
    nodes += [node("Conv", ["b", "w"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["out"])]
    return save(path, nodes, {"mean": mean, "std": std, "w": w}, ["N", 3, "H", "W"], **more)


TARGETS = {
    "4": ({"to": 4}, REPEAT[4]),
    "gray": ({"to": 1}, REPEAT[1]),
    "2": ({"to": 2}, [[1.5, 0], [0, 1.5], [1.5 * 0, 0]]),
    "bgr": ({"to": "bgr"}, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
    "select": ({"select": [2, 0]}, [[0, 1], [0, 0], [1, 0]]),
    "matrix": ({"matrix": [[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]]}, [[0.1, 0.2], [0.3, -0.4], [0.5, 0.6]]),
    "luma": ({"to": 1, "luma": "bt601"}, [[0.299], [0.587], [0.114]]),
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target(target: str, tmp_path: Path):
    options, matrix = TARGETS[target]
    before, after = plain(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    report = convert(before, after, method="adapter", **options)
    judge(before, after, matrix)
    assert report.kernels[0].method == "adapter"
    assert np.allclose(report.kernels[0].matrix, matrix)
    assert "as large as before" in report.warnings[-1].message
    assert verify(before, after, method="adapter", **options).ok
    assert not check(after, expect=len(matrix[0])).mismatches


def test_normalizations_outside_become_its_constant(tmp_path: Path):
    before, after, options = plain(tmp_path / "a.onnx"), tmp_path / "b.onnx", {"to": 1, "norm": "imagenet", "method": "adapter"}
    report = convert(before, after, **options)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    judge(before, after, (std.mean() / std)[:, None], (mean.mean() - mean) / std)
    assert report.kernels[0].offset
    assert verify(before, after, **options).ok


def last(path: Path, kind: int, *, swapped: bool = False) -> Path:
    """Channels last: [swap, Transpose,] Cast, a normalization, Transpose, Conv."""
    mean, w = np.float32([100, 110, 120]), noise(6, 3, 3, 3)
    front = [node("Gather", ["image", "order"], ["swapped"], axis=3)] if swapped else []
    front += [node("Slice", [front[0].output[0] if front else "image", "one", "end", "axes"], ["cut"])]
    front += [node("Cast", ["cut"], ["f"], to=TensorProto.FLOAT), node("Sub", ["f", "mean"], ["s"])]
    front += [node("Transpose", ["s"], ["t"], perm=[0, 3, 1, 2])]
    nodes = [*front, node("Conv", ["t", "w"], ["out"], pads=[1] * 4)]
    lists = {name: np.int64([value]) for name, value in (("one", 1), ("end", 1 << 40), ("axes", 1))}
    return save(path, nodes, {"mean": mean, "w": w, "order": np.int64([2, 1, 0]), **lists}, [2, SIZE, SIZE, 3], kind=kind)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
@pytest.mark.parametrize("swapped", [True, False])
def test_channels_last(kind: int, swapped: bool, tmp_path: Path):
    before, after = last(tmp_path / "a.onnx", kind, swapped=swapped), tmp_path / "b.onnx"
    convert(before, after, select=[2, 0, 1, 2], method="adapter")
    judge(before, after, [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], axis=3, scale=127)
    assert verify(before, after, select=[2, 0, 1, 2], method="adapter").ok
    assert not check(after, expect=4).mismatches


def test_auto_takes_it_where_a_kernel_edit_is_refused(tmp_path: Path):
    """A Gather that swaps the colors: toward gray `stack` stays the first choice."""
    before = last(tmp_path / "a.onnx", TensorProto.FLOAT, swapped=True)
    report = convert(before, tmp_path / "b.onnx", to=4)
    judge(before, tmp_path / "b.onnx", REPEAT[4], axis=3)
    assert report.kernels[0].method == "adapter"
    assert "Gather precedes the kernel and mixes" in report.why
    assert verify(before, tmp_path / "b.onnx", to=4).ok
    assert convert(before, tmp_path / "c.onnx", to=1).kernels[0].method == "stack"
    assert convert(before, tmp_path / "d.onnx", select=[1]).kernels[0].method == "adapter"
    judge(before, tmp_path / "d.onnx", [[0], [1], [0]], axis=3)
    assert convert(plain(tmp_path / "e.onnx"), tmp_path / "f.onnx", to=4).kernels[0].method == "repeat"


def test_a_half_precision_file(tmp_path: Path):
    w, scale = noise(6, 3, 3, 3).astype(np.float16), np.float16([1.5, 2, 3]).reshape(3, 1, 1)
    nodes = [node("Mul", ["image", "scale"], ["a"]), node("Conv", ["a", "w"], ["out"], pads=[1] * 4)]
    before = save(tmp_path / "a.onnx", nodes, {"scale": scale, "w": w}, [2, 3, SIZE, SIZE], kind=TensorProto.FLOAT16)
    for to in (1, 4):
        convert(before, tmp_path / f"{to}.onnx", to=to, method="adapter", norm="imagenet" if to == 1 else None)
        std, mean = np.array([0.229, 0.224, 0.225]), np.array([0.485, 0.456, 0.406])
        norm = ((std.mean() / std)[:, None], (mean.mean() - mean) / std) if to == 1 else (REPEAT[4], 0)
        judge(before, tmp_path / f"{to}.onnx", *norm)


def quantized(path: Path, channels: int) -> Path:
    """QDQ: image and kernel in int8, an int32 bias, behind a normalization."""
    rng = np.random.default_rng(5)
    w = rng.integers(-127, 128, (6, channels, 3, 3)).astype(np.int8)
    weights = {
        "xs": np.float32(0.02),
        "xz": np.int8(3),
        "ws": rng.random(6).astype(np.float32) / 50,
        "wz": np.zeros(6, np.int8),
        "w": w,
    }
    weights |= {
        "b": rng.integers(-500, 500, 6).astype(np.int32),
        "bs": np.float32(0.02) * weights["ws"],
        "bz": np.zeros(6, np.int32),
    }
    weights |= {"scale": np.linspace(1, 2, channels, dtype=np.float32).reshape(channels, 1, 1)}
    nodes = [node("Mul", ["image", "scale"], ["m"]), node("QuantizeLinear", ["m", "xs", "xz"], ["q"])]
    nodes += [node("DequantizeLinear", ["q", "xs", "xz"], ["x"]), node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0)]
    nodes += [node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0), node("Conv", ["x", "wd", "bd"], ["out"], pads=[1] * 4)]
    return save(path, nodes, weights, [2, channels, SIZE, SIZE])


@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 4)])
def test_a_quantized_network(old: int, new: int, tmp_path: Path):
    before, after = quantized(tmp_path / "a.onnx", old), tmp_path / "b.onnx"
    convert(before, after, to=new, method="adapter")
    judge(before, after, REPEAT[4] if old == 3 else [[0.2126, 0.7152, 0.0722]], exact=True)
    assert verify(before, after, to=new, method="adapter").ok


def integer(path: Path, kind: int) -> Path:
    """ConvInteger over the image in uint8: quantized by the graph, or as it comes."""
    w = np.random.default_rng(5).integers(0, 256, (6, 3, 3, 3)).astype(np.uint8)
    nodes = [node("DynamicQuantizeLinear", ["image"], ["q", "qs", "qz"])] if kind == TensorProto.FLOAT else []
    image, zero = ("q", ["qz", "z"]) if nodes else ("image", ["z", "z"])
    nodes += [node("ConvInteger", [image, "w", *zero], ["i"], pads=[1] * 4), node("Cast", ["i"], ["f"], to=TensorProto.FLOAT)]
    nodes += [node("Mul", ["f", "s"], ["out"])]
    return save(path, nodes, {"w": w, "z": np.uint8(127), "s": np.float32(0.01)}, [2, 3, SIZE, SIZE], kind=kind)


def test_products_of_integers(tmp_path: Path):
    before, after = integer(tmp_path / "a.onnx", TensorProto.FLOAT), tmp_path / "b.onnx"
    convert(before, after, to=4, method="adapter")
    judge(before, after, REPEAT[4], exact=True)
    report = convert(before, tmp_path / "c.onnx", to=4)
    assert "requantised" in {warning.code for warning in report.warnings}
    with pytest.raises(UnsupportedError, match="image is U8, and computed with before it is cast to float"):
        convert(integer(tmp_path / "d.onnx", TensorProto.UINT8), tmp_path / "e.onnx", to=4, method="adapter")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_the_second_conversion_edits_the_adapter(kind: int, tmp_path: Path):
    before, first = last(tmp_path / "a.onnx", kind), tmp_path / "b.onnx"
    convert(before, first, select=[2, 0, 1, 2], method="adapter")
    count = len(onnx.load(first).graph.node)
    for i, options in enumerate(
        ({"to": 1}, {"select": [3, 0]}, {"to": 1, "method": "adapter"}, {"select": [1, 0], "method": "adapter"})
    ):
        second = tmp_path / f"c{i}.onnx"
        convert(first, second, **options)
        assert len(onnx.load(second).graph.node) == count
        assert verify(first, second, **options).ok
        mapped = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]) @ (
            np.ones((4, 1)) if "to" in options else np.eye(4)[:, options["select"]]
        )
        judge(before, second, mapped, axis=3, scale=60)
