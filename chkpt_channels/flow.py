"""The one flow: detect, open, plan, write, check, publish."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from . import ahead, kernels, selection, sidecars
from . import options as asking
from . import plan as planning
from .atomic import Output, StandardOutput
from .dtypes import rounded
from .errors import DamagedError, UsageError
from .formats import FOREIGN_SUFFIXES, detect, known
from .kernels import KernelChange
from .model import Checkpoint
from .options import Options, Words
from .plan import Plan
from .reparameterised import PLAIN
from .report import DeclarationChange, FileInfo, Inspection, KernelReport, Parity, Report
from .source import Source
from .splice import apply

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
    progress: Progress | None = None,
    **words: Unpack[Words],
) -> Report:
    """Write `src` with its first convs changed to `to` input channels ("gray", "rgb", "bgr", "rgba" or a number) to `dst`.

    Without `dst` the output is `<stem>_<to><ext>` beside the source; "-" is standard input or output. Without `to` it is gray,
    or what `select`, `bands` or `matrix` makes. `words` are the options of `options.Words`. `progress(done, total)` is called
    with bytes.

    Where nothing is to change the file is copied and the report's status is "unchanged". Raises a ChkptChannelsError,
    and nothing is written then.
    """
    began = time.perf_counter()
    if to is None and not any(words.get(rule) is not None for rule in ("select", "bands", "matrix")):
        to = "gray"
    options = sidecars.resolved(asking.make(to, **words), os.fspath(src))
    with open_source(src) as source, contextlib.ExitStack() as stack:
        kind = detect(source)
        path = output_path(source, kind, src, dst, options)
        out = begun = None
        if kind.in_place and not dry_run and ahead.pays(source):
            out = _output(path, source, stack, force=force)
            begun = stack.enter_context(ahead.Ahead(source, out.fd))
        checkpoint = kind(source)
        plan = planning.make(checkpoint, options)
        if dry_run:
            for edit in plan.edits.tensors.values():  # what cannot be computed is refused here too
                edit.values()
            parity = _parity(checkpoint, plan)
            status = "would_convert" if plan.edits else "unchanged"
            return _report(status, checkpoint, plan, options, path, None, parity, began)
        companions = checkpoint.companions(path, edited=bool(plan.edits))
        out = out or _output(path, source, stack, force=force)
        shown = (lambda done: progress(done, source.size)) if progress else None
        checkpoint.write(plan.edits._replace(companions=companions), out.fd, out.place, shown, begun)
        source.check_unchanged()
        size = check(checkpoint, plan, out.fd, str(path))
        parity = _parity(checkpoint, plan)
        with _companions(Path(source.name).parent, path, companions, force=force):
            out.publish()
        written = FileInfo(str(path), checkpoint.format, size)
        return _report("converted" if plan.edits else "unchanged", checkpoint, plan, options, path, written, parity, began)


def inspect(path: Path_) -> Inspection:
    """What a file holds: format, first convs with layout and evidence, tensors. Never fails for ambiguity: `first_convs` is
    empty then. `candidates` are the tensors that were considered and not taken. Raises DamagedError, UnsupportedError for
    foreign formats, SystemProblem."""
    with open_source(path) as source:
        checkpoint = detect(source)(source)
        finding = selection.find(checkpoint)
        return Inspection(
            _info(checkpoint),
            finding.first_convs,
            finding.candidates,
            tuple(checkpoint.declarations(finding.first_convs)),
            tuple(checkpoint.tensors.values()),
            tuple(checkpoint.optimizer_entries),
            planning.notices(checkpoint),
        )


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
    others = (FOREIGN_SUFFIXES | {s for other in known() for s in other.suffixes}) - kind.suffixes
    if os.fspath(dst) != STDIO and path.suffix.lower() in others:
        raise UsageError(
            f"the output {path.name} is named like another format, and the input is {kind.title}",
            hint=f"name it {path.with_suffix(Path(source.name).suffix).name}",
        )
    return path


def default_output(path: Path, word: str) -> Path:
    """`<stem>_<word><ext>` beside `path`; ".pth.tar" and its like are one extension."""
    suffix = path.suffix
    if suffix == ".tar" and Path(path.stem).suffix:
        suffix = Path(path.stem).suffix + suffix
    return path.with_name(f"{path.name.removesuffix(suffix)}_{word}{suffix}")


def _output(path: Path, source: Source, stack: contextlib.ExitStack, *, force: bool) -> Output | StandardOutput:
    """The output, which vanishes when `stack` ends, unless it is published."""
    if os.fspath(path) == STDIO:
        return stack.enter_context(StandardOutput())
    return stack.enter_context(Output(path, source, force=force))


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
            after.judge(f"/proc/self/fd/{fd}")
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


def _parity(checkpoint: Checkpoint, plan: Plan) -> Parity | None:
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
    takers = [taker for k in plan.kernels if k.mixing.offset and (taker := checkpoint.shift_taker(k.conv))]
    own = checkpoint.shift_taker(kernel.conv)
    if own is None or takers.count(own) != 1:
        return kernels.bias_shift(checkpoint, kernel)
    name, sign = own
    constant: NDArray[Any] = plan.edits.tensors[name].values().astype("float64") - checkpoint.load(name).astype("float64")
    return sign * constant


def _info(checkpoint: Checkpoint) -> FileInfo:
    return FileInfo(checkpoint.source.name, checkpoint.format, checkpoint.source.size, checkpoint.title)


def kernel_reports(plan: Plan) -> tuple[KernelReport, ...]:
    """The plan's kernels as they are reported."""
    return tuple(KernelReport(k.conv, k.shape, k.mixing.method, k.mixing.matrix, k.mixing.offset) for k in plan.kernels)


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
        plan.why,
        plan.candidates,
        plan.pipeline,
        asking.words(options),
    )
