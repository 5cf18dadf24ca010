"""The command line: parse, one library call, print, exit code. Reports go to stdout, messages and progress to stderr."""

# No `from __future__ import annotations`: the rows of the parameters would be text.

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Annotated, Any

from chkpt_channels.cli import params, pictures
from chkpt_channels.cli.commands import COMPLETION, Command, read
from chkpt_channels.cli.session import DEBUG, progress, report_error, session, watching_stdout
from chkpt_channels.core import interrupts
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import ConvertOptions

INTERRUPTED = 130
NO_ROOM = 5
BUG = 70


def convert(
    src: params.Sources = None,
    *,
    to: params.To = None,
    output: params.Output = None,
    options: ConvertOptions,
    output_dir: params.OutputDir = None,
    jobs: params.Jobs = 1,
    manifest: params.Manifest = None,
    ledger: params.Ledger = None,
    resume: params.Resume = False,
    shard: params.Shard = None,
    on: params.On = None,
    sidecar_files: params.Sidecars = False,
    hard_link: params.HardLink = False,
    sha256: params.Sha256 = False,
    hash_name: params.HashName = False,
    state_dict: params.StateDict = None,
    force: params.Force = False,
    check: params.CheckOnly = False,
    dry_run: params.DryRun = False,
    explain: params.Explain = False,
    report_to: params.ReportTo = None,
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
    verbose: params.Verbose = False,
) -> int:
    """Write SRC with its first convs changed to other input channels."""
    from chkpt_channels.api import fleet
    from chkpt_channels.cli import conversion
    from chkpt_channels.cli import jobs as listing

    sources = src or []
    with (
        session("convert", output_format, as_json=as_json, report_to=sys.stderr if output == "-" else sys.stdout) as console,
        console.file((sources or [manifest or ""])[0]),
        console.saving_report(report_to, force=force),
    ):
        all_jobs = listing.all_of(sources, manifest, output, output_dir, to, options, shard)
        # of many, one line each: the details are a -v away
        console.is_brief = len(all_jobs) > 1 and not verbose
        width = max(len(job.src) for job in all_jobs) if len(all_jobs) > 1 and not (explain or verbose or check) else 0
        with progress(quiet) as bar, fleet.executor_on(on) as executor:
            outcomes = fleet.run(
                () if check else all_jobs,
                executor,
                workers=jobs,
                ledger=ledger,
                resume=resume,
                shard=shard,
                progress=bar,
                force=force,
                dry_run=dry_run or explain or check,
                hard_link=hard_link,
                with_sidecars=sidecar_files,
                sha256=sha256,
                hash_name=hash_name,
                state_dict=state_dict,
            )
            for outcome in outcomes:
                with console.file(outcome.job.src, outcome.job.stated):
                    report = outcome.get()
                    parts = conversion.parts(report, outcome.job.src, width, explain=explain, verbose=verbose)
                    console.add(report.result(), *([()] if quiet else parts))
        for job in all_jobs if check else ():
            with console.file(job.src, job.stated):
                listing.check(console, job, quiet=quiet)
        if width and not quiet:
            console.summarize()
    return console.exit_code


def inspect(
    src: Annotated[list[str], Option("", metavar="SRC…", help="Checkpoints; - is standard input.")],
    everything: Annotated[bool, Option("--all", help="List every tensor.", doc="lists every tensor")] = False,
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
    verbose: Annotated[
        bool,
        Option(
            "--verbose",
            short="-v",
            help="List the tensors that were rejected as first convs, and why.",
            doc="lists the tensors that were rejected as first convs, with the reasons",
        ),
    ] = False,
) -> int:
    """Show what a checkpoint holds: format, first convs with layout and evidence, tensors."""
    from chkpt_channels import inspect as library
    from chkpt_channels.cli import text

    with session("inspect", output_format, as_json=as_json) as console:
        for path in src:
            with console.file(path):
                inspection = library(path)
                lines = text.inspection_lines(inspection, everything=everything, verbose=verbose)
                console.add(inspection.result(), [] if quiet else lines)
    return console.exit_code


def verify(
    original: Annotated[str, Option("", metavar="ORIGINAL", help="The checkpoint before.")],
    converted: Annotated[str, Option("", metavar="CONVERTED", help="The checkpoint after.")],
    *,
    to: Annotated[
        str | None,
        Option(
            "--to",
            metavar="gray|rgb|bgr|rgba|N",
            help="The target; without it the count is read off CONVERTED.",
            doc="the target of the conversion; without it the number of channels is read off CONVERTED",
        ),
    ] = None,
    options: ConvertOptions,
    report: Annotated[
        str | None,
        Option(
            "--report",
            metavar="FILE",
            help="Read the options from the report of the conversion (convert --report).",
            doc="reads the options from what `convert --report FILE` wrote; those that are given here take precedence",
        ),
    ] = None,
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
) -> int:
    """Verify that CONVERTED is the conversion of ORIGINAL: all else identical, the kernel right to the last bit."""
    from pathlib import Path

    from chkpt_channels import verify as library
    from chkpt_channels.cli import text
    from chkpt_channels.folders.config_files import options_in_report

    with session("verify", output_format, as_json=as_json) as console, console.file(original):
        reported = options_in_report(Path(report)) if report else {}
        result = library(original, converted, to or reported.pop("to", None), **(reported | dict(options)))
        console.add(result.result(), [] if quiet else text.verification_lines(result))
        console.exit_code = max(console.exit_code, 0 if result.ok else 1)
    return console.exit_code


def check(
    path: Annotated[list[str], Option("", metavar="PATH…", help="Checkpoints, configurations or folders of them.")],
    expect: params.Expect = None,
    lfs_pointers: Annotated[
        str,
        Option(
            "--lfs-pointers",
            known=("skip", "error"),
            help="Skip or refuse Git-LFS pointers. [skip]",
            doc="Git-LFS pointers are skipped, with a line that says so (`skip`), or are damaged input, exit 3 (`error`)",
        ),
    ] = "skip",
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
) -> int:
    """Check kernels against every declared channel count, an expectation, and a hash in the name."""
    from chkpt_channels.api.check import models
    from chkpt_channels.api.fleet.many import checks
    from chkpt_channels.cli import text
    from chkpt_channels.storage.opening import mirrored, named

    with session("check", output_format, as_json=as_json) as console, ExitStack() as stack:
        homes: list[Any] = []
        for given in path:
            with console.file(given):
                homes.append(stack.enter_context(mirrored(given)))
        files = models(homes)
        for file, answer in zip(files, checks(files, expect, lfs_pointers), strict=True):
            with console.file(named(file)):
                result = answer.get()
                console.add(result.result(), [] if quiet and result.ok else text.check_lines(result))
                console.exit_code = max(console.exit_code, 0 if result.ok else 1)
        if not files and homes and not quiet:
            console.note(f"no weights are in {', '.join(path)}: nothing was checked")
        if len(files) > 1 and not quiet:
            console.summarize()
    return console.exit_code


def status(
    ledger: Annotated[list[str], Option("", metavar="LEDGER…", help="Ledgers of convert --ledger.")],
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
) -> int:
    """Sum up ledgers: how many rows are done, failed and left."""
    from chkpt_channels.cli import jobs as listing

    with session("status", output_format, as_json=as_json) as console, console.file(ledger[0]):
        listing.sum_up(console, ledger, quiet=quiet)
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
        Command(pictures.plot, "chkpt-channels plot resnet50.pth resnet50_gray.pth -o kernels.png"),
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
