"""What --layer, --layout and --from say of a kernel, and which of them settle what is not clear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chkpt_channels.core.errors import Candidate, Location, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery import law
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    from chkpt_channels.discovery.law.network import Layouts

MOST_TOGETHER = 6
"""Stems that a hint names together; more are seldom all stems."""
MOST_OPTIONS = 3
"""Choices of layers in a hint."""
CHOICES = {2: "OI, O(HWI) or O(IHW)", 3: "OIW, WIO or OWI", 4: "OIHW, HWIO or OHWI", 5: "OIDHW, DHWIO or ODHWI"}
"""What --layout may say of a kernel of so many axes whose shape does not show it."""


def described(location: Location, tensor: Tensor, request: SearchRequest, layouts: Layouts) -> FirstConv:
    """A kernel that the search did not find, as the user describes it. Raises UnsupportedError where the axes are not known."""
    layout = request.layout or law.search.layout_of(tensor, layouts)
    if layout is None or len(layout.axes) != len(tensor.shape):
        choices = CHOICES.get(len(tensor.shape))
        raise location.at(tensor.name).unsupported(
            f"its axis order is ambiguous: shape {list(tensor.shape)} does not show the input channels",
            hint=f"--layout {choices}" if choices else "",
        )
    return FirstConv(tensor, layout, channels_of(tensor, layout, request.from_channels or 0), "user")


def with_layout(location: Location, conv: FirstConv, layout: Layout | None) -> FirstConv:
    """A first conv in the layout that the user names, where one is. Raises UsageError where its shape has another number of
    axes, or a graph shows other ones."""
    if layout is None:
        return conv
    if conv.found_by == "graph" and conv.layout not in (None, layout):
        what = f"--layout {layout}: its graph shows that the axes are {conv.layout}"
        raise UsageError(what, file=location.file, where=conv.tensor.name)
    shape = conv.tensor.shape
    if len(layout.axes) != len(shape):
        what = f"--layout {layout} has {len(layout.axes)} axes, the shape {list(shape)} has {len(shape)}"
        raise UsageError(what, file=location.file, where=conv.tensor.name)
    return conv._replace(layout=layout, in_channels=channels_of(conv.tensor, layout, conv.in_channels))


def channels_of(tensor: Tensor, layout: Layout, known: int) -> int:
    """The input channels of a kernel in a layout. A folded axis holds three colors if it can and nothing says otherwise."""
    width = tensor.shape[layout.channel_axis]
    if not layout.folded:
        return width
    if 0 < known < width and width % known == 0:
        return known
    return 3 if width % 3 == 0 else 1


def hint(checkpoint: TensorStore, candidates: Sequence[Candidate]) -> str:
    """The options that name these candidates: all that are needed together; or those of one width and one reason against them,
    which may see the image together or one of them alone."""
    if needed := [c for c in candidates if c.needed]:
        return f"{_layers(checkpoint, needed)}   or   {checkpoint.like_hint}"
    first = candidates[0]
    alike = [c for c in candidates if (c.why_not, c.shape[1:2]) == (first.why_not, first.shape[1:2])]
    together = [alike] if 1 < len(alike) <= MOST_TOGETHER else []
    alone = [[c] for c in candidates[: MOST_OPTIONS - len(together)]]
    return "   or   ".join([*(_layers(checkpoint, among) for among in (*together, *alone)), checkpoint.like_hint])


def _layers(checkpoint: TensorStore, candidates: Sequence[Candidate]) -> str:
    """The options that name these candidates, and the layouts to choose from where a shape does not show it."""
    own = checkpoint.model_tensors()
    layouts, names = law.search.layouts_of(own, torch=checkpoint.torch), {c.key for c in candidates}
    unclear = [len(t.shape) for t in own if t.key in names and law.search.layout_of(t, layouts) is None]
    choices = CHOICES.get(unclear[0]) if unclear else None
    return " ".join([*(f"--layer {c.key}" for c in candidates), *([f"--layout {choices}"] if choices else [])])
