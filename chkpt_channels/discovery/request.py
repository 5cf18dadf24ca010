"""The request to the search for the first convs: what the user says about them, and what configuration files hint at."""

from __future__ import annotations

from collections.abc import Hashable

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple


class ConfigHints(NamedTuple):
    """What configuration files beside a checkpoint say: the modules of the first convs (timm, diffusers), and the number of
    input channels, 0 where they say none or several. Modules that are `joined` take the image's channels and, behind them,
    features: where there are any, the first convs are those that are named."""

    first_conv: tuple[str, ...] = ()
    channels: int = 0
    joined: tuple[str, ...] = ()


class LikeTensor(NamedTuple):
    """A tensor of LIKE: its key inside its state dict, and its shape; keys of equal `memory` are one tensor. One `beside` the
    state dict of its module is not in every file of the network."""

    key: str
    shape: tuple[int, ...]
    memory: Hashable
    beside: bool = False


class LikeGroup(NamedTuple):
    """One state dict of LIKE: `part` is the file that holds it where LIKE is a folder, `group` its place in that file."""

    part: str
    group: str
    tensors: tuple[LikeTensor, ...]


class Like(NamedTuple):
    """A checkpoint of the same architecture with the wanted channels: its names and shapes, never its values.

    file            its name in messages
    groups          its state dicts
    graph_channels  the input channels that its graph states, 0 where it has none
    target          the number of new channels that the user states beside it
    channels        the input channels before and after, as soon as it was compared with the whole model
    """

    file: str
    groups: tuple[LikeGroup, ...]
    graph_channels: int = 0
    target: int | None = None
    channels: tuple[int, int] | None = None


class SearchRequest(NamedTuple):
    """What is known of the first convs before the file is searched; every field may be left out.

    layers          the first convs themselves, by key, suffix or glob
    layout          the axis order of their kernels
    from_channels   the number of input channels now
    inputs          the inputs of the graph that are images, by name
    hints           what configuration files say; it only decides where the file itself is ambiguous
    like            a checkpoint of the same architecture with the wanted channels
    """

    layers: tuple[str, ...] = ()
    layout: Layout | None = None
    from_channels: int | None = None
    inputs: tuple[str, ...] = ()
    hints: ConfigHints = ConfigHints()
    like: Like | None = None
