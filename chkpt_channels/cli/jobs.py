"""What one `convert` is to convert, the same as a question (is the output what it would be now?), and what became of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.api import fleet
from chkpt_channels.api.fleet.ledger import Line, merged
from chkpt_channels.api.fleet.row import rows, shard, with_output_dir
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.naming import derived_path
from chkpt_channels.cli import conversion, guesses, text
from chkpt_channels.cli.session import Session, progress
from chkpt_channels.core.errors import LONGEST_MESSAGE, MOST_CANDIDATES, UsageError, printable
from chkpt_channels.storage.opening import check_named, check_output
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import sets_channels


def all_of(
    names: Sequence[str],
    manifest: str | None,
    output: str | None,
    output_dir: str | None,
    to: str | None,
    options: ConvertOptions,
    part: str | None,
) -> list[Job]:
    """The conversions of a command line, of a shard its share. Raises UsageError where it is not clear what is meant."""
    if manifest is None:
        jobs = _of_sources(names, output, output_dir, to, options)
        return shard(jobs, part) if part is not None else jobs
    if names or output or to or options:
        raise UsageError("--manifest lists sources, targets and options: give none of them beside it", file=manifest)
    return rows(manifest, output_dir=output_dir, part=part)


def _of_sources(
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
    if output_dir:
        check_output(output_dir)
    guesses.check_sources(names, names_output=bool(output or output_dir))
    jobs = [Job(src=name, dst=output, to=to, options=options) for name in names]
    return with_output_dir(output_dir, jobs) if output_dir is not None else jobs


def run(
    console: Session,
    jobs: Sequence[Job],
    on: str | None,
    settings: Mapping[str, Any],
    *,
    explain: bool,
    verbose: bool,
    check: bool,
) -> None:
    """Do the conversions, and report each, or whether its output is what converting its source gives now. `settings` are the
    keywords of `fleet.run`."""
    # of many, one line each: the details are a -v away
    console.is_brief = len(jobs) > 1 and not verbose
    width = max(len(job.src) for job in jobs) if len(jobs) > 1 and not (explain or verbose or check) else 0
    with progress(console.is_quiet) as bar, fleet.executor_on(on) as executor:
        for outcome in fleet.run(() if check else jobs, executor, progress=bar, **settings):
            with console.file(outcome.job.src, outcome.job.stated):
                report = outcome.get()
                parts = conversion.parts(report, outcome.job.src, width, explain=explain, verbose=verbose)
                console.add(report.result(), *parts)
    for job in jobs if check else ():
        with console.file(job.src, job.stated):
            _check(console, job)
    if width:
        console.summarize()


def _check(console: Session, job: Job) -> None:
    """Whether a derived file is what converting its source gives now."""
    from chkpt_channels.api.verify import is_current

    check_named(job.src, job.dst)
    result = is_current(job.src, job.dst or derived_path(job.src, job.to, job.options), job.to, **job.options)
    console.add(result.result(), text.verification_lines(result), ok=result.ok, even_quiet=not result.ok)


def sum_up(console: Session, paths: Sequence[str]) -> None:
    """How many rows of some ledgers are done, failed and left, with the failures first."""
    lines, missing = merged(paths)
    for line in lines:
        console.add(line.result(), [], ok=not line.exit and line.status != "left")
    if missing:
        console.note(f"no ledger of the shards {', '.join(missing)} is given")
        console.exit_code = max(console.exit_code, 1)
    console.add_lines(_summary(lines))


def _summary(lines: Sequence[Line]) -> Iterator[str]:
    failed = [row for row in lines if row.exit]
    for row in failed[:MOST_CANDIDATES]:
        yield f"  {printable(str(row.failure()), LONGEST_MESSAGE)} (exit {row.exit})"
    if len(failed) > MOST_CANDIDATES:
        yield f"  and {len(failed) - MOST_CANDIDATES} more: --json has all"
    left = sum(row.status == "left" for row in lines)
    codes = Counter(row.exit for row in failed)
    counts = [f"{len(lines) - len(failed) - left} done", *(f"{codes[code]} failed (exit {code})" for code in sorted(codes))]
    yield ", ".join([*counts, f"{left} left"])
