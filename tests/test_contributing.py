"""CONTRIBUTING.md and ARCHITECTURE.md are true: the guide is followed in a copy of the repository, and what is named is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import ROOT, Block, blocks
from tests.test_architecture import LAYERS, PACKAGE

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)+)", GUIDE, re.MULTILINE))
STEPS = {title: list(blocks(text)) for title, text in SECTIONS.items() if "```" in text}
TOY = {"chkpt_channels/formats/toy", "chkpt_channels/containers", "fixtures/toy", "fixtures/generate", "tests/formats/toy"}
"""A format's own folders: what is new in them belongs to it."""
COPIED = ("chkpt_channels", "tests", "fixtures", "docs", "pyproject.toml", "Makefile", "*.md", ".pre-commit-hooks.yaml")
IGNORED = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the tests need of the repository."""
    home = tmp_path / "repository"
    home.mkdir()
    for path in (path for pattern in COPIED for path in ROOT.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, home / path.name, ignore=IGNORED)
        else:
            shutil.copy(path, home)
    return home


def tree(home: Path) -> dict[str, bytes]:
    """Every file but what Python and pytest leave behind."""
    paths = (path for path in home.rglob("*") if path.is_file())
    names = {path.relative_to(home).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if "__pycache__" not in name and not name.startswith(".")}


def follow(steps: list[Block], home: Path) -> None:
    """Write the files, apply the diffs, run the commands, in the order in which they stand there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    environment |= {"GIT_CEILING_DIRECTORIES": str(home.parent), "PYTEST_DEBUG_TEMPROOT": str(home.parent)}
    for step in steps:
        if step.title:
            (home / step.title).parent.mkdir(parents=True, exist_ok=True)
            (home / step.title).write_text(step.text, encoding="utf-8")
        elif step.language == "diff":
            run(["git", "apply", "-"], home, environment, step.text)
        else:
            for command in commands(step):
                run(command, home, environment)


def commands(step: Block) -> Iterator[list[str]]:
    for line in step.lines:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert (line[:2], step.language, program) == ("$ ", "console", ".venv/bin/python"), line
        yield [sys.executable, *arguments]


def run(command: list[str], home: Path, environment: dict[str, str], given: str = "") -> None:
    done = subprocess.run(command, cwd=home, env=environment, input=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (shlex.join(command), done.stdout[-4000:], done.stderr[-4000:])


def test_there_is_something_to_do():
    assert STEPS.keys() == {"Add a format", "Add an option", "Add a rule"}


def test_a_format_is_added_by_the_guide_alone(copy: Path):
    """Outside of its own folders it touches at most two files, and both are documents."""
    steps = STEPS["Add a format"]
    before = tree(copy)
    assert not {step.title for step in steps} & before.keys()
    follow(steps, copy)
    after = tree(copy)
    assert (copy / "fixtures" / "toy" / "expected.json").exists()
    assert {name for name in before if after.get(name) != before[name]} == {"docs/formats.md", "CHANGELOG.md"}
    new = after.keys() - before.keys()
    assert not [name for name in new if str(Path(name).parent) not in TOY]


@pytest.mark.parametrize("title", [title for title in STEPS if title != "Add a format"])
def test_the_guide_is_followed(title: str, copy: Path):
    follow([step for step in STEPS[title] if step.language], copy)


def test_the_targets_of_make_are_those_that_there_are():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split())
    assert set(re.findall(r"`make ([\w-]+)", SECTIONS["Set up"])) == targets


PATH = re.compile(r"[\w./-]+\.(py|md|yaml|json)|[\w.-]+/[\w./-]*")
WORD = re.compile(r"[\w.]+(\(.*\))?")
ELSEWHERE = {"dist/", "build/page", "build/page-shots", "config.json", "expected.json"}
"""What builds leave, and names of many files."""
NO_CODE = {"venv", "frameworks", "keras2", "dev", "ci"}
"""Environments, and extras of the package."""


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_what_is_named_is_there(name: str):
    """Links, and what stands in backticks: files, by their path from the root or in a package, and names of the code."""
    text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / link.partition("#")[0]).exists(), link
    named = set(re.findall(r"`([^`\n]+)`", text)) - ELSEWHERE
    homes = (ROOT, PACKAGE, *PACKAGE.glob("*"), *PACKAGE.glob("*/*"))
    for path in filter(PATH.fullmatch, named):
        assert any((home / path).exists() for home in homes), path
    files = (path for home in (PACKAGE, ROOT / "tests") for path in home.rglob("*.py"))
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))} | NO_CODE
    for word in (one for one in named if WORD.fullmatch(one) and not PATH.fullmatch(one)):
        assert set(re.findall(r"[A-Za-z_]\w*", word)) <= words, word


def test_the_picture_shows_every_module():
    """Of formats and containers their rooms; of everything else each module."""
    [picture] = [
        block.text for block in blocks((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")) if block.language == "text"
    ]
    shown = set(re.findall(r"\w+", picture))
    packages = {path.name: path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert re.findall(r"^(\w+)", picture, re.MULTILINE) == list(LAYERS)
    for name, package in packages.items():
        deep = package.glob("*.py") if name in ("formats", "containers") else package.rglob("*.py")
        rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert {path.stem for path in deep} - {"__init__"} | rooms <= shown
