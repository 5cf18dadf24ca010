"""Operations that move pixels or change their number, as functions of the axes: the new axes, or None where they select, cut or
mix channels.

Source: onnx/docs/Operators.md, Changelog.md (attributes that became inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.onnx.dataflow.axes import NOWHERE, OPEN, Axes, holder, is_open, reshaped, resized, size, unsized
from chkpt_channels.formats.onnx.dataflow.shape_values import Number, Numbers
from chkpt_channels.formats.onnx.nodes import Node


class ReshapedAxes(NamedTuple):
    """The new axes; the stored numbers that hold the channels, each with its multiple; whether zeros were padded, or filled in
    what is not zero."""

    axes: Axes
    counts: tuple[tuple[Number, int], ...] = ()
    zeros: bool = False
    filled: bool = False


def _transpose(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    order = node.integers("perm") or list(range(len(axes)))[::-1]
    return ReshapedAxes(tuple(axes[k] for k in order)) if sorted(order) == list(range(len(axes))) else None


def _reshape(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    target = numbers.of(node, 1)
    now = [number.now for number in target or ()]
    if not target or any(n == 0 and (node.integer("allowzero", 0) or k >= len(axes)) for k, n in enumerate(now)):
        return None
    shape = [n or size(axes[k]) for k, n in enumerate(now)]  # 0 is as before
    if any(n < 1 and n != -1 for n in shape) or shape.count(-1) > 1:
        return None
    new = reshaped(axes, shape, numbers.channel)
    return _counting(axes, new, target, numbers) if new else None


def _counting(before: Axes, axes: Axes, target: Sequence[Number], numbers: Numbers) -> ReshapedAxes | None:
    """The numbers of the target shape that an edit must change with the channels; None where one cannot be edited. Computed
    numbers follow by themselves, so do 0 (as before) and -1 (the rest)."""
    if numbers.channel == NOWHERE:
        return ReshapedAxes(axes)
    edits: list[tuple[Number, int]] = []
    kept: list[Number] = []
    for k, (number, axis) in enumerate(zip(target, axes, strict=True)):
        wanted = numbers.then(axis)
        actual = wanted if number.now == -1 else numbers.then(before[k]) if number.now == 0 else number.then
        if actual == wanted:
            kept.append(number)
        elif number.weight and number.now > 0:
            edits.append((number, number.now // numbers.count))
        else:
            return None
    # one stored number may be read twice, as two sizes of the shape: it cannot change for one of them only
    edited = {(number.weight.name, number.at) for number, _ in edits if number.weight}
    if any(number.weight and (number.weight.name, number.at) in edited for number in kept):
        return None
    return ReshapedAxes(axes, tuple(edits))


def _flatten(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    at = node.integer("axis", 1)
    at = at + len(axes) if at < 0 else at  # counted from the rank, and the rank itself may be given
    return ReshapedAxes(tuple(tuple(piece for axis in part for piece in axis) for part in (axes[:at], axes[at:])))


def _unsqueeze(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    at = numbers.plain(node, 1, "axes") or []
    new = list(axes)
    for k in sorted(k % (len(axes) + len(at)) for k in at):
        new.insert(k, ())
    return ReshapedAxes(tuple(new)) if at else None


def _squeeze(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    at = {k % len(axes) for k in numbers.plain(node, 1, "axes") or ()}
    if not at or any((size(axes[k]) != 1 and not is_open(axes[k])) or k == holder(axes, numbers.channel) for k in at):
        return None
    return ReshapedAxes(tuple(axis for k, axis in enumerate(axes) if k not in at))


def _pad(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    filled = node.text("mode", "constant") == "constant" and _fills(node, numbers)
    zeros = node.text("mode", "constant") == "constant" and not filled
    pads, at = numbers.plain(node, 1, "pads"), numbers.plain(node, 3, "")
    if not pads or at is None:  # computed from sizes (some 75 shape nodes in tf_efficientnet), never for the channels
        sized = {0, holder(axes, numbers.channel)}
        return ReshapedAxes(unsized(axes, {*range(len(axes))} - sized), zeros=zeros, filled=filled)
    half = len(pads) // 2
    for k, before, after in zip(at or range(half), pads[:half], pads[half:], strict=False):
        k %= len(axes)
        if (before, after) != (0, 0):
            if k == holder(axes, numbers.channel):
                return None
            steps = size(axes[k])
            if steps + before + after < 1:
                return None
            axes = resized(axes, k, steps + before + after if steps < OPEN else None)
    return ReshapedAxes(axes, zeros=zeros and any(pads), filled=filled and any(pads))


def _fills(node: Node, numbers: Numbers) -> bool:
    """Whether a Pad fills in what is not zero, or not known."""
    value = numbers.reals(node, 2)
    return (any(value) or not value) if node.given(2) else node.real("value", 0.0) != 0


def _resize(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    moved = _resized_axes(node, axes, numbers)
    is_cropped = node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if not moved or not is_cropped or _is_inside(numbers.reals(node, 1)):
        return moved
    filled = node.real("extrapolation_value", 0.0) != 0
    return moved._replace(zeros=not filled, filled=filled)


def _is_inside(region: Sequence[float]) -> bool:
    """Whether a region of interest, known, starts and then ends in parts of the axes, does not leave the image: beyond it
    extrapolation_value is taken, zero if not given."""
    return bool(region) and all(0 <= part <= 1 for part in region)


def _resized_axes(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    at = [k % len(axes) for k in node.integers("axes")] or list(range(len(axes)))
    held = holder(axes, numbers.channel)
    if node.given(3):
        sizes = numbers.of(node, 3)
        return _resized_to(axes, at, sizes, numbers) if sizes and len(sizes) == len(at) else None
    scales = dict(zip(at, numbers.scales(node), strict=False))
    if scales.get(held or 0, 1) != 1:
        return None
    return ReshapedAxes(unsized(axes, [k for k in at if k != held and scales.get(k) != 1]))


def _resized_to(axes: Axes, at: Sequence[int], sizes: Sequence[Number], numbers: Numbers) -> ReshapedAxes | None:
    new = axes
    for k, number in zip(at, sizes, strict=True):
        if number.now != size(axes[k]):
            if k == holder(axes, numbers.channel) or number.now < 1:
                return None
            new = resized(new, k, number.now)
    moved = _counting(tuple(axes[k] for k in at), tuple(new[k] for k in at), sizes, numbers)
    return moved._replace(axes=new) if moved else None


def _slice(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    starts, ends = numbers.plain(node, 1, "starts"), numbers.plain(node, 2, "ends")
    at, strides = numbers.plain(node, 3, "axes"), numbers.plain(node, 4, "steps")
    if not starts or not ends or at is None or strides is None:
        return None
    for k, start, end, step in zip(at or range(len(starts)), starts, ends, strides or [1] * len(starts), strict=False):
        k %= len(axes)
        if k == holder(axes, numbers.channel) or not step:
            return None
        steps = size(axes[k])
        left = len(range(steps)[start:end:step]) if steps < OPEN else None
        if left == 0:
            return None
        axes = resized(axes, k, left)
    return ReshapedAxes(axes)


def _space_to_depth(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    """Depth is (rows of the block, its columns, the channels): the channels vary fastest. Source: onnx/docs/Operators.md."""
    block = node.integer("blocksize", 0)
    if len(axes) != 4 or holder(axes, numbers.channel) not in (None, 1) or block < 1:
        return None
    rows, columns = (reshaped((axes[k],), [size(axes[k]) // block, block], numbers.channel) for k in (2, 3))
    return ReshapedAxes((axes[0], (*rows[1], *columns[1], *axes[1]), rows[0], columns[0])) if rows and columns else None


def _pool(node: Node, axes: Axes, numbers: Numbers) -> ReshapedAxes | None:
    if holder(axes, numbers.channel) not in (None, 0, 1):
        return None
    is_padded = any(node.integers("pads")) or node.text("auto_pad", "NOTSET").startswith("SAME")
    zeros = is_padded and bool(node.integer("count_include_pad", 0))
    return ReshapedAxes(unsized(axes, range(2, len(axes))), zeros=zeros)


POOLING = ("AveragePool", "GlobalAveragePool", "MaxPool", "LpPool", "GlobalMaxPool")
MOVES: dict[str, Callable[[Node, Axes, Numbers], ReshapedAxes | None]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    **dict.fromkeys(POOLING, _pool),
}
"""Operation → its function of the axes. The pools with a maximum or a power are not linear: trace.py lists them."""
