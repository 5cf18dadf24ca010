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
from chkpt_channels.transform.graph_methods import folded_notice, folding, instead, preferred, trained_adapter
from chkpt_channels.transform.options import build_options
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
    with pytest.raises(UnsupportedError, match="its graph does not allow --method broadcast; stack would do"):
        build_plan(store(), build_options(1, method="broadcast"))
    with pytest.raises(UnsupportedError, match="holds no graph that a convolution could be put into"):
        build_plan(Memory({"": {"conv1.weight": kernel(8, 3, 7, 7)}}), build_options(4, method="adapter"))


def test_asked_alone():
    made = store(3, SWAP, obstacle="holds no room", methods=())
    convs = made.graph.first_convs()
    assert instead(made, convs, build_options(4)) == ""
    assert preferred(made, convs, [SWAP], build_options(1)) == ("", "")


def test_the_adapter_that_is_folded():
    """The one that is 1×1, or that the user names; its outputs are the old channels."""
    made = Memory({"": {"front.weight": kernel(3, 4, 1, 1), "front.bias": kernel(3), "other.weight": kernel(2, 4, 1, 1)}})
    front, other = (FirstConv(made.tensors[name], Layout("OIHW"), 4, "graph") for name in ("front.weight", "other.weight"))
    made.graph = Fronted(front, (), (), "", gathers=False)
    assert trained_adapter(made, [front], ()) is front
    assert trained_adapter(made, [front, other], ["other"]) is other
    with pytest.raises(AmbiguousError, match="2 convolutions could be the adapter") as caught:
        trained_adapter(made, [front, other], ())
    assert caught.value.hint == "--layer front.weight   or   --layer other.weight"
    assert [candidate.key for candidate in caught.value.candidates] == ["front.weight", "other.weight"]
    rule = folding(made, front, Adapter("x", "front.bias", ()))
    assert (rule.method, rule.old, rule.new) == ("fold-adapter", 3, 4)
    assert np.array_equal(rule.matrix, made.load("front.weight")[:, :, 0, 0])
    assert np.array_equal(rule.offset, made.load("front.bias"))
    assert folding(made, front, Adapter("x", "", ())).offset == ()
    notice = folded_notice(front, Adapter("x", "front.bias", ("front.weight", "front.bias")), [other])
    assert notice.message.endswith("is folded into other.weight: front.weight, front.bias are gone")


def test_what_is_no_adapter():
    made = store(3)
    with pytest.raises(UnsupportedError, match="w: is no 1×1 convolution of the image that pads nothing"):
        trained_adapter(made, made.graph.first_convs(), ())
    with pytest.raises(UnsupportedError, match="--fold-adapter edits the graph of an ONNX file, and this is none"):
        build_plan(made, build_options(None, fold_adapter=True))
