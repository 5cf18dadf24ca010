"""Parameters made of rows: a command is called with the options that were given, and with nothing else."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from chkpt_channels.cli import params
from chkpt_channels.cli.app import app as cli
from chkpt_channels.core.errors import UsageError
from chkpt_channels.transform.mixing.rules import METHODS
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions

RUNNER = CliRunner()


def command(calls: list[dict[str, Any]]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @params.shared
    def take(name: str, *, options: ConvertOptions, quiet: params.Quiet = False) -> None:
        """Take it."""
        calls.append({"name": name, "options": options, "quiet": quiet})

    return app


def call(*arguments: str) -> dict[str, Any]:
    calls: list[dict[str, Any]] = []
    done = RUNNER.invoke(command(calls), list(arguments))
    assert done.exit_code == 0, done.output
    (found,) = calls
    return found


def test_only_what_was_given_is_handed_over():
    assert call("x") == {"name": "x", "options": {}, "quiet": False}
    found = call("x", "--strict", "--from", "3", "--layer", "a", "--layer", "b", "--luma", "bt601", "-q")
    assert found["options"] == {"strict": True, "from_channels": 3, "layers": ["a", "b"], "luma": "bt601"}
    assert found["quiet"] is True


def test_zero_is_a_value():
    assert call("x", "--from", "0")["options"] == {"from_channels": 0}


def test_the_signature_has_a_parameter_for_each_row():
    def take(*, options: ConvertOptions) -> None:
        pass

    names = list(inspect.signature(params.shared(take)).parameters)
    assert names == [*(row.name for row in OPTIONS), "color", "help_all"]


def test_rows_as_parameters():
    by_name = {row.name: params.parameter_of(row) for row in OPTIONS}
    assert by_name["strict"].default is False
    assert by_name["from_channels"].default is None
    assert by_name["layers"].annotation.__args__[0] == list[str] | None


def test_help_hides_what_few_need_and_help_all_shows_it():
    app = command([])
    usual, whole = (RUNNER.invoke(app, [flag]).output for flag in ("--help", "--help-all"))
    assert "--bands" in usual
    assert "--matrix" not in usual
    assert "--matrix" in whole


def test_words_of_a_closed_list():
    app, calls = typer.Typer(), []

    @app.command()
    def take(name: Annotated[str | None, typer.Option("--name", **params.one_of("gray", "rgb"))] = None) -> None:
        calls.append(name)

    assert [RUNNER.invoke(app, words).exit_code for words in ([], ["--name", "rgb"])] == [0, 0]
    assert calls == [None, "rgb"]
    refused = RUNNER.invoke(app, ["--name", "grey"]).exception
    assert isinstance(refused, UsageError)
    assert (str(refused), refused.hint) == ("--name is one of gray, rgb, not 'grey'", "--name gray")


@pytest.mark.parametrize(("beginning", "offered"), [("re", ["repeat"]), ("S", ["sum", "stack"]), ("", list(METHODS)), ("x", [])])
def test_what_a_shell_completes(beginning: str, offered: list[str]):
    assert params.completed(lambda: METHODS)(beginning) == offered


WORDS = (("--method", "lu", "luma"), ("--norm", "imag", "imagenet"), ("--layout", "HW", "HWIO"), ("--color", "ne", "never"),
         ("--optimizer", "d", "drop"), ("--channel-order", "b", "bgr"), ("--output-format", "gi", "github"))  # fmt: skip


@pytest.mark.parametrize("name", ["convert", "verify"])
def test_every_closed_list_is_completed(name: str):
    command = typer.main.get_command(cli).commands[name]
    asked = {parameter.opts[0]: parameter for parameter in command.params}
    for flag, beginning, word in WORDS:
        offered = asked[flag].shell_complete(typer.Context(command), beginning)
        assert word in [item.value for item in offered], flag
