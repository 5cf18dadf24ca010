"""Output of a model folder in a bucket: what stays is copied there, what changes is sent, and the names come at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import reduce
from types import TracebackType
from typing import Self

from chkpt_channels.api.output.naming import Progress
from chkpt_channels.api.output.patch import composed
from chkpt_channels.api.output.publish import Written, status_of
from chkpt_channels.api.report import FileInfo
from chkpt_channels.core.errors import OutputExistsError, PostPublishError
from chkpt_channels.folders.model_folder import ModelFolder
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.folders.shards import is_index
from chkpt_channels.formats.base import Checkpoint, Loading
from chkpt_channels.storage.splice import Composed, passing_checks, pieces
from chkpt_channels.storage.stores.mirror import folder_address
from chkpt_channels.storage.stores.output import StoreOutput
from chkpt_channels.storage.stores.parts import LEAST_BYTES, Transfer
from chkpt_channels.storage.stores.upload import Client
from chkpt_channels.storage.urls import shown


class _Small:
    """A file that is written by one request, when it is published."""

    def __init__(self, client: Client, data: bytes) -> None:
        self._client, self._data, self._tag = client, data, ""

    def publish(self) -> None:
        """Give it its name. Raises OutputExistsError where another took it meanwhile."""
        self._tag = self._client.put(self._data, is_new=self._client.honours_conditions())

    def remove(self) -> None:
        """Remove it, where its name still shows it."""
        self._client.remove(self._tag)

    def transfer(self) -> Transfer:
        """What was sent."""
        guard = "store" if self._client.honours_conditions() else "looked"
        return Transfer("copied", 0, len(self._data), 0, 0, guard, 0)


class StoreFolderTarget:
    """The output of a model folder under a prefix, where nothing may be yet; by default beside a source there. A context: on exit
    everything unpublished is removed."""

    def __init__(self, model: ModelFolder, url: str, progress: Progress | None) -> None:
        self._model, self._url, self._progress = model, url, progress
        self._stack = contextlib.ExitStack()
        self._outputs: list[StoreOutput | _Small] = []
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def path(self) -> str:
        """The URL of the output, as reports show it."""
        return shown(self._url)

    def prepare(self, planned: PlannedModel) -> None:
        """Every file of the model goes with it, and nothing else."""

    @property
    def beside(self) -> tuple[str, ...]:
        """The files in it."""
        return tuple(self.path + name for name in self._model.files)

    def fill(self, planned: PlannedModel) -> None:
        """Check every file, and put it into the store; none has a name yet. Raises OutputExistsError where one is taken."""
        address = folder_address(self._url)
        self._client = Client(address, self._model.location)
        if self._client.listed(address.name):
            raise OutputExistsError("is not empty", file=self.path, hint="-o names another prefix")
        edits, documents = dict(planned.edited_files()), planned.edited_documents()
        stores = dict(self._checkpoints())
        for name in sorted(self._model.files, key=lambda name: (self._is_last(name), name in documents, name in edits)):
            client = self._client.at(address.name + name)
            if name in documents:
                self._outputs.append(_Small(client, documents[name]))
                continue
            source = stores[name].source if name in stores else self._stack.enter_context(self._model.source(name))
            if name not in edits and source.size < LEAST_BYTES:
                self._outputs.append(_Small(client, source.read(0, source.size)))
                source.check_unchanged()
                continue
            out = self._stack.enter_context(StoreOutput(self._url + name, source, force=False, client=self._client))
            if name in edits:
                checkpoint, plan = edits[name]
                output, splices = composed(checkpoint, plan, self.path + name)
                out.fill(output, passing_checks(checkpoint.checks(), splices), self._told())
            else:
                checks = stores[name].checks() if name in stores else ()
                out.fill(Composed(source, pieces(source.size, []), self.path + name), checks, self._told())
            source.check_unchanged()
            self._outputs.append(out)

    def _is_last(self, name: str) -> bool:
        """Whether a file says that there is a model: the index of shards."""
        return is_index(self._model.path / name)

    def _checkpoints(self) -> Iterator[tuple[str, Checkpoint]]:
        for part in self._model.parts:
            stores = [part.store] if isinstance(part.store, Checkpoint) else part.store.shards
            yield from zip(part.files, stores, strict=True)

    def _told(self) -> Callable[[int], None] | None:
        progress, total = self._progress, self._model.size
        return (lambda done: progress(done, total)) if progress else None

    def publish(self, planned: PlannedModel) -> Written:
        """Give the files their names, the index of shards the last. Where one fails, those before it are removed."""
        done: list[StoreOutput | _Small] = []
        try:
            for output in self._outputs:
                output.publish()
                done.append(output)
        except PostPublishError:
            raise
        except BaseException:
            for output in reversed(done):
                with contextlib.suppress(Exception):
                    output.remove()
            raise
        moved = reduce(_together, (output.transfer() for output in self._outputs))
        requests = moved.requests + (self._client.requests if self._client else 0)
        info = FileInfo(self.path, "folder", self._model.size)
        return Written(info, status_of(is_new=True, is_changed=planned.changed), transfer=moved._replace(requests=requests))

    def loading(self, group: str | None) -> Loading:
        """How the output is loaded, once it was fetched."""
        return self._model.loading(self._url.rstrip("/").rpartition("/")[2], group)


def beside_prefix(url: str, word: str) -> str:
    """The default output of a folder in a bucket: beside it."""
    return f"{url.rstrip('/')}_{word}/"


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
