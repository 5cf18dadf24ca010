"""The parameters of the commands: those that several share or that are long, and the options of a conversion."""

# How `--strict` and its like get onto the command line: each is a row of `ConvertOptions` (transform/option_table.py). A command
# that is decorated with `takes_options` and has a parameter `options: ConvertOptions` is given to typer with one parameter for
# each row in that place; when it is called, the values that the user gave are handed to it as one ConvertOptions. So a new row is
# a new option of `convert` and `verify`, and nothing here or in app.py changes.

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, is_typeddict

import typer

from chkpt_channels.transform.option_spec import Option, options_of


class Doc(NamedTuple):
    """The text of an option for docs/options.md, where it is longer than that of --help."""

    doc: str


FORMATS = ("human", "json", "jsonl")


def _known_format(name: str | None) -> str | None:
    if name is not None and name not in FORMATS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(FORMATS)}")
    return name


Sources = Annotated[list[str] | None, typer.Argument(metavar="SRC…", help="Checkpoints or model folders; - is stdin.")]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="gray|rgb|bgr|rgba|N", help="The new input channels.", show_default=False),
    Doc(
        "the new input channels. `gray` is also written `grey`, `grayscale`, `L`, `1`; `rgba` is 4; `bgr` swaps the channels of"
        " a color model, and splits a gray one in that order"
    ),
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="DST", help="The result; - is standard output. [<stem>_<to><ext>]"),
    Doc(
        "the result; `-` is standard output, and the report then goes to stderr. Without it the result is `<stem>_<to><ext>`"
        " beside the source"
    ),
]
OutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", metavar="DIR", help="Where the results go, under their usual names."),
    Doc("where the results of several sources go, under their usual names"),
]
Jobs = Annotated[
    int,
    typer.Option("-j", "--jobs", metavar="N", help="How many to convert at once. [1]", show_default=False),
    Doc("how many to convert at once, each in a process of its own"),
]
Manifest = Annotated[
    str | None,
    typer.Option("--manifest", metavar="FILE", help="Read the conversions from a TOML manifest."),
    Doc(
        "reads the conversions from a TOML manifest: `[[convert]]` tables with `src`, `dst`, `to` and any option by its long"
        " name, paths relative to the file"
    ),
]
Sidecars = Annotated[
    bool,
    typer.Option("--sidecars", help="Write the configuration files beside SRC beside DST too."),
    Doc(
        "the configuration files beside a single weights file (`config.json`, `preprocessor_config.json`) are written beside DST"
        " too, with the new counts"
    ),
]
HardLink = Annotated[
    bool,
    typer.Option("--hard-link", help="In a folder, hard-link the files that do not change.", hidden=True),
    Doc("in a model folder, files that do not change become hard links to the same files"),
]
Sha256 = Annotated[
    bool,
    typer.Option("--sha256", help="Report the SHA-256 of the result.", hidden=True),
    Doc("reports the SHA-256 of the result"),
]
HashName = Annotated[
    bool,
    typer.Option("--hash-name", help="Put the first 8 digits of its SHA-256 into the name, as torch.hub does.", hidden=True),
    Doc(
        "puts the first eight digits of its SHA-256 into the name, as torch.hub does: `resnet50_gray-3f9a01bc.pth`, in the place"
        " of an old one"
    ),
]
StateDict = Annotated[
    str | None,
    typer.Option("--state-dict", metavar="KEY", help="The state dict to write where DST is another container.", hidden=True),
    Doc("the state dict to write where the output is another container (`-o x.safetensors` from `x.ckpt`, or back)"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing output."),
    Doc("replaces an existing output file; a folder is never replaced"),
]
CheckOnly = Annotated[
    bool,
    typer.Option("--check", help="Check that DST is what converting SRC gives now; write nothing."),
    Doc("checks that DST is what converting SRC gives now, and writes nothing: exit 1 where it is not"),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Report what would be done; write nothing."),
    Doc("reports what would be done and writes nothing"),
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Print the matrix and the formula in use; write nothing."),
    Doc("prints the matrix and the formula in use and writes nothing"),
]
ReportTo = Annotated[
    str | None,
    typer.Option("--report", metavar="FILE", help="Write the JSON report to FILE too.", hidden=True),
    Doc("writes the JSON report to FILE too, from which `verify --report FILE` reads the options"),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--output-format", metavar="human|json|jsonl", callback=_known_format, help="Format of the report; --json is json."
    ),
    Doc("text; one JSON object; or one line of JSON for each source as it is done"),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of text."),
    Doc("prints one JSON object instead of text"),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors."), Doc("prints nothing but errors")]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Print the matrix too, and the tensors that were rejected."),
    Doc("prints the matrix too, and every tensor that was rejected as a first conv, with the reason"),
]


def _help_all(context: typer.Context, shown: bool) -> None:
    if shown:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


HelpAll = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, callback=_help_all, help="Show all options, the rarely needed ones too, and exit."),
    Doc("shows all options, the rarely needed ones too"),
]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each row of the table in the place of its parameter `options`, and with --help-all."""
    declared = inspect.signature(command, eval_str=True).parameters
    (location,) = (name for name, parameter in declared.items() if is_typeddict(parameter.annotation))
    rows = options_of(declared[location].annotation)

    def called(*, help_all: bool, **arguments: Any) -> None:
        values = {row.name: arguments.pop(row.name) for row in rows}
        command(
            **arguments, **{location: {name: value for name, value in values.items() if value is not None and value is not False}}
        )

    parameters: list[inspect.Parameter] = []
    for name, parameter in declared.items():
        parameters += map(parameter_of, rows) if name == location else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    parameters.append(_parameter("help_all", False, HelpAll))
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def parameter_of(row: Option) -> inspect.Parameter:
    """A row as typer's parameter: a switch, one value, or a list of texts where it takes only lists."""
    info = typer.Option(row.flag, metavar=row.metavar, help=row.help, hidden=row.hidden)
    if row.kind is bool:
        return _parameter(row.name, False, Annotated[bool, info, row])
    value: Any = row.scalars[0] if row.scalars else list[str]
    return _parameter(row.name, None, Annotated[value | None, info, row])


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
