"""The reports: one record for each command, printed as text or as JSON of one shape, which schema.json describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.display import notebook, words
from chkpt_channels.core.errors import Candidate, ChkptChannelsError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, OptimizerEntry, Tensor
from chkpt_channels.formats.base import NamedNetwork
from chkpt_channels.transform.mixing.normalization import Normalization

if TYPE_CHECKING:
    from chkpt_channels.storage.stores.parts import Transfer

SCHEMA_VERSION = "1.5"


class FileInfo(NamedTuple):
    """A file: its path, format and size in bytes."""

    path: str
    format: str
    bytes: int
    title: str = ""
    sha256: str = ""


class KernelReport(NamedTuple):
    """One first conv, before and after."""

    conv: FirstConv
    shape_after: tuple[int, ...] | None = None
    method: str | None = None
    matrix: tuple[tuple[float, ...], ...] | None = None
    offset: tuple[float, ...] = ()

    @property
    def grows(self) -> bool:
        """Whether it gets more taps."""
        letters = self.conv.layout.axes if self.conv.layout else ""
        sizes = zip(letters, self.conv.tensor.shape, self.shape_after or (), strict=False)
        return any(letter in "DHW" and after > before for letter, before, after in sizes)


class DeclarationChange(NamedTuple):
    """A channel count outside tensors, before and after."""

    where: str
    before: Any
    after: Any
    file: str = ""


class Parity(NamedTuple):
    """The largest difference of first-layer activations on a random image, absolute and in ulps."""

    max_abs: float
    max_ulp: float


class Difference(NamedTuple):
    """A difference that `verify` found: a tensor or a declaration, and what is wrong with it."""

    key: str
    message: str


class Mismatch(NamedTuple):
    """What `check` found wrong: the file, the place in it, the value there, the expected one, and the other file that has it."""

    file: str
    where: str
    found: Any
    expected: Any
    beside: str = ""


@notebook.shown(notebook.check_line)
class Check(NamedTuple):
    """The result of `check`. `skipped` is the reason why a file was not examined, `against` what it was compared with."""

    input: FileInfo
    first_convs: tuple[FirstConv, ...]
    mismatches: tuple[Mismatch, ...]
    skipped: str = ""
    notices: tuple[Notice, ...] = ()
    against: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing disagrees."""
        return not self.mismatches

    def result(self) -> dict[str, Any]:
        """The JSON record."""
        return record(
            "skipped" if self.skipped else "agrees" if self.ok else "disagrees",
            self.input,
            **_found_fields(self.first_convs),
            differences=[{"key": f"{m.file}: {m.where}", "message": words.contradiction(m)} for m in self.mismatches],
            notes=_notice_records([Notice("compared_with", what) for what in self.against]),
            warnings=_notice_records((*([Notice("skipped", self.skipped)] if self.skipped else []), *self.notices)),
        )


@notebook.shown(notebook.inspection_line, notebook.inspection_html)
class Inspection(NamedTuple):
    """The content of a file. `first_convs` is empty where it is ambiguous; `candidates` are tensors that were rejected."""

    input: FileInfo
    first_convs: tuple[FirstConv, ...]
    candidates: tuple[Candidate, ...]
    declarations: tuple[Declaration, ...]
    tensors: tuple[Tensor, ...]
    optimizer: tuple[OptimizerEntry, ...]
    warnings: tuple[Notice, ...]

    def result(self) -> dict[str, Any]:
        """The JSON record."""
        path = self.input.path
        return record(
            "inspected",
            self.input,
            **_found_fields(self.first_convs),
            candidates=[_candidate_record(c) for c in self.candidates],
            declarations=[{"file": path, "where": d.where, "before": d.channels, "after": None} for d in self.declarations],
            tensors={"total": len(self.tensors), "changed": 0},
            warnings=_notice_records(self.warnings),
        )


@notebook.shown(notebook.report_line, notebook.report_html)
class Report(NamedTuple):
    """The result of `convert`. `status` is converted, unchanged, current or would_convert; `output` is what is at `target`, if
    anything; of the `changed` tensors the `removed` are gone; `why` says why a method is the default; `candidates` were rejected;
    the output expects `pipeline`, `beside` goes with it; `load_lines` load it, and build `network`."""

    status: str
    input: FileInfo
    target: str
    output: FileInfo | None
    in_channels: tuple[int, int]
    kernels: tuple[KernelReport, ...]
    declarations: tuple[DeclarationChange, ...]
    tensors_total: int
    changed: tuple[str, ...]
    parameters_fewer: int
    parity: Parity | None
    warnings: tuple[Notice, ...]
    seconds: float
    why: str = ""
    candidates: tuple[Candidate, ...] = ()
    pipeline: Normalization | None = None
    options: Mapping[str, Any] = {}
    beside: tuple[str, ...] = ()
    load_lines: tuple[str, ...] = ()
    network: NamedNetwork | None = None
    advice: tuple[Notice, ...] = ()
    transfer: Transfer | None = None
    removed: tuple[str, ...] = ()

    def result(self) -> dict[str, Any]:
        """The JSON record."""
        return record(
            self.status,
            self.input,
            output=_output_record(self.output),
            transfer=self.transfer._asdict() if self.transfer else None,
            beside=list(self.beside),
            next=list(self.load_lines),
            architecture={**self.network._asdict(), "names": list(self.network.names)} if self.network else None,
            notes=_notice_records(self.advice),
            in_channels=_channels_record(self.in_channels),
            **_kernel_fields(self.kernels, method="identity"),
            options=dict(self.options),
            method_why=self.why or None,
            pipeline=_pipeline_record(self.pipeline),
            candidates=[_candidate_record(c) for c in self.candidates],
            declarations=[
                {"file": d.file or self.input.path, "where": d.where, "before": d.before, "after": d.after}
                for d in self.declarations
            ],
            tensors={"total": self.tensors_total, "changed": len(self.changed)},
            parity=self.parity._asdict() if self.parity else None,
            warnings=_notice_records(self.warnings),
        )


@notebook.shown(notebook.verification_line)
class Verification(NamedTuple):
    """Whether a file is the conversion of another; `pipeline` is as in Report. Where the user states no rule, `under` has the
    options with which it is, as typed, and `options` as in Report; of one that differs, `hint` has those of its kernel's rule, or
    the command that compares them the other way round, where that is what was meant."""

    input: FileInfo
    output: FileInfo
    in_channels: tuple[int, int] = (0, 0)
    kernels: tuple[KernelReport, ...] = ()
    identical: int = 0
    tensors_total: int = 0
    differences: tuple[Difference, ...] = ()
    warnings: tuple[Notice, ...] = ()
    pipeline: Normalization | None = None
    under: str = ""
    options: Mapping[str, Any] = {}
    hint: str = ""

    @property
    def ok(self) -> bool:
        """No difference was found."""
        return not self.differences

    def result(self) -> dict[str, Any]:
        """The JSON record."""
        return record(
            "identical" if self.ok else "different",
            self.input,
            output=_output_record(self.output),
            in_channels=_channels_record(self.in_channels),
            options=dict(self.options),
            **_kernel_fields(self.kernels),
            tensors={"total": self.tensors_total, "changed": self.tensors_total - self.identical},
            pipeline=_pipeline_record(self.pipeline),
            differences=[difference._asdict() for difference in self.differences],
            warnings=_notice_records(self.warnings),
        )


def failure_record(path: str, error: ChkptChannelsError) -> dict[str, Any]:
    """The JSON record of a file that was refused."""
    candidates = [_candidate_record(c) for c in error.candidates]
    about = {"code": error.code, "message": str(error), "hint": error.hint or None, "candidates": candidates}
    return record("failed", FileInfo(path, "", 0), error=about, candidates=candidates)


def document(command: str, exit_code: int, results: Sequence[dict[str, Any]], version: str) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    tool = {"name": "chkpt-channels", "version": version}
    return {"schema_version": SCHEMA_VERSION, "tool": tool, "command": command, "exit_code": exit_code, "results": list(results)}


def _kernel_fields(kernels: Sequence[KernelReport], method: str | None = None) -> dict[str, Any]:
    """The fields of kernels. The method and the matrix of one stand for all: of several images, of those that are converted."""
    first = next((k for k in kernels if k.method != "identity"), kernels[0] if kernels else None)
    matrix = [list(row) for row in (first.matrix if first else None) or ()]
    offset = list(first.offset) or None if first else None
    convs = [_conv_record(kernel) for kernel in kernels]
    return {"method": first.method if first else method, "matrix": matrix, "offset": offset, "first_convs": convs}


def _found_fields(convs: Sequence[FirstConv]) -> dict[str, Any]:
    counts = {conv.in_channels for conv in convs}
    channels = {"before": counts.pop(), "after": None} if len(counts) == 1 else None
    return {"in_channels": channels, "first_convs": [_conv_record(KernelReport(conv)) for conv in convs]}


def record(status: str, file: FileInfo, **fields: Any) -> dict[str, Any]:
    """The JSON record of a file: null or empty but for these fields."""
    nothing = ("output", "architecture", "in_channels", "method", "method_why", "matrix", "offset", "pipeline", "tensors")
    lists = ("beside", "next", "notes", "first_convs", "candidates", "declarations", "differences", "warnings")
    empty = dict.fromkeys((*nothing, "parity", "error", "transfer")) | {name: list[Any]() for name in lists}
    about = {"path": file.path, "format": file.format or None, "bytes": file.bytes if file.format else None}
    return {"status": status, "input": about, **empty, "options": {}, **fields}


def _conv_record(kernel: KernelReport) -> dict[str, Any]:
    tensor = kernel.conv.tensor
    return {
        "key": tensor.name,
        "layout": str(kernel.conv.layout) if kernel.conv.layout else None,
        "dtype": tensor.dtype.name,
        "shape_before": list(tensor.shape),
        "shape_after": list(kernel.shape_after) if kernel.shape_after is not None else None,
        "found_by": kernel.conv.found_by,
        "why": kernel.conv.why,
    }


def _channels_record(channels: tuple[int, int]) -> dict[str, int] | None:
    """The channels before and after; null where they are not known: nothing differs from LIKE, and no first conv was found."""
    return {"before": channels[0], "after": channels[1]} if all(channels) else None


def _output_record(output: FileInfo | None) -> dict[str, Any] | None:
    return {"path": output.path, "bytes": output.bytes, "sha256": output.sha256 or None} if output else None


def _pipeline_record(pipeline: Normalization | None) -> dict[str, Any] | None:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in pipeline._asdict().items()} if pipeline else None


def _candidate_record(candidate: Candidate) -> dict[str, Any]:
    return {"key": candidate.key, "shape": list(candidate.shape), "why_not": candidate.why_not}


def _notice_records(notices: Sequence[Notice]) -> list[dict[str, str]]:
    return [notice._asdict() for notice in notices]
