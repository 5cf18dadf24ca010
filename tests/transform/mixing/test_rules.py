"""Every mixing, from the words for it to the convolution that the new kernel makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import FileSystemError, UnsupportedError, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.transform import plan
from chkpt_channels.transform.mixing import rules
from chkpt_channels.transform.options import build_options
from tests.support.memory import NET, Memory, kernel

LUMA = (0.2126, 0.7152, 0.0722)
BT601 = (0.299, 0.587, 0.114)
RGB_D = "R,G,B,D=mean"


def matrix(old: int, to: str | int | None = None, **words: Any) -> list[list[float]]:
    return [list(row) for row in build_options(to, **words).rule.mixing(old).matrix]


@pytest.mark.parametrize(
    ("to", "channels", "order", "word"),
    [
        *((to, 1, "", "gray") for to in ("gray", "grey", "grayscale", "L", "l", "Gray", " gray ", "1", 1)),
        *((to, 3, "rgb", "rgb") for to in ("rgb", "RGB")),
        *((to, 3, "", "rgb") for to in ("3", 3)),
        ("bgr", 3, "bgr", "bgr"),
        ("rgba", 4, "rgba", "4ch"),
        ("4", 4, "", "4ch"),
        (13, 13, "", "13ch"),
        ("004", 4, "", "4ch"),
    ],
)
def test_targets(to: str | int, channels: int, order: str, word: str):
    assert rules.target(to) == (channels, order)
    assert build_options(to).rule.word == word


@pytest.mark.parametrize("to", ["", "0", 0, "-1", -3, "cmyk", "3.0", "1e3", "999999999", "٣x", "x" * 500])
def test_words_that_are_no_target(to: str | int):
    with pytest.raises(UsageError, match="is not a target") as caught:
        rules.target(to)
    assert len(str(caught.value)) < 150


MEANT = {
    "4ch": "--to 4",
    "13-bands": "--to 13",
    "6 channels": "--to 6",
    "greyscale": "--to gray",
    "mono": "--to gray",
    "gry": "--to gray",
    "colour": "--to rgb",
    "rgbn": "--bands R,G,B,N=R, where N begins as red, or N=zero",
    "bgr+nir": "--bands B,G,R,NIR=R, where NIR begins as red, or NIR=zero",
    "mauve": "",
}


@pytest.mark.parametrize(("word", "hint"), MEANT.items())
def test_what_was_probably_meant(word: str, hint: str):
    with pytest.raises(UsageError, match="is not a target") as caught:
        rules.target(word)
    assert caught.value.hint == hint
    if hint:
        flag, meant = hint.split(", where")[0].split(" ")
        assert build_options(**{"to": None, flag.removeprefix("--"): meant}).rule.to


def test_another_option_is_named():
    with pytest.raises(UsageError, match="--expect '4ch' is not a target") as caught:
        rules.target("4ch", "--expect")
    assert caught.value.hint == "--expect 4"


@pytest.mark.parametrize(
    ("luma", "weights"),
    [("bt709", LUMA), ("bt601", BT601), ("0.2,0.5,0.3", (0.2, 0.5, 0.3)), ([1, 0, 0], (1.0, 0.0, 0.0))],
)
def test_luma_weights(luma: Any, weights: Any):
    assert rules.luma_weights(luma) == weights


@pytest.mark.parametrize("luma", ["bt2020", "0.2;0.5", "", "1,,2", "nan,0,1", "inf,0,0"])
def test_luma_that_means_nothing(luma: str):
    with pytest.raises(UsageError, match="--luma"):
        rules.luma_weights(luma)


SWAP = [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
MATRICES = {
    "sum": (3, {"to": "gray"}, [[1], [1], [1]]),
    "mean": (3, {"to": "gray", "method": "mean"}, [[1 / 3]] * 3),
    "mean to two": (3, {"to": 2, "method": "mean"}, [[1 / 3] * 2] * 3),
    "luma to gray": (3, {"to": "gray", "method": "luma"}, [[w] for w in LUMA]),
    "luma of a BGR model": (3, {"to": "gray", "luma": "bt601", "channel_order": "bgr"}, [[w] for w in BT601[::-1]]),
    "own luma": (3, {"to": "gray", "luma": "0.5,0.25,0.25"}, [[0.5], [0.25], [0.25]]),
    "luma": (1, {"to": "rgb"}, [list(LUMA)]),
    "luma to BGR": (1, {"to": "bgr"}, [list(LUMA[::-1])]),
    "luma, colors in BGR": (1, {"to": "rgb", "channel_order": "bgr"}, [list(LUMA[::-1])]),
    "luma of two": (1, {"to": 2, "luma": "0.75,0.25"}, [[0.75, 0.25]]),
    "luma of four asked for": (1, {"to": 4, "luma": "0.1,0.2,0.3,0.4"}, [[0.1, 0.2, 0.3, 0.4]]),
    "repeat": (3, {"to": "rgba"}, [[0.75, 0, 0, 0.75], [0, 0.75, 0, 0], [0, 0, 0.75, 0]]),
    "repeat to fewer": (4, {"to": 2}, [[2, 0], [0, 2], [0, 0], [0, 0]]),
    "repeat asked for": (1, {"to": "rgb", "method": "repeat"}, [[1 / 3] * 3]),
    "zero": (3, {"to": 5, "method": "zero"}, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
    "zero from gray": (1, {"to": 3, "method": "zero"}, [[1, 0, 0]]),
    "select numbers": (3, {"select": "0,2"}, [[1, 0], [0, 0], [0, 1]]),
    "select names": (3, {"select": "b, R"}, [[0, 1], [0, 0], [1, 0]]),
    "select in BGR": (3, {"select": "R", "channel_order": "bgr"}, [[0], [0], [1]]),
    "select twice": (1, {"select": "gray,0"}, [[1, 1]]),
    "select as numbers": (4, {"select": [3]}, [[0], [0], [0], [1]]),
    "bands": (3, {"bands": "B,G,R,NIR=R"}, [[0, 0, 0.5, 0.5], [0, 1, 0, 0], [1, 0, 0, 0]]),
    "bands and their mean": (3, {"bands": RGB_D}, [[0.75, 0, 0, 0.25], [0, 0.75, 0, 0.25], [0, 0, 0.75, 0.25]]),
    "a band of nothing": (3, {"bands": "R,G,B,D=zero"}, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
    "none is nothing too": (3, {"bands": "R,G,B,D=None"}, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]),
    "bands by number": (2, {"bands": "a=0,b=0,c=1"}, [[0.5, 0.5, 0], [0, 0, 1]]),
    "bands that leave one out": (3, {"bands": "G,B"}, [[0, 0], [1, 0], [0, 1]]),
    "bgr": (3, {"to": "bgr"}, SWAP),
    "a BGR model to RGB": (3, {"to": "rgb", "channel_order": "bgr"}, SWAP),
    "BGR stays BGR": (3, {"to": "bgr", "channel_order": "bgr"}, np.eye(3).tolist()),
    "three stay three": (3, {"to": 3, "channel_order": "bgr"}, np.eye(3).tolist()),
    "four to RGB": (4, {"to": "rgb"}, [[4 / 3, 0, 0], [0, 4 / 3, 0], [0, 0, 4 / 3], [0, 0, 0]]),
    "matrix": (2, {"matrix": [[1, 2, 3], [4, 5, 6]]}, [[1, 2, 3], [4, 5, 6]]),
    "adapter": (3, {"to": 2, "method": "adapter"}, [[1.5, 0], [0, 1.5], [0, 0]]),
    "adapter and luma": (3, {"to": 1, "method": "adapter", "luma": "bt709"}, [[w] for w in LUMA]),
    "adapter and select": (3, {"select": "2,0", "method": "adapter"}, [[0, 1], [0, 0], [1, 0]]),
    "one column": (3, {"matrix": [[1], [0], [-1]], "to": "gray"}, [[1], [0], [-1]]),
}


@pytest.mark.parametrize("case", MATRICES)
def test_matrices(case: str):
    old, words, expected = MATRICES[case]
    assert matrix(old, **{"to": None, **words}) == expected


@pytest.mark.parametrize(
    ("old", "words", "message"),
    [
        (3, {"to": 2, "method": "sum"}, "--method sum makes one channel"),
        (3, {"to": 3, "method": "stack"}, "--method stack makes one channel"),
        (3, {"to": 1, "method": "fold"}, "--method is one of auto, sum"),
        (4, {"to": "bgr"}, "--to bgr swaps three colors"),
        (3, {"to": 2, "method": "zero"}, "2 are fewer than 3"),
        (3, {"to": 4, "method": "luma"}, "luma with 3 weights is between one channel and 3; the kernel takes 3"),
        (3, {"to": 4, "luma": "bt709"}, "--luma has 3 weights for 4 channels"),
        (3, {"to": 1, "method": "sum", "luma": "bt709"}, "--luma gives weights, which --method sum does not use"),
        (3, {"to": 1, "select": "0,1"}, "--select makes 2 channels, and --to asks for 1"),
        (3, {"bands": "R,G", "select": "0"}, "--select and --bands are different rules"),
        (3, {"select": "0", "method": "sum"}, "--select and --method sum are different rules"),
        (3, {"bands": "R,G", "luma": "bt709"}, "--bands and --luma are different rules"),
        (3, {"select": "3"}, "'3' is not one of the kernel's 3 channels: R, G, B or 0 to 2"),
        (4, {"select": "R"}, "'R' is not one of the kernel's 4 channels: 0 to 3"),
        (3, {"select": "R,,B"}, "--select is channels separated by commas"),
        (3, {"bands": "R,NIR"}, "'NIR' is not one of the kernel's 3 channels"),
        (3, {"bands": "R,N=R=G"}, "--bands is NAME or NAME=CHANNEL"),
        (3, {"bands": "R,N=R,N=G"}, "--bands names a band twice"),
        (3, {"bands": ""}, "--bands is NAME or NAME=CHANNEL"),
        (3, {"to": 3, "channel_order": "gbr"}, "--channel-order is one of rgb, bgr"),
        (2, {"matrix": [[1, 0, 0]] * 3}, "--matrix has 3 rows, one for each old channel, and the kernel takes 2"),
        (2, {"matrix": [[1, 0], [1]]}, "a number for each new one in every row"),
        (2, {"matrix": [[1, "x"], [1, 2]]}, "--matrix must be rows of numbers"),
        (2, {"matrix": [[1, float("nan")], [1, 2]]}, "--matrix takes finite numbers"),
        (2, {"matrix": [1, 2]}, "--matrix must be rows of numbers"),
        (2, {"matrix": []}, "a row for each old channel"),
    ],
)
def test_words_that_cannot_be_meant(old: int, words: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        matrix(old, **words)


def write_matrix(path: Path, rows: Sequence[Sequence[float]]) -> None:
    if path.suffix == ".npy":
        np.save(path, np.array(rows))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(",".join(map(str, row)) for row in rows))


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".json"])
def test_a_matrix_from_a_file(suffix: str, tmp_path: Path):
    rows = [[0.1, -2.0, 3e-7], [1 / 3, 0.0, 5.0]]
    write_matrix(tmp_path / f"m{suffix}", rows)
    assert matrix(2, matrix=tmp_path / f"m{suffix}") == rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.txt", b"1,2"),
        ("m.json", b"{"),
        ("m.json", b'{"a": 1}'),
        ("m.json", b"[" * 100_000),
        ("m.csv", b"1,x\n2,3"),
        ("m.csv", b"\xff\xfe"),
        ("m.csv", b""),
        ("m.npy", b"\x93NUMPY"),
        ("m.npy", b""),
        ("m.json", b"[[1, 2], [3, NaN]]"),
        ("m.json", b"[[[1], [2]]]"),
    ],
)
def test_a_file_that_holds_no_matrix(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="--matrix") as caught:
        build_options(None, matrix=str(tmp_path / name))
    assert caught.value.file == str(tmp_path / name)


def test_a_pickled_matrix_is_not_opened(tmp_path: Path):
    np.save(tmp_path / "m.npy", np.array([[object()]], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="pickle"):
        build_options(None, matrix=tmp_path / "m.npy")


def test_a_matrix_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileSystemError, match="no such file"):
        build_options(None, matrix=tmp_path / "m.csv")


class Dense(ModelGraph):
    """One kernel in groups, in a format that can hold its dense expansion."""

    def __init__(self, conv: FirstConv) -> None:
        self._conv = conv

    def first_convs(self) -> Sequence[FirstConv]:
        return [self._conv]

    def dense_shape(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        filters, _, *window = conv.tensor.shape
        return (filters, channels, *window)


def grouped(array: np.ndarray, groups: int, layout: Layout, channels: int) -> Memory:
    store = Memory({"": {"stem.weight": array}})
    store.graph = Dense(FirstConv(store.tensors["stem.weight"], layout, channels, "graph", "", groups))
    return store


def converted(checkpoint: TensorStore, to: str | int | None, **words: Any) -> np.ndarray:
    made = plan.build_plan(checkpoint, build_options(to, **words))
    (edit,) = made.edits.tensors.values()
    return edit.values().reshape(edit.shape)


def convolved(weights: np.ndarray, image: np.ndarray, groups: int = 1) -> np.ndarray:
    """[O, I/groups, H, W] over a zero-padded [I, H, W], each step written out."""
    filters, width, height, breadth = weights.shape
    padded = np.pad(image.astype(np.float64), ((0, 0), (height // 2, height // 2), (breadth // 2, breadth // 2)))
    answer = np.zeros((filters, image.shape[1], image.shape[2]))
    for o in range(filters):
        first = o * groups // filters * width
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                patch = padded[first : first + width, y : y + height, x : x + breadth]
                answer[o, y, x] = sum((weights[o].astype(np.float64) * patch).ravel())
    return answer


UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float8_e4m3fn": 2.0**-4}
KERNELS = st.tuples(
    st.sampled_from([np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]),
    st.sampled_from(["OIHW", "HWIO", "OHWI", "IOHW"]),
    st.integers(0, 2**32 - 1),
)


@st.composite
def asked_for(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """(old channels, words) that can be meant, over every rule there is."""
    old, new = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    number = st.floats(-4, 4, width=16)
    order = draw(st.sampled_from(["rgb", "bgr"]))
    choices: list[dict[str, Any]] = [
        {"to": new},
        {"to": new, "method": "mean"},
        {"to": new, "method": "repeat"},
        {"select": draw(st.lists(st.integers(0, old - 1), min_size=1, max_size=4))},
        {"bands": [f"n{i}={draw(st.sampled_from([*map(str, range(old)), 'mean', 'zero']))}" for i in range(new)]},
        {"matrix": [[draw(number) for _ in range(new)] for _ in range(old)]},
    ]
    choices += [{"to": 1, "method": "sum"}] if old > 1 else [{"to": "rgb", "luma": draw(st.sampled_from(["bt709", "bt601"]))}]
    choices += [{"to": 1, "luma": [draw(number) for _ in range(old)], "channel_order": order}] if old > 1 else []
    choices += [{"to": old + new, "method": "zero"}]
    choices += [{"to": draw(st.sampled_from(["rgb", "bgr"])), "channel_order": order}] if old in (1, 3) else []
    return old, draw(st.sampled_from(choices))


@given(asked_for(), KERNELS)
def test_the_new_kernel_sees_the_image_as_the_old_one_sees_the_mapped_image(
    asked: tuple[int, dict[str, Any]], drawn: tuple[type, str, int]
):
    (old, words), (dtype, spelling, seed) = asked, drawn
    chance, letters = np.random.default_rng(seed), "OIHW"
    sizes = {"O": 4, "I": old, "H": 3, "W": 3}
    weights = (chance.normal(size=[sizes[x] for x in spelling]) / 2).astype(dtype)
    words = {"to": None, "layers": ["stem"], "layout": spelling, **words}
    rule = build_options(**words).rule.mixing(old)
    image = chance.uniform(size=(rule.new, 5, 5))
    mapped = np.einsum("ij,jyx->iyx", np.array(rule.matrix), image)
    straight = [spelling.index(x) for x in letters]
    before = convolved(weights.transpose(straight), mapped)
    if rule.is_identity:
        assert not plan.build_plan(Memory({"": {"stem.weight": weights}}), build_options(**words)).edits
        return
    new = converted(Memory({"": {"stem.weight": weights}}), **words).transpose(straight)
    bound = UNIT[np.dtype(dtype).name] * np.abs(new.astype(np.float64)).sum()
    assert np.abs(convolved(new, image) - before).max() <= bound * 1.01 + 1e-12 + smallest(dtype) * 9 * rule.new


def smallest(dtype: type) -> float:
    """Half of the smallest number: what rounding a tiny weight loses."""
    info = ml_dtypes.finfo(dtype)
    return float(info.smallest_subnormal) / 2


@given(asked_for(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_grouped_kernels(asked: tuple[int, dict[str, Any]], multiplier: int, seed: int):
    """Depthwise ones: in a format that can hold it, the dense expansion or the kernel of one channel answers alike."""
    old, words = asked
    chance = np.random.default_rng(seed)
    weights = chance.normal(size=(old * multiplier, 1, 3, 3))
    words = {"to": None, **words}
    rule = build_options(**words).rule.mixing(old)
    if rule.is_identity or old == 1:
        return
    image = chance.uniform(size=(rule.new, 4, 4))
    before = convolved(weights, np.einsum("ij,jyx->iyx", np.array(rule.matrix), image), groups=old)
    new = converted(grouped(weights, old, Layout("OIHW"), old), **words)
    assert new.shape == (old * multiplier, rule.new, 3, 3)
    assert np.allclose(convolved(new, image), before, rtol=1e-12, atol=1e-12)
    if rule.method == "sum":
        assert new.tobytes() == weights.tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("words", [{"select": "2,0"}, {"to": "bgr"}, {"to": 5, "method": "zero"}], ids=str)
def test_these_copy_bits(dtype: type, words: dict[str, Any]):
    weights = kernel(4, 3, 3, 3, dtype=dtype)
    new = converted(Memory({"": {"stem.weight": weights}}), **{"to": None, "layers": ["stem"], **words})
    kept = {"select": [2, 0], "to": [2, 1, 0] if words.get("to") == "bgr" else [0, 1, 2]}[next(iter(words))]
    assert new[:, : len(kept)].tobytes() == np.ascontiguousarray(weights[:, kept]).tobytes()
    assert not new[:, len(kept) :].astype(np.float64).any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_gray_and_back_and_gray_again_is_stable(dtype: type):
    """RGB → gray → RGB → gray: the second gray is the first, to the rounding of three weights that sum to one."""
    first = converted(Memory({"": {"stem.weight": kernel(8, 3, 3, 3, dtype=dtype)}}), "gray", layers=["stem"])
    colors = converted(Memory({"": {"stem.weight": first}}), "rgb", layers=["stem"])
    again = converted(Memory({"": {"stem.weight": colors}}), "gray", layers=["stem"])
    off = np.abs(again.astype(np.float64) - first.astype(np.float64))
    assert (off <= 2 * UNIT[np.dtype(dtype).name] * np.abs(first.astype(np.float64)) + 3 * smallest(dtype)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_passes_where_channels_are_copied(bad: float):
    weights = kernel(8, 3, 7, 7)
    weights.view(np.uint32)[5, 1, 2, 3] = np.float32(bad).view(np.uint32) | (0x1234 if np.isnan(bad) else 0)
    net = {"": {**NET, "conv1.weight": weights}}
    for words in ({"to": "bgr"}, {"to": 5, "method": "zero"}, {"to": None, "select": "1"}):
        with pytest.raises(UnsupportedError, match="filter 5 holds NaN or infinity") as caught:
            converted(Memory(net), **words)
        assert "--allow-nonfinite" in caught.value.hint
        new = converted(Memory(net), allow_nonfinite=True, **words)
        bits = [array.view(np.uint32)[~np.isfinite(array)].tolist() for array in (new, weights)]
        assert bits[0] == bits[1]
        assert len(bits[0]) == 1
    with pytest.raises(UnsupportedError, match="filter 5 holds NaN or infinity, which sum would mix"):
        converted(Memory(net), "gray", allow_nonfinite=True)
    assert not np.isfinite(converted(Memory(net), None, bands="a=1,b=0,c=2", allow_nonfinite=True)[5, 0]).all()


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        ({"to": "gray"}, []),
        ({"to": 2}, ["dropped_channels"]),
        ({"to": None, "bands": "R,B"}, ["dropped_channels"]),
        ({"to": None, "select": "0"}, []),
        ({"to": "gray", "method": "mean"}, ["response"]),
        ({"to": "gray", "luma": "bt709"}, ["response"]),
        ({"to": 4}, []),
        ({"to": 4, "method": "zero"}, []),
    ],
)
def test_what_a_rule_does_unexpectedly_is_said(words: dict[str, Any], codes: list[str]):
    made = plan.build_plan(Memory({"": NET}), build_options(**words))
    assert [notice.code for notice in made.notices] == codes


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"to": "gray"}, "exact for a gray image stacked 3 times"),
        ({"to": 4}, "new channel j takes old channel j mod 3, times 3/4, as timm and smp do"),
        ({"to": 4, "method": "repeat"}, ""),
        ({"to": "bgr"}, ""),
        ({"to": None, "select": "0"}, ""),
    ],
)
def test_why_it_is_this_method(words: dict[str, Any], why: str):
    assert plan.build_plan(Memory({"": NET}), build_options(**words)).why == why


def adapt_input_conv(channels: int, weights: np.ndarray) -> np.ndarray:
    """timm's rule (timm/models/_manipulate.py, adapt_input_conv): the sum for one channel, else the three repeated, cut to the
    count and scaled by 3 / count; in float32."""
    if channels == 1:
        return weights.sum(axis=1, keepdims=True, dtype=np.float32)
    repeated = np.tile(weights, (1, -(-channels // 3), 1, 1))[:, :channels]
    return repeated * np.float32(3 / channels)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_timm(channels: int):
    weights = kernel(8, 3, 7, 7)
    new = converted(Memory({"": {"stem.weight": weights}}), channels, layers=["stem"])
    assert np.allclose(new, adapt_input_conv(channels, weights), rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("old", "words", "expected"),
    [
        # segmentation_models_pytorch, encoders/_utils.py, patch_first_conv: sum to one; w[:, i % 3] · 3 / n otherwise
        (3, {"to": 5}, lambda w: np.stack([w[:, i % 3] for i in range(5)], 1) * (3 / 5)),
        # fastai, vision/learner.py, _update_first_layer: one: sum; two: the first two × 1.5; more: the rest starts at zero
        (3, {"to": 1}, lambda w: w.sum(1, keepdims=True)),
        (3, {"to": 2}, lambda w: w[:, :2] * 1.5),
        (3, {"to": 6, "method": "zero"}, lambda w: np.concatenate([w, np.zeros_like(w)], 1)),
        # diffusers, InstructPix2Pix (4 → 8) and inpainting (4 → 9): trained channels kept, new ones zero
        (4, {"to": 8, "method": "zero"}, lambda w: np.concatenate([w, np.zeros_like(w)], 1)),
        (4, {"to": 9, "method": "zero"}, lambda w: np.concatenate([w, np.zeros_like(w), np.zeros_like(w[:, :1])], 1)),
    ],
    ids=["smp 5", "fastai 1", "fastai 2", "fastai 6", "diffusers 8", "diffusers 9"],
)
def test_rules_of_others(old: int, words: dict[str, Any], expected: Any):
    weights = kernel(8, old, 3, 3)
    new = converted(Memory({"": {"stem.weight": weights}}), layers=["stem"], **words)
    assert np.allclose(new, expected(weights.astype(np.float64)), rtol=1e-6, atol=1e-7)
