"""What one `convert` is to convert, and the same as a question: is the output what the conversion gives?"""

from __future__ import annotations

from collections.abc import Sequence

from chkpt_channels.api import batch
from chkpt_channels.api import manifest as manifest_files
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import derived_path
from chkpt_channels.api.verify import is_current
from chkpt_channels.cli import guesses, text
from chkpt_channels.cli.session import Session
from chkpt_channels.core.errors import UsageError
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import sets_channels


def of_manifest(
    path: str, names: Sequence[str], output: str | None, output_dir: str | None, to: str | None, options: ConvertOptions
) -> list[Job]:
    """The conversions that a manifest lists. Raises UsageError where the command line states others."""
    if names or output or to or options:
        raise UsageError("--manifest lists sources, targets and options: give none of them beside it", file=path)
    jobs = manifest_files.read(path)
    return batch.with_output_dir(output_dir, jobs) if output_dir is not None else jobs


def of_sources(
    names: Sequence[str], output: str | None, output_dir: str | None, to: str | None, options: ConvertOptions
) -> list[Job]:
    """The sources of a command line, each with its output. Raises UsageError where that is not clear."""
    if not names:
        raise UsageError("a source is needed", hint="chkpt-channels convert SRC --to gray, or --manifest FILE")
    if to is None and not sets_channels(options):
        raise UsageError("a target is needed", hint="--to gray, rgb, bgr, rgba or a number of channels")
    if output and output_dir:
        raise UsageError("-o and --output-dir both say where the result goes: give one of them")
    if output and guesses.is_output_folder(names, output):
        output, output_dir = None, output
    if len(names) > 1 and output:
        raise UsageError(f"{len(names)} sources cannot become one output", hint="--output-dir DIR")
    guesses.check_sources(names, names_output=bool(output or output_dir))
    jobs = [Job(src=name, dst=output, to=to, options=options) for name in names]
    return batch.with_output_dir(output_dir, jobs) if output_dir is not None else jobs


def check(console: Session, job: Job, *, quiet: bool) -> None:
    """Whether a derived file is what converting its source gives now."""
    result = is_current(job.src, job.dst or derived_path(job.src, job.to, job.options), job.to, **job.options)
    console.add(result.result(), [] if quiet and result.ok else text.verification_lines(result))
    if not result.ok:
        console.exit_code = max(console.exit_code, 1)
