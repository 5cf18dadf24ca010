"""The command `plot`: what it takes, and its one call."""

from __future__ import annotations

from typing import Annotated

import typer

from chkpt_channels.cli.params import Doc, Force
from chkpt_channels.cli.session import session


def plot(
    before: Annotated[str, typer.Argument(metavar="A", help="A checkpoint or a model folder.")],
    after: Annotated[str | None, typer.Argument(metavar="B", help="Its conversion, or another model, beside it.")] = None,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="FILE", help="The picture: .png, .svg or .pdf."),
        Doc("the picture, by its suffix a PNG, SVG or PDF; `kernels.png` without it"),
    ] = "kernels.png",
    force: Force = False,
    bands: Annotated[
        str | None,
        typer.Option("--bands", metavar="B,G,R,NIR", help="What the channels are called; the --bands of convert will do."),
        Doc("what the channels are called, in order; what `convert --bands` was given will do (`B,G,R,NIR=R`)"),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="KEY", help="Draw this kernel; a second --layer names that of B."),
        Doc("draws this kernel, in the place of the first of those that see the image; a second `--layer` names that of B"),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="OIHW|HWIO|…", help="Axis order of the kernel, where its shape does not show it."),
        Doc("the axis order of the kernel, where its shape does not show it"),
    ] = None,
    from_channels: Annotated[
        int | None,
        typer.Option("--from", metavar="N", help="The input channels of A, where its shapes do not show them."),
        Doc("the input channels of A, where its shapes do not show them, or where it takes several images"),
    ] = None,
) -> None:
    """Draw the filters of the first conv, before and after, with their norms and the energy of each channel."""
    from chkpt_channels import plot as library

    with session("plot", None, as_json=False) as console, console.file(before):
        path = library(
            before, after, output, force=force, bands=bands, layers=layer or (), layout=layout, from_channels=from_channels
        )
        typer.echo(path)
    raise typer.Exit(console.exit_code)
