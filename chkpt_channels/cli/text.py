"""Reports as text: one block of lines for each file, never wrapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chkpt_channels.api.report import Check, Inspection, KernelReport, Report, Verification
from chkpt_channels.core.errors import Candidate, printable
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.storage.source import STDIO
from chkpt_channels.transform.mixing.normalization import Normalization

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """A number of bytes for people: "97.8 MiB"."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def shape(dimensions: Sequence[int]) -> str:
    """64×3×7×7."""
    return "×".join(map(str, dimensions)) or "scalar"


def dtype(tensor: Tensor) -> str:
    """float32."""
    return tensor.dtype.torch or tensor.dtype.name


def conversion_lines(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """The lines about one conversion."""
    source, target = (printable(Path(path).name) for path in (report.input.path, report.target))
    done = f"{report.seconds:.1f} s" if report.output else "dry run, nothing was written"
    yield f"{source} → {target}   {report.input.title} · {size(report.input.bytes)} · {done}"
    width = max((len(printable(k.conv.tensor.name)) for k in report.kernels), default=0)
    yield from (f"  {line}" for k in report.kernels for line in _kernel_lines(k, width, verbose=verbose))
    if report.beside:
        is_folder = report.input.format == "folder"
        home = report.target if is_folder else os.path.dirname(report.target)
        names = ", ".join(printable(os.path.relpath(path, home)) for path in report.beside)
        yield f"  {'its files' if is_folder else 'beside it'}: {names}"
    if report.status == "unchanged":
        already = f"{_count(report.in_channels[1], 'input channel')} already" if report.kernels else "no shape differs from LIKE"
        yield f"  unchanged: {already}" + (
            "; every byte copied" if report.output and not any(w.code == "renamed_data" for w in report.warnings) else ""
        )
        return
    if report.why:
        yield f"  {_method_of(report)} is the default here: {printable(report.why, 1000)}"
    home = report.input.path if report.input.format == "folder" else os.path.dirname(report.input.path)
    for declaration in report.declarations:
        file = f"{printable(os.path.relpath(declaration.file, home))}: " if declaration.file else ""
        yield f"  {file}{printable(declaration.where)}: {_short(declaration.before)} → {_short(declaration.after)}"
    others = [name for name in report.changed if name not in {k.conv.tensor.name for k in report.kernels}]
    if others:
        yield f"  also changed: {', '.join(printable(name) for name in others)}"
    sign = "fewer" if report.parameters_fewer >= 0 else "more"
    kept = report.tensors_total - len(report.changed)
    yield f"  {_count(kept, 'other tensor')}: identical bytes · {_count(abs(report.parameters_fewer), 'parameter')} {sign}"
    if verbose:
        yield from _rejected_lines(report.candidates)
    if report.parity:
        image, largest = _image(report.in_channels[1]), report.parity
        yield f"  parity on a random {image} image: max |Δ| {largest.max_abs:.1e} ({largest.max_ulp:.1f} ulp)"


def _short(value: Any) -> str:
    """A number, or a list of them to six digits."""
    if isinstance(value, list):
        return f"[{', '.join(_short(item) for item in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value).lower()


def _method_of(report: Report) -> str:
    return next((k.method for k in report.kernels if k.method and k.method != "identity"), "")


def _rejected_lines(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The tensors that were rejected as first convs."""
    if candidates:
        yield "  rejected:"
        yield from (f"  {line}" for line in candidate_rows(candidates, len(candidates)))


def explanation_lines(report: Report) -> Iterator[str]:
    """The matrix and the formula in use, for each first conv."""
    for kernel in report.kernels:
        tensor = kernel.conv.tensor
        after = shape(kernel.shape_after or tensor.shape)
        yield f"{printable(tensor.name)}   {_layout(kernel.conv)}  {shape(tensor.shape)} → {after}   {kernel.method}"
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
            yield f"  {new}, in float64, rounded once to {dtype(tensor)}"
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


def note_lines(report: Report) -> Iterator[str]:
    """The lines on stderr after a conversion: warnings, the preprocessing, and the line that loads the output."""
    yield from (f"warning: {printable(w.message, 1000)}" for w in report.warnings)
    if report.status == "unchanged":
        return
    yield from (f"note: {line}" for line in _preprocessing_notes(report))
    if report.output and report.output.path != STDIO and report.load_lines:  # standard output has no name to load from
        yield f"next: {'; '.join(report.load_lines)}"


def _preprocessing_notes(report: Report) -> Iterator[str]:
    """What the preprocessing of the output has to do."""
    before, after = report.in_channels
    method = _method_of(report)
    if report.options.get("fold_adapter"):
        yield "the images stay as they are"
    elif report.pipeline:
        yield _fed(report.pipeline)
    elif method in ("broadcast", "stack", "adapter", "gather"):
        new = "the new one" if after == 1 else f"{after} new ones"
        yield f"{method}: no weight changed; the graph makes the {before} old channels of {new}, exact everywhere"
    elif before == after:
        yield "preprocessing must give the channels, their means and stds in the new order"
    elif after == 1:
        yield "sum is exact where preprocessing had three equal means and stds; --norm imagenet folds in unequal ones"
    else:
        yield f"preprocessing now needs {_count(after, 'mean')} and {_count(after, 'std')}; --norm folds in the old ones"


def _fed(pipeline: Normalization) -> str:
    """What an output with a normalization expects."""
    mean, std = (",".join(f"{value:.6g}" for value in values) for values in pipeline[:2])
    top = pipeline.input_range
    if not any(pipeline.mean) and set(pipeline.std) == {1}:
        return f"feed it images in 0..{top:g} as they are"
    formula = "(raw - mean) / std" if top == 1 else f"(raw - {top:g} · mean) / std, raw in 0..{top:g}"
    return f"feed it {formula}: --new-mean {mean} --new-std {std}"


def _image(channels: int) -> str:
    return {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def _kernel_lines(kernel: KernelReport, width: int, *, verbose: bool) -> Iterator[str]:
    tensor = kernel.conv.tensor
    after = f" → {shape(kernel.shape_after)}" if kernel.shape_after not in (None, tensor.shape) else ""
    method = f"   {kernel.method}" if kernel.method and kernel.method != "identity" else ""
    about = f"{_layout(kernel.conv)}  {shape(tensor.shape)}{after}   {dtype(tensor)}{method}   {_evidence(kernel.conv)}"
    yield f"{printable(tensor.name):{width}}   {about}"
    if verbose and kernel.matrix and kernel.method != "identity":
        rows = "; ".join(" ".join(f"{value:g}" for value in row) for row in kernel.matrix)
        yield f"{'':{width}}   old = A · new, A = [{rows}]"


def _layout(conv: FirstConv) -> str:
    return str(conv.layout) if conv.layout else "layout ambiguous"


def _evidence(conv: FirstConv) -> str:
    return f"found by {conv.found_by}" + (f": {conv.why}" if conv.why else "")


def inspection_lines(inspection: Inspection, *, everything: bool = False, verbose: bool = False) -> Iterator[str]:
    """The lines about one file."""
    yield f"{printable(inspection.input.path)}: {inspection.input.title} · {size(inspection.input.bytes)}"
    label = "first conv"
    width = max((len(printable(c.tensor.name)) for c in inspection.first_convs), default=0)
    for conv in inspection.first_convs:
        tensor = conv.tensor
        about = f"{_layout(conv)} {shape(tensor.shape)}  {dtype(tensor)}   {_evidence(conv)}"
        yield f"  {label:10}   {printable(tensor.name):{width}}   {about}"
        label = ""
    if not inspection.first_convs:
        yield "  first conv   none identified"
        yield from candidate_rows(inspection.candidates)
    elif verbose:
        yield from _rejected_lines(inspection.candidates)
    for declaration in inspection.declarations:
        yield f"  declared     {printable(declaration.where)} = {declaration.channels}"
    shapes = {conv.tensor.shape for conv in inspection.first_convs}
    carried = [t for e in inspection.optimizer for t in e.tensors.values() if t.shape in shapes]
    if carried:
        yield f"  carried      {', '.join(printable(t.name) for t in carried)}"
    yield from (f"  warning      {printable(w.message, 1000)}" for w in inspection.warnings)
    if everything:
        yield from _tensor_rows(inspection.tensors)
    else:
        yield f"  {_count(len(inspection.tensors), 'tensor')}; --all lists them"


def _tensor_rows(tensors: Iterable[Tensor]) -> Iterator[str]:
    rows = [(printable(t.name), dtype(t), shape(t.shape)) for t in tensors]
    width = max((len(name) for name, _, _ in rows), default=0)
    yield from (f"  {name:{width}}  {kind:8}  {dimensions}" for name, kind, dimensions in rows)


def candidate_rows(candidates: Sequence[Candidate], most: int = 10) -> Iterator[str]:
    """One row a candidate, at most `most`."""
    width = max((len(printable(c.key)) for c in candidates[:most]), default=0)
    for candidate in candidates[:most]:
        yield f"  {printable(candidate.key):{width}}   {shape(candidate.shape)}   {printable(candidate.why_not)}".rstrip()
    if len(candidates) > most:
        yield f"  and {len(candidates) - most} more"


def check_lines(check: Check) -> Iterator[str]:
    """The lines about one file that was checked: nothing where it agrees."""
    name = printable(check.input.path)
    if check.skipped:
        yield f"{name}: skipped: {printable(check.skipped, 1000)}"
    yield from (f"{name}: {printable(notice.message, 1000)}" for notice in check.notices)
    for mismatch in check.mismatches:
        yield f"{printable(mismatch.file)}: {printable(mismatch.where)}: found {mismatch.found}, expected {mismatch.expected}"


def verification_lines(verification: Verification, most: int = 10) -> Iterator[str]:
    """The lines about a comparison."""
    total = verification.tensors_total
    if verification.ok:
        rules = "; ".join(f"{printable(k.conv.tensor.name)} is {_rule_of(k)}, to the last bit" for k in verification.kernels)
        yield f"identical: {verification.identical} of {total} tensors" + (f" · {rules}" if rules else "")
        yield from _input_lines(verification)
        return
    first = f"{printable(verification.input.path)} and {printable(verification.output.path)}"
    count = _count(len(verification.differences), "difference")
    yield f"{first}: {count}; {verification.identical} of {total} tensors are identical"
    for difference in verification.differences[:most]:
        yield f"  {printable(difference.key)}: {printable(difference.message)}"
    if len(verification.differences) > most:
        yield f"  and {len(verification.differences) - most} more"


def _input_lines(verification: Verification) -> Iterator[str]:
    """What the input of a conversion takes; nothing where it takes what it took."""
    before, after = verification.in_channels
    changed = [kernel for kernel in verification.kernels if kernel.method != "identity"]
    columns = list(zip(*(changed[0].matrix or ()), strict=True)) if changed else []
    copied = [str(column.index(1)) for column in columns if sorted(column) == [*[0] * (len(column) - 1), 1]]
    if changed:
        which = f", the old ones {', '.join(copied)}," if len(copied) == len(columns) > 0 else ""
        fed = f"; {_fed(verification.pipeline)}" if verification.pipeline else ""
        yield f"the input takes {_count(after, 'channel')}{which} where it took {before}{fed}"


def _rule_of(kernel: KernelReport) -> str:
    old, new = len(kernel.matrix or ()), len((kernel.matrix or ((),))[0])
    if kernel.method == "identity" and not kernel.offset:
        return "unchanged"
    constant = "its constant" if kernel.method == "fold-adapter" else "both normalizations"
    through = f", with {constant} folded in" if kernel.offset else ""
    if kernel.method == "sum":
        return f"the sum over its {old} input channels{through}"
    return f"made by {kernel.method} from {_count(old, 'input channel')} to {new}{through}"
