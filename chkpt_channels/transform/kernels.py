"""The change of a first conv and its arithmetic, which is computed when the kernel is written, not when it is planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from chkpt_channels.core import elements
from chkpt_channels.core.dtypes import BY_NAME, rounded
from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import FirstConv, Notice, TensorEdit
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import quantization
from chkpt_channels.transform.mixing import responses, window
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.rules import FOLDED, GRAPH_METHODS
from chkpt_channels.transform.parametrizations import PLAIN, Parametrization

if TYPE_CHECKING:
    from numpy.typing import NDArray


TapSpans = tuple[tuple[int, int], ...]
"""For each axis of the window the taps [start, stop) that lie on the image; the others lie on padding."""

LARGEST_EVEN_TAPS = 6
"""The largest even window that is taken to be padded: YOLOv5's stem has 6 taps and pads. 4 taps are ambiguous: DCGAN's stem
pads, ConvNeXt's does not. Larger even windows are those of patch embeddings, which do not pad."""


class KernelChange(NamedTuple):
    """One first conv, its mixing, and its new shape; nothing changes with the identity, nor where the graph mixes. `constants`
    has, for each new channel, the old one whose numbers it takes in preprocessing that precedes the conv; `parametrization` is
    how the kernel is stored."""

    conv: FirstConv
    layout: Layout
    mixing: Mixing
    shape: tuple[int, ...]
    constants: tuple[int, ...] = ()
    parametrization: Parametrization = PLAIN

    @property
    def changes(self) -> bool:
        """Whether the kernel is edited: not where nothing changes, nor where the graph makes the old channels."""
        return not self.mixing.is_identity and self.mixing.method not in GRAPH_METHODS


def mixed_kernel(checkpoint: TensorStore, kernel: KernelChange, *, allow_nonfinite: bool = False) -> NDArray[Any] | SmallTensor:
    """The new kernel, in the old one's layout. Raises UnsupportedError where the new one would overflow, or the old one is not
    finite; with `allow_nonfinite` only where a channel that is not finite would be mixed and not copied."""
    conv, layout, mixing = kernel.conv, kernel.layout, kernel.mixing
    location = checkpoint.location.at(conv.tensor.name)
    old = stored(checkpoint, kernel)
    if not prod(old.shape):
        raise location.unsupported(f"has no elements: its shape is {list(conv.tensor.shape)}")
    size = prod(kernel.shape) * conv.tensor.dtype.bits // 8
    if size > LIMITS.edited_tensor_bytes:
        raise location.unsupported(f"its new kernel has {size} bytes; {LIMITS.edited_tensor_bytes} are the most")
    bad_filter = first_not_finite(old, layout)
    if bad_filter is not None and not allow_nonfinite:
        copies = any(mixing.copied(j) is not None for j in range(mixing.new))
        hint = "--allow-nonfinite passes them through in channels that are copied" if copies else ""
        raise location.unsupported(f"filter {bad_filter} holds NaN or infinity", hint=hint)
    if conv.groups > 1 and all(row == (1.0,) for row in mixing.matrix) and not mixing.window:
        return old.reshape(kernel.shape)  # every filter sees one old channel: the same bytes see the new one
    new = _mixed(kernel, old)
    computed = [j for j in range(mixing.new) if mixing.copied(j) is None or bad_filter is None]
    chosen = new.chosen(computed) if isinstance(new, SmallTensor) else new[:, computed]
    shape = layout.with_channels(kernel.shape, mixing.new, len(computed))
    if (filter_ := first_not_finite(chosen.reshape(shape), layout)) is not None:
        mixes = f"holds NaN or infinity, which {mixing.method} would mix"
        what = f"would overflow {conv.tensor.dtype.name}" if bad_filter is None else mixes
        raise location.unsupported(f"filter {filter_} {what}")
    return new.reshape(kernel.shape)


def _mixed(kernel: KernelChange, old: NDArray[Any] | SmallTensor) -> NDArray[Any] | SmallTensor:
    """The new kernel as [pre, I_new, post], in the dtype that it is stored in, or in float64 where it is quantized again."""
    conv, layout, mixing = kernel.conv, kernel.layout, kernel.mixing
    if isinstance(old, SmallTensor):
        return mixing.apply_plainly(old, layout.view(old.shape, mixing.old))
    dtype = conv.tensor.dtype if conv.tensor.dtype.floating else BY_NAME["F64"]
    old = dense(old, conv, layout)
    mixable = kernel.parametrization.mixable(old)
    if mixing.window:
        new = window.composed(mixing, layout, mixable).reshape(layout.view(kernel.shape, mixing.new))
    else:
        new = mixing.apply(mixable, layout.view(old.shape, conv.in_channels), dtype)
    return new if new.dtype == old.dtype else rounded(new, dtype)


def stored(checkpoint: TensorStore, kernel: KernelChange) -> NDArray[Any] | SmallTensor:
    """The kernel as it is mixed: without numpy where that is easy, and sooner done."""
    conv, tensor = kernel.conv, kernel.conv.tensor
    is_easy = conv.groups == 1 and kernel.parametrization is PLAIN and not (kernel.mixing.window or kernel.mixing.offset)
    if is_easy and tensor.dtype.name in elements.PLAIN and max(prod(tensor.shape), prod(kernel.shape)) <= elements.MOST:
        return SmallTensor(checkpoint.kernel_bytes(tensor.name), tensor.dtype, tensor.shape)
    return values(checkpoint, conv)


def values(checkpoint: TensorStore, conv: FirstConv) -> NDArray[Any]:
    """The kernel as floating-point numbers. Raises UnsupportedError where it cannot be read as such."""
    kernel = quantization.kernel(checkpoint, conv)
    if kernel is None:
        location = checkpoint.location.at(conv.tensor.name)
        raise location.unsupported(f"holds {conv.tensor.dtype.name} numbers without a known scale")
    return kernel


def dense(old: NDArray[Any], conv: FirstConv, layout: Layout) -> NDArray[Any]:
    """A grouped kernel as a dense one: every filter over all channels, zero outside its group. Keras stores depthwise kernels by
    channel, [H, W, I, multiplier]; in other formats a filter has the I / groups channels of its group."""
    import numpy as np

    if conv.groups == 1:
        return old
    channels, filters = layout.channel_axis, layout.axes.index("O")
    apart = np.moveaxis(old, (filters, channels), (0, 1))  # [O, I / groups, …], or [multiplier, I, …]
    if apart.shape[1] == conv.in_channels:
        apart = np.moveaxis(apart, 0, 1).reshape(-1, 1, *apart.shape[2:])
    count, width = apart.shape[0], apart.shape[1]
    wide = np.zeros((count, conv.in_channels, *apart.shape[2:]), old.dtype)
    for o in range(count):
        group = o * conv.groups // count  # filters are stored group by group
        wide[o, group * width : (group + 1) * width] = apart[o]
    return np.ascontiguousarray(np.moveaxis(wide, (0, 1), (filters, channels)))


def bias_shift(checkpoint: TensorStore, kernel: KernelChange) -> NDArray[Any]:
    """Δb_o = Σ over channels and taps of W[o, i, …] · t_i, in float64."""
    constants = _tap_constants(checkpoint, kernel)
    summed: NDArray[Any] = constants.sum(axis=tuple(range(1, constants.ndim)))
    return summed


def _tap_constants(checkpoint: TensorStore, kernel: KernelChange) -> NDArray[Any]:
    """Σ over channels of W[o, i, …] · t_i as [O, D, H, W], those of D, H and W that the layout has as axes."""
    import numpy as np

    conv, layout, old = kernel.conv, kernel.layout, _dense_weight(checkpoint, kernel)
    shift = kernel.mixing.bias_shift(old, layout.view(old.shape, conv.in_channels))
    folded = shift.reshape(layout.with_channels(old.shape, conv.in_channels, 1)).sum(axis=layout.channel_axis)
    letters = [axis for i, axis in enumerate(layout.axes) if i != layout.channel_axis]
    return np.moveaxis(folded, letters.index("O"), 0)


def _dense_weight(checkpoint: TensorStore, kernel: KernelChange) -> NDArray[Any]:
    return dense(kernel.parametrization.weight(values(checkpoint, kernel.conv)), kernel.conv, kernel.layout)


def border_notices(checkpoint: TensorStore, changed: Sequence[KernelChange]) -> Iterator[Notice]:
    """What is off at zero-padded borders after a constant, or a convolution of several pixels, was folded: zeros had neither."""
    for kernel in changed:
        grows = kernel.mixing.window
        if not kernel.mixing.offset and not grows:
            continue
        stated = checkpoint.graph.padding(kernel.conv)
        tap_spans = usual_tap_spans(kernel) if stated is None else stated
        error, largest = border_error(checkpoint, kernel, tap_spans)
        if error:
            count = grows.border if grows else _border_pixels(kernel, tap_spans)
            inputs = f"{'' if kernel.mixing.method == FOLDED else 'normalized '}inputs"
            share = f", {100 * error / largest:.2g} % of the largest value that {inputs} in -1..1 give" if largest else ""
            if_ = ", if it is padded as usual" if stated is None else ""
            where = f"the outer {count} pixel{'s differ' if count > 1 else ' differs'} in its feature map"
            message = f"{kernel.conv.tensor.name}: exact inside; {where} by up to {error:.3g}{share}{if_}"
            yield Notice("border_error", f"{message}; {_exact_instead(checkpoint, kernel)}")


def _border_pixels(kernel: KernelChange, tap_spans: Sequence[TapSpans]) -> int:
    """How many outputs, at the most, overlap the padding on one side of an axis: each in a way of its own."""
    window = [n for n, letter in zip(kernel.conv.tensor.shape, kernel.layout.axes, strict=True) if letter in "DHW"] or [1]
    before = [{spans[axis] for spans in tap_spans if spans[axis][0] > 0} for axis in range(len(window))]
    after = [{spans[axis] for spans in tap_spans if spans[axis][1] < taps} for axis, taps in enumerate(window)]
    return max(map(len, [*before, *after]))


def _exact_instead(checkpoint: TensorStore, kernel: KernelChange) -> str:
    """What is exact at the border too."""
    if kernel.mixing.method == FOLDED:
        return "without --fold-adapter nothing differs"
    if not checkpoint.graph.adapter_obstacle([kernel.conv]):
        return "--method adapter is exact there too"
    return "a second channel of ones is exact there too: docs/normalization.md"


def usual_tap_spans(kernel: KernelChange) -> Sequence[TapSpans]:
    """The overlaps of a window with the padding, where the file does not state the padding: of an odd window up to its middle,
    of a small even one as with a stride of two, and none of a larger even one, which cuts the image into patches."""
    layout, shape = kernel.layout, kernel.conv.tensor.shape
    window = [shape[axis] for axis, letter in enumerate(layout.axes) if letter in "DHW"]
    if any(taps % 2 == 0 and taps > LARGEST_EVEN_TAPS for taps in window):
        return ()
    halves = [(taps - 1) // 2 for taps in window]
    overlaps = (
        [(max(0, i), min(taps, taps + i)) for i in range(-half, half + 1)] for taps, half in zip(window, halves, strict=True)
    )
    return list(product(*overlaps))


def border_error(checkpoint: TensorStore, kernel: KernelChange, tap_spans: Sequence[TapSpans]) -> tuple[float, float]:
    """(the largest Σ of W · t over channels and taps on the padding, the largest response to inputs in -1..1, which are those
    that the old kernel saw where normalizations are folded) of any filter. The old network padded zeros after the constant was
    subtracted; the new bias adds it for these taps too. A window sees pixels around them."""
    if not tap_spans:
        return 0.0, 0.0
    constants = _tap_constants(checkpoint, kernel)
    constants = constants.reshape(len(constants), *(constants.shape[1:] or (1,)))  # a product has one tap
    full = tuple((0, taps) for taps in constants.shape[1:])
    borders = [spans for spans in tap_spans if tuple(spans) != full]
    whole, *parts = (
        constants[:, *(slice(*span) for span in spans)].reshape(len(constants), -1).sum(axis=1) for spans in ((), *borders)
    )
    old = _dense_weight(checkpoint, kernel)
    inside, *seen = window.largest(kernel.mixing, kernel.layout, old, [(), *(borders if kernel.mixing.window else ())])
    errors = [abs(whole - part) for part in parts]
    if kernel.mixing.window:
        errors = [error + most for error, most in zip(errors, seen, strict=True)]
    scale = 1.0 if kernel.mixing.method == FOLDED else max(abs(value) for row in kernel.mixing.matrix for value in row)
    return max((float(error.max()) for error in errors), default=0.0), float(inside.max()) / (scale or 1.0)


def shifted_bias(
    checkpoint: TensorStore, kernel: KernelChange, target: tuple[str, int], before: TensorEdit | None
) -> NDArray[Any]:
    """The bias or running mean that takes the constant, rounded to its dtype."""
    name, sign = target
    old = before.values() if before else checkpoint.load(name)
    return rounded(old.astype("float64") + sign * bias_shift(checkpoint, kernel), checkpoint.tensors[name].dtype)


def select_positions(
    checkpoint: TensorStore, name: str, axes: Sequence[int], chosen: tuple[int, ...], *, as_zeros: bool
) -> NDArray[Any]:
    """The chosen positions along these axes of a stored tensor, or zeros in their place; of a diagonal one (two axes) the chosen
    diagonal."""
    import numpy as np

    selected: NDArray[Any] = checkpoint.load(name)
    for axis in axes:
        selected = np.take(selected, chosen, axis)
    if len(axes) > 1:  # a diagonal matrix: where one old channel is selected twice, the two new ones must not mix
        off = ~np.eye(len(chosen), dtype=bool)
        selected[off.reshape([len(chosen) if axis in axes else 1 for axis in range(selected.ndim)]).nonzero()] = 0
    return np.zeros_like(selected, order="C") if as_zeros else np.ascontiguousarray(selected)


def first_not_finite(kernel: NDArray[Any] | SmallTensor, layout: Layout) -> int | None:
    """The first output channel that holds a NaN or an infinity, None where there is none."""
    axis = next(i for i, letters in enumerate(layout.axes) if "O" in letters)
    if isinstance(kernel, SmallTensor):
        return kernel.not_finite((prod(kernel.shape[:axis]), kernel.shape[axis], prod(kernel.shape[axis + 1 :])))
    import numpy as np

    bad = ~np.isfinite(kernel.astype(np.float32) if kernel.dtype.itemsize < 4 else kernel)
    filters = np.flatnonzero(np.moveaxis(bad, axis, 0).reshape(kernel.shape[axis], -1).any(axis=1))
    return int(filters[0]) if filters.size else None


def parity(
    checkpoint: TensorStore, kernel: KernelChange, new: NDArray[Any] | SmallTensor, constant: NDArray[Any] | None
) -> tuple[float, float]:
    """The largest difference, absolute and in ulp of the largest response, between the old kernel on a random 8-bit patch
    mapped to the old channels and the `new` one on the patch itself, both summed in float64. `constant` is what the new bias
    adds to each filter; without it constants are left out."""
    conv, layout, mixing = kernel.conv, kernel.layout, kernel.mixing
    old = stored(checkpoint, kernel)
    if not isinstance(old, SmallTensor):
        old = dense(kernel.parametrization.mixable(old), conv, layout)
    filters = layout.axes.index("O")
    shape, wide = (tuple(1 if axis == filters else n for axis, n in enumerate(k.shape)) for k in (new, old))
    view = layout.view(layout.with_channels(wide, mixing.old, mixing.new), mixing.new)
    # one patch of the window's size is enough: a convolution does the same at every place
    image: Any = responses.noise(shape)
    if isinstance(old, SmallTensor):
        mapped: Any = mixing.transposed.apply_plainly(image, view)
    else:
        image = image.array()
        seen = ((part.transposed, image[place].reshape(view)) for part, place in window.parts(mixing, layout, wide))
        mapped = sum(part.apply(pixels, view, BY_NAME["F64"]) for part, pixels in seen)
        if constant is not None:
            mapped += [[offset] for offset in mixing.offset]
    before, after = (responses.of_filters(k, x, filters) for k, x in ((old, mapped.reshape(wide)), (new, image)))
    if constant is not None:
        after = [answer + float(added) for answer, added in zip(after, constant, strict=True)]
    return responses.difference(before, after, conv.tensor.dtype)
