"""Small tensors without numpy: numpy's bits, for every kind of number, in every arrangement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels.core import dtypes, elements
from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.core.elements import PLAIN, SmallTensor, Terms, dense_strides, joined, rounded, strided

TYPES = pytest.mark.parametrize("name", sorted(PLAIN))
VIEWS = st.tuples(*[st.integers(1, 5)] * 3)


def every(name: str) -> np.ndarray:
    """All bit patterns of 16 bits; of more those of all exponents, signs and some mantissas, ties to 16 bits among them."""
    width = BY_NAME[name].bits
    ends = np.arange(1 << 16, dtype=f"u{width // 8}") << np.uint64(width - 16) if width > 16 else np.arange(1 << 16, dtype="u2")
    tails = {16: [0], 32: [0, 1, 0x7FFF, 0x8000, 0x8001], 64: [0, 1, 1 << 28, (1 << 28) + 1, (1 << 41) - 1, 1 << 41]}[width]
    patterns = np.concatenate([ends | np.array(tail, ends.dtype) for tail in tails])
    return patterns.view(numpy_dtype(BY_NAME[name]))


@TYPES
def test_numbers_are_those_of_numpy(name: str):
    """NaNs are none of them: their bits are only ever copied."""
    with np.errstate(all="ignore"):
        values = every(name)
        expected = values.astype(np.float64)
    actual = np.array(SmallTensor(values.tobytes(), BY_NAME[name], values.shape).values())
    known = ~np.isnan(expected)
    assert np.isnan(actual[~known]).all()
    assert actual[known].tobytes() == expected[known].tobytes()


@TYPES
@pytest.mark.parametrize("source", sorted(PLAIN))
def test_rounding_is_that_of_numpy(name: str, source: str):
    """What is not finite and what overflows, what is subnormal and what lies half-way between two numbers."""
    with np.errstate(all="ignore"):
        wide = every(source).astype(np.float64)
        wide = np.concatenate([wide, [65519.999, 65520.0, 65520.1, -65520.0, 2.0**-25, 3 * 2.0**-25, 3.4028236e38, 1e300]])
        wide = wide[~np.isnan(wide)]
        expected = dtypes.rounded(wide, BY_NAME[name])
    assert rounded(Terms(wide.tolist()), BY_NAME[name], wide.shape).tobytes() == expected.tobytes()


@given(st.sampled_from(sorted(PLAIN)), VIEWS, st.integers(0, 2**32 - 1))
def test_parts_are_taken_and_put_as_they_are(name: str, view: tuple[int, int, int], seed: int):
    dtype = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(0, 256, (*view, dtype.bits // 8), dtype=np.uint8)
    whole = SmallTensor(raw.tobytes(), dtype, view)
    parts = whole.parts(view)
    assert [part.tobytes() for part in parts] == [raw[:, i].tobytes() for i in range(view[1])]
    assert joined(parts, dtype, view).tobytes() == raw.tobytes()
    turned = [*reversed(range(view[1])), 0]
    assert whole.chosen(turned).tobytes() == raw[:, turned].tobytes()


@TYPES
def test_what_is_not_finite_is_found_along_the_axis(name: str):
    values = np.ones((2, 4, 3), numpy_dtype(BY_NAME[name]))
    assert SmallTensor(values.tobytes(), BY_NAME[name], values.shape).not_finite((2, 4, 3)) is None
    values[1, 2, 0], values[0, 3, 1] = np.nan, -np.inf
    assert SmallTensor(values.tobytes(), BY_NAME[name], values.shape).not_finite((2, 4, 3)) == 2


def test_an_array_is_of_its_own():
    made = SmallTensor(np.arange(6, dtype="f4").tobytes(), BY_NAME["F32"], (6,)).reshape((2, 3))
    first = made.array()
    first += 1
    assert made.array().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("most", [0, 1000])
@pytest.mark.parametrize("strides", [(6, 2, 1), (1, 2, 6), (0, 1, 3)])
def test_strided_elements(strides: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elements, "MOST", most)
    raw, shape = np.arange(24, dtype="f4"), (3, 1, 2)
    expected = np.lib.stride_tricks.as_strided(raw, shape, [4 * step for step in strides])
    assert strided(raw.tobytes(), 4, shape, strides) == expected.tobytes()


@pytest.mark.parametrize(
    ("shape", "order", "expected"),
    [((4, 3, 2), (0, 1, 2), (6, 2, 1)), ((4, 3, 2), (0, 2, 1), (6, 1, 3)), ((2, 0, 3), (0, 1, 2), (3, 3, 1)), ((), (), ())],
)
def test_strides_of_dense_tensors(shape: Any, order: Any, expected: Any):
    assert dense_strides(shape, order) == expected
