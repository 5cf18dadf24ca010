"""One command's output: reports on stdout as they come, messages on stderr, JSON for machines, the highest exit code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from chkpt_channels import __version__
from chkpt_channels.cli import style
from chkpt_channels.core import errors, interrupts

if TYPE_CHECKING:
    from chkpt_channels.api.output.naming import Progress

DEBUG = "CHKPT_CHANNELS_DEBUG"
_STATUSES = {"current": "up to date", "agrees": "agree", "disagrees": "disagree"}


class Session:
    """One command's output: collects results, prints text as it comes and JSON at the end, keeps the highest exit code."""

    def __init__(self, command: str, output_format: str, report_to: Any, *, quiet: bool = False) -> None:
        self.exit_code = 0
        self.is_brief = False
        """Whether a file gets one line."""
        self.is_quiet = quiet
        self._command, self._format, self._to = command, output_format, report_to
        self._results: list[dict[str, Any]] = []

    def add(
        self,
        result: dict[str, Any],
        lines: Iterable[str],
        messages: Iterable[str] = (),
        closing: Iterable[str] = (),
        *,
        ok: bool = True,
        even_quiet: bool = False,
    ) -> None:
        """One file's result, the lines about it, messages for people, and the lines that come last. Where it is not `ok`, the
        exit code is 1 at least."""
        self._keep(result)
        self.exit_code = max(self.exit_code, 0 if ok else 1)
        if self._format == "human" and (even_quiet or not self.is_quiet):
            _print(lines, self._to)
            _print(messages, sys.stderr)
            _print(closing, self._to)

    def add_lines(self, lines: Iterable[str]) -> None:
        """Lines about all files together."""
        if self._format == "human" and not self.is_quiet:
            _print(lines, self._to)

    def note(self, message: str) -> None:
        """Tell people what no result says."""

        _print([f"warning: {errors.printable(message, errors.LONGEST_MESSAGE)}"], sys.stderr)

    def summarize(self) -> None:
        """One line that counts the results of many files, and names the exit code where it is not 0."""
        statuses = Counter(_STATUSES.get(result["status"], str(result["status"]).replace("_", " ")) for result in self._results)
        code = f" (exit {self.exit_code})" if self.exit_code else ""
        self.add_lines([", ".join(f"{number} {status}" for status, number in statuses.items()) + code])

    def _keep(self, result: dict[str, Any]) -> None:
        self._results.append(result)
        if self._format == "github":
            from chkpt_channels.cli import text

            _print(text.annotation_lines(result), self._to)
        if self._format == "jsonl":
            _print([json.dumps(result)], self._to)
            if self._to is not None:
                self._to.flush()

    @contextlib.contextmanager
    def file(self, path: str, stated: str = "") -> Iterator[None]:
        """Report the error of one file, and continue with the next; where it is none of a file, with where it was `stated`."""

        try:
            yield
        except (errors.ChkptChannelsError, MemoryError, ImportError) as error:
            interrupts.check()  # trap: numpy turns an interrupt during its import into an ImportError
            known = error if isinstance(error, errors.ChkptChannelsError) else _as_system_error(error, path)
            known.file = known.file or stated
            from chkpt_channels.storage.urls import shown

            self._report_error(shown(path), known)
            if os.environ.get(DEBUG) == "1":
                raise

    def _report_error(self, path: str, error: errors.ChkptChannelsError) -> None:
        from chkpt_channels.api.report import failure_record
        from chkpt_channels.cli import guesses, text

        if error.file == path and not error.hint and not os.path.lexists(path):
            error.hint = guesses.fetched(path)
        elif error.hint.startswith("--leave-out") and os.path.isdir(path):
            error.hint += guesses.each_a_model(path)
        if isinstance(error.__cause__, BrokenPipeError):  # of a result on standard output: nobody is there to be told
            raise interrupts.Interrupted(signal.SIGPIPE)
        if self._command not in ("convert", "verify"):  # which alone leave files out
            error.hint = "   or   ".join(part for part in error.hint.split("   or   ") if not part.startswith("--leave-out"))
        self.exit_code = max(self.exit_code, error.exit_code)
        self._keep(failure_record(path, error))
        rows = (lambda _: ()) if self.is_brief else text.candidate_rows
        _print(error_lines(error, self._command, rows), sys.stderr)

    @contextlib.contextmanager
    def saving_report(self, path: str | None, *, force: bool) -> Iterator[None]:
        """Write the JSON report to a file too, when the work is done. Raises before it where the file cannot be written."""
        if path is None:
            yield
            return
        from pathlib import Path

        from chkpt_channels.api.output.publish import write_bytes
        from chkpt_channels.storage.atomic import Output

        if not path.endswith(".json"):
            raise errors.UsageError("--report must name a .json file", file=path, hint=f"--report {path}.json")
        with Output(Path(path), None, force=force) as out:
            yield
            try:
                write_bytes(out.fd, f"{self._document()}\n".encode(), out.location)
                out.publish()
            except errors.FileSystemError as error:  # the outputs are there, whatever becomes of the report
                raise errors.PostPublishError(error.what, file=path, hint=error.hint) from error

    def close(self) -> None:
        """Print the one JSON object, where that is wanted."""
        if self._format == "json":
            print(self._document(), file=self._to)

    def _document(self) -> str:
        from chkpt_channels.api.report import document

        return json.dumps(document(self._command, self.exit_code, self._results, __version__), indent=2)


@contextlib.contextmanager
def session(
    command: str, output_format: str | None = None, *, as_json: bool = False, quiet: bool = False, report_to: Any = None
) -> Iterator[Session]:
    """A command's output in a format, for as long as it works."""
    if isinstance(sys.stdout, Stdout):
        sys.stdout.ends_work = command != "convert"  # what converts is done, and its exit code is its own
    opened = Session(command, output_format or ("json" if as_json else "human"), report_to or sys.stdout, quiet=quiet)
    yield opened
    opened.close()


class Stdout:
    """Standard output whose failures have exit codes: 141 where its reader went away (a pipe to head), 5 where it has no room.
    Unless `ends_work` a reader that went away ends nothing: the rest of the report is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.failed = stream, False
        self.ends_work = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Raises Interrupted, PostPublishError."""
        with self._failing():
            if not self.failed:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError as error:
                    self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Raises Interrupted, PostPublishError."""
        with self._failing():
            if not self.failed:
                self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = True  # told once: what follows is dropped
            if not isinstance(error, BrokenPipeError):
                raise errors.PostPublishError(f"cannot be written: {errors.reason(error)}", file="standard output") from error
            if self.ends_work:
                raise interrupts.Interrupted(signal.SIGPIPE) from None


@contextlib.contextmanager
def watching_stdout() -> Iterator[None]:
    """`Stdout` in the place of standard output, and what is left in it written at the end."""
    stdout = sys.stdout
    if stdout is None:  # started with it closed
        yield
        return
    watched = Stdout(stdout)
    sys.stdout = cast("TextIO", watched)
    try:
        yield
    finally:
        sys.stdout = stdout
        if watched.failed:  # or Python reports it once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _as_system_error(error: MemoryError | ImportError, path: str) -> errors.FileSystemError:
    """The error for missing memory, or for a library that cannot be imported: often for the same reason."""

    if isinstance(error, MemoryError):
        return errors.FileSystemError("needs more memory than there is", file=path)
    if (error.name or "").startswith("chkpt_channels"):
        raise error
    reason = str(error.__cause__ or error).strip().splitlines() or ["no reason is given"]
    message = f"a library cannot be imported: {reason[-1][:200]}"
    return errors.FileSystemError(message, file=path, hint="free memory, or reinstall chkpt-channels")


def report_error(error: Exception) -> None:
    """Print an error of no file."""

    _print(error_lines(error, "", tuple) if isinstance(error, errors.ChkptChannelsError) else [f"error: {error}"], sys.stderr)


def error_lines(error: errors.ChkptChannelsError, command: str, rows: Callable[..., Iterable[str]]) -> Iterator[str]:
    """The one-line message, at most ten candidates, and what to try."""

    ending = "; nothing was written" if command == "convert" and not isinstance(error, errors.PostPublishError) else ""
    yield f"error: {error}{ending}"
    yield from rows(error.candidates)
    if error.hint:
        yield f"try: {errors.printable(error.hint, errors.LONGEST_MESSAGE)}"


def _print(lines: Iterable[str], stream: Any) -> None:
    for line in lines:
        try:
            print(style.colored(line, stream), file=stream)
        except UnicodeEncodeError:
            print(line.encode("ascii", "backslashreplace").decode(), file=stream)
        except (OSError, ValueError):  # a closed stderr must not change the exit code
            if stream is sys.stdout:
                raise
            return


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr for what takes longer than a second; nothing where stderr is no terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from chkpt_channels.cli.progress import Bar

    with Bar() as bar:
        yield bar.update
