"""Conversions that are known to be made: the rules by which `verify` names a kernel, and the options that it tries by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import DType, numpy_dtype
from chkpt_channels.transform.mixing import matrix
from chkpt_channels.transform.mixing.matrix import LUMA, Mixing
from chkpt_channels.transform.mixing.normalization import NORMS, Preset
from chkpt_channels.transform.mixing.rules import ORDERS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def known_rules(old: int, new: int) -> list[Mixing]:
    """Every rule that public converters use from `old` to `new` channels: what `verify` names a kernel by."""
    rules = [matrix.identity(old)] if old == new else []
    colors = {f"luma ({name}{order})": ws[::step] for name, ws in LUMA.items() for order, step in (("", 1), (", bgr", -1))}
    if new == 1:
        rules += [matrix.sum_(old), matrix.mean(old), *(matrix.weighted(ws, name) for name, ws in colors.items() if old == 3)]
        rules += [matrix.select(old, [i], f"channel {i} alone") for i in range(old)]
    if old == 1:
        rules += [matrix.luma(ws, name) for name, ws in colors.items() if new == 3]
    if old == new == 3:
        rules.append(matrix.select(3, [2, 1, 0], "bgr"))
    rules += [matrix.zero(old, new)] if new > old else [matrix.select(old, range(new), f"the first {new} channels")]
    rules += [
        matrix.repeat(old, new),
        matrix.select(old, [j % old for j in range(new)], "repeat, not scaled"),
        matrix.mean(old, new),
    ]
    # of rules with one matrix the first is kept, which has the more telling name
    return list({rule.matrix: rule for rule in reversed(rules)}.values())[::-1]


def read_off(old: NDArray[Any], new: NDArray[Any]) -> list[Mixing]:
    """Rules by which the kernel `new` [pre, I_new, post] could be made of `old` [pre, I_old, post]: each of its channels replaces
    the one that it is most like, or their mean, or none where it is zero."""
    import numpy as np

    first, second = (np.moveaxis(kernel.astype(np.float64), 1, 0).reshape(kernel.shape[1], -1) for kernel in (old, new))
    count = len(first)
    with np.errstate(all="ignore"):  # kernels of another file may hold anything
        first = np.concatenate([first, first.mean(axis=0, keepdims=True)])
        likeness = np.abs(second @ first.T) / np.maximum(np.linalg.norm(first, axis=1), np.finfo(np.float64).tiny)
    best = [int(row.argmax()) if row.any() else -1 for row in likeness]
    if max(best, default=-1) < 0:
        return []  # a kernel of zeros is made of nothing
    selected = [matrix.select(count, best)] if all(0 <= i < count for i in best) else []
    return [*selected, matrix.bands(count, [i if 0 <= i < count else matrix.ZERO if i < 0 else matrix.MEAN for i in best])]


def obeyed(made: Sequence[tuple[Mixing, NDArray[Any]]], kernel: NDArray[Any], dtype: DType) -> Mixing | None:
    """The rule of those, with what they make, that made a kernel: to the last bit, or else but for the rounding."""
    exact = (rule for rule, one in made if one.tobytes() == kernel.tobytes())
    near = (rule for rule, one in made if is_rounded(one, kernel, dtype))
    return next(exact, None) or next(near, None)


def largest_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Between two tensors of as many elements."""
    return float(abs(one.astype("float64").ravel() - other.astype("float64").ravel()).max(initial=0))


def is_rounded(kernel: NDArray[Any], other: NDArray[Any], dtype: DType) -> bool:
    """Whether two kernels are the same but for the rounding: sums in another order or precision move a weight by two units in the
    last place of the largest. Types of less than two bytes are too coarse to tell that from another rule."""
    most = 2 * rounding(dtype) * float(abs(kernel.astype("float64")).max(initial=0))
    return kernel.size == other.size and dtype.floating and dtype.bits >= 16 and largest_difference(kernel, other) <= most


def rounding(dtype: DType) -> float:
    """How far rounding moves a weight, as a part of the largest; never less than what sums in float64 lose."""
    import ml_dtypes

    if not dtype.floating:
        return 1 / 64
    return max(float(ml_dtypes.finfo(numpy_dtype(dtype)).eps), 1e-9)  # type: ignore[no-untyped-call] # it has no types


def asking(rule: Mixing) -> str:
    """The options that ask for such a rule; "" where none do."""
    if rule.method == "bands":
        return f"--bands {','.join(_bands(rule))}"
    name, *order = rule.method.removesuffix(")").partition(" (")[::2]
    if name == "luma":
        preset, _, turned = order[0].partition(", ")
        return f"--luma {preset}" + (f" --channel-order {turned}" if turned else "")
    if rule.method == "bgr":
        return "--to bgr"
    if rule.old == rule.new and None in rule.sources:
        return ""  # of as many channels only the identity is asked for by a method
    copied = [rule.copied(j) for j in range(rule.new)]
    return f"--method {name}" if None in copied else f"--select {','.join(map(str, copied))}"


def _bands(rule: Mixing) -> Iterator[str]:
    """Names for the bands of such a rule, each with what it replaces: those of the old channels, once, and band3=R."""
    letters, seen = "RGB" if rule.old == len("RGB") else [str(i) for i in range(rule.old)], set[str]()
    for j, column in enumerate(zip(*rule.matrix, strict=True)):
        source = rule.source(j)
        of = letters[source] if source is not None else matrix.MEAN if any(column) else matrix.ZERO
        yield of if source is not None and of not in seen else f"band{j}={of}"
        seen.add(of)


def conversions(old: int, new: int) -> Iterator[dict[str, Any]]:
    """The options of conversions from `old` to `new` channels that are made often, but for the plain one: colors turned, and each
    preset, with bytes as they are and without, of networks that take BGR too."""
    if new == len("bgr") and old in (1, new):
        yield {"to": "bgr"}
    seen: set[Preset] = set()
    for name, preset in NORMS.items():
        if preset in seen:
            continue
        seen.add(preset)
        is_turned = preset.mean != preset.mean[::-1] or preset.std != preset.std[::-1]
        for order in ORDERS if is_turned else ("",):
            turned = {"channel_order": order} if order not in ("", preset.order) else {}
            for top in ({}, {"input_range": 255.0}) if preset.input_range == 1 else ({},):
                yield {"norm": name, **top, **turned}
