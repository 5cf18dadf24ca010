"""The one flow: detect, open, plan, write, check, publish."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from . import kernels
from . import plan as planning
from .atomic import Output, StandardOutput
from .errors import DamagedError, UsageError
from .formats import FOREIGN_SUFFIXES, detect, known
from .layout import Layout
from .mixing import LUMA
from .model import Checkpoint
from .plan import Options, Plan
from .report import DeclarationChange, FileInfo, Inspection, KernelReport, Parity, Report
from .source import Source
from .splice import apply

if TYPE_CHECKING:
    pass

Path_ = str | os.PathLike[str]
Progress = Callable[[int, int], None]
STDIO = "-"


def convert(
    src: Path_,
    dst: Path_ | None = None,
    to: str | int = "gray",
    *,
    luma: str | Sequence[float] | None = None,
    layers: Sequence[str] = (),
    layout: str | None = None,
    optimizer: str = "reset",
    strict: bool = False,
    method: str = "auto",
    from_channels: int | None = None,
    inputs: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write `src` with its first convs changed to `to` input channels ("gray", "rgb" or a number) to `dst`.

    Without `dst` the output is `<stem>_<to><ext>` beside the source; "-" is standard input or output. `luma` names or gives
    the weights that split a gray kernel over colours; `layers` name the first convs and `layout` says how they lie where the
    file does not; `inputs` name the inputs of the graph that are images; `from_channels` is how many channels the first convs
    have now, where that is open; `optimizer` is "reset" or "drop" for the state kept for them; `method` is how one channel is
    made: "sum" edits kernels, "broadcast" and "stack" let the file's own graph make the old channels of it, "auto" chooses.
    `progress(done, total)` is called with bytes.

    Where nothing is to change the file is copied and the report's status is "unchanged". Raises a ChkptChannelsError,
    and nothing is written then.
    """
    began = time.perf_counter()
    options = make_options(to, luma, layers, layout, optimizer, strict, method, from_channels, inputs)
    with open_source(src) as source:
        checkpoint = detect(source)(source)
        path = output_path(source, checkpoint, src, dst, options)
        plan = planning.make(checkpoint, options)
        if dry_run:
            parity = _parity(checkpoint, plan)
            status = "would_convert" if plan.edits else "unchanged"
            return _report(status, checkpoint, plan, path, None, parity, began)
        companions = checkpoint.companions(path, edited=bool(plan.edits))
        with _output(path, source, force=force) as out:
            shown = (lambda done: progress(done, source.size)) if progress else None
            checkpoint.write(plan.edits._replace(companions=companions), out.fd, out.place, shown)
            source.check_unchanged()
            size = check(checkpoint, plan, out.fd, str(path))
            parity = _parity(checkpoint, plan)
            with _companions(Path(source.name).parent, path, companions, force=force):
                out.publish()
        written = FileInfo(str(path), checkpoint.format, size)
        return _report("converted" if plan.edits else "unchanged", checkpoint, plan, path, written, parity, began)


def inspect(path: Path_) -> Inspection:
    """What a file holds: format, first convs with layout and evidence, tensors. Never fails for ambiguity: `first_convs` is
    empty then and `candidates` are listed. Raises DamagedError, UnsupportedError for foreign formats, SystemProblem."""
    with open_source(path) as source:
        checkpoint = detect(source)(source)
        finding = planning.find(checkpoint)
        return Inspection(
            _info(checkpoint),
            finding.first_convs,
            finding.candidates,
            tuple(checkpoint.declarations(finding.first_convs)),
            tuple(checkpoint.tensors.values()),
            tuple(checkpoint.optimizer_entries),
            planning.notices(checkpoint),
        )


def make_options(
    to: str | int | None,
    luma: str | Sequence[float] | None,
    layers: Sequence[str],
    layout: str | None,
    optimizer: str,
    strict: bool,
    method: str,
    from_channels: int | None = None,
    inputs: Sequence[str] = (),
) -> Options:
    """The user's words as Options. Raises UsageError for words that mean nothing."""
    return Options(
        planning.target_channels(to) if to is not None else None,
        luma_weights(luma),
        tuple(layers),
        _layout(layout),
        optimizer,
        strict,
        method,
        from_channels,
        tuple(inputs),
    ).checked()


def luma_weights(luma: str | Sequence[float] | None) -> tuple[float, ...] | None:
    """Weights from a preset's name, from "a,b,c", or from numbers."""
    if luma is None:
        return None
    if isinstance(luma, str):
        if luma in LUMA:
            return LUMA[luma]
        luma = [_number(word) for word in luma.split(",")]
    weights = tuple(float(weight) for weight in luma)
    if any(weight != weight or abs(weight) == float("inf") for weight in weights):
        raise UsageError("--luma takes finite numbers")
    return weights


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"--luma is {', '.join(LUMA)} or numbers separated by commas, not {word!r}") from None


def _layout(spelling: str | None) -> Layout | None:
    try:
        return Layout(spelling) if spelling else None
    except ValueError as error:
        raise UsageError(f"--layout: {error}") from None


def open_source(path: Path_) -> Source:
    """The file, or standard input for "-"."""
    if os.fspath(path) == STDIO:
        return Source.spooled(sys.stdin.buffer, "standard input")
    return Source(path)


def output_path(source: Source, checkpoint: Checkpoint, src: Path_, dst: Path_ | None, options: Options) -> Path:
    """Where the result goes. Raises UsageError for a name that would lie about the format."""
    if dst is None:
        if os.fspath(src) == STDIO:
            raise UsageError("standard input has no name to make one from: -o names the output")
        return default_output(Path(src), options.to or 0)
    path = Path(dst)
    others = (FOREIGN_SUFFIXES | {s for kind in known() for s in kind.suffixes}) - checkpoint.suffixes
    if os.fspath(dst) != STDIO and path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {checkpoint.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    return path


def default_output(path: Path, channels: int) -> Path:
    """`<stem>_<to><ext>` beside `path`; ".pth.tar" and its like are one extension."""
    suffix = path.suffix
    if suffix == ".tar" and Path(path.stem).suffix:
        suffix = Path(path.stem).suffix + suffix
    stem = path.name.removesuffix(suffix)
    return path.with_name(f"{stem}_{planning.target_word(channels)}{suffix}")


def _output(path: Path, source: Source, *, force: bool) -> Output | StandardOutput:
    return StandardOutput() if os.fspath(path) == STDIO else Output(path, source, force=force)


@contextlib.contextmanager
def _companions(folder: Path, path: Path, names: dict[str, str], *, force: bool) -> Iterator[None]:
    """Copy the files that go with the output, and publish them first; take them back if the output itself fails."""
    if names and os.fspath(path) == STDIO:
        raise UsageError(f"the file comes with {', '.join(names)}: -o names the output, so that they can stand beside it")
    with contextlib.ExitStack() as stack:
        outputs = []
        for old, new in names.items():
            source = stack.enter_context(Source(folder / old))
            out = stack.enter_context(Output(path.parent / new, source, force=force))
            apply(source, [], out.fd, out.place)
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
    with Source.of_descriptor(fd, name) as source:
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
        if os.path.isdir("/proc/self/fd"):
            _judge(before, after, f"/proc/self/fd/{fd}")
        return source.size


def _judge(before: Checkpoint, after: Checkpoint, path: str) -> None:
    """Ask the format's own library about what was written. Raises DamagedError where it refuses the source as well."""
    try:
        after.judge(path)
    except Exception as error:
        if before.is_refused():
            raise before.source.place.damaged(f"{before.title}'s own library cannot read it: {error}") from error
        raise


def _parity(checkpoint: Checkpoint, plan: Plan) -> Parity | None:
    """The largest first-layer difference over all kernels that change."""
    # a grouped kernel keeps its bytes toward one channel: there is nothing to measure
    changed = [k for k in plan.kernels if k.changes and not (k.conv.groups > 1 and k.mixing.new == 1)]
    found = [kernels.parity(checkpoint, k, checkpoint.edited_kernel(k.conv, plan.edits)) for k in changed]
    return Parity(max(a for a, _ in found), max(u for _, u in found)) if found else None


def _info(checkpoint: Checkpoint) -> FileInfo:
    return FileInfo(checkpoint.source.name, checkpoint.format, checkpoint.source.size, checkpoint.title)


def kernel_reports(plan: Plan) -> tuple[KernelReport, ...]:
    """The plan's kernels as they are reported."""
    return tuple(KernelReport(k.conv, k.shape, k.mixing.method, k.mixing.matrix) for k in plan.kernels)


def _report(
    status: str, checkpoint: Checkpoint, plan: Plan, target: Path, output: FileInfo | None, parity: Parity | None, began: float
) -> Report:
    kernels = {k.conv.tensor.name for k in plan.kernels}
    changed = {name: edit.shape for name, edit in plan.edits.tensors.items() if name in kernels}
    fewer = sum(prod(checkpoint.tensors[name].shape) - prod(shape) for name, shape in changed.items())
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
        fewer,
        parity,
        plan.notices,
        checkpoint.load_line(str(target)),
        time.perf_counter() - began,
    )
