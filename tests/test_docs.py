"""docs/ says what the program does: lists are complete, links lead somewhere, and what users meet is explained on some page."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import chkpt_channels
from chkpt_channels.cli import app as command_line
from chkpt_channels.cli.typer_app import built
from chkpt_channels.core.interrupts import ENDING, Interrupted
from chkpt_channels.formats import known
from tests.support import report_docs
from tests.support.contents import FENCED, anchors, with_contents
from tests.support.documents import DOCUMENTS, ROOT
from tests.support.option_docs import PATH, page

GROUP = typer.main.get_command(built(command_line.COMMANDS.values()))
PAGES = [name for name in DOCUMENTS if name.startswith("docs/")]
LINKING = [*DOCUMENTS, "SECURITY.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"]
SCHEMA = json.loads((ROOT / "chkpt_channels" / "schema.json").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("name", PAGES)
def test_the_contents_list_of_a_page_is_its_headings(name: str):
    text = DOCUMENTS[name]
    listed = re.match(r"# .+\n\n((?:- .+\n)+)\n", text)
    assert listed, "make docs writes the list"
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", listed[1], re.MULTILINE) == anchors(text)
    assert len({anchor for _, anchor in anchors(text)}) == len(anchors(text))
    assert with_contents(text) == text


def test_the_readme_lists_every_page():
    assert set(re.findall(r"\]\((docs/\w+\.md)\)", DOCUMENTS["README.md"])) == set(PAGES)


def test_the_readme_is_short():
    assert len(DOCUMENTS["README.md"].encode()) <= 8 * 1024


def test_the_readme_installs_what_is_built():
    """The wheel by its name; the project is on no index, so that nothing is installed by the project's."""
    installed = re.findall(r"pip(?:x)? install (\S+)", DOCUMENTS["README.md"])
    assert set(installed) == {".", f"chkpt_channels-{chkpt_channels.__version__}-py3-none-any.whl", "'.[plot]'`"}


@pytest.mark.parametrize("name", LINKING)
def test_no_link_is_dead(name: str):
    """Those to files, by their path, and to headings, by their anchor."""
    prose = re.sub(r"`[^`\n]*`", "``", FENCED.sub("", (ROOT / name).read_text(encoding="utf-8")))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            assert target.exists(), link
            if anchor:
                assert anchor in dict(map(reversed, anchors(target.read_text(encoding="utf-8")))), link


def test_links_that_are_dead_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# B\n\n## A heading, with `code`\n\n```text\n## none\n```\n")
    (tmp_path / "a.md").write_text("[b](b.md) [c](b.md#a-heading-with-code) [d](https://example.org/x) `[e](none.md)`\n")
    test_no_link_is_dead("a.md")
    for link in ("none.md", "b.md#none", "#none"):
        (tmp_path / "a.md").write_text(f"[x]({link})\n")
        with pytest.raises(AssertionError):
            test_no_link_is_dead("a.md")


@pytest.mark.parametrize("command", [GROUP, *GROUP.commands.values()], ids=["chkpt-channels", *GROUP.commands])
def test_every_option_is_explained(command: Any):
    """Of the commands in the tables of docs/options.md, of all of them together above these."""
    head, *sections = re.split(r"^## ", PATH.read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {section.partition("\n")[0]: section for section in sections} | {GROUP.name: head}
    for parameter in command.params:
        for flag in (flag for flag in parameter.opts if flag.startswith("-")):
            assert re.search(rf"`{flag}[ `]", told[command.name]), flag


def test_every_format_is_described():
    page = DOCUMENTS["docs/formats.md"]
    assert not [suffix for form in known() for suffix in form.suffixes if suffix not in page]


def test_every_exit_code_is_explained():
    """Those of errors, of signals and of a pipe without a reader, and what is no error: done, and a difference."""
    errors = {getattr(chkpt_channels, name) for name in chkpt_channels.__all__ if name.endswith("Error")}
    signals = {Interrupted(number).exit_code for number in (*ENDING, signal.SIGPIPE)}
    codes = {0, 1, command_line.BUG} | signals | {error.exit_code for error in errors}
    table = DOCUMENTS["docs/json.md"].partition("| exit | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
    assert {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(", ")} == codes


def words(schema: Any) -> Iterator[str]:
    """Every key of the reports, and every value of which there is a list."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        yield from (value for value in schema.get("enum", []) if value)
        for part in schema.values():
            yield from words(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from words(part)


def test_every_key_and_value_of_the_reports_is_explained():
    told = set(re.findall(r"`(\w+)`", DOCUMENTS["docs/json.md"] + DOCUMENTS["docs/discovery.md"]))
    assert set(words(SCHEMA)) - told == set()


def test_every_environment_variable_is_explained():
    read = {
        word for path in (ROOT / "chkpt_channels").rglob("*.py") for word in re.findall(r"CHKPT_CHANNELS_\w+", path.read_text())
    }
    assert read
    assert not [name for name in read if not any(f"`{name}=" in DOCUMENTS[page] for page in PAGES)]
