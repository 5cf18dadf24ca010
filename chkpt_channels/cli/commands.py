"""What a command is beyond its function: its options in groups, and words for what the parser refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import typer

from chkpt_channels.core.errors import UsageError, did_you_mean

OTHER = "Options"


class GroupedCommand(typer.core.TyperCommand):
    """A command whose --help has a section for each group of options (their `rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections, in the order in which their first options are declared; those of no group come last."""
        sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                sections["Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or OTHER].append(record)
        for title in sorted(sections, key=lambda title: title == OTHER):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def refusal(error: Any, arguments: Sequence[str], names: Sequence[str]) -> UsageError:
    """What the parser refuses, as an error of this package: of a word that is no command, or of an option that is none, with what
    was probably meant."""
    from chkpt_channels.cli import guesses

    possible = getattr(error, "possibilities", None)
    word = arguments[0] if arguments else ""
    command = word if word in names else ""
    if not command and not word.startswith("-"):
        what = f"{word!r} is no command" if word else str(error)
        return UsageError(what, hint=guesses.command(word) or did_you_mean(word, names) or "chkpt-channels --help")
    what = error.message if possible is not None else error.format_message()
    hint = did_you_mean(getattr(error, "option_name", ""), possible or ()) or f"{f'chkpt-channels {command}'.strip()} --help"
    return UsageError(what[:1].lower() + what[1:].rstrip("."), hint=hint)
