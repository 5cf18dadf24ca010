"""The records that all layers share: tensors, first convs, edits.

A Tensor is metadata only, and its store loads it: so results hold no open file and can be pickled.
"""

# Records are named tuples and not frozen dataclasses, here and in the whole package: both are immutable and typed, and the
# classes of named tuples are made in an eighth of the time, which is paid at every start of the command.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from chkpt_channels.core.dtypes import DType
from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_REMEMBERED = 5_000
"""Tensors of a checkpoint of which it is remembered what was found by their names and shapes."""


class Tensor(NamedTuple):
    """One named tensor. `group` is the state dict that holds it ("state_dict" in a training checkpoint, "" at the root);
    `layout` is the axis order that the format states, None where it states none."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    group: str = ""
    layout: Layout | None = None

    @property
    def key(self) -> str:
        """The name inside its group: "conv1.weight"."""
        return self.name[len(self.group) + 1 :] if self.group else self.name

    @property
    def size(self) -> int:
        """The bytes of its elements."""
        return (prod(self.shape) * self.dtype.bits + 7) // 8


class OpaqueTensor(NamedTuple):
    """A weight that is there, and that cannot be read as a dense tensor. `shape` is None where it is not known; `what` says what
    it is, in words that follow its name, and `hint` what to do about it. `parts` are the tensors that it is made of, which are no
    weights themselves; `follows` is how many tensors of its store come before it."""

    name: str
    shape: tuple[int, ...] | None
    what: str
    hint: str = ""
    group: str = ""
    parts: Sequence[str] = ()
    follows: int = 0

    @property
    def key(self) -> str:
        """The name inside its group."""
        return self.name[len(self.group) + 1 :] if self.group else self.name


class Declaration(NamedTuple):
    """A channel count written outside tensors, such as a pickled module's `in_channels`."""

    where: str
    channels: int


class FirstConv(NamedTuple):
    """A kernel that the image reaches. `found_by` is one of user, like, graph, sidecar, catalogue, shapes, names; `why` is the
    evidence in words. Its channel axis holds `in_channels` / `groups` channels. `inputs` are the graph's inputs that reach it,
    where the file tells them apart. `may_be_depthwise` says that it has the shape of one over gray, and that it could filter R,
    G and B one by one: a state dict does not hold the groups."""

    tensor: Tensor
    layout: Layout | None
    in_channels: int
    found_by: str
    why: str = ""
    groups: int = 1
    inputs: tuple[str, ...] = ()
    may_be_depthwise: bool = False

    @property
    def images(self) -> Sequence[object]:
        """What it sees: inputs of a graph, or the image of so many channels of its state dict."""
        return self.inputs or [(self.tensor.group, self.in_channels)]


class Finding(NamedTuple):
    """What a search finds: the first convs, or none; `candidates` are the others in question, with the evidence against each.
    `input_vectors` are those that the image meets before the first convs: means, scales, a shift of the colors. `why_not` says
    why no choice of kernels would be right, where that is so."""

    first_convs: tuple[FirstConv, ...]
    candidates: tuple[Candidate, ...] = ()
    input_vectors: tuple[Tensor, ...] = ()
    why_not: str = ""


class PreprocessingOp(NamedTuple):
    """A per-channel operation between the image and the first convs: y_i = scale_i · x_i + shift_i. `scale` and `shift` have one
    number, or one for each channel, and are None for an operation that is not of this form. `where` names it, `kind` is its
    type; `tensors` hold its constants, (name, axis of the channels). `apart` says of one without that form that it treats each
    channel by itself, and alike but for these constants; `why` says in words why no kernel edit gets past it, and `hint` what to
    do then."""

    where: str
    kind: str
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    tensors: tuple[tuple[str, int], ...] = ()
    apart: bool = False
    why: str = "precedes the kernel and mixes, selects or counts channels"
    hint: str = ""

    @property
    def uniform(self) -> bool:
        """Whether every channel gets the same: then it is right for one channel too, without an edit."""
        if self.scale is None or self.shift is None:
            return self.apart and not self.tensors
        return len({*zip(self.scale, self.shift, strict=True)}) == 1


class Quantization(NamedTuple):
    """What a quantized kernel's numbers mean, W = scale · (q - zero). `scale` and `zero` name tensors of one value, or of one for
    each position along `axis`; `zero` is an integer where the file keeps it outside tensors. `bias` and `bias_scale` name tensors
    that follow a new scale: an integer bias in units of the scales of image and kernel, and its scale where that is stored."""

    scale: str
    zero: str | int = 0
    axis: int = 0
    bias: str = ""
    bias_scale: str = ""


class OptimizerEntry(NamedTuple):
    """What an optimizer keeps for one parameter: its tensors by slot name, and its plain integers by slot name. A `whole`
    optimizer was stored as an object, parameters included, and is not read."""

    where: str
    parameter: str
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int]
    whole: bool = False


class Notice(NamedTuple):
    """Something the user should know; `code` is for machines."""

    code: str
    message: str


class TensorEdit(NamedTuple):
    """A tensor's new shape, known at once, and its new values, computed when they are written; `part` is its role in the
    conversion: "kernel", "bias", "running mean", "gain", "length", "statistics", "optimizer state"."""

    shape: tuple[int, ...]
    computed: Callable[[], NDArray[Any] | SmallTensor]
    part: str = "kernel"

    def values(self) -> NDArray[Any]:
        """The new values."""
        new = self.computed()
        return new.array() if isinstance(new, SmallTensor) else new

    def tobytes(self) -> bytes:
        """The new values in C order, without numpy where they were computed so."""
        return self.computed().tobytes()


class ChannelMap(NamedTuple):
    """x_old = A · x_new + t: `matrix` is A, I_old rows of I_new numbers; `offset` is t, I_old numbers, or none for zero."""

    matrix: tuple[tuple[float, ...], ...]
    offset: tuple[float, ...] = ()


class Window(NamedTuple):
    """How a convolution of several pixels goes into a kernel behind it: its tap a and tap s of that one meet in tap
    near · a + far · s of the new one, along each axis.

    taps, near, far  how many it has along each axis, how far apart they are in the new kernel, and how far those of the old one
    settings         what the node of the kernel states from then on: kernel_shape, strides, dilations, pads
    border           how many outer pixels of the output are off, as zeros were padded to what the convolution gave
    edges            for such pixels, along each axis (e, f): where the old taps [b, c) are on pixels, the new ones are not before
                     far · (b - 1) + e for a b above 0, nor from far · c + near · (taps - 1) + f for a c below their number
    zeros            the constants that are added between the two, and that become zero
    matrices         A [I_old, I_new] for each of its taps, the last axis fastest
    """

    taps: tuple[int, ...]
    near: tuple[int, ...]
    far: tuple[int, ...]
    settings: Mapping[str, tuple[int, ...]]
    border: int
    edges: tuple[tuple[int, int], ...] = ()
    zeros: tuple[str, ...] = ()
    matrices: tuple[tuple[tuple[float, ...], ...], ...] = ()


class Adapter(NamedTuple):
    """A convolution that precedes a network's first convs: the value that it gives, the name of its stored bias, "" for none, and
    the tensors that nothing else reads. Of one that is not 1×1, how it goes into each kernel, by name."""

    output: str
    bias: str
    tensors: tuple[str, ...]
    windows: Mapping[str, Window] = {}


class Edits(NamedTuple):
    """All that is to change, in terms that every format can carry out.

    tensors   new shapes and values, by name
    numbers   plain integers, by `where` (declarations, an optimizer's step)
    dropped   optimizer entries to leave out, by `where`
    channels  the input channels that the graph's inputs declare afterwards; 0 where nothing changes
    inputs    the graph's inputs that these channels are of, by name; none where they are all images of this count
    method    "" for edited kernels; "broadcast", "stack", "adapter" or "gather" where the graph itself makes the old channels of
              the new ones
    adapter   with that method, what the 1×1 convolution in front of the network computes
    folded    the value that a convolution gives that is taken out, its input from then on; "" where none is
    removed   the tensors that go with it, by name
    windows   of one that is not 1×1, how it goes into each kernel, by name
    orders    with "gather", for each image the axis of its channels, and for each old channel the new one that it is
    constants  for each PreprocessingOp, by `where`, the old channel whose constants each new channel takes, where these are no
              tensors
    biases    Δb of kernels that have neither a bias nor a BatchNorm to take it, by the kernel's name
    companions  the new names of files that the file names and that go with it
    """

    tensors: Mapping[str, TensorEdit] = {}
    numbers: Mapping[str, int] = {}
    dropped: Sequence[str] = ()
    channels: int = 0
    inputs: Sequence[str] = ()
    method: str = ""
    adapter: ChannelMap | None = None
    folded: str = ""
    removed: Sequence[str] = ()
    windows: Mapping[str, Window] = {}
    orders: Mapping[str, tuple[int, tuple[int, ...]]] = {}
    constants: Mapping[str, tuple[int, ...]] = {}
    biases: Mapping[str, TensorEdit] = {}
    companions: Mapping[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.tensors or self.numbers or self.dropped or self.channels)
