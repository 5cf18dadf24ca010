"""The one flow for model folders: every part is planned, written and checked as a file is; the folder appears by one rename."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import flow, readback, selection, sidecars
from . import plan as planning
from .atomic import OutputFolder
from .containers.jsontree import Path as Keys
from .errors import AmbiguousError, Candidate, Place, UnsupportedError
from .formats.folder import ModelFolder, Part, Shards
from .kernels import KernelChange
from .libraries import CONFIG, RECONSTRUCTS
from .model import Checkpoint, Declaration, FirstConv, Notice, Tensor
from .options import Options
from .pipelines import Norm, Pipeline
from .plan import Plan
from .report import DeclarationChange, FileInfo, Inspection, KernelReport, Report
from .sidecars import Sidecar
from .source import Source
from .splice import apply

CHUNK = 4 << 20
Progress = Callable[[int, int], None]


class Planned(NamedTuple):
    """What becomes of a folder: its parts with their plans, and the configurations with what changes in them."""

    parts: tuple[tuple[Part, Checkpoint, Plan], ...]
    documents: dict[str, tuple[Sidecar, dict[Keys, Any]]]
    channels: tuple[int, int]
    notices: tuple[Notice, ...]
    pipeline: Pipeline | None

    @property
    def changed(self) -> bool:
        """Whether anything does."""
        return any(plan.edits for _, _, plan in self.parts) or bool(self.documents)

    @property
    def kernels(self) -> list[tuple[str, KernelChange]]:
        """Every first conv, with the file that its name needs where there are several."""
        several = len(self.parts) > 1
        return [(f"{part.name}/" if several else "", kernel) for part, _, plan in self.parts for kernel in plan.kernels]


def plan(folder: ModelFolder, options: Options) -> Planned:
    """What becomes of a folder. Raises what planning a file raises; UnsupportedError where the parts disagree."""
    parts: list[tuple[Part, Checkpoint, Plan]] = []
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
                raise checkpoint.source.place.unsupported(what, hint=hint) from error
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


def _is_no_network(checkpoint: Checkpoint) -> bool:
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
    sidecar: Sidecar, changes: dict[Keys, Any], part: tuple[Part, Checkpoint, Plan], options: Options
) -> Iterator[Notice]:
    """What a configuration's mean and std do not tell the kernel, and what they tell of another number of channels."""
    _, checkpoint, made = part
    for path, _ in sidecars.pipelines(sidecar.document):
        numbers = _listed(sidecar.document.at(path).plain)
        if path in changes and len(set(numbers)) > 1 and not options.norm:
            told = f"{sidecar.name}: {path[-1]} and its std become their means, and the kernel does not know of it"
            if all(checkpoint.adds_tensors or checkpoint.shift_taker(kernel.conv) for kernel in made.kernels):
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
    if old != new and any(_reconstructs(sidecar.document.root.plain) for sidecar in folder.sidecars):
        told = "this network gives the image back, and one number counts the channels of both ends: its decoder no longer fits"
        yield Notice("reconstructs", told)


def _reconstructs(document: Any) -> bool:
    names = _listed(document.get("architectures")) if isinstance(document, dict) else []
    return any(isinstance(name, str) and name.endswith(RECONSTRUCTS) for name in names)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    options: Options,
    *,
    dry_run: bool = False,
    hard_link: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a folder with its weights and configurations changed to `dst`, which must not exist yet."""
    began = time.perf_counter()
    with ModelFolder(src) as folder:
        path = (
            Path(dst) if dst is not None else folder.path.resolve().with_name(f"{folder.path.resolve().name}_{options.rule.word}")
        )
        planned, written = plan(folder, options), None
        if not dry_run:
            with OutputFolder(path, folder.path) as out:
                _write(folder, planned, out.draft, hard_link=hard_link, progress=progress)
                out.publish()
            written = FileInfo(str(path), "folder", sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
        status = "unchanged" if not planned.changed else "would_convert" if dry_run else "converted"
        return _report(status, folder, planned, options, path, written, began)


def _write(folder: ModelFolder, planned: Planned, draft: Path, *, hard_link: bool, progress: Progress | None) -> None:
    sizes = {name: (folder.path / name).stat().st_size for name in folder.files}
    total = sum(sizes.values())
    edits = dict(_edited_files(planned))
    for name in folder.files:
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in edits:
            _write_part(*edits[name], target, (lambda more: progress(more, total)) if progress else None)
            continue
        if name in planned.documents:
            sidecar, changes = planned.documents[name]
            _write_bytes(target, sidecar.document.edited(changes))
        else:
            _copy(folder.path / name, target, hard_link=hard_link)
        if progress:
            progress(sizes[name], total)


def _edited_files(planned: Planned) -> Iterator[tuple[str, tuple[Checkpoint, Plan]]]:
    """Each file that changes, with its checkpoint and its share of the plan."""
    for part, checkpoint, made in planned.parts:
        if not isinstance(checkpoint, Shards):
            if made.edits:
                yield part.files[0], (checkpoint, made)
            continue
        for name, (shard, edits) in zip(part.files, checkpoint.shared_out(made.edits), strict=True):
            if edits:
                kernels = tuple(kernel for kernel in made.kernels if kernel.conv.tensor.name in shard.tensors)
                yield name, (shard, made._replace(edits=edits, kernels=kernels))


def _write_part(checkpoint: Checkpoint, made: Plan, target: Path, progress: Any) -> None:
    place = Place(str(target))
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        checkpoint.write(made.edits, fd, place, progress)
        checkpoint.source.check_unchanged()
        readback.check(checkpoint, made, fd, str(target))
    finally:
        os.close(fd)


def _write_bytes(target: Path, content: bytes) -> None:
    try:
        with open(target, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Place(str(target)).system(f"cannot be written: {(error.strerror or str(error)).lower()}") from error


def _copy(source: Path, target: Path, *, hard_link: bool) -> None:
    """The same bytes: another name of the same file, where that was asked for, or shared blocks, where the file system can."""
    if hard_link:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    with Source(source) as opened:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if not _reflinked(opened.fd, fd):
                apply(opened, [], fd, Place(str(target)))
            opened.check_unchanged()
        finally:
            os.close(fd)


def _reflinked(source: int, target: int) -> bool:
    """Whether the file system could share the blocks (ioctl FICLONE of Linux)."""
    try:
        import fcntl

        fcntl.ioctl(target, 0x40049409, source)
        os.fsync(target)
        return True
    except (ImportError, OSError):
        return False


def _report(
    status: str, folder: ModelFolder, planned: Planned, options: Options, path: Path, written: FileInfo | None, began: float
) -> Report:
    from . import options as asking

    changed = {name: edit for _, _, plan in planned.parts for name, edit in plan.edits.tensors.items()}
    source = FileInfo(str(folder.path), "folder", _size(folder), _title(planned))
    parities = [parity for _, checkpoint, plan in planned.parts if (parity := readback.parity(checkpoint, plan))]
    return Report(
        status,
        source,
        str(path),
        written,
        planned.channels,
        kernel_reports(planned),
        tuple(_declarations(folder, planned)),
        sum(len(checkpoint.tensors) for _, checkpoint, _ in planned.parts),
        tuple(changed),
        sum(flow.fewer_parameters(checkpoint, plan) for _, checkpoint, plan in planned.parts),
        max(parities, default=None),
        planned.notices,
        load_line(folder, path),
        time.perf_counter() - began,
        planned.parts[0][2].why,
        planned.parts[0][2].candidates,
        planned.pipeline,
        asking.words(options),
    )


def _named(prefix: str, kernel: KernelChange) -> KernelReport:
    conv = kernel.conv._replace(tensor=kernel.conv.tensor._replace(name=prefix + kernel.conv.tensor.name))
    return KernelReport(conv, kernel.shape, kernel.mixing.method, kernel.mixing.matrix, kernel.mixing.offset)


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


def kernel_reports(planned: Planned) -> tuple[KernelReport, ...]:
    """Every first conv as it is reported."""
    return tuple(_named(prefix, kernel) for prefix, kernel in planned.kernels)


def differences(first: ModelFolder, second: ModelFolder, planned: Planned) -> Iterator[tuple[str, str]]:
    """(file, what is wrong) for the files that are no converted weights: configurations as planned, all others the same bytes."""
    weights = {name for part, _, _ in planned.parts for name in part.files}
    for name in first.files:
        if name in weights:
            continue
        if name not in second.files:
            yield name, "is missing"
        elif name in planned.documents:
            sidecar, changes = planned.documents[name]
            if (second.path / name).read_bytes() != sidecar.document.edited(changes):
                yield name, "is not what the conversion makes of it"
        elif not _same_bytes(first.path / name, second.path / name):
            yield name, "differs, and was not to change"
    yield from ((name, "is new, and was not in the original") for name in second.files if name not in first.files)


def _same_bytes(first: Path, second: Path) -> bool:
    with Source(first) as a, Source(second) as b:
        if a.size != b.size:
            return False
        spans = ((at, min(at + CHUNK, a.size)) for at in range(0, a.size, CHUNK))
        return all(a.read(*span) == b.read(*span) for span in spans)


def _size(folder: ModelFolder) -> int:
    return sum((folder.path / name).stat().st_size for name in folder.files)


def _title(planned: Planned) -> str:
    return f"model folder ({', '.join(dict.fromkeys(checkpoint.title for _, checkpoint, _ in planned.parts))})"


def load_line(folder: ModelFolder, path: Path) -> str:
    """The line of Python that loads the converted folder."""
    documents = {sidecar.name: sidecar.document.root.plain for sidecar in folder.sidecars}
    config = documents.get(CONFIG)
    if not isinstance(config, dict):
        return ""
    if "pretrained_cfg" in config or ("architecture" in config and "model_type" not in config):
        return f"model = timm.create_model('local-dir:{path}', pretrained=True)"
    if "_model_class" in config and "encoder_name" in config:
        return f"model = segmentation_models_pytorch.from_pretrained({str(path)!r})"
    if "_class_name" in config:
        return f"model = diffusers.{config['_class_name']}.from_pretrained({str(path)!r})"
    architectures = config.get("architectures")
    if "model_type" in config and isinstance(architectures, list) and architectures:
        if _reconstructs(config):
            return f"model = transformers.AutoModel.from_pretrained({str(path)!r})"
        return f"model = transformers.{architectures[0]}.from_pretrained({str(path)!r})"
    return ""


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """What a folder holds, part by part."""
    with ModelFolder(path) as folder:
        options = sidecars.resolved(Options(), folder.path)
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
            finding = selection.find(checkpoint, beside=options.beside)
            titles.append(checkpoint.title)
            convs += [c._replace(tensor=c.tensor._replace(name=prefix + c.tensor.name)) for c in finding.first_convs]
            candidates += [c._replace(key=prefix + c.key) for c in finding.candidates]
            declarations += [d._replace(where=prefix + d.where) for d in checkpoint.declarations(finding.first_convs)]
            tensors += [tensor._replace(name=prefix + tensor.name) for tensor in checkpoint.tensors.values()]
            warnings += planning.notices(checkpoint)
        for sidecar in folder.sidecars:
            declarations += [d._replace(where=f"{sidecar.name}: {d.where}") for d in sidecars.declarations(sidecar)]
        info = FileInfo(str(folder.path), "folder", _size(folder), f"model folder ({', '.join(dict.fromkeys(titles))})")
        return Inspection(
            info, tuple(convs), tuple(candidates), tuple(declarations), tuple(tensors), (), tuple(dict.fromkeys(warnings))
        )
