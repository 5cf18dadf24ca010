"""What the page's worker asks of the package: a dropped file, read by ranges; what is found in it; its conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from js import FileReaderSync
from pyodide.ffi import JsException, to_js

from chkpt_channels import ChkptChannelsError, Report, inspect, patch
from chkpt_channels.api.display import words
from chkpt_channels.api.report import FileInfo
from chkpt_channels.cli.conversion import closing_lines, conversion_lines, warning_lines
from chkpt_channels.cli.session import error_lines
from chkpt_channels.cli.text import candidate_rows, inspection_lines
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.storage.source import RandomAccess, RangeSource
from chkpt_channels.storage.splice import Composed

DRAWN = ("F32", "F16", "BF16", "F64")
MOST_DRAWN_BYTES = 16 << 20


class Dropped:
    """A Blob, read by ranges."""

    def __init__(self, blob: Any) -> None:
        self.name, self.size, self._blob = str(blob.name), int(blob.size), blob
        self._reader = FileReaderSync.new()

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """As `RandomAccess` says. The browser refuses to read a file that was changed since it was dropped."""
        try:
            read = self._reader.readAsArrayBuffer(self._blob.slice(offset, offset + len(buffer)))
        except JsException as error:
            raise OSError(None, error.message) from error
        read.assign_to(buffer[: read.byteLength])
        return int(read.byteLength)


def inspected(blob: Any) -> dict[str, Any]:
    """What `chkpt-channels inspect` says of it."""
    return _told(blob.name, lambda: {"lines": list(inspection_lines(inspect(Dropped(blob))))})


def converted(blob: Any, options: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
    """What `chkpt-channels convert` says of it, and the pieces of the output: (start, size) of the file, or new bytes."""
    done = 0

    def add(more: int, total: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    def work() -> dict[str, Any]:
        source = Dropped(blob)
        made = patch(source, progress=add, **options)
        status = "converted" if made.report.status == "would_convert" else made.report.status
        report = made.report._replace(status=status, output=FileInfo(made.name, made.report.input.format, made.size))
        lines = [*conversion_lines(report), *warning_lines(report), *closing_lines(report._replace(load_lines=()))]
        output = Composed(RangeSource(source), made.pieces, made.name)
        return {
            "lines": lines,
            "load": list(report.load_lines),
            "name": made.name,
            "size": made.size,
            "pieces": [(p.start, p.size, None if p.data is None else to_js(p.data)) for p in made.pieces],
            "kernels": [kernel for opened in (source, output) for kernel in _kernels(opened, report)],
        }

    return _told(blob.name, work)


def _told(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` makes, or the lines of its refusal."""
    try:
        return work()
    except ChkptChannelsError as error:
        rows = [(c.key, words.shape(c.shape), c.why_not) for c in error.candidates]
        return {"refused": list(error_lines(error, "convert", candidate_rows)), "candidates": rows}
    except ImportError as error:
        what = f"error: {name}: needs {error.name}, which this page does not have; nothing was written"
        return {"refused": [what, "try: the command line, which needs no page"], "missing": error.name, "candidates": []}
    except MemoryError:
        return {"refused": [f"error: {name}: needs more memory than there is; nothing was written"], "candidates": []}


def _kernels(opened: RandomAccess, report: Report) -> Iterator[dict[str, Any]]:
    """The first kernel that changes, as it is in one file, to be drawn: where its numbers and its axes are plain."""
    kernel = next((kernel.conv for kernel in report.kernels if kernel.conv.tensor.name in report.changed), None)
    if kernel is None or kernel.layout is None or kernel.layout.folded:
        return
    with open_model(opened) as model:
        store = model.parts[0].store
        tensor = store.tensors[kernel.tensor.name]
        if tensor.dtype.name in DRAWN and tensor.size <= MOST_DRAWN_BYTES:
            data = to_js(b"".join(store.chunks(tensor.name)))
            axes = "".join(kernel.layout.axes)
            yield {"name": tensor.name, "shape": list(tensor.shape), "axes": axes, "dtype": tensor.dtype.name, "data": data}
