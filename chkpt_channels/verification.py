"""Two files: everything that was not to change is identical, and the kernels obey the formula to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from . import mixing
from . import plan as planning
from .dtypes import rounded
from .flow import Path_, kernel_reports, make_options, open_source
from .formats import detect
from .kernels import KernelChange
from .model import Checkpoint
from .plan import Options, Plan
from .report import Difference, FileInfo, Verification


def verify(
    original: Path_,
    converted: Path_,
    *,
    luma: str | Sequence[float] | None = None,
    layers: Sequence[str] = (),
    layout: str | None = None,
    optimizer: str = "reset",
    strict: bool = False,
    method: str = "auto",
    inputs: Sequence[str] = (),
) -> Verification:
    """Whether `converted` is what converting `original` gives; the target is read off `converted`. Options as in `convert`.

    Raises what opening or planning raises; differences are results, not errors.
    """
    options = make_options(None, luma, layers, layout, optimizer, strict, method, inputs=inputs)
    with open_source(original) as source, open_source(converted) as second:
        before, after = detect(source)(source), detect(second)(second)
        options = options._replace(to=_target(before, after, options))
        plan = planning.make(before, options)
        differences, identical = _compare(before, after, plan)
        return Verification(
            FileInfo(source.name, before.format, source.size, before.title),
            FileInfo(second.name, after.format, second.size, after.title),
            plan.channels,
            kernel_reports(plan),
            identical,
            len(before.tensors),
            tuple(differences),
            plan.notices,
        )


def _target(before: Checkpoint, after: Checkpoint, options: Options) -> int:
    """The channel count of the converted file, at the place where the original keeps its own."""
    if options.inputs:
        after.name_images(options.inputs)
    declared = after.declarations(planning.find(after).first_convs)
    if declared:
        return declared[0].channels
    probe = planning.make(before, options._replace(to=1, luma=None))
    for kernel in probe.kernels:
        tensor = after.tensors.get(kernel.conv.tensor.name)
        if tensor is not None and len(tensor.shape) == len(kernel.layout.axes):
            axis = kernel.layout.channel_axis
            count = tensor.shape[axis] * kernel.conv.in_channels // kernel.conv.tensor.shape[axis]
            return max(count, 1)
    return probe.kernels[0].conv.in_channels


def _compare(before: Checkpoint, after: Checkpoint, plan: Plan) -> tuple[list[Difference], int]:
    differences: list[Difference] = []
    identical = 0
    kernels = {k.conv.tensor.name: k for k in plan.kernels if k.changes}
    gone = {t.name for e in before.optimizer_entries if e.where in plan.edits.dropped for t in e.tensors.values()}
    for name, tensor in before.tensors.items():
        edit = plan.edits.tensors.get(name)
        shape = edit.shape if edit else tensor.shape
        other = after.tensors.get(name)
        if name in gone:
            found = "is still there, though dropped" if other else ""
        elif other is None:
            found = "is missing"
        elif (other.dtype, other.shape) != (tensor.dtype, shape):
            found = f"is {other.dtype.name} {list(other.shape)}, not {tensor.dtype.name} {list(shape)}"
        elif name in kernels:
            found = _kernel_difference(before, after, kernels[name], plan)
        elif edit:
            found = "" if _same([edit.values().tobytes()], after.chunks(name)) else "is not what the conversion makes of it"
        else:
            found = "" if _same(before.chunks(name), after.chunks(name)) else "differs, and was not to change"
            identical += not found
        if found:
            differences.append(Difference(name, found))
    new = [n for n in after.tensors if n not in before.tensors and not _is_added(before, after, plan, n)]
    differences += [Difference(n, "is new, and was not in the original") for n in new]
    return [*differences, *_declaration_differences(after, plan)], identical


def _is_added(before: Checkpoint, after: Checkpoint, plan: Plan, name: str) -> bool:
    """Whether a new tensor is what a conversion adds: the old values for others that shared a tensor, or a bias."""
    if not before.adds_tensors:
        return False
    found, dtype = b"".join(after.chunks(name)), after.tensors[name].dtype
    kept = (b"".join(before.chunks(edited)) for edited in plan.edits.tensors)
    biases = (rounded(edit.values(), dtype).tobytes() for edit in plan.edits.biases.values())
    return any(found == expected for expected in (*kept, *biases))


def _kernel_difference(before: Checkpoint, after: Checkpoint, kernel: KernelChange, plan: Plan) -> str:
    """Empty where the kernel is as the formula says; otherwise which known rule it obeys instead, if any."""
    name = kernel.conv.tensor.name
    written = after.load(name)
    if plan.edits.tensors[name].values().tobytes() == written.tobytes():
        return ""
    old = before.load(name)
    view = kernel.layout.view(kernel.conv.tensor.shape, kernel.conv.in_channels)
    for rule in mixing.known_rules(kernel.mixing.old, kernel.mixing.new):
        if rule.apply(old, view, kernel.conv.tensor.dtype).tobytes() == written.tobytes():
            return f"this is {rule.method}, not {kernel.mixing.method}"
    import numpy as np

    expected = plan.edits.tensors[name].values().astype(np.float64)
    worst = float(np.abs(expected - written.astype(np.float64).reshape(expected.shape)).max())
    return f"is not the {kernel.mixing.method} of the original: largest difference {worst:.3g}"


def _declaration_differences(after: Checkpoint, plan: Plan) -> Iterator[Difference]:
    if not plan.declarations:
        return
    convs = [
        k.conv._replace(tensor=after.tensors[k.conv.tensor.name], in_channels=k.mixing.new)
        for k in plan.kernels
        if (k.changes or plan.edits.method) and k.conv.tensor.name in after.tensors
    ]
    found = {d.where for d in after.declarations(convs)}
    for declaration in plan.declarations:
        if declaration.where not in found:
            yield Difference(declaration.where, f"does not say {plan.channels[1]}")


def _same(a: Iterable[bytes], b: Iterable[bytes]) -> bool:
    """Whether two streams of bytes are equal, however they are cut."""
    rest_a, rest_b = b"", b""
    pieces_a, pieces_b = iter(a), iter(b)
    while True:
        rest_a = rest_a or next(pieces_a, b"")
        rest_b = rest_b or next(pieces_b, b"")
        if not rest_a or not rest_b:
            return not rest_a and not rest_b
        size = min(len(rest_a), len(rest_b))
        if rest_a[:size] != rest_b[:size]:
            return False
        rest_a, rest_b = rest_a[size:], rest_b[size:]
