"""Executors of clusters, by their address: --on dask://HOST:PORT."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from chkpt_channels.api.fleet.work import first_line
from chkpt_channels.core.errors import FileSystemError, PostPublishError, UnsupportedError, UsageError


class _Watched(Executor):
    """Dask's executor, which never answers a call whose scheduler is gone: `check` sees that."""

    def __init__(self, client: Any) -> None:
        self._client, self._inner = client, client.get_executor()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        submitted: Future[Any] = self._inner.submit(fn, *args, **kwargs)
        return submitted

    def check(self) -> None:
        """Raise PostPublishError where the scheduler is gone."""
        if self._client.status in ("closing", "closed"):
            raise PostPublishError("its scheduler is gone, and rows are left", hint="--resume, which does what is left")


@contextmanager
def executor_on(address: str | None) -> Iterator[Executor | None]:
    """The executor of the cluster whose scheduler has this address; None for none. The workers live on when the run ends, and
    finish the row that is in their hands. Raises UsageError, UnsupportedError where the library is missing, FileSystemError where
    nobody answers."""
    if address is None:
        yield None
        return
    scheme, separator, place = address.partition("://")
    if scheme != "dask" or not separator or not place.rpartition(":")[2].isdigit():
        raise UsageError(f"--on takes dask://HOST:PORT, not {address[:100]!r}", hint="--on dask://127.0.0.1:8786")
    try:
        from distributed import Client
    except ImportError:
        raise UnsupportedError("--on dask://… needs Dask", hint="pip install 'chkpt-channels[dask]'") from None
    try:
        client = Client(f"tcp://{place}", set_as_default=False)
    except (OSError, ValueError) as error:  # no answer in distributed's comm.timeouts.connect, 30 s; no such port
        raise FileSystemError(f"does not answer: {first_line(error)}", file=address) from error
    with client:
        yield _Watched(client)
