"""Reports as text: one block of lines for each file, never wrapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from chkpt_channels.api.advice import normalize
from chkpt_channels.api.display import words
from chkpt_channels.api.report import Check, Inspection, KernelReport, Verification
from chkpt_channels.core.errors import Candidate, printable
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.transform.mixing.rules import GRAPH_METHODS


def rejected_lines(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The tensors that were rejected as first convs."""
    if candidates:
        yield "  rejected:"
        yield from (f"  {line}" for line in candidate_rows(candidates, len(candidates)))


def inspection_lines(inspection: Inspection, *, everything: bool = False, verbose: bool = False) -> Iterator[str]:
    """The lines about one file."""
    yield f"{printable(inspection.input.path)}: {inspection.input.title} · {words.size(inspection.input.bytes)}"
    label = "first conv"
    width = max((len(printable(c.tensor.name)) for c in inspection.first_convs), default=0)
    for conv in inspection.first_convs:
        tensor = conv.tensor
        about = f"{words.layout(conv)} {words.shape(tensor.shape)}  {words.dtype(tensor)}   {words.evidence(conv)}"
        yield f"  {label:10}   {printable(tensor.name):{width}}   {about}"
        label = ""
    if not inspection.first_convs:
        yield "  first conv   none identified"
        yield from candidate_rows(inspection.candidates)
    elif verbose:
        yield from rejected_lines(inspection.candidates)
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
        yield f"  {words.count(len(inspection.tensors), 'tensor')}; --all lists them"


def _tensor_rows(tensors: Iterable[Tensor]) -> Iterator[str]:
    rows = [(printable(t.name), words.dtype(t), words.shape(t.shape)) for t in tensors]
    width = max((len(name) for name, _, _ in rows), default=0)
    yield from (f"  {name:{width}}  {kind:8}  {dimensions}" for name, kind, dimensions in rows)


def candidate_rows(candidates: Sequence[Candidate], most: int = 10) -> Iterator[str]:
    """One row a candidate, at most `most`."""
    width = max((len(printable(c.key)) for c in candidates[:most]), default=0)
    for candidate in candidates[:most]:
        yield f"  {printable(candidate.key):{width}}   {words.shape(candidate.shape)}   {printable(candidate.why_not)}".rstrip()
    if len(candidates) > most:
        yield f"  and {len(candidates) - most} more"


def check_lines(check: Check) -> Iterator[str]:
    """The lines about one file that was checked: what is wrong, or what was compared with what."""
    name = printable(check.input.path)
    if check.ok and not check.skipped:
        counts = sorted({conv.in_channels for conv in check.first_convs})
        places = ", ".join(printable(conv.tensor.name) for conv in check.first_convs[:3]) + ("…" if check.first_convs[3:] else "")
        said = " and ".join(map(printable, check.against))
        compared = f"in agreement with {said}" if said else "and nothing that declares another number"
        yield f"✓ {name}: {' and '.join(map(str, counts))} input channel{'' if counts == [1] else 's'} ({places}), {compared}"
    if check.skipped:
        yield f"{name}: skipped: {printable(check.skipped, 1000)}"
    yield from (f"{name}: {printable(notice.message, 1000)}" for notice in check.notices)
    for mismatch in check.mismatches:
        yield f"{printable(mismatch.file)}: {printable(mismatch.where)}: {printable(words.contradiction(mismatch), 1000)}"


def verification_lines(verification: Verification, most: int = 10) -> Iterator[str]:
    """The lines about a comparison."""
    total = verification.tensors_total
    if verification.ok:
        rules = "; ".join(f"{printable(k.conv.tensor.name)} is {_rule_of(k)}, to the last bit" for k in verification.kernels)
        under = f" under {verification.under}" if verification.under else ""
        yield f"identical{under}: {verification.identical} of {total} tensors" + (f" · {rules}" if rules else "")
        yield from _input_lines(verification)
        return
    first = f"{printable(verification.input.path)} and {printable(verification.output.path)}"
    count = words.count(len(verification.differences), "difference")
    yield f"{first}: {count}; {verification.identical} of {total} tensors are identical"
    for difference in verification.differences[:most]:
        yield f"  {printable(difference.key)}: {printable(difference.message)}"
    if len(verification.differences) > most:
        yield f"  and {len(verification.differences) - most} more"
    if verification.hint:
        yield f"try: {verification.hint}"


def _input_lines(verification: Verification) -> Iterator[str]:
    """What the network takes after a conversion; nothing where it takes what it took."""
    before, after = verification.in_channels
    changed = [kernel for kernel in verification.kernels if kernel.method != "identity"]
    columns = list(zip(*(changed[0].matrix or ()), strict=True)) if changed else []
    copied = [str(source) for source in map(words.copied, columns) if source is not None]
    if changed:
        which = f", the old ones {', '.join(copied)}," if len(copied) == len(columns) > 0 else ""
        fed = f"; feed it {normalize(verification.pipeline)}" if verification.pipeline else ""
        if changed[0].method in GRAPH_METHODS:
            which = f"; the graph makes {before} of {'it' if after == 1 else 'them'}"
        else:
            which += f" where it took {before}"
        yield f"the network takes {words.count(after, 'channel')}{which}{fed}"


def _rule_of(kernel: KernelReport) -> str:
    return "unchanged" if words.graph_change(kernel.method, (0, 0)) else words.change(kernel.method, kernel.matrix, kernel.offset)


def annotation_lines(result: dict[str, Any]) -> Iterator[str]:
    """GitHub's workflow commands, which a pull request shows beside the file: one for each error, difference and warning of a
    result (its JSON record). Source: GitHub Actions' documentation."""
    path = result["input"]["path"]
    if error := result["error"]:
        yield _annotation("error", path, error["message"] + (f" (try: {error['hint']})" if error["hint"] else ""))
    for difference in result["differences"]:
        yield _annotation("error", path, f"{difference['key']}: {difference['message']}")
    for warning in result["warnings"]:
        yield _annotation("warning", path, warning["message"])


def _annotation(level: str, path: str, message: str) -> str:
    file = _escaped(path).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} file={file},title=chkpt-channels::{_escaped(message)}"


def _escaped(text: str) -> str:
    """Text in which nothing ends the command, or begins another: what is not printable is spelled out."""
    text = "".join(c if c.isprintable() or c in "\r\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
