"""What an ONNX file still states of the old channels where an edit did not follow the graph."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper

from tests.support.onnx_models import Open, model, node, noise, opened

CHAIN = [node("Relu", ["image"], ["x"]), node("Conv", ["x", "kernel"], ["out"])]


def stated(source: Open, made: ModelProto) -> list[tuple[str, int, int]]:
    graph = opened(source, made).graph
    return [(d.where, d.channels, width) for d, width in graph.contradictions(graph.first_convs())]


def with_shape(made: ModelProto, channels: int | str) -> ModelProto:
    made.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 8, 8]))
    return made


def test_an_input_of_another_count(source: Open):
    assert stated(source, model(CHAIN, {"kernel": noise(5, 3, 3, 3)}, (1, 4, 8, 8))) == [("graph.input image", 4, 3)]


def test_a_shape_on_the_way(source: Open):
    made = model(CHAIN, {"kernel": noise(5, 3, 3, 3)})
    assert not stated(source, with_shape(made, 3))
    del made.graph.value_info[:]
    assert not stated(source, with_shape(made, "channels"))
    del made.graph.value_info[:]
    assert stated(source, with_shape(made, 1)) == [("graph.value_info x", 1, 3)]


def test_a_kernel_that_no_node_reads(source: Open):
    """One that differs in the channels alone; of another size, or of another image's channels, it is something else."""
    left = {"kernel": noise(5, 3, 3, 3), "left": noise(5, 1, 3, 3), "other": noise(5, 1, 5, 5), "equal": noise(5, 3, 3, 3)}
    assert stated(source, model(CHAIN, left)) == [("left, which no node reads", 1, 3)]
    depth = node("Conv", ["depth", "depth_kernel"], ["y"])
    two = model([*CHAIN, depth], {**left, "depth_kernel": noise(4, 1, 3, 3)}, inputs={"depth": (1, 1, 8, 8)})
    assert not stated(source, two)
