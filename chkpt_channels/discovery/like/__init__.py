"""A checkpoint of the wanted shape, LIKE: what its names and shapes say of the first convs."""

from __future__ import annotations

from collections.abc import Mapping

from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import FirstConv, Tensor


class OtherNetworkError(UnsupportedError):
    """LIKE holds no tensors of these names."""


class Head(NamedTuple):
    """A tensor of a head, with its shape and its key in LIKE."""

    tensor: Tensor
    shape: tuple[int, ...]
    key: str


class Comparison(NamedTuple):
    """The first convs, the vectors that change with them, and the heads that differ. `shapes` are LIKE's, of what differs and is
    no head; `channels` are the input channels before and after, None where no first conv differs; `outside` are the tensors that
    no copy of LIKE's model holds."""

    first_convs: tuple[FirstConv, ...] = ()
    vectors: tuple[Tensor, ...] = ()
    heads: tuple[Head, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = {}
    channels: tuple[int, int] | None = None
    outside: tuple[Tensor, ...] = ()
