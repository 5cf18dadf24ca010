"""Parameters made of rows: a command is called with the options that were given, and with nothing else."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from chkpt_channels.cli import params
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions

RUNNER = CliRunner()


def command(calls: list[dict[str, Any]]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @params.takes_options
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

    names = list(inspect.signature(params.takes_options(take)).parameters)
    assert names == [*(row.name for row in OPTIONS), "help_all"]


def test_rows_as_parameters():
    by_name = {row.name: params.parameter_of(row) for row in OPTIONS}
    assert by_name["strict"].default is False
    assert by_name["from_channels"].default is None
    assert by_name["layers"].annotation.__args__[0] == list[str] | None


def test_help_hides_what_few_need_and_help_all_shows_it():
    app = command([])
    usual, whole = (RUNNER.invoke(app, [flag]).output for flag in ("--help", "--help-all"))
    assert "--luma" in usual
    assert "--matrix" not in usual
    assert "--matrix" in whole


def test_a_format_that_does_not_exist():
    with pytest.raises(typer.BadParameter, match="'xml' is none of human, json, jsonl"):
        params._known_format("xml")
    assert params._known_format(None) is None
