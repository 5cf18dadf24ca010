"""A norm over whole patches: what is exact is folded or permuted, the rest is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.patch_norm import preserves_moments
from chkpt_channels.transform.plan import build_plan
from tests.support.memory import Memory, kernel

SIDE, DIM = 8, 32
NORM, LINEAR = "to_patch_embedding.1", "to_patch_embedding.2"
LAYOUTS = pytest.mark.parametrize("layout", ["O(HWI)", "O(IHW)"])


def net(dtype: type = np.float64, *, bias: bool = True, beta: bool = True, dim: int = DIM) -> dict[str, np.ndarray]:
    n = 3 * SIDE * SIDE
    named = {f"{NORM}.weight": kernel(n, seed=1, dtype=dtype)}
    named |= {f"{NORM}.bias": kernel(n, seed=2, dtype=dtype)} if beta else {}
    named |= {f"{LINEAR}.weight": kernel(dim, n, seed=3, dtype=dtype)}
    named |= {f"{LINEAR}.bias": kernel(dim, seed=4, dtype=dtype)} if bias else {}
    return named | {"to_patch_embedding.3.weight": kernel(dim, dtype=dtype), "head.weight": kernel(5, dim, dtype=dtype)}


def new(named: dict[str, np.ndarray], to: Any, layout: str, **options: Any) -> dict[str, np.ndarray]:
    plan = build_plan(Memory({"": named}), build_options(to, layers=[LINEAR], layout=layout, **options))
    return {**named, **{name: edit.values() for name, edit in plan.edits.tensors.items()}}


def embedded(named: dict[str, np.ndarray], image: np.ndarray, layout: str) -> np.ndarray:
    """The embedding of one patch [C, H, W]."""
    flat = (image if layout == "O(IHW)" else image.transpose(1, 2, 0)).reshape(-1)
    normed = (flat - flat.mean()) / np.sqrt(flat.var() + 1e-5)
    scaled = normed * named[f"{NORM}.weight"] + named.get(f"{NORM}.bias", 0)
    return named[f"{LINEAR}.weight"] @ scaled + named.get(f"{LINEAR}.bias", 0)


@LAYOUTS
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("dim", [DIM, 3 * SIDE * SIDE], ids=["narrow", "as wide as its patches"])
def test_three_equal_channels_become_one(dim: int, beta: bool, layout: str):
    old = net(beta=beta, dim=dim)
    gray = new(old, "gray", layout)
    image = np.random.default_rng(0).random((1, SIDE, SIDE))
    assert np.allclose(embedded(gray, image, layout), embedded(old, image.repeat(3, 0), layout), rtol=1e-12, atol=1e-12)
    assert np.array_equal(gray[f"{NORM}.weight"], np.ones(SIDE * SIDE))
    assert not beta or np.array_equal(gray[f"{NORM}.bias"], np.zeros(SIDE * SIDE))
    changed = {name for name, array in gray.items() if not np.array_equal(array, old[name])}
    assert changed == {f"{NORM}.weight", f"{LINEAR}.weight", *([f"{NORM}.bias", f"{LINEAR}.bias"] if beta else [])}


@LAYOUTS
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_another_order_keeps_the_bits(dtype: type, layout: str):
    old = net(dtype)
    bgr = new(old, "bgr", layout)
    axes = (SIDE, SIDE, 3) if layout == "O(HWI)" else (3, SIDE, SIDE)
    for name in (f"{NORM}.weight", f"{NORM}.bias", f"{LINEAR}.weight"):
        shaped = old[name].reshape(-1, *axes)
        swapped = shaped[..., ::-1] if layout == "O(HWI)" else shaped[:, ::-1]
        assert bgr[name].dtype == dtype
        assert np.array_equal(bgr[name], swapped.reshape(old[name].shape))
    assert bgr[f"{LINEAR}.bias"] is old[f"{LINEAR}.bias"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_is_rounded_once(dtype: type):
    old = net(dtype)
    wide = {name: array.astype(np.float64) for name, array in old.items()}
    gray, exact = (new(each, "gray", "O(HWI)") for each in (old, wide))
    for name, array in gray.items():
        assert array.dtype == dtype
        assert np.array_equal(array, exact[name].astype(dtype))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "mean": ("gray", {"method": "mean"}, "--method sum"),
    "one of three": ("gray", {"select": [1]}, "--method sum"),
    "more channels": (4, {}, "--to gray --method sum"),
    "a channel twice": (3, {"select": [0, 0, 1]}, "--to gray --method sum"),
    "other means": ("gray", {"norm": "imagenet"}, "leave --norm out, and keep the preprocessing"),
}


@pytest.mark.parametrize(("to", "options", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_changes_mean_or_variance_is_refused(to: Any, options: dict[str, Any], hint: str):
    with pytest.raises(UnsupportedError, match=f"a.pth: {NORM}: normalizes whole patches before {LINEAR}.weight") as refused:
        new(net(), to, "O(HWI)", **options)
    assert refused.value.hint == hint


def test_a_constant_without_a_bias_is_refused():
    with pytest.raises(UnsupportedError, match=f"{NORM}: adds a constant to whole patches, and {LINEAR}.weight has no bias"):
        new(net(bias=False), "gray", "O(HWI)")
    old = net(bias=False)
    old[f"{NORM}.bias"] *= 0
    assert f"{LINEAR}.bias" not in new(old, "gray", "O(HWI)")


@pytest.mark.parametrize(
    ("matrix", "preserved"),
    [
        ([[1], [1], [1]], True),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], True),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], True),
        ([[1 / 3], [1 / 3], [1 / 3]], False),
        ([[1], [0], [0]], False),
        ([[0.2126, 0.7152, 0.0722]], False),
        ([[-1], [1], [1]], False),
        ([[1, 0], [1, 0], [0, 1]], False),
    ],
)
def test_moments_that_are_preserved(matrix: list[list[float]], preserved: bool):
    mixing = Mixing("", tuple(map(tuple, matrix)))
    assert preserves_moments(mixing) == preserved
    image = np.random.default_rng(0).random((50, mixing.new))
    old = image @ np.array(matrix).T
    assert preserved == (np.isclose(old.mean(), image.mean()) and np.isclose(old.var(), image.var()))
    assert not preserves_moments(mixing._replace(offset=(0.1,) * mixing.old))
