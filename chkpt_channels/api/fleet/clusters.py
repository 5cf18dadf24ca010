"""Executors of clusters, by their address: --on dask://HOST:PORT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.fleet.work import first_line
from chkpt_channels.core.errors import FileSystemError, PostPublishError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Executor


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
        executor = client.get_executor()
        executor.check = lambda: _check(client)
        yield executor


def _check(client: Any) -> None:
    """Raise PostPublishError where the scheduler is gone: Dask's executor would never answer."""
    if client.status in ("closing", "closed"):
        raise PostPublishError("its scheduler is gone, and rows are left", hint="--resume, which does what is left")
