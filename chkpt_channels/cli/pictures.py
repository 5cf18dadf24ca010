"""The command `plot`: what it takes, and its one call."""

# No `from __future__ import annotations`: the rows would be text.

from typing import Annotated

from chkpt_channels.cli.params import Force
from chkpt_channels.cli.session import session
from chkpt_channels.transform.option_spec import Option

Picture = Annotated[
    str,
    Option(
        "--output",
        short="-o",
        metavar="FILE",
        help="The picture: .png, .svg or .pdf. [kernels.png]",
        doc="the picture, by its suffix a PNG, SVG or PDF; `kernels.png` without it",
    ),
]
Bands = Annotated[
    str | None,
    Option(
        "--bands",
        metavar="B,G,R,NIR",
        help="What the channels are called; the --bands of convert will do.",
        doc="what the channels are called, in order; what `convert --bands` was given will do (`B,G,R,NIR=R`)",
    ),
]
Layers = Annotated[
    list[str] | None,
    Option(
        "--layer",
        metavar="KEY",
        help="Draw this kernel; a second --layer names that of B.",
        doc="draws this kernel, in the place of the first of those that see the image; a second `--layer` names that of B",
    ),
]
Layout = Annotated[
    str | None,
    Option(
        "--layout",
        metavar="OIHW|HWIO|…",
        help="Axis order of the kernel, where its shape does not show it.",
        doc="the axis order of the kernel, where its shape does not show it",
    ),
]
From = Annotated[
    int | None,
    Option(
        "--from",
        metavar="N",
        help="The input channels of A, where its shapes do not show them.",
        doc="the input channels of A, where its shapes do not show them, or where it takes several images",
    ),
]


def plot(
    before: Annotated[str, Option("", metavar="A", help="A checkpoint or a model folder.")],
    after: Annotated[str | None, Option("", metavar="B", help="Its conversion, or another model, beside it.")] = None,
    output: Picture = "kernels.png",
    force: Force = False,
    bands: Bands = None,
    layer: Layers = None,
    layout: Layout = None,
    from_channels: From = None,
) -> int:
    """Draw the filters of the first conv, before and after, with their norms and the energy of each channel."""
    from chkpt_channels import plot as library

    with session("plot", None, as_json=False) as console, console.file(before):
        path = library(
            before, after, output, force=force, bands=bands, layers=layer or (), layout=layout, from_channels=from_channels
        )
        console.add_lines([str(path)])
    return console.exit_code
