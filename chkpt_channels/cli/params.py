"""The options of a conversion (options.Words) on the command line: one list for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer


def _text(metavar: str, told: str, *, hidden: bool = False) -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=told, hidden=hidden)]


def _texts(name: str, metavar: str, told: str, *, hidden: bool = False) -> Any:
    return Annotated[list[str] | None, typer.Option(name, metavar=metavar, help=told, hidden=hidden)]


def _flag(name: str, told: str) -> Any:
    return Annotated[bool, typer.Option(name, help=told, hidden=True)]


OPTIONS: dict[str, Any] = {
    "method": _text(
        "auto|sum|mean|luma|repeat|zero|broadcast|stack", "How new channels are made; auto is exact where anything is."
    ),
    "luma": _text("bt709|bt601|a,b,c", "Weights between gray and colours. [bt709]"),
    "select": _text("0,2|R,B", "The old channels that the new ones are."),
    "bands": _text("B,G,R,NIR=R", "New channels, each with the old one it stands in for."),
    "matrix": _text("FILE", "The matrix [old, new] itself: .npy, .csv or .json.", hidden=True),
    "channel_order": _text("rgb|bgr", "The order of the side in colour. [rgb]"),
    "norm": _text("imagenet|clip|half|none|auto", "The pipeline that fed the network, folded into it."),
    "mean": _text("a,b,c", "The same in numbers, for images in 0..1.", hidden=True),
    "std": _text("a,b,c", "Goes with --mean.", hidden=True),
    "new_mean": _text("m", "The pipeline that will feed it.", hidden=True),
    "new_std": _text("s", "Goes with --new-mean.", hidden=True),
    "input_range": Annotated[
        float | None, typer.Option(metavar="255", help="What white is in the new pipeline: 255 feeds raw bytes.")
    ],
    "layers": _texts("--layer", "KEY", "A first conv: key, suffix or glob; repeatable."),
    "layout": _text("L", "How the kernel lies: OIHW, HWIO, O(HWI), …"),
    "from_channels": Annotated[
        int | None, typer.Option("--from", metavar="N", help="The input channels now, where the file leaves that open.")
    ],
    "inputs": _texts("--input", "NAME", "A graph input that is an image; repeatable.", hidden=True),
    "optimizer": _text("reset|drop", "What becomes of optimizer state kept for the kernels. [reset]", hidden=True),
    "set_hparams": _flag("--set-hparams", "Set the channels in a training script's hyper-parameters too."),
    "allow_nonfinite": _flag("--allow-nonfinite", "Pass NaN and infinity through where channels are copied."),
    "follow_links": _flag("--follow-links", "Read files through links that leave the model's folder."),
    "strict": _flag("--strict", "Refuse pickles that name what torch's weights-only loading would not."),
}
"""Those that few need are hidden: `--help` fits a screen, and `--help-all` shows them."""


def _help_all(context: typer.Context, shown: bool) -> None:
    if shown:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool, typer.Option("--help-all", is_eager=True, callback=_help_all, help="Show the options that few need too, and exit.")
]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a conversion in the place of its parameter `words`, and with --help-all."""

    def called(*, help_all: bool, **given: Any) -> None:
        words = {name: given.pop(name) for name in OPTIONS}
        command(**given, words={name: value for name, value in words.items() if value not in (None, False)})

    kind = inspect.Parameter.KEYWORD_ONLY
    defaults = {name: False if get_args(annotation)[0] is bool else None for name, annotation in OPTIONS.items()}
    shared = [inspect.Parameter(n, kind, default=defaults[n], annotation=a) for n, a in OPTIONS.items()]
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        parameters += shared if own.name == "words" else [own.replace(kind=kind)]
    parameters.append(inspect.Parameter("help_all", kind, default=False, annotation=HelpAll))
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called
