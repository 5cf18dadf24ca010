"""The one flow: detect, open, plan, write, check, publish."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Unpack

from chkpt_channels.api.output.check import check, parity
from chkpt_channels.api.output.naming import (
    STDIO,
    Path_,
    Progress,
    Settings,
    default_output,
    hashed,
    is_folder,
    open_source,
    opened,
    other_container,
    output_path,
    publish,
    sha256_of,
)
from chkpt_channels.api.report import DeclarationChange, FileInfo, Inspection, KernelReport, Parity, Report
from chkpt_channels.core.errors import Place, UsageError
from chkpt_channels.core.tensors import Notice
from chkpt_channels.discovery import find as selection
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.folders import config_files as sidecars
from chkpt_channels.formats import detect, open_checkpoint
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage import early_copy as ahead
from chkpt_channels.storage.atomic import Output, StandardOutput
from chkpt_channels.storage.source import Source, check_link
from chkpt_channels.transform import notices
from chkpt_channels.transform import plan as planning
from chkpt_channels.transform.mixing.normalization import AUTO
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, as_keywords, options_toward
from chkpt_channels.transform.plan import Plan


def convert(
    src: Path_,
    dst: Path_ | None = None,
    to: str | int | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    hard_link: bool = False,
    with_sidecars: bool = False,
    sha256: bool = False,
    hash_name: bool = False,
    state_dict: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ConvertOptions],
) -> Report:
    """Write `src` with its first convs changed to `to` input channels ("gray", "rgb", "bgr", "rgba" or a number) to `dst`.

    Without `dst` the output is `<stem>_<to><ext>` beside the source; "-" is standard input or output. Without `to` it is gray,
    or what `select`, `bands` or `matrix` makes. `options` are those of `ConvertOptions`. `src` may be a model folder, which
    becomes a new one; `hard_link` links its files that do not change. `with_sidecars` writes the configurations that stand beside
    a file beside `dst` too. `sha256` reports the hash of the result, `hash_name` puts its beginning into the name as torch.hub
    does. `progress(more, total)` is called with bytes.

    Where nothing is to change the file is copied and the report's status is "unchanged". Raises a ChkptChannelsError,
    and nothing is written then.
    """
    began = time.perf_counter()
    settings = Settings(
        force=force,
        dry_run=dry_run,
        hard_link=hard_link,
        with_sidecars=with_sidecars,
        sha256=sha256,
        hash_name=hash_name,
        state_dict=state_dict,
    ).checked(src, dst)
    asked = beside(src, options_toward(to, options))
    if is_folder(src):
        from chkpt_channels.api import convert_folder as folders

        report = folders.convert(src, dst, asked, settings, progress)
    else:
        with open_source(src) as source:
            report = _convert(source, src, dst, asked, settings, progress)
    return report._replace(seconds=time.perf_counter() - began)


def _convert(
    source: Source, src: Path_, dst: Path_ | None, options: Options, settings: Settings, progress: Progress | None
) -> Report:
    """The same for an open file."""
    form = detect(source)
    path = output_path(source, form, src, dst, options)
    other = other_container(form, path)
    if settings.state_dict is not None and not other:
        raise UsageError("--state-dict chooses what goes into another container: -o names one, as x.safetensors")
    with contextlib.ExitStack() as stack:
        out, copied = None, False
        if form.in_place and not settings.dry_run and not other and ahead.worthwhile(source):
            out = opened(path, source, stack, force=settings.force)
            copied = ahead.copy(source, out.fd, form.preload)
        checkpoint = form.open(source)
        plan = planning.make(checkpoint, options)
        if settings.dry_run:
            for edit in plan.edits.tensors.values():  # what cannot be computed is refused here too
                edit.values()
            status = "would_convert" if plan.edits else "unchanged"
            return _report(status, checkpoint, plan, options, path, None, parity(checkpoint, plan))
        documents = _sidecars(source, path, plan, options) if settings.with_sidecars else {}
        plan = _accompanied(plan, checkpoint.companions(path, edited=bool(plan.edits)))
        out = out or opened(path, source, stack, force=settings.force)
        shown = (lambda done: progress(done, source.size)) if progress else None
        if other:
            from chkpt_channels.api.output import cross_format as repack

            after = repack.write(checkpoint, plan.edits, settings.state_dict, other, out.fd, out.place, shown)
        else:
            after = checkpoint
            checkpoint.write(plan.edits, out.fd, out.place, shown, copied=copied)
            source.check_unchanged()
            check(checkpoint, plan, out.fd, str(path))
        measured = parity(checkpoint, plan)
        written = _publish(checkpoint, plan, out, path, settings, documents)._replace(format=after.format.name)
        status = "converted" if plan.edits or other else "unchanged"
        report = _report(status, checkpoint, plan, options, Path(written.path), written, measured)
        return report._replace(load_line=after.load_line(written.path))


def _accompanied(plan: Plan, companions: dict[str, str]) -> Plan:
    """The plan, with the new names of files that go with the output; a copy says where it names another than before."""
    renamed = {old: new for old, new in companions.items() if old != new and not plan.edits}
    told = tuple(Notice("renamed_data", f"its data file {old} goes with it as {new}") for old, new in renamed.items())
    return plan._replace(edits=plan.edits._replace(companions=companions), notices=plan.notices + told)


def _publish(
    checkpoint: Checkpoint, plan: Plan, out: Output | StandardOutput, path: Path, settings: Settings, documents: dict[str, bytes]
) -> FileInfo:
    """Give the output its name, behind all that goes with it."""
    digest = ""
    with Source.of_descriptor(out.fd, str(path), made_here=True) as written:
        size = written.size
        if settings.sha256 or settings.hash_name:
            digest = sha256_of(written)
    if settings.hash_name and isinstance(out, Output):
        path = hashed(path, digest)
        out.rename(path)
    folder = Path(checkpoint.source.name).parent
    publish(out, folder, plan.edits.companions, documents, force=settings.force)
    return FileInfo(str(path), checkpoint.format.name, size, sha256=digest)


def derived_path(src: Path_, to: str | int | None, options: ConvertOptions) -> Path:
    """Where the result of a conversion goes that names no output."""
    return default_output(Path(src), options_toward(to, options).rule.word)


def inspect(path: Path_) -> Inspection:
    """What a file holds: format, first convs with layout and evidence, tensors. Never fails for ambiguity: `first_convs` is
    empty then. `candidates` are the tensors that were considered and not taken. Raises DamagedError, UnsupportedError for
    foreign formats, SystemProblem."""
    if is_folder(path):
        from chkpt_channels.api import convert_folder as folders

        return folders.inspect(path)
    with open_source(path) as source:
        checkpoint = open_checkpoint(source)
        finding = selection.find(checkpoint, SearchRequest(hints=sidecars.evidence(_beside(path))))
        return Inspection(
            _info(checkpoint),
            finding.first_convs,
            finding.candidates,
            tuple(checkpoint.graph.declarations(finding.first_convs)),
            tuple(checkpoint.tensors.values()),
            tuple(checkpoint.optimizer_entries),
            notices.of_file(checkpoint, finding.first_convs),
        )


def _sidecars(source: Source, path: Path, plan: Plan, options: Options) -> dict[str, bytes]:
    """The configurations beside the source, as the output needs them. Raises UsageError where they would stand in the old ones'
    places."""
    from chkpt_channels.api import convert_folder as folders

    folder = Path(source.name).parent
    if path.parent.resolve() == folder.resolve():
        raise UsageError("--sidecars would replace the configurations of the source: -o names an output in another folder")
    documents = {}
    for sidecar in sidecars.beside(folder):
        if not options.plain["follow_links"]:
            check_link(Place(str(folder / sidecar.name)), folder / sidecar.name, folder, "is")
        documents[sidecar.name] = sidecar.document.edited(folders.document_edits(sidecar, plan, options))
    return documents


def beside(src: Path_, options: Options) -> Options:
    """The options, with what stands beside the file."""
    if os.fspath(src) == STDIO:
        if options.norm.name == AUTO:
            raise UsageError("--norm auto reads what stands beside the file: standard input has no place", hint="--norm imagenet")
        return options
    return sidecars.resolved(options, Path(src))


def _beside(path: Path_) -> list[sidecars.Sidecar]:
    return [] if os.fspath(path) == STDIO else sidecars.beside(Path(path).parent)


def _info(checkpoint: Checkpoint) -> FileInfo:
    return FileInfo(checkpoint.source.name, checkpoint.format.name, checkpoint.source.size, checkpoint.title)


def _report(
    status: str,
    checkpoint: Checkpoint,
    plan: Plan,
    options: Options,
    target: Path,
    output: FileInfo | None,
    parity: Parity | None,
) -> Report:
    return Report(
        status,
        _info(checkpoint),
        str(target),
        output,
        plan.channels,
        tuple(map(KernelReport.of, plan.kernels)),
        tuple(DeclarationChange(d.where, d.channels, plan.channels[1]) for d in plan.declarations),
        len(checkpoint.tensors),
        tuple(plan.edits.tensors),
        plan.fewer_parameters,
        parity,
        plan.notices,
        checkpoint.load_line(str(target)),
        0.0,
        plan.why,
        plan.candidates,
        plan.pipeline,
        as_keywords(options),
    )
