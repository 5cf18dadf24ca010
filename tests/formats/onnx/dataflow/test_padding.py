"""Taps over the border: those that are told to stand inside are those that onnx's reference implementation adds up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from chkpt_channels.formats.onnx.dataflow.padding import tap_spans
from tests.support.onnx_models import Dims, Open, ints, model, newer_onnx, node, noise, run, traced

Taps = frozenset[int]


def told(source: Open, shape: Dims, taps: Sequence[int], op: str = "Conv", **attributes: object) -> set[tuple[Taps, ...]]:
    """For each way to overlap the border the taps inside along every axis."""
    kernel = noise(3, 2, *taps) if op == "ConvTranspose" else noise(2, 3, *taps)
    made = model([node(op, ["image", "kernel"], ["out"], **attributes)], {"kernel": kernel}, shape)
    (reached,) = traced(source, made).reached
    found = tap_spans(reached)
    assert all(0 <= start <= stop <= most for spans in found for (start, stop), most in zip(spans, taps, strict=True))
    return {tuple(frozenset(range(*span)) for span in spans) for spans in found}


def occurring(size: int, taps: int, **attributes: object) -> set[Taps]:
    """The same along one axis, measured: each filter has one tap, and the image is 1 everywhere."""
    kernel = np.eye(taps, dtype=np.float32).reshape(taps, 1, taps)
    made = model([node("Conv", ["image", "kernel"], ["out"], **attributes)], {"kernel": kernel}, (1, 1, size))
    (out,) = run(made, np.ones((1, 1, size), np.float32))
    return {frozenset(np.flatnonzero(column).tolist()) for column in out[0].T}


LINES: dict[str, tuple[int, int, dict[str, object]]] = {
    "no padding": (8, 3, {}),
    "pads": (8, 3, {"pads": [1, 1]}),
    "uneven pads": (8, 5, {"pads": [3, 1]}),
    "pads behind only": (8, 4, {"pads": [0, 3]}),
    "strides": (9, 7, {"pads": [3, 3], "strides": [2]}),
    "strides that leave the end out": (8, 3, {"pads": [1, 1], "strides": [3]}),
    "dilations": (9, 3, {"pads": [2, 2], "dilations": [2]}),
    "dilations that stride over the border": (10, 3, {"pads": [3, 4], "dilations": [3], "strides": [2]}),
    "a kernel wider than the image": (3, 5, {"pads": [2, 2]}),
    "pads as wide as the kernel": (4, 3, {"pads": [3, 3]}),
    "a kernel that has both borders": (2, 5, {"pads": [3, 3], "dilations": [1]}),
    "SAME_UPPER": (8, 3, {"auto_pad": "SAME_UPPER"}),
    "SAME_UPPER of an even kernel": (8, 4, {"auto_pad": "SAME_UPPER"}),
    "SAME_LOWER of an even kernel": (8, 4, {"auto_pad": "SAME_LOWER"}),
    "SAME_UPPER with strides": (8, 3, {"auto_pad": "SAME_UPPER", "strides": [2]}),
    "SAME_LOWER with strides": (9, 7, {"auto_pad": "SAME_LOWER", "strides": [4]}),
    "SAME_UPPER with strides wider than the kernel": (8, 1, {"auto_pad": "SAME_UPPER", "strides": [2]}),
    "VALID": (8, 3, {"auto_pad": "VALID"}),
}


def judged(*names: str) -> list[object]:
    """Older onnx itself takes other taps in two of these."""
    return [pytest.param(one, marks=newer_onnx) if one in ("VALID", "SAME_UPPER with strides") else one for one in names]


@pytest.mark.parametrize("name", judged(*LINES))
def test_taps_inside_are_those_that_are_added_up(name: str, source: Open):
    size, taps, attributes = LINES[name]
    assert told(source, (1, 3, size), [taps], **attributes) == {(each,) for each in occurring(size, taps, **attributes)}


@pytest.mark.parametrize("name", judged(*(name for name in LINES if not name.startswith("SAME"))))
def test_what_could_be_where_the_size_is_open_is_told(name: str, source: Open):
    _, taps, attributes = LINES[name]
    found = told(source, (1, 3, "w"), [taps], **attributes)
    for size in range(6 * taps, 6 * taps + 5):
        assert found >= {(each,) for each in occurring(size, taps, **attributes)}


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_that_depends_on_an_open_size_is_any(kind: str, source: Open):
    found = told(source, (1, 3, "w"), [3], auto_pad=kind, strides=[2])
    assert found == {(frozenset(range(start, stop)),) for start, stop in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]}


def test_axes_are_told_together(source: Open):
    attributes = {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}
    rows = occurring(8, 3, pads=[1, 2], strides=[2])
    columns = occurring(9, 2, pads=[0, 1], dilations=[2])
    assert told(source, (1, 3, 8, 9), [3, 2], **attributes) == set(product(rows, columns))


def test_volumes_have_three_axes(source: Open):
    found = told(source, (1, 3, 4, 4, 4), [1, 3, 1], pads=[0, 1, 0, 0, 1, 0])
    assert found == set(product(*(occurring(4, n, pads=[n // 2] * 2) for n in (1, 3, 1))))


@pytest.mark.parametrize(("op", "attributes"), [("ConvTranspose", {}), ("ConvTranspose", {"pads": [1, 1, 1, 1]})])
def test_a_transposed_convolution_may_overlap_in_any_way(op: str, attributes: dict[str, object], source: Open):
    """Each of its pixels is made of the taps that fall on it: at the border these are the first or the last ones."""
    ways = {frozenset(range(start, stop)) for start, stop in [(0, 0), (0, 1), (0, 2), (1, 2)]}
    assert told(source, (1, 3, 8, 8), [2, 2], op, **attributes) == set(product(ways, ways))


def test_zeros_that_were_put_around_the_image_before_may_overlap_in_any_way(source: Open):
    nodes = [node("Pad", ["image", "p"], ["x"]), node("Conv", ["x", "kernel"], ["out"])]
    made = model(nodes, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "kernel": noise(5, 3, 2, 1)})
    (reached,) = traced(source, made).reached
    assert set(tap_spans(reached)) == set(product([(0, 0), (0, 1), (0, 2), (1, 2), (2, 2)], [(0, 0), (0, 1), (1, 1)]))


def test_a_product_has_no_border(source: Open):
    made = model([node("Flatten", ["image"], ["x"]), node("MatMul", ["x", "kernel"], ["out"])], {"kernel": noise(192, 5)})
    (reached,) = traced(source, made).reached
    assert reached.layout
    assert tap_spans(reached) == [()]


def test_what_is_not_followed_has_no_border(source: Open):
    nodes = [node("Softmax", ["image"], ["x"], axis=1), node("Conv", ["x", "kernel"], ["out"], pads=[1, 1, 1, 1])]
    (reached,) = traced(source, model(nodes, {"kernel": noise(5, 3, 3, 3)})).reached
    assert tap_spans(reached) == []


def test_a_large_image_is_told_as_soon_as_a_small_one(source: Open):
    """Only positions at the border matter, and there are few."""
    small = told(source, (1, 3, 64), [3], pads=[1, 1])
    assert told(source, (1, 3, 1 << 40), [3], pads=[1, 1]) == small
