"""Checkpoint × options → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from math import isfinite, prod
from typing import NamedTuple

from chkpt_channels.core.errors import Candidate, Location, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Declaration, Edits, FirstConv, Notice, PreprocessingOp, Tensor, TensorEdit
from chkpt_channels.discovery import bias_target, preprocessing
from chkpt_channels.discovery.find import check_one_width, compare_with_like, select_first_convs
from chkpt_channels.discovery.law import patch_embeddings
from chkpt_channels.discovery.law.search import Finding
from chkpt_channels.discovery.like import compare as like
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import joining, kernels, notices, parametrizations, quantization
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing import normalization
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.normalization import Normalization
from chkpt_channels.transform.mixing.rules import GRAPH_METHODS
from chkpt_channels.transform.optimizer_state import OptimizerEdits
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.patch_norm import NormedPatch


class Plan(NamedTuple):
    """The edits of a checkpoint and what they were derived from. `channels` are the input channels before and after, `why` is the
    reason for the method where the user did not choose it, `candidates` are tensors that were rejected as first convs, `pipeline`
    is the normalization of the output, where the user stated one."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    channels: tuple[int, int]
    declarations: tuple[Declaration, ...] = ()
    notices: tuple[Notice, ...] = ()
    why: str = ""
    candidates: tuple[Candidate, ...] = ()
    pipeline: Normalization | None = None

    @property
    def fewer_parameters(self) -> int:
        """How many parameters fewer the kernels have."""
        sizes = {k.conv.tensor.name: prod(k.conv.tensor.shape) - prod(k.shape) for k in self.kernels if k.changes}
        return sum(sizes.values())


def build_plan(checkpoint: TensorStore, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError where an option does not fit the file."""
    checkpoint.follows_links = options.plain["follow_links"]
    _check_globals(checkpoint, strict=options.plain["strict"])
    return _plan_by_like(checkpoint, options) if options.search.like else _planned(checkpoint, options)


def _plan_by_like(checkpoint: TensorStore, options: Options) -> Plan:
    """The plan, which must make LIKE's shapes. Where nothing differs and the user states no target, nothing changes."""
    comparison = compare_with_like(checkpoint, options.search)
    if comparison.channels is None and options.search.like and options.search.like.target is None:
        finding = select_first_convs(checkpoint, options.search)
        plan = _identity_plan(checkpoint, finding, finding.first_convs[0].in_channels if finding.first_convs else 0)
    else:
        plan = _planned(checkpoint, options)
    if comparison.channels and not plan.edits.method:
        like.check_edits(checkpoint, comparison, plan.edits)
    return plan._replace(notices=(*plan.notices, *like.notices(comparison)))


def _planned(checkpoint: TensorStore, options: Options) -> Plan:
    to = options.to
    finding = select_first_convs(checkpoint, options.search)
    convs = finding.first_convs
    check_one_width(checkpoint.location, convs, to)
    rules = {conv.tensor.name: _rule(checkpoint.location, conv, options) for conv in convs}
    changing = [conv for conv in convs if not rules[conv.tensor.name].is_identity]
    if not changing:
        return _identity_plan(checkpoint, finding, to)
    old = changing[0].in_channels
    operations = {conv.tensor.name: _operations_before(checkpoint, conv, finding.input_vectors) for conv in convs}
    all_operations = list(dict.fromkeys(op for each in operations.values() for op in each))
    method, why = _graph_method(checkpoint, convs, all_operations, options) if old != to else ("", "")
    pairs = ((conv, rules[conv.tensor.name], operations[conv.tensor.name]) for conv in convs)
    changes = tuple(_kernel_change(checkpoint, *each, to, method) for each in pairs)
    changed = [change for change in changes if change.changes]
    # where a conv has the target's channels already, its declarations are right
    counted = [change.conv for change in (changes if method else changed) if change.conv.in_channels != to]
    declarations, left = _declared(checkpoint, counted, old, set_hparams=options.plain["set_hparams"])
    kept, chosen = [] if method else all_operations, changed[0].constants if changed else ()
    joined = joining.changes(checkpoint, () if method else options.search.hints.joined, rules[changing[0].tensor.name])
    edits = _with_constants(checkpoint, _kernel_edits(checkpoint, [*changed, *joined], options), kept, chosen)
    edits = _with_state(checkpoint, edits, [*changed, *joined], options.plain["optimizer"])
    shapes = {} if method else checkpoint.graph.shape_edits(to)
    numbers = {**{d.where: to for d in declarations}, **edits.numbers}
    edits = edits._replace(tensors={**edits.tensors, **shapes}, numbers=numbers, channels=to, method=method)
    found_notices = [*notices.of_file(checkpoint, convs), *notices.of_mixing(rules[changing[0].tensor.name], method)]
    found_notices += [*notices.of_kernels(checkpoint, changed, options), *notices.of_hyper_parameters(left)]
    found_notices += [*notices.of_unexplained(checkpoint, changing, convs), *joining.notices(joined, old)]
    found_notices += preprocessing.notices(kept, chosen, checkpoint.tensors) if finding.input_vectors and not method else []
    return Plan(
        kernels=changes,
        edits=edits,
        channels=(old, to),
        declarations=declarations,
        notices=tuple(found_notices),
        why=why or options.rule.why(old),
        candidates=finding.candidates,
        pipeline=options.norm.new(options.rule.mixing(old), options.rule.orders) if options.norm else None,
    )


def _identity_plan(checkpoint: TensorStore, finding: Finding, channels: int) -> Plan:
    convs, same = finding.first_convs, mixing.identity(channels)
    unchanged = tuple(KernelChange(c, c.layout or Layout("OIHW"), same, c.tensor.shape) for c in convs)
    known = notices.of_file(checkpoint, convs)
    return Plan(unchanged, Edits(), (channels, channels), notices=known, candidates=finding.candidates)


def _check_globals(checkpoint: TensorStore, *, strict: bool) -> None:
    if checkpoint.globals and strict:
        message = f"its pickle names {notices.listing(checkpoint.globals)}, which --strict refuses"
        raise checkpoint.location.unsupported(message)


def _operations_before(checkpoint: TensorStore, conv: FirstConv, vectors: Sequence[Tensor]) -> tuple[PreprocessingOp, ...]:
    """The per-channel operations between the image and a kernel: those of the graph, or those that tensors alone show."""
    return tuple(checkpoint.graph.preprocessing([conv])) or preprocessing.find(checkpoint, conv, vectors)


def _declared(
    checkpoint: TensorStore, counted: Sequence[FirstConv], old: int, *, set_hparams: bool
) -> tuple[tuple[Declaration, ...], list[Declaration]]:
    """The channel counts that follow these kernels, and the hyper-parameters that stay as they are."""
    declarations = tuple(checkpoint.graph.declarations(counted)) if counted else ()
    hyper_parameters = [d for d in checkpoint.graph.hyper_parameters(old) if d not in declarations] if counted else []
    return ((*declarations, *hyper_parameters), []) if set_hparams else (declarations, hyper_parameters)


def _rule(location: Location, conv: FirstConv, options: Options) -> Mixing:
    """The mixing that the options give this conv."""
    if conv.in_channels < 1:
        raise location.at(conv.tensor.name).unsupported(f"has no input channels: its shape is {list(conv.tensor.shape)}")
    try:
        rule = options.rule.mixing(conv.in_channels)
        return normalization.fold_normalization(rule, options.norm, options.rule.orders) if options.norm else rule
    except UsageError as error:
        raise UsageError(error.what, file=location.file, where=conv.tensor.name) from None


def _kernel_edits(checkpoint: TensorStore, changed: Sequence[KernelChange], options: Options) -> Edits:
    """The edits that follow from the kernels alone: their values, and the constants for their biases."""
    tensors: dict[str, TensorEdit] = {}
    biases: dict[str, TensorEdit] = {}
    targets: set[str] = set()
    for kernel in changed:
        values = cache(partial(kernels.mixed_kernel, checkpoint, kernel, allow_nonfinite=options.plain["allow_nonfinite"]))
        edit = TensorEdit(kernel.shape, values)
        tensors |= quantization.kernel_edits(checkpoint, kernel.conv, edit)
        tensors |= kernel.parametrization.edits(edit)
    for kernel in changed:
        if not kernel.mixing.offset:
            continue
        if (
            kernel.layout.transposed
        ):  # the windows of a transposed convolution overlap unevenly: Σ W · t differs from pixel to pixel
            raise checkpoint.location.at(kernel.conv.tensor.name).unsupported(
                "is a transposed convolution: a constant in its input is not a constant in its output, and no bias takes it"
            )
        filters = kernel.shape[kernel.layout.axes.index("O")]
        if bias := bias_target.find(checkpoint, kernel.conv):
            if bias[0] in targets:  # exporters merge equal initializers, and tied stems share a bias
                raise checkpoint.location.at(bias[0]).unsupported(
                    "is the bias target of two first convs, and each adds a constant"
                )
            targets.add(bias[0])
            values = cache(partial(kernels.shifted_bias, checkpoint, kernel, bias, tensors.get(bias[0])))
            tensors[bias[0]] = TensorEdit((filters,), values, "bias" if bias[1] > 0 else "running mean")
        elif checkpoint.adds_tensors:
            biases[kernel.conv.tensor.name] = TensorEdit(
                (filters,), cache(partial(kernels.bias_shift, checkpoint, kernel)), "bias"
            )
        else:
            raise checkpoint.location.at(kernel.conv.tensor.name).unsupported(
                "has no bias, and no BatchNorm is known to follow it: nothing can take the constant that channels with "
                "different means leave",
                hint="leave --norm out, and keep the preprocessing" if options.norm else "",
            )
    return Edits(tensors, biases=biases)


def _with_constants(
    checkpoint: TensorStore, edits: Edits, operations: Sequence[PreprocessingOp], chosen: tuple[int, ...]
) -> Edits:
    """The edits, and those of the constants that precede the kernels with one number for each channel: each new channel takes
    the numbers of the old one that it replaces."""
    axes: defaultdict[str, list[int]] = defaultdict(list)
    for name, axis in dict.fromkeys(pair for op in operations for pair in op.tensors):
        axes[name].append(axis)
    constants = {}
    for name, channel_axes in axes.items():
        shape = tuple(len(chosen) if axis in channel_axes else size for axis, size in enumerate(checkpoint.tensors[name].shape))
        constants[name] = TensorEdit(
            shape, cache(partial(kernels.select_positions, checkpoint, name, channel_axes, chosen)), "statistics"
        )
    places = {operation.where: chosen for operation in operations}
    return edits._replace(tensors={**edits.tensors, **constants}, constants=places)


def _with_state(checkpoint: TensorStore, edits: Edits, changed: Sequence[KernelChange], how: str) -> Edits:
    """The edits, and those of the optimizer's state for the kernels and for whatever else changes its shape."""
    shapes = {k.conv.tensor.name: k.shape for k in changed}
    shapes |= {name: e.shape for name, e in edits.tensors.items() if e.shape != checkpoint.tensors[name].shape}
    state = OptimizerEdits(checkpoint, shapes, how)
    return edits._replace(
        tensors={**edits.tensors, **state.tensors}, numbers={**edits.numbers, **state.numbers}, dropped=tuple(state.dropped)
    )


def _graph_method(
    checkpoint: TensorStore, convs: Sequence[FirstConv], operations: Sequence[PreprocessingOp], options: Options
) -> tuple[str, str]:
    """(method, reason) of a conversion to one channel by the graph itself, without an edit of kernels: where the user asks for
    it, or where per-channel preprocessing, a quantized kernel or an ambiguous layout would make an edit inexact."""
    method = options.rule.method
    if options.to != 1 or options.rule.explicit or options.rule.luma or method not in ("auto", *GRAPH_METHODS):
        return "", ""
    if options.norm:  # a normalization can only be folded into a kernel
        return "", ""
    allowed = checkpoint.graph.graph_methods(convs)
    if method != "auto":
        if method not in allowed:
            able = f"{' and '.join(allowed)} would do" if allowed else "kernels are edited instead: --method sum"
            raise checkpoint.location.unsupported(f"its graph does not allow --method {method}; {able}")
        return method, ""
    obstacles = [f"{op.kind} {op.where}".strip() for op in operations if not op.uniform]
    obstacles += [f"the kernel {c.tensor.name} in {c.tensor.dtype.name}" for c in convs if not c.tensor.dtype.floating]
    obstacles += [f"the ambiguous layout of {c.tensor.name}" for c in convs if not c.layout]
    return (allowed[0], f"exact everywhere, despite {notices.listing(obstacles)}") if allowed and obstacles else ("", "")


def _kernel_change(
    checkpoint: TensorStore, conv: FirstConv, rule: Mixing, operations: Sequence[PreprocessingOp], to: int, method: str
) -> KernelChange:
    location = checkpoint.location.at(conv.tensor.name)
    if method or rule.is_identity:
        same = mixing.identity(conv.in_channels)
        return KernelChange(conv, conv.layout or Layout("OIHW"), same._replace(method=method or same.method), conv.tensor.shape)
    scale, shift = _composed(checkpoint.location, operations, conv.in_channels)
    if conv.layout is None:
        raise location.unsupported("its axis order is ambiguous", hint=patch_embeddings.spellings(conv.tensor.shape))
    chosen = _chosen_constants(rule)
    if operations:
        rule = rule.compose((scale, shift), ([scale[c] for c in chosen], [shift[c] for c in chosen]))
    parametrization = parametrizations.parametrization_of(checkpoint, conv)
    if norm := preprocessing.patch_norm(checkpoint, conv):
        parametrization = NormedPatch(checkpoint, conv, conv.layout, rule, norm)
    if conv.groups == 1:
        # the usual case: one channel axis grows or shrinks
        shape = conv.layout.with_channels(conv.tensor.shape, conv.in_channels, to)
        return KernelChange(conv, conv.layout, rule, shape, chosen, parametrization)
    # toward one channel a depthwise kernel keeps its bytes: every filter reads the one channel that is left (Keras'
    # DepthwiseConv2D (h, w, 3, m) is (h, w, 1, 3m), ONNX' group 3 becomes 1)
    grouped = checkpoint.graph.dense_shape(conv, to)
    if grouped is None or (to == 1 and conv.groups != conv.in_channels):
        raise location.unsupported(f"is a convolution in {conv.groups} groups, which is only converted to one channel")
    return KernelChange(conv, conv.layout, rule, grouped, chosen, parametrization)


def _composed(location: Location, operations: Sequence[PreprocessingOp], channels: int) -> tuple[list[float], list[float]]:
    """All operations as one y = scale · x + shift. Raises UnsupportedError for one that is not affine in each channel, or that
    cannot be inverted, as composing it needs."""
    scale, shift = [1.0] * channels, [0.0] * channels
    for op in operations:
        if op.scale is None or op.shift is None or len(op.scale) not in (1, channels):
            raise location.at(op.where).unsupported(
                f"this {op.kind} precedes the kernel and mixes, selects or counts channels: no kernel edit is exact"
            )
        if not all(isfinite(s) and s for s in op.scale) or not all(map(isfinite, op.shift)):
            raise location.at(op.where).unsupported(
                f"this {op.kind} multiplies a channel by zero or no number, and composing it into the kernel divides by that"
            )
        times, plus = (c * channels if len(c) == 1 else c for c in (op.scale, op.shift))
        scale = [a * s for a, s in zip(times, scale, strict=True)]
        shift = [a * b + c for a, b, c in zip(times, shift, plus, strict=True)]
    return scale, shift


def _chosen_constants(rule: Mixing) -> tuple[int, ...]:
    """For each new channel the old one whose per-channel constants it takes: the one with the largest coefficient. A sum of means
    would be nonsense: the mixing accounts for the difference."""
    sizes = [[abs(value) for value in column] for column in zip(*rule.matrix, strict=True)]
    return tuple(column.index(max(column)) for column in sizes)
