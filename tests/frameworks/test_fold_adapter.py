"""`--fold-adapter`: a trained convolution in front of a network goes into its stem, judged by onnxruntime.

The image stays as it is, so the old and the new model are run on the same one: equal to rounding where nothing is padded in
between, else inside of the border, and at the border within what the report announces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the framework environment installs it")
ort = pytest.importorskip("onnxruntime", reason="the framework environment installs it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402 # behind importorskip

from chkpt_channels import AmbiguousError, UnsupportedError, check, convert, convert_state_dict, verify  # noqa: E402 # behind importorskip
from chkpt_channels.api import manifest  # noqa: E402 # behind importorskip
from tests.frameworks.test_adapter import REPEAT, Nodes, Weights, noise, plain, run, save  # noqa: E402 # behind importorskip

node = helper.make_node
NCHW = ["N", 4, 8, 8]


def feed(model: Any, scale: float = 1.0) -> np.ndarray:
    kind = model.graph.input[0].type.tensor_type
    dims = [d.dim_value or (2 if not i else 8) for i, d in enumerate(kind.shape.dim)]
    types = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.UINT8: np.uint8}
    return (np.random.default_rng(1).random(dims) * scale).astype(types[kind.elem_type])


def judge(path: Path, *, scale: float = 1.0, border: int = 0, tolerance: float = 2e-6, **options: Any) -> Any:
    """Fold, and raise AssertionError unless the model computes what it did, `border` pixels aside, and the commands agree. Gives
    the new model."""
    out = path.with_name("folded.onnx")
    report = convert(path, out, fold_adapter=True, force=True, **options)
    old, new = onnx.load(path), onnx.load(out)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(new, check_type=True, strict_mode=True, data_prop=True))
    image = feed(old, scale)
    announced = max(
        (float(re.search(r"up to ([\d.e+-]+)", w.message)[1]) for w in report.warnings if w.code == "border_error"), default=0
    )
    assert bool(announced) == bool(border)
    for a, b in zip(run(old, image), run(new, image), strict=True):
        largest, difference = np.abs(a).max(), np.abs(a.astype(np.float64) - b)
        assert largest > 0
        inside = difference[..., border:-border, border:-border] if border else difference
        assert inside.max() <= tolerance * largest
        if border:  # announced to three digits
            assert tolerance * largest < difference.max() <= announced * 1.01
    assert sum(n.op_type == "Conv" for n in new.graph.node) == sum(n.op_type == "Conv" for n in old.graph.node) - 1
    assert [w.code for w in report.warnings].count("folded") == 1
    assert verify(path, out, fold_adapter=True, **options).ok
    assert check(out).ok
    assert not verify(path, path, fold_adapter=True, **options).ok
    return new


ADAPTER = {"a": noise(3, 4, 1, 1, seed=5), "t": noise(3, seed=6)}


def fronted(
    path: Path, between: Nodes = (), weights: Weights | None = None, shape: Any = NCHW, auto_pad: str = "NOTSET", **more: Any
) -> Path:
    """An adapter from 4 to 3 channels, then these nodes from `x` to `y`, then a stem that pads nothing."""
    nodes = [
        node("Conv", ["image", "a", "t"], ["x"], auto_pad=auto_pad),
        *between,
        node("Conv", ["y" if between else "x", "w", "b"], ["c"]),
    ]
    stored = {**ADAPTER, "w": noise(6, 3, 3, 3), "b": noise(6, seed=2), **(weights or {})}
    return save(path, [*nodes, node("Relu", ["c"], ["out"])], stored, shape, **more)


def per_channel(*numbers: float) -> np.ndarray:
    return np.float32(numbers).reshape(1, -1, 1, 1)


def with_normalization(path: Path, adapter: np.ndarray | None = None) -> Path:
    """A larger adapter pads zeros to the image itself."""
    between = [node("Sub", ["x", "mean"], ["s"]), node("Div", ["s", "std"], ["y"])]
    stored = {"mean": per_channel(0.4, 0.5, 0.6), "std": per_channel(0.2, 0.3, 0.4)}
    return fronted(path, between, stored | ({} if adapter is None else {"a": adapter}), auto_pad="SAME_UPPER")


def with_batch_norm(path: Path, adapter: np.ndarray = ADAPTER["a"]) -> Path:
    named = {f"n{i}": noise(3, seed=i) + 1 for i in range(4)}
    return fronted(path, [node("BatchNormalization", ["x", *named], ["y"])], {**named, "a": adapter}, auto_pad="SAME_UPPER")


def half(path: Path) -> Path:
    named = {name: value.astype(np.float16) for name, value in {**ADAPTER, "w": noise(6, 3, 3, 3), "b": noise(6, seed=2)}.items()}
    return fronted(path, weights=named, kind=TensorProto.FLOAT16)


def in_bytes(path: Path) -> Path:
    """Channels last and in bytes; the adapter stands behind what makes them float."""
    nodes = [node("Cast", ["image"], ["f"], to=TensorProto.FLOAT), node("Transpose", ["f"], ["p"], perm=[0, 3, 1, 2])]
    nodes += [node("Div", ["p", "top"], ["d"]), node("Conv", ["d", "a", "t"], ["x"]), node("Conv", ["x", "w"], ["out"])]
    stored = {**ADAPTER, "w": noise(6, 3, 3, 3), "top": np.float32(255)}
    return save(path, nodes, stored, [1, 8, 8, 4], kind=TensorProto.UINT8)


def branches(path: Path) -> Path:
    """Two stems behind one adapter, of which one is depthwise; a third one takes the image itself."""
    nodes = [node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["x", "w"], ["p"])]
    nodes += [node("Conv", ["x", "v"], ["q"], group=3), node("Conv", ["image", "u"], ["r"])]
    stored = {**ADAPTER, "w": noise(6, 3, 3, 3), "v": noise(6, 1, 3, 3, seed=3), "u": noise(6, 4, 3, 3, seed=4)}
    return save(path, [*nodes, node("Sum", ["p", "q", "r"], ["out"])], stored, NCHW)


def merged_bias(path: Path) -> Path:
    """An exporter stored the equal biases of the adapter and a later layer once."""
    nodes = [
        node("Conv", ["image", "a", "t"], ["x"]),
        node("Conv", ["x", "w", "t"], ["c"]),
        node("Conv", ["c", "v", "t"], ["out"]),
    ]
    return save(path, nodes, {**ADAPTER, "w": noise(3, 3, 3, 3), "v": noise(3, 3, 1, 1, seed=9)}, NCHW)


def of_constants(path: Path) -> Path:
    """The weights are the values of Constant nodes, as old exporters write them."""
    made = onnx.load(fronted(path))
    constants = [node("Constant", [], [stored.name], value=stored) for stored in made.graph.initializer]
    nodes = [*constants, *made.graph.node]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend(nodes)
    onnx.save(made, path)
    return path


def of_old_files(path: Path) -> Path:
    """Before IR version 4 each initializer is an input too."""
    made = onnx.load(fronted(path, opset=8))
    made.ir_version = 3
    infos = [helper.make_tensor_value_info(w.name, TensorProto.FLOAT, list(w.dims)) for w in made.graph.initializer]
    made.graph.input.extend(infos)
    onnx.save(made, path)
    return path


def external(path: Path) -> Path:
    onnx.save(onnx.load(fronted(path)), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def transposed(path: Path) -> Path:
    """The adapter's kernel is stored as TensorFlow stores it."""
    nodes = [node("Transpose", ["hwio"], ["k"], perm=[3, 2, 0, 1]), node("Conv", ["image", "k"], ["x"])]
    nodes += [node("Conv", ["x", "w"], ["out"])]
    return save(path, nodes, {"hwio": noise(1, 1, 4, 3), "w": noise(6, 3, 3, 3)}, NCHW)


def untrained(path: Path) -> Path:
    """The adapter is still the identity: the kernel stays, and the node goes."""
    return fronted(
        path, weights={"a": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "t": np.zeros(3, np.float32)}, shape=["N", 3, 8, 8]
    )


def swapping(path: Path) -> Path:
    """Channels in another order, through an operation that is not linear."""
    eye = np.eye(3, dtype=np.float32)[::-1].reshape(3, 3, 1, 1)
    return fronted(path, [node("Relu", ["x"], ["y"])], {"a": eye, "t": np.zeros(3, np.float32)}, shape=["N", 3, 8, 8])


def of_one_channel(path: Path) -> Path:
    """Gray to color, as people train it in front of a base."""
    return fronted(path, weights={"a": noise(3, 1, 1, 1)}, shape=[1, 1, "H", "W"])


def volume(path: Path) -> Path:
    nodes = [node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["x", "w"], ["out"])]
    return save(path, nodes, {"a": noise(1, 2, 1, 1, 1), "t": noise(1), "w": noise(4, 1, 3, 3, 3)}, [1, 2, 6, 6, 6])


def in_blocks(path: Path) -> Path:
    """A space-to-depth behind it, whose shapes are stored."""
    between = [node("Reshape", ["x", "cut"], ["r"]), node("Transpose", ["r"], ["p"], perm=[0, 1, 3, 5, 2, 4])]
    between += [node("Reshape", ["p", "folded"], ["y"])]
    shapes = {"cut": np.int64([2, 3, 4, 2, 4, 2]), "folded": np.int64([2, 12, 4, 4])}
    return fronted(path, between, {**shapes, "w": noise(6, 12, 3, 3)}, [2, 4, 8, 8])


def quantized_stem(path: Path, adapter: np.ndarray = ADAPTER["a"]) -> Path:
    """The kernel behind it is stored in 8 bits, and is quantized again."""
    q, nodes = (
        np.random.default_rng(0).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8),
        [node("Conv", ["image", "a", "t"], ["x"])],
    )
    nodes += [node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", ["x", "w", "b"], ["out"])]
    return save(path, nodes, {**ADAPTER, "a": adapter, "q": q, "s": np.float32(0.01), "b": noise(6, seed=2)}, NCHW)


def negated(path: Path) -> Path:
    return fronted(path, [node("Neg", ["x"], ["y"])])


def resized(path: Path) -> Path:
    between = [node("Resize", ["x", "", "twice"], ["y"], mode="linear")]
    return fronted(path, between, {"twice": np.float32([1, 1, 2, 2])}, [1, 4, "H", "W"])


def in_groups(path: Path) -> Path:
    stored = {"a": noise(4, 2, 1, 1), "t": noise(4, seed=6), "w": noise(6, 4, 3, 3)}
    return save(path, [node("Conv", ["image", "a", "t"], ["x"], group=2), node("Conv", ["x", "w"], ["out"])], stored, NCHW)


def larger(path: Path, kernel: np.ndarray, stem: dict[str, Any] | None = None, channels: int = 3, **front: Any) -> Path:
    """An adapter that is not 1×1, in front of a stem that pads nothing."""
    nodes = [node("Conv", ["image", "a", "t"], ["x"], **front), node("Conv", ["x", "w", "b"], ["out"], **(stem or {}))]
    stored = {"a": kernel, "t": noise(channels, seed=6), "w": noise(6, channels, 3, 2), "b": noise(6, seed=2)}
    return save(path, nodes, stored, ["N", kernel.shape[1], 16, 18])


def fused(path: Path) -> Path:
    """A stem with its activation, as onnxruntime's optimizer saves it."""
    made = onnx.load(larger(path, noise(3, 4, 3, 3), pads=[1] * 4))
    made.graph.node[1].MergeFrom(onnx.NodeProto(op_type="FusedConv", domain="com.microsoft"))
    made.graph.node[1].attribute.append(helper.make_attribute("activation", "Relu"))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(made, path)
    return path


FOLDED: dict[str, Callable[[Path], Path]] = {
    "plain": fronted,
    "a normalization behind it": with_normalization,
    "a BatchNorm behind it": with_batch_norm,
    "bytes, channels last": in_bytes,
    "several stems": branches,
    "a merged bias": merged_bias,
    "Constant nodes": of_constants,
    "IR version 3": of_old_files,
    "external data": external,
    "a kernel of TensorFlow": transposed,
    "the identity": untrained,
    "a swap before a Relu": swapping,
    "of one channel": of_one_channel,
    "a volume": volume,
    "blocks of pixels behind it": in_blocks,
    "negated": negated,
    "resized": resized,
    "quantized": quantized_stem,
    "groups": in_groups,
    "a border of its own": lambda path: larger(path, ADAPTER["a"], pads=[1, 2, 0, 1]),
    "a stride": lambda path: larger(path, ADAPTER["a"], strides=[2, 3]),
    "a window": lambda path: larger(path, noise(3, 4, 3, 3), pads=[1] * 4),
    "a window before a dilated one": lambda path: larger(path, noise(3, 4, 3, 2), {"dilations": [2, 3]}),
    "a dilated window": lambda path: larger(path, noise(3, 4, 3, 3), dilations=[2, 2], pads=[2] * 4),
    "a window of SAME_LOWER": lambda path: larger(path, noise(3, 4, 2, 4), auto_pad="SAME_LOWER"),
    "a window before a quantized kernel": lambda path: quantized_stem(path, noise(3, 4, 3, 3)),
    "a window before a normalization": lambda path: with_normalization(path, noise(3, 4, 3, 3)),
    "a window before a BatchNorm": lambda path: with_batch_norm(path, noise(3, 4, 3, 3)),
    "a window before a fused stem": fused,
    "a window of an average": lambda path: larger(path, np.full((1, 1, 2, 2), 0.25, np.float32), channels=1),
}


@pytest.mark.parametrize("case", FOLDED)
def test_it_computes_the_same(tmp_path, case: str):
    path = FOLDED[case](tmp_path / "a.onnx")
    new = judge(path, scale=255.0 if case == "bytes, channels last" else 1.0, tolerance=1e-2 if "quantized" in case else 2e-6)
    left = {stored.name for stored in new.graph.initializer} | {
        name for n in new.graph.node if n.op_type == "Constant" for name in n.output
    }
    assert "a" not in left
    assert ("t" in left) == (case == "a merged bias")
    assert new.graph.input[0] == onnx.load(path).graph.input[0]


def test_half_precision(tmp_path):
    judge(half(tmp_path / "a.onnx"), tolerance=4e-3)


def test_the_border_is_announced(tmp_path):
    """The stem pads zeros to what the adapter gives, which had its bias nowhere there."""
    nodes = [node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["x", "w", "b"], ["out"], pads=[1] * 4)]
    path = save(tmp_path / "a.onnx", nodes, {**ADAPTER, "w": noise(6, 3, 3, 3), "b": noise(6, seed=2)}, NCHW)
    judge(path, border=1)
    without = [node("Conv", ["image", "a"], ["x"]), node("Conv", ["x", "w", "b"], ["out"], pads=[1] * 4)]
    judge(save(tmp_path / "b.onnx", without, {"a": ADAPTER["a"], "w": noise(6, 3, 3, 3), "b": noise(6, seed=2)}, NCHW))


def test_a_pad_between_them(tmp_path):
    nodes = [node("Conv", ["image", "a", "t"], ["x"]), node("Pad", ["x", "pads"], ["y"]), node("Conv", ["y", "w", "b"], ["out"])]
    stored = {**ADAPTER, "w": noise(6, 3, 3, 3), "b": noise(6, seed=2), "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
    judge(save(tmp_path / "a.onnx", nodes, stored, NCHW), border=1)


def window(d: Any, rank: int) -> tuple[list[int], dict[str, Any]]:
    """The taps and the attributes of a convolution."""
    taps = [int(n) for n in d.integers(1, 5, rank)]
    attributes: dict[str, Any] = {"kernel_shape": taps} if d.random() < 0.7 else {}
    attributes |= {name: [int(n) for n in d.integers(1, 4, rank)] for name in ("strides", "dilations") if d.random() < 0.4}
    pads: list[dict[str, Any]] = [{"pads": [int(n) for n in d.integers(0, 3, 2 * rank)]}, {}, {}]
    pads += [{"auto_pad": "VALID" if "dilations" in attributes else ("SAME_UPPER", "SAME_LOWER")[d.integers(2)]}]
    return taps, attributes | pads[d.integers(4)]


def drawn(path: Path, d: Any) -> list[int]:
    """An adapter and a stem of any windows, zeros and a scale between them or not; the image's shape."""
    rank, group = int(d.choice([1, 2, 2, 2, 3])), int(d.choice([1, 1, 1, 2]))
    (front_taps, front), (taps, stem) = window(d, rank), window(d, rank)
    channels, middle = (int(n) * group for n in d.integers(1, 4, 2))
    groups = int(d.choice([1, 1, middle]))
    stored = {"a": noise(middle, channels // group, *front_taps), "w": noise(2 * groups, middle // groups, *taps, seed=1)}
    stored |= {name: noise(n, seed=2) for name, n in (("t", middle), ("b", 2 * groups)) if d.random() < 0.6}
    stored |= {"pads": np.int64([0, 0, *d.integers(0, 3, rank)] * 2), "scale": np.float32(0.5)}
    perm = [0, *range(2, rank + 2), 1]
    steps: Nodes = [("Pad", ["pads"], {}), ("Mul", ["scale"], {}), ("Transpose", [], {"perm": perm})]
    steps += [("Transpose", [], {"perm": [perm.index(i) for i in range(rank + 2)]})]
    chosen = steps[slice(*[(0, 0), (0, 0), (0, 0), (0, 1), (1, 2), (2, 4), (0, 4)][d.integers(7)])]
    nodes = [node("Conv", ["image", "a", *["t"] * ("t" in stored)], ["0"], group=group, **front)]
    nodes += [node(op, [str(i), *more], [str(i + 1)], **how) for i, (op, more, how) in enumerate(chosen)]
    nodes += [node("Conv", [str(len(chosen)), "w", *["b"] * ("b" in stored)], ["out"], group=groups, **stem)]
    sizes = [int(n) for n in d.integers(18, 26, rank)] if rank < 3 else [14, 15, 16]
    save(path, nodes, stored, [2, channels, *(sizes if d.random() < 0.6 else [f"d{i}" for i in range(rank)])])
    return [2, channels, *sizes]


def test_windows_of_all_kinds(tmp_path):
    """Exact where no zeros are put between the two; else off in as many outer pixels as is announced, by no more than that."""
    path, out, kinds = tmp_path / "a.onnx", tmp_path / "b.onnx", dict.fromkeys(("exact", "border", "refused"), 0)
    for seed in range(120):
        d = np.random.default_rng(seed)
        shape = drawn(path, d)
        image = (d.random(shape) * 2 - 1).astype(np.float32)
        try:
            before = run(onnx.load(path), image)[0]
        except Exception:  # onnxruntime's own, for a window that is larger than the image
            continue
        try:
            report = convert(path, out, fold_adapter=True, force=True)
        except UnsupportedError:
            kinds["refused"] += 1
            continue
        after = run(onnx.load(out), image)[0]
        told = " ".join(w.message for w in report.warnings if w.code == "border_error")
        pixels = int(found[1]) if (found := re.search(r"outer (\d+) pixel", told)) else 0
        most = float(found[1]) if (found := re.search(r"up to ([\d.e+-]+)", told)) else 0.0
        largest, difference = np.abs(before).max(), np.abs(after.astype(np.float64) - before)
        inner = difference[..., *(slice(pixels, n - pixels) for n in difference.shape[2:])]
        if pixels or not most:  # a 1×1 adapter announces no pixels
            assert inner.max(initial=0) <= 1e-5 * largest
        assert difference.max() <= most * 1.01 + 1e-5 * largest
        assert verify(path, out, fold_adapter=True).ok
        assert check(out).ok
        kinds["border" if told else "exact"] += 1
    assert min(kinds["exact"], kinds["border"]) > 30
    assert kinds["refused"] < 20


def test_what_this_tool_put_in_front_comes_out_again(tmp_path):
    """As if the kernel had been edited to begin with; the normalization between them follows, and leaves the same border."""
    whole, fronts = plain(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    convert(whole, fronts, 4, method="adapter")
    new = judge(fronts, border=1)
    convert(whole, tmp_path / "c.onnx", 4)
    image = feed(new)
    for a, b in zip(run(new, image), run(onnx.load(tmp_path / "c.onnx"), image), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max()
    assert len(REPEAT[4][0]) == new.graph.input[0].type.tensor_type.shape.dim[1].dim_value


def test_one_trained_by_torch(tmp_path):
    """A convolution in front of a base, trained for a few steps and exported."""
    torch = pytest.importorskip("torch", reason="the framework environment installs it")
    torch.manual_seed(3)
    base = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    net = torch.nn.Sequential(torch.nn.Conv2d(6, 3, 1), base)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(net(torch.rand(8, 6, 16, 16)), torch.randint(5, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for training in (torch.onnx.TrainingMode.EVAL, torch.onnx.TrainingMode.PRESERVE):
        path, out = tmp_path / f"{training.name}.onnx", tmp_path / f"{training.name}_folded.onnx"
        more = {"do_constant_folding": training is torch.onnx.TrainingMode.EVAL, "training": training}
        torch.onnx.export(net.eval(), (torch.rand(1, 6, 16, 16),), str(path), input_names=["image"], dynamo=False, **more)
        report = convert(path, fold_adapter=True)
        assert report.target == str(out)
        assert report.in_channels == (3, 6)
        old, new = onnx.load(path), onnx.load(out)
        image = np.random.default_rng(0).random((1, 6, 16, 16)).astype(np.float32)
        a, b = run(old, image)[0], run(new, image)[0]
        assert np.abs(a - b).max() <= 0.05 * np.abs(a).max()  # the mean over all pixels, border included
        assert "border_error" in {w.code for w in report.warnings}
        assert verify(path, out, fold_adapter=True).ok
        assert check(out).ok


@pytest.mark.parametrize("window", [1, 3])
def test_a_trained_resnet50(tmp_path, window: int):
    """As Keras exports it, the adapter's bias an Add and the zeros of its stem a Pad: off in the two outer pixels at most."""
    from tests.frameworks.test_fold_adapter_keras import trained_resnet50  # skips where there is no Keras

    path, out = tmp_path / "a.onnx", tmp_path / "b.onnx"
    trained_resnet50(window).export(str(path), format="onnx", verbose=False)
    report = convert(path, out, fold_adapter=True)
    assert report.kernels[0].shape_after == (64, 4, 6 + window, 6 + window)
    (told,) = [w.message for w in report.warnings if w.code == "border_error"]
    assert ("the outer 2 pixels differ" in told) == (window > 1)
    old, new = onnx.load(path), onnx.load(out)
    stem = [n.output[0] for n in old.graph.node if n.op_type == "Conv"][1]
    for made in (old, new):
        made.graph.output.append(helper.make_tensor_value_info(stem, TensorProto.FLOAT, None))
    image = np.random.default_rng(0).random((2, 32, 32, 4)).astype(np.float32)
    (a, before), (b, after) = run(old, image), run(new, image)
    difference = np.abs(before.astype(np.float64) - after)
    assert difference[..., 2:-2, 2:-2].max() <= 1e-5 * np.abs(before).max()
    assert difference.max() <= float(re.search(r"up to ([\d.e+-]+)", told)[1]) * 1.01
    assert np.abs(a - b).max() <= 0.1
    assert verify(path, out, fold_adapter=True).ok
    assert check(out).ok


BORDERS: dict[str, tuple[list[int], dict[str, Any], list[int], dict[str, Any]]] = {
    "a window before a wide stem": ([3], {"pads": [1, 1]}, [7], {"pads": [3, 3], "strides": [2]}),
    "no zeros of its own": ([4], {}, [3], {"pads": [1, 2]}),
    "strides": ([3], {"pads": [1, 0], "strides": [2]}, [3], {"pads": [1, 1]}),
    "dilations": ([3], {"pads": [2, 2], "dilations": [2]}, [3], {"pads": [1, 1]}),
    "two axes": ([2, 3], {"auto_pad": "SAME_LOWER"}, [3, 3], {"pads": [0, 1, 1, 0]}),
}


@pytest.mark.parametrize("case", BORDERS)
def test_the_border_is_measured(tmp_path, case: str):
    """What is announced is the difference that the worst image in -1..1 makes: each pixel alone tells its part."""
    taps, front, behind, stem = BORDERS[case]
    nodes = [node("Conv", ["image", "a", "t"], ["x"], **front), node("Conv", ["x", "w"], ["out"], **stem)]
    shape = [2, *[11, 9][: len(taps)]]
    stored = {"a": noise(3, 2, *taps), "t": noise(3, seed=6), "w": noise(5, 3, *behind, seed=2)}
    path, out = save(tmp_path / "a.onnx", nodes, stored, ["N", *shape]), tmp_path / "b.onnx"
    (told,) = [w.message for w in convert(path, out, fold_adapter=True).warnings if w.code == "border_error"]
    images = np.eye(prod(shape), dtype=np.float32).reshape(-1, *shape)
    old, new = onnx.load(path), onnx.load(out)
    dark, each = (run(old, x)[0].astype(np.float64) - run(new, x)[0] for x in (0 * images[:1], images))
    worst = (np.abs(dark)[0] + np.abs(each - dark).sum(axis=0)).max()
    assert float(re.search(r"up to ([\d.e+-]+)", told)[1]) == pytest.approx(worst, rel=0.006)


def refused(path: Path, nodes: Nodes, weights: Weights, shape: Any = NCHW) -> Path:
    return save(path, nodes, {**ADAPTER, "w": noise(6, 3, 3, 3), **weights}, shape)


STEM = node("Conv", ["x", "w"], ["out"])
LARGER, LARGE = node("Conv", ["image", "k"], ["r"], pads=[1] * 4), {"k": noise(3, 4, 3, 3)}
REFUSED: dict[str, tuple[Nodes, Weights, str]] = {
    "an activation": (
        [node("Conv", ["image", "a", "t"], ["r"]), node("Relu", ["r"], ["x"]), STEM],
        {},
        "this Relu precedes the kernel",
    ),
    "no adapter": (
        [node("Conv", ["image", "k"], ["c"]), node("Relu", ["c"], ["out"])],
        {"k": noise(6, 4, 3, 3)},
        "out: is an output that the adapter makes",
    ),
    "in 8 bits": (
        [node("DequantizeLinear", ["q", "s"], ["k"]), node("Conv", ["image", "k"], ["x"]), STEM],
        {"q": np.ones((3, 4, 1, 1), np.int8), "s": np.float32(0.1)},
        "q: is no convolution of the image's channels in floating-point numbers",
    ),
    "a constant of all channels behind a larger one": (
        [LARGER, node("Sub", ["r", "m"], ["x"]), STEM],
        {**LARGE, "m": np.float32(1)},
        "this Sub follows an adapter that is not 1×1, and does not do the same in front of it",
    ),
    "a mean that is the deviation too": (
        [LARGER, node("Sub", ["r", "m"], ["d"]), node("Div", ["d", "m"], ["x"]), STEM],
        {**LARGE, "m": per_channel(0.5, 0.5, 0.5)},
        "this Sub follows an adapter that is not 1×1",
    ),
    "a mask behind a larger one": (
        [LARGER, node("Mul", ["r", "m"], ["x"]), STEM],
        {**LARGE, "m": noise(1, 1, 8, 8)},
        "this Mul follows an adapter that is not 1×1",
    ),
    "a Resize behind a larger one": (
        [LARGER, node("Resize", ["r", "", "s"], ["x"]), STEM],
        {**LARGE, "s": np.float32([1, 1, 2, 2])},
        "this Resize follows an adapter that is not 1×1",
    ),
    "a mirror behind a larger one": (
        [LARGER, node("Pad", ["r", "s"], ["x"], mode="reflect"), STEM],
        {**LARGE, "s": np.int64([0, 0, 1, 1, 0, 0, 1, 1])},
        "this Pad follows an adapter that is not 1×1",
    ),
    "a border behind a stride": (
        [node("Conv", ["image", "a"], ["r"], strides=[2, 2]), node("Pad", ["r", "s"], ["x"]), STEM],
        {"s": np.int64([0, 0, 1, 1, 0, 0, 1, 1])},
        "this Pad follows an adapter that skips pixels",
    ),
    "rows for columns behind a larger one": (
        [LARGER, node("Transpose", ["r"], ["x"], perm=[0, 1, 3, 2]), STEM],
        LARGE,
        "w: takes the pixels in another order than the adapter",
    ),
    "blocks of pixels behind a larger one": (
        [LARGER, node("SpaceToDepth", ["r"], ["x"], blocksize=2), node("Conv", ["x", "v"], ["out"])],
        {**LARGE, "v": noise(6, 12, 3, 3)},
        "v: takes the pixels in another order than the adapter",
    ),
    "a kernel of two nodes behind a larger one": (
        [LARGER, node("Conv", ["r", "w"], ["p"]), node("Conv", ["r", "w"], ["q"]), node("Add", ["p", "q"], ["out"])],
        LARGE,
        "w: is the kernel of 2 nodes, and takes a convolution of several pixels",
    ),
    "a size that it changes": (
        [
            node("Conv", ["image", "k"], ["x"]),
            node("Conv", ["x", "w"], ["c"]),
            node("Shape", ["x"], ["n"]),
            node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            node("ReduceMax", ["f"], ["m"], keepdims=0),
            node("Add", ["c", "m"], ["out"]),
        ],
        LARGE,
        "this Shape measures what the adapter gives",
    ),
    "negative pads": (
        [node("Conv", ["image", "k"], ["x"], pads=[-1, 0, 0, 0]), STEM],
        LARGE,
        r"k: crops by its pads \[-1, 0, 0, 0\]",
    ),
    "nothing behind it": (
        [node("Conv", ["image", "a", "t"], ["x"]), node("ReduceMax", ["x"], ["out"], keepdims=1)],
        {},
        "is followed by no convolution",
    ),
    "a scaled kernel": (
        [node("Mul", ["a", "s"], ["k"]), node("Conv", ["image", "k"], ["x"]), STEM],
        {"s": np.float32([2])},
        "is scaled or reshaped before the convolution: it is not folded",
    ),
    "a computed bias": (
        [node("Mul", ["t", "t"], ["k"]), node("Conv", ["image", "a", "k"], ["x"]), STEM],
        {},
        "has a bias that is not stored",
    ),
    "two uses": (
        [
            node("Conv", ["image", "a", "t"], ["x"]),
            node("Conv", ["image", "a"], ["y"]),
            node("Add", ["x", "y"], ["z"]),
            node("Conv", ["z", "w"], ["out"]),
        ],
        {},
        "is the kernel of 2 nodes",
    ),
    "a skip past the stem": (
        [
            node("Conv", ["image", "a", "t"], ["x"]),
            node("Conv", ["x", "k"], ["c"]),
            node("ReduceMax", ["x"], ["m"], keepdims=1),
            node("Add", ["c", "m"], ["out"]),
        ],
        {"k": noise(6, 3, 3, 3)},
        "this ReduceMax precedes the kernel and mixes",
    ),
    "its range in 8 bits": (
        [
            node("Conv", ["image", "a", "t"], ["r"]),
            node("QuantizeLinear", ["r", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["x"]),
            STEM,
        ],
        {"s": np.float32(0.01), "z": np.uint8(128)},
        "q: this QuantizeLinear rounds what the adapter gives",
    ),
    "whole numbers": (
        [
            node("Conv", ["image", "a", "t"], ["r"]),
            node("Cast", ["r"], ["i"], to=TensorProto.INT32),
            node("Cast", ["i"], ["x"], to=TensorProto.FLOAT),
            STEM,
        ],
        {},
        "i: this Cast rounds what the adapter gives",
    ),
    "a scaled kernel behind it": (
        [node("Conv", ["image", "a", "t"], ["x"]), node("Mul", ["w", "s"], ["k"]), node("Conv", ["x", "k"], ["out"])],
        {"s": np.float32([2])},
        "w: is scaled, reshaped or of padded blocks",
    ),
    "NaN": (
        [node("Conv", ["image", "n"], ["x"]), STEM],
        {"n": np.full((3, 4, 1, 1), np.nan, np.float32)},
        "n: holds NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_folded(tmp_path, case: str):
    nodes, weights, message = REFUSED[case]
    path = refused(tmp_path / "a.onnx", nodes, weights)
    with pytest.raises(UnsupportedError, match=message):
        convert(path, fold_adapter=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_an_output_of_the_adapter_is_not_changed(tmp_path):
    made = onnx.load(fronted(tmp_path / "a.onnx"))
    made.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    onnx.save(made, tmp_path / "a.onnx")
    with pytest.raises(UnsupportedError, match="x: is an output that the adapter makes"):
        convert(tmp_path / "a.onnx", fold_adapter=True)


def test_which_of_several(tmp_path):
    """The hint names each, and naming one folds that alone."""
    nodes = [node("Conv", ["image", "a", "t"], ["x"]), node("Conv", ["image", "d"], ["y"])]
    nodes += [node("Conv", ["x", "w"], ["p"]), node("Conv", ["y", "v"], ["q"]), node("Add", ["p", "q"], ["out"])]
    stored = {**ADAPTER, "d": noise(2, 4, 1, 1, seed=7), "w": noise(6, 3, 3, 3), "v": noise(6, 2, 3, 3)}
    path = save(tmp_path / "a.onnx", nodes, stored, NCHW)
    with pytest.raises(AmbiguousError, match="2 convolutions could be the adapter") as caught:
        convert(path, fold_adapter=True)
    assert caught.value.hint == "--layer a   or   --layer d"
    assert {stored.name for stored in judge(path, layers=["a"]).graph.initializer} == {"w", "v", "d", *(["w_bias"])}
    assert {stored.name for stored in judge(path, layers=["d"]).graph.initializer} == {"a", "t", "w", "v"}
    with pytest.raises(UnsupportedError, match="w: is no convolution of the image's channels"):
        convert(path, fold_adapter=True, layers=["w"])


def test_a_result_that_is_not_folded_is_told(tmp_path):
    """One whose kernel was left, and one whose adapter was."""
    path, out = fronted(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    convert(path, out, fold_adapter=True)
    made, before = onnx.load(out), onnx.load(path)
    right = {stored.name: stored for stored in before.graph.initializer}
    made.graph.initializer.extend([right["a"], right["t"]])
    next(n for n in made.graph.node if n.output[0] == "x").CopyFrom(before.graph.node[0])
    onnx.save(made, out)
    messages = {d.key: d.message for d in verify(path, out, fold_adapter=True).differences}
    assert messages["a"] == "is still there, though the conversion drops it"
    assert "is not read as the kernel of 4 channels of the image" in messages["w"]


def test_on_the_command_line(tmp_path, capsys):
    from chkpt_channels.cli.app import run

    path, out = fronted(tmp_path / "a.onnx"), tmp_path / "a_folded.onnx"
    listed = tmp_path / manifest.NAME
    listed.write_text('[[convert]]\nsrc = "a.onnx"\nfold-adapter = true\n', encoding="utf-8")

    assert run(["convert", str(path), "--fold-adapter", "--json", "--report", str(tmp_path / "r.json")]) == 0
    (record,) = json.loads(capsys.readouterr().out)["results"]
    assert (record["method"], record["in_channels"]) == ("fold-adapter", {"before": 3, "after": 4})
    assert np.allclose(record["matrix"], numpy_helper.to_array(onnx.load(path).graph.initializer[0])[:, :, 0, 0])
    assert record["options"] == {"fold_adapter": True}
    assert record["tensors"] == {"total": 4, "changed": 4}
    assert run(["verify", str(path), str(out), "--report", str(tmp_path / "r.json")]) == 0
    assert run(["verify", str(path), str(out), "--fold-adapter"]) == 0
    assert run(["convert", "--manifest", str(listed), "--check"]) == 0
    assert run(["convert", str(path), "--fold-adapter", "--force"]) == 0
    assert "feed it the images that the adapter took" in capsys.readouterr().out
    assert run(["convert", str(out), "--fold-adapter"]) == 4
    assert run(["convert", str(path), "--fold-adapter", "--to", "gray"]) == 2
    assert run(["convert", str(path), "--fold-adapter", "--norm", "imagenet"]) == 2


def test_channels_that_the_input_leaves_open(tmp_path):
    path, out = fronted(tmp_path / "a.onnx", shape=["N", "C", "H", "W"]), tmp_path / "b.onnx"
    convert(path, out, fold_adapter=True)
    image = noise(2, 4, 8, 8)
    for a, b in zip(run(onnx.load(path), image), run(onnx.load(out), image), strict=True):
        assert np.abs(a - b).max() <= 2e-6 * np.abs(a).max()
    assert verify(path, out, fold_adapter=True).ok


def trained(torch: Any, *, bias: bool = True) -> tuple[Any, Any]:
    """A network with an adapter, and the same one with a stem for its images."""

    class Net(torch.nn.Module):
        def __init__(self, channels: int, *, adapted: bool) -> None:
            super().__init__()
            if adapted:
                self.adapter = torch.nn.Conv2d(6, channels, 1, bias=bias)
            self.conv1 = torch.nn.Conv2d(channels, 8, 3, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.more = torch.nn.Conv2d(8, 8, 3)
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            x = self.adapter(x) if hasattr(self, "adapter") else x
            x = torch.relu(self.more(torch.relu(self.bn1(self.conv1(x)))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(4)
    net = Net(3, adapted=True)
    for _ in range(3):
        net(torch.rand(4, 6, 16, 16) * 2 + 1)
    return net.eval(), Net(6, adapted=False).eval()


LAYERS = ["adapter", "conv1"]


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts(tmp_path, bias: bool):
    """safetensors, a state dict in memory, and a PyTorch file to safetensors: what is left fits a network without the adapter."""
    torch = pytest.importorskip("torch", reason="the framework environment installs it")
    safetensors = pytest.importorskip("safetensors.torch", reason="the framework environment installs it")
    net, folded = trained(torch, bias=bias)
    image = torch.rand(2, 6, 16, 16)
    safetensors.save_file(net.state_dict(), tmp_path / "a.safetensors")
    torch.save(net.state_dict(), tmp_path / "a.pth")
    out = [tmp_path / "a_folded.safetensors", tmp_path / "b.safetensors"]
    assert convert(tmp_path / "a.safetensors", fold_adapter=True, layers=LAYERS).target == str(out[0])
    convert(tmp_path / "a.pth", out[1], fold_adapter=True, layers=LAYERS)
    in_memory = convert_state_dict(net.state_dict(), fold_adapter=True, layers=LAYERS)
    for weights in (*map(safetensors.load_file, out), in_memory):
        folded.load_state_dict(weights)
        with torch.no_grad():
            before, after = net(image), folded(image)
        assert float((before - after).abs().max()) <= 1e-5 * float(before.abs().max())
    for source in ("a.safetensors", "a.pth"):
        for path in out:
            assert verify(tmp_path / source, path, fold_adapter=True, layers=LAYERS).ok
        assert not verify(tmp_path / source, tmp_path / source, fold_adapter=True, layers=LAYERS).ok
    assert check(out[0]).ok


def test_a_pickle_stays_as_it_is(tmp_path):
    """The adapter's storage is the first one as a rule, from which torch computes offsets, and a module is called by code. Each
    hint is followed."""
    torch = pytest.importorskip("torch", reason="the framework environment installs it")
    safetensors = pytest.importorskip("safetensors.torch", reason="the framework environment installs it")
    net, _ = trained(torch)
    module = torch.nn.Sequential(net.adapter, torch.nn.Sequential(net.conv1, net.bn1, net.more))
    kinds = {
        "a": net.state_dict(),
        "b": module,
        "d": {"model": module, "epoch": 3},
        "e": {"ema": module.state_dict(), "epoch": 3},
    }
    for name, saved in kinds.items():
        path, out = tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors"
        torch.save(saved, path)
        layers = LAYERS if name == "a" else ["0", "1.0"]
        with pytest.raises(UnsupportedError, match=r"(adapter|0)\.weight: is taken out by --fold-adapter") as caught:
            convert(path, fold_adapter=True, layers=layers)
        state_dict = {"a": None, "b": "", "d": "model", "e": "ema"}[name]
        alone = "" if state_dict is None else f" --state-dict {state_dict or repr('')}"
        assert caught.value.hint == f"-o NAME.safetensors{alone}"
        convert(path, out, fold_adapter=True, layers=layers, state_dict=state_dict)
        left = safetensors.load_file(out)
        assert len(left) == len(net.state_dict() if name == "a" else module.state_dict()) - 2
        assert next(tensor for key, tensor in left.items() if tensor.ndim == 4 and tensor.shape[1] == 6).shape == (8, 6, 3, 3)
        out.unlink()
    state = {"state_dict": net.state_dict(), "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict()}
    state["optimizer"]["state"] = {0: {"momentum_buffer": torch.zeros(3, 6, 1, 1)}}
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(UnsupportedError, match="its optimizer numbers the parameters"):
        convert(tmp_path / "c.pth", tmp_path / "c.safetensors", fold_adapter=True, layers=LAYERS)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "b.pth", "c.pth", "d.pth", "e.pth"}
