"""The table of element types, against numpy and ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME, BY_STORAGE, BY_TORCH, DType, numpy_dtype, rounded

WITH_NUMPY = [dtype for dtype in BY_NAME.values() if dtype.numpy]


@pytest.mark.parametrize("dtype", WITH_NUMPY, ids=lambda dtype: dtype.name)
def test_widths_are_numpys(dtype: DType):
    assert numpy_dtype(dtype).itemsize * 8 == dtype.bits


@pytest.mark.parametrize("dtype", [d for d in BY_NAME.values() if not d.numpy], ids=lambda dtype: dtype.name)
def test_what_numpy_lacks_is_said(dtype: DType):
    with pytest.raises(TypeError, match=dtype.name):
        numpy_dtype(dtype)


@pytest.mark.parametrize(
    ("table", "word", "name"),
    [
        (BY_STORAGE, "FloatStorage", "F32"),
        (BY_STORAGE, "DoubleStorage", "F64"),
        (BY_STORAGE, "HalfStorage", "F16"),
        (BY_STORAGE, "BFloat16Storage", "BF16"),
        (BY_STORAGE, "LongStorage", "I64"),
        (BY_STORAGE, "CharStorage", "I8"),
        (BY_STORAGE, "ByteStorage", "U8"),
        (BY_STORAGE, "BoolStorage", "BOOL"),
        (BY_STORAGE, "ComplexFloatStorage", "C64"),
        (BY_TORCH, "float8_e4m3fn", "F8_E4M3"),
        (BY_TORCH, "float8_e5m2", "F8_E5M2"),
        (BY_TORCH, "uint16", "U16"),
        (BY_TORCH, "bfloat16", "BF16"),
    ],
)
def test_torchs_names(table: dict[str, DType], word: str, name: str):
    assert table[word].name == name


def test_untyped_storages_have_no_dtype():
    assert "UntypedStorage" not in BY_STORAGE
    assert "Storage" not in BY_STORAGE


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("F32", 1 + 2**-24, 1.0),
        ("F32", 1 + 2**-24 + 2**-40, 1 + 2**-23),
        ("F16", 65504 + 15.9, 65504),
        ("F16", 65520, np.inf),
        ("BF16", 1 + 2**-8, 1.0),
        ("BF16", 1 + 3 * 2**-8, 1 + 2**-6),
        ("F8_E4M3", 448 + 15.9, 448),
        ("F8_E4M3", 500, np.nan),
        ("F8_E5M2", 70000, np.inf),
        # exactly between two after float32 has dropped what decided: as torch and ml_dtypes round
        ("BF16", 1 + 2**-8 + 2**-40, 1.0),
    ],
)
def test_rounding(name: str, value: float, expected: float):
    found = rounded(np.array([value]), BY_NAME[name])
    assert found.dtype == numpy_dtype(BY_NAME[name])
    np.testing.assert_array_equal(found.astype(np.float64), [expected])


def test_extended_types_are_ml_dtypes():
    assert {d.numpy for d in WITH_NUMPY if d.extended} <= set(dir(ml_dtypes))
    assert not any(d.extended for d in WITH_NUMPY if hasattr(np, d.numpy))
