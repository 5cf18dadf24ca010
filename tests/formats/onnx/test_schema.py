"""Field numbers and element types, compared with those of onnx."""

from __future__ import annotations

import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.formats.onnx import schema

FIELDS = {
    "MODEL_GRAPH": ModelProto.GRAPH_FIELD_NUMBER,
    "MODEL_OPSETS": ModelProto.OPSET_IMPORT_FIELD_NUMBER,
    "MODEL_FUNCTIONS": ModelProto.FUNCTIONS_FIELD_NUMBER,
    "MODEL_IR_VERSION": ModelProto.IR_VERSION_FIELD_NUMBER,
    "GRAPH_NODES": GraphProto.NODE_FIELD_NUMBER,
    "GRAPH_INITIALIZERS": GraphProto.INITIALIZER_FIELD_NUMBER,
    "GRAPH_SPARSE": GraphProto.SPARSE_INITIALIZER_FIELD_NUMBER,
    "GRAPH_VALUE_INFOS": GraphProto.VALUE_INFO_FIELD_NUMBER,
    "NODE_OP": NodeProto.OP_TYPE_FIELD_NUMBER,
    "NODE_DOMAIN": NodeProto.DOMAIN_FIELD_NUMBER,
    "ATTRIBUTE_INTS": AttributeProto.INTS_FIELD_NUMBER,
    "ATTRIBUTE_GRAPHS": AttributeProto.GRAPHS_FIELD_NUMBER,
    "TENSOR_RAW": TensorProto.RAW_DATA_FIELD_NUMBER,
    "TENSOR_EXTERNAL": TensorProto.EXTERNAL_DATA_FIELD_NUMBER,
    "TENSOR_LOCATION": TensorProto.DATA_LOCATION_FIELD_NUMBER,
    "TENSOR_UINT64S": TensorProto.UINT64_DATA_FIELD_NUMBER,
}


@pytest.mark.parametrize("name", FIELDS)
def test_field_numbers(name: str):
    assert getattr(schema, name) == FIELDS[name]


@pytest.mark.parametrize(("kind", "name"), [("FLOAT", "F32"), ("FLOAT16", "F16"), ("BFLOAT16", "BF16"), ("INT64", "I64")])
def test_element_types(kind: str, name: str):
    assert schema.DTYPES[getattr(TensorProto, kind)] == name


def test_every_element_type_is_known():
    assert set(schema.DTYPES.values()) <= BY_NAME.keys()
    assert schema.STRING == TensorProto.STRING
