"""The first convs of known architectures, beside tensors that no architecture knows."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from chkpt_channels.core.tensors import Finding, FirstConv, Tensor
from chkpt_channels.discovery.catalogue.entry import Recognized
from chkpt_channels.discovery.catalogue.match import Match, matches, recognized
from chkpt_channels.discovery.law import after, search
from chkpt_channels.formats.base import TensorStore

IMAGES = (1, 3)
"""Channels of images, and so of kernels that an added branch brings."""
MOST_NAMED = 3
"""Architectures in the words of the evidence."""


_KNOWN: WeakKeyDictionary[TensorStore, list[Match]] = WeakKeyDictionary()


def _matches(checkpoint: TensorStore) -> list[Match]:
    """The known networks in a checkpoint, which several steps ask for: its tensors do not change."""
    if checkpoint not in _KNOWN:
        _KNOWN[checkpoint] = matches(checkpoint.model_tensors())
    return _KNOWN[checkpoint]


def known_first_convs(checkpoint: TensorStore, channels: int | None = None) -> Finding | None:
    """The first convs of the known architectures in a checkpoint. None where there is none, where copies take other numbers of
    channels or other than `channels`, where kernels have another framework's layout, and where one that no architecture lists is
    unexplained: then the law decides of all."""
    tensors = checkpoint.model_tensors()
    found = [] if checkpoint.opaque else _matches(checkpoint)
    convs = [conv for match in found for conv in _with_why(match)]
    widths = {conv.in_channels for conv in convs}
    expected = {channels} if channels else {*IMAGES}  # latents are no image, and bands may be anything
    if len(widths) != 1 or not widths <= expected or not _are_torch(checkpoint, tensors, convs):
        return None
    listed = frozenset().union(*(match.listed for match in found))
    beside = [t for t in tensors if t.name not in listed and len(t.shape) > 1]
    if beside and _may_see_the_image(checkpoint, tensors, beside, convs):
        return None
    vectors = tuple(search.input_vectors(tensors, convs, torch=checkpoint.torch))
    return Finding(tuple(checkpoint.graph.with_groups(conv) for conv in convs), input_vectors=vectors)


def _may_see_the_image(
    checkpoint: TensorStore, tensors: Sequence[Tensor], beside: Sequence[Tensor], convs: Sequence[FirstConv]
) -> bool:
    """Whether one of the tensors that no architecture lists could be a first conv too: it has the shape of a stem, as a stem has
    under another name, or the law names it, or cannot explain it."""
    if {t.shape for t in beside} & {conv.tensor.shape for conv in convs}:
        return True
    ordered, torch, names = checkpoint.ordered, checkpoint.torch, {t.name for t in beside}
    left = after.unexplained(tensors, convs, ordered=ordered, torch=torch, widths=IMAGES)
    found = search.find(tensors, ordered=ordered, torch=torch).first_convs
    return not names.isdisjoint([*(kernel.tensor.name for kernel in left), *(conv.tensor.name for conv in found)])


def listed_names(checkpoint: TensorStore) -> frozenset[str]:
    """The tensors that known architectures list: which of them see the image is known."""
    return frozenset().union(*(match.listed for match in _matches(checkpoint)))


def recognize(checkpoint: TensorStore) -> Recognized | None:
    """The architectures that a checkpoint's first known network could be; None where names or shapes are those of none."""
    found = _matches(checkpoint)
    return recognized(found[0]) if found else None


def _are_torch(checkpoint: TensorStore, tensors: Sequence[Tensor], convs: Sequence[FirstConv]) -> bool:
    """Whether the kernels of a file that PyTorch may not have written have PyTorch's layouts: MLX keeps the names alone."""
    if checkpoint.torch:
        return True
    layouts = search.layouts_of(tensors, torch=False)
    plain = (conv for conv in convs if conv.layout and not conv.layout.folded)
    return all(conv.layout == layouts.get(len(conv.tensor.shape)) for conv in plain)


def _with_why(match: Match) -> list[FirstConv]:
    known = recognized(match)
    names = [f"{a.library}'s {a.name}" for a in known.architectures] if known else []
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    what = " or ".join(names[:MOST_NAMED]) + more if names else "a known architecture"
    return [conv._replace(why=f"the names are those of {what}") for conv in match.stems]
