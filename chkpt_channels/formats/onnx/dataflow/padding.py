"""The taps of a kernel that are on pixels where it overlaps the border: the others see zeros of the padding.

A constant that is folded into the bias is added for all taps; at the border it is wrong by the taps that see zeros.

Source: onnx/docs/Operators.md (Conv: pads, auto_pad, strides, dilations).
"""

from __future__ import annotations

from itertools import product

from chkpt_channels.formats.onnx.dataflow.axes import OPEN
from chkpt_channels.formats.onnx.dataflow.values import ReachedConv
from chkpt_channels.formats.onnx.nodes import Node

Span = tuple[int, int]
MOST_POSITIONS = 4096
"""No kernel overlaps a border at more."""


def tap_spans(reached: ReachedConv) -> list[tuple[Span, ...]]:
    """For each way to overlap the border, the taps [start, stop) on pixels along every axis. Where the file does not give the
    size of the image or the padding, all possible ones."""
    if reached.kernel is None or reached.layout is None:
        return []
    taps = [reached.kernel.shape[i] for i, letters in enumerate(reached.layout.axes) if letters in ("D", "H", "W")]
    return list(product(*(sorted(_spans(reached, i, k)) for i, k in enumerate(taps))))


def _spans(reached: ReachedConv, i: int, taps: int) -> set[Span]:
    """The spans along spatial axis i, for each position of the kernel at a border."""
    node, steps = reached.node, reached.sizes[i] if i < len(reached.sizes) else OPEN
    pads = pads_along(node, i, taps, steps)
    if reached.padded or node.op == "ConvTranspose" or pads is None:
        return {(m, taps) for m in range(taps + 1)} | {(0, taps - m) for m in range(taps + 1)}
    stride, dilation = along(node, "strides", i), along(node, "dilations", i)
    before, after = pads
    if steps >= OPEN:
        ends = {(0, taps - m) for m in range(min(taps, -(-after // dilation)) + 1)}
        return ends | {
            _span(j * stride - before, dilation, taps, steps) for j in range(min(before // stride + 2, MOST_POSITIONS))
        }
    last = (steps + before + after - dilation * (taps - 1) - 1) // stride
    near = {*range(min(last + 1, MOST_POSITIONS)), *range(max(last + 1 - MOST_POSITIONS, 0), last + 1)}
    return {_span(j * stride - before, dilation, taps, steps) for j in near}


def _span(at: int, dilation: int, taps: int, steps: int) -> Span:
    """The taps on pixels where the first one is at `at`."""
    start, stop = -(-max(-at, 0) // dilation), -(-max(steps - at, 0) // dilation)
    return min(start, taps), max(min(stop, taps), min(start, taps))


def pads_along(node: Node, i: int, taps: int, steps: int) -> Span | None:
    """(before, after) along spatial axis i; None where SAME pads by a size that is unknown."""
    kind = node.text("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        stride, dilation = along(node, "strides", i), along(node, "dilations", i)
        if steps >= OPEN and stride > 1:
            return None
        total = max((-(-steps // stride) - 1) * stride + dilation * (taps - 1) + 1 - steps, 0)
        less, more = total // 2, total - total // 2
        return (less, more) if kind == "SAME_UPPER" else (more, less)
    pads = node.integers("pads")
    half = len(pads) // 2
    return (max(pads[i], 0), max(pads[half + i], 0)) if i < half and kind != "VALID" else (0, 0)


def along(node: Node, attribute: str, i: int) -> int:
    """The value of an attribute along spatial axis i, 1 by default."""
    values = node.integers(attribute)
    return max(values[i], 1) if i < len(values) else 1
