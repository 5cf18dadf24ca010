"""The plan: what was asked for, what follows from it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError
from chkpt_channels.core.tensors import FirstConv, PreprocessingOp
from chkpt_channels.discovery.request import Like, LikeGroup, LikeTensor
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.transform.notices import of_file
from chkpt_channels.transform.options import Options, build_options
from chkpt_channels.transform.plan import build_plan, may_have_made
from tests.formats.keras.test_weights_only import bare, numbered
from tests.support.files import FIXTURES, opened
from tests.support.memory import BF16, NET, Memory, kernel


def asked(to: int | str | None = "gray", **words: Any) -> Options:
    return build_options(to, **words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"to": None}, "a target is needed"),
        ({"to": 3, "luma": (0.5, 0.5)}, "--luma has 2 weights for 3 channels"),
        ({"to": 4, "luma": "bt709"}, "--luma has 3 weights for 4 channels"),
        ({"layout": "OIW"}, "has 3 axes"),
        ({"layers": ("nothing",)}, "no tensor is called 'nothing'"),
        ({"to": 2, "method": "zero"}, "--method zero adds channels"),
        ({"to": 4, "matrix": [[1] * 4] * 2}, "--matrix has 2 rows, one for each old channel, and the kernel takes 3"),
        ({"to": None, "select": "R,N"}, "'N' is not one of the kernel's 3 channels"),
    ],
)
def test_wrong_usage(words: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        build_plan(Memory({"": NET}), asked(**{"to": "gray", **words}))


def test_every_copy_of_the_model_is_planned():
    plan = build_plan(Memory({"model": NET, "ema": NET}, {"model/conv1.in_channels": 3}), asked())
    assert {name: edit.shape for name, edit in plan.edits.tensors.items()} == {
        "model/conv1.weight": (8, 1, 7, 7),
        "ema/conv1.weight": (8, 1, 7, 7),
    }
    assert plan.channels == (3, 1)
    assert plan.edits.numbers == {"model/conv1.in_channels": 1}


def test_nothing_is_loaded_before_it_is_written():
    checkpoint = Memory({"": NET})
    checkpoint.arrays = {}
    plan = build_plan(checkpoint, asked())
    with pytest.raises(KeyError):
        plan.edits.tensors["conv1.weight"].values()


def test_the_count_it_has_already_is_no_edit():
    plan = build_plan(Memory({"": NET}, {"conv1.in_channels": 3}), asked(3))
    assert not plan.edits
    assert plan.channels == (3, 3)


def test_of_several_models_those_that_differ_are_changed():
    """One of two copies was converted before."""
    gray = {**NET, "conv1.weight": kernel(8, 1, 7, 7)}
    plan = build_plan(Memory({"model": NET, "ema": gray}), asked())
    assert set(plan.edits.tensors) == {"model/conv1.weight"}
    assert plan.channels == (3, 1)


@pytest.mark.parametrize(
    ("luma", "matrix", "codes"),
    [
        (None, (0.2126, 0.7152, 0.0722), []),
        ((0.299, 0.587, 0.114), (0.299, 0.587, 0.114), []),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), ["response"]),
    ],
)
def test_luma(luma: Any, matrix: tuple[float, ...], codes: list[str]):
    plan = build_plan(Memory({"": {**NET, "conv1.weight": kernel(8, 1, 7, 7)}}), asked(3, luma=luma))
    assert plan.kernels[0].mixing.matrix == (matrix,)
    assert [notice.code for notice in plan.notices] == codes


def test_luma_over_any_number_of_channels():
    plan = build_plan(Memory({"": {**NET, "conv1.weight": kernel(8, 1, 7, 7)}}), asked(4, luma=(0.1, 0.2, 0.3, 0.4)))
    assert plan.kernels[0].mixing.matrix == ((0.1, 0.2, 0.3, 0.4),)


HWIO = {"": {"conv/kernel": kernel(7, 7, 3, 8), "fc/kernel": kernel(8, 5)}}


@pytest.mark.parametrize(
    ("groups", "layer", "layout", "shape"),
    [
        ({"": NET}, "conv1", None, (8, 1, 7, 7)),
        ({"": {"up.weight": kernel(3, 8, 2, 2)}}, "up", "IOHW", (1, 8, 2, 2)),
        (HWIO, "conv/kernel", "HWIO", (7, 7, 1, 8)),
        ({"": {"p.weight": kernel(16, 3), "fc.weight": kernel(5, 16)}}, "p", "OI", (16, 1)),
    ],
    ids=["known", "transposed", "HWIO", "Linear"],
)
def test_layers_and_layouts(groups: Any, layer: str, layout: str | None, shape: tuple[int, ...]):
    plan = build_plan(Memory(groups), asked(layers=(layer,), layout=layout))
    assert [edit.shape for edit in plan.edits.tensors.values()] == [shape]
    assert plan.kernels[0].conv.found_by == "user"


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("O(HWI)", (16, 48)), ("O(IHW)", (16, 48)), ("(HWI)O", (48, 16)), ("(IHW)O", (48, 16)), ("O(GI)HW", (16, 12, 3, 3))],
)
def test_a_folded_axis_is_not_all_colors(layout: str, shape: tuple[int, ...]):
    """48 numbers are 16 places of three colors, not an image of 48 channels: a third of them stays, or it is refused."""
    try:
        plan = build_plan(
            Memory({"": {"p.weight": kernel(*shape), "fc.weight": kernel(5, 16)}}), asked(layers=("p",), layout=layout)
        )
    except (UnsupportedError, UsageError):
        return
    axis = plan.kernels[0].layout.channel_axis
    assert plan.edits.tensors["p.weight"].shape == tuple(n // 3 if i == axis else n for i, n in enumerate(shape))


def test_two_words_for_one_layer_are_one():
    plan = build_plan(Memory({"": NET}), asked(layers=("conv1", "conv1.weight")))
    assert len(plan.kernels) == 1


REFUSED = {
    "no convolution": ({"fc.weight": kernel(5, 8)}, build_options(1), UnsupportedError, "holds no convolution"),
    "no layout": ({"p.weight": kernel(16, 48)}, build_options(1, layers=("p",)), UnsupportedError, "axis order is ambiguous"),
    "open": (
        {"a.weight": kernel(8, 300, 3, 3), "b.weight": kernel(8, 3, 3, 3), "c.weight": kernel(9, 3, 5, 5)},
        build_options(1),
        AmbiguousError,
        "could be the first convolution",
    ),
}


@pytest.mark.parametrize(("named", "options", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(named: Any, options: Options, kind: type[Exception], words: str):
    with pytest.raises(kind, match=words):
        build_plan(Memory({"": named}), options)


def test_integers_without_a_scale():
    """At the latest when their values are asked for: before anything is published."""
    with pytest.raises(UnsupportedError, match="holds I8"):
        build_plan(
            Memory({"": {**NET, "q.weight": np.ones((8, 3, 3, 3), np.int8)}}), build_options(1, layers=("q",))
        ).edits.tensors["q.weight"].values()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, BF16])
def test_a_kernel_that_is_not_finite(bad: float, dtype: type):
    broken = kernel(8, 3, 7, 7, dtype=dtype)
    broken[5, 1, 2, 3] = bad
    plan = build_plan(Memory({"": {**NET, "conv1.weight": broken}}), asked())
    with pytest.raises(UnsupportedError, match=r"a.pth: conv1.weight: filter 5 holds NaN or infinity"):
        plan.edits.tensors["conv1.weight"].values()


def test_a_kernel_that_would_overflow():
    large = np.full((8, 3, 7, 7), 100, np.float16)
    large[3] = 60000
    plan = build_plan(Memory({"": {**NET, "conv1.weight": large}}), asked())
    with pytest.raises(UnsupportedError, match=r"a.pth: conv1.weight: filter 3 would overflow F16"):
        plan.edits.tensors["conv1.weight"].values()


def test_not_finite_elsewhere_is_none_of_our_business():
    plan = build_plan(Memory({"": {**NET, "bn1.weight": np.full(8, np.nan, np.float32)}}), asked())
    assert plan.edits.tensors["conv1.weight"].values().shape == (8, 1, 7, 7)


def test_foreign_globals_are_told_and_refused_on_request():
    checkpoint = Memory({"": NET})
    checkpoint.globals = ("posix.mkdir", *(f"os.{letter}" for letter in "abcdef"))
    (notice,) = of_file(checkpoint, ())
    assert notice.code == "foreign_globals"
    assert "posix.mkdir, os.a, os.b, os.c, os.d and 2 more" in notice.message
    with pytest.raises(UnsupportedError, match=r"posix.mkdir.* which --strict refuses"):
        build_plan(checkpoint, build_options(1, strict=True))


def test_a_kernel_without_input_channels():
    checkpoint = Memory({"": {**NET, "x.weight": kernel(8, 0, 3, 3)}})
    with pytest.raises(UnsupportedError, match=r"x\.weight: has no elements: its shape is \[8, 0, 3, 3\]"):
        build_plan(checkpoint, asked(layers=("x",)))


class Preceded(ModelGraph):
    """A graph with one operation before the first conv."""

    def __init__(self, scale: tuple[float, ...], shift: tuple[float, ...]) -> None:
        self._operation = PreprocessingOp("norm", "Normalization", scale, shift)

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        return [self._operation]


@pytest.mark.parametrize(
    ("scale", "shift"),
    [
        ((1, 0, 1), (0, 0, 0)),
        ((1, inf, 1), (0, 0, 0)),
        ((1, nan, 1), (0, 0, 0)),
        ((1, 1, 1), (0, -inf, 0)),
        ((1, 2, 3), (0, nan, 0)),
    ],
)
def test_an_operation_that_cannot_be_inverted(scale: tuple[float, ...], shift: tuple[float, ...]):
    checkpoint = Memory({"": NET})
    checkpoint.graph = Preceded(scale, shift)
    with pytest.raises(UnsupportedError, match="norm: this Normalization multiplies a channel by zero or no number"):
        build_plan(checkpoint, asked())


def test_an_operation_that_can_be_inverted():
    checkpoint = Memory({"": NET})
    checkpoint.graph = Preceded((2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    assert build_plan(checkpoint, asked()).edits.tensors["conv1.weight"].shape == (8, 1, 7, 7)


def like(net: Mapping[str, np.ndarray], target: int | None = None, **words: Any) -> Options:
    """The options with a LIKE of these shapes, as they are when it was compared with the file."""
    tensors = tuple(LikeTensor(name, array.shape, name) for name, array in net.items())
    options = build_options(target, **words)
    stated = Like("like.pth", (LikeGroup("", "", tensors),), target=target)
    return options._replace(search=options.search._replace(like=stated))


def test_a_plan_by_like_makes_its_shapes():
    plan = build_plan(Memory({"model": NET, "ema": NET}), like({**NET, "conv1.weight": kernel(8, 4, 7, 7)}, 4, method="zero"))
    assert {name: edit.shape for name, edit in plan.edits.tensors.items()} == {
        "model/conv1.weight": (8, 4, 7, 7),
        "ema/conv1.weight": (8, 4, 7, 7),
    }
    assert {k.conv.found_by for k in plan.kernels} == {"like"}
    head = {**NET, "conv1.weight": kernel(8, 1, 7, 7), "fc.weight": kernel(9, 8)}
    assert [notice.code for notice in build_plan(Memory({"": NET}), like(head, 1)).notices] == ["head_left"]


def test_what_changes_in_like_and_not_in_the_plan_is_refused():
    """A vector behind the stem is composed into nothing."""
    net = {**NET, "z.mean": kernel(3), "z.std": kernel(3), "z.third": kernel(3)}
    wanted = {**net, "conv1.weight": kernel(8, 1, 7, 7)} | dict.fromkeys(("z.mean", "z.std", "z.third"), kernel(1))
    with pytest.raises(UnsupportedError, match=r"z\.mean, z\.std, z\.third: precedes the stem with one value per channel"):
        build_plan(Memory({"": net}), like(wanted, 1))
    net = {"stem.0.weight": kernel(8, 3, 7, 7), "tail.x.running_mean": kernel(3), "tail.x.running_var": kernel(3) ** 2}
    wanted = {"stem.0.weight": kernel(8, 1, 7, 7), "tail.x.running_mean": kernel(1), "tail.x.running_var": kernel(1)}
    with pytest.raises(
        UnsupportedError, match=r"tail\.x\.running_mean: is \[3\] here and \[1\] in LIKE, and the conversion makes it"
    ):
        build_plan(Memory({"": net}), like(wanted, 1))


def test_without_a_difference_nothing_changes():
    plan = build_plan(Memory({"": NET}), like(NET))
    assert (bool(plan.edits), plan.channels, len(plan.kernels)) == (False, (3, 3), 1)
    unknown = {"a.weight": kernel(8, 3, 3, 3), "b.weight": kernel(9, 3, 5, 5), "c.weight": kernel(7, 9, 3, 3)}
    plan = build_plan(Memory({"": unknown}), like(unknown))
    assert (bool(plan.edits), plan.channels, plan.kernels) == (False, (0, 0), ())
    assert build_plan(Memory({"": NET}), like(NET, 3, select="2,1,0")).edits.tensors.keys() == {"conv1.weight"}


def test_a_method_that_is_refused_is_left_out(tmp_path: Path):
    """Where then there is a plan: not where there is no graph that could take a layer."""
    with opened(FIXTURES / "keras_zip" / "depthwise.keras") as checkpoint:
        with pytest.raises(UnsupportedError, match="only converted to one channel") as refused:
            build_plan(checkpoint, asked(4, method="zero"))
        assert refused.value.hint == "leave --method out"
        assert build_plan(checkpoint, asked(4)).edits.method == "adapter"
    layers = numbered(("depthwise_conv2d", [(3, 3, 3, 2), (6,)]), ("conv2d", [(3, 3, 6, 8)]))
    with bare(tmp_path, layers) as checkpoint, pytest.raises(UnsupportedError, match="only converted to one channel") as refused:
        build_plan(checkpoint, asked(4, method="zero"))
    assert not refused.value.hint


def test_a_quick_look_at_kernels_tells_most_conversions_apart():
    network = {**NET, "conv1.bias": np.zeros(len(NET["conv1.weight"]), "f4")}
    before = Memory({"": network})
    plain = build_plan(before, asked())
    for words, like in [({}, {}), ({"norm": "imagenet"}, {"norm": "imagenet"}), ({"norm": "caffe"}, {"norm": "caffe"})]:
        edits = build_plan(before, asked(**words)).edits.tensors
        after = Memory({"": {**network, "conv1.weight": edits["conv1.weight"].values()}})
        assert may_have_made(asked(**like), before, after, plain)
        assert not may_have_made(asked(norm="clip"), before, after, plain)
    assert not may_have_made(asked(norm="imagenet"), before, Memory({"": NET}), plain)
    without = Memory({"": {name: array for name, array in NET.items() if name != "conv1.weight"}})
    assert may_have_made(asked(norm="imagenet"), before, without, plain)
