"""What a command is beyond its function: its options in groups, and words for what the parser refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import typer

from chkpt_channels.core.errors import UsageError, did_you_mean

OTHER = "Options"


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


def refusal(error: Any, arguments: Sequence[str], names: Sequence[str]) -> UsageError:
    """What the parser refuses, as an error of this package: of a word that is no command, or of an option that is none, with what
    was probably meant."""
    from chkpt_channels.cli import guesses

    word = arguments[0] if arguments else ""
    command = word if word in names else ""
    if not command and not word.startswith("-"):
        what = f"{word!r} is no command" if word else str(error)
        return UsageError(what, hint=guesses.command(word) or did_you_mean(word, names) or "chkpt-channels --help")
    what = error.message if hasattr(error, "possibilities") else error.format_message()
    hint = ""
    if option := getattr(error, "option_name", ""):
        option = next((word for word in arguments if word.startswith(option)), option)  # -to is read as -t
        flags = [flag for parameter in error.ctx.command.params for flag in parameter.opts]
        hint = guesses.option(option.partition("=")[0].lstrip("-"), flags)
    hint = hint or f"{f'chkpt-channels {command}'.strip()} --help"
    return UsageError(what[:1].lower() + what[1:].rstrip("."), hint=hint)
