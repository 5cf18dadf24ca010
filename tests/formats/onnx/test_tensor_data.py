"""Where stored tensors keep their elements: what is read is what onnx reads, and what contradicts itself is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from chkpt_channels import DamagedError
from chkpt_channels.containers.protobuf import Message, Reader, bytes_field
from chkpt_channels.formats.onnx import FORMATS
from chkpt_channels.formats.onnx.model import OnnxModel
from chkpt_channels.formats.onnx.schema import DTYPES, GRAPH_INITIALIZERS, MODEL_GRAPH
from chkpt_channels.formats.onnx.tensor_data import Payload, payload, skeleton, typed_elements
from tests.support.onnx_models import Open, model, newer_onnx, node, noise, opened

CONV = node("Conv", ["image", "kernel"], ["out"])
TYPES = {name: number for name, number in TensorProto.DataType.items() if number in DTYPES}
NUMBERS = {"BOOL": [True, False, True], "FLOAT8E8M0": [1.0, 2.0, 4.0]}


def holding(tensor: TensorProto) -> ModelProto:
    made = model([CONV], {"kernel": noise(5, 3, 3, 3)})
    made.graph.initializer.append(tensor)
    return made


@newer_onnx
@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("name", TYPES)
def test_elements_are_those_that_onnx_reads(name: str, raw: bool, source: Open):
    values = NUMBERS.get(name, [1, 2, 3])
    if name.startswith("COMPLEX"):
        values = [1 + 2j, -3j, 4]
    elif name not in ("BOOL", "FLOAT8E8M0") and not name.startswith("U"):
        values = [1, -2, 3]
    typed = helper.make_tensor("t", TYPES[name], [3], values)
    expected = numpy_helper.to_array(typed)
    packed = numpy_helper.from_array(expected, "t")
    checkpoint = opened(source, holding(packed if raw else typed))
    found = b"".join(checkpoint.chunks("t"))
    assert found == packed.raw_data


def test_long_elements_come_in_pieces_that_are_the_whole(source: Open):
    values = np.arange(5 << 18, dtype=np.float32)
    checkpoint = opened(source, holding(numpy_helper.from_array(values, "t")))
    pieces = list(checkpoint.chunks("t"))
    assert len(pieces) == 2
    assert b"".join(pieces) == values.tobytes()


@pytest.mark.parametrize("values", [[], [5], [1 << 62, -1]], ids=len)
def test_elements_may_be_none_or_negative(values: list[int], source: Open):
    tensor = helper.make_tensor("t", TensorProto.INT64, [len(values)], values)
    assert opened(source, holding(tensor)).load("t").tolist() == values


def test_typed_numbers_may_stand_one_by_one(source: Open):
    """As writers of proto2 did before the fields were packed: tag and number, three times."""
    loose = tensor(data_type=TensorProto.INT64).SerializeToString() + b"\x38\x05\x38\x80\x01\x38" + b"\xff" * 9 + b"\x01"
    assert list(TensorProto.FromString(loose).int64_data) == [5, 128, -1]
    whole = model([CONV], {"kernel": noise(5, 3, 3, 3)})
    graph = whole.graph.SerializeToString() + bytes_field(GRAPH_INITIALIZERS, loose)
    whole.ClearField("graph")
    checkpoint = FORMATS[0].open(source(whole.SerializeToString() + bytes_field(MODEL_GRAPH, graph), "a.onnx"))
    assert checkpoint.load("t").tolist() == [5, 128, -1]


def tensor(**fields: object) -> TensorProto:
    return TensorProto(name="t", **{"data_type": TensorProto.FLOAT, "dims": [3], **fields})


EXTERNAL = {"data_location": TensorProto.EXTERNAL}


def located(*pairs: tuple[str, str]) -> dict[str, object]:
    return {**EXTERNAL, "external_data": [{"key": key, "value": value} for key, value in pairs]}


REFUSED: dict[str, tuple[TensorProto, str]] = {
    "none": (tensor(), "has no elements"),
    "too few bytes": (tensor(raw_data=bytes(8)), "holds 8 bytes, its shape needs 12"),
    "too many bytes": (tensor(raw_data=bytes(16)), "holds 16 bytes, its shape needs 12"),
    "too few numbers": (tensor(float_data=[1, 2]), "holds 8 bytes, its shape needs 12"),
    "too many doubles": (tensor(data_type=TensorProto.DOUBLE, double_data=[1] * 4), "holds 32 bytes, its shape needs 24"),
    "too few integers": (tensor(data_type=TensorProto.INT64, int64_data=[1, 2]), "holds 2 elements, its shape needs 3"),
    "too many small ones": (tensor(data_type=TensorProto.INT8, int32_data=[1, 300, 3, 4]), "holds 4 elements, its shape needs 3"),
    "nibbles one by one": (tensor(data_type=TensorProto.INT4, int32_data=[1, 2, 3]), "holds 3 elements, its shape needs 2"),
    "floats of a half": (
        tensor(data_type=TensorProto.FLOAT16, float_data=[1, 2, 3]),
        "holds F16 elements in a field of another type",
    ),
    "doubles of a float": (tensor(double_data=[1, 2, 3]), "holds F32 elements in a field of another type"),
    "integers of a float": (tensor(int32_data=[1, 2, 3]), "holds F32 elements in a field of another type"),
    "floats of integers": (
        tensor(data_type=TensorProto.INT64, float_data=[1, 2, 3]),
        "holds I64 elements in a field of another type",
    ),
    "halves in two fields": (
        tensor(data_type=TensorProto.FLOAT16, int32_data=[1, 2], int64_data=[3]),
        "holds F16 elements in a field of another type",
    ),
    "long integers in a short field": (
        tensor(data_type=TensorProto.INT64, int32_data=[1, 2, 3]),
        "holds I64 elements in a field of another type",
    ),
    "too few halves": (tensor(data_type=TensorProto.FLOAT16, int32_data=[1, 2]), "holds 2 elements, its shape needs 3"),
    "too few complex": (tensor(data_type=TensorProto.COMPLEX64, float_data=[1, 2, 3]), "holds 12 bytes, its shape needs 24"),
    "raw and typed": (tensor(raw_data=bytes(12), float_data=[1, 2, 3]), "holds both raw and typed elements"),
    "here and elsewhere": (
        tensor(raw_data=bytes(12), **located(("location", "a.data"))),
        "holds elements, but says that they are in another file",
    ),
    "no location": (tensor(**located(("offset", "0"))), "its external location '' leaves the model's folder"),
    "above": (tensor(**located(("location", "../a.data"))), "its external location '../a.data' leaves the model's folder"),
    "above, backwards": (tensor(**located(("location", r"a\..\..\b"))), ".*leaves the model's folder"),
    "from the root": (tensor(**located(("location", "/etc/passwd"))), "its external location '/etc/passwd' leaves"),
    "a NUL": (tensor(**located(("location", "a\0b"))), ".*leaves the model's folder"),
    "two locations": (
        tensor(**located(("location", "a.data"), ("location", "b.data"))),
        "its external location is given twice",
    ),
    "no number": (tensor(**located(("location", "a.data"), ("offset", "x"))), "its external offset and length must be integers"),
    "before the beginning": (
        tensor(**located(("location", "a.data"), ("offset", "-4"))),
        "its external part has 12 bytes, its shape needs 12",
    ),
    "another length": (
        tensor(**located(("location", "a.data"), ("length", "8"))),
        "its external part has 8 bytes, its shape needs 12",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_elements_that_contradict_what_is_said_of_them_are_refused(name: str, source: Open):
    made, message = REFUSED[name]
    index = OnnxModel(source(holding(made).SerializeToString(), "a.onnx"))
    with pytest.raises(DamagedError, match=rf"^a\.onnx: t: {message}.*, at byte \d+$"):
        payload(index.weights["t"], index.location, Path())


def test_a_part_of_another_file_is_where_it_says(source: Open):
    made = tensor(**located(("location", "sub/a.data"), ("offset", "4096"), ("length", "12")))
    index = OnnxModel(source(holding(made).SerializeToString(), "a.onnx"))
    assert payload(index.weights["t"], index.location, Path("m")) == Payload(4096, 4108, Path("m/sub/a.data"))


def test_a_part_without_offset_and_length_is_as_long_as_its_shape(source: Open):
    index = OnnxModel(source(holding(tensor(**located(("location", "a.data")))).SerializeToString(), "a.onnx"))
    assert payload(index.weights["t"], index.location, Path()) == Payload(0, 12, Path("a.data"))


def test_raw_elements_are_where_the_field_is(source: Open):
    data = holding(tensor(raw_data=b"twelve bytes")).SerializeToString()
    index = OnnxModel(source(data, "a.onnx"))
    found = payload(index.weights["t"], index.location, Path())
    assert found is not None
    assert data[found.start : found.stop] == b"twelve bytes"


def test_a_tensor_without_elements_needs_none(source: Open):
    index = OnnxModel(source(holding(tensor(dims=[0, 3])).SerializeToString(), "a.onnx"))
    weight = index.weights["t"]
    assert payload(weight, index.location, Path()) is None
    assert typed_elements(weight) == b""


def bare(made: ModelProto, source: Open) -> ModelProto:
    data = made.SerializeToString()
    return ModelProto.FromString(skeleton(Message(Reader(source(data)), 0, len(data))))


def test_a_skeleton_is_the_model_without_large_payloads(source: Open):
    made = model([CONV], {"kernel": noise(5, 3, 30, 30), "bias": noise(5)})
    value = numpy_helper.from_array(noise(30, 30), "inner")
    made.graph.node.append(node("Constant", [], ["c"], value=value))
    made.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [900], [0.5] * 900))
    expected = ModelProto()
    expected.CopyFrom(made)
    expected.graph.initializer[0].ClearField("raw_data")
    expected.graph.initializer[2].ClearField("float_data")
    expected.graph.node[1].attribute[0].t.ClearField("raw_data")
    assert bare(made, source) == expected


def test_a_skeleton_of_a_small_model_is_the_model(source: Open):
    made = model([CONV], {"kernel": noise(2, 3, 1, 1)})
    made.metadata_props.add(key="author", value="somebody" * 500)
    assert bare(made, source) == made


@pytest.mark.parametrize("where", ["then_branch", "else_branch"])
def test_payloads_in_subgraphs_are_left_out_too(where: str, source: Open):
    branches = {}
    for name in ("then_branch", "else_branch"):
        weights = {"k": noise(5, 3, 30, 30)} if name == where else {"k": noise(5, 3, 1, 1)}
        stored = [numpy_helper.from_array(value, key) for key, value in weights.items()]
        branches[name] = helper.make_graph([node("Conv", ["image", "k"], ["z"])], name, [], [], stored)
    made = model([node("If", ["chosen"], ["out"], **branches)], inputs={"chosen": []})
    expected = ModelProto()
    expected.CopyFrom(made)
    large = next(a for a in expected.graph.node[0].attribute if a.name == where)
    large.g.initializer[0].ClearField("raw_data")
    assert bare(made, source) == expected


def test_elements_of_another_wire_type_are_damage(source: Open):
    """When the file is opened: they stay as they are in a conversion, and only who reads them would see it."""
    typed = TensorProto(name="t", dims=[1], data_type=TensorProto.INT64, int64_data=[1 << 48])
    raw = holding(typed).SerializeToString()
    packed, fixed = b"\x3a\x07" + b"\x80" * 6 + b"\x40", b"\x39" + bytes(8)
    assert raw.count(packed) == 1
    with pytest.raises(DamagedError, match="a field has the wire type 1 instead of 2"):
        FORMATS[0].open(source(raw.replace(packed, fixed), "a.onnx"))
