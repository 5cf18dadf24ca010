"""Checkpoint × target → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

from . import firstconv, folded, kernels, layers, mixing
from .errors import AmbiguousError, Place, UnsupportedError, UsageError
from .kernels import KernelChange
from .layout import Layout
from .mixing import Mixing
from .model import Checkpoint, Declaration, Edits, FirstConv, Front, Notice, Tensor, TensorEdit
from .optimizer import OptimizerEdits, searchable

TARGETS = {"gray": 1, "grey": 1, "grayscale": 1, "l": 1, "rgb": 3}
WORDS = {1: "gray", 3: "rgb"}
METHODS = ("auto", "sum", "broadcast", "stack")


class Options(NamedTuple):
    """What the user asked for. `to` is a number of channels; None where it is read off a second file."""

    to: int | None = 1
    luma: tuple[float, ...] | None = None
    layers: tuple[str, ...] = ()
    layout: Layout | None = None
    optimizer: str = "reset"
    strict: bool = False
    method: str = "auto"
    from_channels: int | None = None
    inputs: tuple[str, ...] = ()

    def checked(self) -> Options:
        """The same options. Raises UsageError where they contradict each other."""
        if self.luma is not None and self.to == 1:
            raise UsageError("--luma says how a gray kernel is split over colours; with --to gray kernels are summed")
        if self.luma is not None and self.to is not None and len(self.luma) != self.to:
            raise UsageError(f"--luma has {len(self.luma)} weights for {self.to} channels")
        if self.optimizer not in ("reset", "drop"):
            raise UsageError(f"--optimizer is reset or drop, not {self.optimizer!r}")
        if self.from_channels is not None and self.from_channels < 1:
            raise UsageError(f"--from is the number of channels now, not {self.from_channels}")
        if self.method not in METHODS:
            raise UsageError(f"--method is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.method != "auto" and self.to not in (1, None):
            raise UsageError(f"--method {self.method} makes one channel; the target has {self.to}")
        return self


def target_channels(to: str | int) -> int:
    """The number of channels that a target word stands for: gray, grey, grayscale, L, rgb, or a number."""
    text = str(to).strip().lower()
    channels = TARGETS.get(text) or (int(text) if text.isdecimal() and len(text) < 6 else 0)
    if not channels:
        raise UsageError(f"--to {text[:40]!r} is no target: gray, rgb or a number of channels")
    return channels


def target_word(channels: int) -> str:
    """The canonical word for a number of channels, as default output names use it: gray, rgb, 4ch."""
    return WORDS.get(channels, f"{channels}ch")


class Plan(NamedTuple):
    """Everything that is to happen to a checkpoint; `channels` are the input channels before and after."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    channels: tuple[int, int]
    declarations: tuple[Declaration, ...] = ()
    notices: tuple[Notice, ...] = ()


def find(checkpoint: Checkpoint, channels: int | None = None) -> firstconv.Finding:
    """The first convs by the strongest evidence there is: the graph, else names and shapes. `channels` are those of the image,
    where the user knows them."""
    if by_graph := tuple(checkpoint.first_convs()):
        return firstconv.Finding(by_graph)
    found = firstconv.find(searchable(checkpoint), ordered=checkpoint.ordered, torch=checkpoint.torch, channels=channels)
    return found._replace(first_convs=tuple(checkpoint.refined(conv) for conv in found.first_convs))


def make(checkpoint: Checkpoint, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError for layers that do not exist."""
    place, options = checkpoint.source.place, options.checked()
    if options.to is None:
        raise UsageError("a target is needed: --to gray, rgb or a number of channels")
    if options.inputs:
        checkpoint.name_images(options.inputs)
    if checkpoint.globals and options.strict:
        raise place.unsupported(f"its pickle names {_listing(checkpoint.globals)}, which --strict refuses")
    convs = _chosen(checkpoint, options) if options.layers else _found(checkpoint, options)
    if other := next((conv for conv in convs if options.from_channels not in (None, conv.in_channels)), None):
        what = f"--from says {options.from_channels} channels, and it has {other.in_channels}"
        raise UsageError(what, file=place.file, where=other.tensor.name)
    if options.luma is not None and all(conv.in_channels != 1 for conv in convs):
        raise UsageError("--luma splits gray kernels, and the first convs here are not gray", file=place.file)
    told = (*notices(checkpoint), *_luma_notices(options), *_quantised_notices(convs, options))
    old = next((conv.in_channels for conv in convs if conv.in_channels != options.to), options.to)
    fronts = {conv.tensor.name: checkpoint.fronts([conv]) if old != options.to else () for conv in convs}
    in_front = list(dict.fromkeys(front for each in fronts.values() for front in each))
    method = _graph_method(checkpoint, convs, in_front, options) if old != options.to else ""
    changes = tuple(_kernel_change(checkpoint, conv, fronts[conv.tensor.name], options, method) for conv in convs)
    changed = [change for change in changes if change.changes]
    if old == options.to and not changed:
        return Plan(changes, Edits(), (old, old), notices=told)
    declarations = tuple(checkpoint.declarations([change.conv for change in (changes if method else changed)]))
    edits = _edits(checkpoint, changed, options.optimizer)
    chosen = changed[0].constants if changed else ()
    kept = [] if method else in_front
    constants = {name: _selected(checkpoint, name, axis, chosen) for front in kept for name, axis in front.tensors}
    edits = edits._replace(
        tensors={**edits.tensors, **constants, **({} if method else checkpoint.count_edits(options.to))},
        numbers={**{d.where: options.to for d in declarations}, **edits.numbers},
        channels=options.to,
        method=method,
        fronts={front.where: chosen for front in kept},
    )
    told = (*told, *kernels.border_notices(checkpoint, changed))
    return Plan(changes, edits, (old, options.to), declarations, told)


def _edits(checkpoint: Checkpoint, changed: Sequence[KernelChange], optimizer: str) -> Edits:
    """What follows from the kernels alone: their values, the constants they leave, the optimizer's state."""
    by_name = {k.conv.tensor.name: k for k in changed}
    tensors: dict[str, TensorEdit] = {}
    for k in changed:
        tensors |= checkpoint.kernel_edits(k.conv, TensorEdit(k.shape, cache(partial(kernels.mixed, checkpoint, k))))
    biases: dict[str, TensorEdit] = {}
    taken: set[str] = set()
    for name, kernel in by_name.items():
        if not kernel.mixing.offset:
            continue
        filters = kernel.shape[kernel.layout.axes.index("O")]
        if taker := checkpoint.shift_taker(kernel.conv):
            if taker[0] in taken:
                raise checkpoint.source.place.inside(taker[0]).unsupported("two first convs share it, and each adds a constant")
            taken.add(taker[0])
            before = tensors.get(taker[0])
            tensors[taker[0]] = TensorEdit((filters,), cache(partial(kernels.shifted, checkpoint, kernel, taker, before)))
        else:
            biases[name] = TensorEdit((filters,), cache(partial(kernels.bias_shift, checkpoint, kernel)))
    state = OptimizerEdits(checkpoint, {name: k.shape for name, k in by_name.items()}, optimizer)
    return Edits(tensors | state.tensors, state.numbers, tuple(state.dropped), biases=biases)


def _graph_method(checkpoint: Checkpoint, convs: Sequence[FirstConv], fronts: Sequence[Front], options: Options) -> str:
    """The way to one channel that touches no kernel, where it is asked for or where something per-channel is in the way."""
    clear = all(front.uniform for front in fronts) and all(conv.layout and conv.tensor.dtype.floating for conv in convs)
    if options.to != 1 or options.method == "sum" or (options.method == "auto" and clear):
        return ""
    allowed = checkpoint.graph_methods(convs)
    if options.method == "auto":
        return allowed[0] if allowed else ""
    if options.method not in allowed:
        able = f"{' and '.join(allowed)} would do" if allowed else "kernels are edited instead: --method sum"
        raise checkpoint.source.place.unsupported(f"its graph does not allow --method {options.method}; {able}")
    return options.method


def _listing(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def notices(checkpoint: Checkpoint) -> tuple[Notice, ...]:
    """What a user of this file should know, whatever is done with it."""
    if not checkpoint.globals:
        return tuple(checkpoint.warnings)
    names = _listing(checkpoint.globals)
    told = f"its pickle names {names}: not run here and copied as it is, but loading the file resolves it"
    return (*checkpoint.warnings, Notice("foreign_globals", told))


def _quantised_notices(convs: Sequence[FirstConv], options: Options) -> list[Notice]:
    names = [c.tensor.name for c in convs if not c.tensor.dtype.floating and c.in_channels != options.to]
    if not names or (options.to == 1 and options.method != "sum"):
        return []
    told = f"{_listing(names)} is quantised: mixed in float64 and quantised again; the parity includes what that loses"
    return [Notice("requantised", told)]


def _luma_notices(options: Options) -> list[Notice]:
    if options.luma is None or abs(sum(options.luma) - 1) < 1e-6:
        return []
    return [Notice("luma_sum", f"the luma weights sum to {sum(options.luma):g}, not 1: used as given")]


def _found(checkpoint: Checkpoint, options: Options) -> Sequence[FirstConv]:
    finding = find(checkpoint, options.from_channels)
    if finding.first_convs:
        convs = finding.first_convs
        return [_with_layout(checkpoint.source.place, conv, options.layout) for conv in convs] if options.layout else convs
    name = checkpoint.source.name
    if not finding.candidates:
        hint = "--layer KEY names it, with --layout"
        raise UnsupportedError("holds no convolution that could see an image", file=name, hint=hint)
    hint = "   or   ".join(f"--layer {c.key}" for c in finding.candidates[:3])
    many = len(finding.candidates)
    what = "one tensor might" if many == 1 else f"{many} tensors could"
    raise AmbiguousError(f"{what} be the first convolution", file=name, candidates=finding.candidates, hint=hint)


def _chosen(checkpoint: Checkpoint, options: Options) -> list[FirstConv]:
    """The first convs that --layer names, each once."""
    place = checkpoint.source.place
    tensors = [t for t in searchable(checkpoint) if len(t.shape) >= 2]
    names = list(dict.fromkeys(t.name for layer in options.layers for t in layers.match(place, tensors, layer)))
    known = {conv.tensor.name: conv for conv in find(checkpoint, options.from_channels).first_convs}
    convs = []
    for name in names:
        conv = known.get(name) or _described(checkpoint, checkpoint.tensors[name], options)
        conv = conv._replace(found_by="user", why="named by --layer")
        convs.append(_with_layout(place, conv, options.layout) if options.layout else conv)
    return convs


def _described(checkpoint: Checkpoint, tensor: Tensor, options: Options) -> FirstConv:
    layouts = firstconv.layouts_of(searchable(checkpoint), torch=checkpoint.torch)
    layout, place = options.layout or firstconv.layout_of(tensor, layouts), checkpoint.source.place
    if layout is None or len(layout.axes) != len(tensor.shape):
        raise place.inside(tensor.name).unsupported(
            f"its shape {list(tensor.shape)} does not say where the input channels are",
            hint=f"--layout {'OI, O(HWI) or O(IHW)' if len(tensor.shape) == 2 else 'OIHW, HWIO or OHWI'} says it",
        )
    return FirstConv(tensor, layout, _channels(tensor, layout, options.from_channels or 0), "user")


def _with_layout(place: Place, conv: FirstConv, layout: Layout) -> FirstConv:
    shape = conv.tensor.shape
    if len(layout.axes) != len(shape):
        what = f"--layout {layout} has {len(layout.axes)} axes, the shape {list(shape)} has {len(shape)}"
        raise UsageError(what, file=place.file, where=conv.tensor.name)
    return conv._replace(layout=layout, in_channels=_channels(conv.tensor, layout, conv.in_channels))


def _channels(tensor: Tensor, layout: Layout, known: int) -> int:
    """The input channels of a kernel in a layout. A folded axis holds three colours if it can and nothing says otherwise."""
    width = tensor.shape[layout.channel_axis]
    if not layout.folded:
        return width
    if 0 < known < width and width % known == 0:
        return known
    return 3 if width % 3 == 0 else 1


def _kernel_change(
    checkpoint: Checkpoint, conv: FirstConv, fronts: Sequence[Front], options: Options, method: str
) -> KernelChange:
    place, to = checkpoint.source.place.inside(conv.tensor.name), options.to or 1
    if method:
        same = mixing.identity(conv.in_channels)._replace(method=method)
        return KernelChange(conv, conv.layout or Layout("OIHW"), same, conv.tensor.shape)
    if conv.in_channels == to:
        return KernelChange(conv, conv.layout or Layout("OIHW"), mixing.identity(to), conv.tensor.shape)
    scale, shift = _composed(checkpoint.source.place, fronts, conv.in_channels)
    if conv.layout is None:
        raise place.unsupported("the order of its axes is open", hint=folded.spellings(conv.tensor.shape))
    colours = options.luma is not None and conv.in_channels == 1
    rule = mixing.luma(options.luma or ()) if colours else mixing.between(conv.in_channels, to)
    chosen = _chosen_constants(rule)
    if fronts:
        rule = rule.between_affine(scale, shift, chosen)
    if conv.groups == 1:
        shape = conv.layout.with_channels(conv.tensor.shape, conv.in_channels, to)
        return KernelChange(conv, conv.layout, rule, shape, chosen)
    grouped = checkpoint.ungrouped(conv, to)
    keeps = conv.groups == conv.in_channels and all(row == (1.0,) for row in rule.matrix)
    if grouped is None or (to == 1 and not keeps):
        raise place.unsupported(f"a convolution in {conv.groups} groups, which only keeps its kernel toward one channel")
    return KernelChange(conv, conv.layout, rule, grouped, chosen)


def _composed(place: Place, fronts: Sequence[Front], channels: int) -> tuple[list[float], list[float]]:
    """All fronts as one y = scale · x + shift. Raises UnsupportedError for one that is not affine in each channel."""
    scale, shift = [1.0] * channels, [0.0] * channels
    for front in fronts:
        if front.scale is None or front.shift is None or len(front.scale) not in (1, channels):
            raise place.inside(front.where).unsupported(
                f"this {front.kind} takes the image and mixes, selects or counts its channels: no kernel edit is right"
            )
        times, plus = (c * channels if len(c) == 1 else c for c in (front.scale, front.shift))
        scale = [a * s for a, s in zip(times, scale, strict=True)]
        shift = [a * b + c for a, b, c in zip(times, shift, plus, strict=True)]
    return scale, shift


def _selected(checkpoint: Checkpoint, name: str, axis: int, chosen: tuple[int, ...]) -> TensorEdit:
    """Per-channel constants of the old channels that the new ones stand in for, their bits copied."""
    shape = checkpoint.tensors[name].shape
    return TensorEdit(
        (*shape[:axis], len(chosen), *shape[axis + 1 :]), cache(partial(kernels.taken, checkpoint, name, axis, chosen))
    )


def _chosen_constants(rule: Mixing) -> tuple[int, ...]:
    """For each new channel the old one whose per-channel constants it takes: the one it stands in for most."""
    sizes = [[abs(value) for value in column] for column in zip(*rule.matrix, strict=True)]
    return tuple(column.index(max(column)) for column in sizes)
