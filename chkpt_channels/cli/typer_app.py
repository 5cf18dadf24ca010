"""The commands as typer's: what reads every command line that is not plain, helps, completes and refuses."""

from __future__ import annotations

import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, cast

import typer

from chkpt_channels import __version__
from chkpt_channels.cli.commands import COMPLETION, Command
from chkpt_channels.core.errors import UsageError, did_you_mean
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import words

OTHER = "Options"
INTERRUPTED = 130


class GroupedCommand(typer.core.TyperCommand):
    """A command whose --help has a section for each group of options (their `rich_help_panel`), and names arguments as declared:
    typer puts types and brackets around them, other ones in each version."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words behind the command."""
        return [*argument_names(self), "[OPTION]…"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections, in the order in which their first options are declared; those of no group come last."""
        sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        parameter: Any
        for parameter in self.get_params(ctx):
            if parameter.param_type_name == "argument":
                sections["Arguments"].append((parameter.metavar, parameter.help))
            elif record := parameter.get_help_record(ctx):
                sections[getattr(parameter, "rich_help_panel", None) or OTHER].append(record)
        for title in sorted(sections, key=lambda title: title == OTHER):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def argument_names(command: Any) -> list[str]:
    """The arguments of a command as its usage names them, in brackets those that may be left out."""
    named = (p for p in command.params if p.param_type_name == "argument")
    return [p.metavar if p.required else f"[{p.metavar}]" for p in named]


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"chkpt-channels {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _help_all(context: typer.Context, shown: bool) -> None:
    if shown:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


_NUMBERS: dict[tuple[type, ...], str] = {(int,): "a whole number", (float,): "a number"}
HelpAll = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, callback=_help_all, help="Show all options, the rarely needed ones too, and exit."),
]


def built(commands: Iterable[Command]) -> typer.Typer:
    """Typer's application of some commands."""
    app = typer.Typer(
        name="chkpt-channels",
        help="Change the input channels of a trained checkpoint: RGB to gray, gray to RGB, RGB to N bands.",
        epilog="chkpt-channels convert resnet50.pth --to gray -o resnet50_gray.pth",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_root)
    for command in commands:
        app.command(cls=GroupedCommand, epilog=f"Example: {command.example}")(_callback(command))
    return app


def main(arguments: Sequence[str], commands: Mapping[str, Command]) -> int:
    """Run one command line and return its exit code. Raises UsageError for what typer refuses, and what the command raises."""
    app = cast("Any", typer.main.get_command(built(commands.values())))
    try:
        code = app.main(args=list(arguments), prog_name="chkpt-channels", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except (KeyError, ValueError) as error:
        if COMPLETION not in os.environ:
            raise
        raise UsageError(f"{COMPLETION} is set, and what a shell states beside it is not", hint=f"unset {COMPLETION}") from error
    except Exception as error:
        if not hasattr(error, "show"):
            raise
        if not arguments:
            with suppress(OSError):  # standard error may have no room
                error.show()  # the help
            return cast("int", error.exit_code)  # type: ignore[attr-defined]
        raise _refusal(error, arguments, commands) from error


def _callback(command: Command) -> Callable[..., int]:
    """What typer calls: a function with a parameter for each row, and --help-all where there are rows that --help hides."""

    def called(help_all: bool = False, **values: Any) -> int:
        return command(values)

    parameters = [parameter_of(row) for row in command.parameters]
    parameters += [_parameter("help_all", False, HelpAll)] if command.has_hidden else []
    called.__name__, called.__doc__ = command.name, command.function.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def parameter_of(row: Option) -> inspect.Parameter:
    """A row as typer's parameter: an argument, a switch, one value, or a list of texts where it takes only lists."""
    value: Any = row.scalars[0] if row.scalars else list[str]
    if row.is_argument:
        info: Any = typer.Argument(metavar=row.metavar, help=row.help)
        left_out = row.may_be_left_out
        return _parameter(
            row.name, None if left_out else inspect.Parameter.empty, Annotated[value | None if left_out else value, info]
        )
    completion = completed(lambda: row.known or words(row.name)) if row.closed or row.known else None
    info = typer.Option(
        *filter(None, (row.short, row.flag)),
        metavar=None if row.kind is bool else row.metavar,
        help=row.help,
        hidden=row.hidden,
        show_default=False,
        rich_help_panel=row.group or None,
        autocompletion=completion,
    )
    return _parameter(row.name, row.default, Annotated[value | None if row.default is None else value, info])


def completed(known: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """The words that a shell offers for the beginning of one."""
    return lambda incomplete: [word for word in known() if word.lower().startswith(incomplete.lower())]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _refusal(error: Any, arguments: Sequence[str], commands: Mapping[str, Command]) -> UsageError:
    """What the parser refuses, as an error of this package: of a word that is no command, or of an option that is none, with what
    was probably meant."""
    from chkpt_channels.cli import guesses

    word = arguments[0] if arguments else ""
    command = word if word in commands else ""
    if not command and not word.startswith("-"):
        what = f"{word!r} is no command" if word else str(error)
        return UsageError(what, hint=guesses.command(word) or did_you_mean(word, commands) or "chkpt-channels --help")
    what = error.message if hasattr(error, "possibilities") else error.format_message()
    rows, hint = commands[command].parameters if command else (), ""
    name = error.param.name if type(error).__name__ == "BadParameter" and error.param else ""
    if row := next((row for row in rows if row.name == name and row.scalars in _NUMBERS), None):
        what = f"{row.flag} takes {_NUMBERS[row.scalars]}"  # the parser's words are those of a library
    if option := getattr(error, "option_name", ""):
        option = next((word for word in arguments if word.startswith(option)), option)  # -to is read as -t
        flags = [flag for row in rows for flag in (row.flag, row.short) if flag]
        more = ["--help-all"] if command and commands[command].has_hidden else []
        if os.path.lexists(option):
            hint = f"./{option}"
        elif (flag := option.partition("=")[0]) not in flags:
            hint = guesses.option(flag.lstrip("-"), [*flags, *more, "--help", "--version"])
    hint = hint or f"{f'chkpt-channels {command}'.strip()} --help"
    return UsageError(what[:1].lower() + what[1:].rstrip("."), hint=hint)
