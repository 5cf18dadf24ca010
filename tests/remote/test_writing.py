"""Outputs in a bucket: byte for byte what a file gets, and the name is absent or old whatever goes wrong."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import chkpt_channels
from chkpt_channels.core.errors import ChkptChannelsError, FileSystemError, PostPublishError
from chkpt_channels.storage.stores import upload
from tests.contract.test_killed import big_zip
from tests.remote.conftest import Bucket, Zoo
from tests.support.files import FIXTURES, truths
from tests.support.stores import Answer

FILES = [pytest.param(truth.path, id=str(truth)) for truth in truths() if truth.path.is_file()]
SMALL = FIXTURES / "safetensors" / "half.safetensors"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_HONOURS", {})


def content(bucket: Bucket, key: str) -> bytes:
    data: bytes = bucket.client.get_object(Bucket="zoo", Key=key)["Body"].read()
    return data


def keys(bucket: Bucket) -> set[str]:
    return {entry["Key"] for entry in bucket.client.list_objects_v2(Bucket="zoo").get("Contents", ())}


def uploads(bucket: Bucket) -> list[Any]:
    found: list[Any] = bucket.client.list_multipart_uploads(Bucket="zoo").get("Uploads", [])
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 MiB: what stays is copied."""
    path = tmp_path_factory.mktemp("large") / "a.safetensors"
    tensors = {"conv1.weight": np.random.default_rng(0).random((8, 3, 3, 3), np.float32), "conv1.bias": np.zeros(8, np.float32)}
    rows = np.random.default_rng(1).random((24 << 14, 16), np.float32)
    save_file({**tensors, "conv2.weight": np.zeros((16, 8, 3, 3), np.float32), "fc.weight": rows}, path)
    return path


@pytest.fixture(scope="module")
def large_gray(large: Path) -> bytes:
    chkpt_channels.convert(large, large.with_name("gray.safetensors"), to="gray")
    return large.with_name("gray.safetensors").read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_bucket_to_bucket_is_what_a_file_gets(file: Path, bucket: Bucket, tmp_path: Path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    here, there = tmp_path / "in" / file.name, tmp_path / "out" / file.name
    shutil.copy(file, here)
    source, target = bucket.put(f"in/{file.name}", file), f"s3://zoo/out/{file.name}"
    refused, to = "", "gray"
    try:
        counts = {conv.in_channels for conv in chkpt_channels.inspect(here).first_convs}
        to = "gray" if counts != {1} else "rgb"
        local = chkpt_channels.convert(here, there, to=to)
    except ChkptChannelsError as error:
        refused = error.what
    if refused or (b"location" in file.read_bytes() and file.suffix == ".onnx"):
        with pytest.raises(ChkptChannelsError) as raised:
            chkpt_channels.convert(source, target, to=to)
        assert raised.value.what == refused or "data file" in raised.value.what
        assert keys(bucket) == {f"in/{file.name}"}
    else:
        report = chkpt_channels.convert(source, target, to=to)
        assert content(bucket, f"out/{file.name}") == there.read_bytes()
        assert (report.status, report.kernels, report.target) == (local.status, local.kernels, target)
        assert keys(bucket) == {f"in/{file.name}", f"out/{file.name}"}
    assert uploads(bucket) == []


def test_what_stays_is_copied_there(large: Path, large_gray: bytes, bucket: Bucket):
    source = bucket.put("a.safetensors", large)
    bucket.server.log.clear()
    report = chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    assert content(bucket, "b.safetensors") == large_gray
    moved = report.transfer
    assert moved is not None
    assert (moved.how, moved.overwrite_guard) == ("copied", "store")
    assert moved.copied_bytes + moved.written_bytes == len(large_gray)
    assert (
        moved.copied_bytes == moved.unverified_bytes - 5 * MIB + moved.written_bytes - 5 * MIB + 0
        or moved.copied_bytes > 18 * MIB
    )
    assert sum(entry.received for entry in bucket.server.log if entry.method == "PUT") == moved.written_bytes + 1  # the probe's
    assert 0 <= moved.requests - len(bucket.server.log) <= 2  # a connection that was closed is asked again
    assert sum(entry.sent for entry in bucket.server.log) < 6 * MIB
    assert chkpt_channels.verify(source, "s3://zoo/b.safetensors").ok


@pytest.mark.parametrize("folder", ["a folder", "50% of it", "who?", "é+ü", "a#b"])
def test_without_a_name_it_lies_beside_its_source(folder: str, bucket: Bucket):
    source = bucket.put(f"{folder}/half.safetensors", SMALL)
    assert chkpt_channels.convert(source, to="gray").status == "converted"
    assert keys(bucket) == {f"{folder}/half.safetensors", f"{folder}/half_gray.safetensors"}


def test_a_file_and_a_web_servers_object_are_streamed(large: Path, large_gray: bytes, bucket: Bucket, web: Zoo):
    shutil.copy(large, web.root / "a.safetensors")
    for source in (large, web.url("a.safetensors")):
        moved = chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray", force=True).transfer
        assert content(bucket, "b.safetensors") == large_gray
        assert moved is not None
        assert (moved.how, moved.copied_bytes, moved.unverified_bytes) == ("streamed", 0, 0)


def test_damage_is_found_while_it_passes_by(bucket: Bucket, tmp_path: Path):
    """In a tensor that does not change: a zip archive states its CRC."""
    sound = FIXTURES / "torch_zip" / "state_dict.pth"
    stays = max(
        (piece for piece in chkpt_channels.patch(sound, "gray").pieces if piece.data is None), key=lambda piece: piece.size
    )
    data = bytearray(sound.read_bytes())
    data[stays.start + stays.size // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(ChkptChannelsError, match="CRC-32"):
        chkpt_channels.convert(bucket.put("a.pth", tmp_path / "a.pth"), "s3://zoo/b.pth", to="gray")
    assert (keys(bucket), uploads(bucket)) == ({"a.pth"}, [])


def test_a_name_that_is_taken(bucket: Bucket):
    source, old = bucket.put("a.safetensors", SMALL), bucket.put("b.safetensors", SMALL)
    with pytest.raises(ChkptChannelsError, match="exists already") as raised:
        chkpt_channels.convert(source, old, to="gray")
    assert raised.value.exit_code == 5
    assert not any(entry.received for entry in bucket.server.log)
    with pytest.raises(ChkptChannelsError, match="is the input itself"):
        chkpt_channels.convert(source, source, to="gray", force=True)
    assert chkpt_channels.convert(source, old, to="gray", force=True).status == "converted"
    assert chkpt_channels.inspect(old).first_convs[0].in_channels == 1
    bucket.server.log.clear()
    assert chkpt_channels.convert(source, old, to="gray").status == "current"
    assert {entry.method for entry in bucket.server.log} == {"GET", "HEAD"}


@pytest.mark.parametrize(("force", "at"), [(False, "POST"), (False, "GET"), (True, "GET")])
def test_what_another_made_meanwhile_is_not_replaced(force: bool, at: str, bucket: Bucket):
    """Just before the upload is completed, which the condition shows, or while its parts are listed, which the last look does."""
    source = bucket.put("a.safetensors", SMALL)
    if force:
        bucket.put("b.safetensors", SMALL)

    def before(method: str, path: str) -> Answer | None:
        if method == at and "uploadId" in path and "/b.safetensors?" in path:
            bucket.client.put_object(Bucket="zoo", Key="b.safetensors", Body=b"another's")
        return None

    bucket.server.before = before
    with pytest.raises(ChkptChannelsError, match="by another meanwhile"):
        chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray", force=force)
    assert content(bucket, "b.safetensors") == b"another's"
    assert uploads(bucket) == []


def dropping(bucket: Bucket, *names: str) -> None:
    """The store does not see these headers."""
    honest = bucket.server.store
    bucket.server.store = lambda method, path, headers, body: honest(
        method, path, {name: value for name, value in headers.items() if name not in names}, body
    )


def test_a_store_that_ignores_conditions_is_told(bucket: Bucket):
    source = bucket.put("a.safetensors", SMALL)
    dropping(bucket, "if-none-match", "if-match")
    moved = chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray").transfer
    assert moved is not None
    assert moved.overwrite_guard == "looked"
    assert keys(bucket) == {"a.safetensors", "b.safetensors"}  # nothing stays of the try


NO_COPIES: dict[str, Callable[[Answer], Answer]] = {
    "501": lambda answer: Answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>"),
    "405": lambda answer: Answer(405, {}, b"<Error><Code>MethodNotAllowed</Code></Error>"),
    "200 without a result": lambda answer: Answer(200, {}, b""),
}


def copies(bucket: Bucket, change: Callable[[Answer], Answer]) -> None:
    """What the store answers to a copy of a part."""
    honest = bucket.server.store

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        return (
            change(honest(method, path, headers, body)) if "x-amz-copy-source" in headers else honest(method, path, headers, body)
        )

    bucket.server.store = store


@pytest.mark.parametrize("how", NO_COPIES)
def test_without_copies_all_is_streamed(how: str, large: Path, large_gray: bytes, bucket: Bucket):
    source = bucket.put("a.safetensors", large)
    copies(bucket, NO_COPIES[how])
    told: list[tuple[int, int]] = []
    report = chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray", progress=lambda *step: told.append(step))
    moved = report.transfer
    assert content(bucket, "b.safetensors") == large_gray
    assert moved is not None
    assert (moved.how, moved.unverified_bytes) == ("streamed", 0)
    assert sum(more for more, _ in told) == len(large_gray)
    assert uploads(bucket) == []


def test_a_store_that_puts_copied_tags_in_no_quotes(large: Path, large_gray: bytes, bucket: Bucket):
    """As Ceph does, which lists the same parts with them."""
    source = bucket.put("a.safetensors", large)

    def bare(answer: Answer) -> Answer:
        body = answer.body.replace(b"&quot;", b"").replace(b'<ETag>"', b"<ETag>").replace(b'"</ETag>', b"</ETag>")
        assert body != answer.body
        return answer._replace(headers={**answer.headers, "content-length": str(len(body))}, body=body)

    copies(bucket, bare)
    assert chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray").status == "converted"
    assert content(bucket, "b.safetensors") == large_gray


def test_a_copy_of_the_wrong_bytes_is_found(large: Path, bucket: Bucket):
    source = bucket.put("a.safetensors", large)
    honest = bucket.server.store

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if span := headers.get("x-amz-copy-source-range"):
            first, last = map(int, re.findall(r"\d+", span))
            headers = {**headers, "x-amz-copy-source-range": f"bytes={first - 8}-{last - 8}"}
        return honest(method, path, headers, body)

    bucket.server.store = store
    with pytest.raises(PostPublishError, match="does not read back"):
        chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")


def test_a_source_that_is_replaced_meanwhile(large: Path, bucket: Bucket):
    source = bucket.put("a.safetensors", large)

    def before(method: str, path: str) -> Answer | None:
        if method == "GET" and "uploadId" in path:  # the parts are listed: all were copied
            bucket.put("a.safetensors", SMALL)
        return None

    bucket.server.before = before
    with pytest.raises(ChkptChannelsError, match="was changed while it was read"):
        chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    assert (keys(bucket), uploads(bucket)) == ({"a.safetensors"}, [])


def test_what_is_known_of_an_object_goes_along(bucket: Bucket):
    source = bucket.put("a.safetensors", SMALL)
    words = {"ContentType": "application/x-weights", "CacheControl": "max-age=60", "Metadata": {"trained": "here"}}
    words |= {"StorageClass": "STANDARD_IA", "ServerSideEncryption": "AES256"}
    bucket.client.put_object(Bucket="zoo", Key="a.safetensors", Body=SMALL.read_bytes(), **words)
    chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    head = bucket.client.head_object(Bucket="zoo", Key="b.safetensors")
    assert {name: head[name] for name in words} == words


def checking(bucket: Bucket) -> None:
    """A store that compares the CRC-32 of the whole object with what is sent along, as S3 does: moto ignores it."""
    honest = bucket.server.store

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = honest(method, path, headers, body)
        wanted = headers.get("x-amz-checksum-crc32")
        if method == "POST" and "uploadId" in path and wanted and answer.status == 200:
            key = path.partition("?")[0].removeprefix("/zoo/")
            found = base64.b64encode(zlib.crc32(content(bucket, key)).to_bytes(4, "big")).decode()
            if found != wanted:
                bucket.client.delete_object(Bucket="zoo", Key=key)
                return Answer(400, {}, b"<Error><Code>BadDigest</Code></Error>")
            more = f"<ChecksumCRC32>{found}</ChecksumCRC32></CompleteM".encode()
            told = answer.body.replace(b"</CompleteM", more)
            return Answer(200, {**answer.headers, "content-length": str(len(told))}, told)
        return answer

    bucket.server.store = store


def test_a_store_that_checks_finds_damage_that_nobody_read(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.contract.test_killed.SIZE", 24 * MIB)
    path = big_zip(tmp_path / "a.pth")
    checking(bucket)
    moved = chkpt_channels.convert(bucket.put("a.pth", path), "s3://zoo/b.pth", to="gray").transfer
    assert moved is not None
    assert (moved.how, moved.unverified_bytes) == ("copied", 0)
    chkpt_channels.convert(path, tmp_path / "b.pth", to="gray")
    assert content(bucket, "b.pth") == (tmp_path / "b.pth").read_bytes()
    with path.open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"\1")
    with pytest.raises(ChkptChannelsError, match=r"^s3://zoo/a\.pth: .*another CRC-32") as raised:
        chkpt_channels.convert(bucket.put("a.pth", path), "s3://zoo/c.pth", to="gray")
    assert raised.value.exit_code == 3
    assert (keys(bucket), uploads(bucket)) == ({"a.pth", "b.pth"}, [])


# Whatever goes wrong


def asked(bucket: Bucket, file: Path) -> int:
    """How many requests a conversion takes."""
    source = bucket.put("a.safetensors", file)
    bucket.server.log.clear()
    chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    bucket.client.delete_object(Bucket="zoo", Key="b.safetensors")
    return len(bucket.server.log)


def at_the(number: int, act: Callable[[], Answer | None]) -> Callable[[str, str], Answer | None]:
    """What happens in the place of one request, the first being 0."""
    numbers: Iterator[int] = iter(range(10_000))
    return lambda method, path: act() if next(numbers) == number else None


def refuses() -> Answer:
    return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.mark.parametrize("kind", ["copied", "streamed"])
def test_a_fault_at_every_request(kind: str, large: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    file = large if kind == "copied" else SMALL
    count = asked(bucket, file)
    assert count > 15
    ends, told = [], ""
    for number in range(count):
        monkeypatch.setattr(upload, "_HONOURS", {})
        bucket.server.before = at_the(number, refuses)
        try:
            chkpt_channels.convert("s3://zoo/a.safetensors", "s3://zoo/b.safetensors", to="gray")
            ends.append("done")
        except PostPublishError:
            ends.append("late")
        except FileSystemError as error:
            ends.append("refused")
            told = error.hint
        bucket.server.before = lambda method, path: None
        left = [key for key in keys(bucket) if key.endswith(".probe")] + [entry["UploadId"] for entry in uploads(bucket)]
        assert all(one in told for one in left), (number, left)  # the request that removes it was refused
        assert ("b.safetensors" in keys(bucket)) == (ends[-1] != "refused"), number
        for key in keys(bucket) - {"a.safetensors"}:
            bucket.client.delete_object(Bucket="zoo", Key=key)
        for entry in uploads(bucket):
            bucket.client.abort_multipart_upload(Bucket="zoo", Key=entry["Key"], UploadId=entry["UploadId"])
    assert ends.count("refused") >= count - 6


PROGRAM = "from chkpt_channels.__main__ import main; main()"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_ended_at_any_request(number: signal.Signals, large: Path, large_gray: bytes, bucket: Bucket):
    count = asked(bucket, large)
    command = [sys.executable, "-c", PROGRAM, "convert", "s3://zoo/a.safetensors", "-o", "s3://zoo/b.safetensors", "--to", "gray"]
    moments = sorted({round(at * (count - 1) / 19) for at in range(20)})
    for moment in moments:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))

        def end(child: subprocess.Popen[bytes] = child) -> None:
            child.send_signal(number)

        bucket.server.before = at_the(moment, end)
        child.wait()
        bucket.server.before = lambda method, path: None
        there = keys(bucket)
        assert "b.safetensors" not in there or content(bucket, "b.safetensors") == large_gray, moment
        if number == signal.SIGTERM:
            assert (child.returncode, uploads(bucket)) == (143, []), moment
            assert not [key for key in there if key.endswith(".probe")], moment
        for key in there - {"a.safetensors"}:
            bucket.client.delete_object(Bucket="zoo", Key=key)
        for entry in uploads(bucket):
            with suppress(bucket.client.exceptions.NoSuchUpload):  # the killed one's last request is still at work
                bucket.client.abort_multipart_upload(Bucket="zoo", Key=entry["Key"], UploadId=entry["UploadId"])


@pytest.mark.parametrize("whom", ["driver", "group"])
def test_workers_that_are_ended_leave_nothing(whom: str, large: Path, bucket: Bucket):
    """SIGTERM to the driver of `-j 2`, or to it and its workers, as shells and containers send it."""
    sources = [bucket.put(f"{name}.safetensors", large) for name in "ab"]
    command = [sys.executable, "-c", PROGRAM, "convert", *sources, "--output-dir", "s3://zoo/out/", "--to", "gray", "-j", "2"]
    ends, before = set[int](), keys(bucket)
    for moment in (18, 32):  # of some 45 requests; at both of them both are at work
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

        def end(child: subprocess.Popen[bytes] = child) -> None:
            (os.kill if whom == "driver" else os.killpg)(child.pid, signal.SIGTERM)

        bucket.server.before = at_the(moment, end)
        ends.add(child.wait())
        bucket.server.before = lambda method, path: None
        assert uploads(bucket) == [], moment
        for key in keys(bucket) - before:
            assert not key.endswith(".probe"), moment
            bucket.client.delete_object(Bucket="zoo", Key=key)
    assert ends == {143}


def test_an_upload_that_cannot_be_removed_is_named(bucket: Bucket):
    source = bucket.put("a.safetensors", SMALL)

    def before(method: str, path: str) -> Answer | None:
        ours = "/b.safetensors?" in path and "uploadId" in path
        return refuses() if ours and method in ("PUT", "DELETE") else None

    bucket.server.before = before
    with pytest.raises(ChkptChannelsError, match="could not be removed") as raised:
        chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    (left,) = uploads(bucket)
    assert left["UploadId"] in raised.value.hint
    assert raised.value.hint.startswith("aws s3api abort-multipart-upload --bucket zoo --key b.safetensors")


def test_the_text_and_the_json_say_how_it_came_there(large: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]):
    from chkpt_channels.cli.app import run

    source = bucket.put("a.safetensors", large)
    assert run(["convert", source, "-o", "s3://zoo/b.safetensors", "--to", "gray"]) == 0
    said = capsys.readouterr().out
    assert "MiB copied there; " in said
    assert "  Load   once aws s3 cp s3://zoo/b.safetensors . has fetched it" in said
    assert run(["convert", source, "--output-dir", "s3://zoo/out/", "--to", "gray", "--json"]) == 0
    assert '"how": "copied"' in capsys.readouterr().out
    assert "out/a_gray.safetensors" in keys(bucket)
