"""A command is called with the options that were given, and with nothing else."""

# no `from __future__ import annotations`: a command's rows are no text

from typing import Annotated, Any

import pytest

from chkpt_channels.cli import params, style
from chkpt_channels.cli.commands import Command
from chkpt_channels.core.errors import UsageError
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions

CALLS: list[dict[str, Any]] = []


def take(
    *,
    name: Annotated[str, Option("", metavar="NAME", help="What.")],
    options: ConvertOptions,
    jobs: Annotated[int, params.JOBS] = 1,
    kind: Annotated[str | None, Option("--kind", known=("a", "b"), help="Which.")] = None,
    root: Annotated[str | None, Option("--root", blank=True, help="Where.")] = None,
    quiet: Annotated[bool, params.QUIET] = False,
) -> int:
    """Take it."""
    CALLS.append({"name": name, "options": options, "jobs": jobs, "kind": kind, "root": root, "quiet": quiet})
    return 7


TAKE = Command(take, "take x")
DEFAULTS = {row.name: row.default for row in TAKE.parameters}


def call(**values: Any) -> dict[str, Any]:
    assert TAKE(DEFAULTS | values) == 7
    return CALLS.pop()


def test_the_rows_in_their_order():
    assert [row.name for row in TAKE.parameters] == [
        "name",
        *(row.name for row in OPTIONS),
        "jobs",
        "kind",
        "root",
        "quiet",
        "color",
    ]
    assert TAKE.has_hidden
    assert {DEFAULTS[row.name] for row in OPTIONS} == {None, False}
    assert (DEFAULTS["jobs"], DEFAULTS["color"], DEFAULTS["name"]) == (1, "auto", None)


def test_only_what_was_given_is_handed_over():
    assert call(name="x") == {"name": "x", "options": {}, "jobs": 1, "kind": None, "root": None, "quiet": False}
    assert call(name="x", strict=True, from_channels=0, layers=["a"])["options"] == {
        "strict": True,
        "from_channels": 0,
        "layers": ["a"],
    }


def test_unlisted_words_are_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"--kind is one of a, b, not 'c'"):
        call(kind="c")
    with pytest.raises(UsageError, match="--color is one of auto, always, never, not 'blue'"):
        call(color="blue")
    with pytest.raises(UsageError, match=r"^--kind is an empty text$"):
        call(kind="")
    with pytest.raises(UsageError, match=r"^--layer is an empty text$"):
        call(layers=["a", ""])
    with pytest.raises(UsageError, match=r"^NAME is an empty text$"):
        call(name="")
    assert call(root="")["root"] == ""
    monkeypatch.setattr(style, "_choice", "auto")
    assert call(kind="a", color="never")["kind"] == "a"
    assert style._choice == "never"
