"""The report of a conversion as text: the outcome first, then each kernel, the check, what is fed to it, what loads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.display import words
from chkpt_channels.api.report import KernelReport, Report
from chkpt_channels.cli.text import rejected_lines
from chkpt_channels.core.errors import printable
from chkpt_channels.storage.source import STDIO
from chkpt_channels.storage.urls import is_url

if TYPE_CHECKING:
    from chkpt_channels.api.fleet.ledger import Line
    from chkpt_channels.storage.stores.parts import Transfer

Parts = tuple[Iterable[str], Iterable[str], Iterable[str]]
"""The lines of a report, the messages beside it, and the lines that come last."""


def parts(report: Report | Line, source: str, width: int, *, explain: bool, verbose: bool) -> Parts:
    """All about one conversion; of many, whose names are as long as `width`, one line and the warnings."""
    if not isinstance(report, Report):
        return [f"{printable(source):{width}}   = {printable(report.dst or '', 1000)}   done before"], (), ()
    if explain:
        return explanation_lines(report), (), ()
    if width:
        return [outcome_row(source, report, width)], warning_lines(report, source), ()
    return conversion_lines(report, verbose=verbose), warning_lines(report), closing_lines(report)


def conversion_lines(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """The lines about one conversion: the outcome, what became of each kernel, what goes with it, the check."""
    written = f"{words.size(report.output.bytes)}   {report.seconds:.1f} s" if report.output else "dry run, nothing was written"
    took = "up to date, nothing was written" if report.status == "current" else written
    yield f"{_outcome(report)}   {took}"
    if verbose:
        yield f"  from {printable(report.input.path)}: {report.input.title}, {words.size(report.input.bytes)}"
    width = max((len(printable(k.conv.tensor.name)) for k in report.kernels), default=0)
    changed = {*report.changed, *(k.conv.tensor.name for k in report.kernels)}
    kept = "" if report.status == "unchanged" else _kept(report.tensors_total - len(report.changed), len(report.changed))
    for kernel in report.kernels if report.status != "unchanged" or verbose else ():
        rest = f"; {kept}" if kept and len(changed) == 1 else ""
        yield from (f"  {line}" for line in _kernel_lines(kernel, width, rest, verbose=verbose))
    others = [name for name in report.changed if name not in {k.conv.tensor.name for k in report.kernels}]
    for what, names in (("changed", [n for n in others if n not in report.removed]), ("taken out", report.removed)):
        if names:
            yield f"  also {what}: {', '.join(printable(name) for name in names)}"
    if kept and len(changed) != 1:
        yield f"  {kept}"
    yield from _declared_lines(report)
    yield from _beside_lines(report)
    yield from _check_lines(report)
    if report.transfer:
        yield from _transfer_lines(report.transfer)
    if verbose:
        yield from _verbose_lines(report)


def _outcome(report: Report) -> str:
    """✓ where it was written, = where nothing had to change or to be written."""
    (before, after), target = report.in_channels, printable(report.target, 1000)
    if report.status == "unchanged":
        already = f"{words.count(after, 'input channel')} already" if report.kernels else "no shape differs from LIKE"
        renamed = any(w.code == "renamed_data" for w in report.warnings)
        return f"= {target}   unchanged: {already}" + ("; every byte copied" if report.output and not renamed else "")
    counts = f"{before} → {after} channels" if before != after else words.count(after, "channel")
    sign = "= " if report.status == "current" else "✓ " if report.output else ""
    return f"{sign}{target}   {counts}"


def outcome_row(source: str, report: Report, width: int) -> str:
    """The one line about one of many conversions."""
    method = "" if report.status == "unchanged" else f"   {_method_of(report)}"
    took = "up to date" if report.status == "current" else f"{report.seconds:.1f} s" if report.output else "dry run"
    return f"{printable(source):{width}}   {_outcome(report)}{method}   {took}"


def _kept(count: int, changed: int) -> str:
    """What is said of the tensors that did not change."""
    which = "the other" if changed else "all" if count > 1 else "its"
    return f"{which} {words.count(count, 'tensor')} {'is' if count == 1 else 'are'} byte-identical" if count else ""


def _declared_lines(report: Report) -> Iterator[str]:
    home = report.input.path if report.input.format == "folder" else os.path.dirname(report.input.path)
    for declaration in report.declarations if report.status != "unchanged" else ():
        file = f"{printable(os.path.relpath(declaration.file, home))}: " if declaration.file else ""
        yield f"  {file}{printable(declaration.where)}: {_short(declaration.before)} → {_short(declaration.after)}"


def _beside_lines(report: Report) -> Iterator[str]:
    if report.beside:
        is_folder = report.input.format == "folder"
        home = report.target if is_folder else os.path.dirname(report.target)
        names = ", ".join(printable(os.path.relpath(path, home)) for path in report.beside)
        yield f"  {'its files' if is_folder else 'beside it'}: {names}"
    if report.output and report.output.sha256:
        yield f"  sha256: {report.output.sha256}"


def _check_lines(report: Report) -> Iterator[str]:
    """What the result was compared with."""
    if report.status == "unchanged":
        return
    checked = "checked" if report.output else "computed"
    if report.parity:
        before, after = report.in_channels
        stacked = after == 1 and all(row == (1.0,) for k in report.kernels if k.method == "sum" for row in k.matrix or ())
        same = f"it gave stacked {before} times" if stacked and _method_of(report) == "sum" else "its old channels gave"
        measured = f"|Δ| ≤ {report.parity.max_abs:.1e}, {report.parity.max_ulp:.1f} ulp"
        image = "BGR" if report.options.get("to") == "bgr" else words.image(after)
        yield f"  {checked}: a random {image} image gives in the first layer what {same} ({measured})"
    elif report.output:
        yield "  checked: read back as planned; where nothing was to change, no byte did"


def _transfer_lines(transfer: Transfer) -> Iterator[str]:
    """How the output came into the store, and what that leaves open."""
    moved = f"{words.size(transfer.read_bytes)} read, {words.size(transfer.written_bytes)} sent"
    copied = f"{words.size(transfer.copied_bytes)} copied there" if transfer.copied_bytes else "all of it streamed through here"
    yield f"  store: {copied}; {moved}; {words.count(transfer.requests, 'request')}"
    if transfer.unverified_bytes:
        yield f"  store: {words.size(transfer.unverified_bytes)} of the source were compared with no checksum, here or there"
    if transfer.overwrite_guard != "store":
        yield "  store: that no other's new object was replaced shows a look right before the end, not the store itself"


def _verbose_lines(report: Report) -> Iterator[str]:
    """The evidence."""
    if report.why:
        yield f"  {_method_of(report)} is the default here: {printable(report.why, 1000)}"
    if report.parameters_fewer:
        sign = "fewer" if report.parameters_fewer > 0 else "more"
        yield f"  {words.count(abs(report.parameters_fewer), 'parameter')} {sign}"
    yield from rejected_lines(report.candidates)


def _kernel_lines(kernel: KernelReport, width: int, rest: str, *, verbose: bool) -> Iterator[str]:
    tensor = kernel.conv.tensor
    after = f" → {words.shape(kernel.shape_after)}" if kernel.shape_after not in (None, tensor.shape) else ""
    change = words.change(kernel.method, kernel.matrix, kernel.offset)
    yield f"{printable(tensor.name):{width}}   {words.shape(tensor.shape)}{after}, {change}{rest}"
    if verbose:
        yield f"{'':{width}}   {words.layout(kernel.conv)}, {words.dtype(tensor)}, {words.evidence(kernel.conv)}"
    if verbose and kernel.matrix and kernel.method != "identity":
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in kernel.matrix)
        yield f"{'':{width}}   old = A · new, A = [{rows}]"


def _short(value: Any) -> str:
    """A number, or a list of them to six digits."""
    if isinstance(value, list):
        return f"[{', '.join(_short(item) for item in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value).lower()


def _method_of(report: Report) -> str:
    return next((k.method for k in report.kernels if k.method and k.method != "identity"), "")


def explanation_lines(report: Report) -> Iterator[str]:
    """The matrix and the formula in use, for each first conv."""
    for kernel in report.kernels:
        tensor = kernel.conv.tensor
        after = words.shape(kernel.shape_after or tensor.shape)
        yield f"{printable(tensor.name)}   {words.layout(kernel.conv)}  {words.shape(tensor.shape)} → {after}   {kernel.method}"
        if kernel.method in ("broadcast", "stack", "identity"):
            yield "  W' = W: no weight changes"
            continue
        mapped = "x_old[i, u] = Σ_a Σ_j A_a[i, j] · x_new[j, u + a]" if kernel.grows else "x_old[i] = Σ_j A[i, j] · x_new[j]"
        yield f"  {mapped}" + (" + t[i]" if kernel.offset else "")
        if kernel.method in ("adapter", "gather"):
            node = "1×1 convolution" if kernel.method == "adapter" else "Gather"
            yield f"  W' = W: a {node} in front holds A" + (" and t" if kernel.offset else "")
        else:
            kept = "W'[j] = Σ_i W[i] · A[i, j]   for every filter and tap"
            new = "W'[j, a + b] = Σ_i W[i, b] · A_a[i, j]   for every filter, A = Σ_a A_a" if kernel.grows else kept
            yield f"  {new}, in float64, rounded once to {words.dtype(tensor)}"
        if kernel.offset and kernel.method != "adapter":
            yield "  b' = b + Σ_i t[i] · Σ_taps W[i]"
        yield from _matrix_rows(kernel)
    if report.why:
        yield f"{_method_of(report)} is the default here: {printable(report.why, 1000)}"


def _matrix_rows(kernel: KernelReport) -> Iterator[str]:
    rows = [[f"{value:.6g}" for value in row] for row in kernel.matrix or ()]
    width = max(len(cell) for row in rows for cell in row)
    shifts = [f"{value:.6g}" for value in kernel.offset] or [""] * len(rows)
    for i, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        tail = f"   t = {shift}" if shift else ""
        yield f"  {'A =' if not i else '   '} [ {'  '.join(f'{cell:>{width}}' for cell in row)} ]{tail}"


def warning_lines(report: Report, source: str = "") -> Iterator[str]:
    """The warnings of a conversion, of one among many with its source."""
    yield from (f"warning: {f'{printable(source)}: ' if source else ''}{printable(w.message, 1000)}" for w in report.warnings)


def closing_lines(report: Report) -> Iterator[str]:
    """What the output takes as input, and the lines that load it: these come last, and can be pasted as they stand."""
    if report.status == "unchanged":
        return
    yield from (f"  {'Input' if not i else '':5}  {printable(note.message, 1000)}" for i, note in enumerate(report.advice))
    if report.output and report.output.path != STDIO and report.load_lines:  # standard output has no name to load from
        yield f"  Load   once {_fetching(report.output.path)} has fetched it" if is_url(report.output.path) else "  Load"
        yield from report.load_lines


def _fetching(url: str) -> str:
    from chkpt_channels.storage.stores.address import fetching

    return fetching(url)
