"""The request to the search for the first convs: what the user says about them, and what configuration files hint at."""

from __future__ import annotations

from typing import NamedTuple

from chkpt_channels.core.layout import Layout


class ConfigHints(NamedTuple):
    """What configuration files beside a checkpoint say: the modules of the first convs (timm, diffusers), and the number of
    input channels, 0 where they say none or several."""

    first_conv: tuple[str, ...] = ()
    channels: int = 0


class SearchRequest(NamedTuple):
    """What is known of the first convs before the file is searched; every field may be left out.

    layers          the first convs themselves, by key, suffix or glob
    layout          the axis order of their kernels
    from_channels   the number of input channels now
    inputs          the inputs of the graph that are images, by name
    hints           what configuration files say; it only decides where the file itself is ambiguous
    """

    layers: tuple[str, ...] = ()
    layout: Layout | None = None
    from_channels: int | None = None
    inputs: tuple[str, ...] = ()
    hints: ConfigHints = ConfigHints()
