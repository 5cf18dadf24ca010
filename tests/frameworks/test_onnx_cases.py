"""Graphs of the kinds that people have, each with neighbours (opset, type, layout), toward gray, four channels and BGR.

onnxruntime computes what the original does on the mapped image, or there is the refusal that is listed here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
ort = pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from onnx import numpy_helper  # noqa: E402 # behind importorskip
from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402 # behind importorskip
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402 # behind importorskip

from chkpt_channels import AmbiguousError, check, convert, inspect, verify  # noqa: E402 # behind importorskip

SIDE = 16
TYPES = {"float": "f4", "float16": "f2", "double": "f8", "uint8": "u1"}
ort.set_default_logger_severity(4)


class Case(NamedTuple):
    """A graph in ONNX's text, where KIND is a type and PAD a padding by one; its constants, as values or shapes; the axis of the
    channels of its image, and how many that are; the functions that it calls."""

    inputs: str
    nodes: str
    constants: Mapping[str, Any]
    axis: int = 1
    channels: int = 3
    functions: str = ""


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


PAD = "pads = [1, 1, 1, 1]"
MEAN = {"m": np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1), "s": np.array([0.229, 0.224, 0.25]).reshape(3, 1, 1)}
KERNELS = {"w": (8, 3, 3, 3), "w2": (4, 8, 3, 3)}
SECOND = "r = Relu(c) y = Conv<PAD>(r, w2)"
INLINE = '<domain: "local", opset_import: ["" : OPSET]>'
CASES: dict[str, Case] = {
    "plain": Case("KIND[1,3,16,16] x", f"c = Conv<PAD>(x, w) {SECOND}", KERNELS),
    "appended": Case("KIND[1,3,16,16] x", f"c = Conv<PAD>(b, w) {SECOND} a = Sub(x, m) b = Div(a, s)", {**KERNELS, **MEAN}),
    "no batch": Case(
        "KIND[3,h,w] x", f"a = Sub(x, m) b = Div(a, s) u = Unsqueeze(b, ax) c = Conv<PAD>(u, w) {SECOND}",
        {**KERNELS, **MEAN, "ax": numbers(0)}, 0,
    ),
    "no batch, plain": Case(
        "KIND[3,16,16] x", f"u = Unsqueeze(x, ax) c = Conv<PAD>(u, w) {SECOND}", {**KERNELS, "ax": numbers(0)}, 0,
    ),
    "no batch, channels last": Case(
        "KIND[h,w,3] x", "t = Transpose<perm = [2, 0, 1]>(x) u = Unsqueeze(t, ax) a = Sub(u, m) b = Div(a, s) "
        f"c = Conv<PAD>(b, w) {SECOND}", {**KERNELS, **MEAN, "ax": numbers(0)}, 2,
    ),
    "frames in the batch": Case(
        "KIND[1,8,3,16,16] x", f"u = Reshape(x, sh) c = Conv<PAD>(u, w) {SECOND}", {**KERNELS, "sh": numbers(-1, 3, 16, 16)}, 2,
    ),
    "frames before colors": Case(
        "KIND[1,4,3,16,16] x", "t = Transpose<perm = [0, 2, 1, 3, 4]>(x) y = Conv<pads = [1, 1, 1, 1, 1, 1]>(t, k)",
        {"k": (8, 3, 3, 3, 3)}, 2,
    ),
    "colors before frames": Case("KIND[1,3,4,16,16] x", "y = Conv<pads = [1, 1, 1, 1, 1, 1]>(x, k)", {"k": (8, 3, 3, 3, 3)}),
    "nothing declared": Case("KIND[] x", f"c = Conv<PAD>(x, w) {SECOND}", KERNELS),
    "everything open": Case("KIND[n,c,h,w] x", f"a = Sub(x, m) c = Conv<PAD>(a, w) {SECOND}", {**KERNELS, "m": MEAN["m"]}),
    "bytes": Case(
        "uint8[1,16,16,3] x", "f = Cast<to = TO>(x) d = Div(f, top) t = Transpose<perm = [0, 3, 1, 2]>(d) "
        f"c = Conv<PAD>(t, w) {SECOND}", {**KERNELS, "top": np.array(255.0)}, 3,
    ),
    "a block as a function": Case(
        "KIND[1,3,16,16] x", "y = local.Block(x, w, w2)", KERNELS,
        functions=f"{INLINE} Block (x, w, w2) => (y) {{ c = Conv<PAD>(x, w) {SECOND} }}",
    ),
    "a normalization as a function": Case(
        "KIND[1,3,16,16] x", f"b = local.Prep(x, m, s) c = Conv<PAD>(b, w) {SECOND}", {**KERNELS, **MEAN},
        functions=f"{INLINE} Prep (x, m, s) => (b) {{ a = Sub(x, m) b = Div(a, s) }}",
    ),
    "a kernel turned": Case(
        "KIND[1,3,16,16] x", f"w = Transpose<perm = [3, 2, 0, 1]>(k) c = Conv<PAD>(x, w) {SECOND}",
        {"k": (3, 3, 3, 8), "w2": (4, 8, 3, 3)},
    ),
    "a kernel of a matrix": Case(
        "KIND[1,3,16,16] x", f"w = Reshape(k, sh) c = Conv<PAD>(x, w) {SECOND}",
        {"k": (8, 27), "sh": numbers(8, 3, 3, 3), "w2": (4, 8, 3, 3)},
    ),
    "a kernel scaled": Case(
        "KIND[1,3,16,16] x", f"w = Mul(k, g) c = Conv<PAD>(x, w) {SECOND}",
        {"k": (8, 3, 3, 3), "g": (8, 1, 1, 1), "w2": (4, 8, 3, 3)},
    ),
    "colors and depth": Case(
        "KIND[1,3,16,16] x, KIND[1,1,16,16] depth", f"a = Conv<PAD>(x, w) d = Conv<PAD>(depth, wd) c = Add(a, d) {SECOND}",
        {**KERNELS, "wd": (8, 1, 3, 3)},
    ),
    "a bias quantized in the graph": Case(
        "float[1,1,16,16] x", "xq, xs, xz = DynamicQuantizeLinear(x) s1 = Mul(ws, xs) bd = Div(bias, s1) bf = Floor(bd) "
        "bi = Cast<to = 6>(bf) ci = ConvInteger<PAD>(xq, wq, xz, wz) ca = Add(ci, bi) s2 = Mul(ws, xs) cf = Cast<to = 1>(ca) "
        f"c = Mul(cf, s2) {SECOND}",
        {
            "wq": np.arange(72, dtype="u1").reshape(8, 1, 3, 3) * 3, "wz": np.array(121, "u1"), "ws": np.array(0.0529),
            "bias": (1, 8, 1, 1), "w2": (4, 8, 3, 3),
        },
        channels=1,
    ),
}  # fmt: skip
NEIGHBOURS = {"": ("float", 13), ", opset 17": ("float", 17), ", opset 20, fp16": ("float16", 20)}
TARGETS: tuple[str | int, ...] = ("gray", 4, "bgr")
REFUSED = {"colors and depth": (AmbiguousError, "take 1 and 3 channels", {"inputs": ["x"]})}
"""What is asked back toward more than gray, and the answer with which it converts."""
ONLY_FLOAT = ("a bias quantized in the graph",)


def graph(name: str, kind: str, opset: int) -> onnx.ModelProto:
    """The model of a case in a type and an opset."""
    case, chance = CASES[name], np.random.default_rng(0)
    domains = f'"" : {opset}' + (', "local" : 1' if case.functions else "")
    text = f"<ir_version: 8, opset_import: [{domains}]> g ({case.inputs}) => (KIND[] y) {{ {case.nodes} }} {case.functions}"
    for word, value in {"KIND": kind, "PAD": PAD, "OPSET": str(opset), "TO": {"float": "1", "float16": "10"}[kind]}.items():
        text = text.replace(word, value)
    made = onnx.parser.parse_model(text)
    for key, value in case.constants.items():
        array = chance.standard_normal(value) * 0.3 if isinstance(value, tuple) else value
        made.graph.initializer.append(numpy_helper.from_array(array.astype(TYPES[kind]) if array.dtype == "f8" else array, key))
    return made


def float_file(path: Path, channels: int = 3) -> onnx.ModelProto:
    """Two convolutions, as files are made of by onnxruntime's own tools."""
    made = graph("plain", "float", 17)
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    made.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(made.graph.initializer[0])[:, :channels], "w")
    )
    onnx.save(made, path)
    return made


def cast_last(path: Path) -> None:
    """FP16 with float inputs: the tool appends the Cast of the image as the last node."""
    onnx.save(convert_float_to_float16(float_file(path), keep_io_types=True), path)


def quantized(path: Path) -> None:
    """Quantized on the fly, of one channel."""
    float_file(path.with_suffix(".float"), 1)
    quantize_dynamic(path.with_suffix(".float"), path, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv"])


def optimized(path: Path, level: Any) -> None:
    """As onnxruntime saves what it runs: with FusedConv, and with kernels in blocks where the machine has them."""
    float_file(path.with_suffix(".float"))
    settings = ort.SessionOptions()
    settings.graph_optimization_level, settings.optimized_model_filepath = level, str(path)
    ort.InferenceSession(str(path.with_suffix(".float")), settings, providers=["CPUExecutionProvider"])


def external(path: Path) -> None:
    """Each constant in a data file, the mean too."""
    made = graph("appended", "float", 17)
    onnx.save(made, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)


MADE: dict[str, tuple[Any, int]] = {
    "a Cast as the last node": (cast_last, 3),
    "quantized on the fly": (quantized, 1),
    "fused": (lambda path: optimized(path, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED), 3),
    "in blocks": (lambda path: optimized(path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL), 3),
    "external data": (external, 3),
}
FILES = [f"{name}{more}" for name in CASES for more in NEIGHBOURS if not more or name not in ONLY_FLOAT] + list(MADE)


def written(name: str, folder: Path) -> tuple[Path, int, int]:
    """The file, the axis of the channels of its image, and their number."""
    path = folder / "in.onnx"
    if name in MADE:
        make, channels = MADE[name]
        make(path)
        return path, 1, channels
    case, _, more = name.partition(", opset")
    onnx.save(graph(case, *NEIGHBOURS[f", opset{more}" if more else ""]), path)
    return path, CASES[case].axis, CASES[case].channels


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    types = {f"tensor({kind})": dtype for kind, dtype in TYPES.items()}
    return session.run(None, {given.name: feeds[given.name].astype(types[given.type]) for given in session.get_inputs()})


def image(path: Path, axis: int, channels: int) -> dict[str, np.ndarray]:
    """What is fed: the first input is the image."""
    first, *others = ort.InferenceSession(str(path)).get_inputs()
    shape = first.shape or [1, channels, SIDE, SIDE]
    dims = [n if isinstance(n, int) else 1 if k == 0 and len(shape) > 3 else SIDE for k, n in enumerate(shape)]
    dims[axis] = channels
    chance, scale = np.random.default_rng(1), 1 if "uint8" in first.type else 1 / 64
    return {first.name: chance.integers(1, 16, dims) * 4 * scale} | {other.name: chance.random(other.shape) for other in others}


def inside(value: np.ndarray) -> np.ndarray:
    """Without the pixels that padding reaches."""
    return value[..., 4:-4, 4:-4]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", FILES)
def test_it_is_right_or_refused(name: str, to: str | int, tmp_path: Path, shares: dict[str | int, list[bool]]):
    source, axis, channels = written(name, tmp_path)
    assert inspect(source).first_convs
    assert check(source).ok
    target = "rgb" if channels == 1 and to == "gray" else to
    out, asked, options = tmp_path / "out.onnx", REFUSED.get(name.partition(", opset")[0]), {}
    if asked and to != "gray":
        error, what, options = asked
        with pytest.raises(error, match=what):
            convert(source, out, target)
        assert not out.exists()
    report = convert(source, out, target, **options)
    assert report.status == "converted"
    assert verify(source, out, target, **options).ok
    assert check(out).ok
    matrix = np.array(report.result()["matrix"])
    new = image(out, axis, matrix.shape[1])
    first = next(iter(new))
    old = new | {first: np.moveaxis(np.tensordot(matrix, new[first], (1, axis)), 0, axis)}
    codes = {warning.code for warning in report.warnings}
    tolerance = 0.03 if codes & {"requantised"} or "fp16" in name or "Cast" in name else 1e-4
    for before, after in zip(run(source, old), run(out, new), strict=True):
        assert before.shape == after.shape
        a, b = (inside(value) if codes & {"border_error", "black_padding"} else value for value in (before, after))
        assert np.abs(a.astype("f8") - b).max() <= tolerance * np.abs(a).max()
    shares[to].append(not options)


@pytest.mark.parametrize(("to", "least"), [("gray", 0.8), (4, 0.6), ("bgr", 0.6)])
def test_most_are_converted_without_a_word(to: str | int, least: float, shares: dict[str | int, list[bool]]):
    assert len(shares[to]) == len(FILES), "some of the conversions above were not right"
    print(f"\ntoward {to}: {sum(shares[to])} of {len(FILES)} convert")
    assert sum(shares[to]) >= least * len(FILES)


@pytest.fixture(scope="module")
def shares() -> dict[str | int, list[bool]]:
    """Whether each conversion needed no word of the user, by target."""
    return {to: [] for to in TARGETS}
