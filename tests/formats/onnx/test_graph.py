"""What an ONNX graph answers: its first convs and why, operations before them, methods, declarations and contradictions."""

from __future__ import annotations

import pytest
from onnx import NodeProto

from chkpt_channels import UsageError
from tests.support.onnx_models import Open, Weights, floats, model, node, noise, opened

KERNEL: Weights = {"kernel": noise(5, 3, 3, 3)}


def conv(image: str = "image") -> NodeProto:
    return node("Conv", [image, "kernel"], ["out"])


def test_the_kernel_that_the_image_reaches(source: Open):
    graph = opened(source, model([conv()], KERNEL)).graph
    (found,) = graph.first_convs()
    assert (found.tensor.name, found.layout, found.in_channels, found.found_by) == ("kernel", "OIHW", 3, "graph")
    assert found.why == "the image 'image' reaches it"
    assert not graph.preprocessing([found])
    assert graph.graph_methods([found]) == ("stack",)
    assert [(d.where, d.channels) for d in graph.declarations([found])] == [("graph.input image", 3)]
    assert graph.dense_shape(found, 1) == (5, 3, 3, 3)
    assert graph.dense_shape(found, 4) == (5, 4, 3, 3)


@pytest.mark.parametrize(("opset", "methods"), [(17, ("broadcast", "stack")), (6, ("stack",))])
def test_constants_before_it_broadcast_since_opset_7(opset: int, methods: tuple[str, ...], source: Open):
    weights = {**KERNEL, "mean": floats(0.1, 0.2, 0.3).reshape(1, 3, 1, 1)}
    graph = opened(source, model([node("Sub", ["image", "mean"], ["x"]), conv("x")], weights, opset=opset)).graph
    (found,) = graph.first_convs()
    (operation,) = graph.preprocessing([found])
    assert operation.shift == pytest.approx((-0.1, -0.2, -0.3))
    assert found.why.endswith("through Sub")
    assert graph.graph_methods([found]) == methods


def test_an_image_of_other_channels_contradicts_the_kernel(source: Open):
    graph = opened(source, model([conv()], KERNEL, (1, 4, 8, 8))).graph
    ((declaration, width),) = graph.contradictions(graph.first_convs())
    assert (declaration.where, declaration.channels, width) == ("graph.input image", 4, 3)


def test_inputs_are_chosen_by_name(source: Open):
    graph = opened(source, model([conv()], KERNEL, inputs={"other": (1, 3, 8, 8)})).graph
    with pytest.raises(UsageError, match="no input is called 'pixels'; it has image, other"):
        graph.select_inputs(["pixels"])
    assert graph.select_inputs(["other"])
    assert not graph.first_convs()
