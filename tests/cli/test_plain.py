"""What is read without typer is what typer reads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from chkpt_channels.cli.app import COMMANDS
from chkpt_channels.cli.commands import Command, read
from chkpt_channels.cli.typer_app import built
from tests.support.files import FIXTURES

ROOT = FIXTURES.parent
WORDS = [
    "a.pth",
    "b/c.onnx",
    "-",
    "3",
    "0",
    "007",
    "-1",
    "gray",
    "auto",
    "always",
    "json",
    "x y",
    "",
    "--",
    "-5",
    "é",
    "½",
    "a=b",
]


class Recorded(Command):
    """A command that does nothing but remember with which values it was called."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.function, command.example)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, values: Any) -> int:
        self.calls.append(dict(values))
        return 0


EACH = {name: Recorded(command) for name, command in COMMANDS.items()}
APP = built(EACH.values())


def by_typer(name: str, words: list[str]) -> dict[str, Any] | None:
    """The values that typer reads; None where it refuses them or shows a help."""
    EACH[name].calls.clear()
    done = CliRunner().invoke(APP, [name, *words])
    return EACH[name].calls[0] if done.exit_code == 0 and EACH[name].calls else None


def same(values: dict[str, Any]) -> dict[str, Any]:
    """An option that is not given is None, or an empty list in some versions of typer."""
    return {name: value or None if isinstance(value, list | tuple) else value for name, value in values.items()}


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, list[str]]:
    name = draw(st.sampled_from(sorted(COMMANDS)))
    rows = COMMANDS[name].parameters
    flags = [flag for row in rows for flag in (row.flag, row.short) if flag] + ["--nothing", "-h", "-qv", "--help-all"]
    value = st.sampled_from(WORDS)
    flag = st.sampled_from(flags)
    parts = st.one_of(value.map(lambda v: [v]), flag.map(lambda f: [f]), st.tuples(flag, value).map(list),
                      st.tuples(flag, value).map(lambda pair: ["=".join(pair)]))  # fmt: skip
    return name, [word for part in draw(st.lists(parts, max_size=6)) for word in part]


@settings(max_examples=600, deadline=None)
@given(command_lines())
def test_what_is_plain_is_what_typer_reads(line: tuple[str, list[str]]):
    name, words = line
    values = read(words, COMMANDS[name])
    if values is not None:
        by_it = by_typer(name, words)
        assert by_it is not None
        assert same(dict(values)) == same(by_it)


@pytest.mark.parametrize(
    ("name", "words", "some"),
    [
        ("convert", ["a.pth", "--to", "gray", "-o", "b.pth"], {"src": ["a.pth"], "to": "gray", "output": "b.pth", "workers": 1}),
        (
            "convert",
            ["a.pth", "b.pth", "--to=3", "-j", "2", "-q"],
            {"src": ["a.pth", "b.pth"], "to": "3", "workers": 2, "quiet": True},
        ),
        ("convert", ["-", "--layer", "a", "--layer", "b"], {"src": ["-"], "layers": ["a", "b"], "color": "auto"}),
        ("convert", ["--manifest", "m.toml"], {"src": None, "manifest": "m.toml"}),
        ("verify", ["a", "b", "--json"], {"original": "a", "converted": "b", "as_json": True}),
        ("plot", ["a"], {"before": "a", "after": None, "output": "kernels.png"}),
        ("check", ["models/", "--expect", "gray"], {"path": ["models/"], "expect": "gray"}),
    ],
)
def test_everyday_lines_are_plain(name: str, words: list[str], some: dict[str, Any]):
    values = read(words, COMMANDS[name])
    assert values is not None
    assert {key: values[key] for key in some} == some
    by_it = by_typer(name, words)
    assert by_it is not None
    assert same(dict(values)) == same(by_it)


@pytest.mark.parametrize(
    ("name", "words"),
    [("convert", ["a.pth", "--help"]), ("convert", ["a.pth", "-qv"]), ("convert", ["a.pth", "--from", "three"]),
     ("verify", ["a"]), ("convert", ["a.pth", "--from", "-1"]), ("convert", ["--", "a.pth"]), ("convert", ["a.pth", "--force=1"]),
     ("inspect", []),
     ("convert", ["a.pth", "--to"]), ("convert", ["a.pth", "-j", "9" * 5000]),
     ("convert", ["a.pth", "--input-range", "255"]), ("verify", ["a", "b", "c"])],
)  # fmt: skip
def test_what_is_left_to_typer(name: str, words: list[str]):
    assert read(words, COMMANDS[name]) is None


def test_a_conversion_imports_no_typer(tmp_path):
    arguments = [
        "convert",
        str(FIXTURES / "safetensors" / "model.safetensors"),
        "--to",
        "gray",
        "-o",
        str(tmp_path / "o.safetensors"),
    ]
    code = f"import sys; from chkpt_channels.cli.app import run; run({arguments!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, text=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {
        "typer",
        "click",
        "pydantic",
        "rich",
        "numpy",
        "h5py",
        "onnx",
        "ml_dtypes",
        "inspect",
        "argparse",
        "logging",
    }
