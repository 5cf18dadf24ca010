"""What typer reads, helps with, completes and refuses."""

# no `from __future__ import annotations`: a command's rows are no text

from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from chkpt_channels.cli import app as command_line
from chkpt_channels.cli import params
from chkpt_channels.cli.app import run
from chkpt_channels.cli.commands import Command
from chkpt_channels.cli.typer_app import built, completed, parameter_of
from chkpt_channels.transform.mixing.rules import METHODS
from chkpt_channels.transform.option_spec import Option
from chkpt_channels.transform.option_table import OPTIONS, ConvertOptions

RUNNER = CliRunner()
CALLS: list[dict[str, Any]] = []


def take(
    *,
    name: Annotated[str, Option("", metavar="NAME", help="What.")],
    options: ConvertOptions,
    quiet: Annotated[bool, params.QUIET] = False,
) -> int:
    """Take it."""
    CALLS.append({"name": name, "options": options, "quiet": quiet})
    return 0


APP = built([Command(take, "take x")])


def call(*arguments: str) -> dict[str, Any]:
    done = RUNNER.invoke(APP, ["take", *arguments])
    assert done.exit_code == 0, done.output
    return CALLS.pop()


def test_only_what_was_given_is_handed_over():
    assert call("x") == {"name": "x", "options": {}, "quiet": False}
    found = call("x", "--strict", "--from", "3", "--layer", "a", "--layer", "b", "--luma", "bt601", "-q")
    assert found["options"] == {"strict": True, "from_channels": 3, "layers": ["a", "b"], "luma": "bt601"}
    assert found["quiet"] is True
    assert call("x", "--from", "0")["options"] == {"from_channels": 0}


def test_rows_as_parameters():
    by_name = {row.name: parameter_of(row) for row in Command(take, "").parameters}
    assert by_name["strict"].default is False
    assert by_name["from_channels"].default is None
    assert by_name["layers"].annotation.__args__[0] == list[str] | None
    assert set(by_name) >= {row.name for row in OPTIONS}


def test_help_hides_what_few_need_and_help_all_shows_it():
    usual, whole = (RUNNER.invoke(APP, ["take", flag]).output for flag in ("--help", "--help-all"))
    assert "--bands" in usual
    assert "--matrix" not in usual
    assert "--matrix" in whole
    assert "Example: take x" in usual


@pytest.mark.parametrize(("beginning", "offered"), [("re", ["repeat"]), ("S", ["sum", "stack"]), ("", list(METHODS)), ("x", [])])
def test_what_a_shell_completes(beginning: str, offered: list[str]):
    assert completed(lambda: METHODS)(beginning) == offered


WORDS = (("--method", "lu", "luma"), ("--norm", "imag", "imagenet"), ("--layout", "HW", "HWIO"), ("--color", "ne", "never"),
         ("--optimizer", "d", "drop"), ("--channel-order", "b", "bgr"), ("--output-format", "gi", "github"))  # fmt: skip


@pytest.mark.parametrize("name", ["convert", "verify"])
def test_every_closed_list_is_completed(name: str):
    command = typer.main.get_command(built(command_line.COMMANDS.values())).commands[name]
    asked = {parameter.opts[0]: parameter for parameter in command.params}
    for flag, beginning, word in WORDS:
        offered = asked[flag].shell_complete(typer.Context(command), beginning)
        assert word in [item.value for item in offered], flag


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["resnet18.pth"], ["error: 'resnet18.pth' is no command",
                            "try: chkpt-channels convert resnet18.pth --to gray   or   chkpt-channels inspect resnet18.pth"]),
        (["inspekt"], ["error: 'inspekt' is no command", "try: inspect"]),
        (["xyz"], ["error: 'xyz' is no command", "try: chkpt-channels --help"]),
        (["convert", "a.pth", "--metod", "sum"], ["error: no such option", "try: --method"]),
        (["convert", "a.pth", "-to", "gray"], ["error: no such option: -t", "try: --to"]),
        (["convert", "a.pth", "--to"], ["error: option '--to' requires an argument", "try: chkpt-channels convert --help"]),
        (["convert", "a.pth", "--json=true"], ["error: option '--json' does not take a value"]),
        (["--version=1"], ["error: option '--version' does not take a value"]),
        (["check", "a.pth", "--expect"], ["error: option '--expect' requires an argument", "try: chkpt-channels check --help"]),
        (["convert", "a.pth", "--to", "gray", "-j", "9" * 5000], ["error: --jobs takes a whole number"]),
        (["convert", "a.pth", "--to", "gray", "--norm", ""], ["error: --norm is an empty text"]),
        (["check", ""], ["error: PATH is an empty text"]),
        (["convert", "a.pth", "--workers", "2"], ["error: no such option: --workers", "try: --jobs"]),
        (["-version"], ["error: no such option: -v", "try: --version"]),
        (["verify", "a.pth"], ["error: missing argument 'CONVERTED'", "try: chkpt-channels verify --help"]),
        (["convert", "a.pth", "--from", "three"], ["error: --from takes a whole number", "try: "]),
        (["convert", "a.pth", "--input-range", "x"], ["error: --input-range takes a number", "try: "]),
        (["convert", "-a.pth"], ["error: no such option: -a", "try: ./-a.pth"]),
        (["convert", "a.pth", "--to", "gary"], ["error: --to 'gary' is not a target", "try: --to gray"]),
        (["convert", "a.pth", "--to", "gray", "--norm", "imagnet"], ["error: --norm is one of", "try: --norm imagenet"]),
        (["convert", "a.pth", "--to", "gray", "--norm", "0.5,0.5"], ["error: --norm is one of", "try: --mean a,b,c --std a,b,c"]),
        (["convert", "a.pth", "--to", "gray", "-o", "b.pth", "--output-dir", "c"], ["error: -o and --output-dir both say where"]),
        (["convert", "a.pth", "--to", "gray", "--color", "blue"], ["error: --color is one of auto, always, never, not 'blue'"]),
    ],
)  # fmt: skip
def test_what_the_parser_refuses_is_said_in_two_lines(arguments, messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "-a.pth"):
        (tmp_path / name).write_bytes(b"")
    assert run(arguments) in (2, 3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) <= 2
    assert all(line.startswith(message) for line, message in zip(lines, messages, strict=False)), lines


def test_help_is_a_word_too(capsys):
    assert run(["help"]) == 0
    whole = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == whole
    assert run(["help", "convert"]) == 0
    assert "Usage: chkpt-channels convert" in capsys.readouterr().out
    assert [run([word]) for word in ("-V", "--version")] == [0, 0]
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_options_are_in_groups(capsys):
    run(["convert", "--help-all"])
    shown = capsys.readouterr().out
    titles = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "Arguments"
    assert shown.startswith("Usage: chkpt-channels convert [SRC…] [OPTION]…\n")
    assert "\n  SRC…  Checkpoints or model folders; - is stdin.\n" in shown
    assert titles[-1] == "Options"
    assert {"The new channels", "Where it goes", "Normalization", "Which kernel", "What goes with it", "Report"} == {
        *titles[1:-1]
    }
