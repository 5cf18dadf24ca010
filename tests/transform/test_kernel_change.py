"""How one first conv changes: the mixing through what precedes it, the new shape, and what no edit can do."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, PreprocessingOp
from chkpt_channels.transform.kernel_change import kernel_change
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix
from tests.support.memory import Memory, kernel

STORE = Memory({"": {"w": kernel(6, 3, 3, 3), "grouped": kernel(6, 1, 3, 3)}})
HALVES = PreprocessingOp("halves", "Mul", (0.5, 0.25, 1.0), (0.0, 0.0, 0.0))
ADDS = PreprocessingOp("adds", "Add", (1.0,), (2.0,))


def change(to: int, *operations: PreprocessingOp, method: str = "", name: str = "w", layout: str | None = "OIHW") -> KernelChange:
    groups = 3 if name == "grouped" else 1
    conv = FirstConv(STORE.tensors[name], Layout(layout) if layout else None, 3, "graph", groups=groups)
    return kernel_change(STORE, conv, matrix.between(3, to), operations, to, method)


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
