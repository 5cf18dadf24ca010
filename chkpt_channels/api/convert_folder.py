"""The one flow for model folders: every part is planned, written and checked as a file is; the folder appears by one rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.api import folder_writer as folderwriter
from chkpt_channels.api.output import check as readback
from chkpt_channels.api.output.naming import Progress, Settings, default_output
from chkpt_channels.api.report import DeclarationChange, FileInfo, Inspection, KernelReport, Report
from chkpt_channels.containers.json.editor import Path as Keys
from chkpt_channels.core.errors import AmbiguousError, Candidate, UnsupportedError
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, Tensor
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery import find as selection
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.folders import config_files as sidecars
from chkpt_channels.folders.config_files import Sidecar
from chkpt_channels.folders.model_folder import ModelFolder, Part, reconstructs
from chkpt_channels.folders.shards import Shards
from chkpt_channels.formats.base import Checkpoint, TensorStore
from chkpt_channels.storage.atomic import OutputFolder
from chkpt_channels.transform import notices
from chkpt_channels.transform import plan as planning
from chkpt_channels.transform.mixing.normalization import Norm, Pipeline
from chkpt_channels.transform.options import Options, as_keywords
from chkpt_channels.transform.plan import Plan


class Planned(NamedTuple):
    """What becomes of a folder: its parts with their plans, and the configurations with what changes in them."""

    parts: tuple[tuple[Part, Checkpoint | Shards, Plan], ...]
    documents: dict[str, tuple[Sidecar, dict[Keys, Any]]]
    channels: tuple[int, int]
    notices: tuple[Notice, ...]
    pipeline: Pipeline | None

    @property
    def changed(self) -> bool:
        """Whether anything does."""
        return any(plan.edits for _, _, plan in self.parts) or bool(self.documents)

    @property
    def kernel_reports(self) -> tuple[KernelReport, ...]:
        """Every first conv, with the file that its name needs where there are several."""
        several = len(self.parts) > 1
        named = ((f"{part.name}/" if several else "", kernel) for part, _, plan in self.parts for kernel in plan.kernels)
        return tuple(KernelReport.of(kernel, prefix) for prefix, kernel in named)

    def edited_files(self) -> Iterator[tuple[str, tuple[Checkpoint, Plan]]]:
        """Each file of weights that changes, with its checkpoint and its share of the plan."""
        for part, checkpoint, made in self.parts:
            if not isinstance(checkpoint, Shards):
                if made.edits:
                    yield part.files[0], (checkpoint, made)
                continue
            for name, (shard, edits) in zip(part.files, checkpoint.shared_out(made.edits), strict=True):
                if edits:
                    kernels = tuple(kernel for kernel in made.kernels if kernel.conv.tensor.name in shard.tensors)
                    yield name, (shard, made._replace(edits=edits, kernels=kernels))

    def edited_documents(self) -> dict[str, bytes]:
        """Each configuration that changes, as it will be."""
        return {name: sidecar.document.edited(changes) for name, (sidecar, changes) in self.documents.items()}


def plan(folder: ModelFolder, options: Options) -> Planned:
    """What becomes of a folder. Raises what planning a file raises; UnsupportedError where the parts disagree."""
    parts: list[tuple[Part, Checkpoint | Shards, Plan]] = []
    others: list[str] = []
    notices: list[Notice] = []
    for part in folder.parts:
        checkpoint = folder.open(part)
        try:
            parts.append((part, checkpoint, planning.make(checkpoint, options)))
        except AmbiguousError:
            raise
        except UnsupportedError as error:
            if checkpoint.optimizer_entries:
                what = "holds an optimizer's state apart from its model, which cannot follow the kernel"
                hint = f"move {part.name} out of the folder, and train on with a new optimizer"
                raise checkpoint.place.unsupported(what, hint=hint) from error
            if error.candidates or not _is_no_network(checkpoint):
                raise
            others.append(part.name)
    if not parts:
        raise folder.place.unsupported("none of its weights holds a convolution that could see an image")
    olds = {plan.channels[0] for _, _, plan in parts}
    if len(olds) > 1:
        told = ", ".join(f"{part.name} takes {plan.channels[0]}" for part, _, plan in parts)
        raise folder.place.unsupported(f"its weights disagree: {told} channels", hint="move the stale ones out of the folder")
    old, new = parts[0][2].channels
    documents: dict[str, tuple[Sidecar, dict[Keys, Any]]] = {}
    pipeline = parts[0][2].pipeline
    for sidecar in folder.sidecars:
        if changes := document_edits(sidecar, parts[0][2], options):
            documents[sidecar.name] = sidecar, changes
        notices += [*_pipeline_notices(sidecar, changes, parts[0], options), *_count_notices(sidecar, old, new)]
    for part, checkpoint, made in parts:
        if isinstance(checkpoint, Shards) and (changes := checkpoint.index_edits(made.edits)):
            documents[part.name] = checkpoint.index, changes
    if others:
        notices.append(Notice("copied", f"{', '.join(others)}: no convolution that could see an image, copied"))
    notices += _reconstruction_notices(folder, old, new)
    every = [notice for _, _, made in parts for notice in made.notices] + notices
    return Planned(tuple(parts), documents, (old, new), tuple(dict.fromkeys(every)), pipeline)


def document_edits(sidecar: Sidecar, made: Plan, options: Options) -> dict[Keys, Any]:
    """What changes in a configuration beside converted weights."""
    return sidecars.edits(sidecar, *made.channels, made.pipeline or _averaged(sidecar, made, options))


def _is_no_network(checkpoint: TensorStore) -> bool:
    """Whether a file holds no kernel at all: the arguments of a training, the state of a random number generator."""
    return not any(len(tensor.shape) > 2 for tensor in checkpoint.tensors.values())


def _averaged(sidecar: Sidecar, plan: Plan, options: Options) -> Pipeline | None:
    """The means of what a configuration feeds the network, for as many channels as it will have."""
    rule = options.rule.mixing(plan.channels[0])
    found = next(sidecars.fed_by(sidecar, strict=False), None)
    if found is None or len(found[0]) not in (1, rule.old) or rule.is_identity:
        return None
    return Norm(mean=found[0], std=found[1]).new(rule, options.rule.orders)


def _pipeline_notices(
    sidecar: Sidecar, changes: dict[Keys, Any], part: tuple[Part, Checkpoint | Shards, Plan], options: Options
) -> Iterator[Notice]:
    """What a configuration's mean and std do not tell the kernel, and what they tell of another number of channels."""
    _, checkpoint, made = part
    for path, _ in sidecars.pipelines(sidecar.document):
        numbers = _listed(sidecar.document.at(path).plain)
        if path in changes and len(set(numbers)) > 1 and not options.norm:
            told = f"{sidecar.name}: {path[-1]} and its std become their means, and the kernel does not know of it"
            if all(checkpoint.adds_tensors or bias_target.find(checkpoint, kernel.conv) for kernel in made.kernels):
                told += ": --norm auto folds the difference into the weights"
            yield Notice("pipeline_averaged", told)
        elif path not in changes and len(numbers) not in (1, made.channels[1]):
            told = f"{sidecar.name}: {path[-1]} has {len(numbers)} numbers, which is not {made.channels[0]}: it stays as it is"
            yield Notice("pipeline_kept", told)


def _count_notices(sidecar: Sidecar, old: int, new: int) -> Iterator[Notice]:
    for where, count in sidecars.image_counts(sidecar.document):
        if old != new and count not in (old, new):
            told = f"{sidecar.name}: {where} says {count}, and the weights take {old}: it stays as it is"
            yield Notice("count_kept", told)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _reconstruction_notices(folder: ModelFolder, old: int, new: int) -> Iterator[Notice]:
    if old != new and any(reconstructs(sidecar.document.root.plain) for sidecar in folder.sidecars):
        told = "this network gives the image back, and one number counts the channels of both ends: its decoder no longer fits"
        yield Notice("reconstructs", told)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    options: Options,
    settings: Settings,
    progress: Progress | None = None,
) -> Report:
    """Write a folder with its weights and configurations changed to `dst`, which must not exist yet."""
    with ModelFolder(src, follow_links=options.plain["follow_links"]) as folder:
        path = Path(dst) if dst is not None else default_output(folder.path, options.rule.word)
        planned = plan(folder, options)
        status = "unchanged" if not planned.changed else "would_convert" if settings.dry_run else "converted"
        report = _report(status, folder, planned, options, path)
        if settings.dry_run:
            return report
        with OutputFolder(path, folder.path) as out:
            edits, documents = dict(planned.edited_files()), planned.edited_documents()
            size = folderwriter.write(folder, edits, documents, out.draft, progress, hard_link=settings.hard_link)
            out.publish()
        return report._replace(output=FileInfo(str(path), "folder", size))


def _report(status: str, folder: ModelFolder, planned: Planned, options: Options, path: Path) -> Report:
    changed = {name: edit for _, _, plan in planned.parts for name, edit in plan.edits.tensors.items()}
    source = FileInfo(str(folder.path), "folder", folder.size, _title(planned))
    parities = [parity for _, checkpoint, plan in planned.parts if (parity := readback.parity(checkpoint, plan))]
    return Report(
        status,
        source,
        str(path),
        None,
        planned.channels,
        planned.kernel_reports,
        tuple(_declarations(folder, planned)),
        sum(len(checkpoint.tensors) for _, checkpoint, _ in planned.parts),
        tuple(changed),
        sum(plan.fewer_parameters for _, _, plan in planned.parts),
        max(parities, default=None),
        planned.notices,
        folder.load_line(str(path)),
        0.0,
        planned.parts[0][2].why,
        planned.parts[0][2].candidates,
        planned.pipeline,
        as_keywords(options),
    )


def _declarations(folder: ModelFolder, planned: Planned) -> Iterator[DeclarationChange]:
    for part, _, plan in planned.parts:
        file = str(folder.path / part.name)
        yield from (DeclarationChange(d.where, d.channels, plan.channels[1], file) for d in plan.declarations)
    for name, (sidecar, changes) in planned.documents.items():
        for path, new in changes.items():
            where = ".".join(map(str, path))
            try:
                old = sidecar.document.at(path).plain
            except (KeyError, IndexError):
                old = None
            yield DeclarationChange(where, old, new, str(folder.path / name))


def _title(planned: Planned) -> str:
    return f"model folder ({', '.join(dict.fromkeys(checkpoint.title for _, checkpoint, _ in planned.parts))})"


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """What a folder holds, part by part."""
    with ModelFolder(path, follow_links=True) as folder:  # nothing goes out of it
        request = SearchRequest(hints=sidecars.evidence(sidecars.beside(folder.path)))
        several = len(folder.parts) > 1
        convs: list[FirstConv] = []
        candidates: list[Candidate] = []
        declarations: list[Declaration] = []
        tensors: list[Tensor] = []
        warnings: list[Notice] = []
        titles: list[str] = []
        for part in folder.parts:
            checkpoint = folder.open(part)
            prefix = f"{part.name}/" if several else ""
            finding = selection.find(checkpoint, request)
            titles.append(checkpoint.title)
            convs += [c._replace(tensor=c.tensor._replace(name=prefix + c.tensor.name)) for c in finding.first_convs]
            candidates += [c._replace(key=prefix + c.key) for c in finding.candidates]
            declarations += [d._replace(where=prefix + d.where) for d in checkpoint.graph.declarations(finding.first_convs)]
            tensors += [tensor._replace(name=prefix + tensor.name) for tensor in checkpoint.tensors.values()]
            warnings += notices.of_file(checkpoint, finding.first_convs)
        for sidecar in folder.sidecars:
            declarations += [d._replace(where=f"{sidecar.name}: {d.where}") for d in sidecars.declarations(sidecar)]
        info = FileInfo(str(folder.path), "folder", folder.size, f"model folder ({', '.join(dict.fromkeys(titles))})")
        return Inspection(
            info, tuple(convs), tuple(candidates), tuple(declarations), tuple(tensors), (), tuple(dict.fromkeys(warnings))
        )
