"""The layers of a state dict in order, each with its input and output channels, from names and shapes.

Modules are kept in their order by some containers and not by others. Where the order is lost, numbers keep a part of it:
`layer1.0` comes before `layer1.1`, but whether `head` comes before `stem` is not known. safetensors is such a container: its
writers sort by element size, then by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import NamedTuple

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Tensor

OIHW = {2: Layout("OI"), 3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
OHWI = {2: Layout("OI"), 3: Layout("OWI"), 4: Layout("OHWI"), 5: Layout("ODHWI")}
Layouts = Mapping[int, Layout]
LAYOUTS: tuple[Layouts, ...] = (OIHW, HWIO, OHWI)

# the last word of a weight: PyTorch weight, Keras kernel, MLX and Flax w, weight_norm weight_v and original1, spectral_norm
# weight_orig, Keras 1 conv_W_1; frozen TorchScript numbers its constants
_WEIGHT = re.compile(
    r"(^|[./])(weight|((depth|point)wise_)?kernel|w|filters?|original[01]?|weight_(v|orig)|\w+_W(_\d+)?|\d+)(:\d+)?$"
)
# tensors of rank 2 to 5 that are no weights: 42 timm models have a 4-D pos_embed before their first convolution
_NO_KERNEL = re.compile(
    r"pos_embed|position|rel_pos|bias_table|(cls|reg|mask|dist)\w*_token|token_type|anchor|running_|norm\d*[./]weight$"
)
_NUMBERS = re.compile(r"(\d+)")


class LayerWeight(NamedTuple):
    """A layer's weight: `filters` out, `channels` in, the size of its `window`; `key` is its name in its state dict with dots
    between the modules, `pieces` the same cut at its numbers, `at` its index in the order."""

    tensor: Tensor
    key: str
    filters: int
    channels: int
    window: tuple[int, ...]
    pieces: tuple[str | int, ...]
    at: int = 0

    @property
    def convolves(self) -> bool:
        """Whether it has a window at all, of one pixel or more: Linear layers have none."""
        return bool(self.window)

    @property
    def is_patch(self) -> bool:
        """Whether its window cuts an image into patches: even and at least 8, where inner windows are smaller or odd. ViT has 16;
        Swin's 4 shows nothing."""
        return len(self.window) > 1 and all(side >= 8 and side % 2 == 0 for side in self.window[-2:])

    @property
    def pattern(self) -> str:
        """The name with # for every number: what the layers of a series share."""
        return "".join("#" if isinstance(piece, int) else piece for piece in self.pieces)

    def follows(self, other: LayerWeight) -> bool:
        """Whether numbers in the names say that it comes after `other`."""
        for piece, before in zip(self.pieces, other.pieces, strict=False):
            if piece != before:
                return isinstance(piece, int) and isinstance(before, int) and piece > before
        return False


class Network:
    """The layers of one state dict: in module order, or in the order of their names."""

    def __init__(self, weights: Sequence[Tensor], *, ordered: bool, torch: bool) -> None:
        self.ordered = ordered
        self.layouts, self.is_ambiguous = orientation(weights, torch=torch)
        kernels = [_kernel(t, self.layouts) for t in weights]
        if not ordered:
            kernels.sort(key=lambda k: k.pieces)
        self.kernels = [kernel._replace(at=i) for i, kernel in enumerate(kernels)]
        self.convs = [k for k in self.kernels if k.convolves]
        self._trunk = _common_words([k.key for k in self.kernels])

    def branch(self, kernel: LayerWeight) -> str:
        """The part of the network that it is in: the first word of its name that not all layers share, without numbers."""
        words = kernel.key.split(".", self._trunk + 1)
        return words[min(self._trunk, len(words) - 1)].rstrip("0123456789")

    @cached_property
    def branch_sizes(self) -> dict[str, int]:
        """How many layers each branch has."""
        sizes: dict[str, int] = {}
        for kernel in self.kernels:
            branch = self.branch(kernel)
            sizes[branch] = sizes.get(branch, 0) + 1
        return sizes

    def preceding(self, kernel: LayerWeight, most: int) -> Iterator[LayerWeight]:
        """The nearest layers that are known to precede it in its branch, nearest first."""
        branch = self.branch(kernel)
        for other in reversed(self.kernels[max(0, kernel.at - most) : kernel.at]):
            if self.ordered:
                if self.branch(other) != branch:
                    return
                yield other
            elif kernel.follows(other):
                yield other

    def shared_module(self, a: LayerWeight, b: LayerWeight) -> str:
        """The innermost module that holds both layers and not the whole network, with its dot; "" where there is none."""
        words = a.key.split(".")
        shared = next((i for i, (x, y) in enumerate(zip(words, b.key.split("."), strict=False)) if x != y), 0)
        return ".".join(words[:shared]) + "." if shared > self._trunk else ""

    def following(self, kernel: LayerWeight, most: int) -> list[LayerWeight]:
        """The layers that may follow it in its branch."""
        branch = self.branch(kernel)
        return [k for k in self.kernels[kernel.at + 1 : kernel.at + 1 + most] if self.branch(k) == branch]

    @cached_property
    def blocks(self) -> dict[str, frozenset[str]]:
        """For each numbered module, the names of the layers inside it."""
        inside: dict[str, set[str]] = {}
        for kernel in self.kernels:
            words = kernel.key.split(".")
            for i, word in enumerate(words[:-1]):
                if word[-1:].isdigit():
                    inside.setdefault(".".join(words[: i + 1]), set()).add(".".join(words[i + 1 :]))
        return {module: frozenset(names) for module, names in inside.items()}

    def under(self, module: str) -> list[LayerWeight]:
        """The layers of one module."""
        return [k for k in self.kernels if k.key.startswith(module)]


def is_weight(tensor: Tensor) -> bool:
    """Whether this may be the weight of a convolution or a Linear layer: neither a vector nor a table of positions."""
    if not (tensor.dtype.floating or tensor.dtype.name in ("QI8", "QU8")) or not 2 <= len(tensor.shape) <= 5 or 0 in tensor.shape:
        return False
    return bool(_WEIGHT.search(tensor.key)) and not _NO_KERNEL.search(tensor.key)


def orientation(weights: Sequence[Tensor], *, torch: bool) -> tuple[Layouts, bool]:
    """The layouts of the file's kernels, and whether they are ambiguous.

    Each kernel votes for the one layout in which its window is square and smaller than its other axes; the majority wins, unless
    more than half as many votes are against it. Not every window is a square: kraken's nn.C_3.co.weight [32, 32, 3, 13] reads as
    HWIO with a window of 32 × 32, so one vote does not decide. Without votes PyTorch's files have PyTorch's layout."""
    kernels = {t.shape for t in weights if len(t.shape) > 3}
    allowed = [_readings(shape) for shape in kernels]
    counts = [allowed.count([reading]) for reading in range(len(LAYOUTS))]
    best = max(range(len(LAYOUTS)), key=lambda reading: counts[reading])
    unclear = 2 * (sum(counts) - counts[best]) > counts[best] if any(counts) else bool(kernels)
    return LAYOUTS[best], unclear and not (torch and not any(counts))


def _readings(shape: tuple[int, ...]) -> list[int]:
    """The layouts that a shape allows: those with a square window, and of several the one whose window is smaller than the
    other axes."""
    axes = [_axes(layouts[len(shape)]) for layouts in LAYOUTS]
    readings = [i for i, (*_, height, width) in enumerate(axes) if shape[height] == shape[width]]
    if len(readings) < 2:
        return readings
    small = []
    for reading in readings:
        filters, channels, *window = axes[reading]
        if max(shape[axis] for axis in window) < min(shape[filters], shape[channels]):
            small.append(reading)
    return small if len(small) == 1 else readings


def _kernel(tensor: Tensor, layouts: Layouts) -> LayerWeight:
    shape, key = tensor.shape, tensor.key.replace("/", ".")
    layout = tensor.layout if tensor.layout and not tensor.layout.folded else layouts.get(len(shape))
    filters, channels, *window = (1, 0) if layout is None or len(layout.axes) != len(shape) else _axes(layout)
    pieces = tuple(int(part) if part.isdecimal() else part for part in _NUMBERS.split(key))
    return LayerWeight(tensor, key, shape[filters], shape[channels], tuple(shape[axis] for axis in window), pieces)


@cache
def _axes(layout: Layout) -> tuple[int, ...]:
    """Where a layout has the filters, the channels and the window."""
    axes = layout.axes
    return (axes.index("O"), axes.index("I"), *(i for i, axis in enumerate(axes) if axis in "DHW"))


def _common_words(keys: Sequence[str]) -> int:
    """How many words all names begin with: "model.", "module.model."."""
    if not keys:
        return 0
    first, last = min(keys).split("."), max(keys).split(".")
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)


def numbered_apart(a: LayerWeight, b: LayerWeight) -> bool:
    """Whether two names differ first in a number."""
    return a.follows(b) or b.follows(a)
