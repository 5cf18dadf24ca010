"""Edits of an ONNX graph: onnx's checker accepts the result, and its reference implementation computes what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from chkpt_channels import UnsupportedError, convert
from chkpt_channels.core.tensors import Edits, TensorEdit
from chkpt_channels.formats.onnx import FORMATS
from chkpt_channels.formats.onnx.checkpoint import Onnx
from chkpt_channels.formats.onnx.dataflow.values import count_edits
from chkpt_channels.formats.onnx.edits import bias_target
from chkpt_channels.storage.source import Source
from tests.support.onnx_models import (
    RGB,
    SIZE,
    Dims,
    Open,
    Weights,
    branch,
    declared,
    edited,
    floats,
    initializers,
    ints,
    model,
    node,
    noise,
    opened,
    rewritten,
    run,
)

KERNEL = {"kernel": noise(5, 3, 3, 3)}
GRAY = noise(1, 1, SIZE, SIZE, seed=7)


def conv(image: str = "image", kernel: str = "kernel", out: str = "out", **attributes: object) -> NodeProto:
    return node("Conv", [image, kernel], [out], **attributes)


def summed(checkpoint: Onnx, channels: int = 1, **more: object) -> Edits:
    """Every first kernel summed over its old channels, the sum shared out to the new ones; and what counts them."""
    tensors = dict(checkpoint.graph.shape_edits(checkpoint.graph.first_convs(), channels))
    for found in checkpoint.graph.first_convs():
        name, layout, old = found.tensor.name, found.layout, found.in_channels
        pre, _, post = layout.view(found.tensor.shape, old)
        values = checkpoint.load(name).reshape(pre, old, post).sum(1, keepdims=True) / channels
        shape = layout.with_channels(found.tensor.shape, old, channels)
        new = values.repeat(channels, 1).reshape(shape).astype(checkpoint.load(name).dtype)
        tensors[name] = TensorEdit(shape, lambda new=new: new)
    return Edits(tensors, channels=channels, **more)


def agrees(before: ModelProto, after: ModelProto, channels: int = 1, *, last: bool = False, tolerance: float = 1e-5) -> bool:
    """The edited model on any channels is the old one on three times their mean."""
    image = noise(1, channels, SIZE, SIZE, seed=7)
    old, new = image.mean(1, keepdims=True).repeat(3, 1), image
    if last:
        old, new = old.transpose(0, 2, 3, 1), new.transpose(0, 2, 3, 1)
    pairs = zip(run(before, old), run(after, new), strict=True)
    return all(np.abs(a - b).max() <= tolerance * np.abs(a).max() for a, b in pairs)


# Kernels, declared sizes, counts


def shuffled(order: Sequence[int], second: Sequence[int]) -> list[NodeProto]:
    return [
        node("Reshape", ["image", "first"], ["cut"]),
        node("Transpose", ["cut"], ["turned"], perm=order),
        node("Reshape", ["turned", "second"], ["x"]),
    ]


CUT = {"first": ints(1, 3, 4, 2, 4, 2)}
GRAPHS: dict[str, tuple[Sequence[NodeProto], Weights, Dims, dict[str, int]]] = {
    "Conv": ([conv(pads=[1, 1, 1, 1])], KERNEL, RGB, {"image": 1}),
    "Conv behind Neg": ([node("Neg", ["image"], ["x"]), conv("x")], KERNEL, RGB, {"image": 1, "x": 1}),
    "channels last": (
        [node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]), conv("x")],
        KERNEL,
        (1, SIZE, SIZE, 3),
        {"image": 3, "x": 1},
    ),
    "ConvTranspose": (
        [node("ConvTranspose", ["image", "kernel"], ["out"])],
        {"kernel": noise(3, 5, 3, 3)},
        RGB,
        {"image": 1},
    ),
    "pixels fastest": (
        [*shuffled([0, 1, 3, 5, 2, 4], ()), conv("x")],
        {**CUT, "second": ints(1, 12, 4, 4), "kernel": noise(5, 12, 3, 3)},
        RGB,
        {"image": 1, "cut": 1, "turned": 1, "x": 1},
    ),
    "patches": (
        [*shuffled([0, 2, 4, 3, 5, 1], ()), node("MatMul", ["x", "kernel"], ["out"])],
        {**CUT, "second": ints(1, 16, 12), "kernel": noise(12, 5)},
        RGB,
        {"image": 1, "cut": 1, "turned": 5, "x": 2},
    ),
    "Gemm": (
        [node("Flatten", ["image"], ["x"]), node("Gemm", ["x", "kernel", "bias"], ["out"], transB=1)],
        {"kernel": noise(5, 192), "bias": noise(5)},
        RGB,
        {"image": 1, "x": 1},
    ),
    "SpaceToDepth": (
        [node("SpaceToDepth", ["image"], ["x"], blocksize=2), conv("x")],
        {"kernel": noise(5, 12, 3, 3)},
        RGB,
        {"image": 1, "x": 1},
    ),
    "a turned kernel": (
        [
            *shuffled([0, 2, 4, 3, 5, 1], ()),
            node("Transpose", ["kernel"], ["t"], perm=[1, 0]),
            node("MatMul", ["x", "t"], ["out"]),
        ],
        {**CUT, "second": ints(1, 16, 12), "kernel": noise(5, 12)},
        RGB,
        {"image": 1, "cut": 1, "turned": 5, "x": 2, "t": 0},
    ),
    "float16": (
        [node("Cast", ["kernel"], ["k"], to=TensorProto.FLOAT), conv(kernel="k")],
        {"kernel": noise(5, 3, 3, 3).astype(np.float16)},
        RGB,
        {"image": 1, "k": 1},
    ),
    "a computed batch": (
        [
            node("Shape", ["image"], ["sizes"]),
            node("Slice", ["sizes", "zero", "one"], ["n"]),
            node("Concat", ["n", "c", "rest"], ["first"], axis=0),
            *shuffled([0, 1, 3, 5, 2, 4], ()),
            conv("x"),
        ],
        {
            **{"zero": ints(0), "one": ints(1), "c": ints(3), "rest": ints(4, 2, 4, 2)},
            **{"second": ints(-1, 12, 4, 4), "kernel": noise(5, 12, 3, 3)},
        },
        RGB,
        {"image": 1, "cut": 1, "turned": 1, "x": 1},
    ),
}


@pytest.mark.parametrize("channels", [1, 2, 4, 200])
@pytest.mark.parametrize("name", GRAPHS)
def test_an_edited_graph_declares_and_computes_the_new_channels(name: str, channels: int, source: Open):
    nodes, weights, shape, axes = GRAPHS[name]
    before = model(nodes, weights, shape, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint, channels))
    old, new = declared(before), declared(after)
    assert {known: sizes for known, sizes in new.items() if known not in axes} == {k: s for k, s in old.items() if k not in axes}
    for known, axis in axes.items():
        assert new[known] == [n // 3 * channels if k == axis else n for k, n in enumerate(old[known])]
    assert agrees(before, after, channels, last=shape[-1] == 3, tolerance=1e-3 if name == "float16" else 1e-5)


def test_nothing_else_changes(source: Open):
    before = model([conv(out="x", name="stem"), node("Relu", ["x"], ["out"])], {**KERNEL, "unused": noise(4)}, inferred=True)
    before.metadata_props.add(key="author", value="somebody")
    before.doc_string = "d" * 300
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    expected = ModelProto()
    expected.CopyFrom(before)
    expected.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    expected.graph.initializer[0].dims[1] = 1
    expected.graph.initializer[0].raw_data = KERNEL["kernel"].sum(1, keepdims=True).tobytes()
    assert after == expected


def test_there_and_back_is_the_same_file(source: Open):
    before = model([node("Relu", ["image"], ["x"]), conv("x")], KERNEL, inferred=True)
    checkpoint = opened(source, before)
    after = opened(source, edited(checkpoint, summed(checkpoint)))
    back = Edits({"kernel": TensorEdit((5, 3, 3, 3), lambda: KERNEL["kernel"])}, channels=3)
    assert edited(after, back).SerializeToString() == before.SerializeToString()


def test_no_edit_is_no_splice(source: Open):
    assert opened(source, model([conv()], KERNEL)).splices(Edits()) == []


@pytest.mark.parametrize("shape", [("n", "c", "h", "w"), ("n", None, 8, 8), ("n", 3, "h", "w")], ids=str)
def test_sizes_that_are_open_stay_open(shape: Dims, source: Open):
    checkpoint = opened(source, model([conv()], KERNEL, shape))
    after = edited(checkpoint, summed(checkpoint))
    assert declared(after)["image"] == [1 if n == 3 else n or "" for n in shape]


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "raw"])
def test_a_kernel_keeps_the_way_its_elements_are_stored(typed: bool, source: Open):
    before = model([conv()], {})
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [5, 3, 3, 3], KERNEL["kernel"].ravel())
    before.graph.initializer.append(kernel if typed else numpy_helper.from_array(KERNEL["kernel"], "kernel"))
    checkpoint = opened(source, before)
    (after,) = edited(checkpoint, summed(checkpoint)).graph.initializer
    assert (len(after.float_data), len(after.raw_data)) == ((45, 0) if typed else (0, 180))
    assert np.array_equal(numpy_helper.to_array(after), KERNEL["kernel"].sum(1, keepdims=True))


def test_a_half_kernel_in_typed_numbers_becomes_raw(source: Open):
    half = KERNEL["kernel"].astype(np.float16)
    before = model([node("Cast", ["kernel"], ["k"], to=TensorProto.FLOAT), conv(kernel="k")], {})
    before.graph.initializer.append(helper.make_tensor("kernel", TensorProto.FLOAT16, [5, 3, 3, 3], half.ravel()))
    checkpoint = opened(source, before)
    (after,) = edited(checkpoint, summed(checkpoint)).graph.initializer
    assert (len(after.int32_data), len(after.raw_data)) == (0, 90)
    assert np.array_equal(numpy_helper.to_array(after), half.sum(1, keepdims=True))


def test_a_kernel_in_a_constant_node_is_edited_there(source: Open):
    constant = node("Constant", [], ["kernel"], value=numpy_helper.from_array(KERNEL["kernel"], "kernel"))
    before = model([constant, conv()], inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    assert after.graph.node[0].attribute[0].t.dims == [5, 1, 3, 3]
    assert declared(after)["kernel"] == [5, 1, 3, 3]
    assert agrees(before, after)


def test_a_kernel_that_is_listed_as_an_input_is_declared_anew(source: Open):
    before = model([conv()], KERNEL, inputs={"kernel": [5, 3, 3, 3]}, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint, 4))
    assert declared(after)["kernel"] == [5, 4, 3, 3]


def test_a_kernel_of_groups_is_set_to_one(source: Open):
    """Depthwise: for two channels its dense expansion, for which the groups are gone."""
    before = model([conv(group=3)], {"kernel": noise(6, 1, 3, 3)}, inferred=True)
    checkpoint = opened(source, before)
    (found,) = checkpoint.graph.first_convs()
    shape = checkpoint.graph.dense_shape(found, 2)
    dense = noise(*shape, seed=5)
    after = edited(checkpoint, Edits({"kernel": TensorEdit(shape, lambda: dense)}, channels=2))
    assert [(a.name, a.i) for a in after.graph.node[0].attribute] == [("group", 1)]
    image = noise(1, 2, SIZE, SIZE)
    expected = run(model([conv()], {"kernel": dense}, (1, 2, SIZE, SIZE)), image)
    assert np.array_equal(run(after, image)[0], expected[0])


# Others that read the same


def test_another_reader_of_the_kernel_gets_a_copy_of_the_old_one(source: Open):
    before = model(
        [conv(out="a"), conv("a2", out="b"), node("Add", ["a", "b"], ["out"])], {"kernel": noise(3, 3, 3, 3)}, inputs={"a2": RGB}
    )
    checkpoint = opened(source, before)
    checkpoint.graph.select_inputs(["image"])
    after = edited(checkpoint, summed(checkpoint))
    assert {name: array.shape for name, array in initializers(after).items()} == {
        "kernel": (3, 1, 3, 3),
        "kernel_before": (3, 3, 3, 3),
    }
    more = noise(*RGB, seed=2)
    (old,), (new,) = run(before, GRAY.repeat(3, 1), a2=more), run(after, GRAY, a2=more)
    assert np.abs(old - new).max() < 1e-5


def test_readers_behind_identities_are_found(source: Open):
    nodes = [
        node("Identity", ["kernel"], ["same"]),
        conv(out="a"),
        conv("a", "same", "out"),
    ]
    before = model(nodes, {"kernel": noise(3, 3, 3, 3)}, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    assert agrees(before, after)
    assert set(initializers(after)) == {"kernel", "kernel_before"}


def test_a_name_that_is_taken_is_not_taken_again(source: Open):
    weights = {"kernel": noise(3, 3, 3, 3), "kernel_before": noise(2)}
    before = model([conv(out="a"), conv("a", out="kernel_before_"), node("Relu", ["kernel_before_"], ["out"])], weights)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    assert set(initializers(after)) == {"kernel", "kernel_before", "kernel_before__"}
    assert agrees(before, after)


def test_a_shape_that_serves_others_too_is_copied_for_them(source: Open):
    nodes = [
        node("Reshape", ["image", "shape"], ["x"]),
        conv("x", out="a", pads=[1, 1, 1, 1]),
        node("Reshape", ["a", "shape"], ["out"]),
    ]
    before = model(nodes, {"kernel": noise(3, 3, 3, 3), "shape": ints(1, 3, SIZE, SIZE)}, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    assert {n: a.tolist() for n, a in initializers(after).items() if n != "kernel"} == {
        "shape": [1, 1, SIZE, SIZE],
        "shape_before": [1, 3, SIZE, SIZE],
    }
    assert agrees(before, after)


def test_a_kernel_that_the_graph_gives_out_is_refused(source: Open):
    nodes = [conv(), node("Identity", ["kernel"], ["copy"])]
    checkpoint = opened(source, model(nodes, KERNEL, outputs=("out", "copy")))
    with pytest.raises(UnsupportedError, match=r"^a\.onnx: copy: changes shape, and is an output of the graph too$"):
        checkpoint.splices(summed(checkpoint))


def test_a_reader_in_a_branch_gets_the_old_kernel_too(source: Open):
    """The branches convolve what the stem gives out with the same kernel."""
    branches = {"then_branch": branch("a", [conv("x", out="z")]), "else_branch": branch("b", [conv("x", out="z")])}
    nodes = [conv(out="x"), node("If", ["chosen"], ["out"], **branches)]
    before = model(nodes, {"kernel": noise(3, 3, 3, 3)}, inputs={"chosen": []})
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    for chosen in (True, False):
        old, new = (run(m, x, chosen=np.array(chosen))[0] for m, x in ((before, GRAY.repeat(3, 1)), (after, GRAY)))
        assert np.abs(old - new).max() < 1e-5


SHARED: dict[str, tuple[list[NodeProto], Weights]] = {
    "Conv": ([node("Conv", ["image", "kernel", "bias"], ["y"])], {**KERNEL, "bias": noise(5)}),
    "ConvTranspose": (
        [node("ConvTranspose", ["image", "kernel", "bias"], ["y"])],
        {"kernel": noise(3, 5, 3, 3), "bias": noise(5)},
    ),
    "Gemm": (
        [node("Flatten", ["image"], ["x"]), node("Gemm", ["x", "kernel", "bias"], ["y"])],
        {"kernel": noise(192, 5), "bias": noise(5)},
    ),
    "QLinearConv": (
        [node("QLinearConv", ["image", "s", "z", "kernel", "s", "z", "s", "z", "bias"], ["y"])],
        {
            "kernel": np.ones((5, 3, 3, 3), np.int8),
            "s": floats(1),
            "z": np.array([0], np.int8),
            "bias": np.arange(5, dtype=np.int32),
        },
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_bias_that_serves_others_too_is_copied_for_them(name: str, source: Open):
    nodes, weights = SHARED[name]
    nodes = [*nodes, node("Neg", ["bias"], ["out"])]
    checkpoint = opened(source, model(nodes, weights))
    new = weights["bias"] + weights["bias"].dtype.type(1)
    edits = summed(checkpoint)
    after = rewritten(
        checkpoint, checkpoint.splices(edits._replace(tensors={**edits.tensors, "bias": TensorEdit((5,), lambda: new)}))
    )
    assert np.array_equal(initializers(after)["bias"], new)
    assert np.array_equal(initializers(after)["bias_before"], weights["bias"])
    assert [list(n.input)[-1] for n in after.graph.node[-2:]] == ["bias", "bias_before"]


# Constants, biases


def test_per_channel_constants_are_edited_with_the_kernel(source: Open):
    nodes = [node("Sub", ["image", "mean"], ["x"]), node("BatchNormalization", ["x", *"gbmv"], ["y"]), conv("y")]
    weights = {**KERNEL, "mean": noise(1, 3, 1, 1), **{name: noise(3, seed=k) + 2 for k, name in enumerate("gbmv")}}
    checkpoint = opened(source, model(nodes, weights, inferred=True))
    first = {name: w[:1] if name in "gbmv" else w[:, :1] for name, w in weights.items()}
    edits = {name: TensorEdit(new.shape, lambda new=new: new) for name, new in first.items()}
    after = edited(checkpoint, Edits(edits, channels=1))
    assert {name: array.shape for name, array in initializers(after).items()} == {
        **{"kernel": (5, 1, 3, 3), "mean": (1, 1, 1, 1)},
        **dict.fromkeys("gbmv", (1,)),
    }
    assert {name: sizes[1] for name, sizes in declared(after).items() if name in ("image", "x", "y")} == {
        "image": 1,
        "x": 1,
        "y": 1,
    }


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_a_kernel_without_a_bias_gets_one(op: str, source: Open):
    kernels = {"Conv": noise(5, 3, 3, 3), "ConvTranspose": noise(3, 5, 3, 3), "Gemm": noise(192, 5)}
    nodes = [node(op, ["x" if op == "Gemm" else "image", "kernel"], ["out"])]
    nodes = [node("Flatten", ["image"], ["x"]), *nodes] if op == "Gemm" else nodes
    before = model(nodes, {"kernel": kernels[op]}, inferred=True)
    checkpoint = opened(source, before)
    bias = np.arange(5, dtype=np.float64) + 0.1
    edits = summed(checkpoint)._replace(biases={"kernel": TensorEdit((5,), lambda: bias)})
    after = edited(checkpoint, edits)
    assert np.array_equal(initializers(after)["kernel_bias"], bias.astype(np.float32))
    (old,), (new,) = run(before, GRAY.repeat(3, 1)), run(after, GRAY)
    wide = bias.reshape((5,) if op == "Gemm" else (5, 1, 1))
    assert np.abs(old + wide - new).max() < 1e-4


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        (
            [*shuffled([0, 2, 4, 3, 5, 1], ()), node("MatMul", ["x", "kernel"], ["out"])],
            {**CUT, "second": ints(1, 16, 12), "kernel": noise(12, 5)},
        ),
        ([node("Conv", ["image", "kernel", "bias"], ["out"])], {**KERNEL, "bias": noise(5)}),
        ([node("ConvInteger", ["image", "kernel"], ["out"])], {"kernel": np.ones((5, 3, 3, 3), np.int8)}),
    ],
    ids=["MatMul", "a bias", "whole numbers"],
)
def test_a_bias_that_has_no_place_is_refused(nodes: list[NodeProto], weights: Weights, source: Open):
    checkpoint = opened(source, model(nodes, weights))
    edits = summed(checkpoint)._replace(biases={"kernel": TensorEdit((5,), lambda: np.zeros(5))})
    with pytest.raises(UnsupportedError, match=r"^a\.onnx: kernel: has no bias to take the constant of its preprocessing$"):
        checkpoint.splices(edits)


TAKERS: dict[str, tuple[list[NodeProto], tuple[str, int] | None]] = {
    "a bias": ([node("Conv", ["image", "kernel", "bias"], ["out"])], ("bias", 1)),
    "a bias that is fed": ([node("Conv", ["image", "kernel", "fed"], ["out"])], None),
    "no bias": ([conv()], None),
    "BatchNormalization": ([conv(out="x"), node("BatchNormalization", ["x", "g", "b", "mean", "v"], ["out"])], ("mean", -1)),
    "BatchNormalization of two": (
        [conv(out="x"), node("BatchNormalization", ["x", "g", "b", "mean", "v"], ["out"]), node("Relu", ["x"], ["y"])],
        None,
    ),
    "BatchNormalization of what is given out": (
        [conv(out="out"), node("BatchNormalization", ["out", "g", "b", "mean", "v"], ["y"])],
        None,
    ),
    "BatchNormalization behind Relu": (
        [conv(out="x"), node("Relu", ["x"], ["y"]), node("BatchNormalization", ["y", "g", "b", "mean", "v"], ["out"])],
        None,
    ),
    "a bias before BatchNormalization": (
        [
            node("Conv", ["image", "kernel", "bias"], ["x"]),
            node("BatchNormalization", ["x", "g", "b", "mean", "v"], ["out"]),
        ],
        ("bias", 1),
    ),
    "Add behind MatMul": ([node("MatMul", ["image", "kernel"], ["x"]), node("Add", ["bias", "x"], ["out"])], ("bias", 1)),
    "Add of a table": ([node("MatMul", ["image", "kernel"], ["x"]), node("Add", ["x", "kernel"], ["out"])], None),
    "Add behind Conv": ([conv(out="x"), node("Add", ["x", "bias"], ["out"])], None),
}


@pytest.mark.parametrize("name", TAKERS)
def test_who_takes_a_constant(name: str, source: Open):
    nodes, expected = TAKERS[name]
    weights = {**KERNEL, **{known: noise(5) for known in ("bias", "g", "b", "mean", "v")}}
    found = opened(source, model(nodes, weights, inputs={"fed": [5]})).model
    assert bias_target(found, found.nodes[0]) == expected


def test_counts_of_one_tensor_are_edited_together(source: Open):
    nodes = [
        node("Reshape", ["image", "s"], ["x"]),
        node("Reshape", ["x", "t"], ["y"]),
        node("SpaceToDepth", ["y"], ["d"], blocksize=2),
        conv("d"),
    ]
    weights = {"kernel": noise(5, 12, 3, 3), "s": ints(1, 3, 64), "t": ints(1, 3, SIZE, SIZE)}
    checkpoint = opened(source, model(nodes, weights))
    made = count_edits(checkpoint.graph.paths[0].counts, 5, checkpoint.model)
    assert {name: (edit.shape, edit.values().tolist()) for name, edit in made.items()} == {
        "s": ((3,), [1, 5, 64]),
        "t": ((4,), [1, 5, SIZE, SIZE]),
    }
    assert checkpoint.load("s").tolist() == [1, 3, 64]


# One channel by the graph


def test_stack_puts_a_concat_in_front(source: Open):
    """Everyone who read the image reads what it makes; only the image is declared anew."""
    nodes = [node("Relu", ["image"], ["x"]), conv("x", out="a"), conv(out="b"), node("Add", ["a", "b"], ["out"])]
    before = model(nodes, KERNEL, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, Edits(channels=1, method="stack"))
    first = after.graph.node[0]
    assert (first.op_type, list(first.input), list(first.output)) == ("Concat", ["image"] * 3, ["image_stacked"])
    assert (first.attribute[0].name, first.attribute[0].i) == ("axis", 1)
    assert [list(n.input) for n in after.graph.node[1:4]] == [["image_stacked"], ["x", "kernel"], ["image_stacked", "kernel"]]
    assert {name for name, sizes in declared(after).items() if sizes != declared(before)[name]} == {"image"}
    assert np.array_equal(run(after, GRAY)[0], run(before, GRAY.repeat(3, 1))[0])


STACKED: dict[str, tuple[Sequence[NodeProto], Weights, Dims, int]] = {
    "gathered": ([node("Gather", ["image", "order"], ["x"], axis=1), conv("x")], {**KERNEL, "order": ints(2, 1, 0)}, RGB, 1),
    "channels last": ([node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]), conv("x")], KERNEL, (1, SIZE, SIZE, 3), 3),
    "a name that is taken": ([node("Relu", ["image"], ["image_stacked"]), conv("image_stacked")], KERNEL, RGB, 1),
    "open channels": ([conv()], KERNEL, ("n", "c", SIZE, SIZE), 1),
}


@pytest.mark.parametrize("name", STACKED)
def test_stacked_channels_are_those_of_before(name: str, source: Open):
    nodes, weights, shape, axis = STACKED[name]
    before = model(nodes, weights, shape)
    after = edited(opened(source, before), Edits(channels=1, method="stack"))
    gray = GRAY.reshape(1, SIZE, SIZE, 1) if axis == 3 else GRAY
    assert np.array_equal(run(after, gray)[0], run(before, gray.repeat(3, axis))[0])
    assert initializers(after).keys() == initializers(before).keys()


def test_an_image_in_branches_is_stacked_in_front_of_them(source: Open):
    branches = {
        "then_branch": branch("a", [conv(out="z")]),
        "else_branch": branch("b", [node("Relu", ["image"], ["y"]), conv("y", out="z")]),
    }
    before = model([node("If", ["chosen"], ["out"], **branches)], KERNEL, inputs={"chosen": []})
    after = edited(opened(source, before), Edits(channels=1, method="stack"))
    for chosen in (True, False):
        old, new = (run(m, x, chosen=np.array(chosen))[0] for m, x in ((before, GRAY.repeat(3, 1)), (after, GRAY)))
        assert np.array_equal(old, new)


def undeclared(side: int) -> ModelProto:
    nodes = [node("Gather", ["image", "order"], ["x"], axis=1), conv("x")]
    return model(nodes, {**KERNEL, "order": ints(2, 1, 0)}, (1, "c", side, side))


REFUSAL = r"^a\.onnx: image: its number of channels is not declared, so it cannot be stacked$"


def test_channels_that_nobody_declares_cannot_be_stacked(source: Open):
    checkpoint = opened(source, undeclared(64))
    with pytest.raises(UnsupportedError, match=REFUSAL):
        checkpoint.splices(Edits(channels=1, method="stack"))


def test_the_width_of_a_small_image_is_not_stacked(source: Open):
    checkpoint = opened(source, undeclared(32))
    with pytest.raises(UnsupportedError, match=REFUSAL):
        checkpoint.splices(Edits(channels=1, method="stack"))


def test_broadcast_declares_one_channel_up_to_the_constants(source: Open):
    nodes = [node("Relu", ["image"], ["x"]), node("Sub", ["x", "mean"], ["y"]), conv("y")]
    before = model(nodes, {**KERNEL, "mean": noise(1, 3, 1, 1)}, inferred=True)
    after = edited(opened(source, before), Edits(channels=1, method="broadcast"))
    channels = {name: sizes[1] for name, sizes in declared(after).items()}
    assert channels == {"image": 1, "x": 1, "y": 3, "out": 5}
    assert [n.op_type for n in after.graph.node] == ["Relu", "Sub", "Conv"]
    assert np.array_equal(run(after, GRAY)[0], run(before, GRAY.repeat(3, 1))[0])


# External data


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A model whose tensors stand in a file beside it."""
    path = tmp_path / "a.onnx"
    made = model([node("Conv", ["image", "kernel", "bias"], ["out"])], {**KERNEL, "bias": noise(5)}, inferred=True)
    onnx.save_model(made, path, save_as_external_data=True, location="a.data", size_threshold=0)
    return path


NAMES: Mapping[str, str] = {"a.data": "renamed/of another length.data"}


def external(made: ModelProto) -> dict[str, str]:
    return {t.name: e.value for t in made.graph.initializer for e in t.external_data if e.key == "location"}


def test_an_edited_kernel_comes_into_the_model_and_the_others_stay_beside(beside: Path, tmp_path: Path):
    with Source(beside) as source:
        checkpoint = FORMATS[0].open(source)
        after = rewritten(checkpoint, checkpoint.splices(summed(checkpoint, companions=NAMES)))
    assert external(after) == {"bias": NAMES["a.data"]}
    kernel = after.graph.initializer[0]
    assert (kernel.data_location, len(kernel.raw_data), list(kernel.dims)) == (TensorProto.DEFAULT, 180, [5, 1, 3, 3])
    (tmp_path / "renamed").mkdir()
    (tmp_path / NAMES["a.data"]).write_bytes((tmp_path / "a.data").read_bytes())
    (tmp_path / "b.onnx").write_bytes(after.SerializeToString())
    onnx.checker.check_model(tmp_path / "b.onnx")
    old, new = run(onnx.load(beside), GRAY.repeat(3, 1)), run(onnx.load(tmp_path / "b.onnx"), GRAY)
    assert np.abs(old[0] - new[0]).max() < 1e-5


def test_a_count_that_is_stored_beside_is_loaded_and_edited(tmp_path: Path):
    nodes = [node("Reshape", ["image", "shape"], ["x"]), conv("x")]
    path = tmp_path / "a.onnx"
    weights = {**KERNEL, "shape": ints(1, 3, SIZE, SIZE)}
    onnx.save_model(model(nodes, weights), path, save_as_external_data=True, location="a.data", size_threshold=0)
    with Source(path) as source:
        checkpoint = FORMATS[0].open(source)
        after = rewritten(checkpoint, checkpoint.splices(summed(checkpoint)))
    assert external(after) == {}
    assert initializers(after)["shape"].tolist() == [1, 1, SIZE, SIZE]
    assert np.abs(run(after, GRAY)[0] - run(model(nodes, weights), GRAY.repeat(3, 1))[0]).max() < 1e-5


def test_a_uniform_constant_needs_no_edit(source: Open):
    before = model([node("Div", ["image", "top"], ["x"]), conv("x")], {**KERNEL, "top": floats(255)}, inferred=True)
    checkpoint = opened(source, before)
    after = edited(checkpoint, summed(checkpoint))
    assert initializers(after)["top"].tolist() == [255]
    assert agrees(before, after)


@pytest.mark.parametrize("to", [1, 3, 4])
def test_a_depthwise_kernel_and_its_bias_change_together(to: int, tmp_path: Path):
    """The groups are taken away once, though both tensors are read by one node."""
    made = model(
        [node("Conv", ["image", "kernel", "bias"], ["out"], group=3)],
        {"kernel": noise(6, 1, 3, 3), "bias": noise(6)},
    )
    onnx.save(made, tmp_path / "a.onnx")
    new = {1: "gray", 3: "bgr", 4: 4}[to]
    folded = convert(tmp_path / "a.onnx", tmp_path / "b.onnx", new, norm="imagenet")
    exact = convert(tmp_path / "a.onnx", tmp_path / "c.onnx", new, norm="imagenet", method="adapter")
    image = noise(1, to, 8, 8)
    assert np.allclose(run(onnx.load(folded.target), image)[0], run(onnx.load(exact.target), image)[0], atol=1e-4)
