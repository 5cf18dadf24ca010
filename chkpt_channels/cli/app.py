"""The command line: parse, one library call, print, exit code. Reports go to stdout, messages and progress to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from chkpt_channels import __version__
from chkpt_channels.cli import params, pictures
from chkpt_channels.cli.session import DEBUG, Session, progress, session, watching_stdout
from chkpt_channels.core import interrupts
from chkpt_channels.transform.option_table import ConvertOptions

if TYPE_CHECKING:
    from chkpt_channels.api.manifest import Job

INTERRUPTED = 130
NO_ROOM = 5
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


def _version(console: bool) -> None:
    if console:
        print(f"chkpt-channels {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command(epilog="Example: chkpt-channels convert resnet50.pth --to gray -o resnet50_gray.pth")
@params.takes_options
def convert(
    src: params.Sources = None,
    *,
    to: params.To = None,
    output: params.Output = None,
    options: ConvertOptions,
    output_dir: params.OutputDir = None,
    jobs: params.Jobs = 1,
    manifest: params.Manifest = None,
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
) -> None:
    """Write SRC with its first convs changed to other input channels."""
    from chkpt_channels.api import batch
    from chkpt_channels.api.output.publish import Settings
    from chkpt_channels.cli import conversion

    sources = src or []
    with (
        session("convert", output_format, as_json=as_json, report_to=sys.stderr if output == "-" else sys.stdout) as console,
        console.file((sources or [manifest or ""])[0]),
        console.saving_report(report_to, force=force),
    ):
        all_jobs = _jobs(sources, output, to, options, manifest)
        all_jobs = batch.with_output_dir(output_dir, all_jobs) if output_dir is not None else all_jobs
        for job in all_jobs if check else ():
            with console.file(job.src):
                _check_one(console, job, quiet=quiet)
        settings = Settings(
            force=force,
            dry_run=dry_run or explain,
            hard_link=hard_link,
            with_sidecars=sidecar_files,
            sha256=sha256,
            hash_name=hash_name,
            state_dict=state_dict,
        )
        # of many, one line each: the details are a -v away
        width = max(len(job.src) for job in all_jobs) if len(all_jobs) > 1 and not (explain or verbose or check) else 0
        with progress(quiet) as bar:
            for job, outcome in () if check else zip(all_jobs, batch.run(all_jobs, settings, jobs, bar), strict=True):
                with console.file(job.src):
                    report = outcome()
                    parts = conversion.parts(report, job.src, width, explain=explain, verbose=verbose)
                    console.add(report.result(), *([()] if quiet else parts))
        if width and not quiet:
            console.summarize()
    raise typer.Exit(console.exit_code)


def _jobs(src: list[str], output: str | None, to: str | None, options: ConvertOptions, manifest: str | None) -> list[Job]:
    """What is to be converted: the sources of the command line, or those of the manifest."""
    from chkpt_channels.api import manifest as manifest_files
    from chkpt_channels.core.errors import UsageError
    from chkpt_channels.transform.options import sets_channels

    if manifest is not None:
        if src or output or to or options:
            raise UsageError("--manifest lists sources, targets and options: give none of them beside it", file=manifest)
        return manifest_files.read(manifest)
    if not src:
        raise UsageError("a source is needed", hint="chkpt-channels convert SRC --to gray, or --manifest FILE")
    if to is None and not sets_channels(options):
        raise UsageError("a target is needed", hint="--to gray, rgb, bgr, rgba or a number of channels")
    if len(src) > 1 and output:
        raise UsageError(f"{len(src)} sources cannot become one output", hint="--output-dir DIR")
    return [manifest_files.Job(src=name, dst=output, to=to, options=options) for name in src]


def _check_one(console: Session, job: Job, *, quiet: bool) -> None:
    """Whether a derived file is what converting its source gives now."""
    from chkpt_channels.api.output.naming import derived_path
    from chkpt_channels.api.verify import is_current
    from chkpt_channels.cli import text

    result = is_current(job.src, job.dst or derived_path(job.src, job.to, job.options), job.to, **job.options)
    console.add(result.result(), [] if quiet and result.ok else text.verification_lines(result))
    if not result.ok:
        console.exit_code = max(console.exit_code, 1)


@app.command(epilog="Example: chkpt-channels inspect epoch_12.ckpt --all")
def inspect(
    src: Annotated[list[str], typer.Argument(metavar="SRC…", help="Checkpoints; - is standard input.")],
    everything: Annotated[bool, typer.Option("--all", help="List every tensor."), params.Doc("lists every tensor")] = False,
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="List the tensors that were rejected as first convs, and why."),
        params.Doc("lists the tensors that were rejected as first convs, with the reasons"),
    ] = False,
) -> None:
    """Show what a checkpoint holds: format, first convs with layout and evidence, tensors."""
    from chkpt_channels import inspect as library
    from chkpt_channels.cli import text

    with session("inspect", output_format, as_json=as_json) as console:
        for path in src:
            with console.file(path):
                inspection = library(path)
                lines = text.inspection_lines(inspection, everything=everything, verbose=verbose)
                console.add(inspection.result(), [] if quiet else lines)
    raise typer.Exit(console.exit_code)


@app.command(epilog="Example: chkpt-channels verify resnet50.pth resnet50_gray.pth")
@params.takes_options
def verify(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The checkpoint before.")],
    converted: Annotated[str, typer.Argument(metavar="CONVERTED", help="The checkpoint after.")],
    *,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="gray|rgb|bgr|rgba|N", help="The target; without it the count is read off CONVERTED."),
        params.Doc("the target of the conversion; without it the number of channels is read off CONVERTED"),
    ] = None,
    options: ConvertOptions,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="FILE", help="Read the options from the report of the conversion (convert --report)."),
        params.Doc("reads the options from what `convert --report FILE` wrote; those that are given here take precedence"),
    ] = None,
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
) -> None:
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
    raise typer.Exit(console.exit_code)


@app.command(epilog="Example: chkpt-channels check models/ --expect gray")
def check(
    path: Annotated[list[str], typer.Argument(metavar="PATH…", help="Checkpoints, configurations or folders of them.")],
    expect: Annotated[
        str | None,
        typer.Option("--expect", metavar="gray|rgb|N", help="The input channels that each must have."),
        params.Doc("the input channels that each file must have"),
    ] = None,
    lfs_pointers: Annotated[
        str,
        typer.Option("--lfs-pointers", metavar="skip|error", help="Skip or refuse Git-LFS pointers. [skip]", show_default=False),
        params.Doc("Git-LFS pointers are skipped, with a line that says so (`skip`), or are damaged input, exit 3 (`error`)"),
    ] = "skip",
    output_format: params.Format = None,
    as_json: params.Json = False,
    quiet: params.Quiet = False,
) -> None:
    """Check kernels against every declared channel count, an expectation, and a hash in the name."""
    from chkpt_channels import check as library
    from chkpt_channels.api.check import models
    from chkpt_channels.cli import text

    with session("check", output_format, as_json=as_json) as console:
        for file, is_named in models(path).items():
            with console.file(str(file)):
                result = library(file, expect, lfs_pointers=lfs_pointers, is_named=is_named)
                console.add(result.result(), [] if quiet and result.ok else text.check_lines(result))
                console.exit_code = max(console.exit_code, 0 if result.ok else 1)
    raise typer.Exit(console.exit_code)


app.command(epilog="Example: chkpt-channels plot resnet50.pth resnet50_gray.pth -o kernels.png")(pictures.plot)


@app.command(epilog="Example: chkpt-channels schema > report.schema.json")
def schema() -> None:
    """Print the JSON Schema of the reports."""
    from importlib.resources import files

    print(files("chkpt_channels").joinpath("schema.json").read_text(encoding="utf-8"), end="")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    with watching_stdout(), interrupts.listening():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    try:
        code = typer.main.get_command(app).main(args=list(arguments), prog_name="chkpt-channels", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except interrupts.Interrupted as stopped:
        return stopped.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except MemoryError:
        print("error: there is too little memory; nothing was written", file=sys.stderr)
        return NO_ROOM
    except Exception as error:
        return interrupts.exit_code() or _stopped(error)


def _stopped(error: Exception) -> int:
    """Exit 2 for what the parser refuses, 5 where standard output fails; 70 for everything that should not have happened."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if isinstance(code, int):  # of standard output: a file's is reported with the file
        with suppress(OSError):  # standard error may have no room either
            show() if show else print(f"error: {error}", file=sys.stderr)
        return code
    if os.environ.get(DEBUG) == "1":
        raise error
    print(f"error: a bug in chkpt-channels: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"try: {DEBUG}=1 shows where; report it with what is printed then", file=sys.stderr)
    return BUG
