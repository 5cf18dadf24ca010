"""The command line: parse, one library call, print, exit code. Reports go to stdout, messages and progress to stderr."""

from __future__ import annotations

import contextlib
import inspect as inspect_module
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from . import __version__

if TYPE_CHECKING:
    from types import FrameType

    from .errors import ChkptChannelsError
    from .flow import Progress
    from .manifests import Job
    from .options import Words

DEBUG = "CHKPT_CHANNELS_DEBUG"
TERMINATED = 143
INTERRUPTED = 130
BUG = 70

app = typer.Typer(
    name="chkpt-channels",
    help="Change the input channels of a trained checkpoint: RGB to gray, gray to RGB, RGB to N bands.",
    epilog="chkpt-channels convert resnet50.pth --to gray -o resnet50_gray.pth",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print the matrix too, and what else was considered.")]
To = Annotated[str | None, typer.Option(metavar="gray|rgb|bgr|rgba|N", help="The new input channels.", show_default=False)]

# the options of a conversion (options.Words), for every command that takes them: (annotation, default)
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "method": (
        Annotated[
            str | None,
            typer.Option(
                metavar="auto|sum|mean|luma|repeat|zero|broadcast|stack",
                help="How new channels are made; auto is exact where anything is.",
                show_default=False,
            ),
        ],
        None,
    ),
    "luma": (
        Annotated[str | None, typer.Option(metavar="bt709|bt601|a,b,c", help="Weights between gray and colours. [bt709]")],
        None,
    ),
    "select": (Annotated[str | None, typer.Option(metavar="0,2|R,B", help="The old channels that the new ones are.")], None),
    "bands": (
        Annotated[str | None, typer.Option(metavar="B,G,R,NIR=R", help="New channels, each with the old one it stands in for.")],
        None,
    ),
    "matrix": (
        Annotated[str | None, typer.Option(metavar="FILE", help="The matrix [old, new] itself: .npy, .csv or .json.")],
        None,
    ),
    "channel_order": (
        Annotated[str | None, typer.Option(metavar="rgb|bgr", help="The order of the side in colour. [rgb]", show_default=False)],
        None,
    ),
    "norm": (
        Annotated[
            str | None,
            typer.Option(metavar="imagenet|clip|half|none|auto", help="The pipeline that fed the network, folded into it."),
        ],
        None,
    ),
    "mean": (Annotated[str | None, typer.Option(metavar="a,b,c", help="The same in numbers, for images in 0..1.")], None),
    "std": (Annotated[str | None, typer.Option(metavar="a,b,c", help="Goes with --mean.")], None),
    "new_mean": (Annotated[str | None, typer.Option(metavar="m", help="The pipeline that will feed it.")], None),
    "new_std": (Annotated[str | None, typer.Option(metavar="s", help="Goes with --new-mean.")], None),
    "input_range": (
        Annotated[float | None, typer.Option(metavar="255", help="What white is in the new pipeline: 255 feeds raw bytes.")],
        None,
    ),
    "layers": (
        Annotated[
            list[str] | None, typer.Option("--layer", metavar="KEY", help="A first conv: key, suffix or glob; repeatable.")
        ],
        None,
    ),
    "layout": (
        Annotated[str | None, typer.Option(metavar="L", help="How the kernel lies: OIHW, HWIO, O(HWI), …")],
        None,
    ),
    "from_channels": (
        Annotated[
            int | None, typer.Option("--from", metavar="N", help="The input channels now, where the file leaves that open.")
        ],
        None,
    ),
    "inputs": (
        Annotated[list[str] | None, typer.Option("--input", metavar="NAME", help="A graph input that is an image; repeatable.")],
        None,
    ),
    "optimizer": (
        Annotated[
            str | None,
            typer.Option(
                metavar="reset|drop", help="What becomes of optimizer state kept for the kernels. [reset]", show_default=False
            ),
        ],
        None,
    ),
    "set_hparams": (
        Annotated[bool, typer.Option("--set-hparams", help="Set the channels in a training script's hyper-parameters too.")],
        False,
    ),
    "allow_nonfinite": (
        Annotated[bool, typer.Option("--allow-nonfinite", help="Pass NaN and infinity through where channels are copied.")],
        False,
    ),
    "strict": (
        Annotated[bool, typer.Option("--strict", help="Refuse pickles that name what torch's weights-only loading would not.")],
        False,
    ),
}


def _takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a conversion in the place of its parameter `words`."""

    def called(**given: Any) -> None:
        words = {name: given.pop(name) for name in _OPTIONS}
        command(**given, words={name: value for name, value in words.items() if value not in (None, False)})

    kind = inspect_module.Parameter.KEYWORD_ONLY
    shared = [inspect_module.Parameter(n, kind, default=d, annotation=a) for n, (a, d) in _OPTIONS.items()]
    parameters: list[inspect_module.Parameter] = []
    for own in inspect_module.signature(command, eval_str=True).parameters.values():
        parameters += shared if own.name == "words" else [own.replace(kind=kind)]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    called.__signature__ = inspect_module.Signature(parameters)  # type: ignore[attr-defined]
    return called


def _version(shown: bool) -> None:
    if shown:
        print(f"chkpt-channels {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command(epilog="Example: chkpt-channels convert resnet50.pth --to gray -o resnet50_gray.pth")
@_takes_options
def convert(
    src: Annotated[list[str] | None, typer.Argument(metavar="SRC", help="The checkpoint or model folder; - is stdin.")] = None,
    *,
    to: To = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DST", help="The result; - is standard output. [<stem>_<to><ext>]")
    ] = None,
    words: dict[str, Any],
    manifest: Annotated[str | None, typer.Option(metavar="FILE", help="The [[convert]] tables of a TOML file instead.")] = None,
    sidecar_files: Annotated[
        bool, typer.Option("--sidecars", help="Write the configurations beside SRC beside DST too.")
    ] = False,
    hard_link: Annotated[bool, typer.Option("--hard-link", help="In a folder, link the files that do not change.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Say whether DST is what converting gives now; write nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Print the matrix and the formula in use; write nothing.")] = False,
    report_to: Annotated[str | None, typer.Option("--report", metavar="FILE", help="Write the JSON report to FILE too.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write SRC with its first convs changed to other input channels."""
    from . import convert as library
    from . import text

    with (
        _session("convert", as_json=as_json, report_to=sys.stderr if output == "-" else sys.stdout) as session,
        session.file((src or [manifest or ""])[0]),
        session.saved(report_to, force=force),
    ):
        for job in _jobs(src or [], output, to, words, manifest):
            if check:
                with session.file(job.src):
                    _check_one(session, job, quiet=quiet)
                continue
            with session.file(job.src), _progress(quiet) as progress:
                report = library(
                    job.src, job.dst, job.to, force=force, dry_run=dry_run or explain, hard_link=hard_link,
                    with_sidecars=sidecar_files, progress=progress, **job.words,
                )  # fmt: skip
                lines = text.explained(report) if explain else text.converted(report, verbose=verbose)
                session.add(report.result(), [] if quiet else lines, [] if quiet or explain else text.notes(report))
    raise typer.Exit(session.exit_code)


def _jobs(src: list[str], output: str | None, to: str | None, words: dict[str, Any], manifest: str | None) -> list[Job]:
    """What is to be converted: the sources of the command line, or those of the manifest."""
    from . import manifests
    from .errors import UsageError

    if manifest is not None:
        if src or output or to or words:
            raise UsageError("--manifest says what to convert, to what and how: nothing else does", file=manifest)
        return manifests.read(manifest)
    if not src:
        raise UsageError("a source is needed", hint="chkpt-channels convert SRC --to gray, or --manifest FILE")
    if to is None and not any(rule in words for rule in ("select", "bands", "matrix")):
        raise UsageError("a target is needed", hint="--to gray, rgb, bgr, rgba or a number of channels")
    if len(src) > 1 and output:
        raise UsageError(f"{len(src)} sources cannot become one output")
    return [manifests.Job(name, output, to, cast("Words", words)) for name in src]


def _check_one(session: _Session, job: Job, *, quiet: bool) -> None:
    """Whether a derived file is what converting its source gives now."""
    from . import text
    from .flow import derived_path
    from .verification import is_current

    found = is_current(job.src, job.dst or derived_path(job.src, job.to, job.words), job.to, **job.words)
    session.add(found.result(), [] if quiet and found.ok else text.verified(found))
    if not found.ok:
        session.exit_code = max(session.exit_code, 1)


@app.command(epilog="Example: chkpt-channels inspect epoch_12.ckpt --all")
def inspect(
    src: Annotated[list[str], typer.Argument(metavar="SRC…", help="Checkpoints; - is standard input.")],
    everything: Annotated[bool, typer.Option("--all", help="List every tensor.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="List what was considered and not taken, and why.")] = False,
) -> None:
    """Say what a checkpoint holds: format, first convs with layout and evidence, tensors."""
    from . import inspect as library
    from . import text

    with _session("inspect", as_json=as_json) as session:
        for path in src:
            with session.file(path):
                inspection = library(path)
                lines = text.inspected(inspection, everything=everything, verbose=verbose)
                session.add(inspection.result(), [] if quiet else lines)
    raise typer.Exit(session.exit_code)


@app.command(epilog="Example: chkpt-channels verify resnet50.pth resnet50_gray.pth")
@_takes_options
def verify(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The checkpoint before.")],
    converted: Annotated[str, typer.Argument(metavar="CONVERTED", help="The checkpoint after.")],
    *,
    to: Annotated[
        str | None, typer.Option(metavar="gray|rgb|bgr|rgba|N", help="The target; without it the count is read off CONVERTED.")
    ] = None,
    words: dict[str, Any],
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="The report of the conversion (convert --report): its options hold.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether CONVERTED is the conversion of ORIGINAL: all else identical, the kernel right to the last bit."""
    from pathlib import Path

    from . import text
    from . import verify as library
    from .sidecars import words_of

    with _session("verify", as_json=as_json) as session, session.file(original):
        told = words_of(Path(report)) if report else {}
        found = library(original, converted, to or told.pop("to", None), **{**told, **words})
        session.add(found.result(), [] if quiet else text.verified(found))
        session.exit_code = max(session.exit_code, 0 if found.ok else 1)
    raise typer.Exit(session.exit_code)


@app.command(epilog="Example: chkpt-channels check models/ --expect gray")
def check(
    path: Annotated[list[str], typer.Argument(metavar="PATH…", help="Checkpoints, configurations or folders of them.")],
    expect: Annotated[str | None, typer.Option(metavar="gray|rgb|N", help="The input channels that each must have.")] = None,
    lfs_pointers: Annotated[
        str, typer.Option(metavar="skip|error", help="What becomes of Git-LFS pointers. [skip]", show_default=False)
    ] = "skip",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say whether kernels agree with every declared channel count, with an expectation, and with a hash in the name."""
    from . import check as library
    from . import text
    from .checking import files

    with _session("check", as_json=as_json) as session:
        for file in dict.fromkeys(str(file) for one in path for file in files(one)):
            with session.file(file):
                found = library(file, expect, lfs_pointers=lfs_pointers)
                session.add(found.result(), [] if quiet and found.ok else text.checked(found))
                session.exit_code = max(session.exit_code, 0 if found.ok else 1)
    raise typer.Exit(session.exit_code)


class _Session:
    """One command's output: collects results, prints text as it comes and JSON at the end, keeps the highest exit code."""

    def __init__(self, command: str, *, as_json: bool, report_to: Any) -> None:
        self.exit_code = 0
        self._command, self._json, self._to = command, as_json, report_to
        self._results: list[dict[str, Any]] = []

    def add(self, result: dict[str, Any], lines: Iterable[str], messages: Iterable[str] = ()) -> None:
        self._results.append(result)
        if not self._json:
            _print(lines, self._to)
            _print(messages, sys.stderr)

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[None]:
        """Report what goes wrong with one file, and go on."""
        from . import text
        from .errors import ChkptChannelsError
        from .report import failed

        try:
            yield
        except ChkptChannelsError as error:
            self.exit_code = max(self.exit_code, error.exit_code)
            self._results.append(failed(path, error))
            _print(_error_lines(error, self._command, text.candidate_rows), sys.stderr)
            if os.environ.get(DEBUG) == "1":
                raise

    @contextlib.contextmanager
    def saved(self, path: str | None, *, force: bool) -> Iterator[None]:
        """Write the JSON report to a file too, when the work is done. Raises before it where the file cannot be written."""
        if path is None:
            yield
            return
        from pathlib import Path

        from .atomic import Output
        from .errors import UsageError

        if not path.endswith(".json"):
            raise UsageError("--report is named like a JSON file", file=path, hint=f"--report {path}.json")
        with Output(Path(path), None, force=force) as out:
            yield
            os.write(out.fd, (self._document() + "\n").encode())
            os.fsync(out.fd)
            out.publish()

    def close(self) -> None:
        if self._json:
            print(self._document(), file=self._to)

    def _document(self) -> str:
        from .report import document

        return json.dumps(document(self._command, self.exit_code, self._results, __version__), indent=2)


@contextlib.contextmanager
def _session(command: str, *, as_json: bool, report_to: Any = None) -> Iterator[_Session]:
    session = _Session(command, as_json=as_json, report_to=report_to or sys.stdout)
    yield session
    session.close()


def _error_lines(error: ChkptChannelsError, command: str, rows: Callable[..., Iterable[str]]) -> Iterator[str]:
    """The one-line message, at most ten candidates, and what to try."""
    yield f"{error}; nothing was written" if command == "convert" else str(error)
    yield from rows(error.candidates)
    if error.hint:
        yield f"try: {error.hint}"


def _print(lines: Iterable[str], stream: Any) -> None:
    for line in lines:
        try:
            print(line, file=stream)
        except UnicodeEncodeError:
            print(line.encode("ascii", "backslashreplace").decode(), file=stream)
        except (OSError, ValueError):  # a closed stderr must not change the exit code
            if stream is sys.stdout:
                raise
            return


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr for what takes longer than a second; nothing where stderr is no terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from ._bar import Bar

    with Bar() as bar:
        yield bar.update


class _Terminated(BaseException):
    """SIGTERM, raised so that files are put back in order."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments), prog_name="chkpt-channels", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except _Terminated:
        return TERMINATED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our report went away: nothing more to say, and no second message at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _stopped(error)


def _stopped(error: Exception) -> int:
    """Exit 2 for what the parser refuses; 70 for everything that should not have happened."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if show and isinstance(code, int):
        show()
        return code
    if os.environ.get(DEBUG) == "1":
        raise error
    own = getattr(error, "exit_code", BUG)
    print(f"chkpt-channels: a bug: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"try: {DEBUG}=1 shows where; please report it", file=sys.stderr)
    return own if isinstance(own, int) else BUG
