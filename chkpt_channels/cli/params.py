"""The parameters of the commands: those that several share or that are long, and the options of a conversion."""

# How `--strict` and its like get onto the command line: each is a row of `ConvertOptions` (transform/option_table.py). A command
# that is decorated with `shared` and has a parameter `options: ConvertOptions` is given to typer with one parameter for
# each row in that place; when it is called, the values that the user gave are handed to it as one ConvertOptions. So a new row is
# a new option of `convert` and `verify`, and nothing here or in app.py changes.

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, is_typeddict

import typer

from chkpt_channels.cli import style
from chkpt_channels.core.errors import unlisted
from chkpt_channels.transform.option_spec import Option, options_of
from chkpt_channels.transform.option_table import CHANNELS, words


class Doc(NamedTuple):
    """The text of an option for docs/options.md, where it is longer than that of --help."""

    doc: str


FORMATS = ("human", "json", "jsonl", "github")
PLACE, REPORT = "Where it goes", "Report"
"""Groups of --help, beside those of the options of a conversion."""


def one_of(*known: str) -> dict[str, Any]:
    """What typer needs for an option that takes one of these words: a shell completes them, and others are refused."""

    def checked(parameter: typer.CallbackParam, word: str | None) -> str | None:
        if word is not None and word not in known:
            raise unlisted(parameter.opts[-1], word, known)
        return word

    return {"metavar": "|".join(known), "callback": checked, "autocompletion": completed(lambda: known)}


def completed(known: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """The words that a shell offers for the beginning of one."""

    def matching(incomplete: str) -> list[str]:
        return [word for word in known() if word.lower().startswith(incomplete.lower())]

    return matching


Sources = Annotated[list[str] | None, typer.Argument(metavar="SRC…", help="Checkpoints or model folders; - is stdin.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="gray|rgb|bgr|rgba|N",
        help="The new input channels.",
        show_default=False,
        autocompletion=completed(partial(words, "to")),
        rich_help_panel=CHANNELS,
    ),
    Doc(
        "the new input channels. `gray` is also written `grey`, `grayscale`, `L`, `1`; `rgba` is 4; `bgr` swaps the channels of"
        " a color model, and splits a gray one in that order"
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o", "--output", metavar="DST", help="The result; - is standard output. [<stem>_<to><ext>]", rich_help_panel=PLACE
    ),
    Doc(
        "the result; `-` is standard output, and the report then goes to stderr. Without it the result is `<stem>_<to><ext>`"
        " beside the source"
    ),
]
OutputDir = Annotated[
    str | None,
    typer.Option("--output-dir", metavar="DIR", help="Where the results go, under their usual names.", rich_help_panel=PLACE),
    Doc("where the results of several sources go, under their usual names"),
]
Jobs = Annotated[
    int,
    typer.Option("-j", "--jobs", metavar="N", help="How many to convert at once. [1]", show_default=False, rich_help_panel=PLACE),
    Doc("how many to convert at once, each in a process of its own"),
]
Manifest = Annotated[
    str | None,
    typer.Option(
        "--manifest", metavar="FILE", help="Read the conversions from a TOML manifest.", hidden=True, rich_help_panel=PLACE
    ),
    Doc(
        "reads the conversions from a TOML manifest: `[[convert]]` tables with `src`, `dst`, `to` and any option by its long"
        " name, paths relative to the file"
    ),
]
Ledger = Annotated[
    str | None,
    typer.Option("--ledger", metavar="FILE", help="Remember each result in FILE.", hidden=True, rich_help_panel=PLACE),
    Doc(
        "remembers each result in a file of JSON lines, from which `--resume` goes on and which `status` sums up"
        " ([fleets.md](fleets.md))"
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the ledger: skip what is done.", hidden=True, rich_help_panel=PLACE),
    Doc(
        "goes on with the ledger, if it is there: skips rows that are final in it and whose source and output are unchanged"
        " since; with `--force` it tries failures again"
    ),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="i/n", help="Convert one of n shares of the sources.", hidden=True, rich_help_panel=PLACE),
    Doc("converts one of n shares of the sources, i from 1 to n: each source is in one of them, whichever machine asks"),
]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="dask://HOST:PORT", help="Convert on a cluster.", hidden=True, rich_help_panel=PLACE),
    Doc("converts on the workers of a Dask cluster, whose scheduler has this address ([fleets.md](fleets.md#dask))"),
]
Sidecars = Annotated[
    bool,
    typer.Option(
        "--sidecars", help="Write the configuration files beside SRC beside DST too.", hidden=True, rich_help_panel=PLACE
    ),
    Doc(
        "the configuration files beside a single weights file (`config.json`, `preprocessor_config.json`) are written beside DST"
        " too, with the new counts"
    ),
]
HardLink = Annotated[
    bool,
    typer.Option("--hard-link", help="In a folder, hard-link the files that do not change.", hidden=True, rich_help_panel=PLACE),
    Doc("in a model folder, files that do not change become hard links to the same files"),
]
Sha256 = Annotated[
    bool,
    typer.Option("--sha256", help="Report the SHA-256 of the result.", hidden=True, rich_help_panel=REPORT),
    Doc("reports the SHA-256 of the result"),
]
HashName = Annotated[
    bool,
    typer.Option(
        "--hash-name",
        help="Put the first 8 digits of its SHA-256 into the name, as torch.hub does.",
        hidden=True,
        rich_help_panel=PLACE,
    ),
    Doc(
        "puts the first eight digits of its SHA-256 into the name, as torch.hub does: `resnet50_gray-3f9a01bc.pth`, in the place"
        " of an old one"
    ),
]
StateDict = Annotated[
    str | None,
    typer.Option(
        "--state-dict",
        metavar="KEY",
        help="The state dict to write where DST is another container.",
        hidden=True,
        rich_help_panel=PLACE,
    ),
    Doc("the state dict to write where the output is another container (`-o x.safetensors` from `x.ckpt`, or back)"),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an existing output.", rich_help_panel=PLACE),
    Doc("replaces an existing output file; a folder is never replaced"),
]
CheckOnly = Annotated[
    bool,
    typer.Option("--check", help="Check that DST is what converting SRC gives now; write nothing.", rich_help_panel=REPORT),
    Doc("checks that DST is what converting SRC gives now, and writes nothing: exit 1 where it is not"),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Report what would be done; write nothing.", rich_help_panel=REPORT),
    Doc("reports what would be done and writes nothing"),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain", help="Print the matrix and the formula in use; write nothing.", hidden=True, rich_help_panel=REPORT
    ),
    Doc("prints the matrix and the formula in use and writes nothing"),
]
ReportTo = Annotated[
    str | None,
    typer.Option("--report", metavar="FILE", help="Write the JSON report to FILE too.", hidden=True, rich_help_panel=REPORT),
    Doc("writes the JSON report to FILE too, from which `verify --report FILE` reads the options"),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--output-format", **one_of(*FORMATS), hidden=True, help="Format of the report; --json is json.", rich_help_panel=REPORT
    ),
    Doc(
        "text (`human`); one JSON object (`json`); one line of JSON for each source as it is done (`jsonl`); or annotations that"
        " GitHub shows beside the file (`github`)"
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=REPORT),
    Doc("prints one JSON object instead of text"),
]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Print nothing but errors.", rich_help_panel=REPORT),
    Doc("prints nothing but errors"),
]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Print the matrix too, and the tensors that were rejected.", rich_help_panel=REPORT),
    Doc("prints the matrix too, and every tensor that was rejected as a first conv, with the reason"),
]


Color = Annotated[
    str,
    typer.Option(
        "--color",
        **one_of(*style.CHOICES),
        hidden=True,
        help="Colour messages. [auto]",
        show_default=False,
        rich_help_panel=REPORT,
    ),
    Doc("colours the beginning of messages: on a terminal (`auto`, with NO_COLOR and FORCE_COLOR), `always` or `never`"),
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


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """The command with what every command takes, --color, and with a parameter for each row of the table in the place of its
    parameter `options`, where it has one, and then with --help-all."""
    declared = inspect.signature(command, eval_str=True).parameters
    location = next((name for name, parameter in declared.items() if is_typeddict(parameter.annotation)), None)
    rows = options_of(declared[location].annotation) if location else ()

    def called(*, color: str, help_all: bool = False, **arguments: Any) -> None:
        style.choose(color)
        values = {row.name: arguments.pop(row.name) for row in rows}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        command(**arguments, **{location: given} if location else {})

    parameters: list[inspect.Parameter] = []
    for name, parameter in declared.items():
        parameters += map(parameter_of, rows) if name == location else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    parameters.append(_parameter("color", "auto", Color))
    parameters += [_parameter("help_all", False, HelpAll)] if location else []
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def parameter_of(row: Option) -> inspect.Parameter:
    """A row as typer's parameter: a switch, one value, or a list of texts where it takes only lists."""
    completion = completed(partial(words, row.name)) if row.closed else None
    info = typer.Option(
        row.flag, metavar=row.metavar, help=row.help, hidden=row.hidden, rich_help_panel=row.group, autocompletion=completion
    )
    if row.kind is bool:
        return _parameter(row.name, False, Annotated[bool, info, row])
    value: Any = row.scalars[0] if row.scalars else list[str]
    return _parameter(row.name, None, Annotated[value | None, info, row])


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
