"""Tensors that torch negates or conjugates as it reads them: a bit of the tensor says so, and what is stored has other signs.

The bits are the keys of a dict, the last argument of a rebuild function: `torch.save` writes them for `z.conj().imag`.
Source: torch/csrc/jit/serialization/pickler.h of torch 2.13, setTensorMetadata, which does not look at the values.
"""

from __future__ import annotations

from chkpt_channels.containers.pickle.nodes import Kind, PickleNode
from chkpt_channels.core.dtypes import COMPLEX, DType


class UnreadableError(Exception):
    """A tensor is made in a way that is not read; the words follow its name."""


def turned_signs(dtype: DType, metadata: PickleNode) -> bytes:
    """The bits of each element that are to be turned, b"" for none. Raises UnreadableError for other metadata and dtypes."""
    if metadata.kind is Kind.CONST and not metadata.value:
        return b""
    if metadata.kind is not Kind.DICT or any(key.kind is not Kind.TEXT for key, _ in metadata.entries()):
        raise UnreadableError("has bits that are not read")
    negated, conjugated = (metadata.lookup(bit) is not None for bit in ("neg", "conj"))
    if not (negated or conjugated):
        return b""
    parts = [negated, negated != conjugated] if dtype.name in COMPLEX else [negated]
    if not (dtype.floating or dtype.name in COMPLEX) or (conjugated and len(parts) == 1):
        raise UnreadableError(f"is negated or conjugated by a bit, which {dtype.name} has no meaning for")
    return b"".join(bytes(dtype.bits // 8 // len(parts) - 1) + (b"\x80" if turned else b"\0") for turned in parts)


def with_signs(raw: bytes, signs: bytes) -> bytes:
    """The elements with these bits turned: from what is stored to what torch reads, and back."""
    if not signs:
        return raw
    import numpy as np

    return (np.frombuffer(raw, np.uint8).reshape(-1, len(signs)) ^ np.frombuffer(signs, np.uint8)).tobytes()
