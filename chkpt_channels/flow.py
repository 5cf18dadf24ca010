"""The one flow: detect, open, plan, write, check, publish."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from . import (
    ahead,
    kernels,
    selection,
    sidecars,
)
from . import options as asking
from . import plan as planning
from .atomic import Output, StandardOutput
from .dtypes import rounded
from .errors import DamagedError, UsageError
from .formats import FOREIGN_SUFFIXES, detect, known
from .kernels import KernelChange
from .model import Checkpoint
from .options import Options, Words
from .pipelines import AUTO
from .plan import Plan
from .reparameterised import PLAIN
from .report import DeclarationChange, FileInfo, Inspection, KernelReport, Parity, Report
from .source import Source
from .splice import apply, write_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

Path_ = str | os.PathLike[str]
Progress = Callable[[int, int], None]
STDIO = "-"


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
            out = _output(path, source, stack, force=force)
            copied = ahead.copy(source, out.fd, kind.call_library)
        checkpoint = kind(source)
        plan = planning.make(checkpoint, options)
        if dry_run:
            for edit in plan.edits.tensors.values():  # what cannot be computed is refused here too
                edit.values()
            measured = parity(checkpoint, plan)
            status = "would_convert" if plan.edits else "unchanged"
            return _report(status, checkpoint, plan, options, path, None, measured, began)
        if other := _other_container(kind, path):
            return _repacked(checkpoint, plan, options, other, path, state_dict, stack, began, force=force)
        if state_dict is not None:
            raise UsageError("--state-dict chooses what goes into another container: -o names one, as x.safetensors")
        companions = checkpoint.companions(path, edited=bool(plan.edits))
        documents = _sidecars(source, path, plan, options) if with_sidecars else {}
        out = out or _output(path, source, stack, force=force)
        shown = (lambda done: progress(done, source.size)) if progress else None
        checkpoint.write(plan.edits._replace(companions=companions), out.fd, out.place, shown, copied=copied)
        source.check_unchanged()
        size = check(checkpoint, plan, out.fd, str(path))
        digest = sha256_of(out.fd) if sha256 or hash_name else ""
        if hash_name and isinstance(out, Output):
            path = hashed(path, digest)
            out.rename(path)
        measured = parity(checkpoint, plan)
        with _companions(Path(source.name).parent, path, companions, documents, force=force):
            out.publish()
        written = FileInfo(str(path), checkpoint.format, size, sha256=digest)
        return _report("converted" if plan.edits else "unchanged", checkpoint, plan, options, path, written, measured, began)


def _other_container(kind: type[Checkpoint], path: Path) -> type[Checkpoint] | None:
    """The format that the output's name asks for, where it is another that this kind can be written in."""
    if path.suffix.lower() in kind.suffixes:
        return None
    from . import repack

    return repack.target(kind, path)


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
    out = _output(path, checkpoint.source, stack, force=force)
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


def open_source(path: Path_) -> Source:
    """The file, or standard input for "-"."""
    if os.fspath(path) == STDIO:
        return Source.spooled(sys.stdin.buffer, "standard input")
    return Source(path)


def output_path(source: Source, kind: type[Checkpoint], src: Path_, dst: Path_ | None, options: Options) -> Path:
    """Where the result goes. Raises UsageError for a name that would lie about the format."""
    if dst is None:
        if os.fspath(src) == STDIO:
            raise UsageError("standard input has no name to make one from: -o names the output")
        return default_output(Path(src), options.rule.word)
    path = Path(dst)
    if os.fspath(dst) != STDIO and _other_container(kind, path):
        return path
    others = (FOREIGN_SUFFIXES | {s for other in known() for s in other.suffixes}) - kind.suffixes
    if os.fspath(dst) != STDIO and path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {kind.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    return path


HASH = re.compile(r"-[0-9a-f]{8,64}$")
"""What torch.hub's names end in: the beginning of the content's SHA-256. Source: torch/hub.py, HASH_REGEX."""


def hashed(path: Path, digest: str) -> Path:
    """`<stem>-<8 digits><ext>`, instead of a hash that the stem ends in."""
    suffix = _suffix(path)
    return path.with_name(f"{HASH.sub('', path.name.removesuffix(suffix))}-{digest[:8]}{suffix}")


def sha256_of(fd: int) -> str:
    """The SHA-256 of an open file."""
    import hashlib

    digest, at = hashlib.sha256(), 0
    while piece := os.pread(fd, 4 << 20, at):
        digest.update(piece)
        at += len(piece)
    return digest.hexdigest()


def default_output(path: Path, word: str) -> Path:
    """`<stem>_<word><ext>` beside `path`; ".pth.tar" and its like are one extension."""
    suffix = _suffix(path)
    return path.with_name(f"{path.name.removesuffix(suffix)}_{word}{suffix}")


def _suffix(path: Path) -> str:
    suffix = path.suffix
    return Path(path.stem).suffix + suffix if suffix == ".tar" and Path(path.stem).suffix else suffix


def _output(path: Path, source: Source, stack: contextlib.ExitStack, *, force: bool) -> Output | StandardOutput:
    """The output, which vanishes when `stack` ends, unless it is published."""
    if os.fspath(path) == STDIO:
        return stack.enter_context(StandardOutput())
    return stack.enter_context(Output(path, source, force=force))


@contextlib.contextmanager
def _companions(folder: Path, path: Path, names: dict[str, str], documents: dict[str, bytes], *, force: bool) -> Iterator[None]:
    """Copy the files that go with the output, and write those `documents`; publish them first, and take them back if the output
    itself fails."""
    if names and os.fspath(path) == STDIO:
        raise UsageError(f"the file comes with {', '.join(names)}: -o names the output, so that they can stand beside it")
    with contextlib.ExitStack() as stack:
        outputs = []
        for old, new in names.items():
            source = stack.enter_context(Source(folder / old))
            out = stack.enter_context(Output(path.parent / new, source, force=force))
            apply(source, [], out.fd, out.place)
            outputs.append(out)
        for name, content in documents.items():
            out = stack.enter_context(Output(path.parent / name, None, force=force))
            write_at(out.fd, memoryview(content), 0)
            os.fsync(out.fd)
            outputs.append(out)
        for out in outputs:
            out.publish()
        try:
            yield
        except BaseException:
            for out in outputs:
                out.path.unlink(missing_ok=True)
            raise


def check(before: Checkpoint, plan: Plan, fd: int, name: str) -> int:
    """Re-open what was written: the index is as planned, the edits read back, the format's own library accepts it.
    Returns its size. Raises RuntimeError otherwise: that is a bug of this package, and nothing is published."""
    with Source.of_descriptor(fd, name, made_here=True) as source:
        try:
            after = type(before)(source)
        except DamagedError as error:
            raise RuntimeError(f"what was written cannot be read: {error}") from error
        gone = {t.name for e in before.optimizer_entries if e.where in plan.edits.dropped for t in e.tensors.values()}
        expected = {n: (t.dtype, t.shape) for n, t in before.tensors.items() if n not in gone}
        expected |= {n: (before.tensors[n].dtype, edit.shape) for n, edit in plan.edits.tensors.items()}
        found = {n: (t.dtype, t.shape) for n, t in after.tensors.items() if n in expected or not after.adds_tensors}
        if found != expected:
            raise RuntimeError(f"{name}: the written file has other tensors than planned")
        for tensor, edit in plan.edits.tensors.items():
            if b"".join(after.chunks(tensor)) != edit.values().tobytes():
                raise RuntimeError(f"{name}: {tensor} does not read back as it was written")
        if missing := missing_biases(after, plan):
            raise RuntimeError(f"{name}: the new bias of {missing[0]} does not read back as it was written")
        if stale := stale_declarations(after, plan):
            raise RuntimeError(f"{name}: {stale[0]} does not say {plan.channels[1]}")
        if os.path.isdir("/proc/self/fd"):
            _judge(before, after, f"/proc/self/fd/{fd}")
        return source.size


def missing_biases(after: Checkpoint, plan: Plan) -> list[str]:
    """The kernels that were to get a bias, and have none of its values."""
    missing = []
    for name, edit in plan.edits.biases.items():
        alike = [t for t in after.tensors.values() if t.shape == edit.shape and t.dtype.floating]
        values = edit.values()
        if not any(rounded(values, t.dtype).tobytes() == b"".join(after.chunks(t.name)) for t in alike):
            missing.append(name)
    return missing


def stale_declarations(after: Checkpoint, plan: Plan) -> list[str]:
    """Where the converted file does not count its channels as planned."""
    if not plan.edits or not plan.declarations:
        return []
    convs = [
        k.conv._replace(tensor=after.tensors[k.conv.tensor.name], in_channels=k.mixing.new)
        for k in plan.kernels
        if (k.changes or plan.edits.method) and k.conv.tensor.name in after.tensors
    ]
    found = [*after.declarations(convs), *after.hyper_parameters(plan.channels[1])]
    if plan.edits.method:  # what was put into the graph may say it in another place
        return [d.where for d in found if d.channels != plan.channels[1]]
    right = {d.where for d in found if d.channels == plan.channels[1]}
    return [d.where for d in plan.declarations if d.where not in right]


def _judge(before: Checkpoint, after: Checkpoint, path: str) -> None:
    """Ask the format's own library about what was written. Raises DamagedError where it refuses the source as well."""
    try:
        after.judge(path)
    except Exception as error:
        if before.is_refused():
            raise before.source.place.damaged(f"{before.title}'s own library cannot read it: {error}") from error
        raise


def parity(checkpoint: Checkpoint, plan: Plan) -> Parity | None:
    """The largest first-layer difference over all kernels that change."""
    changed = [k for k in plan.kernels if k.changes]
    found = [
        kernels.parity(checkpoint, k, checkpoint.edited_kernel(k.conv, plan.edits), _constant(checkpoint, k, plan))
        for k in changed
    ]
    return Parity(max(a for a, _ in found), max(u for _, u in found)) if found else None


def _constant(checkpoint: Checkpoint, kernel: KernelChange, plan: Plan) -> NDArray[Any] | None:
    """What the stored bias, or the running mean, adds to a kernel's output more than before."""
    if not kernel.mixing.offset or kernel.form is not PLAIN:
        return None
    if added := plan.edits.biases.get(kernel.conv.tensor.name):
        return added.values()
    own = checkpoint.shift_taker(kernel.conv)
    if own is None:
        return None
    name, sign = own
    constant: NDArray[Any] = plan.edits.tensors[name].values().astype("float64") - checkpoint.load(name).astype("float64")
    return sign * constant


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
