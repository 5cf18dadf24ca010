"""Checkpoint × options → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from typing import NamedTuple

from chkpt_channels.core.errors import Candidate, Place, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.discovery import find as selection
from chkpt_channels.discovery import patch_embeddings as folded
from chkpt_channels.discovery import preprocessing as in_front
from chkpt_channels.formats.base import Checkpoint, Declaration, Edits, FirstConv, Front, Notice, TensorEdit
from chkpt_channels.transform import kernels
from chkpt_channels.transform import parametrizations as reparameterised
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing import normalization as pipelines
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.normalization import Pipeline
from chkpt_channels.transform.mixing.rules import GRAPH_METHODS
from chkpt_channels.transform.optimizer_state import OptimizerEdits
from chkpt_channels.transform.options import Options


class Plan(NamedTuple):
    """Everything that is to happen to a checkpoint; `channels` are the input channels before and after, `why` says in words why
    the method is what it is where the user left that open, `candidates` are tensors that were considered and not taken,
    `pipeline` is what is to feed the result, where the user spoke of it."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    channels: tuple[int, int]
    declarations: tuple[Declaration, ...] = ()
    notices: tuple[Notice, ...] = ()
    why: str = ""
    candidates: tuple[Candidate, ...] = ()
    pipeline: Pipeline | None = None

    @property
    def fewer_parameters(self) -> int:
        """How many parameters fewer the kernels have."""
        sizes = {k.conv.tensor.name: prod(k.conv.tensor.shape) - prod(k.shape) for k in self.kernels if k.changes}
        return sum(sizes.values())


def make(checkpoint: Checkpoint, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError for what cannot be meant."""
    place, options = checkpoint.source.place, options.checked()
    to, checkpoint.follows_links = options.to, options.plain["follow_links"]
    if checkpoint.globals and options.plain["strict"]:
        raise place.unsupported(f"its pickle names {_listing(checkpoint.globals)}, which --strict refuses")
    finding = selection.select(checkpoint, options.search)
    convs = finding.first_convs
    rules = {conv.tensor.name: _rule(place, conv, options) for conv in convs}
    changing = [conv for conv in convs if not rules[conv.tensor.name].is_identity]
    if not changing:
        changes = tuple(KernelChange(c, c.layout or Layout("OIHW"), mixing.identity(to), c.tensor.shape) for c in convs)
        return Plan(changes, Edits(), (to, to), notices=notices(checkpoint), candidates=finding.candidates)
    old = changing[0].in_channels
    fronts = {c.tensor.name: tuple(checkpoint.fronts([c])) or in_front.fronts(checkpoint, c, finding.companions) for c in convs}
    every_front = list(dict.fromkeys(front for each in fronts.values() for front in each))
    method, why = _graph_method(checkpoint, convs, every_front, options) if old != to else ("", "")
    changes = tuple(
        _kernel_change(checkpoint, conv, rules[conv.tensor.name], fronts[conv.tensor.name], to, method) for conv in convs
    )
    changed = [change for change in changes if change.changes]
    counted = [change.conv for change in (changes if method else changed) if change.conv.in_channels != to]
    declarations, left = _declared(checkpoint, counted, old, set_hparams=options.plain["set_hparams"])
    chosen = changed[0].constants if changed else ()
    kept = [] if method else every_front
    edits = _edits(checkpoint, changed, options)
    edits = edits._replace(
        tensors={**edits.tensors, **_constants(checkpoint, kept, chosen), **({} if method else checkpoint.count_edits(to))},
        numbers={**{d.where: to for d in declarations}, **edits.numbers},
        channels=to,
        method=method,
        fronts={front.where: chosen for front in kept},
    )
    told = [*notices(checkpoint), *_rule_notices(rules[changing[0].tensor.name], method)]
    told += [*_kernel_notices(checkpoint, changed, options), *_left_notices(left)]
    if finding.companions and not method:
        told += in_front.notices(kept, chosen, checkpoint.tensors)
    pipeline = options.norm.new(options.rule.mixing(old), options.rule.orders) if options.norm else None
    return Plan(changes, edits, (old, to), declarations, tuple(told), why or options.rule.why(old), finding.candidates, pipeline)


def _declared(
    checkpoint: Checkpoint, counted: Sequence[FirstConv], old: int, *, set_hparams: bool
) -> tuple[tuple[Declaration, ...], list[Declaration]]:
    """The channel counts that follow these kernels, and the hyper-parameters that stay as they are."""
    declarations = tuple(checkpoint.declarations(counted)) if counted else ()
    hyper_parameters = [d for d in checkpoint.hyper_parameters(old) if d not in declarations] if counted else []
    return ((*declarations, *hyper_parameters), []) if set_hparams else (declarations, hyper_parameters)


def _rule(place: Place, conv: FirstConv, options: Options) -> Mixing:
    """What the options mean for this conv."""
    try:
        rule = options.rule.mixing(conv.in_channels)
        return pipelines.through(rule, options.norm, options.rule.orders) if options.norm else rule
    except UsageError as error:
        raise UsageError(error.what, file=place.file, where=conv.tensor.name) from None


def _edits(checkpoint: Checkpoint, changed: Sequence[KernelChange], options: Options) -> Edits:
    """What follows from the kernels alone: their values, the constants they leave, the optimizer's state."""
    tensors: dict[str, TensorEdit] = {}
    biases: dict[str, TensorEdit] = {}
    taken: set[str] = set()
    for kernel in changed:
        values = cache(partial(kernels.mixed, checkpoint, kernel, allow_nonfinite=options.plain["allow_nonfinite"]))
        edit = TensorEdit(kernel.shape, values)
        tensors |= checkpoint.kernel_edits(kernel.conv, edit)
        tensors |= kernel.form.edits(edit)
    for kernel in changed:
        if not kernel.mixing.offset:
            continue
        if kernel.layout.transposed:
            raise checkpoint.source.place.inside(kernel.conv.tensor.name).unsupported(
                "is a transposed convolution: a constant in front of it is no constant behind it, and no bias takes it"
            )
        filters = kernel.shape[kernel.layout.axes.index("O")]
        if taker := checkpoint.shift_taker(kernel.conv):
            if taker[0] in taken:
                raise checkpoint.source.place.inside(taker[0]).unsupported("two first convs share it, and each adds a constant")
            taken.add(taker[0])
            values = cache(partial(kernels.shifted, checkpoint, kernel, taker, tensors.get(taker[0])))
            tensors[taker[0]] = TensorEdit((filters,), values, "bias" if taker[1] > 0 else "running mean")
        elif checkpoint.adds_tensors:
            biases[kernel.conv.tensor.name] = TensorEdit(
                (filters,), cache(partial(kernels.bias_shift, checkpoint, kernel)), "bias"
            )
        else:
            raise checkpoint.source.place.inside(kernel.conv.tensor.name).unsupported(
                "has no bias, and no BatchNorm is known to stand right behind it, that could take the constant that "
                "channels with different means leave",
                hint="leave --norm out, and the pipeline in front as it is" if options.norm else "",
            )
    state = OptimizerEdits(checkpoint, {k.conv.tensor.name: k.shape for k in changed}, options.plain["optimizer"])
    return Edits(tensors | state.tensors, state.numbers, tuple(state.dropped), biases=biases)


def _constants(checkpoint: Checkpoint, fronts: Sequence[Front], chosen: tuple[int, ...]) -> dict[str, TensorEdit]:
    """What stands in front with one number for each channel: those of the old channels that the new ones stand in for."""
    axes: defaultdict[str, list[int]] = defaultdict(list)
    for name, axis in dict.fromkeys(pair for front in fronts for pair in front.tensors):
        axes[name].append(axis)
    edits = {}
    for name, of in axes.items():
        shape = tuple(len(chosen) if axis in of else size for axis, size in enumerate(checkpoint.tensors[name].shape))
        edits[name] = TensorEdit(shape, cache(partial(kernels.taken, checkpoint, name, of, chosen)), "statistics")
    return edits


def _graph_method(
    checkpoint: Checkpoint, convs: Sequence[FirstConv], fronts: Sequence[Front], options: Options
) -> tuple[str, str]:
    """The way to one channel that touches no kernel, where it is asked for or where something per-channel is in the way, and
    why it is taken."""
    asked = options.rule.method
    if options.to != 1 or options.rule.explicit or options.rule.luma or asked not in ("auto", *GRAPH_METHODS):
        return "", ""
    if options.norm:  # only a kernel can take a pipeline over
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


def _standardised_notices(checkpoint: Checkpoint, changed: Sequence[KernelChange]) -> list[Notice]:
    """A network without BatchNorm and without biases may standardise its weights, as BiT does: then the response shrinks."""
    found = []
    for kernel in changed:
        if kernel.mixing.new < kernel.mixing.old and reparameterised.may_standardise(checkpoint, kernel.conv):
            new = kernels.mixed(checkpoint, kernel)
            least, most = reparameterised.shrinkage(kernels.values(checkpoint, kernel.conv), new)
            told = (
                f"if {kernel.conv.tensor.name} is weight-standardised (BiT), its response becomes {least:.2f} to {most:.2f} times"
            )
            found.append(Notice("weight_standardised", f"{told} what it was, and no weight can mend that"))
    return found


def _kernel_notices(checkpoint: Checkpoint, changed: Sequence[KernelChange], options: Options) -> list[Notice]:
    """What becomes of the numbers: quantisation, zeros around the image, standardised weights."""
    border = list(kernels.border_notices(checkpoint, changed))
    found = [*_quantised_notices(changed), *border, *_standardised_notices(checkpoint, changed)]
    if border and options.norm.top != 1 and not options.norm.new_mean:
        mean = options.norm.old(changed[0].mixing.old, options.rule.source).mean
        gray = sum(mean) / len(mean)
        hint = f"--new-mean {gray:.3g}, which the new pipeline then subtracts, brings the border nearer to what it was"
        told = f"zeros around images that are fed as they are stand for black: {hint}"
        found.append(Notice("black_padding", told))
    return found


def _left_notices(left: Sequence[Declaration]) -> list[Notice]:
    if not left:
        return []
    which = _listing([f"{d.where} = {d.channels}" for d in left])
    told = f"{which} stays, and a script may build the network by it: --set-hparams sets it"
    return [Notice("hyper_parameters", told)]


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
        rule = rule.seen_through((scale, shift), ([scale[c] for c in chosen], [shift[c] for c in chosen]))
    form = reparameterised.form(checkpoint, conv)
    if conv.groups == 1:
        shape = conv.layout.with_channels(conv.tensor.shape, conv.in_channels, to)
        return KernelChange(conv, conv.layout, rule, shape, chosen, form)
    grouped = checkpoint.ungrouped(conv, to)
    if grouped is None or (to == 1 and conv.groups != conv.in_channels):
        raise place.unsupported(f"a convolution in {conv.groups} groups, which only keeps its kernel toward one channel")
    return KernelChange(conv, conv.layout, rule, grouped, chosen, form)


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


def _chosen_constants(rule: Mixing) -> tuple[int, ...]:
    """For each new channel the old one whose per-channel constants it takes: the one it stands in for most."""
    sizes = [[abs(value) for value in column] for column in zip(*rule.matrix, strict=True)]
    return tuple(column.index(max(column)) for column in sizes)
