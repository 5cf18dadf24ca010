"""The one flow: detect, open, plan, write, check, publish."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from . import (
    ahead,
    selection,
    sidecars,
)
from . import options as asking
from . import plan as planning
from .atomic import Output
from .errors import UsageError
from .formats import detect
from .model import Checkpoint
from .options import Options, Words
from .outputs import (
    STDIO,
    Path_,
    default_output,
    hashed,
    open_source,
    opened,
    other_container,
    output_path,
    published_first,
    sha256_of,
)
from .pipelines import AUTO
from .plan import Plan
from .readback import check, parity
from .report import DeclarationChange, FileInfo, Inspection, KernelReport, Parity, Report
from .source import Source

if TYPE_CHECKING:
    pass

Progress = Callable[[int, int], None]


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
    **words: Unpack[Words],
) -> Report:
    """Write `src` with its first convs changed to `to` input channels ("gray", "rgb", "bgr", "rgba" or a number) to `dst`.

    Without `dst` the output is `<stem>_<to><ext>` beside the source; "-" is standard input or output. Without `to` it is gray,
    or what `select`, `bands` or `matrix` makes. `words` are the options of `options.Words`. `src` may be a model folder, which
    becomes a new one; `hard_link` links its files that do not change. `with_sidecars` writes the configurations that stand beside
    a file beside `dst` too. `sha256` reports the hash of the result, `hash_name` puts its beginning into the name as torch.hub
    does. `progress(more, total)` is called with bytes.

    Where nothing is to change the file is copied and the report's status is "unchanged". Raises a ChkptChannelsError,
    and nothing is written then.
    """
    began = time.perf_counter()
    options = asked(src, _target(to, words), words)
    if os.fspath(src) != STDIO and Path(src).is_dir():
        from . import folders

        if hash_name or sha256:
            raise UsageError("--sha256 and --hash-name are for files", file=os.fspath(src))
        return folders.convert(src, dst, options, dry_run=dry_run, hard_link=hard_link, progress=progress)
    with open_source(src) as source, contextlib.ExitStack() as stack:
        kind = detect(source)
        path = output_path(source, kind, src, dst, options)
        out, copied = None, False
        if kind.in_place and not dry_run and ahead.pays(source):
            out = opened(path, source, stack, force=force)
            copied = ahead.copy(source, out.fd, kind.call_library)
        checkpoint = kind(source)
        plan = planning.make(checkpoint, options)
        if dry_run:
            for edit in plan.edits.tensors.values():  # what cannot be computed is refused here too
                edit.values()
            measured = parity(checkpoint, plan)
            status = "would_convert" if plan.edits else "unchanged"
            return _report(status, checkpoint, plan, options, path, None, measured, began)
        if other := other_container(kind, path):
            return _repacked(checkpoint, plan, options, other, path, state_dict, stack, began, force=force)
        if state_dict is not None:
            raise UsageError("--state-dict chooses what goes into another container: -o names one, as x.safetensors")
        companions = checkpoint.companions(path, edited=bool(plan.edits))
        documents = _sidecars(source, path, plan, options) if with_sidecars else {}
        out = out or opened(path, source, stack, force=force)
        shown = (lambda done: progress(done, source.size)) if progress else None
        checkpoint.write(plan.edits._replace(companions=companions), out.fd, out.place, shown, copied=copied)
        source.check_unchanged()
        size = check(checkpoint, plan, out.fd, str(path))
        digest = sha256_of(out.fd) if sha256 or hash_name else ""
        if hash_name and isinstance(out, Output):
            path = hashed(path, digest)
            out.rename(path)
        measured = parity(checkpoint, plan)
        with published_first(Path(source.name).parent, path, companions, documents, force=force):
            out.publish()
        written = FileInfo(str(path), checkpoint.format, size, sha256=digest)
        return _report("converted" if plan.edits else "unchanged", checkpoint, plan, options, path, written, measured, began)


def _repacked(
    checkpoint: Checkpoint,
    plan: Plan,
    options: Options,
    kind: type[Checkpoint],
    path: Path,
    state_dict: str | None,
    stack: contextlib.ExitStack,
    began: float,
    *,
    force: bool,
) -> Report:
    """The rest of a conversion into another container."""
    from . import repack

    tensors = repack.kept(checkpoint, plan.edits, state_dict)
    out = opened(path, checkpoint.source, stack, force=force)
    repack.write(checkpoint, plan.edits, tensors, kind, out.fd, out.place)
    checkpoint.source.check_unchanged()
    with Source.of_descriptor(out.fd, str(path), made_here=True) as source:
        after = kind(source)
        repack.check(after, tensors, plan.edits, str(path))
        if os.path.isdir("/proc/self/fd"):
            after.judge(f"/proc/self/fd/{out.fd}")
        written = FileInfo(str(path), kind.format, source.size)
    measured = parity(checkpoint, plan)
    out.publish()
    report = _report("converted", checkpoint, plan, options, path, written, measured, began)
    return report._replace(load_line=after.load_line(str(path)))


def _target(to: str | int | None, words: Words) -> str | int | None:
    """The target, or gray where none is given and no rule makes one."""
    spelled = any(rule in words and words[rule] is not None for rule in ("select", "bands", "matrix"))
    return "gray" if to is None and not spelled else to


def derived_path(src: Path_, to: str | int | None, words: Words) -> Path:
    """Where the result of a conversion goes that names no output."""
    rule = asking.make(_target(to, words), **words).rule
    return default_output(Path(src), rule.word)


def inspect(path: Path_) -> Inspection:
    """What a file holds: format, first convs with layout and evidence, tensors. Never fails for ambiguity: `first_convs` is
    empty then. `candidates` are the tensors that were considered and not taken. Raises DamagedError, UnsupportedError for
    foreign formats, SystemProblem."""
    if os.fspath(path) != STDIO and Path(path).is_dir():
        from . import folders

        return folders.inspect(path)
    with open_source(path) as source:
        checkpoint = detect(source)(source)
        finding = selection.find(checkpoint, beside=sidecars.evidence(_beside(path)))
        return Inspection(
            _info(checkpoint),
            finding.first_convs,
            finding.candidates,
            tuple(checkpoint.declarations(finding.first_convs)),
            tuple(checkpoint.tensors.values()),
            tuple(checkpoint.optimizer_entries),
            planning.notices(checkpoint),
        )


def _sidecars(source: Source, path: Path, plan: Plan, options: Options) -> dict[str, bytes]:
    """The configurations beside the source, as the output needs them. Raises UsageError where they would stand in the old ones'
    places."""
    from . import folders

    folder = Path(source.name).parent
    if path.parent.resolve() == folder.resolve():
        raise UsageError("--sidecars would replace the configurations of the source: -o names an output in another folder")
    return {
        sidecar.name: sidecar.document.edited(folders.document_edits(sidecar, plan, options))
        for sidecar in sidecars.beside(folder)
    }


def asked(src: Path_, to: str | int | None, words: Words) -> Options:
    """The options, with what stands beside the file."""
    options = asking.make(to, **words)
    if os.fspath(src) == STDIO:
        if options.norm.name == AUTO:
            raise UsageError("--norm auto reads what stands beside the file: standard input has no place", hint="--norm imagenet")
        return options
    return sidecars.resolved(options, Path(src))


def _beside(path: Path_) -> list[sidecars.Sidecar]:
    return [] if os.fspath(path) == STDIO else sidecars.beside(Path(path).parent)


def _info(checkpoint: Checkpoint) -> FileInfo:
    return FileInfo(checkpoint.source.name, checkpoint.format, checkpoint.source.size, checkpoint.title)


def kernel_reports(plan: Plan) -> tuple[KernelReport, ...]:
    """The plan's kernels as they are reported."""
    return tuple(KernelReport(k.conv, k.shape, k.mixing.method, k.mixing.matrix, k.mixing.offset) for k in plan.kernels)


def fewer_parameters(checkpoint: Checkpoint, plan: Plan) -> int:
    """How many parameters fewer the converted model has."""
    own = {k.conv.tensor.name for k in plan.kernels}
    changed = {name: edit.shape for name, edit in plan.edits.tensors.items() if name in own}
    return sum(prod(checkpoint.tensors[name].shape) - prod(shape) for name, shape in changed.items())


def _report(
    status: str,
    checkpoint: Checkpoint,
    plan: Plan,
    options: Options,
    target: Path,
    output: FileInfo | None,
    parity: Parity | None,
    began: float,
) -> Report:
    return Report(
        status,
        _info(checkpoint),
        str(target),
        output,
        plan.channels,
        kernel_reports(plan),
        tuple(DeclarationChange(d.where, d.channels, plan.channels[1]) for d in plan.declarations),
        len(checkpoint.tensors),
        tuple(plan.edits.tensors),
        fewer_parameters(checkpoint, plan),
        parity,
        plan.notices,
        checkpoint.load_line(str(target)),
        time.perf_counter() - began,
        plan.why,
        plan.candidates,
        plan.pipeline,
        asking.words(options),
    )
