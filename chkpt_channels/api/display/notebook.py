"""What a notebook and a prompt show of a result: one line, a table, a small picture of the kernels; and what they complete.

The results are those of report.py, which imports this module. Every word from a file goes through `_safe`: a name may hold HTML.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from chkpt_channels.api.display import words
from chkpt_channels.core.errors import DamagedError, FileSystemError, UnsupportedError, UsageError, printable

Result = TypeVar("Result", bound=type)
MOST_ROWS, MOST_TILES, MOST_SHEETS = 10, 64, 4
"""Rows of one kind in a table; tiles and sheets of a kernel in its picture."""


def shown(line: Callable[[Any], str], table: Callable[[Any], str] | None = None) -> Callable[[Result], Result]:
    """Give a record its line, for print and prompts, its table, for notebooks, and the names that are completed: those of its
    own, not those of a tuple."""

    def decorated(record: Result) -> Result:
        public = [name for name in vars(record) if not name.startswith("_")]
        looks = {"__str__": line, "__repr__": lambda self: f"<{type(self).__name__}: {line(self)}>", "__dir__": lambda _: public}
        for name, method in (looks | ({"_repr_html_": table} if table else {})).items():
            setattr(record, name, method)
        return record

    return decorated


def report_line(report: Any) -> str:
    """ "a_gray.pth: 3 → 1 channels; conv1.weight 64×3×7×7 → 64×1×7×7, the sum of R, G and B"."""
    kernels = [_kernel(kernel) for kernel in report.kernels]
    more = f", and {len(kernels) - 1} more" if len(kernels) > 1 else ""
    first = f"; {printable(report.kernels[0].conv.tensor.name)} {kernels[0]}{more}" if kernels else ""
    done = "" if report.output else "dry run, "
    return f"{printable(report.target, 1000)}: {done}{_channels(report)}{first}"


def inspection_line(inspection: Any) -> str:
    """ "a.pth: PyTorch, 97.8 MiB, 320 tensors; first conv conv1.weight OIHW 64×3×7×7"."""
    convs = [f"{printable(c.tensor.name)} {words.layout(c)} {words.shape(c.tensor.shape)}" for c in inspection.first_convs]
    more = f", and {len(convs) - 1} more" if len(convs) > 1 else ""
    count = words.count(len(inspection.tensors), "tensor")
    return f"{_file(inspection.input)}, {count}; first conv {convs[0] + more if convs else 'none identified'}"


def verification_line(verification: Any) -> str:
    """ "identical: 320 of 320 tensors", or the first difference."""
    counts = f"{verification.identical} of {words.count(verification.tensors_total, 'tensor')}"
    if verification.ok:
        return f"identical{f' under {verification.under}' if verification.under else ''}: {counts}"
    first = verification.differences[0]
    number = words.count(len(verification.differences), "difference")
    return f"{number}, {counts} identical; {printable(first.key)}: {printable(first.message)}"


def check_line(check: Any) -> str:
    """ "a.pth: agrees", or the first mismatch."""
    path = printable(check.input.path, 1000)
    if check.skipped:
        return f"{path}: skipped: {printable(check.skipped, 1000)}"
    if check.ok:
        return f"{path}: agrees"
    first = check.mismatches[0]
    found = f"{printable(first.where)}: {printable(words.contradiction(first), 1000)}"
    return f"{path}: {len(check.mismatches)} {'mismatch' if len(check.mismatches) == 1 else 'mismatches'}; {found}"


def report_html(report: Any) -> str:
    """The conversion as a table: what was made of what, what goes with it, what is to be known."""
    kernels = [(_safe(k.conv.tensor.name), _safe(_kernel(k))) for k in report.kernels]
    kept = report.tensors_total - len(report.changed)
    rows = [
        ("output", _safe(_file(report.output) if report.output else "dry run, nothing was written")),
        ("source", _safe(_file(report.input))),
        ("channels", _safe(_channels(report))),
        *_listed(kernels),
        *_listed([(_safe(d.where), _safe(f"{d.before} → {d.after}")) for d in report.declarations]),
        *([("kept", _safe(f"{words.count(kept, 'tensor')}, byte by byte"))] if report.status != "unchanged" else []),
        *_listed([("warning", _safe(notice.message)) for notice in report.warnings]),
        *_listed([("input", _safe(notice.message)) for notice in report.advice]),
        *([("load", f"<pre style='margin:0'>{_safe(report.load_lines)}</pre>")] if report.load_lines else []),
    ]
    files = [report.input.path, *([report.output.path] if report.output and report.status != "unchanged" else [])]
    return _table(report.target, rows, _picture(files, [kernel.conv for kernel in report.kernels]))


def inspection_html(inspection: Any) -> str:
    """The file as a table: its first convs and why, what it declares, what was rejected where there is none."""
    convs = [
        (
            _safe(conv.tensor.name),
            _safe(f"{words.layout(conv)} {words.shape(conv.tensor.shape)}, {words.dtype(conv.tensor)}, {words.evidence(conv)}"),
        )
        for conv in inspection.first_convs
    ]
    candidates = [(_safe(c.key), _safe(f"{words.shape(c.shape)}, {c.why_not}")) for c in inspection.candidates]
    rows = [
        ("file", _safe(f"{inspection.input.title}, {words.size(inspection.input.bytes)}")),
        *(_listed(convs) if convs else [("first conv", "none identified"), *_listed(candidates)]),
        *_listed([("declared", _safe(f"{d.where} = {d.channels}")) for d in inspection.declarations]),
        ("tensors", f"{len(inspection.tensors):,}"),
        *_listed([("warning", _safe(notice.message)) for notice in inspection.warnings]),
    ]
    return _table(inspection.input.path, rows, _picture([inspection.input.path], inspection.first_convs))


def _safe(text: str | Sequence[str]) -> str:
    """Text, or lines, as HTML."""
    import html

    lines = [text] if isinstance(text, str) else text
    return "\n".join(html.escape(printable(line, 1000)) for line in lines)


def _file(file: Any) -> str:
    about = f"{file.title}, " if file.title else ""
    return f"{printable(file.path, 1000)}: {about}{words.size(file.bytes)}"


def _channels(report: Any) -> str:
    before, after = report.in_channels
    if report.status == "unchanged":
        return "unchanged"
    return f"{before} → {after} channels" if before != after else words.count(after, "channel")


def _kernel(kernel: Any) -> str:
    before, after = words.shape(kernel.conv.tensor.shape), words.shape(kernel.shape_after or kernel.conv.tensor.shape)
    shapes = before if before == after else f"{before} → {after}"
    return f"{shapes}, {words.change(kernel.method, kernel.matrix, kernel.offset)}"


def _listed(rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """At most ten rows, and how many more there are."""
    yield from rows[:MOST_ROWS]
    if len(rows) > MOST_ROWS:
        yield "", f"and {len(rows) - MOST_ROWS} more"


def _table(title: str, rows: Sequence[tuple[str, str]], picture: str) -> str:
    """A table of rows that are HTML already."""
    cell = "style='text-align:left;vertical-align:top;padding:2px 12px 2px 0'"
    body = "".join(f"<tr><th {cell}>{label}</th><td {cell}>{text}</td></tr>" for label, text in rows)
    return f"<div><strong>{_safe(title)}</strong><table style='border-collapse:collapse'>{body}</table>{picture}</div>"


def _picture(files: Sequence[str], convs: Sequence[Any]) -> str:
    """The first kernel in each file, as one inline picture; "" without matplotlib, and where a file is not there any more or
    holds another network by now."""
    if not convs or not all(os.path.isfile(file) or os.path.isdir(file) for file in files):  # reading a pipe would wait
        return ""
    with contextlib.suppress(ImportError, DamagedError, FileSystemError, UnsupportedError, UsageError):
        from base64 import b64encode

        from chkpt_channels.api.display import sheets
        from chkpt_channels.api.display.filters import load_filters

        kernels = [load_filters(file, beside=convs[0].tensor.name) for file in files]
        scale, drawn = sheets.scale_of(kernels), []
        for kernel in kernels:
            panels = sheets.panels(kernel, sheets.channel_names(kernel), apart=kernel.apart)
            drawn += [sheets.sheet(panel.weights[:MOST_TILES], scale) for panel in panels[:MOST_SHEETS]]
        picture = b64encode(sheets.png(drawn)).decode()
        looks = "alt='filters of the first convolution' style='max-width:100%;max-height:160px;margin-top:8px'"
        return f"<img {looks} src='data:image/png;base64,{picture}'>"
    return ""
