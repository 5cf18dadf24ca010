"""The options of a conversion (options.Words) on the command line: one list for every command that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

# the options of a conversion (options.Words), for every command that takes them: (annotation, default)
OPTIONS: dict[str, tuple[Any, Any]] = {
    "method": (
        Annotated[
            str | None,
            typer.Option(
                metavar="auto|sum|mean|luma|repeat|zero|broadcast|stack",
                help="How new channels are made; auto is exact where anything is.",
                show_default=False,
            ),
        ],
        None,
    ),
    "luma": (
        Annotated[str | None, typer.Option(metavar="bt709|bt601|a,b,c", help="Weights between gray and colours. [bt709]")],
        None,
    ),
    "select": (Annotated[str | None, typer.Option(metavar="0,2|R,B", help="The old channels that the new ones are.")], None),
    "bands": (
        Annotated[str | None, typer.Option(metavar="B,G,R,NIR=R", help="New channels, each with the old one it stands in for.")],
        None,
    ),
    "matrix": (
        Annotated[str | None, typer.Option(metavar="FILE", help="The matrix [old, new] itself: .npy, .csv or .json.")],
        None,
    ),
    "channel_order": (
        Annotated[str | None, typer.Option(metavar="rgb|bgr", help="The order of the side in colour. [rgb]", show_default=False)],
        None,
    ),
    "norm": (
        Annotated[
            str | None,
            typer.Option(metavar="imagenet|clip|half|none|auto", help="The pipeline that fed the network, folded into it."),
        ],
        None,
    ),
    "mean": (Annotated[str | None, typer.Option(metavar="a,b,c", help="The same in numbers, for images in 0..1.")], None),
    "std": (Annotated[str | None, typer.Option(metavar="a,b,c", help="Goes with --mean.")], None),
    "new_mean": (Annotated[str | None, typer.Option(metavar="m", help="The pipeline that will feed it.")], None),
    "new_std": (Annotated[str | None, typer.Option(metavar="s", help="Goes with --new-mean.")], None),
    "input_range": (
        Annotated[float | None, typer.Option(metavar="255", help="What white is in the new pipeline: 255 feeds raw bytes.")],
        None,
    ),
    "layers": (
        Annotated[
            list[str] | None, typer.Option("--layer", metavar="KEY", help="A first conv: key, suffix or glob; repeatable.")
        ],
        None,
    ),
    "layout": (
        Annotated[str | None, typer.Option(metavar="L", help="How the kernel lies: OIHW, HWIO, O(HWI), …")],
        None,
    ),
    "from_channels": (
        Annotated[
            int | None, typer.Option("--from", metavar="N", help="The input channels now, where the file leaves that open.")
        ],
        None,
    ),
    "inputs": (
        Annotated[list[str] | None, typer.Option("--input", metavar="NAME", help="A graph input that is an image; repeatable.")],
        None,
    ),
    "optimizer": (
        Annotated[
            str | None,
            typer.Option(
                metavar="reset|drop", help="What becomes of optimizer state kept for the kernels. [reset]", show_default=False
            ),
        ],
        None,
    ),
    "set_hparams": (
        Annotated[bool, typer.Option("--set-hparams", help="Set the channels in a training script's hyper-parameters too.")],
        False,
    ),
    "allow_nonfinite": (
        Annotated[bool, typer.Option("--allow-nonfinite", help="Pass NaN and infinity through where channels are copied.")],
        False,
    ),
    "follow_links": (
        Annotated[bool, typer.Option("--follow-links", help="Read data files through links that leave the model's folder.")],
        False,
    ),
    "strict": (
        Annotated[bool, typer.Option("--strict", help="Refuse pickles that name what torch's weights-only loading would not.")],
        False,
    ),
}


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a conversion in the place of its parameter `words`."""

    def called(**given: Any) -> None:
        words = {name: given.pop(name) for name in OPTIONS}
        command(**given, words={name: value for name, value in words.items() if value not in (None, False)})

    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(n, kind, default=d, annotation=a) for n, (a, d) in OPTIONS.items()]
    parameters: list[inspect.Parameter] = []
    for own in inspect.signature(command, eval_str=True).parameters.values():
        parameters += shared if own.name == "words" else [own.replace(kind=kind)]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called
