"""Runs over objects with a memory: two looks a row, and what was done is not done again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chkpt_channels import fleet
from chkpt_channels.api.manifest import Job
from chkpt_channels.core.errors import OutputExistsError, UsageError
from tests.remote.conftest import Bucket, Zoo
from tests.remote.test_writing import SMALL, content, keys
from tests.support.files import FIXTURES

OTHER = FIXTURES / "safetensors" / "model.safetensors"


def rows(bucket: Bucket) -> list[Job]:
    return [Job(bucket.put(f"{name}.safetensors", SMALL), f"s3://zoo/gray/{name}.safetensors", "gray", {}) for name in "abc"]


def again(jobs: list[Job], ledger: Path) -> list[str]:
    """What became of each row: its status, or the class of its error."""
    found = []
    for outcome in fleet.run(jobs, ledger=str(ledger), resume=True):
        status = outcome.report.status if outcome.report else outcome.line.status if outcome.line else ""
        found.append(type(outcome.error).__name__ if outcome.error else status)
    return found


def test_what_was_done_is_looked_at_and_left(bucket: Bucket, tmp_path: Path):
    jobs, ledger = rows(bucket), tmp_path / "zoo.jsonl"
    assert again(jobs, ledger) == ["converted"] * 3
    made = {key: content(bucket, key) for key in keys(bucket)}
    bucket.server.log.clear()
    assert again(jobs, ledger) == ["skipped"] * 3
    assert [(request.method, request.span) for request in bucket.server.log] == [("GET", "bytes=0-0")] * 6
    bucket.client.delete_object(Bucket="zoo", Key="gray/a.safetensors")  # type: ignore[attr-defined]
    assert again(jobs, ledger) == ["converted", "skipped", "skipped"]
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))  # as SIGKILL leaves it: two are not known
    assert again(jobs, ledger) == ["skipped", "current", "current"]
    assert {key: content(bucket, key) for key in keys(bucket)} == made


def test_what_was_changed_since_is_told(bucket: Bucket, tmp_path: Path):
    jobs, ledger = rows(bucket), tmp_path / "zoo.jsonl"
    again(jobs, ledger)
    bucket.put("a.safetensors", OTHER)
    bucket.put("gray/b.safetensors", OTHER)
    assert again(jobs, ledger) == [OutputExistsError.__name__, OutputExistsError.__name__, "skipped"]
    forced = fleet.run(jobs, ledger=str(ledger), resume=True, force=True)
    assert [outcome.get().result()["status"] for outcome in forced] == ["converted", "converted", "skipped"]
    assert again(jobs, ledger) == ["skipped"] * 3


def test_an_executor_gets_urls(hugging: Zoo, web: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for zoo in (hugging, web):
        (zoo.root / "a.safetensors").write_bytes(SMALL.read_bytes())
    (tmp_path / "like.safetensors").write_bytes(SMALL.read_bytes())
    jobs = [Job(zoo.url("a.safetensors"), f"{n}.safetensors", "gray", {}) for n, zoo in enumerate((hugging, web))]
    ledger = str(tmp_path / "zoo.jsonl")
    with ThreadPoolExecutor(1) as pool:
        assert [outcome.get().result()["status"] for outcome in fleet.run(jobs, pool, ledger=ledger)] == ["converted"] * 2
        found = [outcome.get().result()["status"] for outcome in fleet.run(jobs, pool, ledger=ledger, resume=True)]
    assert found == ["skipped"] * 2


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("s3://zoo/a/", "s3://zoo/b/", "gray", {}), "is a folder in a store"),
        (Job("https://zoo.org/a.pth?token=secret", "b.pth", "gray", {}), "holds credentials"),
    ],
)
def test_what_is_refused(job: Job, message: str, tmp_path: Path):
    with pytest.raises(UsageError, match=message):
        list(fleet.run([job], ledger=str(tmp_path / "zoo.jsonl")))
    assert not list(tmp_path.iterdir())
