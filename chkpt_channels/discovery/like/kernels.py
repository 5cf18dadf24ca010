"""Which axis of a kernel LIKE changes: that of the input channels, of a first conv; or that of the filters, of a head.

Shapes show it but for transposed convolutions, which have the two axes exchanged: [64, 3, 4, 4] is a stem of 64 filters, or the
transposed last layer of a generator. A bias tells, as it has one number for each filter; then what follows the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import LAYOUTS, OIHW, Layouts, is_weight, orientation
from chkpt_channels.formats.base import TensorStore

STEM, HEAD, OPEN = "stem", "head", "open"
"""What a kernel is: one that takes the image, one that nobody takes the output of, or either."""
TRANSPOSED = {3: Layout("IOW"), 4: Layout("IOHW"), 5: Layout("IODHW")}
LARGEST_UPSAMPLING = 6
"""The side of the largest window by which decoders upsample; larger even windows cut patches."""
_UPSAMPLING = pattern(r"(^|[._])(up\w*|\w*transp\w*|deconv\w*|dec\w*)([._]|$)")


class Change(NamedTuple):
    """A tensor of the file, its shape in LIKE, and the one axis that differs."""

    tensor: Tensor
    shape: tuple[int, ...]
    axis: int

    @property
    def pair(self) -> tuple[int, int]:
        """The length of that axis before and after."""
        return self.tensor.shape[self.axis], self.shape[self.axis]


class KernelVerdict(NamedTuple):
    """What a changed kernel is, and its layout where that is certain."""

    kind: str
    layout: Layout | None = None


class Kernels:
    """The kernels of one copy of a model, of which LIKE changes some; `tensors` are all tensors of the copy with their shapes in
    LIKE, in the order of the file."""

    def __init__(self, store: TensorStore, tensors: Sequence[tuple[Tensor, tuple[int, ...]]], changes: Sequence[Change]) -> None:
        self._store = store
        self._shapes = {tensor.key: (tensor.shape, after) for tensor, after in tensors}
        self._kernels = [tensor.key for tensor, _ in tensors if len(tensor.shape) > 2]
        self._order = [tensor for tensor, _ in tensors]
        self._layouts = self._oriented(changes)

    def _oriented(self, changes: Sequence[Change]) -> Layouts:
        """The layouts of the file's kernels: those of PyTorch, or those that its shapes vote for; windows do not change, so that
        others are taken where only these have a channel axis in each place that does."""
        if self._store.torch:
            return OIHW
        vote, _ = orientation([tensor for tensor in self._order if is_weight(tensor)], torch=False)
        ranked = [vote, *(layouts for layouts in LAYOUTS if layouts is not vote)]
        large = [change for change in changes if len(change.tensor.shape) > 3]
        return next((layouts for layouts in ranked if all(_place(layouts, change) for change in large)), vote)

    def judge(self, change: Change, stated: Layout | None) -> KernelVerdict | None:
        """What a changed kernel is; None where the axis that differs is none of channels. `stated` is the layout that the user
        gives."""
        tensor = change.tensor
        if stated and len(stated.axes) == len(tensor.shape) and stated.channel_axis == change.axis:
            return KernelVerdict(STEM, stated)
        if tensor.layout:
            place = _letters(tensor.layout, change.axis)
            return KernelVerdict(STEM, tensor.layout) if "I" in place else KernelVerdict(HEAD) if "O" in place else None
        place = _place(self._layouts, change)
        if not place:
            return None
        layout = self._layouts.get(len(tensor.shape))
        if self._layouts is not OIHW or len(tensor.shape) < 3:
            return KernelVerdict(STEM, layout) if place == "I" else KernelVerdict(HEAD)
        return self._convolution(change, place, layout)

    def _convolution(self, change: Change, place: str, layout: Layout | None) -> KernelVerdict | None:
        """A kernel [O, I, …], or [I, O, …] of a transposed convolution."""
        tensor, bias = change.tensor, self._bias(change.tensor)
        if bias is not None:
            plain = (tensor.shape[0],), (change.shape[0],)
            transposed = (tensor.shape[1],), (change.shape[1],)
            if bias == plain:
                return KernelVerdict(STEM, layout) if place == "I" else KernelVerdict(HEAD)
            if bias == transposed:
                return KernelVerdict(HEAD) if place == "I" else KernelVerdict(STEM, TRANSPOSED[len(tensor.shape)])
            return KernelVerdict(OPEN, layout)
        if place == "O":
            return KernelVerdict(HEAD)
        return self._without_bias(change, layout)

    def _without_bias(self, change: Change, layout: Layout | None) -> KernelVerdict:
        tensor = change.tensor
        window = tensor.shape[2:]
        is_last = self._store.ordered and self._kernels[-1:] == [tensor.key] != self._kernels[:1]
        may_upsample = all(side % 2 == 0 and side <= LARGEST_UPSAMPLING for side in window)
        if self._norm_follows(tensor) or not (is_last or may_upsample):
            return KernelVerdict(STEM, layout)
        if is_last and (may_upsample or _UPSAMPLING.search(tensor.key)):
            return KernelVerdict(HEAD)
        return KernelVerdict(OPEN, layout)

    def _norm_follows(self, tensor: Tensor) -> bool:
        """Whether a norm of as many numbers as the kernel would have filters follows it at once, and could not be one of its
        channels."""
        at = next(i for i, other in enumerate(self._order) if other.key == tensor.key)
        following = self._order[at + 1].shape if self._store.ordered and at + 1 < len(self._order) else ()
        return following == (tensor.shape[0],) and tensor.shape[0] != tensor.shape[1]

    def _bias(self, kernel: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The shapes of the kernel's bias here and in LIKE; None where it has none. Beside a parameter that is not called like a
        layer's weight, a `bias` may be anything."""
        module = module_of(kernel.key)
        own = kernel.key[len(module) :].lstrip(".")
        if not own.startswith(("weight", "parametrizations")):
            return None
        return self._shapes.get(f"{module}.bias" if module else "bias")


def module_of(key: str) -> str:
    """The module that a tensor belongs to."""
    return key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]


def _place(layouts: Layouts, change: Change) -> str:
    """Whether the axis that differs holds the filters (O) or the channels (I); "" where it holds neither."""
    rank = len(change.tensor.shape)
    if rank == 2 and layouts is not OIHW and 2 not in layouts:  # Dense layers are [I, O]
        return "IO"[change.axis]
    layout = layouts.get(rank)
    return _letters(layout, change.axis) if layout else ""


def _letters(layout: Layout, axis: int) -> str:
    letters = layout.axes[axis]
    return "I" if "I" in letters else "O" if "O" in letters else ""
