"""ONNX against onnxruntime: models by both of torch's exporters and by tf2onnx's pattern, converted, run and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
ort = pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from chkpt_channels import UnsupportedError, convert, inspect, verify  # noqa: E402 # behind importorskip

FIXTURES = Path(__file__).parents[2] / "fixtures" / "onnx"
SAID = json.loads((FIXTURES / "expected.json").read_text())
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
SIZE = 16
STACKED = ("flipped", "transform_input", "coordinates", "qdq", "tf2onnx_normalised")
METHOD = dict.fromkeys(STACKED, "stack") | {"normalised": "broadcast"}
ort.set_default_logger_severity(4)


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given, *leaked = session.get_inputs()
    if given.type == "tensor(float16)":
        image = image.astype(np.float16)
    if given.shape[-1] in (1, 3, 4):
        image = image.transpose(0, 2, 3, 1)
    constants = {one.name: np.full(one.shape, [0.4, 0.5, 0.6], np.float32) for one in leaked}
    return session.run(None, {given.name: image, **constants})[0].astype(np.float64)


def image(channels: int) -> np.ndarray:
    return np.random.default_rng(7).random((1, channels, SIZE, SIZE), np.float32)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> bool:
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(a).max())


@pytest.mark.parametrize("name", [n for n, said in SAID.items() if said["in_channels"] == 3])
def test_a_gray_image_gives_what_the_stacked_one_gave(name, tmp_path):
    report = convert(FIXTURES / name, tmp_path / "out.onnx", to="gray")
    expected = METHOD.get(name.removesuffix(".onnx"), "sum")
    assert {kernel.method for kernel in report.kernels} == {expected}
    gray = image(1)
    before, after = run(FIXTURES / name, gray.repeat(3, 1)), run(tmp_path / "out.onnx", gray)
    exact = expected != "sum"
    assert np.array_equal(before, after) if exact else close(before, after, 1e-3 if "half" in name else 1e-5)
    assert verify(FIXTURES / name, tmp_path / "out.onnx").ok
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


def test_gray_to_rgb_agrees_on_luma(tmp_path):
    convert(FIXTURES / "gray.onnx", tmp_path / "out.onnx", to="rgb")
    rgb = image(3)
    gray = (rgb * LUMA.reshape(1, 3, 1, 1)).sum(1, keepdims=True)
    assert close(run(FIXTURES / "gray.onnx", gray), run(tmp_path / "out.onnx", rgb))


@pytest.mark.parametrize(
    "name", ["plain_ts", "two_stems", "depthwise", "inferred", "channels_last", "normalised", "scalar", "unshuffled"]
)
def test_four_channels_are_mapped_by_the_matrix(name, tmp_path):
    """The converted network on x is the original on A · x: repeat, 3/4 of every channel, the fourth joins the first."""
    convert(FIXTURES / f"{name}.onnx", tmp_path / "out.onnx", to=4)
    four = image(4)
    mapped = 0.75 * np.stack([four[:, 0] + four[:, 3], four[:, 1], four[:, 2]], 1).astype(np.float32)
    before, after = run(FIXTURES / f"{name}.onnx", mapped), run(tmp_path / "out.onnx", four)
    # a constant in front of a zero-padded stem cannot be moved behind it without a trace at the border
    assert close(before, after, 0.3 if name in ("normalised", "scalar") else 1e-5)


def test_folding_a_normalization_is_exact_without_padding(tmp_path):
    """--method sum moves Sub and Div into kernel and bias: exact where nothing is padded."""
    model = onnx.load(FIXTURES / "normalised.onnx")
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in stem.attribute if a.name == "pads").ints[:] = [0, 0, 0, 0]
    onnx.save(model, tmp_path / "in.onnx")
    convert(tmp_path / "in.onnx", tmp_path / "out.onnx", to="gray", method="sum")
    assert verify(tmp_path / "in.onnx", tmp_path / "out.onnx", method="sum").ok
    gray = image(1)
    assert close(run(tmp_path / "in.onnx", gray.repeat(3, 1)), run(tmp_path / "out.onnx", gray), 1e-5)


@pytest.mark.parametrize("name", ["flipped", "transform_input", "coordinates"])
def test_what_mixes_channels_is_refused_by_name_elsewhere(name, tmp_path):
    with pytest.raises(UnsupportedError, match="no kernel edit is exact"):
        convert(FIXTURES / f"{name}.onnx", tmp_path / "out.onnx", to=4, method="repeat")
    assert not list(tmp_path.iterdir())


def test_external_data_goes_along_under_the_new_name(tmp_path):
    data = (FIXTURES / "external.onnx.data").read_bytes()
    convert(FIXTURES / "external.onnx", tmp_path / "new.onnx", to="gray")
    assert (tmp_path / "new.onnx.data").read_bytes() == data == (FIXTURES / "external.onnx.data").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"new.onnx", "new.onnx.data"}
    locations = {
        entry.value
        for tensor in onnx.load(tmp_path / "new.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert locations == {"new.onnx.data"}


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_a_model_that_protobuf_refuses(external, tmp_path):
    """2.2 GB: onnx and onnxruntime cannot read it in one piece, this package edits it in bounded memory."""
    import resource
    import subprocess
    import sys

    from onnx import TensorProto, helper

    big = 2_200_000_000 // 4
    path = tmp_path / "big.onnx"
    stem = helper.make_tensor("stem", TensorProto.FLOAT, [8, 3, 3, 3], np.random.default_rng(0).random(216).astype(np.float32))
    nodes = [
        helper.make_node("Conv", ["image", "stem"], ["features"]),
        helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0),
        helper.make_node("Add", ["features", "total"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("image", [1, 3, 8, 8]), ("out", None))]
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[big], name="big")
    if external:
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "big.bin"), ("offset", "0"), ("length", str(4 * big))):
            tensor.external_data.add(key=key, value=value)
        with open(tmp_path / "big.bin", "wb") as sparse:
            sparse.truncate(4 * big)
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [stem] + ([tensor] if external else []))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external:
        path.write_bytes(model.SerializeToString())
    else:
        write_inline(path, model, tensor, 4 * big)
    done = subprocess.run(
        [sys.executable, "-m", "chkpt_channels", "convert", path, "--to", "gray", "-o", tmp_path / "out.onnx"],
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
    kernel = next(conv.tensor for conv in inspect(tmp_path / "out.onnx").first_convs)
    assert kernel.shape == (8, 1, 3, 3)
    assert verify(path, tmp_path / "out.onnx").ok


def write_inline(path: Path, model: object, tensor: object, size: int) -> None:
    """The model with one more initializer whose raw_data is a hole of `size` bytes: more than protobuf's own writer takes."""

    def varint(value: int) -> bytes:
        out = bytearray()
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def tagged(number: int, length: int) -> bytes:
        return varint(number << 3 | 2) + varint(length)

    head = tensor.SerializeToString() + tagged(9, size)
    graph = model.graph.SerializeToString()
    body = len(graph) + len(tagged(5, len(head) + size)) + len(head) + size
    rest = type(model)()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    with open(path, "wb") as file:
        file.write(rest.SerializeToString() + tagged(7, body) + graph + tagged(5, len(head) + size) + head)
        file.seek(size, 1)
        file.truncate()


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("layout", ["QDQ", "QOperator"])
def test_quantized_kernels_are_quantized_again(layout, per_channel, tmp_path):
    """int8 behind DequantizeLinear and in QLinearConv: stack is lossless; sum loses no more than the quantization itself did."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"image": np.random.default_rng(k).random((1, 3, SIZE, SIZE), np.float32)} for k in range(8)]

        def get_next(self):
            return self.left.pop() if self.left else None

    source = tmp_path / "int8.onnx"
    quantize_static(FIXTURES / "plain_ts.onnx", source, Noise(), quant_format=QuantFormat[layout], per_channel=per_channel)
    convert(source, tmp_path / "stack.onnx", to="gray")
    report = convert(source, tmp_path / "sum.onnx", to="gray", method="sum")
    assert "requantised" in {warning.code for warning in report.warnings}
    gray = image(1)
    before = run(source, gray.repeat(3, 1))
    assert np.array_equal(before, run(tmp_path / "stack.onnx", gray))
    loss = np.abs(run(FIXTURES / "plain_ts.onnx", gray.repeat(3, 1)) - before).max() / np.abs(before).max()
    assert close(before, run(tmp_path / "sum.onnx", gray), max(2 * loss, 0.01))
    assert verify(source, tmp_path / "sum.onnx", method="sum").ok
    assert not verify(source, tmp_path / "sum.onnx", "gray").ok  # without a target it finds the normalization itself
