"""The neutral store: what a checkpoint of any format looks like to the plan.

A Tensor is metadata only and its Checkpoint loads it: so results hold no open file and can be pickled. Records are named tuples:
as immutable and typed as frozen dataclasses, and making the classes takes an eighth of the time, which is a start-up cost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from chkpt_channels.core.dtypes import DType
from chkpt_channels.core.errors import Place, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.storage import early_copy as ahead
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Check, Progress, Splice
from chkpt_channels.storage.stream_copy import apply
from chkpt_channels.transform import quantization as quantisation
from chkpt_channels.transform.quantization import Quantiser

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Tensor(NamedTuple):
    """One named tensor. `group` is the container it stands in ("state_dict" in a training checkpoint, "" at the root);
    `layout` is what the format says about its axes, None where it says nothing."""

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


class Declaration(NamedTuple):
    """A channel count written outside tensors, such as a pickled module's `in_channels`."""

    where: str
    channels: int


class FirstConv(NamedTuple):
    """A kernel that sees the image. `found_by` is one of user, graph, sidecar, shapes, names; `why` says it in words."""

    tensor: Tensor
    layout: Layout | None
    in_channels: int
    found_by: str
    why: str = ""
    groups: int = 1


class Front(NamedTuple):
    """A per-channel operation that a file's graph has between the image and the first convs: y_i = scale_i · x_i + shift_i.
    `scale` and `shift` are None where it is nothing of the kind. `where` names it, `kind` says what it is; `tensors` are the
    ones that hold its constants, (name, axis of the channels)."""

    where: str
    kind: str
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    tensors: tuple[tuple[str, int], ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether every channel gets the same: then one channel gets it too, and nothing is in the way."""
        return self.scale is not None and self.shift is not None and len({*zip(self.scale, self.shift, strict=True)}) == 1


class OptimizerEntry(NamedTuple):
    """What an optimizer keeps for one parameter: its tensors by slot name, and its plain integers by slot name."""

    where: str
    parameter: str
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, int]


class Notice(NamedTuple):
    """Something the user should know; `code` is for machines."""

    code: str
    message: str


class TensorEdit(NamedTuple):
    """A tensor's new shape, known at once, and its new values, computed when they are written; `part` says what it is of the
    conversion: "kernel", "bias", "running mean", "gain", "length", "statistics", "optimizer state"."""

    shape: tuple[int, ...]
    values: Callable[[], NDArray[Any]]
    part: str = "kernel"


class Edits(NamedTuple):
    """All that is to change, in words that every format can carry out.

    tensors   new shapes and values, by name
    numbers   plain integers, by `where` (declarations, an optimizer's step)
    dropped   optimizer entries to leave out, by `where`
    channels  the input channels that the graph's inputs declare afterwards; 0 where nothing changes
    method    "" for edited kernels; "broadcast" or "stack" where the graph itself makes the old channels of the new one
    fronts    for each Front, by `where`, the old channel whose constants each new channel takes, where these are no tensors
    biases    Δb of kernels that have neither a bias nor a BatchNorm to take it, by the kernel's name
    companions  the new names of files that the file names and that go with it
    """

    tensors: Mapping[str, TensorEdit] = {}
    numbers: Mapping[str, int] = {}
    dropped: Sequence[str] = ()
    channels: int = 0
    method: str = ""
    fronts: Mapping[str, tuple[int, ...]] = {}
    biases: Mapping[str, TensorEdit] = {}
    companions: Mapping[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.tensors or self.numbers or self.dropped or self.channels)


class FlatWriter(NamedTuple):
    """How a state dict becomes a file of one format. `keeps` says whether it can hold a tensor; `write` writes these tensors,
    whose bytes are read by name, to an empty file."""

    keeps: Callable[[Tensor], bool]
    write: Callable[[Sequence[Tensor], Callable[[str], Iterator[bytes]], int], None]


class Checkpoint(ABC):
    """One open file, as an index: names, shapes, dtypes, spans. One subclass a format."""

    format: ClassVar[str]
    """The name in reports: "torch_zip"."""
    title: str
    """The name for people: "PyTorch (zip)"."""
    suffixes: ClassVar[frozenset[str]]
    """The file name extensions of the family, "" for none; the first three letters of an output must not lie."""
    ending: ClassVar[str] = ""
    """A longer extension by which its framework tells two kinds of the format apart: an output has it where the source does."""
    ordered: bool
    """Whether the order of `tensors` is the order of the modules."""
    in_place: ClassVar[bool] = False
    """Whether edits replace spans without moving what follows: then a copy may be made before they are known."""
    adds_tensors: ClassVar[bool] = False
    """Whether an edit may add tensors: a private copy of one that others share, a bias where there was none."""

    flat: ClassVar[bool] = False
    """Whether it may be a state dict and nothing else, whose tensors can go over into another format."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tensors: dict[str, Tensor] = {}
        self.optimizer_entries: tuple[OptimizerEntry, ...] = ()
        self.warnings: list[Notice] = []
        self.globals: tuple[str, ...] = ()
        self.follows_links = False
        """Whether files that go with this one may be reached through links that leave its folder."""

    @property
    def torch(self) -> bool:
        """Whether PyTorch wrote it: its kernels lie as PyTorch's do where their shapes leave that open."""
        return self.ordered

    @classmethod
    @abstractmethod
    def sniff(cls, source: Source) -> bool:
        """Whether the first bytes claim to be this format. Reads little and believes nothing."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """The elements of a tensor in C order, a few MiB at a time."""

    def load(self, name: str) -> NDArray[Any]:
        """One tensor as an array in its stored dtype and logical shape."""
        import numpy as np

        from chkpt_channels.core.dtypes import numpy_dtype

        tensor = self.tensors[name]
        self.source.place.inside(name).within("bytes in one tensor", tensor.size, LIMITS.edited_tensor_bytes)
        return np.frombuffer(b"".join(self.chunks(name)), numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    def first_convs(self) -> Sequence[FirstConv]:
        """The first convs that the file's own graph names; none where it carries no graph."""
        return ()

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """The channel counts written in the file that must follow these first convs."""
        return ()

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        """The channel counts written in the file that its kernels are not, and what these are."""
        return ()

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        """The numbers of channels that training left beside the model, for scripts that build it anew, as far as they are
        `channels`."""
        return ()

    def load_line(self, path: str) -> str:
        """The line of Python that loads the file at `path`."""
        return ""

    def fronts(self, first_convs: Sequence[FirstConv]) -> Sequence[Front]:
        """The per-channel operations between the image and these first convs, from the image on; none without a graph."""
        return ()

    def graph_methods(self, first_convs: Sequence[FirstConv]) -> Sequence[str]:
        """Which of "broadcast" and "stack" this file's graph allows toward one channel, the better one first."""
        return ()

    def shift_taker(self, conv: FirstConv) -> tuple[str, int] | None:
        """The tensor that can take a constant added to the conv's output, and its sign: the bias (+1) or the running mean of
        the BatchNorm behind it (-1). None where there is neither."""
        from chkpt_channels.discovery import bias_target as behind

        return behind.shift_taker(self.tensors, conv, ordered=self.ordered)

    def ungrouped(self, conv: FirstConv, channels: int) -> tuple[int, ...] | None:
        """The shape in which a grouped first conv's kernel serves `channels` channels: for one channel the same bytes; for
        others its dense expansion, None where the format cannot hold that."""
        return conv.tensor.shape if channels == 1 else None

    def quantiser(self, conv: FirstConv) -> Quantiser | None:
        """What the numbers of a quantised kernel mean; None where that is not known."""
        return None

    def kernel(self, conv: FirstConv) -> NDArray[Any] | None:
        """The kernel's values; None where they are no numbers that can be mixed. Quantised ones come as float64."""
        if conv.tensor.dtype.floating:
            return self.load(conv.tensor.name)
        if (how := self.quantiser(conv)) is None:
            return None
        return quantisation.dequantised(self.load(conv.tensor.name), self.load(how.scale), self._zero(how), how.axis)

    def kernel_edits(self, conv: FirstConv, edit: TensorEdit) -> dict[str, TensorEdit]:
        """The tensors that hold the kernel, for the values of `edit`: itself, or quantised numbers and their scales."""
        how = None if conv.tensor.dtype.floating else self.quantiser(conv)
        if how is None:
            return {conv.tensor.name: edit}

        @cache
        def new() -> tuple[NDArray[Any], NDArray[Any]]:
            dtype = self.load(conv.tensor.name).dtype
            return quantisation.requantised(edit.values(), dtype, self.load(how.scale), self._zero(how), how.axis)

        return {
            conv.tensor.name: TensorEdit(edit.shape, lambda: new()[0]),
            how.scale: TensorEdit(self.tensors[how.scale].shape, lambda: new()[1], "scale"),
        }

    def edited_kernel(self, conv: FirstConv, edits: Edits) -> NDArray[Any]:
        """The kernel as it will be read back."""
        numbers = edits.tensors[conv.tensor.name].values()
        how = None if conv.tensor.dtype.floating else self.quantiser(conv)
        if how is None:
            return numbers
        return quantisation.dequantised(numbers, edits.tensors[how.scale].values(), self._zero(how), how.axis)

    def _zero(self, how: Quantiser) -> NDArray[Any]:
        import numpy as np

        return self.load(how.zero) if isinstance(how.zero, str) else np.array([how.zero])

    def name_images(self, names: Sequence[str]) -> None:
        """Take these inputs of the graph for the images. Raises UsageError where there is no such input."""
        raise UsageError(f"--input names an input of an ONNX graph, and this is {self.title}", file=self.source.name)

    def insides(self, conv: FirstConv) -> Sequence[tuple[tuple[int, int], ...]] | None:
        """For each way in which the kernel overlaps zeros around the image, the taps [start, stop) inside along D, H and W: none
        where it does not; None where the file does not say how it pads."""
        return None

    def count_edits(self, channels: int) -> dict[str, TensorEdit]:
        """The stored tensors that hold the number of input channels, such as the shape that a graph gives the image."""
        return {}

    def companions(self, path: Path, *, edited: bool) -> dict[str, str]:
        """Files in the source's folder that must be copied beside the output `path`: old name → new name."""
        return {}

    def refined(self, conv: FirstConv) -> FirstConv:
        """A first conv found by names and shapes, with what the file says about its groups."""
        return conv

    @classmethod
    def flat_writer(cls) -> FlatWriter | None:
        """What writes a state dict as such a file; None where nothing does."""
        return None

    def others(self, group: str) -> list[str]:
        """What the file holds besides the tensors of one state dict, by where it stands."""
        return [t.name for t in self.tensors.values() if t.group != group]

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Two of these tensors that share memory, None where each has its own."""
        return None

    @abstractmethod
    def splices(self, edits: Edits) -> list[Splice]:
        """The spans of the file that change. Raises UnsupportedError for edits the format cannot hold."""

    def checks(self) -> Sequence[Check]:
        """The checksums over spans of the file."""
        return ()

    def write(self, edits: Edits, out: int, place: Place, progress: Progress | None = None, *, copied: bool = False) -> None:
        """Write the edited file to `out` and fsync it; `place` names the output in messages. `out` is empty, or `copied` from the
        source."""
        splices = self.splices(edits)
        if not (copied and ahead.overwrite(self.source, splices, out, place, progress)):
            apply(self.source, splices, out, place, self.checks(), progress, self.call_judge)

    @classmethod  # noqa: B027 # most formats are opened without a library
    def call_library(cls) -> None:
        """Import what opens a file."""

    def call_judge(self) -> None:  # noqa: B027 # most formats have no light library to ask
        """Import what `judge` needs."""

    def is_refused(self) -> bool:
        """Whether the format's own library cannot read this file either: asked where it refused what was made of it."""
        return False

    def judge(self, path: str) -> None:  # noqa: B027 # most formats have no light library to ask
        """Open the written file at `path` with the format's own library, where there is a light one."""
