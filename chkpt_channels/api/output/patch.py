"""The output of one file without writing it: pieces of the source, and new bytes between them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from chkpt_channels.api.output.check import check_source, check_stems, parity
from chkpt_channels.api.output.naming import Progress, file_output, other_container, output_path
from chkpt_channels.api.report import Report
from chkpt_channels.api.report_builder import conversion_report, preview_report, with_load_lines
from chkpt_channels.core.errors import UsageError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.folders.like_file import with_like
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import RangeSource, Readable
from chkpt_channels.storage.splice import Composed, OutputPiece, Splice, passing_checks, pieces, read_through
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, options_toward
from chkpt_channels.transform.plan import Plan


class Patch(NamedTuple):
    """The output of a conversion: `pieces` in order, `size` bytes in all. A piece is `size` bytes of the source from `start` on,
    or new bytes, its `data`. `name` is the output's; `beside` are files in the source's folder, by name, of which copies must
    be beside the output under other names: ONNX's external data."""

    name: str
    size: int
    pieces: tuple[OutputPiece, ...]
    beside: Mapping[str, str]
    report: Report


def patch(
    src: Readable,
    to: str | int | None = None,
    *,
    name: str | None = None,
    checksums: bool = True,
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> Patch:
    """What `convert` would write, as pieces of `src` and new bytes; nothing is written. `src` is a file, or a `RandomAccess`: an
    object with `name`, `size` and `readinto(buffer, offset)`, which returns how many bytes it read. `name` is the output's, by
    default that of `convert`; `to` and `options` are as there.
    What `convert` refuses is refused: with `checksums` the parts that stay are read once where the format has checksums of them
    (PyTorch, Keras, npz), and `progress(more, total)` is called with bytes. Without, only what the conversion needs is read.
    Raises a ChkptChannelsError; UsageError for a model folder and for an output in another format.
    """
    began = time.perf_counter()
    parsed = options_toward(to, options)
    with open_model(src, parsed) as model:
        if not isinstance(model, ModelFile):
            raise UsageError("a model folder has no one output: patch takes a file", file=model.location.file)
        parsed = with_like(model, model.resolved(parsed))
        path = _output_path(model, name, parsed)
        planned = plan_model(model, parsed)
        companions = model.checkpoint.companions(path, edited=bool(planned.first.edits))
        plan = planned.first._replace(edits=planned.first.edits._replace(companions=companions))
        output, splices = composed(model.checkpoint, plan, str(path))
        check_stems(planned)
        if checksums:
            _check_rest(model.checkpoint, splices, progress)
        model.source.check_unchanged()
        report = preview_report(conversion_report(model, planned, parsed, parity(model.checkpoint, plan)), path)
        report = with_load_lines(report, model, lambda group: model.loading(str(path), group))
    beside = tuple(str(path.parent / new) for new in companions.values())
    report = report._replace(beside=beside, seconds=time.perf_counter() - began)
    return Patch(output.name, output.size, output.pieces, companions, report)


def composed(checkpoint: Checkpoint, plan: Plan, name: str) -> tuple[Composed, list[Splice]]:
    """The output of a plan, which is called so, and what makes it of the source. It was opened and compared with the plan."""
    splices = sorted(checkpoint.splices(plan.edits), key=lambda s: (s.start, s.stop))
    output = Composed(checkpoint.source, pieces(checkpoint.source.size, splices), name)
    check_source(checkpoint, plan, RangeSource(output, made_here=True))
    return output, splices


def _output_path(model: ModelFile, name: str | None, options: Options) -> Path:
    path = output_path(model, name, options) if name is not None else file_output(Path(model.source.name), options.word)
    if other := other_container(model.format, path):
        raise UsageError(f"the output {path.name} is named like {other.title}, and a patch keeps the format")
    return path


def _check_rest(checkpoint: Checkpoint, splices: Sequence[Splice], progress: Progress | None) -> None:
    """Read what stays for its checksums; what changes was checked when it was loaded."""
    checks = passing_checks(checkpoint.checks(), splices)
    total = sum(check.stop - check.start for check in checks)
    for more in read_through(checkpoint.source, checks):
        if progress:
            progress(more, total)
