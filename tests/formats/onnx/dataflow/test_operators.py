"""The tables of operators: real ones, none in two tables that treat it differently, none that does not do what they say."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import defs
from onnx.reference import ReferenceEvaluator

from chkpt_channels.formats.onnx.dataflow import operators
from chkpt_channels.formats.onnx.dataflow.selections import BROADCAST, REDUCED, RESIZED, SAME
from chkpt_channels.formats.onnx.dataflow.shape_ops import MOVES
from tests.support.onnx_models import Open, floats, model, node, opened

ALIKE = operators.LINEAR | operators.ELEMENTWISE
TABLES = [operators.CONVOLUTIONS.keys(), operators.PRODUCTS, ALIKE, operators.BINARY, operators.SHAPES, MOVES.keys()]


MIXED = {*SAME, *BROADCAST, *REDUCED, *RESIZED, "Gather", "GatherND", "Split", "Concat", "Slice"}


@pytest.mark.parametrize("name", sorted({*MIXED, *operators.NONLINEAR_POOLS}.union(*TABLES) - {operators.FUSED[1]}))
def test_each_is_an_operator_of_onnx(name: str):
    known = {schema.name for schema in defs.get_all_schemas_with_history() if not schema.domain}
    assert name in known | {operators.FUSED[1]}


def test_no_operator_is_in_two_tables():
    names = [name for table in TABLES for name in table]
    assert len(names) == len(set(names))
    assert MOVES.keys() > operators.NONLINEAR_POOLS
    assert not operators.LINEAR & MIXED


@pytest.mark.parametrize("op", sorted(operators.ELEMENTWISE - {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}))
def test_what_is_elementwise_treats_numbers_alike(op: str):
    """Numbers that change places before it and those that change them behind it are equal."""
    made = model([node(op, ["image"], ["out"])], shape=(6,), opset=22)
    numbers, order = floats(0.5, 1.5, 2.25, 0.125, 3, 0.75), [3, 1, 5, 0, 2, 4]
    runtime = ReferenceEvaluator(made)
    (plain,) = runtime.run(None, {"image": numbers})
    (turned,) = runtime.run(None, {"image": numbers[order]})
    np.testing.assert_array_equal(turned, plain[order])


@pytest.mark.parametrize(
    ("domain", "op", "kind", "in_blocks"),
    [
        ("", "Conv", "Conv", False),
        ("com.microsoft", "FusedConv", "FusedConv", False),
        ("com.microsoft.nchwc", "Conv", "", True),
        ("com.microsoft", "NhwcConv", "", True),
        ("own", "Relu", "", False),
    ],
)
def test_convolutions_of_onnxruntime_are_known(domain: str, op: str, kind: str, in_blocks: bool, source: Open):
    (made,) = opened(source, model([node(op, ["image", "kernel"], ["out"], domain=domain)])).model.nodes
    assert (operators.kind(made), operators.is_in_blocks(made)) == (kind, in_blocks)
