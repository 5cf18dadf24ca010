"""The filters of a first conv as one array, whatever its layout, and the conversion that makes one kernel of another."""

from __future__ import annotations

import os
from math import isqrt
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.errors import AmbiguousError, UnsupportedError
from chkpt_channels.core.layout import KNOWN, Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Finding, FirstConv
from chkpt_channels.discovery.find import find_first_convs, named
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.folders.channel_counts import search_hints
from chkpt_channels.folders.model import Model, Part
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.transform.kernels import dense, values
from chkpt_channels.transform.mixing.known import known_rules, rounding
from chkpt_channels.transform.mixing.matrix import Mixing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chkpt_channels.formats.base import TensorStore


MOST = 1e100
"""The largest weight whose square can be summed."""


class Filters(NamedTuple):
    """A kernel as [O, I, depth, height, width], the path of its file, and what was found of it."""

    file: str
    conv: FirstConv
    weights: NDArray[Any]

    @property
    def depth(self) -> str:
        """What is along the depth: slices of a volume or a clip, or the pixels of a space-to-depth block."""
        return "slice" if "D" in str(self.conv.layout) else "pixel"

    @property
    def apart(self) -> bool:
        """Whether its channels are no gray and no colors, so that each is drawn by itself: others than 1 or 3, or a signal's."""
        letters = str(self.conv.layout)
        return self.channels not in (1, 3) or ("W" in letters and "H" not in letters)

    @property
    def channels(self) -> int:
        """I."""
        return int(self.weights.shape[1])


def load_filters(
    path: str | os.PathLike[str], request: SearchRequest | None = None, layer: str | None = None, beside: str = ""
) -> Filters:
    """The first conv of a file or a model folder: the one that `layer` names, else of several the one called `beside`, or the
    first. Raises UnsupportedError where there is none, AmbiguousError where several could be meant, UsageError for a layer that
    is not there, and what opening raises."""
    with open_model(path) as model:
        parts = list(model.parts)
        for part in parts:
            try:
                conv = _conv(model, part, request or SearchRequest(), layer, beside)
            except UnsupportedError:  # of the parts of a folder some see no image
                if part is parts[-1]:
                    raise
                continue
            kernel = dense(values(part.store, conv), conv, conv.layout) if conv.layout else values(part.store, conv)
            shown = conv._replace(tensor=conv.tensor._replace(name=model.prefix(part) + conv.tensor.name))
            weights = canonical(kernel, conv)
            if not weights.size or not abs(weights).max() < MOST:
                where = model.location.at(shown.tensor.name)
                raise where.unsupported("has no values, or not only finite ones that can be drawn")
            return Filters(model.location.file, shown, weights)
        raise model.location.unsupported("holds no weights")


def _conv(model: Model, part: Part, request: SearchRequest, layer: str | None, beside: str) -> FirstConv:
    store: TensorStore = part.store
    asked = request._replace(hints=search_hints(model.described(part).configs))
    if layer is not None:
        return named(store, layer, asked)
    finding = find_first_convs(store, asked)
    convs = [conv for conv in finding.first_convs if asked.from_channels in (None, conv.in_channels)]
    if not convs and beside in store.tensors:  # the kernel that was found in the other file
        return named(store, beside, asked)
    if not convs:
        raise _no_conv(store, finding)
    conv = next((conv for conv in convs if conv.tensor.name == beside), convs[0])
    conv = named(store, conv.tensor.name, asked) if asked.layout else conv
    if conv.layout is None:
        fitting = [text for text in KNOWN if len(Layout(text).axes) == len(conv.tensor.shape)]
        what = f"its axis order is ambiguous: shape {list(conv.tensor.shape)} does not show the input channels"
        raise store.location.at(conv.tensor.name).unsupported(what, hint=f"--layout {' or '.join(fitting[:3])}")
    return conv


def _no_conv(store: TensorStore, finding: Finding) -> UnsupportedError:
    keys = [conv.tensor.name for conv in finding.first_convs] or [candidate.key for candidate in finding.candidates]
    if not keys:
        hint = "name it: --layer KEY --layout LAYOUT"
        return store.location.unsupported("holds no convolution that could see an image", hint=hint)
    what = "its first convolution is ambiguous"
    return AmbiguousError(what, file=store.location.file, candidates=finding.candidates, hint=f"--layer {keys[0]}")


def canonical(kernel: NDArray[Any], conv: FirstConv) -> NDArray[Any]:
    """Any kernel as [O, I, depth, height, width]: pixels in a folded axis become a square, those of a space-to-depth block the
    depth, one axis a row."""
    import numpy as np

    letters: list[str] = []
    sizes: list[int] = []
    for axis, group in zip(kernel.shape, conv.layout.axes if conv.layout else (), strict=True):
        split = [("P", axis // conv.in_channels), ("I", conv.in_channels)] if len(group) > 1 else [(group, axis)]
        for letter, size in split if group.endswith("I") else reversed(split):
            letters.append(letter)
            sizes.append(size)
    window = [letter for letter in letters if letter not in "OI"]
    order = [letters.index(letter) for letter in ("O", "I", *window)]
    apart: NDArray[Any] = kernel.astype(np.float64).reshape(sizes).transpose(order)
    count = apart[0, 0].size
    side = isqrt(count)
    square = (side, side) if window == ["P"] and side * side == count else (1, count)
    return apart.reshape(*apart.shape[:2], *((1, 1, 1, *apart.shape[2:])[-3:] if len(window) > 1 else (1, *square)))


def conversion_between(before: Filters, after: Filters) -> Mixing | None:
    """The A [I_old, I_new] with which the second kernel is W · A of the first, up to the rounding of its type: a known rule, or
    what least squares give. None where there is none, so that they are kernels of two models, or where several would do."""
    import numpy as np

    (count, old, *window), (other_count, new, *other_window) = before.weights.shape, after.weights.shape
    if (count, window) != (other_count, other_window):
        return None
    first = np.moveaxis(before.weights, 1, -1).reshape(-1, old)
    second = np.moveaxis(after.weights, 1, -1).reshape(-1, new)
    step = max(rounding(conv.tensor.dtype) for conv in (before.conv, after.conv))
    most = 2 * step * float(np.abs(second).max(initial=0))

    def error(mixing: Mixing) -> float:
        return float(np.abs(first @ np.array(mixing.matrix) - second).max(initial=0))

    best = min(known_rules(old, new), key=error)
    if error(best) <= most:
        return best
    solved, _, rank, _ = np.linalg.lstsq(first, second, rcond=None)
    fits = rank == old and len(first) >= 2 * old and float(np.abs(first @ solved - second).max(initial=0)) <= most
    # rounded: what least squares leave of a zero is no zero
    return Mixing("", tuple(tuple(round(float(value), 5) + 0.0 for value in row) for row in solved)) if fits else None
