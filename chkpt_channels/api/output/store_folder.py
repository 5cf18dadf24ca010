"""Output of a model folder in a bucket: what stays is copied there, what changes is sent, and the names come at the end."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any

from chkpt_channels.api.output.naming import Progress
from chkpt_channels.api.output.patch import composed
from chkpt_channels.api.output.target import Target, Written, status_of
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import FileSystemError, Location, OutputExistsError, PostPublishError
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.folders.shards import is_index
from chkpt_channels.formats.base import Checkpoint, Loading
from chkpt_channels.storage.splice import Composed, passing_checks, pieces
from chkpt_channels.storage.stores.address import Address, parsed
from chkpt_channels.storage.stores.mirror import folder_address
from chkpt_channels.storage.stores.output import StoreOutput
from chkpt_channels.storage.stores.parts import LEAST_BYTES, Transfer
from chkpt_channels.storage.stores.upload import Client, taken
from chkpt_channels.storage.threads import undisturbed
from chkpt_channels.storage.urls import is_bucket, shown


class _Small:
    """A file that is written by one request, when it is published: its `content` is read then, and the headers of the object that
    it is in the place of go along."""

    def __init__(self, client: Client, content: Callable[[], bytes], origin: Address | None) -> None:
        self._client, self._content, self._origin = client, content, origin
        self._size, self._tag = 0, ""

    def publish(self) -> None:
        """Give it its name. Raises OutputExistsError where another took it meanwhile."""
        interrupts.check()
        data, origin = self._content(), self._origin
        self._size, self._tag = len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()
        if self._client.head():
            raise taken(self._client.location)
        head = self._client.head(origin.home, origin.name) if origin else None
        undisturbed(partial(self._put, data, head.about if head else {}))

    def _put(self, data: bytes, about: Mapping[str, Any]) -> None:
        try:
            self._client.put(data, about, is_new=self._client.honours_conditions())
        except (OutputExistsError, FileSystemError):  # it may have been done, and the answer was lost
            there = self._client.head()
            if there is None or there.tag.strip('"') != self._tag:
                raise

    def remove(self) -> bool:
        """Remove it, where its name still shows it; whether nothing of it is left."""
        return self._client.remove(self._tag) if self._tag else True

    def transfer(self) -> Transfer:
        """What was sent."""
        guard = "store" if self._client.honours_conditions() else "looked"
        return Transfer("copied", 0, self._size, 0, 0, guard, 0)


class StoreFolderTarget(Target):
    """The output of a model folder under a prefix, where nothing may be yet; by default beside a source there."""

    def __init__(self, model: ModelFolder, url: str, progress: Progress | None) -> None:
        super().__init__(progress)
        self._model, self._url = model, url
        self.path: str = shown(url)
        self._outputs: list[StoreOutput | _Small] = []
        self._client: Client | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """The files in it."""
        return tuple(self.path + name for name in self._model.files)

    def fill(self, planned: PlannedModel) -> None:
        """Check every file, and put it into the store; none has a name yet. Raises OutputExistsError where one is taken."""
        address = folder_address(self._url)
        self._check_apart(address)
        self._client = Client(address, Location(self.path))
        if self._client.listed(address.name):
            raise OutputExistsError("is not empty", file=self.path, hint="-o names another prefix")
        edits, documents = dict(planned.edited_files()), planned.edited_documents()
        stores, told = dict(self._checkpoints()), self._told(self._model.size)
        for name in sorted(self._model.files, key=lambda name: (self._is_last(name), name in documents, name in edits)):
            size = self._model.size_of(name)
            if name in documents or (name not in edits and size < LEAST_BYTES):
                content = partial(documents.__getitem__, name) if name in documents else partial(self._whole, name)
                origin = parsed(self._model.named(name)) if is_bucket(self._model.named()) else None
                self._outputs.append(_Small(self._client.at(address.name + name), content, origin))
                continue
            source = stores[name].source if name in stores else self.enter_context(self._model.source(name))
            out = self.enter_context(StoreOutput(self._url + name, source, force=False, client=self._client))
            if name in edits:
                checkpoint, plan = edits[name]
                output, splices = composed(checkpoint, plan, self.path + name)
                out.fill(output, passing_checks(checkpoint.checks(), splices), told)
            else:
                checks = stores[name].checks() if name in stores else ()
                out.fill(Composed(source, pieces(source.size, []), self.path + name), checks, told)
            source.check_unchanged()
            self._outputs.append(out)

    def _whole(self, name: str) -> bytes:
        with self._model.source(name) as source:
            data = source.read(0, source.size)
            source.check_unchanged()
            return data

    def _check_apart(self, address: Address) -> None:
        """Raise OutputExistsError for an output in its source, which would be a folder of two models."""
        if is_bucket(self._model.named()):
            source = folder_address(self._model.named())
            if source.home == address.home and address.name.startswith(source.name):
                raise OutputExistsError("is in the folder that is converted", file=self.path, hint="-o names another prefix")

    def _is_last(self, name: str) -> bool:
        """Whether a file says that there is a model: the index of shards."""
        return is_index(self._model.path / name)

    def _checkpoints(self) -> Iterator[tuple[str, Checkpoint]]:
        for part in self._model.parts:
            stores = [part.store] if isinstance(part.store, Checkpoint) else part.store.shards
            yield from zip(part.files, stores, strict=True)

    def publish(self, planned: PlannedModel) -> Written:
        """Give the files their names, the index of shards the last. Where one fails, all are removed; raises PostPublishError
        where that fails too."""
        begun: list[StoreOutput | _Small] = []
        try:
            for output in self._outputs:
                begun.append(output)
                output.publish()
        except BaseException as error:
            if isinstance(error, PostPublishError) and len(begun) == len(self._outputs):
                raise  # all are there
            self._roll_back(begun)
            if isinstance(error, PostPublishError):
                raise FileSystemError(error.what, file=error.file, hint=error.hint) from error
            raise
        moved = reduce(_together, (output.transfer() for output in self._outputs))
        requests = moved.requests + (self._client.requests if self._client else 0)
        info = FileInfo(self.path, "folder", self._model.size)
        return Written(info, status_of(is_new=True, is_changed=planned.changed), transfer=moved._replace(requests=requests))

    def _roll_back(self, begun: Sequence[StoreOutput | _Small]) -> None:
        left = 0
        for output in reversed(begun):
            try:
                left += not output.remove()
            except FileSystemError:
                left += 1
        if left:
            what = f"could not be completed, and {left} of its files may be left under it"
            raise PostPublishError(what, file=self.path, hint=f"aws s3 rm --recursive {shlex.quote(self.path)}")

    def loading(self, group: str | None) -> Loading:
        """How the output is loaded, once it was fetched."""
        return self._model.loading(self._url.rstrip("/").rpartition("/")[2], group)


def _together(one: Transfer, other: Transfer) -> Transfer:
    how = "copied" if (one.how, other.how) == ("copied", "copied") else "streamed"
    guard = "store" if (one.overwrite_guard, other.overwrite_guard) == ("store", "store") else "looked"
    return Transfer(
        how,
        one.read_bytes + other.read_bytes,
        one.written_bytes + other.written_bytes,
        one.copied_bytes + other.copied_bytes,
        one.requests + other.requests,
        guard,
        one.unverified_bytes + other.unverified_bytes,
    )
