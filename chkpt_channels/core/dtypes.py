"""One table of element types: their names in safetensors, numpy and torch, and how a float64 becomes one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chkpt_channels.core.records import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DType(NamedTuple):
    """`name` as safetensors writes it; `numpy` is the dtype's name there or in ml_dtypes, empty where neither has it;
    `storage` is the torch storage class without the suffix "Storage", empty where torch uses an untyped one."""

    name: str
    bits: int
    numpy: str = ""
    torch: str = ""
    storage: str = ""
    floating: bool = False

    @property
    def extended(self) -> bool:
        """Whether numpy needs ml_dtypes for it."""
        return self.numpy.startswith(("bfloat", "float8"))


_ROWS = (
    DType("F64", 64, "float64", "float64", "Double", True),
    DType("F32", 32, "float32", "float32", "Float", True),
    DType("F16", 16, "float16", "float16", "Half", True),
    DType("BF16", 16, "bfloat16", "bfloat16", "BFloat16", True),
    DType("F8_E4M3", 8, "float8_e4m3fn", "float8_e4m3fn", "", True),
    DType("F8_E5M2", 8, "float8_e5m2", "float8_e5m2", "", True),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float8_e4m3fnuz", "", True),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float8_e5m2fnuz", "", True),
    DType("F8_E8M0", 8, "float8_e8m0fnu", "float8_e8m0fnu", ""),
    DType("F4", 4, "", "float4_e2m1fn_x2", ""),
    DType("U4", 4),
    DType("I4", 4),
    DType("F6_E2M3", 6),
    DType("F6_E3M2", 6),
    DType("I64", 64, "int64", "int64", "Long"),
    DType("I32", 32, "int32", "int32", "Int"),
    DType("I16", 16, "int16", "int16", "Short"),
    DType("I8", 8, "int8", "int8", "Char"),
    DType("U64", 64, "uint64", "uint64", ""),
    DType("U32", 32, "uint32", "uint32", ""),
    DType("U16", 16, "uint16", "uint16", ""),
    DType("U8", 8, "uint8", "uint8", "Byte"),
    DType("BOOL", 8, "bool", "bool", "Bool"),
    DType("C32", 32, "", "complex32", ""),
    DType("C64", 64, "complex64", "complex64", "ComplexFloat"),
    DType("C128", 128, "complex128", "complex128", "ComplexDouble"),
    DType("QI8", 8, "int8", "qint8", "QInt8"),
    DType("QU8", 8, "uint8", "quint8", "QUInt8"),
    DType("QI32", 32, "int32", "qint32", "QInt32"),
    # four or two quantized values in a byte; torch counts bytes in their storages
    DType("QU4x2", 8, "uint8", "quint4x2", "QUInt4x2"),
    DType("QU2x4", 8, "uint8", "quint2x4", "QUInt2x4"),
)

COMPLEX = frozenset({"C32", "C64", "C128"})
BY_NAME = {row.name: row for row in _ROWS}
BY_TORCH = {row.torch: row for row in _ROWS if row.torch}
BY_STORAGE = {row.storage + "Storage": row for row in _ROWS if row.storage}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The numpy dtype. Raises TypeError for types that numpy and ml_dtypes do not know."""
    import numpy as np

    if not dtype.numpy:
        raise TypeError(dtype.name)
    if dtype.extended:
        import ml_dtypes  # noqa: F401 # it gives numpy their names
    return np.dtype(dtype.numpy)


def rounded(values: NDArray[np.float64], dtype: DType) -> NDArray[Any]:
    """`values` rounded to `dtype`. BF16 and FP8 are rounded to float32 first, as torch and ml_dtypes do: rounding once instead
    would differ from them in the last bit."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is seen and refused by the caller
        return (values.astype(np.float32) if dtype.extended else values).astype(numpy_dtype(dtype))
