"""The contract of a format: how its files are recognized, and what an open file provides.

A TensorStore is names, shapes and values, in a file or in memory. A Checkpoint is an open file: it also says which spans of its
bytes change. What the file says of its network is its `graph` (graph.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chkpt_channels.core import elements
from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.errors import Location
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Edits, Notice, OpaqueTensor, OptimizerEntry, Tensor
from chkpt_channels.formats.graph import NO_GRAPH, ModelGraph
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Checksum, Progress, Splice

if TYPE_CHECKING:
    from numpy.typing import NDArray


KEPT_KERNEL_BYTES = 16 << 20
"""Larger kernels are not kept: memory stays within three times the largest tensor."""


class FlatWriter(NamedTuple):
    """How a state dict becomes a file of one format. `keeps` says whether it can hold a tensor; `write` writes these tensors,
    whose bytes are read by name, to an empty file."""

    keeps: Callable[[Tensor], bool]
    write: Callable[[Sequence[Tensor], Callable[[str], Iterator[bytes]], int], None]


class Format(NamedTuple):
    """A file format, without the code that reads it, where that is large: only the one that claims a file imports that.

    name      in reports: "torch_zip"
    title     for people: "PyTorch (zip)"
    suffixes  the file name extensions of the family, "" for none: an output of another format must not have one
    sniff     whether a file's head and tail are those of this format; reads little and trusts nothing
    opener    its Checkpoint, as "module:Class" below this package
    ending    a longer extension by which its framework distinguishes two kinds of the format: an output has it if the source does
              (Keras reads .weights.h5 otherwise than .h5)
    flat      whether a file may be a plain state dict, whose tensors can be written in another format
    writer    the FlatWriter that writes a state dict as such a file, likewise; "" where there is none
    in_place  whether edits leave the rest of a file where it is, and a file has no checksums to pass by
    """

    name: str
    title: str
    suffixes: frozenset[str]
    sniff: Callable[[Source], bool]
    opener: str
    ending: str = ""
    flat: bool = False
    writer: str = ""
    in_place: bool = False

    @gc_paused()
    def open(self, source: Source) -> Checkpoint:
        """The open file. Raises DamagedError, UnsupportedError for what this format holds and is not converted."""
        checkpoint: Checkpoint = _named(self.opener)(source, self)
        source.location.check_limit("tensors", len(checkpoint.tensors), LIMITS.tensors)
        return checkpoint

    def flat_writer(self) -> FlatWriter | None:
        """The writer of a state dict as such a file; None where there is none."""
        writer: FlatWriter | None = _named(self.writer) if self.writer else None
        return writer


def _named(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), name)


class TensorStore(ABC):
    """Named tensors that can be loaded: those of an open file, or of a state dict in memory. `location` begins the messages
    about it; `title` is its name in them."""

    title: str
    ordered: bool
    """Whether the order of `tensors` is the order of the modules."""
    like_hint = '--like LIKE.pth, made by torch.save(Net(in_channels=1).state_dict(), "LIKE.pth")'
    """What settles which kernels see the image, whatever the network: for the hint of a refusal."""
    adds_tensors: bool = False
    """Whether an edit may add tensors: a private copy of one that others share, a bias where there was none."""

    takes_out: bool = False
    """Whether an output without some of its tensors can be written."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.tensors: dict[str, Tensor] = {}
        self.opaque: tuple[OpaqueTensor, ...] = ()
        self._kernels: dict[str, bytes] = {}
        self.optimizer_entries: tuple[OptimizerEntry, ...] = ()
        self.warnings: list[Notice] = []
        self.globals: tuple[str, ...] = ()
        self.untyped: frozenset[str] = frozenset()
        """The tensors whose dtype the file does not name, and that are read as the likeliest."""
        self.follows_links = False
        """Whether files that go with this one may be reached through links that leave its folder."""

    @property
    def graph(self) -> ModelGraph:
        """What it says about its network."""
        return NO_GRAPH

    @property
    def torch(self) -> bool:
        """Whether PyTorch wrote it: its kernels have PyTorch's layouts where their shapes are ambiguous."""
        return self.ordered

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """The elements of a tensor in C order, a few MiB at a time."""

    def load(self, name: str) -> NDArray[Any]:
        """One tensor as an array in its stored dtype and logical shape."""
        return self.array(self.tensors[name], self.chunks(name))

    def array(self, tensor: Tensor, chunks: Iterator[bytes]) -> NDArray[Any]:
        """The elements of a tensor as an array. Raises UnsupportedError for a dtype that numpy has not."""
        import numpy as np

        from chkpt_channels.core.dtypes import numpy_dtype

        location = self.location.at(tensor.name)
        if not tensor.dtype.numpy:
            raise location.unsupported(f"its {tensor.dtype.name} numbers cannot be computed with")
        location.check_limit("bytes in one tensor", tensor.size, LIMITS.edited_tensor_bytes)
        return np.frombuffer(b"".join(chunks), numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    def numbers(self, name: str) -> list[float]:
        """The numbers of a tensor: of a small one without numpy."""
        tensor = self.tensors[name]
        if tensor.dtype.name in elements.PLAIN and prod(tensor.shape) <= elements.MOST:
            return SmallTensor(b"".join(self.chunks(name)), tensor.dtype, tensor.shape).values()
        numbers: list[float] = self.load(name).astype("float64").reshape(-1).tolist()
        return numbers

    def kernel_bytes(self, name: str) -> bytes:
        """The elements of the kernel of a first conv, which several steps need: those of a small one are read once."""
        kernel = self._kernels.get(name) or b"".join(self.chunks(name))
        if len(kernel) <= KEPT_KERNEL_BYTES:
            self._kernels[name] = kernel
        return kernel

    def load_kernel(self, name: str) -> NDArray[Any]:
        """The same as an array."""
        return self.array(self.tensors[name], (self.kernel_bytes(name) for _ in range(1)))

    def memory(self, name: str) -> Hashable:
        """What tells a tensor's memory: names with the same answer are one tensor, such as tied weights."""
        return name

    def model_tensors(self) -> list[Tensor]:
        """The tensors of models: all but the optimizers', and those that an opaque one is made of."""
        others = {t.name for entry in self.optimizer_entries for t in entry.tensors.values()}
        others.update(part for tensor in self.opaque for part in tensor.parts)
        return [t for t in self.tensors.values() if t.name not in others]


class NamedNetwork(NamedTuple):
    """What a network is called: its library, the names there that fit, and what says so ("catalogue", "configuration",
    "object")."""

    library: str
    names: tuple[str, ...]
    how: str


class Loading(NamedTuple):
    """How Python loads a file.

    imports    the statements that come first
    statement  a statement that loads it; for the network `model`, which is built before it, where `needs_model`
    state      instead of it: an expression that is a state dict for such a network
    group      which of the file's state dicts that is
    model      what that network is, in words
    remark     what else loading takes, in a sentence
    network    what the file itself calls its network
    """

    imports: tuple[str, ...] = ()
    statement: str = ""
    needs_model: bool = False
    state: str = ""
    group: str = ""
    model: str = "the network that was trained"
    remark: str = ""
    network: NamedNetwork | None = None


class Joined(NamedTuple):
    """What shards, each in the order of its modules, say as one checkpoint."""

    graph: ModelGraph
    optimizer_entries: tuple[OptimizerEntry, ...]


class Checkpoint(TensorStore):
    """One open file, as an index: names, shapes, dtypes, spans. One subclass a format."""

    endings: tuple[str, ...] = ()
    """The ends of names under which its framework reads the file, the usual one first; none where it reads any."""

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source.location)
        self.source, self.format, self.title = source, form, form.title

    def others(self, group: str) -> list[str]:
        """What the file holds besides the tensors of one state dict, by path."""
        return [t.name for t in self.tensors.values() if t.group != group]

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Two of these tensors that share memory, None where each has its own."""
        return None

    def joined(self, shards: TensorStore, *, ordered: bool) -> Joined | None:
        """What the shards of which this is the first say together; None where each says all about its own tensors."""
        return None

    def loading(self, path: str, group: str | None = None) -> Loading:
        """How Python loads the file at `path`, of several state dicts the one called `group`."""
        return Loading()

    def companions(self, path: Path, *, edited: bool) -> dict[str, str]:
        """Files in the source's folder that must be copied beside the output `path`: old name → new name."""
        return {}

    def companion(self, path: Path) -> Source:
        """One of these files, open: the caller closes it. Raises FileSystemError, and UnsupportedError for a link elsewhere."""
        return Source(path)

    def read_companions_of(self, original: Checkpoint, companions: Mapping[str, str]) -> None:
        """Take this file, an output that is not published yet, as one whose companions are those of the original."""

    @abstractmethod
    def splices(self, edits: Edits) -> list[Splice]:
        """The spans of the file that change. Raises UnsupportedError for edits the format cannot hold."""

    def checks(self) -> Sequence[Checksum]:
        """The checksums over spans of the file."""
        return ()

    def writing(
        self, edits: Edits, out: int, location: Location, progress: Progress | None = None
    ) -> AbstractContextManager[None]:
        """Write the edited file to the empty file `out`: within it is complete, on exit it is on the disk. `location` names the
        output in messages."""
        from chkpt_channels.storage.stream_copy import writing

        def preload() -> None:
            with suppress(ModuleNotFoundError):  # told when it is needed
                self.preload_validator()

        return writing(self.source, self.splices(edits), out, location, self.checks(), progress, preload)

    def preload_validator(self) -> None:  # most formats have no light library to ask
        """Import what `validate` needs."""

    def source_fails_validation(self) -> bool:
        """Whether the format's own library cannot read this file either: asked after it refused the output."""
        return False

    def validate(self, path: str) -> None:  # most formats have no light library to ask
        """Open the written file at `path` with the format's own library, where that is light to import; "" is one that is in no
        file, of which a library that opens files is not asked."""
