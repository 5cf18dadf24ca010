"""What things are called for people: sizes, shapes, types, and what was done to a kernel: "the sum of R, G and B"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.transform.mixing.matrix import LUMA
from chkpt_channels.transform.mixing.rules import ADAPTER, FOLDED, GATHER, REPEATING

MOST_LISTED = 16
"""New channels of which a line says what each is made of."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(number: float) -> str:
    """A number of bytes for people: "97.8 MiB"."""
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"


def shape(dimensions: Sequence[int]) -> str:
    """64×3×7×7."""
    return "×".join(map(str, dimensions)) or "scalar"


def dtype(tensor: Tensor) -> str:
    """float32."""
    return tensor.dtype.torch or tensor.dtype.name


def image(channels: int) -> str:
    """Gray, RGB, 4-channel."""
    return {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")


def count(number: int, word: str) -> str:
    """1 tensor, 2 tensors."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def contradiction(mismatch: Any) -> str:
    """ "found 3, expected 1": what `check` found wrong."""
    beside = f", as {mismatch.beside} has" if mismatch.beside else ""
    return f"found {mismatch.found}, expected {mismatch.expected}{beside}"


def layout(conv: FirstConv) -> str:
    """The axis order of a kernel."""
    return str(conv.layout) if conv.layout else "layout ambiguous"


def evidence(conv: FirstConv) -> str:
    """How a first conv was found, and why it is one."""
    return f"found by {conv.found_by}" + (f": {conv.why}" if conv.why else "")


def change(method: str | None, matrix: Sequence[Sequence[float]] | None, offset: Sequence[float] = ()) -> str:
    """How the new kernel is made of the old one, by its method, A [I_old, I_new] and t [I_old], as what follows its shape."""
    matrix = matrix or ()
    old, new = len(matrix), len(next(iter(matrix), ()))
    graph = graph_change(method, (old, new))
    if graph:
        return f"no weight changed; {graph}"
    if method == "identity":
        return "unchanged"
    if method == FOLDED:
        return f"composed with the convolution in front of it{', and its constant' if offset else ''}"
    folded = bool(offset) or (method == "sum" and any(row != (1.0,) for row in matrix))
    return _mixture(method or "", matrix, plain=not folded) + (", both normalizations folded in" if folded else "")


def graph_change(method: str | None, channels: tuple[int, int]) -> str:
    """What the graph does in place of the kernels; "" where it does nothing."""
    old, new = channels
    from_new = "the new one" if new == 1 else f"the {new} new ones"
    if method in REPEATING:
        return f"the graph makes the {old} old channels of {from_new}"
    if method == ADAPTER:
        return f"a 1×1 convolution in front makes the {old} old channels of {from_new}"
    return "a node in front puts the channels into the old order" if method == GATHER else ""


def _mixture(method: str, matrix: Sequence[Sequence[float]], *, plain: bool) -> str:
    """The mixture that A [I_old, I_new] is; `plain` where no normalization scales it."""
    old, new = len(matrix), len(matrix[0])
    columns = list(zip(*matrix, strict=True))
    if method in ("sum", "mean"):
        return f"{'each ' if new > 1 else ''}the {method} of {_channels(old)}"
    if method == "luma" and 1 in (old, new) and plain:
        weights = tuple(matrix[0] if old == 1 else columns[0])
        colors, numbers = _colors(weights) or count(len(weights), "channel"), ", ".join(f"{value:.4g}" for value in weights)
        return f"split over {colors} by {numbers}" if old == 1 else f"{colors} weighted by {numbers}"
    if not plain:
        return f"made by {method} from {count(old, 'channel')}"
    sources = [copied(column) for column in columns]
    kept = [source for source in sources if source is not None]
    empty = sum(not any(column) for column in columns)
    if len(kept) == new:
        return f"its channel{'s' if new > 1 else ''} {', '.join(map(str, kept))}, bit by bit"
    if kept == list(range(old)) and empty == new - old:
        return f"its {count(old, 'channel')}, and {empty} more that begin{'s' if empty == 1 else ''} at zero"
    if method == "bands" and new <= MOST_LISTED and all(sum(value != 0 for value in column) <= 1 for column in columns):
        return f"its channels {', '.join(_share(column) for column in columns)}"
    if method == "repeat":
        return f"its {count(old, 'channel')} in turn, times {old / new:.4g}"
    return f"a weighted sum of {_channels(old)}" + (" for each new channel" if new > 1 else "")


def copied(column: Sequence[float]) -> int | None:
    """The old channel that a new one copies; None where it is computed."""
    return list(column).index(1) if sorted(column) == [*[0] * (len(column) - 1), 1] else None


def _share(column: Sequence[float]) -> str:
    """The old channel that a new one replaces, with its weight: "0 × 0.5"; "zero" for none."""
    weight = sum(column)
    number = str([*column].index(weight)) if weight else "zero"
    return f"{number} × {weight:.4g}" if weight not in (0, 1) else number


def _colors(weights: tuple[float, ...]) -> str:
    """The colors that have these luma weights, in their order; "" for weights of the user's own."""
    if weights in LUMA.values():
        return "R, G and B"
    return "B, G and R" if weights[::-1] in LUMA.values() else ""


def _channels(number: int) -> str:
    return "R, G and B" if number == 3 else f"its {count(number, 'channel')}"
