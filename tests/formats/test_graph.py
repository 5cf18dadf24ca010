"""A graph of which nothing is known: every answer is empty, so that names and shapes decide."""

from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.formats.graph import NO_GRAPH

CONV = FirstConv(Tensor("conv1.weight", BY_NAME["F32"], (8, 3, 3, 3)), Layout("OIHW"), 3, "shapes")


@pytest.mark.parametrize(
    "question", ["preprocessing", "graph_methods", "declarations", "contradictions", "notices"], ids=lambda name: name
)
def test_nothing_is_known_of_first_convs(question: str):
    assert not getattr(NO_GRAPH, question)([CONV])


def test_nothing_is_known_of_the_network():
    assert not NO_GRAPH.knows_outputs
    assert not NO_GRAPH.first_convs()
    assert not NO_GRAPH.hyper_parameters(3)
    assert NO_GRAPH.shape_edits([], 1) == {}
    assert not NO_GRAPH.is_beside_state_dict("conv1.weight")
    assert not NO_GRAPH.select_inputs(["image"])


def test_a_conv_stays_as_it_was_found():
    assert NO_GRAPH.with_groups(CONV) is CONV
    assert not NO_GRAPH.is_depthwise(CONV.tensor.name)
    assert NO_GRAPH.bias_target(CONV) is None
    assert NO_GRAPH.quantization(CONV) is None
    assert NO_GRAPH.padding(CONV) is None  # unknown, which is not the same as none


def test_a_grouped_kernel_serves_one_channel_with_the_same_bytes():
    assert NO_GRAPH.dense_shape(CONV, 1) == CONV.tensor.shape
    assert NO_GRAPH.dense_shape(CONV, 4) is None
