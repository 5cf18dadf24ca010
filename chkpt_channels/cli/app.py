"""The command line: parse, one library call, print, exit code. Reports go to stdout, messages and progress to stderr."""

# No `from __future__ import annotations`: the rows of the parameters would be text.

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Annotated, Any

from chkpt_channels.cli import params
from chkpt_channels.cli.commands import COMPLETION, Command, read
from chkpt_channels.cli.session import DEBUG, report_error, session, watching_stdout
from chkpt_channels.core import interrupts
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import ConvertOptions

INTERRUPTED = 130
NO_ROOM = 5
BUG = 70


def convert(
    *,
    src: Annotated[list[str] | None, params.SOURCES] = None,
    to: Annotated[str | None, params.TO] = None,
    output: Annotated[str | None, params.OUTPUT] = None,
    options: ConvertOptions,
    output_dir: Annotated[str | None, params.OUTPUT_DIR] = None,
    workers: Annotated[int, params.JOBS] = 1,
    manifest: Annotated[str | None, params.MANIFEST] = None,
    remembering: params.Remembering,
    on: Annotated[str | None, params.ON] = None,
    writing: params.Writing,
    check: Annotated[bool, params.CHECK_ONLY] = False,
    dry_run: Annotated[bool, params.DRY_RUN] = False,
    explain: Annotated[bool, params.EXPLAIN] = False,
    report_to: Annotated[str | None, params.REPORT_TO] = None,
    reporting: params.Reporting,
    verbose: Annotated[bool, params.VERBOSE] = False,
) -> int:
    """Write SRC with its first convs changed to other input channels."""
    from chkpt_channels.cli import jobs

    sources = src or []
    with (
        session("convert", **reporting, report_to=sys.stderr if output == "-" else sys.stdout) as console,
        console.file((sources or [manifest or ""])[0]),
        console.saving_report(report_to, force=writing.get("force", False)),
    ):
        rows = jobs.all_of(sources, manifest, output, output_dir, to, options, remembering.get("shard"))
        settings = {**remembering, **writing, "workers": workers, "dry_run": dry_run or explain or check}
        jobs.run(console, rows, on, settings, explain=explain, verbose=verbose, check=check)
    return console.exit_code


def inspect(
    *,
    src: Annotated[list[str], Option("", metavar="SRC…", help="Checkpoints; - is standard input.")],
    everything: Annotated[bool, params.EVERYTHING] = False,
    reporting: params.Reporting,
    verbose: Annotated[bool, params.REJECTED] = False,
) -> int:
    """Show what a checkpoint holds: format, first convs with layout and evidence, tensors."""
    from chkpt_channels import inspect as library
    from chkpt_channels.cli import text

    with session("inspect", **reporting) as console:
        for path in src:
            with console.file(path):
                inspection = library(path)
                console.add(inspection.result(), text.inspection_lines(inspection, everything=everything, verbose=verbose))
    return console.exit_code


def verify(
    *,
    original: Annotated[str, Option("", metavar="ORIGINAL", help="The checkpoint before.")],
    converted: Annotated[str, Option("", metavar="CONVERTED", help="The checkpoint after.")],
    to: Annotated[str | None, params.TARGET] = None,
    options: ConvertOptions,
    report: Annotated[str | None, params.REPORT_FROM] = None,
    reporting: params.Reporting,
) -> int:
    """Verify that CONVERTED is the conversion of ORIGINAL: all else identical, the kernel right to the last bit."""
    from pathlib import Path

    from chkpt_channels import verify as library
    from chkpt_channels.cli import text
    from chkpt_channels.folders.config_files import options_in_report

    with session("verify", **reporting) as console, console.file(original):
        reported = options_in_report(Path(report)) if report else {}
        result = library(original, converted, to or reported.pop("to", None), **(reported | dict(options)))
        console.add(result.result(), text.verification_lines(result), ok=result.ok)
    return console.exit_code


def check(
    *,
    path: Annotated[list[str], Option("", metavar="PATH…", help="Checkpoints, configurations or folders of them.")],
    expect: Annotated[str | None, params.EXPECT] = None,
    lfs_pointers: Annotated[str, params.LFS_POINTERS] = "skip",
    reporting: params.Reporting,
) -> int:
    """Check kernels against every declared channel count, an expectation, and a hash in the name."""
    from chkpt_channels.api.check import check_is_path, models
    from chkpt_channels.api.fleet.many import checks
    from chkpt_channels.cli import text
    from chkpt_channels.storage.opening import mirrored, named

    with session("check", **reporting) as console, ExitStack() as stack:
        homes: list[Any] = []
        for given in path:
            with console.file(given):
                check_is_path(given)
                homes.append(stack.enter_context(mirrored(given)))
        files = models(homes)
        for file, answer in zip(files, checks(files, expect, lfs_pointers), strict=True):
            with console.file(named(file)):
                result = answer.get()
                console.add(result.result(), text.check_lines(result), ok=result.ok, even_quiet=not result.ok)
        if not files and homes and not console.is_quiet:
            console.note(f"no weights are in {', '.join(path)}: nothing was checked")
        if len(files) > 1:
            console.summarize()
    return console.exit_code


def plot(
    *,
    before: Annotated[str, Option("", metavar="A", help="A checkpoint or a model folder.")],
    after: Annotated[str | None, Option("", metavar="B", help="Its conversion, or another model, beside it.")] = None,
    output: Annotated[str, params.PICTURE] = "kernels.png",
    force: Annotated[bool, params.FORCE] = False,
    bands: Annotated[str | None, params.BANDS] = None,
    layer: Annotated[list[str] | None, params.LAYERS] = None,
    layout: Annotated[str | None, params.LAYOUT] = None,
    from_channels: Annotated[int | None, params.FROM] = None,
) -> int:
    """Draw the filters of the first conv, before and after, with their norms and the energy of each channel."""
    from chkpt_channels import plot as library

    with session("plot") as console, console.file(before):
        path = library(
            before, after, output, force=force, bands=bands, layers=layer or (), layout=layout, from_channels=from_channels
        )
        console.add_lines([str(path)])
    return console.exit_code


def status(
    *,
    ledger: Annotated[list[str], Option("", metavar="LEDGER…", help="Ledgers of convert --ledger.")],
    reporting: params.Reporting,
) -> int:
    """Sum up ledgers: how many rows are done, failed and left."""
    from chkpt_channels.cli import jobs

    with session("status", **reporting) as console, console.file(ledger[0]):
        jobs.sum_up(console, ledger)
    return console.exit_code


def schema() -> int:
    """Print the JSON Schema of the reports."""
    from importlib.resources import files

    print(files("chkpt_channels").joinpath("schema.json").read_text(encoding="utf-8"), end="")
    return 0


COMMANDS = {
    command.name: command
    for command in (
        Command(convert, "chkpt-channels convert resnet50.pth --to gray -o resnet50_gray.pth"),
        Command(inspect, "chkpt-channels inspect epoch_12.ckpt --all"),
        Command(verify, "chkpt-channels verify resnet50.pth resnet50_gray.pth"),
        Command(check, "chkpt-channels check models/ --expect gray"),
        Command(plot, "chkpt-channels plot resnet50.pth resnet50_gray.pth -o kernels.png"),
        Command(status, "chkpt-channels status zoo.jsonl"),
        Command(schema, "chkpt-channels schema > report.schema.json"),
    )
}


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        with watching_stdout(), interrupts.listening():
            return _run(arguments)
    except interrupts.Interrupted as stopped:  # the command had ended, its handlers were still there
        return stopped.exit_code


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        code = _called(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except interrupts.Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        print("error: there is too little memory; nothing was written", file=sys.stderr)
        return NO_ROOM
    except Exception as error:
        return interrupts.exit_code() or _stopped(error)


def _called(arguments: Sequence[str]) -> int:
    command = COMMANDS.get(arguments[0]) if arguments else None
    values = read(arguments[1:], command) if command and COMPLETION not in os.environ else None
    if command and values is not None:
        return command(values)
    from chkpt_channels.cli import typer_app

    return typer_app.main(arguments, COMMANDS)


def _stopped(error: Exception) -> int:
    """Exit 2 for what the parser refuses, 5 where standard output fails; 70 for everything that should not have happened."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):  # of standard output: a file's is reported with the file
        with suppress(OSError):  # standard error may have no room either
            report_error(error)
        return code
    if os.environ.get(DEBUG) == "1":
        raise error
    print(f"error: a bug in chkpt-channels: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"try: {DEBUG}=1 shows where; report it with what is printed then", file=sys.stderr)
    return BUG
