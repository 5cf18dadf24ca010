"""docs/ says what the program does."""

from __future__ import annotations

import typer

from chkpt_channels.cli.app import app
from chkpt_channels.formats import known
from tests.support.documents import DOCUMENTS
from tests.support.option_docs import PATH, page

COMMANDS = typer.main.get_command(app).commands


def test_the_options_are_those_that_there_are():
    assert PATH.read_text(encoding="utf-8") == page(), "make docs writes it anew"


def test_every_command_and_option_is_there():
    flags = {flag for command in COMMANDS.values() for parameter in command.params for flag in parameter.opts}
    text = page()
    assert all(f"\n## {command}\n" in text for command in COMMANDS)
    assert all(f"`{flag}" in text for flag in flags if flag.startswith("-"))


def test_every_format_is_described():
    page = DOCUMENTS["docs/formats.md"]
    assert not [suffix for form in known() for suffix in form.suffixes if suffix not in page]
