"""Rows: shares that are disjoint and complete, and by what a row is known again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import UsageError, fleet
from chkpt_channels.api.fleet.row import absolute, identity, with_output_dir
from chkpt_channels.api.manifest import Job
from chkpt_channels.api.output.target import Settings

NAMES = st.lists(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=12), max_size=15)


def jobs(names: list[str]) -> list[Job]:
    return [Job(name, None, "gray", {}) for name in names]


@given(NAMES, st.integers(1, 20))
def test_shares_are_disjoint_and_complete(names: list[str], count: int):
    """Also where there are more of them than rows, and where a row occurs twice."""
    shares = [fleet.shard(jobs(names), f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(job.src for share in shares for job in share) == sorted(names)
    owners = [{job.src for job in share} for share in shares]
    assert sum(map(len, owners)) == len(set(names))


@given(NAMES, NAMES, st.integers(1, 5))
def test_a_list_that_grows_while_shards_begin_loses_no_row(names: list[str], more: list[str], count: int):
    """One shard sees the outputs of another under its pattern: what was in its share stays in it."""
    for i in range(1, count + 1):
        before, after = (fleet.shard(jobs(found), f"{i}/{count}") for found in (names, sorted([*more, *names])))
        assert set(map(str, before)) <= set(map(str, after))


def test_shares_are_about_equal():
    sizes = [len(fleet.shard(jobs([f"zoo/m{i}.pth" for i in range(800)]), f"{i}/8")) for i in range(1, 9)]
    assert 70 < min(sizes) <= 100 <= max(sizes) < 130


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "1/0", "-1/4", "1/4/2", "a/b", "", "1/4 ", "1/99999999999"])
def test_what_is_no_share(part: str):
    with pytest.raises(UsageError, match="--shard takes i/n"):
        fleet.shard(jobs(["a"]), part)


def test_a_row_is_known_again_by_all_that_its_output_hangs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("like.pth").write_bytes(b"1")
    job = Job("a.pth", "b.pth", "gray", {"like": "like.pth", "layers": ["conv1"]}, stated="m.toml: [[convert]] 1")
    first = identity(job, Settings())
    assert identity(job._replace(src=str(tmp_path / "a.pth"), stated=""), Settings(force=True, dry_run=True)) == first
    others = [job._replace(src="c.pth"), job._replace(dst="c.pth"), job._replace(to=1), job._replace(options={})]
    assert len({first, *(identity(other, Settings()) for other in others), identity(job, Settings(hash_name=True))}) == 6
    Path("like.pth").write_bytes(b"12")
    assert identity(job, Settings()) != first


def test_another_folder_gets_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    placed = absolute(Job("a.pth", "out/", "gray", {"like": "like.pth", "norm": "half"}))
    assert placed.src == f"{tmp_path}/a.pth"
    assert placed.dst == f"{tmp_path}/out{os.sep}"
    assert placed.options == {"like": f"{tmp_path}/like.pth", "norm": "half"}


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("-", "b.pth", "gray", {}), "standard input and output"),
        (Job("a.pth", "-", "gray", {}), "standard input and output"),
        (Job("s3://zoo/a/", "b", "gray", {}), "this is a folder in a store"),
        (Job("a", "s3://zoo/b/", "gray", {}), "this is a folder in a store"),
        (Job("https://zoo.org/a.pth?token=x", "b.pth", "gray", {}), "holds credentials"),
        (Job("a.pth", None, None, {"like": {"conv1.weight": np.ones(1)}}), "options in words"),
    ],
)
def test_what_cannot_leave_this_process(job: Job, words: str):
    with pytest.raises(UsageError, match=words):
        absolute(job)


def test_rows_of_a_manifest(tmp_path: Path):
    for name in "abcd":
        (tmp_path / f"{name}.pth").touch()
    (tmp_path / "m.toml").write_text('[[convert]]\nsrc = "*.pth"\nto = "gray"\n')
    found = fleet.rows(tmp_path / "m.toml", output_dir="gray")
    assert [(Path(row.src).name, row.dst) for row in found] == [(f"{n}.pth", f"gray/{n}_gray.pth") for n in "abcd"]
    shares = [fleet.rows(tmp_path / "m.toml", output_dir="gray", part=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(row for share in shares for row in share) == found


def test_outputs_in_a_bucket():
    (job,) = with_output_dir("s3://zoo/gray/", [Job("a/b.pth", None, "gray", {})])
    assert (job.dst, job.makes_folder) == ("s3://zoo/gray/b_gray.pth", False)
