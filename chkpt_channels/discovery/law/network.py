"""The layers of a state dict in order, each with its input and output channels, from names and shapes.

Modules are kept in their order by some containers and not by others. Where the order is lost, numbers keep a part of it:
`layer1.0` comes before `layer1.1`, but whether `head` comes before `stem` is not known. safetensors is such a container: its
writers sort by element size, then by name.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, cached_property

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import Tensor

OIHW = {2: Layout("OI"), 3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
OHWI = {2: Layout("OI"), 3: Layout("OWI"), 4: Layout("OHWI"), 5: Layout("ODHWI")}
Layouts = Mapping[int, Layout]
LAYOUTS: tuple[Layouts, ...] = (OIHW, HWIO, OHWI)

# the last word of a weight: PyTorch weight, Keras kernel, MLX and Flax w, weight_norm weight_v and original1 (original0 is
# its length), spectral_norm weight_orig, Keras 1 conv_W_1, Detectron conv1_w; frozen TorchScript numbers its constants
_WEIGHT = pattern(
    r"(^|[./])(weight|((depth|point)wise_)?kernel|w|filters?|original1?|weight_(v|orig)|\w+_[wW](_\d+)?|\d+)(:\d+)?$"
)
# tensors of rank 2 to 5 that are no weights: 42 timm models have a 4-D pos_embed before their first convolution
_NO_KERNEL = pattern(
    r"pos_embed|position|rel_pos|bias_table|(cls|reg|mask|dist)\w*_token|token_type|anchor|running_|norm\d*[./]weight$"
)
_UPSAMPLING = pattern(r"up|deconv|transp|tconv|convt")
SHIFT = pattern(r"(sub|add)_mean|(mean|color)_?shift|normali[sz]e([._]|$)")
_NUMBERS = pattern(r"(\d+)")

MOST_ODD_SIDE = 31
"""Of a window, where its layout is not PyTorch's or its sides are not equal: 32 × 32 filters and channels are no window."""
MOST_FOREIGN_SIDE = 11
"""Of the windows of another framework's kernels in a file of PyTorch: AlexNet's."""

MOST_SHIFTED = 32
"""Channels of an image that a 1×1 convolution shifts."""


class LayerWeight(NamedTuple):
    """A layer's weight: `filters` out, `channels` in, the size of its `window`. `key` is its name in its state dict with dots
    between the modules, `layer` the module that holds it, `pieces` the name cut at its numbers, `at` its index in the order."""

    tensor: Tensor
    key: str
    layer: str
    filters: int
    channels: int
    window: tuple[int, ...]
    pieces: tuple[str | int, ...]
    transposed: bool = False
    at: int = 0

    @property
    def is_patch(self) -> bool:
        """Whether its window cuts an image into patches: even and at least 8, where inner windows are smaller or odd. ViT has 16;
        Swin's 4 shows nothing."""
        return len(self.window) > 1 and all(side >= 8 and side % 2 == 0 for side in self.window[-2:])

    @property
    def is_wide(self) -> bool:
        """Whether its window covers more than one pixel."""
        return any(side > 1 for side in self.window)

    @property
    def is_point(self) -> bool:
        """Whether it mixes channels pixel by pixel: a 1×1 convolution or a Linear layer."""
        return not self.is_wide

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
    """The layers of one state dict: in module order, or in the order of their names. `widths` are the modules in order, with the
    channels that each takes: of a layer its input, of a norm its length."""

    def __init__(self, tensors: Sequence[Tensor], *, ordered: bool, torch: bool) -> None:
        self.ordered = ordered
        weights = [t for t in tensors if is_weight(t)]
        self.layouts, self.is_ambiguous = orientation(weights, torch=torch)
        shapes = {t.key: t.shape for t in tensors}
        biases = {layer_of(key): shape[0] for key, shape in shapes.items() if len(shape) == 1 and key.endswith("bias")}
        kernels = [_kernel(t, self.layouts, biases) for t in weights]
        if not ordered:
            kernels.sort(key=lambda k: k.pieces)
        self.kernels = [kernel._replace(at=i) for i, kernel in enumerate(kernels)]
        self.convs = [k for k in self.kernels if k.window and not is_no_kernel(k)]
        self.by_layer = {k.layer: k for k in self.kernels}
        self.trunk = common_words([k.key for k in self.kernels])
        self.widths = _widths(shapes, self.by_layer)
        self.grouped: dict[int, bool] = {}
        self.makers: defaultdict[int, list[LayerWeight]] = defaultdict(list)
        self.series: defaultdict[str, list[LayerWeight]] = defaultdict(list)
        for kernel in self.kernels:
            self.series[kernel.pattern].append(kernel)
            if not is_color_shift(kernel):  # EDSR begins with one: it takes and makes the colors
                self.makers[kernel.filters].append(kernel)

    @cached_property
    def mixed_widths(self) -> frozenset[int]:
        """The numbers of channels that layers make out of more than one."""
        return frozenset(width for width, makers in self.makers.items() if any(k.channels != 1 for k in makers))

    def branch(self, kernel: LayerWeight) -> str:
        """The part of the network that it is in: the first word of its name that not all layers share."""
        words = kernel.key.split(".", self.trunk + 1)
        return words[min(self.trunk, len(words) - 1)]

    def is_before(self, other: LayerWeight, kernel: LayerWeight) -> bool:
        """Whether `other` is known to come before `kernel`."""
        return other.at < kernel.at if self.ordered else kernel.follows(other)

    def made_before(self, kernel: LayerWeight, width: int) -> list[LayerWeight]:
        """The layers that make so many channels and are known to come before it."""
        return [k for k in self.makers.get(width, ()) if k is not kernel and self.is_before(k, kernel)]

    def is_made_before(self, kernel: LayerWeight, width: int) -> bool:
        """Whether there is such a layer: in a network of many it is asked of each kernel."""
        return any(k is not kernel and self.is_before(k, kernel) for k in self.makers.get(width, ()))

    def preceding(self, kernel: LayerWeight, most: int) -> list[LayerWeight]:
        """The nearest layers that are known to come before it, nearest first."""
        near = self.kernels[max(0, kernel.at - most) : kernel.at]
        return near[::-1] if self.ordered else [k for k in reversed(near) if kernel.follows(k)]

    def following(self, kernel: LayerWeight, most: int) -> list[LayerWeight]:
        """The layers that come next in the order that there is."""
        return self.kernels[kernel.at + 1 : kernel.at + 1 + most]


def is_weight(tensor: Tensor) -> bool:
    """Whether this may be the weight of a convolution or a Linear layer: neither a vector nor a table of positions."""
    shape, dtype = tensor.shape, tensor.dtype
    if not 2 <= len(shape) <= 5 or 0 in shape or not (dtype.floating or dtype.name in ("QI8", "QU8")):
        return False
    key = tensor.key
    if not (key.endswith(".weight") or _WEIGHT.search(key)):
        return False
    is_patch = len(shape) > 3 and shape[1] in (1, 3) and key.endswith("proj.weight")
    return is_patch or not _NO_KERNEL.search(key)


def orientation(weights: Sequence[Tensor], *, torch: bool) -> tuple[Layouts, bool]:
    """The layouts of the file's kernels, and whether they are ambiguous.

    Each kernel votes for the one layout in which its window is square and smaller than its other axes; the majority wins, unless
    more than half as many votes are against it. A layout that makes a window of an axis of filters is none: kraken's
    nn.C_3.co.weight [32, 32, 3, 13] is no HWIO with a window of 32 × 32. What PyTorch wrote has PyTorch's layouts, unless all
    kernels have the same small window in another layout, and none in PyTorch's: then the file was filled with another framework's
    numbers."""
    kernels = {t.shape for t in weights if len(t.shape) > 3}
    allowed = [_readings(shape) for shape in kernels]
    if torch:
        foreign = [layouts for layouts in LAYOUTS[1:] if kernels and all(_has_small_window(k, layouts) for k in kernels)]
        return foreign[0] if len(foreign) == 1 and all(0 not in readings for readings in allowed) else OIHW, False
    possible = [i for i, layouts in enumerate(LAYOUTS) if all(_has_window(k, layouts) for k in kernels)]
    counts = [allowed.count([reading]) if reading in possible else 0 for reading in range(len(LAYOUTS))]
    if not any(counts):
        return LAYOUTS[0], bool(kernels) and possible != [0]
    best = max(range(len(LAYOUTS)), key=lambda reading: counts[reading])
    return LAYOUTS[best], 2 * (sum(counts) - counts[best]) > counts[best]


def _has_window(shape: tuple[int, ...], layouts: Layouts) -> bool:
    """Whether a kernel can have the window of a layout: PyTorch's patches of 32 × 32 are the only large ones."""
    sides = [shape[axis] for axis in _axes(layouts[len(shape)])[2:]]
    return max(sides) <= MOST_ODD_SIDE or (layouts is OIHW and sides[-1] == sides[-2])


def _has_small_window(shape: tuple[int, ...], layouts: Layouts) -> bool:
    filters, _, *window = _axes(layouts[len(shape)])
    sides = {shape[axis] for axis in window[-2:]}
    return len(sides) == 1 and max(sides) <= MOST_FOREIGN_SIDE < shape[filters]


def _readings(shape: tuple[int, ...]) -> list[int]:
    """The layouts that a shape allows: those with a square window, and of several the one whose window is smaller than the
    other axes."""
    axes = [_axes(layouts[len(shape)]) for layouts in LAYOUTS]
    readings = [i for i, (*_, height, width) in enumerate(axes) if shape[height] == shape[width]]
    if len(readings) < 2:
        return readings
    small = [i for i in readings if max(shape[axis] for axis in axes[i][2:]) < min(shape[axis] for axis in axes[i][:2])]
    return small if len(small) == 1 else readings


def layer_of(key: str) -> str:
    """The module that holds a tensor: of a parametrized weight the one that it belongs to."""
    key = key.replace("/", ".")
    return key.rpartition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]


def _kernel(tensor: Tensor, layouts: Layouts, biases: Mapping[str, int]) -> LayerWeight:
    shape, key = tensor.shape, tensor.key.replace("/", ".")
    layout = tensor.layout if tensor.layout and not tensor.layout.folded else layouts.get(len(shape))
    filters, channels, *window = (1, 0) if layout is None or len(_axes(layout)) != len(shape) else _axes(layout)
    pieces = tuple(int(part) if part.isdecimal() else sys.intern(part) for part in _NUMBERS.split(key))
    layer, sizes = layer_of(key), tuple(shape[axis] for axis in window)
    transposed = not tensor.layout and _is_transposed(shape[filters], shape[channels], sizes, key, biases.get(layer))
    if transposed:
        filters, channels = channels, filters
    return LayerWeight(tensor, key, layer, shape[filters], shape[channels], sizes, pieces, transposed)


def _is_transposed(filters: int, channels: int, window: tuple[int, ...], key: str, bias: int | None) -> bool:
    """Whether the first two axes have changed places: the bias has the length of the second; without one a window of 2 or 4
    pixels under a name of upsampling says so."""
    if not window or filters == channels:
        return False
    if bias is not None:
        return bias == channels and bias != filters
    return all(side in (2, 4) for side in window) and bool(_UPSAMPLING.search(key))


def is_no_kernel(kernel: LayerWeight) -> bool:
    """Whether it has the rank of a convolution's weight without being one over an image: one filter over a vector (CoaT
    aggregate.weight [1, 3, 1], attention over channels), a Linear layer or a scale per channel [C, 1, 1], or a shift of the
    colors (EDSR's MeanShift)."""
    return kernel.filters == 1 or kernel.window == (1,) or is_color_shift(kernel)


def is_color_shift(kernel: LayerWeight) -> bool:
    """Whether it maps three channels to three, pixel by pixel; or another image's to as many, under the name of a shift."""
    if kernel.filters != kernel.channels or not kernel.window or kernel.is_wide or kernel.channels > MOST_SHIFTED:
        return False
    return kernel.channels == 3 or bool(SHIFT.search(kernel.key))


def _widths(shapes: Mapping[str, tuple[int, ...]], layers: Mapping[str, LayerWeight]) -> dict[str, int]:
    widths: dict[str, int] = {}
    for key, shape in shapes.items():
        module = layer_of(key)
        if module not in widths and module in layers:
            widths[layers[module].layer] = layers[module].channels
        elif module not in widths and len(shape) == 1 and shape[0] > 1:
            widths[module] = shape[0]
    return widths


@cache
def _axes(layout: Layout) -> tuple[int, ...]:
    """Where a layout has the filters, the channels and the window."""
    axes = layout.axes
    return (axes.index("O"), axes.index("I"), *(i for i, axis in enumerate(axes) if axis in "DHW"))


def common_words(keys: Sequence[str]) -> int:
    """How many words all names begin with: "model.", "module.model."."""
    if not keys:
        return 0
    first, last = min(keys).split("."), max(keys).split(".")
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
