"""The one formula: the new kernel answers an image as the old one answers the mapped image."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.core.layout import KNOWN, Layout
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing.matrix import Mixing

F64 = BY_NAME["F64"]
SIZES = {"O": 3, "H": 2, "W": 3, "D": 2, "G": 4}


def canonical(kernel: np.ndarray, layout: Layout, channels: int) -> np.ndarray:
    """The kernel as [O, I, taps]: every letter an axis of its own, then O and I in front."""
    letters = "".join(layout.axes)
    apart = kernel.reshape([channels if letter == "I" else SIZES[letter] for letter in letters])
    taps = sorted(set(letters) - {"O", "I"})
    ordered = apart.transpose([letters.index(letter) for letter in ("O", "I", *taps)])
    return ordered.reshape(SIZES["O"], channels, -1)


def stored_shape(layout: Layout, channels: int) -> tuple[int, ...]:
    return tuple(int(np.prod([channels if x == "I" else SIZES[x] for x in letters])) for letters in layout.axes)


@given(st.sampled_from(KNOWN), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_new_on_the_image_is_old_on_the_mapped_image(spelling: str, old: int, new: int, seed: int):
    """With small integers everywhere float64 is exact, so that equal means equal."""
    layout, chance = Layout(spelling), np.random.default_rng(seed)
    kernel = chance.integers(-8, 9, stored_shape(layout, old)).astype(np.float64)
    matrix = chance.integers(-2, 3, (old, new))
    rule = Mixing("any", tuple(tuple(map(float, row)) for row in matrix))
    shape = stored_shape(layout, new)
    after = canonical(rule.apply(kernel, layout.view(kernel.shape, old), F64).reshape(shape), layout, new)
    before = canonical(kernel, layout, old)
    image = chance.integers(-8, 9, (new, before.shape[2])).astype(np.float64)
    mapped = np.einsum("ij,jt->it", matrix.astype(np.float64), image)
    naive = [sum(before[o, i, t] * mapped[i, t] for i in range(old) for t in range(before.shape[2])) for o in range(SIZES["O"])]
    assert [sum((after[o] * image).ravel()) for o in range(SIZES["O"])] == naive


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_a_chosen_channel_keeps_its_bits(name: str):
    """Every bit pattern, NaN payloads and infinities among them, next to channels that hold anything."""
    dtype = BY_NAME[name]
    width = dtype.bits // 8
    raw = np.random.default_rng(0).integers(0, 256, (4, 3, 512 * width), dtype=np.uint8)
    kernel = raw.view(numpy_dtype(dtype))
    with np.errstate(all="ignore"):
        assert not np.isfinite(kernel).all()
    new = mixing.select(3, [2, 0, 0, 1]).apply(kernel, kernel.shape, dtype)
    assert new.tobytes() == raw[:, [2, 0, 0, 1]].tobytes()


@given(st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]), st.integers(0, 2**32 - 1))
def test_sums_are_rounded_once(name: str, seed: int):
    """The nearest value of the dtype to the exact sum: no other value is closer."""
    dtype = BY_NAME[name]
    kernel = np.random.default_rng(seed).normal(size=(2, 3, 8)).astype(numpy_dtype(dtype))
    new = mixing.sum_(3).apply(kernel, kernel.shape, dtype).astype(np.float64).ravel()
    exact = [sum(Fraction(float(kernel[o, i, t])) for i in range(3)) for o in range(2) for t in range(8)]
    every = np.arange(1 << dtype.bits, dtype=f"u{dtype.bits // 8}").view(numpy_dtype(dtype)) if dtype.bits < 32 else None
    for value, total in zip(new, exact, strict=True):
        if every is None:
            near = [np.nextafter(np.float32(value), np.float32(side)) for side in (-np.inf, np.inf)]
        else:
            with np.errstate(all="ignore"):
                at = np.flatnonzero(every == every.dtype.type(value))[0]
                near = [every[i] for i in (at - 1, at + 1) if 0 <= i < len(every) and np.isfinite(every[i])]
        slack = 0 if name in ("F32", "F16") else abs(total) / 2**24  # through float32
        assert all(abs(Fraction(value) - total) <= abs(Fraction(float(n)) - total) + slack for n in near)


@pytest.mark.parametrize("rule", [mixing.repeat(3, 4), mixing.select(3, [1])], ids=lambda rule: rule.method)
def test_minus_zero_stays(rule: Mixing):
    kernel = np.full((1, 3, 1), -0.0)
    assert np.signbit(rule.apply(kernel, kernel.shape, F64)).all()


LUMA = (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize(
    ("rule", "method", "matrix"),
    [
        (mixing.sum_(3), "sum", [[1], [1], [1]]),
        (mixing.luma(LUMA), "luma", [LUMA]),
        (mixing.repeat(1, 4), "repeat", [[0.25] * 4]),
        (mixing.repeat(3, 2), "repeat", [[1.5, 0], [0, 1.5], [0, 0]]),
        (mixing.repeat(3, 4), "repeat", [[0.75, 0, 0, 0.75], [0, 0.75, 0, 0], [0, 0, 0.75, 0]]),
        (mixing.repeat(4, 3), "repeat", [[4 / 3, 0, 0], [0, 4 / 3, 0], [0, 0, 4 / 3], [0, 0, 0]]),
        (mixing.identity(2), "identity", [[1, 0], [0, 1]]),
        (mixing.mean(4), "mean", [[0.25]] * 4),
        (mixing.select(3, [2, 1, 0]), "select", [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (mixing.luma([0.5, 0.5]), "luma", [[0.5, 0.5]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rules(rule: Mixing, method: str, matrix: list[list[float]]):
    assert (rule.method, [list(row) for row in rule.matrix]) == (method, [list(row) for row in matrix])
    assert (rule.old, rule.new) == (len(matrix), len(matrix[0]))
    assert rule.is_identity == (method == "identity")


def test_a_permutation_is_not_the_identity():
    assert not mixing.select(3, [2, 1, 0]).is_identity


def test_each_old_channel_is_a_new_one_where_they_are_only_gathered():
    assert mixing.select(3, [2, 0, 1]).places == (1, 2, 0)
    assert mixing.zero(3, 4).places == (0, 1, 2)
    assert mixing.Mixing("sum", ((1.0,), (1.0,))).places == (0, 0)
    for other in (mixing.select(3, [0, 1]), mixing.select(3, [0, 1, 1]), mixing.repeat(3, 4), mixing.repeat(3, 2)):
        assert not other.places
    assert not mixing.select(3, [2, 1, 0])._replace(offset=(0.0, 0.0, 1.0)).places
