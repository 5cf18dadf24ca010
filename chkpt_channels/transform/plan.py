"""Checkpoint × options → Edits. Pure: no path is touched and nothing is written; kernels are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from math import prod

from chkpt_channels.core.errors import Candidate, Location, UnsupportedError, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import ChannelMap, Declaration, Edits, Finding, FirstConv, Notice, PreprocessingOp, Tensor
from chkpt_channels.discovery import preprocessing
from chkpt_channels.discovery.counts import check_one_width
from chkpt_channels.discovery.find import compare_with_like, select_first_convs
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform import graph_methods, kernels, notices
from chkpt_channels.transform.kernel_change import joined_changes, kernel_change, tensor_edits
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.mixing import normalization
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.normalization import Normalization
from chkpt_channels.transform.mixing.rules import ADAPTER, GATHER, ORDERS
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.parametrizations import PLAIN


class Plan(NamedTuple):
    """The edits of a checkpoint and what they were derived from. `channels` are the input channels before and after, `why` is the
    reason for the method where the user did not choose it, `candidates` are tensors that were rejected as first convs, `pipeline`
    is the normalization of the output, where the user stated one, `operations` are those that precede the first convs."""

    kernels: tuple[KernelChange, ...]
    edits: Edits
    channels: tuple[int, int]
    declarations: tuple[Declaration, ...] = ()
    notices: tuple[Notice, ...] = ()
    why: str = ""
    candidates: tuple[Candidate, ...] = ()
    pipeline: Normalization | None = None
    operations: tuple[PreprocessingOp, ...] = ()

    @property
    def fewer_parameters(self) -> int:
        """How many parameters fewer the kernels have."""
        sizes = {k.conv.tensor.name: prod(k.conv.tensor.shape) - prod(k.shape) for k in self.kernels if k.changes}
        return sum(sizes.values())


def build_plan(checkpoint: TensorStore, options: Options) -> Plan:
    """The plan. Raises AmbiguousError with candidates, UnsupportedError, or UsageError where an option does not fit the file."""
    checkpoint.follows_links = options.plain["follow_links"]
    if checkpoint.globals and options.plain["strict"]:
        message = f"its pickle names {notices.listing(checkpoint.globals)}, which --strict refuses"
        raise checkpoint.location.unsupported(message)
    if options.plain["fold_adapter"]:
        return _folded(checkpoint, options)
    plan = _plan_by_like(checkpoint, options) if options.search.like else _planned(checkpoint, options)
    if not options.plain["bfloat16"] and (untyped := next((n for n in plan.edits.tensors if n in checkpoint.untyped), None)):
        what = "has two bytes an element and no type (V2), as numpy saves JAX's bfloat16"
        raise checkpoint.location.at(untyped).unsupported(what, hint="--bfloat16")
    return plan


def may_have_made(options: Options, before: TensorStore, after: TensorStore, plan: Plan) -> bool:
    """Whether the kernels in `after` could be those that these options give: a quick look, for which a plan with others is
    enough. Of kernels that are not stored as they are mixed it says yes."""
    for kernel in plan.kernels:
        conv, name = kernel.conv, kernel.conv.tensor.name
        is_plain = conv.layout and conv.groups == 1 and conv.tensor.dtype.floating and kernel.parametrization is PLAIN
        if not is_plain or name not in after.tensors:
            continue
        rule = _rule(before.location, conv, options)
        try:
            change = kernel_change(before, conv, rule, plan.operations, options.to, "")
            values = kernels.mixed_kernel(before, change, allow_nonfinite=True)
        except UnsupportedError:  # the graph may do it instead
            continue
        if values.tobytes() != b"".join(after.chunks(name)):
            return False
    return True


def _plan_by_like(checkpoint: TensorStore, options: Options) -> Plan:
    """The plan, which must make LIKE's shapes. Where nothing differs and the user states no target, nothing changes."""
    from chkpt_channels.discovery.like import compare as like

    comparison = compare_with_like(checkpoint, options.search)
    if comparison.channels is None and options.search.like and options.search.like.target is None:
        finding = select_first_convs(checkpoint, options.search)
        plan = _identity_plan(checkpoint, finding, finding.first_convs[0].in_channels if finding.first_convs else 0)
    else:
        plan = _planned(checkpoint, options)
    if comparison.channels and not plan.edits.method:
        like.check_edits(checkpoint, comparison, plan.edits)
    return plan._replace(notices=(*plan.notices, *like.notices(comparison)))


def _folded(checkpoint: TensorStore, options: Options) -> Plan:
    """The plan that folds a convolution into the kernels that take what it gives: its matrix is the rule."""
    conv, adapter, behind = graph_methods.trained_adapter(checkpoint, options.search)
    folded = [graph_methods.folding(checkpoint, conv, adapter, each.tensor.name) for each in behind]
    rule = folded[0]
    if rule.is_identity:
        plan = _identity_plan(checkpoint, Finding(behind), rule.new)
    else:
        options = options._replace(rule=options.rule._replace(to=rule.new))
        operations = [_operations_before(checkpoint, each, ()) for each in behind]
        known, rules = Finding((conv, *behind)), [mixing.identity(rule.new), *folded]
        plan = _plan_by(checkpoint, known, rules, [(), *operations], options, "", "")._replace(why="")
    edits = plan.edits._replace(inputs=conv.inputs, channels=rule.new, folded=adapter.output, removed=adapter.tensors)
    edits = edits._replace(windows=adapter.windows)
    kernels = tuple(kernel for kernel in plan.kernels if kernel.conv is not conv)
    return plan._replace(
        kernels=kernels, edits=edits, notices=(*plan.notices, graph_methods.folded_notice(conv, adapter, behind))
    )


def _planned(checkpoint: TensorStore, options: Options) -> Plan:
    finding = select_first_convs(checkpoint, options.search)
    convs = finding.first_convs
    check_one_width(checkpoint, convs, None if options.rule.explicit or options.rule.order in ORDERS else options.to)
    rules = [_rule(checkpoint.location, conv, options) for conv in convs]
    changing = [conv for conv, rule in zip(convs, rules, strict=True) if not rule.is_identity]
    if not changing:
        checkpoint.graph.check_reached(each=True)
        return _identity_plan(checkpoint, finding, options.to)
    operations = [_operations_before(checkpoint, conv, finding.input_vectors) if conv in changing else [] for conv in convs]
    method, why = graph_methods.preferred(checkpoint, changing, list(chain(*operations)), options)
    planned = partial(_plan_by, checkpoint, finding, rules, operations, options)
    if method:
        return planned(method, why)
    try:
        return planned("", "")
    except UnsupportedError as refusal:
        if options.rule.method != "auto" and not refusal.hint:
            refusal.hint = _hint_of_auto(checkpoint, options)
        if not (method := graph_methods.instead(checkpoint, changing, options)):
            raise
        return planned(method, f"no kernel edit is right: {refusal.where}: {refusal.what}")


def _hint_of_auto(checkpoint: TensorStore, options: Options) -> str:
    """What to do where the user's method is refused: leave it out, if then there is a plan."""
    try:
        _planned(checkpoint, options._replace(rule=options.rule._replace(method="auto")))
    except (UnsupportedError, UsageError):
        return ""
    return "leave --method out"


def _plan_by(
    checkpoint: TensorStore,
    finding: Finding,
    rules: Sequence[Mixing],
    operations: Sequence[Sequence[PreprocessingOp]],
    options: Options,
    method: str,
    why: str,
) -> Plan:
    """The plan by one method of the graph, or by edits of kernels where it is empty."""
    to, convs = options.to, finding.first_convs
    changing = [(conv, rule) for conv, rule in zip(convs, rules, strict=True) if not rule.is_identity]
    old, rule = changing[0][0].in_channels, changing[0][1]
    changes = tuple(kernel_change(checkpoint, *each, to, method) for each in zip(convs, rules, operations, strict=True))
    changed = [change for change in changes if change.changes]
    declarations, left = _declared(
        checkpoint, [conv for conv, _ in changing], (old, to), set_hparams=options.plain["set_hparams"]
    )
    composed = list(dict.fromkeys(chain(*operations)))
    joined = joined_changes(checkpoint, () if method else options.search.hints.joined, rule)
    edits = tensor_edits(checkpoint, changed, joined, composed, options)
    edits = edits._replace(numbers={**{d.where: to for d in declarations}, **edits.numbers}, channels=to)
    edits = _by_graph(checkpoint, edits, changing, method)
    plain = options.rule.mixing(old) if options.norm else rule  # a normalization scales the kernel, and is to
    said = [*notices.of_file(checkpoint, convs), *notices.of_mixing(plain, method, options.rule)]
    said += [*notices.of_hyper_parameters(left), *notices.of_kernels(checkpoint, changed, options)]
    said += chain(notices.of_joined(joined, old), notices.of_chosen(checkpoint, [c for c, _ in changing], convs, options.search))
    if finding.input_vectors and changed:
        said += preprocessing.notices(composed, changed[0].constants, checkpoint.tensors)
    return Plan(
        kernels=changes,
        edits=edits,
        channels=(old, to),
        declarations=declarations,
        notices=tuple(said),
        why=why or options.rule.why(old),
        candidates=finding.candidates,
        pipeline=options.norm.new(plain, options.rule.orders) if options.norm else None,
        operations=tuple(composed),
    )


def _by_graph(checkpoint: TensorStore, edits: Edits, changing: Sequence[tuple[FirstConv, Mixing]], method: str) -> Edits:
    """The edits, and what the graph's method puts in front of the kernels."""
    convs, rule = [conv for conv, _ in changing], changing[0][1]
    edits = edits._replace(inputs=tuple(dict.fromkeys(name for conv in convs for name in conv.inputs)), method=method)
    if method == ADAPTER:
        return edits._replace(adapter=ChannelMap(rule.matrix, rule.offset))
    return edits._replace(orders=checkpoint.graph.gathers(convs, rule.places)) if method == GATHER else edits


def _identity_plan(checkpoint: TensorStore, finding: Finding, channels: int) -> Plan:
    convs, same = finding.first_convs, mixing.identity(channels)
    unchanged = tuple(KernelChange(c, c.layout or Layout("OIHW"), same, c.tensor.shape) for c in convs)
    known = tuple(notices.of_file(checkpoint, convs))
    return Plan(unchanged, Edits(), (channels, channels), notices=known, candidates=finding.candidates)


def _operations_before(checkpoint: TensorStore, conv: FirstConv, vectors: Sequence[Tensor]) -> tuple[PreprocessingOp, ...]:
    """The per-channel operations between the image and a kernel: those of the graph, or those that tensors alone show."""
    return tuple(checkpoint.graph.preprocessing([conv])) or preprocessing.find(checkpoint, conv, vectors)


def _declared(
    checkpoint: TensorStore, convs: Sequence[FirstConv], channels: tuple[int, int], *, set_hparams: bool
) -> tuple[tuple[Declaration, ...], list[Declaration]]:
    """The channel counts that follow these kernels from the old to the new channels, and the hyper-parameters that stay as they
    are. Where a conv has the new ones already, its declarations are right."""
    old, to = channels
    counted = [conv for conv in convs if conv.in_channels != to]
    declarations = tuple(checkpoint.graph.declarations(counted)) if counted else ()
    hyper_parameters = [d for d in checkpoint.graph.hyper_parameters(old) if d not in declarations] if counted else []
    return ((*declarations, *hyper_parameters), []) if set_hparams else (declarations, hyper_parameters)


def _rule(location: Location, conv: FirstConv, options: Options) -> Mixing:
    """The mixing that the options give this conv."""
    if 0 in conv.tensor.shape:
        raise location.at(conv.tensor.name).unsupported(f"has no elements: its shape is {list(conv.tensor.shape)}")
    if conv.in_channels < 1:
        what = "how many channels its image has is not declared, and they are mixed before this kernel"
        raise location.at(conv.tensor.name).unsupported(what, hint="--from, with their number")
    try:
        rule = options.rule.mixing(conv.in_channels)
        return normalization.fold_normalization(rule, options.norm, options.rule.orders) if options.norm else rule
    except UsageError as error:
        raise UsageError(error.what, file=location.file, where=conv.tensor.name, hint=error.hint) from None
