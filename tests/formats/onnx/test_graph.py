"""What an ONNX graph answers: its first convs and why, operations before them, methods, declarations and contradictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError, check, convert, inspect, verify
from tests.support.onnx_models import Open, Weights, declared, floats, ints, model, node, noise, opened, run

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


DEPTH = {"image": (1, 3, 8, 8), "depth": (1, 1, 8, 8)}
SEEN = [
    *(node("Conv", ["image", "kernel"], ["a"]), node("Conv", ["depth", "near"], ["b"])),
    *(node("Conv", ["image", "wide"], ["c"]), node("Sum", ["a", "b", "c"], ["out"])),
]
TWO: Weights = {**KERNEL, "near": noise(5, 1, 3, 3, seed=1), "wide": noise(5, 3, 3, 3, seed=2)}


@pytest.fixture
def colors_and_depth(tmp_path: Path) -> Path:
    return saved(tmp_path / "rgbd.onnx", model(SEEN, TWO, inputs={"depth": DEPTH["depth"]}))


def saved(path: Path, made: ModelProto) -> Path:
    onnx.save(made, path)
    return path


def test_several_images_are_told_apart(colors_and_depth: Path):
    assert check(colors_and_depth).ok
    assert [conv.inputs for conv in inspect(colors_and_depth).first_convs] == [("image",), ("image",), ("depth",)]


@pytest.mark.parametrize("how", [{"inputs": ["image"]}, {"layers": ["kernel", "wide"]}])
@pytest.mark.parametrize(("to", "method"), [(4, "zero"), ("gray", "auto"), ("gray", "stack"), ("bgr", "auto")])
def test_one_of_several_images_is_converted(to, method, how, colors_and_depth: Path, tmp_path: Path):
    out = tmp_path / "out.onnx"
    report = convert(colors_and_depth, out, to, method=method, **how)
    after = onnx.load(out)
    matrix = np.array(report.result()["matrix"], np.float32)
    assert declared(after)["depth"] == [1, 1, 8, 8]
    image, depth = noise(1, matrix.shape[1], 8, 8, seed=3), noise(1, 1, 8, 8, seed=4)
    (new,) = run(after, image, depth=depth)
    (old,) = run(onnx.load(colors_and_depth), np.einsum("ij,bjhw->bihw", matrix, image), depth=depth)
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert verify(colors_and_depth, out, to, method=method, **how).ok
    assert check(out, to if to == 4 else None).ok


def test_images_of_several_counts_are_converted_one_at_a_time(colors_and_depth: Path, tmp_path: Path):
    for to in (4, "bgr"):
        with pytest.raises(AmbiguousError, match="take 1 and 3 channels") as refusal:
            convert(colors_and_depth, tmp_path / "out.onnx", to)
        assert refusal.value.hint == "--layer near   or   --layer kernel --layer wide"
    with pytest.raises(AmbiguousError, match="sees the image together with wide"):
        convert(colors_and_depth, tmp_path / "out.onnx", 4, layers=["kernel"])
    assert convert(colors_and_depth, tmp_path / "out.onnx", "gray").in_channels == (3, 1)
    assert not check(tmp_path / "out.onnx", 3).ok


def test_one_kernel_of_two_images(tmp_path: Path):
    """The same constants are composed once; different ones leave no kernel that is right for both."""
    more = {"other": (1, 3, 8, 8)}
    nodes = [
        *(node("Sub", ["image", "m"], ["x"]), node("Sub", ["other", "m"], ["y"]), node("Conv", ["x", "kernel"], ["a"])),
        *(node("Conv", ["y", "kernel"], ["b"]), node("Add", ["a", "b"], ["out"])),
    ]
    weights = {**KERNEL, "m": floats(0.1, 0.2, 0.4).reshape(3, 1, 1)}
    alike = saved(tmp_path / "alike.onnx", model(nodes, weights, inputs=more))
    convert(alike, tmp_path / "bgr.onnx", "bgr")
    left, right = noise(1, 3, 8, 8, seed=5), noise(1, 3, 8, 8, seed=6)
    (old,), (new,) = (
        run(onnx.load(alike), left[:, ::-1], other=right[:, ::-1]),
        run(onnx.load(tmp_path / "bgr.onnx"), left, other=right),
    )
    np.testing.assert_allclose(new, old, atol=1e-5)
    nodes[1] = node("Mul", ["other", "m"], ["y"])
    apart = saved(tmp_path / "apart.onnx", model(nodes, weights, inputs=more))
    convert(apart, tmp_path / "apart_bgr.onnx", "bgr")
    (old,) = run(onnx.load(apart), left[:, ::-1], other=right[:, ::-1])
    (new,) = run(onnx.load(tmp_path / "apart_bgr.onnx"), left, other=right)
    np.testing.assert_allclose(new, old, atol=1e-5)
    with pytest.raises(UnsupportedError, match="this kernel meets several values, with different"):
        convert(apart, tmp_path / "4.onnx", 4, method="repeat")
    convert(apart, tmp_path / "4.onnx", select="2,1,0,0")
    left, right = noise(1, 4, 8, 8, seed=5), noise(1, 4, 8, 8, seed=6)
    swap = np.float32([[0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
    mapped = [np.einsum("ij,njhw->nihw", swap, image) for image in (left, right)]
    (old,) = run(onnx.load(apart), mapped[0], other=mapped[1])
    (new,) = run(onnx.load(tmp_path / "4.onnx"), left, other=right)
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert [n.op_type for n in onnx.load(tmp_path / "4.onnx").graph.node[:2]] == ["Conv", "Conv"]


def test_an_image_of_the_same_count_that_reaches_no_kernel_as_it_is(tmp_path: Path):
    """It is not left behind: `stack` converts both, an edit of the other's kernel alone would not."""
    nodes = [
        *(conv(), node("Softmax", ["other"], ["x"], axis=1), node("Conv", ["x", "wide"], ["b"])),
        *(node("GlobalAveragePool", ["out"], ["c"]), node("GlobalAveragePool", ["b"], ["d"]), node("Add", ["c", "d"], ["sum"])),
    ]
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    saved(source, model(nodes, {**KERNEL, "wide": noise(5, 3, 1, 1)}, outputs=["sum"], inputs={"other": (1, 3, 8, 8)}))
    with pytest.raises(UnsupportedError, match="this Softmax precedes the kernel"):
        convert(source, out, 4, method="repeat")
    assert convert(source, out, "gray").result()["method"] == "stack"
    assert [declared(onnx.load(out))[name][1] for name in ("image", "other")] == [1, 1]
    assert convert(source, tmp_path / "named.onnx", 4, inputs=["image"]).in_channels == (3, 4)


def test_nothing_is_right_already_where_another_image_is_not_followed(tmp_path: Path):
    """Its kernel is computed: it can be neither edited nor called one of three channels."""
    nodes = [
        *(conv(), node("Softmax", ["wide"], ["k"]), node("Conv", ["other", "k"], ["b"])),
        *(node("GlobalAveragePool", ["out"], ["c"]), node("GlobalAveragePool", ["b"], ["d"]), node("Add", ["c", "d"], ["sum"])),
    ]
    weights = {**KERNEL, "wide": noise(5, 1, 1, 1)}
    source = saved(tmp_path / "in.onnx", model(nodes, weights, outputs=["sum"], inputs={"other": (1, 1, 8, 8)}))
    with pytest.raises(UnsupportedError, match="b: its kernel is computed, and not stored in the file"):
        convert(source, tmp_path / "out.onnx", "rgb")
    assert convert(source, tmp_path / "out.onnx", "rgb", inputs=["image"]).status == "unchanged"


def test_the_channels_of_an_image_that_declares_none(tmp_path: Path):
    """A Resize to so many does not say how many there were before."""
    resize = node("Resize", ["image", "", "", "sizes"], ["x"], mode="nearest")
    source = saved(
        tmp_path / "in.onnx", model([resize, conv("x")], {**KERNEL, "sizes": ints(1, 3, 16, 16)}, ("N", "C", "H", "W"))
    )
    with pytest.raises(UnsupportedError, match="how many channels its image has is not declared") as refusal:
        convert(source, tmp_path / "out.onnx", "gray")
    assert refusal.value.hint == "--from, with their number"
    convert(source, tmp_path / "out.onnx", "gray", from_channels=3)
    gray = noise(1, 1, 8, 8, seed=8)
    (old,), (new,) = run(onnx.load(source), gray.repeat(3, 1)), run(onnx.load(tmp_path / "out.onnx"), gray)
    np.testing.assert_allclose(new, old, atol=1e-5)


def beside(first: int, second: int) -> ModelProto:
    """Two images, each with its own kernel."""
    nodes = [node("Conv", ["image", "k"], ["a"]), node("Conv", ["other", "m"], ["b"]), node("Add", ["a", "b"], ["out"])]
    weights = {"k": noise(4, first, 3, 3), "m": noise(4, second, 3, 3, seed=1)}
    return model(nodes, weights, (1, first, 8, 8), inputs={"other": (1, second, 8, 8)})


def joined(first: int, second: int) -> ModelProto:
    """Two images that are joined in front of one kernel."""
    nodes = [node("Concat", ["image", "other"], ["x"], axis=1), node("Conv", ["x", "k"], ["out"])]
    return model(nodes, {"k": noise(4, first + second, 3, 3)}, (1, first, 8, 8), inputs={"other": (1, second, 8, 8)})


@pytest.mark.parametrize("made", [beside, joined])
@pytest.mark.parametrize(("counts", "meant"), [((3, 1), 3), ((1, 3), 3), ((3, 1), 1), ((4, 2), 4), ((4, 2), 2), ((3, 3), 3)])
def test_of_several_images_those_are_meant_that_have_the_count(
    made: Callable[[int, int], ModelProto], counts: tuple[int, int], meant: int, tmp_path: Path
):
    """The others are known, and stay: nothing is said of them."""
    source, matrix = saved(tmp_path / "in.onnx", made(*counts)), noise(meant, 5)
    report = convert(source, tmp_path / "out.onnx", matrix=matrix.tolist(), from_channels=meant)
    assert report.in_channels == (meant, 5)
    assert not [notice for notice in report.warnings if notice.code != "adapter"]
    images = {"image": counts[0], "other": counts[1]}
    new = {name: noise(1, 5 if count == meant else count, 8, 8, seed=count) for name, count in images.items()}
    old = {name: new[name] if n != meant else np.einsum("ij,njhw->nihw", matrix, new[name]) for name, n in images.items()}
    before, after = (ReferenceEvaluator(onnx.load(path)) for path in (source, tmp_path / "out.onnx"))
    np.testing.assert_allclose(
        after.run(None, new)[0], before.run(None, {n: x.astype("f4") for n, x in old.items()})[0], atol=1e-5
    )


def test_a_count_that_no_image_has(tmp_path: Path):
    with pytest.raises(UsageError, match="k: --from says 9 channels, the kernel has 3"):
        convert(saved(tmp_path / "in.onnx", beside(3, 1)), tmp_path / "out.onnx", 5, from_channels=9)


def test_images_of_several_counts_at_one_kernel(tmp_path: Path):
    """Those are meant whose count is not the target's; where that leaves several, the user says."""
    colors = convert(saved(tmp_path / "a.onnx", joined(1, 3)), tmp_path / "b.onnx", "gray")
    assert (colors.in_channels, [d.where for d in colors.declarations]) == ((3, 1), ["graph.input other"])
    bands = convert(saved(tmp_path / "c.onnx", joined(1, 4)), tmp_path / "d.onnx", "gray")
    assert (bands.in_channels, [d.where for d in bands.declarations]) == ((4, 1), ["graph.input other"])
    for counts, to in [((4, 2), 1), ((3, 1), 5)]:
        with pytest.raises(AmbiguousError, match="its first convolutions take") as refusal:
            convert(saved(tmp_path / "e.onnx", joined(*counts)), tmp_path / "f.onnx", to)
        assert refusal.value.hint == f"--from {counts[1]}   or   --from {counts[0]}"


def test_a_kernel_of_an_image_that_is_not_followed_stays(tmp_path: Path):
    """Another input takes the same kernel: an edit would be wrong for it, and a copy would leave it behind."""
    nodes = [
        *(conv(), node("Expand", ["other", "to"], ["x"]), node("Conv", ["x", "kernel"], ["b"])),
        *(node("GlobalAveragePool", ["out"], ["c"]), node("GlobalAveragePool", ["b"], ["d"]), node("Add", ["c", "d"], ["sum"])),
    ]
    weights = {**KERNEL, "to": ints(1, 3, 8, 8)}
    source = saved(tmp_path / "in.onnx", model(nodes, weights, outputs=["sum"], inputs={"other": None}))
    with pytest.raises(UnsupportedError, match="x: the image 'other' is not followed through this Expand"):
        convert(source, tmp_path / "out.onnx", 4)
    assert convert(source, tmp_path / "out.onnx", 4, inputs=["image"]).in_channels == (3, 4)


def test_a_factor_is_no_image(tmp_path: Path):
    """It reaches the kernel by the sizes of the image, which it changes."""
    resize = node("Resize", ["image", "", "factors"], ["x"], mode="nearest")
    made = model([resize, conv("x")], KERNEL, inputs={"factors": [4]})
    assert not convert(saved(tmp_path / "in.onnx", made), tmp_path / "out.onnx", 4).warnings


def test_an_image_of_its_own_that_is_not_followed_is_named(tmp_path: Path):
    nodes = [
        *(conv(), node("Expand", ["other", "to"], ["x"]), node("Conv", ["x", "wide"], ["b"])),
        *(node("GlobalAveragePool", ["out"], ["c"]), node("GlobalAveragePool", ["b"], ["d"]), node("Add", ["c", "d"], ["sum"])),
    ]
    weights = {**KERNEL, "wide": noise(5, 2, 1, 1), "to": ints(1, 2, 8, 8)}
    source = saved(tmp_path / "in.onnx", model(nodes, weights, outputs=["sum"], inputs={"other": None}))
    (warning,) = convert(source, tmp_path / "out.onnx", 4).warnings
    assert (warning.code, warning.message[:43]) == ("image_left", "the input 'other' reaches convolutions too,")


@pytest.mark.parametrize(("dims", "code"), [((None, None), "unchanged"), (None, "other"), ((1, None, 8, 8), "other")])
def test_nothing_is_right_already_where_an_image_is_not_followed_but_for_a_vector(
    dims: tuple[int | None, ...] | None, code: str, tmp_path: Path
):
    """A message of bits is laid over the pixels by sizes that are computed (RivaGAN's encoder); it is no image."""
    sizes = [
        node("Shape", ["image"], ["s"]),
        node("Gather", ["s", "rows"], ["hw"]),
        node("Concat", ["one", "hw"], ["to"], axis=0),
    ]
    nodes = [
        *(conv(), *sizes, node("Reshape", ["other", "flat"], ["f"]), node("Expand", ["f", "to"], ["x"])),
        *(node("Conv", ["x", "wide"], ["b"]), node("Add", ["out", "b"], ["sum"])),
    ]
    weights = {**KERNEL, "wide": noise(5, 2, 3, 3), "rows": ints(2, 3), "one": ints(1, 2), "flat": ints(1, 2, 1, 1)}
    source = saved(tmp_path / "in.onnx", model(nodes, weights, outputs=["sum"], inputs={"other": dims}))
    if code == "unchanged":
        assert convert(source, tmp_path / "out.onnx", "rgb").status == code
    else:
        with pytest.raises(UnsupportedError, match="the image 'other' is not followed"):
            convert(source, tmp_path / "out.onnx", "rgb")


@pytest.mark.parametrize(("shape", "turned"), [((1, 3, 8, 8), False), ((1, 8, 8, 3), True)], ids=["first", "last"])
def test_channels_are_put_in_order_in_front_of_what_mixes_them(shape: tuple[int, ...], turned: bool, tmp_path: Path):
    turn = [node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])] if turned else [node("Identity", ["x"], ["y"])]
    swap = node("Gather", ["image", "order"], ["x"], axis=3 if turned else 1)
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    saved(source, model([swap, *turn, conv("y")], {**KERNEL, "order": ints(1, 2, 0)}, shape))
    report = convert(source, out, "bgr")
    assert (report.result()["method"], report.result()["matrix"]) == ("gather", [[0, 0, 1], [0, 1, 0], [1, 0, 0]])
    image = noise(*shape, seed=9)
    (old,), (new,) = run(onnx.load(source), np.flip(image, 3 if turned else 1)), run(onnx.load(out), image)
    np.testing.assert_array_equal(new, old)
    assert verify(source, out, "bgr").ok
    assert check(out, 3).ok
    assert not verify(source, source, "bgr").ok
    convert(out, tmp_path / "back.onnx", "bgr")
    (back,), (first,) = run(onnx.load(tmp_path / "back.onnx"), image), run(onnx.load(source), image)
    np.testing.assert_array_equal(back, first)


IN_FRONT: dict[str, tuple[list[NodeProto], Weights]] = {
    "a mean, then Clip": (
        [node("Sub", ["image", "m"], ["a"]), node("Clip", ["a", "low", "high"], ["x"])],
        {"m": noise(3, 1, 1), "low": np.float32(-0.5), "high": np.float32(0.5)},
    ),
    "a mean, quantized": (
        [
            *(node("Sub", ["image", "m"], ["a"]), node("QuantizeLinear", ["a", "s", "z"], ["b"])),
            node("DequantizeLinear", ["b", "s", "z"], ["x"]),
        ],
        {"m": noise(3, 1, 1), "s": np.float32(0.02), "z": np.array(128, np.uint8)},
    ),
    "an image of means": ([node("Sub", ["image", "m"], ["x"])], {"m": noise(3, 8, 8)}),
    "powers": ([node("Pow", ["image", "m"], ["x"])], {"m": np.abs(noise(3, 1, 1))}),
    "a channel times zero": ([node("Mul", ["image", "m"], ["x"])], {"m": floats(0, 1, 2).reshape(3, 1, 1)}),
}


@pytest.mark.parametrize("name", IN_FRONT)
def test_a_permutation_passes_what_treats_channels_apart(name: str, tmp_path: Path):
    nodes, weights = IN_FRONT[name]
    source, out = saved(tmp_path / "in.onnx", model([*nodes, conv("x")], {**KERNEL, **weights}, opset=19)), tmp_path / "out.onnx"
    assert convert(source, out, "bgr").in_channels == (3, 3)
    image = np.abs(noise(1, 3, 8, 8, seed=7))
    (old,), (new,) = run(onnx.load(source), image[:, ::-1]), run(onnx.load(out), image)
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert verify(source, out, "bgr").ok
    with pytest.raises(UnsupportedError, match=r"no kernel edit is exact|a channel by zero"):
        convert(source, tmp_path / "4.onnx", 4, method="repeat")


def test_the_matrix_of_a_graph_method_maps_images(tmp_path: Path):
    made = saved(tmp_path / "in.onnx", model([conv()], KERNEL))
    record = convert(made, tmp_path / "out.onnx", "gray", method="stack").result()
    assert (record["method"], record["matrix"], record["in_channels"]) == ("stack", [[1.0]] * 3, {"before": 3, "after": 1})
    assert verify(made, tmp_path / "out.onnx", "gray", method="stack").result()["matrix"] == [[1.0]] * 3


def test_a_constant_goes_into_no_bias_of_a_kernel_that_nodes_make(source: Open, tmp_path: Path):
    """That of the stored kernel would be another one: the adapter holds it instead."""
    nodes = [node("Mul", ["kernel", "gain"], ["k"]), node("Conv", ["image", "k", "bias"], ["out"])]
    before = model(nodes, {**KERNEL, "gain": floats(2), "bias": noise(5)})
    graph = opened(source, before).graph
    (conv,) = graph.first_convs()
    with pytest.raises(UnsupportedError, match="kernel: is scaled, reshaped or of padded blocks"):
        graph.bias_target(conv)
    onnx.save(before, tmp_path / "a.onnx")
    with pytest.raises(UnsupportedError, match="no constant can be folded"):
        convert(tmp_path / "a.onnx", method="sum", norm="imagenet")
    report = convert(tmp_path / "a.onnx", norm="imagenet")
    assert report.kernels[0].method == "adapter"
    image = noise(1, 1, 8, 8)
    mapped = np.einsum("ij,njhw->nihw", report.kernels[0].matrix, image) + np.reshape(report.kernels[0].offset, (1, 3, 1, 1))
    assert np.allclose(run(onnx.load(report.target), image)[0], run(before, mapped.astype(np.float32))[0], atol=1e-4)


def test_a_sign_before_the_kernel_turns_the_constant(tmp_path: Path):
    nodes = [node("Neg", ["image"], ["n"]), node("Conv", ["n", "kernel", "bias"], ["out"])]
    onnx.save(model(nodes, {**KERNEL, "bias": noise(5)}), tmp_path / "a.onnx")
    folded = convert(tmp_path / "a.onnx", tmp_path / "folded.onnx", method="sum", norm="imagenet").target
    exact = convert(tmp_path / "a.onnx", tmp_path / "exact.onnx", method="adapter", norm="imagenet").target
    image = noise(1, 1, 8, 8)
    assert np.allclose(run(onnx.load(folded), image)[0], run(onnx.load(exact), image)[0], atol=1e-4)


@pytest.mark.parametrize("names", [("image", "depth"), ("depth", "image")])
def test_images_of_two_counts_that_one_kernel_takes_joined(names: tuple[str, str], tmp_path: Path):
    """Toward gray both have one channel then; nothing else could be one conversion of both, and --input says of which."""
    nodes = [node("Concat", ["image", "depth"], ["x"], axis=1), node("Conv", ["x", "kernel"], ["out"])]
    made = model(nodes, {"kernel": noise(5, 4, 3, 3)}, inputs={"depth": ("n", 1, 8, 8)})
    ordered = sorted(made.graph.input, key=lambda info: names.index(info.name))
    del made.graph.input[:]
    made.graph.input.extend(ordered)
    onnx.save(made, tmp_path / "a.onnx")
    for to in (5, "bgr"):
        with pytest.raises(AmbiguousError, match="take 1 and 3 channels"):
            convert(tmp_path / "a.onnx", tmp_path / "out.onnx", to)
    image, depth = noise(1, 3, 8, 8), noise(1, 1, 8, 8)
    gray = image[:, :1]
    old = run(onnx.load(tmp_path / "a.onnx"), gray.repeat(3, 1), depth=depth)[0]
    report = convert(tmp_path / "a.onnx", tmp_path / "gray.onnx")
    assert report.status == "converted"
    assert np.allclose(run(onnx.load(tmp_path / "gray.onnx"), gray, depth=depth)[0], old, atol=1e-5)
    report = convert(tmp_path / "a.onnx", tmp_path / "five.onnx", 5, inputs=["image"])
    five = noise(1, 5, 8, 8)
    mapped = np.einsum("ij,njhw->nihw", report.kernels[0].matrix, five).astype(np.float32)
    old = run(onnx.load(tmp_path / "a.onnx"), mapped, depth=depth)[0]
    assert np.allclose(run(onnx.load(tmp_path / "five.onnx"), five, depth=depth)[0], old, atol=1e-4)
