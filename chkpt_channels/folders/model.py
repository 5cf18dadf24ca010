"""A model: weights and their configurations. Every conversion is one of a model; a single file is a model of one part."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from chkpt_channels.core.errors import Location
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.discovery.catalogue.entry import Recognized
from chkpt_channels.folders.channel_counts import search_hints
from chkpt_channels.folders.config_files import ConfigFile, ConfigReader
from chkpt_channels.folders.config_normalization import with_normalization
from chkpt_channels.folders.describing import Description, described
from chkpt_channels.folders.shards import Shards
from chkpt_channels.formats import detect
from chkpt_channels.formats.base import Checkpoint, Format, Loading
from chkpt_channels.storage.opening import named, open_source
from chkpt_channels.storage.source import STDIO, Readable, Source
from chkpt_channels.transform.mixing.normalization import AUTO
from chkpt_channels.transform.options import Options

if TYPE_CHECKING:
    from types import TracebackType


class Part(NamedTuple):
    """One checkpoint of a model: what it is called in reports, the names of its files, and its open tensors."""

    name: str
    files: tuple[str, ...]
    store: Checkpoint | Shards


class Model(ABC):
    """An open model. `home` is the folder that its configurations and the files beside the weights are in, None where
    nothing can be beside it."""

    is_folder: ClassVar[bool]
    location: Location
    home: Path | None

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._reader = ConfigReader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Its checkpoints, opened at the first access and closed with the model."""

    @property
    @abstractmethod
    def configs(self) -> Sequence[ConfigFile]:
        """The configurations that are edited with its weights."""

    @property
    def other_documents(self) -> Iterator[ConfigFile]:
        """Other JSON files beside its weights, which may be configurations, and are not edited."""
        yield from ()

    @property
    @abstractmethod
    def size(self) -> int:
        """The bytes of all its files."""

    @property
    def title(self) -> str:
        """What it is called for people."""
        return ", ".join(dict.fromkeys(part.store.title for part in self.parts))

    @abstractmethod
    def check_rest(self) -> None:
        """Raise UnsupportedError, or DamagedError, where it has weights beside its parts that would keep the old channels."""

    def prefix(self, part: Part) -> str:
        """The prefix of a part's tensors in reports: its name where there are several parts."""
        return f"{part.name}/" if len(self.parts) > 1 else ""

    def named(self, name: str = "") -> str:
        """A file of its folder, or the folder, as reports call it."""
        return named(self.home / name) if self.home else name

    @abstractmethod
    def loading(self, path: str, group: str | None = None) -> Loading:
        """How Python loads such a model at `path`, of several state dicts the one called `group`."""

    @abstractmethod
    def described(self, part: Part, *, strict: bool = False) -> Description:
        """The configurations that describe a part, as far as they can be read; `strict` raises DamagedError for others."""

    @cached_property
    def recognized(self) -> Recognized | None:
        """The known architectures that its first part could be, where no graph says what it is."""
        store = self.parts[0].store
        if store.graph.decides:
            return None
        from chkpt_channels.discovery.catalogue.known import recognize

        return recognize(store)

    def resolved(self, options: Options) -> Options:
        """The options completed from its configurations: hints for the search, and mean and std for `--norm auto`, else those of
        the architecture. Raises UnsupportedError where neither states these."""
        wants_normalization = options.norm.name == AUTO
        configs = self.described(self.parts[0], strict=wants_normalization).configs
        options = options._replace(search=options.search._replace(hints=search_hints(configs)))
        return with_normalization(options, configs, self.location, self.recognized) if wants_normalization else options


class ModelFile(Model):
    """One file, standard input, or an object that is read by position."""

    is_folder = False

    def __init__(self, path: Readable, *, with_sidecars: bool = False) -> None:
        super().__init__()
        self.source: Source = self._stack.enter_context(open_source(path))
        self.location, self._with_sidecars = self.source.location, with_sidecars
        self.home = None if self.source.is_alone or str(path) == STDIO else Path(self.source.name).parent

    @cached_property
    def format(self) -> Format:
        """The format that claims it. Raises UnknownFormatError, UnsupportedError."""
        return detect(self.source)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The open checkpoint."""
        return self.format.open(self.source)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part("", (), self.checkpoint),)

    @property
    def configs(self) -> Sequence[ConfigFile]:
        """Those that go with it, if they are to."""
        return self.described(self.parts[0]).configs if self._with_sidecars else ()

    def check_rest(self) -> None:
        """It has none."""

    def described(self, part: Part, *, strict: bool = False) -> Description:
        if strict and self.home:
            self._reader.read(self.home, strict=True)
        return self._described

    @cached_property
    def _described(self) -> Description:
        if self.home is None:
            return Description(())
        configs = self._reader.read(self.home, strict=False)
        with Location(str(self.home)).wrapping_os_errors("cannot be read"):
            names = os.listdir(self.home) if configs else []
        return described(configs, Path(self.source.name).name, names, self.checkpoint)

    @property
    def size(self) -> int:
        return self.source.size

    def loading(self, path: str, group: str | None = None) -> Loading:
        return self.checkpoint.loading(path, group)
