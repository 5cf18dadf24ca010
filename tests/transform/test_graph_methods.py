"""Which conversions the graph makes: asked for, better than an edit of kernels, or all that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from chkpt_channels import AmbiguousError, UnsupportedError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Adapter, ChannelMap, FirstConv, PreprocessingOp
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.transform.graph_methods import folded_notice, folding, instead, preferred
from chkpt_channels.transform.options import Options, build_options
from chkpt_channels.transform.plan import build_plan
from tests.support.memory import Memory, kernel

SWAP = PreprocessingOp("swap", "Gather")


class Fronted(ModelGraph):
    """A graph of one first conv behind operations, with room for what the test says."""

    knows_outputs = True

    def __init__(
        self, conv: FirstConv, operations: Sequence[PreprocessingOp], methods: Sequence[str], obstacle: str, *, gathers: bool
    ) -> None:
        self._conv, self._operations, self._methods, self._obstacle = conv, operations, methods, obstacle
        self._gathers = gathers

    def first_convs(self) -> Sequence[FirstConv]:
        return [self._conv]

    def preprocessing(self, first_convs: Sequence[FirstConv]) -> Sequence[PreprocessingOp]:
        return self._operations

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        return self._methods

    def adapter_obstacle(self, first_convs: Sequence[FirstConv]) -> str:
        return self._obstacle

    def gathers(self, first_convs: Sequence[FirstConv], places: tuple[int, ...]) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        return {"image": (1, places)} if self._gathers else {}

    def padding(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]]:
        return [((0, 1), (0, 1))]


def store(
    size: int = 3,
    *operations: PreprocessingOp,
    methods: Sequence[str] = ("stack",),
    obstacle: str = "",
    groups: int = 1,
    gathers: bool = False,
) -> Memory:
    made = Memory({"": {"w": kernel(6, 3 // groups, size, size)}})
    conv = FirstConv(made.tensors["w"], Layout("OIHW"), 3, "graph", groups=groups)
    made.graph = Fronted(conv, operations, methods, obstacle, gathers=gathers)
    return made


CASES: dict[str, tuple[Memory, dict[str, Any], str]] = {
    "a kernel edit is right": (store(), {"to": 4}, ""),
    "toward gray too": (store(), {"to": 1}, ""),
    "what swaps is stacked before": (store(3, SWAP), {"to": 1}, "stack"),
    "and adapted for other counts": (store(3, SWAP), {"to": 4}, "adapter"),
    "or where only the colors change": (store(3, SWAP), {"to": "bgr"}, "adapter"),
    "which a node in front gathers": (store(3, SWAP, gathers=True), {"to": "bgr"}, "gather"),
    "and no others": (store(3, SWAP, gathers=True), {"select": "0,1"}, "adapter"),
    "or for one channel of the old ones": (store(3, SWAP), {"select": "0"}, "adapter"),
    "or with a normalization": (store(3, SWAP), {"to": 1, "norm": "imagenet"}, "adapter"),
    "or where nothing can be stacked": (store(3, SWAP, methods=()), {"to": 1}, "adapter"),
    "or where the kernel has groups": (store(3, groups=3), {"to": 4}, "adapter"),
    "asked for": (store(), {"to": 4, "method": "adapter"}, "adapter"),
    "asked for with a rule": (store(), {"select": "0,1", "method": "adapter"}, "adapter"),
    "it is there already": (store(1), {"to": 4, "method": "adapter"}, ""),
    "a swap before it": (store(1, SWAP), {"to": 4, "method": "adapter"}, "adapter"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_method(case: str):
    made, words, method = CASES[case]
    plan = build_plan(made, build_options(**{"to": None, **words}))
    assert plan.edits.method == method
    assert (plan.edits.adapter is not None) == (method == "adapter")
    assert plan.edits.orders == ({"image": (1, (2, 1, 0))} if method == "gather" else {})
    assert bool(plan.edits.tensors) == (not method)
    if method:
        assert [change.mixing.method for change in plan.kernels] == [method]
        assert len(plan.kernels[0].mixing.matrix[0]) == plan.channels[1]
        assert ("no kernel edit is right: " in plan.why) == (method in ("adapter", "gather") and "method" not in words)


def test_what_the_adapter_computes():
    plan = build_plan(
        store(), build_options(1, method="adapter", mean="0.5,0.25,0.5", std="0.5,0.25,1", new_mean="0", new_std="1")
    )
    assert plan.edits.adapter == ChannelMap(((2.0,), (4.0,), (1.0,)), (-1.0, -1.0, -0.5))
    assert "adapter" in {notice.code for notice in plan.notices}


def test_what_the_user_chose_is_not_replaced():
    """Neither by the adapter, where it was a rule of kernels, nor by an edit, where it was the adapter."""
    with pytest.raises(UnsupportedError, match="Gather precedes the kernel"):
        build_plan(store(3, SWAP), build_options(4, method="repeat"))
    with pytest.raises(UnsupportedError, match="holds no room: --method adapter puts none in front") as caught:
        build_plan(store(obstacle="holds no room"), build_options(4, method="adapter"))
    assert caught.value.hint == "leave --method out, and the kernel is edited"
    with pytest.raises(UnsupportedError, match="its graph does not allow --method broadcast") as caught:
        build_plan(store(), build_options(1, method="broadcast"))
    assert caught.value.hint == "--method stack"
    with pytest.raises(UnsupportedError, match="holds no graph to change by --method broadcast"):
        build_plan(Memory({"": {"conv1.weight": kernel(8, 3, 7, 7)}}), build_options(1, method="broadcast"))
    with pytest.raises(UnsupportedError, match="holds no graph that a convolution could be put into"):
        build_plan(Memory({"": {"conv1.weight": kernel(8, 3, 7, 7)}}), build_options(4, method="adapter"))


def test_asked_alone():
    made = store(3, SWAP, obstacle="holds no room", methods=())
    convs = made.graph.first_convs()
    assert instead(made, convs, build_options(4)) == ""
    assert preferred(made, convs, [SWAP], build_options(1)) == ("", "")


def with_adapter(**others: tuple[int, ...]) -> Memory:
    named = {"front.weight": (3, 4, 1, 1), "front.bias": (3,), "stem.weight": (8, 3, 3, 3), "stem.bias": (8,)}
    made = Memory(
        {"": {name: kernel(*shape) for name, shape in (named | {k.replace("__", "."): v for k, v in others.items()}).items()}}
    )
    made.takes_out = True
    return made


def words(*layers: str) -> Options:
    return build_options(None, fold_adapter=True, layers=layers)


def test_an_adapter_that_is_named():
    """Of the kernels that the user names the one that gives the channels of the others; its matrix and bias are the rule."""
    made = with_adapter()
    plan = build_plan(made, words("stem", "front"))
    assert plan.channels == (3, 4)
    assert [change.conv.tensor.name for change in plan.kernels] == ["stem.weight"]
    assert (plan.edits.folded, plan.edits.removed) == ("", ("front.weight", "front.bias"))
    matrix, bias, old = made.load("front.weight")[:, :, 0, 0], made.load("front.bias"), made.load("stem.weight")
    new = plan.edits.tensors["stem.weight"].values()
    assert np.allclose(new, np.einsum("oihw,ij->ojhw", old, matrix), atol=1e-5)
    shift = plan.edits.tensors["stem.bias"].values() - made.load("stem.bias")
    assert np.allclose(shift, np.einsum("oihw,i->o", old, bias), atol=1e-5)
    codes = {notice.code: notice.message for notice in plan.notices}
    assert codes.keys() == {"folded", "border_error"}
    assert codes["folded"].endswith("front.weight is folded into stem.weight: front.weight, front.bias are gone")
    assert "if it is padded as usual" in codes["border_error"]


NOT_NAMED: dict[str, tuple[Memory, Options, str]] = {
    "one name": (with_adapter(), words("front"), "--fold-adapter needs both by name"),
    "no name": (with_adapter(), words(), "--fold-adapter needs both by name"),
    "no adapter": (with_adapter(other__weight=(8, 3, 3, 3)), words("stem", "other"), "no 1×1 convolution among stem.weight"),
    "other channels": (
        with_adapter(other__weight=(8, 4, 3, 3)),
        words("front", "other"),
        "no 1×1 convolution among front.weight",
    ),
    "another parameter": (with_adapter(front__gain=(3,)), words("front", "stem"), "front.weight: is no plain convolution alone"),
    "no room": (
        store(3),
        words(),
        "its tensors cannot be taken out: --fold-adapter takes ONNX files, Keras models in .h5 and plain state dicts",
    ),
}


@pytest.mark.parametrize("case", NOT_NAMED)
def test_an_adapter_that_is_not_clear(case: str):
    made, options, message = NOT_NAMED[case]
    with pytest.raises(UnsupportedError, match=message):
        build_plan(made, options)


def test_an_adapter_of_as_many_channels():
    """Its bias has one number for each channel, and is no normalization in front of the stem."""
    plan = build_plan(with_adapter(front__weight=(3, 3, 1, 1)), words("front", "stem"))
    assert [change.mixing.method for change in plan.kernels] == ["fold-adapter"]
    made = with_adapter(front__weight=(3, 3, 1, 1))
    made.arrays |= {"front.weight": np.eye(3, dtype="f4").reshape(3, 3, 1, 1), "front.bias": np.zeros(3, "f4")}
    plan = build_plan(made, words("front", "stem"))
    assert (dict(plan.edits.tensors), plan.edits.removed) == ({}, ("front.weight", "front.bias"))
    assert plan.edits


def test_two_that_could_be_the_adapter():
    made = with_adapter(front__weight=(3, 3, 1, 1), stem__weight=(3, 3, 1, 1), stem__bias=(3,))
    with pytest.raises(AmbiguousError, match="2 convolutions could be the adapter") as caught:
        build_plan(made, words("front", "stem"))
    assert [candidate.key for candidate in caught.value.candidates] == ["front.weight", "stem.weight"]


def test_what_an_adapter_computes():
    made = with_adapter()
    conv = FirstConv(made.tensors["front.weight"], Layout("OIHW"), 4, "user")
    rule = folding(made, conv, Adapter("x", "front.bias", ()), "stem")
    assert (rule.method, rule.old, rule.new) == ("fold-adapter", 3, 4)
    assert np.array_equal(rule.matrix, made.load("front.weight")[:, :, 0, 0])
    assert np.array_equal(rule.offset, made.load("front.bias"))
    assert folding(made, conv, Adapter("x", "", ()), "stem").offset == ()
    notice = folded_notice(conv, Adapter("x", "front.bias", ()), [conv])
    assert notice.message.endswith("into front.weight: its tensors stay, as others read them")
