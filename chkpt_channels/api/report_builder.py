"""From a planned model to the records of its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from chkpt_channels.api.advice import input_advice
from chkpt_channels.api.output.check import gone
from chkpt_channels.api.output.load_lines import load_lines
from chkpt_channels.api.report import DeclarationChange, FileInfo, KernelReport, Parity, Report
from chkpt_channels.folders.model import Model
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats.base import Checkpoint, Loading, TensorStore
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.options import Options, as_keywords
from chkpt_channels.transform.plan import Plan


def file_info(model: Model, *, measured: bool = True) -> FileInfo:
    """The record of an input; a folder's size is left out unless `measured`, since it takes a look at every file."""
    if model.is_folder:
        return FileInfo(model.named(), "folder", model.size if measured else 0, model.title)
    store = model.parts[0].store
    return FileInfo(model.location.file, store.format.name if isinstance(store, Checkpoint) else "", model.size, model.title)


def kernel_reports(model: Model, planned: PlannedModel) -> tuple[KernelReport, ...]:
    """Every first conv of a model, with the name of its part where there are several."""
    return tuple(_kernel_report(kernel, model.prefix(part)) for part, plan in planned.parts for kernel in plan.kernels)


def _kernel_report(kernel: KernelChange, prefix: str) -> KernelReport:
    conv = kernel.conv._replace(tensor=kernel.conv.tensor._replace(name=prefix + kernel.conv.tensor.name))
    return KernelReport(conv, kernel.shape, kernel.mixing.method, kernel.mixing.matrix, kernel.mixing.offset)


def _names(model: Model, planned: PlannedModel, of: Callable[[TensorStore, Plan], Iterable[str]]) -> tuple[str, ...]:
    """The names that `of` gives for each part, with that of the part where there are several."""
    return tuple(model.prefix(part) + name for part, plan in planned.parts for name in of(part.store, plan))


def conversion_report(model: Model, planned: PlannedModel, options: Options, parity: Parity | None) -> Report:
    """The report of a conversion, but for the output and the time it took."""
    return Report(
        status="converted" if planned.changed else "unchanged",
        input=file_info(model),
        target="",
        output=None,
        in_channels=planned.channels,
        kernels=kernel_reports(model, planned),
        declarations=tuple(_declaration_changes(model, planned)),
        tensors_total=sum(len(part.store.tensors) for part, _ in planned.parts),
        changed=_names(model, planned, lambda store, plan: (*plan.edits.tensors, *gone(store, plan))),
        removed=_names(model, planned, gone),
        parameters_fewer=sum(plan.fewer_parameters for _, plan in planned.parts),
        parity=parity,
        warnings=planned.notices,
        seconds=0.0,
        why=planned.first.why,
        candidates=planned.first.candidates,
        pipeline=planned.first.pipeline,
        options=as_keywords(options),
        advice=input_advice(model, planned, options, model.recognized),
    )


def preview_report(report: Report, target: Path | str) -> Report:
    """The report of an output that is not written."""
    status = "would_convert" if report.status == "converted" else report.status
    return report._replace(status=status, target=str(target))


def with_load_lines(report: Report, model: Model, loading: Callable[[str | None], Loading]) -> Report:
    """The report with the lines that load the output, which `loading` describes for a state dict of it."""
    tensors = model.parts[0].store.tensors if len(model.parts) == 1 else {}
    how = loading(model.recognized.group if model.recognized else None)
    lines, network = load_lines(how, model.recognized, tensors, report.kernels, report.in_channels)
    return report._replace(load_lines=lines, network=network)


def _declaration_changes(model: Model, planned: PlannedModel) -> Iterator[DeclarationChange]:
    for part, plan in planned.parts:
        file = model.named(part.name) if model.is_folder else ""
        yield from (DeclarationChange(d.where, d.channels, plan.channels[1], file) for d in plan.declarations)
    for name, (config, changes) in planned.documents.items():
        for path, new in changes.items():
            try:
                old = config.document.at(path).plain
            except (KeyError, IndexError):
                old = None
            yield DeclarationChange(".".join(map(str, path)), old, new, model.named(name))
