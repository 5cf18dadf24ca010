"""Verification of a conversion: kernels obey the formula to the last bit, and everything else is identical."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

from chkpt_channels.api.left_out import equal_streams, is_left, left_out
from chkpt_channels.api.output.check import added_values, gone, misread, missing_biases, tell
from chkpt_channels.api.output.naming import Path_
from chkpt_channels.api.report import Difference, FileInfo, Verification
from chkpt_channels.api.report_builder import file_info, kernel_reports
from chkpt_channels.core.errors import AmbiguousError, UnsupportedError, UsageError
from chkpt_channels.core.tensors import TensorEdit
from chkpt_channels.discovery.find import find_first_convs, select_first_convs
from chkpt_channels.folders.like_file import with_like
from chkpt_channels.folders.model import Model, ModelFile
from chkpt_channels.folders.model_folder import ModelFolder, check_no_folder_options, is_folder
from chkpt_channels.folders.planning import PlannedModel, plan_model
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.storage.urls import is_url
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import known
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.rules import ChannelRule
from chkpt_channels.transform.option_table import ConvertOptions
from chkpt_channels.transform.options import Options, as_keywords, build_options, spelled
from chkpt_channels.transform.plan import Plan, may_have_made


def verify(original: Path_, converted: Path_, to: str | int | None = None, **options: Unpack[ConvertOptions]) -> Verification:
    """Whether `converted` is what converting `original` gives, with the same options; without `to` the number of channels is
    read off `converted`, and where it is the conversion under options that are often given, it is identical `under` these. Both
    may be model folders. Raises what opening or planning raises; differences are no errors."""
    result = _verify(original, converted, to, options, may_try=to is None)
    old, new = result.in_channels
    if not (result.ok or result.hint or old == new or options):
        with contextlib.suppress(UnsupportedError, UsageError):
            back = _verify(converted, original, None, options, may_try=True)
            if (back.ok or back.hint) and back.in_channels == (new, old):
                names = shlex.join([os.fspath(converted), os.fspath(original)])
                return result._replace(hint=f"chkpt-channels verify {names} {back.hint}".rstrip())
    return result


def _verify(original: Path_, converted: Path_, to: str | int | None, given: ConvertOptions, *, may_try: bool) -> Verification:
    kind = ModelFolder if is_folder(original) and is_folder(converted) else ModelFile
    parsed = build_options(to, **given)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(_open(original, kind, parsed.plain["leave_out"]))
        # before the other is opened: it may be missing, and this is wrong whatever is there
        parsed = with_like(first, first.resolved(parsed))
        second = stack.enter_context(_open(converted, kind))
        afters = _counterparts(first, second)
        try:
            return _compared(first, second, afters, parsed, may_try=may_try)
        except AmbiguousError:
            # the kernels that were converted show which were meant, unless the user named them
            is_asked = parsed.search.layers or parsed.search.like or parsed.plain["fold_adapter"]
            left = None if is_asked else left_out(first, second, afters)
            if left is None:
                raise
            return left


def _compared(first: Model, second: Model, afters: Mapping[str, TensorStore], options: Options, *, may_try: bool) -> Verification:
    """The comparison with the plan, or, where the user states no rule, with that of a known conversion. Raises what planning
    raises."""
    is_plain = options.rule == ChannelRule(to=options.rule.to) and not options.norm
    if options.rule.to is None and options.search.like is None and not options.plain["fold_adapter"]:
        part = next(part for part in first.parts if part.name in afters)
        target = _target(part.store, afters[part.name], options)
        options = options._replace(rule=options.rule._replace(to=target).validated())
    planned = plan_model(first, options)
    result = _result(first, second, afters, planned)
    if result.ok or not is_plain or options.search.like or options.plain["fold_adapter"]:
        return result
    tried = _under_known(first, second, afters, options, planned) if may_try else None
    return tried or result._replace(hint=_hint(afters, planned))


def _under_known(
    first: Model, second: Model, afters: Mapping[str, TensorStore], options: Options, plain: PlannedModel
) -> Verification | None:
    """The comparison with a known conversion that the other model is; None where it is none. Of most only the kernels, and
    what takes a constant, are compared."""
    there = [planned for planned in plain.parts if planned.part.name in afters]
    for keywords in known.conversions(*plain.channels):
        named = build_options(**{"to": options.rule.to, **keywords})
        asked = options._replace(rule=named.rule, norm=named.norm)
        with contextlib.suppress(UnsupportedError, UsageError):  # no bias takes its constant, or it is for three channels
            if not all(may_have_made(asked, part.store, afters[part.name], plan) for part, plan in there):
                continue
            planned = plan_model(first, asked)
            if all(_has_edits(afters[part.name], plan) for part, plan in planned.parts if part.name in afters):
                result = _result(first, second, afters, planned)
                if result.ok:
                    return result._replace(under=spelled(keywords), options=as_keywords(asked))
    return None


def _has_edits(after: TensorStore, plan: Plan) -> bool:
    """Whether every edited tensor that is there is as planned."""
    there = ((name, edit) for name, edit in plan.edits.tensors.items() if name in after.tensors)
    return all(equal_streams([edit.tobytes()], after.chunks(name)) for name, edit in there)


def _hint(afters: Mapping[str, TensorStore], planned: PlannedModel) -> str:
    """The options that ask for the known rule by which the kernels were made."""
    kernels = ((part, kernel) for part, plan in planned.parts if part.name in afters for kernel in plan.kernels)
    there = ((part, kernel) for part, kernel in kernels if kernel.conv.tensor.name in afters[part.name].tensors)
    rules = ((_known_rule(part.store, afters[part.name], kernel), kernel) for part, kernel in there)
    return next((known.asking(rule) for rule, kernel in rules if rule and rule.matrix != kernel.mixing.matrix), "")


def _result(first: Model, second: Model, afters: Mapping[str, TensorStore], planned: PlannedModel) -> Verification:
    """The comparison with a plan."""
    differences, identical = [], 0
    for part, plan in planned.parts:
        if part.name not in afters:
            differences.append(Difference(part.name, "is missing"))
            continue
        part_differences, unchanged = _compare(part.store, afters[part.name], plan)
        differences += [d._replace(key=f"{part.name}/{d.key}") if first.is_folder else d for d in part_differences]
        identical += unchanged
    if isinstance(first, ModelFolder) and isinstance(second, ModelFolder):
        differences += _other_files(first, second, planned)
    return Verification(
        input=file_info(first, measured=False),
        output=file_info(second, measured=False),
        in_channels=planned.channels,
        kernels=kernel_reports(first, planned),
        identical=identical,
        tensors_total=sum(len(part.store.tensors) for part, _ in planned.parts),
        differences=tuple(differences),
        warnings=planned.notices,
        pipeline=planned.first.pipeline,
    )


def _open(path: Path_, kind: type[ModelFolder | ModelFile], leave_out: Sequence[str] = ()) -> Model:
    if kind is ModelFolder:
        return ModelFolder(path, follow_links=True, leave_out=leave_out)
    check_no_folder_options(path, leave_out)
    return ModelFile(path)


def _counterparts(first: Model, second: Model) -> dict[str, TensorStore]:
    """The parts of the converted model by the names that they have in the original. Raises UnsupportedError where none has."""
    if isinstance(first, ModelFolder) and isinstance(second, ModelFolder) and not set(first.part_names) & set(second.part_names):
        raise second.location.unsupported(f"has no weights file of the same name as one of {first.location.file}")
    return {part.name: part.store for part in second.parts}


def is_current(original: Path_, converted: Path_, to: str | int | None = None, **options: Unpack[ConvertOptions]) -> Verification:
    """As `verify` with these options and no others, for a derived file that may be missing: that is a difference too."""
    if is_url(converted) or os.path.lexists(converted):
        return _verify(original, converted, to, options, may_try=False)
    missing = os.fspath(converted)
    source, output = (FileInfo(os.fspath(path), "", 0) for path in (original, converted))
    return Verification(source, output, differences=(Difference(missing, "is missing"),))


def _other_files(first: ModelFolder, second: ModelFolder, planned: PlannedModel) -> Iterator[Difference]:
    """The differences of the files that are not converted weights: configurations must be as planned, others byte-identical."""
    weights, documents = {name for part, _ in planned.parts for name in part.files}, planned.edited_documents()
    for name in first.files:
        if name in weights:
            continue
        if name not in second.files:
            yield Difference(name, "is missing")
        elif name in documents:
            if not equal_streams([documents[name]], _file_chunks(second, name)):
                yield Difference(name, "differs from what the conversion writes")
        elif not equal_streams(_file_chunks(first, name), _file_chunks(second, name)):
            yield Difference(name, "differs, though the conversion does not change it")
    yield from (Difference(name, "is not in the original") for name in second.files if name not in first.files)


def _file_chunks(model: ModelFolder, name: str) -> Iterator[bytes]:
    with model.source(name) as source:
        yield from source.chunks()


def _target(before: TensorStore, after: TensorStore, options: Options) -> int:
    """The channel count of the converted file, at the place where the original keeps its own."""
    if options.search.inputs:
        after.graph.select_inputs(options.search.inputs)
    declared = after.graph.declarations(find_first_convs(after).first_convs)
    kept = before.graph.declarations(find_first_convs(before).first_convs)
    if declared:  # of several inputs the one that changed
        return next((d for d in declared if d not in kept), declared[0]).channels
    convs = select_first_convs(before, options.search).first_convs
    for conv in convs:
        tensor, layout = after.tensors.get(conv.tensor.name), conv.layout
        if tensor is not None and layout is not None and len(tensor.shape) == len(layout.axes):
            axis = layout.channel_axis
            return max(tensor.shape[axis] * conv.in_channels // conv.tensor.shape[axis], 1)
    if after.graph.decides:
        raise after.location.unsupported("its graph does not show how many channels the image has now", hint="--to COUNT")
    return convs[0].in_channels


def _compare(before: TensorStore, after: TensorStore, plan: Plan) -> tuple[list[Difference], int]:
    differences: list[Difference] = []
    identical = 0
    by_name = {k.conv.tensor.name: k for k in plan.kernels}
    dropped = frozenset(gone(before, plan))
    for name, tensor in before.tensors.items():
        edit, other, kernel = plan.edits.tensors.get(name), after.tensors.get(name), by_name.get(name)
        shape = edit.shape if edit else tensor.shape
        if name in dropped:
            problem = "is still there, though the conversion drops it" if other else ""
        elif other is None:
            problem = "is missing"
        elif (other.dtype, other.shape) != (tensor.dtype, shape):
            problem = f"is {other.dtype.name} {list(other.shape)}, not {tensor.dtype.name} {list(shape)}"
            if kernel and is_left(after, plan, kernel):
                problem = f"takes the {plan.channels[0]} channels of the image too, and was not converted: it {problem}"
        elif edit is None:
            problem = _unedited_difference(before, after, name, kernel)
            identical += not problem
        elif equal_streams([edit.tobytes()], after.chunks(name)):
            problem = ""
        else:
            problem = _kernel_difference(before, after, kernel, plan) if kernel else _part_difference(after, name, edit)
        if problem:
            differences.append(Difference(name, problem))
    new = [n for n in after.tensors if n not in before.tensors and not _is_added(before, after, plan, n)]
    differences += [Difference(n, "is not in the original") for n in new]
    differences += [Difference(n, "its new bias is missing or wrong") for n in missing_biases(after, plan)]
    tell(after, plan)
    differences += [Difference(where, what) for where, what in misread(before, after, plan)]
    return differences, identical


def _unedited_difference(before: TensorStore, after: TensorStore, name: str, kernel: KernelChange | None) -> str:
    """The difference of a tensor that does not change."""
    if equal_streams(before.chunks(name), after.chunks(name)):
        return ""
    rule = _known_rule(before, after, kernel) if kernel else None
    named = f": this is {rule.method}" if rule and kernel and rule.matrix != kernel.mixing.matrix else ""
    return f"differs, though the conversion does not change it{named}"


def _part_difference(after: TensorStore, name: str, edit: TensorEdit) -> str:
    """The difference of a tensor that follows the kernel."""
    if edit.part == "optimizer state":
        return "was not reset"
    worst = known.largest_difference(edit.values(), after.load(name))
    return f"the {edit.part} differs from what the conversion writes: largest difference {worst:.3g}"


def _is_added(before: TensorStore, after: TensorStore, plan: Plan, name: str) -> bool:
    """Whether a conversion adds such a tensor: a bias, an adapter's, or the old values of a shared tensor for its other users
    (ONNX exporters merge equal initializers: one stem bias had 9 users)."""
    if not before.adds_tensors and plan.edits.adapter is None:
        return False
    values, dtype = b"".join(after.chunks(name)), after.tensors[name].dtype
    kept = (b"".join(before.chunks(edited)) for edited in plan.edits.tensors)
    return any(values == expected for expected in (*kept, *added_values(plan, dtype)))


def _kernel_difference(before: TensorStore, after: TensorStore, kernel: KernelChange, plan: Plan) -> str:
    """The difference of a kernel: the known rule that it obeys instead, if any, otherwise the largest difference."""
    tensor, method = kernel.conv.tensor, kernel.mixing.method
    rule = _known_rule(before, after, kernel)
    if rule and rule.matrix != kernel.mixing.matrix:
        same = f"this is what {known.asking(rule) or method} gives alone"  # other channels, or no mean and std
        return same if rule.method == method else f"this is {rule.method}, not {method}"
    expected, written = plan.edits.tensors[tensor.name].values(), after.load(tensor.name)
    is_near = known.is_rounded(expected, written, tensor.dtype)
    words = f"is the {method} of the original, rounded otherwise" if is_near else f"is not the {method} of the original"
    return f"{words}: largest difference {known.largest_difference(expected, written):.3g}"


def _known_rule(before: TensorStore, after: TensorStore, kernel: KernelChange) -> Mixing | None:
    """The known rule that a kernel obeys."""
    conv = kernel.conv
    if not conv.tensor.dtype.floating or conv.groups > 1 or not kernel.layout.holds(conv.tensor.shape, conv.in_channels):
        return None
    old, new = before.load(conv.tensor.name), after.load(conv.tensor.name)
    view = kernel.layout.view(conv.tensor.shape, conv.in_channels)
    rules = known.known_rules(kernel.mixing.old, kernel.mixing.new)
    if new.shape == kernel.shape:
        rules += known.read_off(old.reshape(view), new.reshape(view[0], kernel.mixing.new, view[2]))
    return known.obeyed([(rule, rule.apply(old, view, conv.tensor.dtype)) for rule in rules], new, conv.tensor.dtype)
