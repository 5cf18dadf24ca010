"""ONNX graphs node by node: what stands between the image and the kernels, converted and run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
ort = pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 # behind importorskip

from chkpt_channels import UnsupportedError, UsageError, convert, inspect, verify  # noqa: E402 # behind importorskip

SIZE = 8
Nodes = list[onnx.NodeProto]
Weights = dict[str, np.ndarray]
node = helper.make_node
ort.set_default_logger_severity(4)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) - 0.4).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def save(
    path: Path, nodes: Nodes, weights: Weights, shape: list, *, outputs: tuple[str, ...] = ("out",), opset: int = 17
) -> Path:
    """A model of these nodes from `image` to `outputs`."""
    given = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    if any(n.op_type == "If" for n in nodes):
        given.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", given, made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def run(path: Path, image: np.ndarray, **more: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image, **more})


def repeated(channels: int, old: int) -> np.ndarray:
    """A of `repeat`: the old channels that `channels` new ones stand for."""
    return np.array([[old / channels * (i == j % old) for j in range(channels)] for i in range(old)], np.float32)


def matrix(old: int, new: int) -> np.ndarray:
    if new == 1:
        return np.ones((old, 1), np.float32)
    return np.array([[0.2126, 0.7152, 0.0722]], np.float32) if (old, new) == (1, 3) else repeated(new, old)


def agrees(before: Path, after: Path, old: int, new: int, *, batch: int = 1, last: bool = False, tolerance: float = 1e-5) -> bool:
    """The converted model on x is the original on A · x, every output."""
    image = np.random.default_rng(3).random((batch, new, SIZE, SIZE), np.float32)
    mapped = np.einsum("ij,bjhw->bihw", matrix(old, new), image).astype(np.float32)
    if last:
        image, mapped = image.transpose(0, 2, 3, 1), mapped.transpose(0, 2, 3, 1)
    pairs = zip(run(before, mapped), run(after, image), strict=True)
    return all(np.abs(a - b).max() <= tolerance * np.abs(a).max() for a, b in pairs)


def shuffle(order: list[int], *, first: np.ndarray, second: np.ndarray) -> tuple[Nodes, Weights]:
    return [
        node("Reshape", ["image", "first"], ["cut"]),
        node("Transpose", ["cut"], ["turned"], perm=order),
        node("Reshape", ["turned", "second"], ["blocks"]),
    ], {"first": first, "second": second}


def blocks(c: int, *, fastest: bool, batch: int = 1, rank: int = 4) -> tuple[Nodes, Weights]:
    """Space to depth by Reshape, Transpose, Reshape: blocks of 2 × 2 as 4 c channels, or rows of patches."""
    order = [0, 3, 5, 1, 2, 4] if fastest else [0, 1, 3, 5, 2, 4]
    second = ints(-1, 4 * c, 4, 4)
    if rank == 3:
        order = [0, 2, 4, 3, 5, 1] if fastest else [0, 2, 4, 1, 3, 5]
        second = ints(batch, -1, 4 * c)
    return shuffle(order, first=ints(batch, c, 4, 2, 4, 2), second=second)


def conv(channels: int, source: str = "blocks") -> tuple[Nodes, Weights]:
    return [node("Conv", [source, "kernel"], ["out"], pads=[1, 1, 1, 1])], {"kernel": noise(5, channels, 3, 3)}


def joined(*parts: tuple[Nodes, Weights]) -> tuple[Nodes, Weights]:
    return [n for nodes, _ in parts for n in nodes], {name: w for _, weights in parts for name, w in weights.items()}


def matmul(c: int) -> tuple[Nodes, Weights]:
    return [node("MatMul", ["blocks", "kernel"], ["out"])], {"kernel": noise(4 * c, 5)}


def turned_matmul(c: int) -> tuple[Nodes, Weights]:
    nodes = [node("Transpose", ["kernel"], ["kernel_t"], perm=[1, 0]), node("MatMul", ["blocks", "kernel_t"], ["out"])]
    return nodes, {"kernel": noise(5, 4 * c)}


def flat_gemm(c: int) -> tuple[Nodes, Weights]:
    nodes = [node("Flatten", ["image"], ["flat"]), node("Gemm", ["flat", "kernel", "bias"], ["out"], transB=1)]
    return nodes, {"kernel": noise(5, c * SIZE * SIZE), "bias": noise(5)}


def focus(c: int) -> tuple[Nodes, Weights]:
    nodes = []
    for k, (y, x) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        nodes.append(node("Slice", ["image", f"at{y}", "end", "rows", "two"], [f"rows{k}"]))
        nodes.append(node("Slice", [f"rows{k}", f"at{x}", "end", "columns", "two"], [f"part{k}"]))
    nodes.append(node("Concat", [f"part{k}" for k in range(4)], ["blocks"], axis=1))
    named = {"at0": 0, "at1": 1, "end": np.iinfo(np.int64).max, "rows": 2, "columns": 3, "two": 2}
    return nodes, {name: ints(n) for name, n in named.items()}


def to_depth(c: int) -> tuple[Nodes, Weights]:
    return [node("SpaceToDepth", ["image"], ["blocks"], blocksize=2)], {}


def sized(c: int) -> tuple[Nodes, Weights]:
    return [node("Resize", ["image", "", "", "sizes"], ["blocks"])], {"sizes": ints(1, c, 12, 12)}


def computed(c: int) -> tuple[Nodes, Weights]:
    """TResNet's view(N, C, H // 2, 2, W // 2, 2) as it is traced with open sizes."""
    nodes, weights = [node("Shape", ["image"], ["shape"])], {"two": ints(2), "four": np.array(4, np.int64), "one": ints(0)}
    for k, name in enumerate("nchw"):
        weights[f"k{k}"] = np.array(k, np.int64)
        nodes.append(node("Gather", ["shape", f"k{k}"], [f"{name}_"]))
        nodes.append(node("Unsqueeze", [f"{name}_", "one"], [name]))
    nodes += [node("Div", ["h", "two"], ["h2"]), node("Div", ["w", "two"], ["w2"])]
    nodes.append(node("Concat", ["n", "c", "h2", "two", "w2", "two"], ["first"], axis=0))
    nodes += [node("Mul", ["c_", "four"], ["c4_"]), node("Unsqueeze", ["c4_", "one"], ["c4"])]
    nodes.append(node("Concat", ["n", "c4", "h2", "w2"], ["second"], axis=0))
    moved, _ = blocks(c, fastest=True)
    return [*nodes, *moved], weights


def partly_computed(c: int) -> tuple[Nodes, Weights]:
    """The batch is read off the image, the channels are a constant in the middle of a Concat."""
    nodes = [
        node("Shape", ["image"], ["shape"]),
        node("Slice", ["shape", "zero", "one"], ["n"]),
        node("Concat", ["n", "channels", "rest"], ["first"], axis=0),
    ]
    moved, weights = blocks(c, fastest=False)
    weights.pop("first")
    return [*nodes, *moved], {**weights, "zero": ints(0), "one": ints(1), "channels": ints(c), "rest": ints(4, 2, 4, 2)}


FOLDED: dict[str, Callable[[int], tuple[Nodes, Weights]]] = {
    "pixel_unshuffle": lambda c: joined(blocks(c, fastest=False), conv(4 * c)),
    "tresnet": lambda c: joined(blocks(c, fastest=True), conv(4 * c)),
    "focus": lambda c: joined(focus(c), conv(4 * c)),
    "SpaceToDepth": lambda c: joined(to_depth(c), conv(4 * c)),
    "patches, color fastest": lambda c: joined(blocks(c, fastest=True, rank=3), matmul(c)),
    "patches, color slowest": lambda c: joined(blocks(c, fastest=False, rank=3), matmul(c)),
    "patches, kernel turned": lambda c: joined(blocks(c, fastest=True, rank=3), turned_matmul(c)),
    "Flatten, Gemm": flat_gemm,
    "Resize to sizes": lambda c: joined(sized(c), conv(c)),
    "sizes computed": lambda c: joined(computed(c), conv(4 * c)),
    "sizes computed in part": lambda c: joined(partly_computed(c), conv(4 * c)),
}
LAYOUTS = {
    **dict.fromkeys(("tresnet", "focus", "SpaceToDepth", "sizes computed"), "O(GI)HW"),
    **dict.fromkeys(("pixel_unshuffle", "sizes computed in part"), "O(IG)HW"),
    "patches, color fastest": "(HWI)O",
    "patches, color slowest": "(IHW)O",
    "patches, kernel turned": "O(HWI)",
    "Flatten, Gemm": "O(IHW)",
    "Resize to sizes": "OIHW",
}


@pytest.mark.parametrize("to", [1, 4, 2])
@pytest.mark.parametrize("name", FOLDED)
def test_folded_channels_are_edited_with_the_shapes_that_count_them(name, to, tmp_path):
    nodes, weights = FOLDED[name](3)
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    report = convert(source, tmp_path / "out.onnx", to=to)
    assert [kernel.conv.layout for kernel in report.kernels] == [LAYOUTS[name]]
    assert {kernel.method for kernel in report.kernels} == {"sum" if to == 1 else "repeat"}
    assert agrees(source, tmp_path / "out.onnx", 3, to)
    assert verify(source, tmp_path / "out.onnx").ok
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


@pytest.mark.parametrize("name", ["pixel_unshuffle", "patches, color slowest", "Flatten, Gemm", "Resize to sizes", "focus"])
def test_folded_gray_becomes_rgb(name, tmp_path):
    nodes, weights = FOLDED[name](1)
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 1, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to="rgb")
    assert agrees(source, tmp_path / "out.onnx", 1, 3)


@pytest.mark.parametrize("name", ["sizes computed", "sizes computed in part", "focus"])
def test_sizes_that_the_file_leaves_open(name, tmp_path):
    nodes, weights = FOLDED[name](3)
    shape = ["batch", 3, SIZE, SIZE] if "part" in name else ["batch", 3, "height", "width"]
    source = save(tmp_path / "in.onnx", nodes, weights, shape)
    convert(source, tmp_path / "out.onnx", to=4)
    assert agrees(source, tmp_path / "out.onnx", 3, 4, batch=2)


def test_a_shape_that_serves_others_too_is_copied_for_them(tmp_path):
    """Two convolutions with one kernel, and one shape constant, each once at the image and once behind it."""
    nodes = [
        node("Reshape", ["image", "shape"], ["x"]),
        node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "kernel"], ["b"], pads=[1, 1, 1, 1]),
        node("Reshape", ["b", "shape"], ["out"]),
    ]
    weights = {"kernel": noise(3, 3, 3, 3), "shape": ints(1, 3, SIZE, SIZE)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    for to in (1, 4):
        convert(source, tmp_path / "out.onnx", to=to, force=True)
        assert agrees(source, tmp_path / "out.onnx", 3, to)
        assert inspect(tmp_path / "out.onnx").first_convs[0].tensor.shape == (3, to, 3, 3)


PLAIN = [node("Conv", ["x", "kernel"], ["out"])]
UNFIT: dict[str, tuple[Nodes, Weights, int]] = {
    "Pad on the channels": ([node("Pad", ["image", "pads"], ["x"])], {"pads": ints(0, 0, 0, 0, 0, 1, 0, 0)}, 4),
    "Slice of the channels": (
        [node("Slice", ["image", "from", "to", "axis"], ["x"])],
        {"from": ints(0), "to": ints(2), "axis": ints(1)},
        2,
    ),
    "Slice that turns the channels round": (
        [node("Slice", ["image", "from", "to", "axis", "step"], ["x"])],
        {"from": ints(-1), "to": ints(-9), "axis": ints(1), "step": ints(-1)},
        3,
    ),
    "Concat of what went two ways": (
        [node("Mul", ["image", "half"], ["y"]), node("Concat", ["y", "image"], ["x"], axis=1)],
        {"half": np.array(0.5, np.float32)},
        6,
    ),
    "Gather on the channels": ([node("Gather", ["image", "which"], ["x"], axis=1)], {"which": ints(2, 1, 0)}, 3),
    "Split of the channels": (
        [node("Split", ["image"], ["r", "g", "b"], axis=1), node("Concat", ["b", "g", "r"], ["x"], axis=1)],
        {},
        3,
    ),
    "Concat with more": ([node("Concat", ["image", "more"], ["x"], axis=1)], {"more": noise(1, 1, SIZE, SIZE)}, 4),
    "Expand by the shape": (
        [node("Shape", ["image"], ["s"]), node("Expand", ["two", "s"], ["y"]), node("Add", ["image", "y"], ["x"])],
        {"two": noise(1, 1, 1, 1)},
        3,
    ),
    "Resize of the channels": (
        [node("Resize", ["image", "", "scales"], ["x"])],
        {"scales": np.array([1, 2, 1, 1], np.float32)},
        6,
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_before_what_reaches_into_the_channels_they_are_made(name, tmp_path):
    nodes, weights, channels = UNFIT[name]
    weights = {**weights, "kernel": noise(5, channels, 3, 3)}
    source = save(tmp_path / "in.onnx", [*nodes, *PLAIN], weights, [1, 3, SIZE, SIZE])
    are_made(source, tmp_path)


def are_made(source: Path, folder: Path, **options: object) -> None:
    """No kernel is edited: the old channels are stacked, or an adapter makes them."""
    for to, method, tolerance in (("gray", "stack", 0), (4, "adapter", 1e-5)):
        report = convert(source, folder / "out.onnx", to=to, force=True, **options)
        assert {kernel.method for kernel in report.kernels} == {method}
        assert agrees(source, folder / "out.onnx", 3, report.in_channels[1], tolerance=tolerance)
    for to, method in ((4, "repeat"), ("gray", "sum")):
        with pytest.raises(UnsupportedError, match=r"no kernel edit is exact"):
            convert(source, folder / "no.onnx", to=to, method=method, **options)
    assert not (folder / "no.onnx").exists()


def test_channels_that_are_not_followed_must_be_stated(tmp_path):
    nodes, weights = [node("Reshape", ["image", "s"], ["x"]), *PLAIN], {"s": ints(1, 2, SIZE // 2 * 3, SIZE)}
    source = save(tmp_path / "in.onnx", nodes, {**weights, "kernel": noise(5, 2, 3, 3)}, [1, 3, SIZE, SIZE])
    with pytest.raises(UnsupportedError, match="x: the image 'image' is not followed through this Reshape") as refused:
        convert(source, tmp_path / "no.onnx", to="gray")
    assert refused.value.hint == "--from 3, if these are its channels"
    are_made(source, tmp_path, from_channels=3)


def test_a_padded_image_is_edited_where_only_pixels_are_padded(tmp_path):
    nodes = [node("Pad", ["image", "pads"], ["x"]), *PLAIN]
    weights = {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "kernel": noise(5, 3, 3, 3)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to=4)
    assert agrees(source, tmp_path / "out.onnx", 3, 4)


def test_the_channel_count_that_the_graph_computes_with_is_stacked(tmp_path):
    """A decoder that gives its output the shape of the image: with one channel it would be another shape."""
    nodes = [
        node("Conv", ["image", "kernel"], ["y"], pads=[1, 1, 1, 1]),
        node("Shape", ["image"], ["s"]),
        node("Reshape", ["y", "s"], ["out"]),
    ]
    source = save(tmp_path / "in.onnx", nodes, {"kernel": noise(3, 3, 3, 3)}, [1, 3, SIZE, SIZE])
    report = convert(source, tmp_path / "out.onnx", to="gray")
    assert {kernel.method for kernel in report.kernels} == {"stack"}
    assert agrees(source, tmp_path / "out.onnx", 3, 1, tolerance=0)
    with pytest.raises(UnsupportedError, match="this Reshape precedes the kernel"):
        convert(source, tmp_path / "no.onnx", to=4, method="repeat")


def test_a_computed_shape_that_serves_others_too_is_not_edited(tmp_path):
    """One Concat holds the channels for a Reshape of the image and for one behind the kernel, which stays as it is."""
    nodes = [
        node("Shape", ["image"], ["s"]),
        node("Slice", ["s", "zero", "one"], ["n"]),
        node("Concat", ["n", "channels", "rest"], ["shape"], axis=0),
        node("Reshape", ["image", "shape"], ["x"]),
        node("Conv", ["x", "kernel"], ["y"], pads=[1, 1, 1, 1]),
        node("Reshape", ["y", "shape"], ["out"]),
    ]
    weights = {"zero": ints(0), "one": ints(1), "channels": ints(3), "rest": ints(SIZE, SIZE), "kernel": noise(3, 3, 3, 3)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    report = convert(source, tmp_path / "out.onnx", to="gray")
    assert {kernel.method for kernel in report.kernels} == {"stack"}
    assert agrees(source, tmp_path / "out.onnx", 3, 1, tolerance=0)
    with pytest.raises(UnsupportedError, match="this Reshape precedes the kernel"):
        convert(source, tmp_path / "no.onnx", to=4, method="repeat")


def test_zeros_padded_behind_constants_into_patches_are_stacked(tmp_path):
    """Some of a patch's pixels stand on them, which no report could bound."""
    moved, weights = blocks(3, fastest=True)
    moved[0].input[0] = "x"
    nodes = [node("Sub", ["image", "mean"], ["y"]), node("Pad", ["y", "pads"], ["x"]), *moved, *conv(12)[0]]
    weights = {**weights, "kernel": noise(5, 12, 3, 3), "mean": noise(1, 3, 1, 1, seed=2), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    weights |= {"first": ints(1, 3, 5, 2, 5, 2), "second": ints(-1, 12, 5, 5)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to="gray")
    assert agrees(source, tmp_path / "out.onnx", 3, 1, tolerance=0)
    with pytest.raises(UnsupportedError, match="no kernel edit is exact"):
        convert(source, tmp_path / "no.onnx", to="gray", method="sum")


def branch(
    name: str, nodes: Nodes, weights: Weights | None = None, *, inputs: tuple = (), outputs: tuple | None = None
) -> onnx.GraphProto:
    made = outputs or (helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None),)
    stored = [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()]
    return helper.make_graph(nodes, name, list(inputs), list(made), stored)


def chosen(then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
    return node("If", ["chosen"], ["out"], name="choice", then_branch=then, else_branch=other)


def looped() -> Nodes:
    """Three times the sum of the same convolution, in the body of a Loop."""
    values = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, None),
    ]
    nodes = [
        node("Conv", ["image", "kernel"], ["y"]),
        node("Add", ["total", "y"], ["more"]),
        node("Identity", ["go"], ["on"]),
    ]
    made = (
        helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
    )
    return [
        node("Loop", ["times", "", "start"], ["out"], name="loop", body=branch("body", nodes, inputs=tuple(values), outputs=made))
    ]


@pytest.mark.parametrize(("to", "method"), [(1, "auto"), (1, "stack"), (4, "auto")])
def test_a_convolution_in_a_loop_with_a_kernel_from_outside(to, method, tmp_path):
    weights = {"kernel": noise(5, 3, 3, 3), "times": np.array(3, np.int64), "start": noise(1, 5, SIZE - 2, SIZE - 2)}
    source = save(tmp_path / "in.onnx", looped(), weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to=to, method=method)
    assert agrees(source, tmp_path / "out.onnx", 3, to)
    assert verify(source, tmp_path / "out.onnx", method=method).ok


@pytest.mark.parametrize(("to", "method"), [(1, "auto"), (1, "stack"), (4, "auto")])
def test_a_convolution_in_a_branch_with_a_kernel_from_outside(to, method, tmp_path):
    """One branch takes the image itself, the other one an image put through Relu under the same inner names."""
    plain = branch("plain", [node("Identity", ["image"], ["y"]), node("Conv", ["y", "kernel"], ["z"])])
    bent = branch("bent", [node("Relu", ["image"], ["y"]), node("Conv", ["y", "kernel"], ["z"])])
    source = save(tmp_path / "in.onnx", [chosen(plain, bent)], {"kernel": noise(5, 3, 3, 3)}, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to=to, method=method)
    image = np.random.default_rng(3).random((1, to, SIZE, SIZE), np.float32) - 0.5 * (to == 1)
    mapped = np.einsum("ij,bjhw->bihw", matrix(3, to), image).astype(np.float32)
    for which in (True, False):
        before, after = (run(p, x, chosen=np.array(which))[0] for p, x in ((source, mapped), (tmp_path / "out.onnx", image)))
        assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("to", ["gray", "4"])
def test_kernels_that_branches_keep_themselves_are_refused_by_name(to, tmp_path):
    branches = [branch(n, [node("Conv", ["image", "k"], ["z"], name=f"conv_{n}")], {"k": noise(5, 3, 3, 3)}) for n in ("a", "b")]
    source = save(tmp_path / "in.onnx", [chosen(*branches)], {}, [1, 3, SIZE, SIZE])
    with pytest.raises(UnsupportedError, match=r"conv_[ab]: its weights are in a subgraph of choice") as refused:
        convert(source, tmp_path / "out.onnx", to=to)
    assert refused.value.exit_code == 4
    assert not (tmp_path / "out.onnx").exists()


def test_an_image_changed_in_a_branch_is_stacked(tmp_path):
    """What an If gives out is not followed."""
    same, brighter = (
        branch("same", [node("Identity", ["image"], ["y"])]),
        branch("brighter", [node("Add", ["image", "c"], ["y"])]),
    )
    nodes = [node("If", ["chosen"], ["x"], name="choice", then_branch=same, else_branch=brighter), *PLAIN]
    weights = {"c": noise(1, 3, 1, 1), "kernel": noise(5, 3, 3, 3)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to="gray")
    gray = np.random.default_rng(3).random((1, 1, SIZE, SIZE), np.float32)
    for which in (True, False):
        before = run(source, gray.repeat(3, 1), chosen=np.array(which))[0]
        assert np.array_equal(before, run(tmp_path / "out.onnx", gray, chosen=np.array(which))[0])
    with pytest.raises(UnsupportedError, match="choice: this If precedes the kernel"):
        convert(source, tmp_path / "no.onnx", to=4, method="repeat")


def test_the_image_can_be_named(tmp_path):
    """Two inputs that look like images: only the named one changes, and a kernel that both use is kept for the other."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, SIZE, SIZE]) for name in ("image", "depth")]
    nodes = [
        node("Conv", ["image", "kernel"], ["a"]),
        node("Conv", ["depth", "kernel"], ["b"]),
        node("Add", ["a", "b"], ["out"]),
    ]
    made = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "graph", values, made, [numpy_helper.from_array(noise(5, 3, 3, 3), "kernel")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "in.onnx")
    report = convert(tmp_path / "in.onnx", tmp_path / "out.onnx", to="gray", inputs=["image"])
    assert [declaration.where for declaration in report.declarations] == ["graph.input image"]
    gray, depth = noise(1, 1, SIZE, SIZE, seed=1), noise(1, 3, SIZE, SIZE, seed=2)
    before, after = (run(tmp_path / n, x, depth=depth)[0] for n, x in (("in.onnx", gray.repeat(3, 1)), ("out.onnx", gray)))
    assert np.allclose(before, after, atol=1e-5)
    assert verify(tmp_path / "in.onnx", tmp_path / "out.onnx", inputs=["image"]).ok
    with pytest.raises(UsageError, match="no input is called 'picture'; it has image, depth"):
        convert(tmp_path / "in.onnx", tmp_path / "no.onnx", to="gray", inputs=["picture"])


PADDED: dict[str, tuple[dict, list, bool]] = {
    "pads": ({"pads": [1, 1, 1, 1]}, [1, 3, SIZE, SIZE], True),
    "uneven": ({"pads": [2, 0, 1, 3], "strides": [2, 3]}, [1, 3, SIZE, SIZE], True),
    "dilated": ({"pads": [2, 2, 2, 2], "dilations": [2, 1]}, [1, 3, SIZE, SIZE], True),
    "auto_pad": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [1, 3, SIZE, SIZE], True),
    "open sizes": ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, [1, 3, "h", "w"], False),
    "auto_pad, open sizes": ({"auto_pad": "SAME_LOWER"}, [1, 3, "h", "w"], False),
}


@pytest.mark.parametrize("name", PADDED)
def test_what_remains_at_the_border_is_measured(name, tmp_path):
    """Behind a normalization folded by --method sum: the report's figure is the largest difference that there is, for any image;
    where the file leaves the size open, an upper bound of it."""
    attributes, shape, exact = PADDED[name]
    weights = {"kernel": noise(5, 3, 3, 3), "mean": np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1)}
    nodes = [node("Sub", ["image", "mean"], ["x"]), node("Conv", ["x", "kernel"], ["out"], **attributes)]
    source = save(tmp_path / "in.onnx", nodes, weights, shape)
    report = convert(source, tmp_path / "out.onnx", to="gray", method="sum")
    assert verify(source, tmp_path / "out.onnx", method="sum").ok
    said = next(warning.message for warning in report.warnings if warning.code == "border_error")
    error, share = re.search(r"by up to (\S+), (\S+) % of", said).groups()
    gray = noise(1, 1, SIZE, SIZE, seed=5)
    before, after = run(source, gray.repeat(3, 1))[0], run(tmp_path / "out.onnx", gray)[0]
    found = np.abs(before - after).max()
    largest = np.abs(weights["kernel"].sum(1)).sum((1, 2)).max()  # of a gray image in -1..1
    assert found > 0.01
    assert float(error) == pytest.approx(found, rel=0.01) if exact else found <= 1.01 * float(error) <= 3 * found
    assert float(share) == pytest.approx(100 * float(error) / largest, rel=0.06)


@pytest.mark.parametrize("nodes", [["Sub"], ["Pad", "Sub"], ["Sub", "reflect"]], ids=" ".join)
def test_nothing_remains_at_the_border_without_zeros_behind_the_constants(nodes, tmp_path):
    made = {
        "Sub": lambda a, b: node("Sub", [a, "mean"], [b]),
        "Pad": lambda a, b: node("Pad", [a, "pads"], [b]),
        "reflect": lambda a, b: node("Pad", [a, "pads"], [b], mode="reflect"),
    }
    names = ["image", *(f"v{k}" for k in range(len(nodes) - 1)), "x"]
    weights = {"kernel": noise(5, 3, 3, 3), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "mean": noise(1, 3, 1, 1, seed=2)}
    graph = [made[op](a, b) for op, a, b in zip(nodes, names[:-1], names[1:], strict=True)]
    source = save(tmp_path / "in.onnx", [*graph, *PLAIN], weights, [1, 3, SIZE, SIZE])
    report = convert(source, tmp_path / "out.onnx", to="gray", method="sum")
    assert "border_error" not in {warning.code for warning in report.warnings}
    assert agrees(source, tmp_path / "out.onnx", 3, 1)


def test_zeros_padded_by_a_node_of_their_own_are_bounded(tmp_path):
    nodes = [node("Sub", ["image", "mean"], ["y"]), node("Pad", ["y", "pads"], ["x"]), *PLAIN]
    weights = {"kernel": noise(5, 3, 3, 3), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "mean": noise(1, 3, 1, 1, seed=2)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    report = convert(source, tmp_path / "out.onnx", to="gray", method="sum")
    said = next(warning.message for warning in report.warnings if warning.code == "border_error")
    gray = noise(1, 1, SIZE, SIZE, seed=5)
    found = np.abs(run(source, gray.repeat(3, 1))[0] - run(tmp_path / "out.onnx", gray)[0]).max()
    assert 0.01 < found <= 1.01 * float(re.search(r"by up to (\S+),", said)[1])


def test_constants_in_front_of_patches_go_to_the_bias_of_the_product(tmp_path):
    """A normalization, then patches as rows: exact, since nothing is padded. Without a bias to take the constant: refused."""
    moved, weights = blocks(3, fastest=True, rank=3)
    moved[0].input[0] = "y"
    nodes = [node("Sub", ["image", "mean"], ["y"]), *moved, node("MatMul", ["blocks", "kernel"], ["z"])]
    weights = {**weights, "kernel": noise(12, 5), "bias": noise(5), "mean": noise(1, 3, 1, 1, seed=2)}
    source = save(tmp_path / "in.onnx", [*nodes, node("Add", ["bias", "z"], ["out"])], weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to="gray", method="sum")
    assert agrees(source, tmp_path / "out.onnx", 3, 1)
    source = save(tmp_path / "in.onnx", [*nodes, node("Relu", ["z"], ["out"])], weights, [1, 3, SIZE, SIZE])
    with pytest.raises(UnsupportedError, match="has no bias to take the constant"):
        convert(source, tmp_path / "no.onnx", to="gray", method="sum")


def test_a_bias_that_cannot_take_two_constants_is_refused(tmp_path):
    """Two stems behind a normalization whose equal biases an exporter merged."""
    nodes = [
        node("Sub", ["image", "mean"], ["x"]),
        node("Conv", ["x", "k1", "bias"], ["a"]),
        node("Conv", ["x", "k2", "bias"], ["b"]),
        node("Add", ["a", "b"], ["out"]),
    ]
    weights = {"k1": noise(5, 3, 3, 3), "k2": noise(5, 3, 3, 3, seed=4), "bias": noise(5), "mean": noise(1, 3, 1, 1, seed=2)}
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    with pytest.raises(UnsupportedError, match="bias: is the bias target of two first convs"):
        convert(source, tmp_path / "no.onnx", to="gray", method="sum")
    nodes[2].input.pop()
    source = save(tmp_path / "in.onnx", nodes, weights, [1, 3, SIZE, SIZE])
    convert(source, tmp_path / "out.onnx", to="gray", method="sum")
    assert agrees(source, tmp_path / "out.onnx", 3, 1)
    assert verify(source, tmp_path / "out.onnx", method="sum").ok


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("to", [1, 4])
def test_a_convinteger_is_quantized_again(kind, to, tmp_path):
    """Its scale stands in a later Mul: that one follows the new kernel, the image's own scale stays."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes, weights = conv(3, "image")
    nodes = [*nodes[:-1], node("Conv", ["image", "kernel", "bias"], ["y"], pads=[1, 1, 1, 1]), node("Relu", ["y"], ["out"])]
    source, small = tmp_path / "float.onnx", tmp_path / "in.onnx"
    save(source, nodes, {**weights, "bias": noise(5)}, [1, 3, SIZE, SIZE])
    quantize_dynamic(source, small, weight_type=QuantType[kind], op_types_to_quantize=["Conv"])
    report = convert(small, tmp_path / "out.onnx", to=to, method="sum" if to == 1 else "auto")
    assert "requantised" in {warning.code for warning in report.warnings}
    assert agrees(small, tmp_path / "out.onnx", 3, to, tolerance=0.02)
    assert verify(small, tmp_path / "out.onnx", method="sum" if to == 1 else "auto").ok
    if to == 1:
        convert(small, tmp_path / "stack.onnx", to="gray")
        assert agrees(small, tmp_path / "stack.onnx", 3, 1, tolerance=0)
