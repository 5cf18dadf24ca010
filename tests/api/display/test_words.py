"""What sizes, shapes, types and changes of kernels are called."""

from __future__ import annotations

import pytest

from chkpt_channels.api.display.words import change, contradiction, count, dtype, graph_change, image, shape, size
from chkpt_channels.api.report import Mismatch
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.transform.mixing import matrix
from chkpt_channels.transform.mixing.matrix import LUMA, Mixing


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (102_550_733, "97.8 MiB"),
        ((1 << 30) * 3 // 2, "1.5 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_bytes_are_told_in_units(count: int, expected: str):
    assert size(count) == expected


@pytest.mark.parametrize(("dimensions", "expected"), [((64, 3, 7, 7), "64×3×7×7"), ((5,), "5"), ((), "scalar")], ids=str)
def test_shapes_are_told_with_crosses(dimensions: tuple[int, ...], expected: str):
    assert shape(dimensions) == expected


@pytest.mark.parametrize(("name", "expected"), [("F32", "float32"), ("BF16", "bfloat16"), ("QI8", "qint8"), ("I4", "I4")])
def test_element_types_are_told_in_torchs_words_if_it_has_any(name: str, expected: str):
    assert dtype(Tensor("k", BY_NAME[name], ())) == expected


def test_numbers_have_their_words():
    assert [count(1, "tensor"), count(1200, "tensor")] == ["1 tensor", "1,200 tensors"]
    assert [image(channels) for channels in (1, 3, 4)] == ["gray", "RGB", "4-channel"]


def words(mixing: Mixing, method: str = "") -> str:
    return change(method or mixing.method, mixing.matrix, mixing.offset)


CHANGES: dict[str, tuple[Mixing, str]] = {
    "sum": (matrix.sum_(3), "the sum of R, G and B"),
    "sum of four": (matrix.sum_(4), "the sum of its 4 channels"),
    "mean": (matrix.mean(3), "the mean of R, G and B"),
    "means": (matrix.mean(3, 2), "each the mean of R, G and B"),
    "luma": (matrix.luma(LUMA["bt709"]), "split over R, G and B by 0.2126, 0.7152, 0.0722"),
    "luma of BGR": (matrix.luma(LUMA["bt709"][::-1]), "split over B, G and R by 0.0722, 0.7152, 0.2126"),
    "gray by luma": (matrix.weighted(LUMA["bt601"]), "R, G and B weighted by 0.299, 0.587, 0.114"),
    "weighted": (matrix.weighted((0.5, 0.25, 0.25)), "3 channels weighted by 0.5, 0.25, 0.25"),
    "bgr": (matrix.select(3, [2, 1, 0], "bgr"), "its channels 2, 1, 0, bit by bit"),
    "one": (matrix.select(3, [1]), "its channel 1, bit by bit"),
    "zero": (matrix.zero(3, 4), "its 3 channels, and 1 more that begins at zero"),
    "zeros": (matrix.zero(1, 3), "its 1 channel, and 2 more that begin at zero"),
    "repeat": (matrix.repeat(3, 4), "its 3 channels in turn, times 0.75"),
    "bands": (matrix.bands(3, [2, 1, 0, 0]), "its channels 2, 1, 0 × 0.5, 0 × 0.5"),
    "bands with one of none": (matrix.bands(3, [2, 1, 0, 0, "zero"]), "its channels 2, 1, 0 × 0.5, 0 × 0.5, zero"),
    "bands with the mean": (matrix.bands(3, [2, 1, 0, "mean"]), "a weighted sum of R, G and B for each new channel"),
    "identity": (matrix.identity(3), "unchanged"),
    "normalized": (matrix.sum_(3)._replace(offset=(0.1, 0.0, 0.1)), "the sum of R, G and B, both normalizations folded in"),
    "scaled": (Mixing("sum", ((2.0,), (2.0,), (1.0,))), "the sum of R, G and B, both normalizations folded in"),
    "luma, normalized": (
        matrix.luma(LUMA["bt709"])._replace(offset=(0.5,)),
        "made by luma from 1 channel, both normalizations folded in",
    ),
    "adapter folded": (Mixing("fold-adapter", ((1.0,),)), "composed with the convolution in front of it"),
    "its bias too": (Mixing("fold-adapter", ((1.0,),), (0.5,)), "composed with the convolution in front of it, and its constant"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_said_as_a_person_would(name: str):
    mixing, expected = CHANGES[name]
    assert words(mixing) == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("stack", "the graph makes the 3 old channels of the new one"),
        ("broadcast", "the graph makes the 3 old channels of the new one"),
        ("adapter", "a 1×1 convolution in front makes the 3 old channels of the new one"),
        ("gather", "a node in front puts the channels into the old order"),
        ("sum", ""),
    ],
)
def test_what_the_graph_does_instead(method: str, expected: str):
    assert graph_change(method, (3, 1)) == expected
    assert words(matrix.sum_(3), method) == (f"no weight changed; {expected}" if expected else "the sum of R, G and B")


def test_what_the_graph_makes_of_several():
    assert graph_change("adapter", (3, 4)) == "a 1×1 convolution in front makes the 3 old channels of the 4 new ones"


def test_a_contradiction_names_what_else_says_so():
    assert contradiction(Mismatch("a.pth", "conv1.weight", 3, 1)) == "found 3, expected 1"
    assert contradiction(Mismatch("a.pth", "conv1.weight", 3, 1, "b.npz")) == "found 3, expected 1, as b.npz has"
