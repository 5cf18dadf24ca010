"""Post-write check: reopen the output, compare its index and its edited tensors with the plan, and run the format library's own
validator. Runs before publishing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chkpt_channels.api.report import Parity
from chkpt_channels.core.dtypes import DType, rounded
from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.gc_pause import gc_paused
from chkpt_channels.core.tensors import ChannelMap, FirstConv
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery.find import unexplained
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.formats.base import Checkpoint, TensorStore
from chkpt_channels.storage.source import BROWSER, Source
from chkpt_channels.transform import kernels, quantization
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.notices import SEARCHED
from chkpt_channels.transform.parametrizations import PLAIN
from chkpt_channels.transform.plan import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check(before: Checkpoint, plan: Plan, fd: int, name: str) -> None:
    """Reopen the file `fd` and `check_source` it."""
    with Source.of_descriptor(fd, name, made_here=True) as source:
        # the file has no name yet, and the libraries open names
        check_source(before, plan, source, f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else "")


def check_source(before: Checkpoint, plan: Plan, source: Source, path: str = "") -> None:
    """Open an output: its index is as planned, its edits read back, the format's own library accepts it, by `path` where it
    reads files. Raises RuntimeError otherwise: that is a bug of this package, and nothing is published."""
    name = source.name
    try:
        after = before.format.open(source)
    except DamagedError as error:
        raise RuntimeError(f"what was written cannot be read: {error}") from error
    after.read_companions_of(before, plan.edits.companions)
    tell(after, plan)
    if not _has_planned_tensors(before, plan, after):
        raise RuntimeError(f"{name}: the written file has other tensors than planned")
    for tensor, edit in plan.edits.tensors.items():
        if b"".join(after.chunks(tensor)) != edit.tobytes():
            raise RuntimeError(f"{name}: {tensor} does not read back as it was written")
    if missing := missing_biases(after, plan):
        raise RuntimeError(f"{name}: the new bias of {missing[0]} does not read back as it was written")
    for where, what in misread(before, after, plan):
        if after.graph.decides:  # an edit that it does not show to be right is not published
            raise before.location.at(where).unsupported(f"{what}: the graph does not show that an edit is right")
        raise RuntimeError(f"{name}: {where} {what}")
    _validate(before, after, path)


def _has_planned_tensors(before: Checkpoint, plan: Plan, after: Checkpoint) -> bool:
    """Whether the file holds the tensors that are left, in their types and new shapes, and no others but those it may add."""
    edited, expected = plan.edits.tensors, before.tensors.keys() - set(gone(before, plan))
    adds = after.adds_tensors or plan.edits.adapter is not None
    if not (expected <= after.tensors.keys() if adds else expected == after.tensors.keys()):
        return False
    pairs = ((before.tensors[name], after.tensors[name]) for name in expected)
    return all(
        one.dtype == two.dtype and (edited[one.name].shape if one.name in edited else one.shape) == two.shape
        for one, two in pairs
    )


@gc_paused()
def check_stems(planned: PlannedModel) -> None:
    """Raise RuntimeError where kernels that see the image were left as they are, and the search named the others: that is a bug
    of this package. Of first convs that were named otherwise the plan warns."""
    for part, plan in planned.parts:
        convs = [kernel.conv for kernel in plan.kernels]
        if not plan.edits.tensors or any(conv.found_by not in SEARCHED for conv in convs):
            continue
        for left in unexplained(part.store, convs):
            where = part.store.location.at(left.tensor.name)
            raise RuntimeError(f"{where.file}: {where.where}: {left.what}, and was not converted: {left.why}")


def _validate(before: Checkpoint, after: Checkpoint, path: str) -> None:
    """Run the validator of the format's own library. Raises DamagedError where it refuses the source as well."""
    try:
        after.validate(path)
    except ModuleNotFoundError:
        if sys.platform != BROWSER:  # there this package's own reader has accepted it, and no library is there to ask
            raise
    except Exception as error:
        if before.source_fails_validation():  # asked last: it takes as long as the validation itself
            raise before.location.damaged(f"{before.title}'s own library cannot read it: {error}") from error
        raise


def gone(before: TensorStore, plan: Plan) -> list[str]:
    """The tensors that the converted file does not hold: those of optimizer entries, and of a convolution that is taken out."""
    entries = (entry for entry in before.optimizer_entries if entry.where in plan.edits.dropped)
    return [*plan.edits.removed, *(tensor.name for entry in entries for tensor in entry.tensors.values())]


def missing_biases(after: TensorStore, plan: Plan) -> list[str]:
    """The kernels that were to get a bias, and have none of its values."""
    missing = []
    for name, edit in plan.edits.biases.items():
        alike = [t for t in after.tensors.values() if t.shape == edit.shape and t.dtype.floating]
        values = edit.values()
        if not any(rounded(values, t.dtype).tobytes() == b"".join(after.chunks(t.name)) for t in alike):
            missing.append(name)
    return missing


def tell(after: TensorStore, plan: Plan) -> None:
    """Which inputs of a graph the conversion was of, and to how many channels: as the user named them for the original."""
    if plan.edits.inputs:
        after.graph.select_inputs(plan.edits.inputs)
        after.graph.state_channels(plan.channels[1])


def misread(before: TensorStore, after: TensorStore, plan: Plan) -> Iterator[tuple[str, str]]:
    """(where, what is wrong) of what the converted file says of itself: each declaration has the planned number of channels; in a
    graph an adapter is in front, a new kernel is read by the nodes that read the old one, and the shapes between the image and
    the kernels agree."""
    if not plan.edits:
        return
    yield from ((where, f"does not declare {plan.channels[1]}") for where in _stale_declarations(after, plan))
    yield from adapter_differences(before, after, plan)
    for image, order in plan.edits.orders.items():
        if after.graph.gathered(image) != order:
            yield image, f"is not gathered in the order {', '.join(map(str, order[1]))} before anything else reads it"
    for kernel in (kernel for kernel in plan.kernels if kernel.changes or plan.edits.folded):
        name, new = kernel.conv.tensor.name, kernel.mixing.new
        old, read = before.graph.readers(name), after.graph.readers(name)
        if old is not None and read is not None and {(node, new) for node, _ in old} != read:
            yield name, f"is not read as the kernel of {new} channels of the image by the nodes that read it before"
    known = {declaration.where for declaration, _ in before.graph.contradictions(before.graph.first_convs())}
    for declaration, channels in after.graph.contradictions(after.graph.first_convs()):
        if declaration.where not in known:
            yield declaration.where, f"has {declaration.channels} channels, and {channels} are in the graph"


def adapter_differences(before: TensorStore, after: TensorStore, plan: Plan) -> list[tuple[str, str]]:
    """What contradicts that the planned adapter is in front of the network, as the file's graph shows it: (tensor, what)."""
    adapter, changing = plan.edits.adapter, [kernel.conv for kernel in plan.kernels if not kernel.mixing.is_identity]
    kernels_before = [conv.tensor.name for conv in changing]
    if adapter is None:
        return []
    convs = after.graph.first_convs()
    bare = [conv.tensor.name for conv in convs if conv.tensor.name in kernels_before]
    added = [conv for conv in convs if conv.tensor.name not in before.tensors]
    wrong = [conv.tensor.name for conv in added if not _computes(after, conv, adapter)]
    differences = [
        (name, "sees the image without a 1×1 convolution in front") for name in bare or ([] if added else kernels_before)
    ]
    return differences + [(name, "is not the 1×1 convolution that the conversion puts in front") for name in wrong]


def _computes(store: TensorStore, conv: FirstConv, adapter: ChannelMap) -> bool:
    """Whether a convolution is 1×1 and holds the map, to the last bit."""
    import numpy as np

    if conv.layout is None or conv.layout.folded or conv.groups != 1:
        return False
    kernel, dtype = store.load(conv.tensor.name), conv.tensor.dtype
    matrix = np.moveaxis(kernel, [conv.layout.axes.index(letter) for letter in "OI"], (0, 1)).reshape(kernel.shape)
    target = store.graph.bias_target(conv)
    bias = store.load(target[0]) if target and target[1] > 0 else np.zeros(len(adapter.matrix), matrix.dtype)
    wanted = (np.array(values, np.float64) for values in (adapter.matrix, adapter.offset or (0.0,) * len(adapter.matrix)))
    return all(
        rounded(w, dtype).tobytes() == np.ascontiguousarray(actual).tobytes()
        for w, actual in zip(wanted, (matrix, bias), strict=True)
    )


def added_values(plan: Plan, dtype: DType) -> list[bytes]:
    """What tensors that the conversion adds to a graph hold, in this dtype: biases, an adapter's matrix and constant."""
    import numpy as np

    if dtype.name == "I64":
        return [np.array(order, np.int64).tobytes() for _, order in plan.edits.orders.values()]
    matrix, offset = (np.array(part) for part in plan.edits.adapter or ChannelMap(()))
    arrays = [*(edit.values() for edit in plan.edits.biases.values()), matrix, matrix.T, offset]  # kernels are OI or IO
    return [rounded(values.astype(np.float64), dtype).tobytes() for values in arrays]


def _stale_declarations(after: TensorStore, plan: Plan) -> list[str]:
    """The places in the converted file that do not declare the planned number of channels."""
    if not plan.declarations:
        return []
    convs = [
        k.conv._replace(tensor=after.tensors[k.conv.tensor.name], in_channels=k.mixing.new)
        for k in plan.kernels
        if not k.mixing.is_identity and k.conv.tensor.name in after.tensors
    ]
    declared = [*after.graph.declarations(convs), *after.graph.hyper_parameters(plan.channels[1])]
    if plan.edits.method:  # the node that was added to the graph may have moved the declaration
        return [d.where for d in declared if d.channels != plan.channels[1]]
    updated = {d.where for d in declared if d.channels == plan.channels[1]}
    return [d.where for d in plan.declarations if d.where not in updated]


def parity(checkpoint: TensorStore, plan: Plan) -> Parity | None:
    """The largest first-layer difference over all kernels that change."""
    changed = [k for k in plan.kernels if k.changes]
    differences = [
        kernels.parity(checkpoint, k, quantization.edited_kernel(checkpoint, k.conv, plan.edits), _constant(checkpoint, k, plan))
        for k in changed
    ]
    return Parity(max(a for a, _ in differences), max(u for _, u in differences)) if differences else None


def _constant(checkpoint: TensorStore, kernel: KernelChange, plan: Plan) -> NDArray[Any] | None:
    """The constant that the edited bias, or running mean, adds to each filter's output, [O]; None without one."""
    if not kernel.mixing.offset or kernel.parametrization is not PLAIN:
        return None
    if added := plan.edits.biases.get(kernel.conv.tensor.name):
        return added.values()
    target = bias_target.find(checkpoint, kernel.conv)
    if target is None:
        return None
    name, sign = target
    constant: NDArray[Any] = plan.edits.tensors[name].values().astype("float64") - checkpoint.load(name).astype("float64")
    return sign * constant
