"""Every promise on every hostile, damaged or odd file: one table, one assertion."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from chkpt_channels import verify
from chkpt_channels.core.errors import printable
from fixtures.generate.hostile import readings
from fixtures.generate.hostile.make import CASES, Case
from tests.support.sandbox import PEAK, Entry, Outcome, alone, broken, entries, forked

Run = Callable[..., Outcome]


def problems(case: Case, folder: Path, run: Run) -> list[str]:
    """What the program broke on this row."""
    home, place = folder / "in", folder / "out"
    home.mkdir()
    place.mkdir()
    source = case.made(home)
    out = place / f"result{'.weights.h5' if source.name.endswith('.weights.h5') else source.suffix}"
    case.place(out, source) if case.place else out.write_bytes(b"old content")
    before = entries(home), entries(place)
    force = () if "--no-force" in case.options else ("--force",)
    options = [option.replace("{home}", str(home)) for option in case.options if option != "--no-force"]
    outcome = run(["convert", str(source), "--to", "gray", "-o", str(out), *force, *options], folder, case.prepare)
    found = broken(case.code, case.says, outcome, folder, allowed=PEAK + (case.megabytes << 20))
    if (home / "marker").exists():
        found.append("marker: the file's own code was run")
    if entries(home) != before[0]:
        found.append(f"changed input: {set(before[0].items()) ^ set(entries(home).items())}")
    if case.code or "--dry-run" in options:
        difference = set(before[1].items()) ^ set(entries(place).items())
        return found + ([f"leftover: {difference}"] if difference else [])
    return found + unlisted(outcome, out, before[1]) + (after_success(case, source, out, before[1]) if outcome.code == 0 else [])


def unlisted(outcome: Outcome, out: Path, before: dict[str, Entry]) -> list[str]:
    """What appeared that the report does not list, or what it lists and did not appear."""
    (*_, listed) = re.findall(r"^  (?:beside it|its files): (.*)$", outcome.out, re.MULTILINE) or [""]
    names = {*listed.split(", ")} - {""}
    home = out if out.is_dir() else out.parent
    new = {name for name in entries(home) if (home / name).is_file() and (out.is_dir() or name not in before)}
    appeared = {printable(name) for name in new if out.is_dir() or name != out.name}
    return [f"listed: {names ^ appeared}"] if names != appeared else []


def after_success(case: Case, source: Path, out: Path, before: dict[str, Entry]) -> list[str]:
    """The output is the conversion, stands alone, and has the mode that it should have."""
    found = []
    if any(not name.startswith(out.name) for name in entries(out.parent).keys() - before.keys()):
        found.append(f"leftover: {sorted(entries(out.parent))}")
    mode = before[out.name][0] if out.name in before else stat.S_IFREG | 0o600
    if out.is_file() and out.lstat().st_mode != mode:
        found.append(f"mode: {out.lstat().st_mode:o}, not {mode:o}")
    follow = "--follow-links" in case.options
    kept = not case.holds or case.holds in out.read_bytes()
    if not case.megabytes and not (kept and verify(source, out, follow_links=follow).ok):  # large: slow
        found.append("unexpected exit: 0, and the result is not the conversion")
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_row(case: Case, tmp_path: Path, record_property: Callable[[str, object], None]):
    found = problems(case, tmp_path, forked)
    record_property("hostile", (case.format, found))
    assert not found


ONE_EACH = list({(case.format, case.code): case for case in CASES if not case.megabytes}.values())


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_row_as_a_user_starts_it(case: Case, tmp_path: Path):
    assert not problems(case, tmp_path, alone)


ENDS = {0: {"inspect": (0,), "check": (0,), "verify": (0,)}, 3: {"inspect": (3,), "check": (3,), "verify": (3,)}}
ENDS |= {4: {"inspect": (0, 4), "check": (0, 4), "verify": (0, 4)}}
"""How other commands end, by the code of a conversion: damage is found by each."""


@pytest.mark.parametrize("command", ["inspect", "check", "verify"])
@pytest.mark.parametrize("case", [case for case in readings.CASES if not case.options], ids=str)
def test_other_commands_read_it_alike(case: Case, command: str, tmp_path: Path):
    home = tmp_path / "in"
    home.mkdir()
    source = case.made(home)
    before = entries(home)
    outcome = forked([command, str(source), *([str(source)] if command == "verify" else [])], tmp_path)
    assert outcome.code in ENDS[case.code][command], outcome.err
    assert "Traceback" not in outcome.err
    assert entries(home) == before


def test_the_names_are_unique():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)
