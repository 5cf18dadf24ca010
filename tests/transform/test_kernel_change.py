"""How one first conv changes: the mixing through what precedes it, the new shape, and what no edit can do."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, PreprocessingOp
from chkpt_channels.discovery.request import ConfigHints
from chkpt_channels.transform.kernel_change import joined_changes, kernel_change
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing.rules import ChannelRule
from chkpt_channels.transform.notices import of_joined
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import Plan, build_plan
from tests.support.memory import Memory, kernel

STORE = Memory({"": {"w": kernel(6, 3, 3, 3), "grouped": kernel(6, 1, 3, 3)}})
HALVES = PreprocessingOp("halves", "Mul", (0.5, 0.25, 1.0), (0.0, 0.0, 0.0))
ADDS = PreprocessingOp("adds", "Add", (1.0,), (2.0,))


def change(to: int, *operations: PreprocessingOp, method: str = "", name: str = "w", layout: str | None = "OIHW") -> KernelChange:
    groups = 3 if name == "grouped" else 1
    conv = FirstConv(STORE.tensors[name], Layout(layout) if layout else None, 3, "graph", groups=groups)
    return kernel_change(STORE, conv, ChannelRule(to=to).mixing(3), operations, to, method)


def test_the_shape_and_the_mixing():
    assert change(4).shape == (6, 4, 3, 3)
    assert change(4).mixing == matrix.repeat(3, 4)
    assert change(1, name="grouped").shape == (6, 1, 3, 3)
    assert not change(3).changes


def test_what_precedes_it_is_composed():
    """y = a · x + b, each new channel with the constants of the old one that has most of it."""
    made = change(1, HALVES, ADDS)
    assert made.constants == (0,)
    assert made.mixing.matrix == ((1.0,), (0.5,), (2.0,))
    assert made.mixing.offset == (0.0, 1.0, -2.0)


def test_a_method_of_the_graph_leaves_it():
    for method in ("stack", "adapter"):
        made = change(1, PreprocessingOp("swap", "Gather"), method=method, layout=None)
        assert (made.changes, made.shape, made.mixing.method) == (False, (6, 3, 3, 3), method)
        assert made.mixing.matrix == ((1.0,),) * 3


REFUSED: dict[str, tuple[dict[str, Any], list[PreprocessingOp], str]] = {
    "mixed": ({}, [PreprocessingOp("swap", "Gather")], "this Gather precedes the kernel and mixes, selects or counts channels"),
    "zero": ({}, [HALVES._replace(scale=(0.0, 1.0, 1.0))], "multiplies a channel by zero or no number"),
    "infinite": ({}, [ADDS._replace(shift=(inf,))], "multiplies a channel by zero or no number"),
    "no order": ({"layout": None}, [], "its axis order is ambiguous"),
    "groups": ({"name": "grouped"}, [], "is a convolution in 3 groups, which is only converted to one channel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str):
    words, operations, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        change(4, *operations, **words)


CHANCE = np.random.default_rng(0)
KERNELS = {
    "stem.weight": CHANCE.standard_normal((8, 3, 3, 3), "f4"),
    "last.conv.weight": CHANCE.standard_normal((4, 3 + 8, 3, 3), "f4"),
    "last.bn.weight": np.ones(4, "f4"),
    "last.bn.bias": np.zeros(4, "f4"),
    "last.bn.running_mean": np.zeros(4, "f4"),
    "last.bn.running_var": np.ones(4, "f4"),
    "stem.bias": np.zeros(8, "f4"),
}


def planned(to: int | str, **options: object) -> Plan:
    asked = build_options(to, **options)
    hints = ConfigHints(("stem",), 3, ("last.conv",))
    return build_plan(Memory({"": KERNELS}), asked._replace(search=asked.search._replace(hints=hints)))


@pytest.mark.parametrize(
    ("to", "options", "image"),
    [
        (1, {}, [[1], [1], [1]]),
        ("bgr", {}, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (5, {"method": "zero"}, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
    ],
)
def test_the_channels_of_the_image_change(to: int | str, options: dict[str, object], image: list[list[float]]):
    plan = planned(to, **options)
    old, new = KERNELS["last.conv.weight"], plan.edits.tensors["last.conv.weight"]
    expected = np.einsum("oihw,ij->ojhw", old[:, :3].astype("f8"), np.array(image, "f8")).astype("f4")
    assert np.array_equal(new.values(), np.concatenate([expected, old[:, 3:]], 1))
    assert new.shape == (4, len(image[0]) + 8, 3, 3)
    assert [kernel.conv.tensor.name for kernel in plan.kernels] == ["stem.weight"]
    assert [notice.code for notice in plan.notices if notice.code == "joined"] == ["joined"]


def test_a_constant_goes_into_what_follows():
    plan = planned(1, norm="imagenet")
    shift = (np.array([0.449]) - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    by_channel = KERNELS["last.conv.weight"][:, :3].astype("f8").sum((2, 3))
    assert plan.edits.tensors["last.bn.running_mean"].values() == pytest.approx(-(by_channel * shift).sum(1), abs=1e-5)


@pytest.mark.parametrize("module", ["nowhere", "last.bn", "stem"])
def test_what_does_not_take_both(module: str):
    with pytest.raises(UnsupportedError, match=f"{module}.weight: should take the image joined to features"):
        joined_changes(Memory({"": KERNELS}), [module], mixing.sum_(3))


def test_nothing_is_joined():
    assert joined_changes(Memory({"": KERNELS}), [], mixing.sum_(3)) == []
    assert not list(of_joined([], 3))
