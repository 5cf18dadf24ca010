"""Checkpoint × options → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

from . import folded, kernels, mixing, reparameterised, selection
from .errors import Candidate, Place, UsageError
from .kernels import KernelChange
from .layout import Layout
from .mixing import Mixing
from .model import Checkpoint, Declaration, Edits, FirstConv, Front, Notice, TensorEdit
from .optimizer import OptimizerEdits
from .options import Options
from .rules import GRAPH_METHODS


class Plan(NamedTuple):
    """Everything that is to happen to a checkpoint; `channels` are the input channels before and after, `why` says in words why
    the method is what it is where the user left that open, `candidates` are tensors that were considered and not taken."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    channels: tuple[int, int]
    declarations: tuple[Declaration, ...] = ()
    notices: tuple[Notice, ...] = ()
    why: str = ""
    candidates: tuple[Candidate, ...] = ()


def make(checkpoint: Checkpoint, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError for what cannot be meant."""
    place, options = checkpoint.source.place, options.checked()
    to = options.to
    if checkpoint.globals and options.strict:
        raise place.unsupported(f"its pickle names {_listing(checkpoint.globals)}, which --strict refuses")
    finding = selection.select(checkpoint, options)
    convs = finding.first_convs
    rules = {conv.tensor.name: _rule(place, conv, options) for conv in convs}
    changing = [conv for conv in convs if not rules[conv.tensor.name].is_identity]
    if not changing:
        changes = tuple(
            KernelChange(conv, conv.layout or Layout("OIHW"), mixing.identity(to), conv.tensor.shape) for conv in convs
        )
        return Plan(changes, Edits(), (to, to), notices=notices(checkpoint), candidates=finding.candidates)
    old = changing[0].in_channels
    fronts = {conv.tensor.name: tuple(checkpoint.fronts([conv])) for conv in convs}
    in_front = list(dict.fromkeys(front for each in fronts.values() for front in each))
    method, why = _graph_method(checkpoint, convs, in_front, options) if old != to else ("", "")
    changes = tuple(
        _kernel_change(checkpoint, conv, rules[conv.tensor.name], fronts[conv.tensor.name], to, method) for conv in convs
    )
    changed = [change for change in changes if change.changes]
    counted = [change.conv for change in (changes if method else changed) if change.conv.in_channels != to]
    declarations = tuple(checkpoint.declarations(counted)) if counted else ()
    edits = _edits(checkpoint, changed, options)
    chosen = changed[0].constants if changed else ()
    kept = [] if method else in_front
    constants = {name: _selected(checkpoint, name, axis, chosen) for front in kept for name, axis in front.tensors}
    edits = edits._replace(
        tensors={**edits.tensors, **constants, **({} if method else checkpoint.count_edits(to))},
        numbers={**{d.where: to for d in declarations}, **edits.numbers},
        channels=to,
        method=method,
        fronts={front.where: chosen for front in kept},
    )
    told = (*notices(checkpoint), *_rule_notices(rules[changing[0].tensor.name], method), *_quantised_notices(changed))
    told = (*told, *kernels.border_notices(checkpoint, changed))
    return Plan(changes, edits, (old, to), declarations, told, why or options.rule.why(old), finding.candidates)


def _rule(place: Place, conv: FirstConv, options: Options) -> Mixing:
    """What the options mean for this conv."""
    try:
        return options.rule.mixing(conv.in_channels)
    except UsageError as error:
        raise UsageError(error.what, file=place.file, where=conv.tensor.name) from None


def _edits(checkpoint: Checkpoint, changed: Sequence[KernelChange], options: Options) -> Edits:
    """What follows from the kernels alone: their values, the constants they leave, the optimizer's state."""
    by_name = {k.conv.tensor.name: k for k in changed}
    tensors: dict[str, TensorEdit] = {}
    for k in changed:
        values = cache(partial(kernels.mixed, checkpoint, k, allow_nonfinite=options.allow_nonfinite))
        edit = TensorEdit(k.shape, values)
        tensors |= checkpoint.kernel_edits(k.conv, edit)
        if length := reparameterised.length(checkpoint, k):
            lengths = cache(partial(reparameterised.new_lengths, checkpoint, k, length, edit))
            tensors[length.tensor.name] = TensorEdit(length.tensor.shape, lengths)
    biases: dict[str, TensorEdit] = {}
    for name, kernel in by_name.items():
        if not kernel.mixing.offset:
            continue
        filters = kernel.shape[kernel.layout.axes.index("O")]
        if taker := checkpoint.shift_taker(kernel.conv):
            before = tensors.get(taker[0])
            tensors[taker[0]] = TensorEdit((filters,), cache(partial(kernels.shifted, checkpoint, kernel, taker, before)))
        else:
            biases[name] = TensorEdit((filters,), cache(partial(kernels.bias_shift, checkpoint, kernel)))
    state = OptimizerEdits(checkpoint, {name: k.shape for name, k in by_name.items()}, options.optimizer)
    return Edits(tensors | state.tensors, state.numbers, tuple(state.dropped), biases=biases)


def _graph_method(
    checkpoint: Checkpoint, convs: Sequence[FirstConv], fronts: Sequence[Front], options: Options
) -> tuple[str, str]:
    """The way to one channel that touches no kernel, where it is asked for or where something per-channel is in the way, and
    why it is taken."""
    asked = options.rule.method
    if options.to != 1 or options.rule.explicit or options.rule.luma or asked not in ("auto", *GRAPH_METHODS):
        return "", ""
    allowed = checkpoint.graph_methods(convs)
    if asked != "auto":
        if asked not in allowed:
            able = f"{' and '.join(allowed)} would do" if allowed else "kernels are edited instead: --method sum"
            raise checkpoint.source.place.unsupported(f"its graph does not allow --method {asked}; {able}")
        return asked, ""
    obstacles = [f"{front.kind} {front.where}".strip() for front in fronts if not front.uniform]
    obstacles += [f"the kernel {c.tensor.name} in {c.tensor.dtype.name}" for c in convs if not c.tensor.dtype.floating]
    obstacles += [f"the open layout of {c.tensor.name}" for c in convs if not c.layout]
    return (allowed[0], f"exact everywhere, in spite of {_listing(obstacles)}") if allowed and obstacles else ("", "")


def _listing(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def notices(checkpoint: Checkpoint) -> tuple[Notice, ...]:
    """What a user of this file should know, whatever is done with it."""
    if not checkpoint.globals:
        return tuple(checkpoint.warnings)
    names = _listing(checkpoint.globals)
    told = f"its pickle names {names}: not run here and copied as it is, but loading the file resolves it"
    return (*checkpoint.warnings, Notice("foreign_globals", told))


def _quantised_notices(changed: Sequence[KernelChange]) -> list[Notice]:
    names = [k.conv.tensor.name for k in changed if not k.conv.tensor.dtype.floating]
    if not names:
        return []
    told = f"{_listing(names)} is quantised: mixed in float64 and quantised again; the parity includes what that loses"
    return [Notice("requantised", told)]


def _rule_notices(rule: Mixing, method: str) -> list[Notice]:
    """What the rule does that its user may not expect."""
    found = []
    dropped = [i for i, row in enumerate(rule.matrix) if not any(row)]
    if dropped and rule.method in ("repeat", "bands") and not method:
        which = _listing([str(i) for i in dropped])
        told = f"{rule.method} to {rule.new} channels leaves out old channel {which}; --select says which of them stay"
        found.append(Notice("dropped_channels", told))
    response = sum(value for row in rule.matrix for value in row) / rule.old
    if rule.method in ("mean", "luma") and abs(response - 1) > 1e-6 and not method:
        told = f"{rule.method} with these weights makes the response to equal channels {response:.3g} times what it was"
        found.append(Notice("response", told))
    return found


def _kernel_change(
    checkpoint: Checkpoint, conv: FirstConv, rule: Mixing, fronts: Sequence[Front], to: int, method: str
) -> KernelChange:
    place = checkpoint.source.place.inside(conv.tensor.name)
    if method or rule.is_identity:
        same = mixing.identity(conv.in_channels)
        return KernelChange(conv, conv.layout or Layout("OIHW"), same._replace(method=method or same.method), conv.tensor.shape)
    scale, shift = _composed(checkpoint.source.place, fronts, conv.in_channels)
    if conv.layout is None:
        raise place.unsupported("the order of its axes is open", hint=folded.spellings(conv.tensor.shape))
    chosen = _chosen_constants(rule)
    if fronts:
        rule = rule.between_affine(scale, shift, chosen)
    if conv.groups == 1:
        shape = conv.layout.with_channels(conv.tensor.shape, conv.in_channels, to)
        return KernelChange(conv, conv.layout, rule, shape, chosen)
    grouped = checkpoint.ungrouped(conv, to)
    if grouped is None or (to == 1 and conv.groups != conv.in_channels):
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
