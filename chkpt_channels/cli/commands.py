"""A command: its function, the rows of its parameters, which the function's annotations hold, and a plain line of words read."""

# How `--strict` and its like get onto the command line: each is a row of `ConvertOptions` (transform/option_table.py). A command
# whose function has a parameter `options: ConvertOptions` has one parameter for each row in that place; when it is called, the
# values that the user gave are handed to it as one ConvertOptions. So a new row is a new option of `convert` and `verify`, and
# nothing here or in app.py changes. The tables of params.py are the same of what several parameters of a command are for.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, is_typeddict

from chkpt_channels.cli import params, style
from chkpt_channels.core.errors import UsageError, unlisted
from chkpt_channels.transform.option_spec import Option, option_of, options_of

COMPLETION = f"_{'chkpt-channels'.replace('-', '_')}_complete".upper()
"""By this variable a shell asks typer for what could come."""
LONGEST_DIGITS = 19
"""Of a number that is read here: Python refuses to read thousands of digits."""


class Command:
    """One command of the command line.

    function    what it does; its parameters are keywords annotated with rows, and it returns the exit code
    example     a command line that shows it
    parameters  the rows of all of them, as --help lists them; --color is the last, where there are any
    has_hidden  whether there are such that --help-all alone shows
    """

    def __init__(self, function: Callable[..., int], example: str) -> None:
        self.function, self.example, self.name = function, example, function.__name__
        self._tables: dict[str, tuple[Option, ...]] = {}
        rows: list[Option] = []
        defaults = function.__kwdefaults__ or {}
        for name, annotation in function.__annotations__.items():
            if is_typeddict(annotation):
                table = options_of(annotation)
                self._tables[name] = tuple(row._replace(default=False if row.kind is bool else None) for row in table)
                rows += self._tables[name]
            elif name != "return":
                rows.append(option_of(name, annotation)._replace(default=defaults.get(name)))
        self.parameters = (*rows, option_of("color", Annotated[str, params.COLOR])) if rows else ()
        self.has_hidden = any(row.hidden for row in self.parameters)

    def __call__(self, values: Mapping[str, Any]) -> int:
        """Run it with a value for each parameter, by name; returns the exit code. Raises UsageError for an empty or an unlisted
        word."""
        for row in self.parameters:
            value = values[row.name]
            if not row.blank and (value == "" or (isinstance(value, list | tuple) and "" in value)):
                what = row.flag or (row.metavar or row.name).removesuffix("…")
                raise UsageError(f"{what} is an empty text", hint="a variable of the shell may not be set")
            if row.known and values[row.name] is not None and values[row.name] not in row.known:
                raise unlisted(row.flag, values[row.name], row.known)
        style.choose(values.get("color", style.CHOICES[0]))
        left = {name: value for name, value in values.items() if name != "color"}
        tables = {table: {row.name: left.pop(row.name) for row in rows} for table, rows in self._tables.items()}
        return self.function(**left, **{table: _given(told) for table, told in tables.items()})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value is not False}


def read(words: Sequence[str], command: Command) -> Mapping[str, Any] | None:
    """A value for each parameter of a command, from the words behind its name; None where they are not plain.

    Whatever is not plain is left to typer, which reads all that is read here in the same way (a test holds them together): what
    it refuses or helps with, letters in one word (`-qv`), values that begin with a dash, `--`. Typer's import takes longer than a
    conversion of some kilobytes.
    """
    flags = {flag: row for row in command.parameters for flag in (row.flag, row.short) if flag}
    values: dict[str, Any] = {row.name: row.default for row in command.parameters}
    placed: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, is_joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word == "-" or not word.startswith("-"):
            placed.append(word)
            continue
        if (row := flags.get(flag)) is None or (row.kind is bool and is_joined):
            return None
        read_as = True if row.kind is bool else _value(value if is_joined else next(rest, ""), row)
        if read_as is None:
            return None
        values[row.name] = [*(values[row.name] or ()), read_as] if not row.scalars else read_as
    return values if _place(placed, command, values) else None


def _value(text: str, row: Option) -> Any:
    """The value of an option; None where it is not plainly one."""
    if not text or (text.startswith("-") and text != "-"):
        return None
    if row.scalars[:1] == (int,):
        return int(text) if text.isascii() and text.isdigit() and len(text) < LONGEST_DIGITS else None
    if row.scalars[:1] == (float,):
        return None
    return text


def _place(words: Sequence[str], command: Command, values: dict[str, Any]) -> bool:
    """Give the arguments their values; whether there are as many words as arguments."""
    rows = [row for row in command.parameters if not row.flag]
    if rows and not rows[0].scalars:  # a list stands alone
        values[rows[0].name] = list(words) or None
        return bool(words) or rows[0].may_be_left_out
    values.update({row.name: word for row, word in zip(rows, words, strict=False)})
    return len(words) <= len(rows) and all(row.may_be_left_out for row in rows[len(words) :])
