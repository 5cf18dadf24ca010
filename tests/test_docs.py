"""docs/ says what the program does."""

from __future__ import annotations

from pathlib import Path

import typer

from chkpt_channels.cli.app import app
from chkpt_channels.formats import known
from tests.support import report_docs
from tests.support.documents import DOCUMENTS
from tests.support.option_docs import PATH, page

COMMANDS = typer.main.get_command(app).commands


def test_the_options_are_those_that_there_are():
    assert PATH.read_text(encoding="utf-8") == page(), "make docs writes it anew"


def test_reports_are_what_is_printed():
    """But for rounding errors, which differ from machine to machine."""
    written = report_docs.PATH.read_text(encoding="utf-8")
    assert report_docs.without_rounding(written) == report_docs.without_rounding(report_docs.page()), "make docs writes it anew"


def test_reports_of_eight_kinds_of_file_are_shown():
    formats = {Path(fixture).parent.name for case in report_docs.CASES for fixture in case.files.values() if fixture}
    assert formats == {"torch_zip", "safetensors", "onnx", "keras_zip", "keras_h5"}
    assert len(report_docs.CASES) > 8


def test_every_command_and_option_is_there():
    flags = {flag for command in COMMANDS.values() for parameter in command.params for flag in parameter.opts}
    text = page()
    assert all(f"\n## {command}\n" in text for command in COMMANDS)
    assert all(f"`{flag}" in text for flag in flags if flag.startswith("-"))


def test_every_format_is_described():
    page = DOCUMENTS["docs/formats.md"]
    assert not [suffix for form in known() for suffix in form.suffixes if suffix not in page]
