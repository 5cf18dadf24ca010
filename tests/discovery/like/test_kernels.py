"""Which axis of a kernel differs: by the layout, the bias, and what follows it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.layout import Layout
from chkpt_channels.discovery.like.kernels import HEAD, OPEN, STEM, Change, Kernels, KernelVerdict, module_of
from tests.support.memory import Memory, kernel

Shapes = Mapping[str, tuple[int, ...]]


class Foreign(Memory):
    """A checkpoint that PyTorch did not write."""

    torch = False
    ordered = False


class Unordered(Memory):
    """PyTorch's, without the order of the modules."""

    ordered = False
    torch = True


def judged(
    before: Shapes, after: Shapes, name: str, kind: type[Memory] = Memory, stated: str = "", layout: str = ""
) -> KernelVerdict | None:
    """What the kernel `name` is; `after` holds the shapes that differ."""
    store = kind({"": {key: kernel(*shape) for key, shape in before.items()}})
    if layout:
        store.tensors[name] = store.tensors[name]._replace(layout=Layout(layout))
    pairs = [(tensor, after.get(key, tensor.shape)) for key, tensor in store.tensors.items()]
    changes = [
        Change(tensor, shape, next(i for i, (a, b) in enumerate(zip(tensor.shape, shape, strict=True)) if a != b))
        for tensor, shape in pairs
        if tensor.shape != shape and len(shape) > 1
    ]
    own = next(change for change in changes if change.tensor.name == name)
    return Kernels(store, pairs, changes).judge(own, Layout(stated) if stated else None)


INNER = {"mid.weight": (64, 64, 3, 3), "mid.bias": (64,)}


@pytest.mark.parametrize(
    ("before", "after", "kind", "layout"),
    [
        ({"c.weight": (64, 3, 4, 4), "c.bias": (64,), **INNER}, {"c.weight": (64, 1, 4, 4)}, STEM, "OIHW"),
        (
            {"c.weight": (64, 3, 4, 4), "c.bias": (3,), **INNER},
            {"c.weight": (64, 1, 4, 4), "c.bias": (1,)},
            HEAD,
            None,
        ),
        ({"c.weight": (3, 64, 4, 4), "c.bias": (64,), **INNER}, {"c.weight": (1, 64, 4, 4)}, STEM, "IOHW"),
        ({"c.weight": (3, 64, 1, 1), "c.bias": (3,), **INNER}, {"c.weight": (1, 64, 1, 1), "c.bias": (1,)}, HEAD, None),
        ({"c.weight": (3, 64, 1, 1), **INNER}, {"c.weight": (1, 64, 1, 1)}, HEAD, None),
        ({"c.weight": (64, 3, 3, 3), "c.bias": (7,), **INNER}, {"c.weight": (64, 1, 3, 3)}, OPEN, "OIHW"),
        ({"c.weight": (64, 3, 7, 7), **INNER}, {"c.weight": (64, 1, 7, 7)}, STEM, "OIHW"),
        ({"c.weight": (64, 3, 16, 16), **INNER}, {"c.weight": (64, 1, 16, 16)}, STEM, "OIHW"),
        ({"c.weight": (64, 3, 4, 4), "n.weight": (64,), **INNER}, {"c.weight": (64, 1, 4, 4)}, STEM, "OIHW"),
        ({"c.weight": (64, 3, 4, 4), **INNER}, {"c.weight": (64, 1, 4, 4)}, OPEN, "OIHW"),
        ({**INNER, "c.weight": (64, 3, 4, 4)}, {"c.weight": (64, 1, 4, 4)}, HEAD, None),
        ({**INNER, "up.weight": (64, 3, 3, 3)}, {"up.weight": (64, 1, 3, 3)}, HEAD, None),
        ({**INNER, "c.weight": (64, 3, 3, 3)}, {"c.weight": (64, 1, 3, 3)}, OPEN, "OIHW"),
        ({"only.weight": (64, 3, 3, 3)}, {"only.weight": (64, 1, 3, 3)}, STEM, "OIHW"),
        ({"stem": (64, 3, 7, 7), "bias": (10,), **INNER}, {"stem": (64, 1, 7, 7)}, STEM, "OIHW"),
        ({"c.weight_v": (64, 3, 4, 4), "c.bias": (64,)}, {"c.weight_v": (64, 1, 4, 4)}, STEM, "OIHW"),
        ({"fc.weight": (10, 64)}, {"fc.weight": (7, 64)}, HEAD, None),
        ({"fc.weight": (10, 3)}, {"fc.weight": (10, 1)}, STEM, "OI"),
    ],
)
def test_pytorch(before: Shapes, after: Shapes, kind: str, layout: str | None):
    assert judged(before, after, next(iter(after))) == (kind, layout)


def test_a_window_never_differs():
    assert judged({"c.weight": (64, 3, 7, 7)}, {"c.weight": (64, 3, 5, 7)}, "c.weight") is None


def test_without_the_order_a_bias_or_the_window_tells():
    before = {"z.weight": (64, 3, 2, 2), **INNER}
    assert judged(before, {"z.weight": (64, 1, 2, 2)}, "z.weight", Unordered) == (OPEN, "OIHW")
    before = {**INNER, "z.weight": (64, 3, 3, 3)}
    assert judged(before, {"z.weight": (64, 1, 3, 3)}, "z.weight", Unordered) == (STEM, "OIHW")


def test_the_user_settles_it():
    before, after = {**INNER, "c.weight": (64, 3, 4, 4)}, {"c.weight": (64, 1, 4, 4)}
    assert judged(before, after, "c.weight", stated="OIHW") == (STEM, "OIHW")
    assert judged(before, after, "c.weight", stated="O(GI)HW") == (STEM, "O(GI)HW")
    assert judged(before, after, "c.weight", stated="IOHW") == (HEAD, None)
    assert judged(before, after, "c.weight", stated="OIW") == (HEAD, None)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"c/w": (3, 3, 3, 64), "d/w": (3, 3, 64, 64)}, {"c/w": (3, 3, 1, 64)}, (STEM, "HWIO")),
        ({"c/w": (3, 3, 3, 64), "d/w": (3, 3, 64, 64), "e/w": (1, 1, 64, 5)}, {"e/w": (1, 1, 64, 9)}, (HEAD, None)),
        ({"c/w": (64, 3, 3, 3), "d/w": (128, 3, 3, 64)}, {"c/w": (64, 3, 3, 1)}, (STEM, "OHWI")),
        # a window of 3 × 13 votes for another layout than the axis that differs
        ({"c/w": (32, 3, 3, 13), "d/w": (32, 32, 3, 13)}, {"c/w": (32, 1, 3, 13)}, (STEM, "OIHW")),
    ],
)
def test_others_have_the_layout_in_which_the_axis_holds_channels(before: Shapes, after: Shapes, expected: KernelVerdict):
    assert judged(before, after, next(iter(after)), Foreign) == expected


def test_a_dense_layer_has_its_channels_first():
    before = {"c/w": (3, 3, 3, 64), "d/w": (3, 3, 64, 64), "fc/w": (64, 10)}
    assert judged(before, {"fc/w": (64, 7)}, "fc/w", Foreign) == (HEAD, None)
    assert judged(before, {"fc/w": (32, 10)}, "fc/w", Foreign) == (STEM, None)


def test_what_the_format_says_of_the_layout_is_so():
    before = {"c.weight": (3, 3, 3, 64)}
    assert judged(before, {"c.weight": (3, 3, 1, 64)}, "c.weight", layout="HWIO") == (STEM, "HWIO")
    assert judged(before, {"c.weight": (3, 3, 3, 32)}, "c.weight", layout="HWIO") == (HEAD, None)
    assert judged(before, {"c.weight": (3, 1, 3, 64)}, "c.weight", layout="HWIO") is None


def test_the_module_of_a_tensor():
    names = ("a.b.weight", "weight", "a.parametrizations.weight.original1")
    assert [module_of(name) for name in names] == ["a.b", "", "a"]
