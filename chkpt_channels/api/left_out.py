"""What `verify` says of a conversion where names and shapes do not settle which kernels see the image: those that were converted
show which were meant, and others that take as many channels may have been left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chkpt_channels.api.report import Difference, Verification
from chkpt_channels.api.report_builder import file_info
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.find import unexplained
from chkpt_channels.folders.model import Model
from chkpt_channels.formats.base import TensorStore
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.plan import Plan


def left_out(first: Model, second: Model, afters: Mapping[str, TensorStore]) -> Verification | None:
    """The verification with the kernels that were left out as its differences; None where there are none. `afters` are the parts
    of the second model by the names that they have in the first."""
    differences: list[Difference] = []
    channels, identical = (0, 0), 0
    for part in first.parts:
        if part.name not in afters:
            continue
        before, after = part.store, afters[part.name]
        converted = _converted(before, after)
        left = [k for k in unexplained(before, [conv for conv, _ in converted]) if _are_equal(before, after, k.tensor)]
        if left:
            channels = converted[0][0].in_channels, converted[0][1]
        messages = {k.tensor.name: f"{k.what}, and was not converted: {k.why}" for k in left}
        differences += [
            Difference(f"{part.name}/{name}" if first.is_folder else name, message) for name, message in messages.items()
        ]
        identical += sum(_are_equal(before, after, tensor) for tensor in before.tensors.values())
    if not differences:
        return None
    return Verification(
        input=file_info(first, measured=False),
        output=file_info(second, measured=False),
        in_channels=channels,
        identical=identical,
        tensors_total=sum(len(part.store.tensors) for part in first.parts),
        differences=tuple(differences),
    )


def is_left(after: TensorStore, plan: Plan, kernel: KernelChange) -> bool:
    """Whether a kernel kept its shape where another one of the plan was converted."""
    shapes = {name: tensor.shape for name, tensor in after.tensors.items()}
    is_kept = shapes[kernel.conv.tensor.name] == kernel.conv.tensor.shape
    return is_kept and any(shapes.get(k.conv.tensor.name) == k.shape != k.conv.tensor.shape for k in plan.kernels)


def _converted(before: TensorStore, after: TensorStore) -> list[tuple[FirstConv, int]]:
    """The narrow kernels that have another number of input channels now, each with that; where no number changed, those with
    other values, as a permutation of the channels leaves them."""
    from chkpt_channels.discovery.law import search

    layouts = search.layouts_of(before.model_tensors(), torch=before.torch)
    resized: list[tuple[FirstConv, int]] = []
    changed: list[tuple[FirstConv, int]] = []
    for tensor in before.model_tensors():
        layout, other = search.layout_of(tensor, layouts), after.tensors.get(tensor.name)
        if layout is None or other is None or len(layout.axes) != len(tensor.shape) or len(other.shape) != len(tensor.shape):
            continue
        old, new = (shape[layout.channel_axis] for shape in (tensor.shape, other.shape))
        conv = FirstConv(tensor, layout, old, "user")
        if not 0 < old <= search.MOST_BANDS or layout.folded:
            continue
        if other.shape == tensor.shape:
            changed += [] if _are_equal(before, after, tensor) else [(conv, new)]
        elif layout.with_channels(tensor.shape, old, new) == other.shape:
            resized.append((conv, new))
    return resized or changed


def _are_equal(before: TensorStore, after: TensorStore, tensor: Tensor) -> bool:
    """Whether a tensor is the same in both."""
    other = after.tensors.get(tensor.name)
    if other is None or (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
        return False
    return equal_streams(before.chunks(tensor.name), after.chunks(tensor.name))


def equal_streams(a: Iterable[bytes], b: Iterable[bytes]) -> bool:
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
