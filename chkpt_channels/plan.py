"""Checkpoint × target → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are asked for."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import firstconv, mixing
from .errors import AmbiguousError, Candidate, Place, UnsupportedError, UsageError
from .layout import Layout
from .mixing import Mixing
from .model import Checkpoint, Declaration, Edits, FirstConv, Notice, OptimizerEntry, Tensor, TensorEdit

if TYPE_CHECKING:
    from numpy.typing import NDArray

TARGETS = {"gray": 1, "grey": 1, "grayscale": 1, "l": 1, "1": 1, "rgb": 3, "3": 3}
WORDS = {1: "gray", 3: "rgb"}
_PREFIXES = re.compile(r"^((module|_orig_mod)\.)+")


class Options(NamedTuple):
    """What the user asked for. `to` is a number of channels; None where it is read off a second file."""

    to: int | None = 1
    luma: tuple[float, ...] | None = None
    layers: tuple[str, ...] = ()
    layout: Layout | None = None
    optimizer: str = "reset"
    strict: bool = False

    def checked(self) -> Options:
        """The same options. Raises UsageError where they contradict each other."""
        if self.luma is not None and self.to == 1:
            raise UsageError("--luma says how a gray kernel is split over colours; with --to gray kernels are summed")
        if self.luma is not None and self.to is not None and len(self.luma) != self.to:
            raise UsageError(f"--luma has {len(self.luma)} weights for {self.to} channels")
        if self.optimizer not in ("reset", "drop"):
            raise UsageError(f"--optimizer is reset or drop, not {self.optimizer!r}")
        return self


def target_channels(to: str | int) -> int:
    """The number of channels that a target word stands for: gray, grey, grayscale, L, rgb, or a number."""
    text = str(to).strip().lower()
    channels = TARGETS.get(text) or (int(text) if text.isdecimal() and len(text) < 6 else 0)
    if not channels:
        raise UsageError(f"--to {printable_target(text)} is no target: gray, rgb or a number of channels")
    return channels


def printable_target(text: str) -> str:
    """The target as typed, quoted."""
    return repr(text[:40])


def target_word(channels: int) -> str:
    """The canonical word for a number of channels, as default output names use it: gray, rgb, 4ch."""
    return WORDS.get(channels, f"{channels}ch")


class KernelChange(NamedTuple):
    """One first conv, the mixing it gets and its new shape; `tensor_edit` makes the values."""

    conv: FirstConv
    layout: Layout
    mixing: Mixing
    shape: tuple[int, ...]

    @property
    def changes(self) -> bool:
        """Whether anything is to be done."""
        return not self.mixing.is_identity


class Plan(NamedTuple):
    """Everything that is to happen to a checkpoint."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    declarations: tuple[Declaration, ...] = ()
    optimizer_tensors: tuple[Tensor, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def channels(self) -> tuple[int, int]:
        """How many input channels before and after."""
        shown = next((k for k in self.kernels if k.changes), self.kernels[0])
        return shown.mixing.old, shown.mixing.new


def searchable(checkpoint: Checkpoint) -> list[Tensor]:
    """The tensors among which first convs are looked for: all but the optimizers'."""
    kept = {t.name for entry in checkpoint.optimizer_entries for t in entry.tensors.values()}
    return [t for t in checkpoint.tensors.values() if t.name not in kept]


def find(checkpoint: Checkpoint) -> firstconv.Finding:
    """The first convs by the strongest evidence there is: the graph, else names and shapes."""
    if by_graph := tuple(checkpoint.first_convs()):
        return firstconv.Finding(by_graph)
    return firstconv.find(searchable(checkpoint), ordered=checkpoint.ordered)


def make(checkpoint: Checkpoint, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError for layers that do not exist."""
    place, options = checkpoint.source.place, options.checked()
    if options.to is None:
        raise UsageError("a target is needed: --to gray, rgb or a number of channels")
    if checkpoint.globals and options.strict:
        raise place.unsupported(f"its pickle names {_listing(checkpoint.globals)}, which --strict refuses")
    convs = _chosen(checkpoint, options) if options.layers else _found(checkpoint, options)
    kernels = tuple(_kernel_change(place, conv, options) for conv in convs)
    changed = [kernel for kernel in kernels if kernel.changes]
    told = (*notices(checkpoint), *_luma_notices(options))
    if not changed:
        return Plan(kernels, Edits(), notices=told)
    declarations = tuple(checkpoint.declarations([kernel.conv for kernel in changed]))
    tensors = {k.conv.tensor.name: TensorEdit(k.shape, _values(checkpoint, k)) for k in changed}
    optimizer = _OptimizerEdits(checkpoint, changed, options.optimizer)
    edits = Edits(
        tensors | optimizer.tensors,
        {d.where: options.to for d in declarations} | optimizer.numbers,
        tuple(optimizer.dropped),
    )
    return Plan(
        kernels,
        edits,
        declarations,
        tuple(checkpoint.tensors[name] for name in optimizer.tensors),
        told,
    )


def _listing(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def notices(checkpoint: Checkpoint) -> tuple[Notice, ...]:
    """What a user of this file should know, whatever is done with it."""
    if not checkpoint.globals:
        return tuple(checkpoint.warnings)
    names = _listing(checkpoint.globals)
    foreign = Notice(
        "foreign_globals", f"its pickle names {names}: not run here and copied as it is, but loading the file resolves it"
    )
    return (*checkpoint.warnings, foreign)


def _luma_notices(options: Options) -> list[Notice]:
    if options.luma is None or abs(sum(options.luma) - 1) < 1e-6:
        return []
    return [Notice("luma_sum", f"the luma weights sum to {sum(options.luma):g}, not 1: used as given")]


def _found(checkpoint: Checkpoint, options: Options) -> Sequence[FirstConv]:
    finding = find(checkpoint)
    if finding.first_convs:
        convs = finding.first_convs
        return [_with_layout(checkpoint.source.place, conv, options.layout) for conv in convs] if options.layout else convs
    name = checkpoint.source.name
    if not finding.candidates:
        raise UnsupportedError(
            "holds no convolution that could see an image", file=name, hint="--layer KEY names it, with --layout"
        )
    hint = "   or   ".join(f"--layer {c.key}" for c in finding.candidates[:3])
    many = len(finding.candidates)
    what = "one tensor might" if many == 1 else f"{many} tensors could"
    raise AmbiguousError(f"{what} be the first convolution", file=name, candidates=finding.candidates, hint=hint)


def _chosen(checkpoint: Checkpoint, options: Options) -> list[FirstConv]:
    """The first convs that --layer names, each once."""
    tensors = [t for t in searchable(checkpoint) if len(t.shape) >= 2]
    names = list(dict.fromkeys(t.name for layer in options.layers for t in match(checkpoint.source.place, tensors, layer)))
    known = {conv.tensor.name: conv for conv in find(checkpoint).first_convs}
    convs = []
    for name in names:
        tensor = checkpoint.tensors[name]
        conv = known.get(name) or _described(checkpoint, tensor, options.layout)
        conv = conv._replace(found_by="user", why="named by --layer")
        convs.append(_with_layout(checkpoint.source.place, conv, options.layout) if options.layout else conv)
    return convs


def _described(checkpoint: Checkpoint, tensor: Tensor, layout: Layout | None) -> FirstConv:
    layout = layout or firstconv.layout_of(tensor)
    if layout is None or len(layout.axes) != len(tensor.shape):
        raise UnsupportedError(
            f"its shape {list(tensor.shape)} does not say where the input channels are",
            file=checkpoint.source.name, where=tensor.name, hint="--layout OI, O(HWI) or O(IHW) says it",
        )  # fmt: skip
    return FirstConv(tensor, layout, tensor.shape[layout.channel_axis], "user")


def _with_layout(place: Place, conv: FirstConv, layout: Layout) -> FirstConv:
    if len(layout.axes) != len(conv.tensor.shape):
        raise UsageError(
            f"--layout {layout} has {len(layout.axes)} axes, the shape {list(conv.tensor.shape)} has {len(conv.tensor.shape)}",
            file=place.file, where=conv.tensor.name,
        )  # fmt: skip
    channels = conv.in_channels if layout.folded else conv.tensor.shape[layout.channel_axis]
    return conv._replace(layout=layout, in_channels=channels)


def match(place: Place, tensors: Sequence[Tensor], layer: str) -> list[Tensor]:
    """The tensors that a --layer names: the full key; the key without container and wrapper prefixes; a dotted suffix that
    is unique in each copy of the model; a glob. The ".weight" may be left out.

    Raises UsageError with a suggestion where nothing matches, AmbiguousError where a suffix stands several times in a copy.
    """
    spellings = {layer, f"{layer}.weight", f"{layer}.kernel"}
    rules: tuple[Callable[[Tensor], bool], ...] = (
        lambda t: t.name in spellings,
        lambda t: _PREFIXES.sub("", t.key) in spellings,
        lambda t: any(t.key.endswith("." + s) for s in spellings),
        lambda t: any(fnmatch.fnmatchcase(n, s) for n in (t.name, t.key) for s in spellings),
    )
    for i, rule in enumerate(rules):
        found = [t for t in tensors if rule(t)]
        if not found:
            continue
        copies: defaultdict[str, list[Tensor]] = defaultdict(list)
        for tensor in found:
            copies[tensor.group].append(tensor)
        if i == 2 and any(len(copy) > 1 for copy in copies.values()):
            candidates = [Candidate(t.name, t.shape) for t in found]
            raise AmbiguousError(
                f"--layer {layer} fits {len(found)} tensors",
                file=place.file,
                candidates=candidates,
                hint=f"--layer {found[0].name}",
            )
        return found
    import difflib

    close = difflib.get_close_matches(layer, [n for t in tensors for n in (t.name, t.key, t.key.removesuffix(".weight"))], 1, 0.5)
    raise UsageError(
        f"no tensor is called {layer!r}",
        file=place.file,
        hint=f"--layer {close[0]}" if close else "chkpt-channels inspect --all lists them",
    )


def _kernel_change(place: Place, conv: FirstConv, options: Options) -> KernelChange:
    assert options.to is not None
    where = place.inside(conv.tensor.name)
    if conv.layout is None:
        raise UnsupportedError("the order of its axes is open", file=place.file, where=conv.tensor.name, hint="--layout says it")
    if not conv.tensor.dtype.floating:
        raise where.unsupported(f"holds {conv.tensor.dtype.name}, not floating-point numbers")
    if options.luma is not None and conv.in_channels == 1:
        rule = mixing.luma(options.luma)
    else:
        rule = mixing.between(conv.in_channels, options.to)
    shape = conv.layout.with_channels(conv.tensor.shape, conv.in_channels, options.to)
    return KernelChange(conv, conv.layout, rule, shape)


def _values(checkpoint: Checkpoint, kernel: KernelChange) -> Callable[[], NDArray[Any]]:
    """The new kernel, computed once when it is first asked for. Raises UnsupportedError where it is not finite."""
    return cache(partial(_mix, checkpoint, kernel))


def _mix(checkpoint: Checkpoint, kernel: KernelChange) -> NDArray[Any]:
    tensor = kernel.conv.tensor
    place = checkpoint.source.place.inside(tensor.name)
    old = checkpoint.load(tensor.name)
    if (bad := first_not_finite(old, kernel.layout)) is not None:
        raise place.unsupported(f"filter {bad} holds NaN or infinity")
    view = kernel.layout.view(tensor.shape, kernel.conv.in_channels)
    new = kernel.mixing.apply(old, view, tensor.dtype).reshape(kernel.shape)
    if (bad := first_not_finite(new, kernel.layout)) is not None:
        raise place.unsupported(f"filter {bad} would overflow {tensor.dtype.name}")
    return new


def first_not_finite(kernel: NDArray[Any], layout: Layout) -> int | None:
    """The first output channel that holds a NaN or an infinity, None where there is none."""
    import numpy as np

    axis = next(i for i, letters in enumerate(layout.axes) if "O" in letters)
    bad = ~np.isfinite(kernel.astype(np.float32) if kernel.dtype.kind == "V" or kernel.dtype.itemsize < 4 else kernel)
    found = np.flatnonzero(np.moveaxis(bad, axis, 0).reshape(kernel.shape[axis], -1).any(axis=1))
    return int(found[0]) if found.size else None


class _OptimizerEdits:
    """The state that optimizers keep for the kernels: zeroed in the new shape, or dropped."""

    def __init__(self, checkpoint: Checkpoint, changed: Iterable[KernelChange], how: str) -> None:
        self.tensors: dict[str, TensorEdit] = {}
        self.numbers: dict[str, int] = {}
        self.dropped: list[str] = []
        self._checkpoint = checkpoint
        optimizers: defaultdict[str, list[OptimizerEntry]] = defaultdict(list)
        for entry in checkpoint.optimizer_entries:
            optimizers[entry.where.rpartition("/")[0]].append(entry)
        for entries in optimizers.values():
            for entry, kernel in self._owners(entries, list(changed)):
                if how == "drop":
                    self.dropped.append(entry.where)
                else:
                    self._reset(entry, kernel)

    def _owners(
        self, entries: Sequence[OptimizerEntry], changed: Sequence[KernelChange]
    ) -> list[tuple[OptimizerEntry, KernelChange]]:
        """Which entry belongs to which kernel: by name, or by shape, and among equal shapes by order."""
        found: list[tuple[OptimizerEntry, KernelChange]] = []
        for kernel in changed:
            named = [e for e in entries if e.parameter == kernel.conv.tensor.key]
            found += [(entry, kernel) for entry in named]
        if found:
            return found
        for shape in dict.fromkeys(k.conv.tensor.shape for k in changed):
            group = changed[0].conv.tensor.group
            alike = [t for t in searchable(self._checkpoint) if t.shape == shape and t.group == group]
            kernels = {k.conv.tensor.name: k for k in changed if k.conv.tensor.shape == shape}
            owned = [e for e in entries if any(t.shape == shape for t in e.tensors.values())]
            if owned and len(owned) not in (len(alike), sum(t.name in kernels for t in alike)):
                raise UnsupportedError(
                    f"has {len(owned)} entries of shape {list(shape)} for {len(alike)} tensors: which is the kernel's is open",
                    file=self._checkpoint.source.name, where=owned[0].where,
                )  # fmt: skip
            if len(owned) != len(alike):
                alike = [t for t in alike if t.name in kernels]
            found += [(e, kernels[t.name]) for e, t in zip(owned, alike, strict=False) if t.name in kernels]
        return found

    def _reset(self, entry: OptimizerEntry, kernel: KernelChange) -> None:
        for slot, tensor in entry.tensors.items():
            if tensor.shape == kernel.conv.tensor.shape and tensor.dtype.floating:
                self.tensors[tensor.name] = TensorEdit(kernel.shape, partial(_zeros, kernel.shape, tensor))
            elif slot == "step" or tensor.shape == ():
                self.tensors[tensor.name] = TensorEdit(tensor.shape, partial(_zeros, tensor.shape, tensor))
            else:
                raise UnsupportedError(
                    f"holds {tensor.dtype.name} of shape {list(tensor.shape)}, which cannot be reset",
                    file=self._checkpoint.source.name, where=tensor.name, hint="--optimizer drop leaves the entry out",
                )  # fmt: skip
        self.numbers |= {f"{entry.where}/{slot}": 0 for slot in entry.numbers if slot == "step"}


def _zeros(shape: tuple[int, ...], tensor: Tensor) -> NDArray[Any]:
    import numpy as np

    from .dtypes import numpy_dtype

    return np.zeros(shape, numpy_dtype(tensor.dtype))
