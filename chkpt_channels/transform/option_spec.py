"""A row of the option table, and what derives from it: the names of an option, and the values that it takes in documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from chkpt_channels.core.records import NamedTuple


class Option(NamedTuple):
    """One parameter of a command: an option of a conversion, or one of the command line alone.

    flag      its name on the command line; "" for an argument, and in a table for the row's name with dashes
    help      one sentence for --help
    doc       the same in full, for docs/options.md, where --help leaves out something
    metavar   the placeholder of its value in --help
    hidden    few need it: only --help-all shows it
    group     the section of --help
    closed    there is a list of the words that it takes, all or among others: a shell completes them
    default   what holds where it is not given; False for a switch, nothing for a list of words
    name      the keyword of the library, and the key in reports: that of the row (`options_of`)
    kind      its type: that of the row
    short     its one letter, with the dash
    known     the words that it takes, where there are no others
    blank     an empty text is a value too
    """

    flag: str = ""
    help: str = ""
    doc: str = ""
    metavar: str | None = None
    hidden: bool = False
    group: str = ""
    closed: bool = False
    default: Any = None
    name: str = ""
    kind: Any = None
    short: str = ""
    known: tuple[str, ...] = ()
    blank: bool = False

    @property
    def is_argument(self) -> bool:
        """Whether its place says what it is, and not a flag."""
        return not self.flag

    @property
    def may_be_left_out(self) -> bool:
        """Whether a command works without it: all but the arguments that have no default."""
        return not self.is_argument or NoneType in _members(self.kind)

    @property
    def long_name(self) -> str:
        """The flag without its dashes, as manifests write it."""
        return self.flag.removeprefix("--")

    @property
    def scalars(self) -> tuple[type, ...]:
        """The types of a single value; none where it takes only lists."""
        return tuple(member for member in _members(self.kind) if member in (bool, int, float, str))

    def takes(self, value: Any) -> bool:
        """Whether a value in a document (a manifest or a report) is of its type."""
        return _fits(value, self.kind)

    def as_listed(self, value: Any) -> Any:
        """The value, a single one as a list where the option takes only that."""
        single = not isinstance(value, list) and not self.takes(value)
        return [value] if single and self.takes([value]) else value


def options_of(table: type) -> tuple[Option, ...]:
    """The rows of a table: of a TypedDict whose annotations are `Annotated[type, Option(…)]`."""
    rows = rows_of(table.__annotations__)
    return tuple(row if row.flag else row._replace(flag=f"--{row.name.replace('_', '-')}") for row in rows)


def rows_of(annotations: Mapping[str, Any]) -> tuple[Option, ...]:
    """The rows that some annotations hold, by their names."""
    return tuple(option_of(name, annotation) for name, annotation in annotations.items())


def option_of(name: str, annotation: Any) -> Option:
    """A row with its name and its type, of `name: Annotated[type, Option(…)]`."""
    kind, (option,) = annotation.__origin__, annotation.__metadata__
    placeholder = option.metavar or "|".join(option.known) or None
    default = False if kind is bool else () if kind == Sequence[str] else option.default
    return option._replace(name=name, kind=kind, metavar=placeholder, default=default)  # type: ignore[no-any-return]


def by_long_name(options: Sequence[Option]) -> dict[str, Option]:
    """Each option by what manifests may call it: the long name of its flag, or the library's keyword with dashes."""
    return {option.name.replace("_", "-"): option for option in options} | {option.long_name: option for option in options}


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, list):  # in a list a number may be text, as it is on the command line
        parts = [get_args(member)[0] for member in _members(kind) if get_origin(member) is Sequence]
        return any(all(isinstance(item, str) or _fits(item, part) for item in value) for part in parts)
    if isinstance(value, bool):
        return bool in _members(kind)
    return type(value) in _members(kind) or (isinstance(value, int) and float in _members(kind))
