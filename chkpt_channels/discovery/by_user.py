"""What --layer, --layout and --from say of a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chkpt_channels.core.errors import Location, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.request import SearchRequest

if TYPE_CHECKING:
    from chkpt_channels.discovery.law.network import Layouts


def described(location: Location, tensor: Tensor, request: SearchRequest, layouts: Layouts) -> FirstConv:
    """A kernel that the search did not find, as the user describes it. Raises UnsupportedError where the axes are not known."""
    from chkpt_channels.discovery.law import search

    layout = request.layout or search.layout_of(tensor, layouts)
    if layout is None or len(layout.axes) != len(tensor.shape):
        raise location.at(tensor.name).unsupported(
            f"its axis order is ambiguous: shape {list(tensor.shape)} does not show the input channels",
            hint="--layout OI, O(HWI) or O(IHW)" if len(tensor.shape) == 2 else "--layout OIHW, HWIO or OHWI",
        )
    return FirstConv(tensor, layout, channels_of(tensor, layout, request.from_channels or 0), "user")


def with_layout(location: Location, conv: FirstConv, layout: Layout) -> FirstConv:
    """A first conv in the layout that the user names. Raises UsageError where its shape has another number of axes."""
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
