"""Model folders in a bucket: file by file what a folder here becomes, the index last; nothing where something fails."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import chkpt_channels
from chkpt_channels.cli.app import run
from chkpt_channels.core import interrupts
from chkpt_channels.core.errors import (
    ChkptChannelsError,
    DamagedError,
    FileSystemError,
    OutputExistsError,
    UnsupportedError,
    UsageError,
)
from chkpt_channels.storage.stores import upload
from tests.remote.conftest import Bucket
from tests.remote.test_writing import content, keys, uploads
from tests.support.files import FIXTURES
from tests.support.stores import Answer

INDEX = "model.safetensors.index.json"
CONFIG = {"model_type": "resnet", "num_channels": 3, "architectures": ["ResNetForImageClassification"]}
SHARDS, MIB = 2, 1 << 20


@pytest.fixture(autouse=True)
def tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_HONOURS", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 17 MiB, so that the store copies parts."""
    return made(tmp_path_factory.mktemp("model") / "resnet", 17 << 8)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("small") / "resnet", 1)


def made(home: Path, rows: int) -> Path:
    """A model of two shards with so many rows of 4 KiB, the first with the stem, an index, configurations, and other files."""
    (home / "docs").mkdir(parents=True)
    chance, weight_map = np.random.default_rng(0), {}
    for number in range(SHARDS):
        tensors = {f"layer{number}.weight": chance.random((rows, 1024), np.float32)}
        if not number:
            stem = {"conv1.weight": chance.random((8, 3, 3, 3), np.float32), "conv1.bias": np.zeros(8, np.float32)}
            tensors = {**stem, "conv2.weight": np.zeros((16, 8, 3, 3), np.float32), **tensors}
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(tensors, home / name)
        weight_map |= dict.fromkeys(tensors, name)
    size = sum(path.stat().st_size for path in home.glob("*.safetensors"))
    (home / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    (home / "config.json").write_text(json.dumps(CONFIG))
    (home / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    (home / "README.md").write_text("# A model\n")
    (home / "docs" / "empty.txt").write_bytes(b"")
    chkpt_channels.convert(home, home.with_name("gray"), to="gray")
    return home


@pytest.fixture(scope="module")
def gray(folder: Path) -> dict[str, bytes]:
    return files(folder.with_name("gray"))


def files(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def put(bucket: Bucket, home: Path, prefix: str = "in/resnet/") -> str:
    for path in home.rglob("*"):
        if path.is_file():
            bucket.put(f"{prefix}{path.relative_to(home)}", path)
    bucket.server.log.clear()
    return f"s3://zoo/{prefix}"


def under(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(prefix): content(bucket, key) for key in keys(bucket) if key.startswith(prefix)}


def test_a_folder_becomes_another(folder: Path, gray: dict[str, bytes], bucket: Bucket):
    source = put(bucket, folder)
    report = chkpt_channels.convert(source, "s3://zoo/out/gray/", to="gray")
    log = [*bucket.server.log]
    assert under(bucket, "out/gray/") == gray
    assert uploads(bucket) == []
    moved = report.transfer
    assert moved is not None
    assert (report.status, report.target, moved.how) == ("converted", "s3://zoo/out/gray/", "copied")
    assert moved.copied_bytes > (SHARDS * 17 - 6) * MIB
    assert sum(request.sent + request.received for request in log) < 14 * MIB
    named = [request.path for request in log if request.method in ("PUT", "POST") and "/out/gray/" in request.path]
    assert named[-1].partition("?")[0].endswith(INDEX)
    assert report.target + "config.json" in report.beside
    assert f"{source}config.json" in {change.file for change in report.declarations}
    assert all(change.file.startswith(source) for change in report.declarations)


def test_of_shards_that_stay_only_headers_are_read(bucket: Bucket, tmp_path: Path):
    """Here and in the output: not one byte of a tensor."""
    home, count, edited = tmp_path / "sharded", 6, "model-00004-of-00006.safetensors"
    headers = sharded(home, count, 3)
    chkpt_channels.convert(home, tmp_path / "gray", to="gray")
    source = put(bucket, home, "in/sharded/")
    moved = chkpt_channels.convert(source, "s3://zoo/out/", to="gray").transfer
    log = [*bucket.server.log]
    assert under(bucket, "out/") == files(tmp_path / "gray")
    assert moved is not None
    assert (moved.how, moved.copied_bytes > (count - 1) * 5 * MIB) == ("copied", True)
    stays = [request for request in log if "/model-0" in request.path and edited not in request.path]
    gets = [request for request in stays if request.method == "GET" and request.span]
    assert len(gets) == 3 * (count - 1)  # of the source its header in two, of the output a look
    for request in gets:
        stop = int(request.span.rpartition("-")[2]) + 1
        assert stop <= headers[request.path.partition("?")[0].rpartition("/")[2]], request
    assert sum(request.received for request in stays) < 10_000  # what the store is to do


def sharded(home: Path, count: int, stem_in: int) -> dict[str, int]:
    """A model of so many sparse shards of 5 MiB and more, one with the stem; where the header of each ends."""
    home.mkdir()
    headers, weight_map = {}, {}
    for number in range(count):
        rows = 200 if number == stem_in else 64  # of 18 MiB the store copies most, where they are edited
        shapes: dict[str, tuple[int, ...]] = {f"layers.{number}.{n}.weight": (rows, 1400) for n in range(16)}
        if number == stem_in:
            shapes |= {"conv1.weight": (8, 3, 3, 3), "conv1.bias": (8,), "conv2.weight": (16, 8, 3, 3)}
        name, entries, at = f"model-{number + 1:05}-of-{count:05}.safetensors", {}, 0
        for key, shape in shapes.items():
            stop = at + 4 * prod(shape)
            entries[key], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, stop]}, stop
        text = json.dumps(entries).encode()
        with (home / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            headers[name] = file.tell()
            file.truncate(file.tell() + at)
        weight_map |= dict.fromkeys(shapes, name)
    (home / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return headers


@pytest.mark.parametrize("edited", [True, False])
def test_data_files_go_with_their_model(edited: bool, bucket: Bucket, tmp_path: Path):
    home = tmp_path / "net"
    home.mkdir()
    for path in (FIXTURES / "onnx").glob("external.onnx*"):
        shutil.copy(path, home)
    assert len(list(home.iterdir())) > 1
    to, source = "gray" if edited else "rgb", put(bucket, home, "in/net/")
    chkpt_channels.convert(home, tmp_path / "out", to=to)
    chkpt_channels.convert(source, "s3://zoo/out/", to=to)
    assert under(bucket, "out/") == files(tmp_path / "out")
    assert chkpt_channels.verify(source, "s3://zoo/out/", to=to).ok
    assert run(["check", source, "--expect", "rgb", "-q"]) == 0
    with pytest.raises(UnsupportedError, match="in the data file") as refused:
        chkpt_channels.convert(f"{source}external.onnx", "s3://zoo/a.onnx", to="gray")
    assert refused.value.hint == "convert the folder that both are in"


def test_it_lies_beside_its_source(folder: Path, gray: dict[str, bytes], bucket: Bucket, capsys: pytest.CaptureFixture[str]):
    source = put(bucket, folder, "resnet/")
    assert run(["inspect", source]) == 0
    assert "conv1.weight" in capsys.readouterr().out
    assert run(["convert", source, "--to", "gray"]) == 0
    assert "s3://zoo/resnet_gray/" in capsys.readouterr().out
    assert under(bucket, "resnet_gray/") == gray
    with pytest.raises(OutputExistsError, match="resnet_gray/: is not empty"):
        chkpt_channels.convert(source, to="gray", force=True)
    assert run(["convert", source, "--to", "gray", "--output-dir", "s3://zoo/all/"]) == 0
    assert under(bucket, "all/resnet_gray/") == gray


def test_from_here_and_to_here(folder: Path, gray: dict[str, bytes], bucket: Bucket, tmp_path: Path):
    moved = chkpt_channels.convert(folder, "s3://zoo/up/", to="gray").transfer
    assert under(bucket, "up/") == gray
    assert moved is not None
    assert moved.how == "streamed"
    chkpt_channels.convert(put(bucket, folder), tmp_path / "down", to="gray")
    assert files(tmp_path / "down") == gray
    with pytest.raises(OutputExistsError):
        chkpt_channels.convert("s3://zoo/in/resnet/", tmp_path / "down", to="gray")


def said(arguments: list[str], names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command and its report, in which these names are replaced."""
    capsys.readouterr()
    code, report = run([*arguments, "--json"]), capsys.readouterr().out
    for name, other in names.items():
        report = report.replace(name, other)
    return code, report


def test_what_is_asked_of_a_folder_here_is_asked_of_one_in_a_bucket(
    small: Path, bucket: Bucket, capsys: pytest.CaptureFixture[str]
):
    ours = small.with_name("gray")
    source, made = put(bucket, small), put(bucket, ours, "out/gray/")
    names = {f"{ours}/": made, f"{small}/": source, str(ours): made, str(small): source}
    for words in (["check", "IN", "OUT", "--expect", "gray"], ["verify", "IN", "OUT"]):
        here = [{"IN": str(small), "OUT": str(ours)}.get(word, word) for word in words]
        there = [{"IN": source, "OUT": made}.get(word, word) for word in words]
        assert said(there, names, capsys) == said(here, names, capsys)
    assert run(["verify", str(small), made, "-q"]) == 0
    assert run(["convert", source, "-o", made, "--to", "gray", "--check", "-q"]) == 0
    bucket.client.put_object(Bucket="zoo", Key="out/gray/README.md", Body=b"another\n")  # type: ignore[attr-defined]
    assert [change.key for change in chkpt_channels.verify(source, made).differences] == ["README.md"]
    bucket.client.put_object(Bucket="zoo", Key="out/gray/config.json", Body=json.dumps(CONFIG).encode())  # type: ignore[attr-defined]
    code, report = said(["check", made], {}, capsys)
    assert code == 1
    assert f"{made}config.json" in report
    assert said(["check", "s3://zoo/none/", made, "-q"], {}, capsys)[0] == 5
    assert chkpt_channels.convert(source, "s3://zoo/liked/", like=made).status == "converted"


def test_dry_runs_make_nothing(folder: Path, bucket: Bucket):
    source, before = put(bucket, folder), keys(bucket)
    report = chkpt_channels.convert(source, "s3://zoo/out/", to="gray", dry_run=True)
    assert (report.target, keys(bucket)) == ("s3://zoo/out/", before)
    assert {request.method for request in bucket.server.log} <= {"GET", "HEAD"}


def test_a_fault_at_every_request_leaves_nothing(folder: Path, bucket: Bucket):
    """At every ninth of those that write, and at the last ones, which give the names."""
    source, before = put(bucket, folder), keys(bucket)
    number = count()

    def counting(method: str, path: str) -> Answer | None:
        if method in ("PUT", "POST") and "/out/" in path and ".probe" not in path:
            next(number)
        return None

    bucket.server.before = counting
    chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
    total = next(number)
    for failing in [*range(0, total, 9), *range(total - 6, total)]:
        for key in keys(bucket) - before:
            bucket.client.delete_object(Bucket="zoo", Key=key)  # type: ignore[attr-defined]
        here = count()

        def refuses(method: str, path: str, failing: int = failing, here: Any = here) -> Answer | None:
            if method in ("PUT", "POST") and "/out/" in path and ".probe" not in path and next(here) == failing:
                return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return None

        bucket.server.before = refuses
        with pytest.raises(FileSystemError):
            chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
        bucket.server.before = lambda method, path: None
        assert (keys(bucket), uploads(bucket)) == (before, []), failing


def test_what_was_published_is_taken_back(folder: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    """Where a name is given and its answer lost, where the last look fails, and where an interrupt comes meanwhile."""
    source, before = put(bucket, folder), keys(bucket)
    honest = bucket.server.store

    def loses(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = honest(method, path, headers, body)
        return Answer(500, {}, b"") if method == "PUT" and path.endswith("/out/README.md") else answer

    bucket.server.store = loses
    chkpt_channels.convert(source, "s3://zoo/out/", to="gray")  # its retry finds what is ours
    bucket.server.store = honest
    for key in keys(bucket) - before:
        bucket.client.delete_object(Bucket="zoo", Key=key)  # type: ignore[attr-defined]

    def interrupts_at(method: str, path: str) -> Answer | None:
        if method == "PUT" and path.endswith("/out/config.json"):
            monkeypatch.setattr(interrupts, "_received", 2)
        return None

    bucket.server.before = interrupts_at
    with pytest.raises(interrupts.Interrupted):
        chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
    monkeypatch.setattr(interrupts, "_received", 0)

    def no_look(method: str, path: str) -> Answer | None:
        is_last = method == "GET" and "/out/model-00001" in path and "uploadId" not in path
        return Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>") if is_last else None

    bucket.server.before = no_look
    with pytest.raises(FileSystemError, match="could not be read again"):
        chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
    bucket.server.before = lambda method, path: None
    assert (keys(bucket), uploads(bucket)) == (before, [])


def test_headers_go_along(folder: Path, bucket: Bucket):
    source, about = put(bucket, folder), {"ContentType": "application/json", "CacheControl": "no-cache", "Metadata": {"a": "b"}}
    client: Any = bucket.client
    client.put_object(Bucket="zoo", Key="in/resnet/config.json", Body=(folder / "config.json").read_bytes(), **about)
    chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
    head = client.head_object(Bucket="zoo", Key="out/config.json")
    assert {name: head[name] for name in about} == about


def test_an_output_is_apart_from_its_source(folder: Path, bucket: Bucket):
    source = put(bucket, folder)
    with pytest.raises(OutputExistsError, match="in the folder that is converted"):
        chkpt_channels.convert(source, f"{source}gray/", to="gray")
    with pytest.raises(UsageError, match="whole bucket"):
        chkpt_channels.convert("s3://zoo/", to="gray")


@pytest.mark.parametrize(
    ("name", "data", "kind", "message"),
    [
        ("config.json", b"{", DamagedError, r"^s3://zoo/in/resnet/config\.json: "),
        ("model-00002-of-00002.safetensors", None, DamagedError, r"^s3://zoo/in/resnet/.*: its shard is missing"),
        ("model-00002-of-00002.safetensors", b"nothing", ChkptChannelsError, r"^s3://zoo/in/resnet/model-00002"),
        ("../evil", b"x", UnsupportedError, r"^s3://zoo/in/resnet/: \.\./evil: its key is no name of a file"),
    ],
)
def test_messages_name_the_bucket(name: str, data: bytes | None, kind: Any, message: str, folder: Path, bucket: Bucket):
    source, client = put(bucket, folder), bucket.client
    if data is None:
        client.delete_object(Bucket="zoo", Key=f"in/resnet/{name}")  # type: ignore[attr-defined]
    else:
        client.put_object(Bucket="zoo", Key=f"in/resnet/{name}", Body=data)  # type: ignore[attr-defined]
    with pytest.raises(kind, match=message):
        chkpt_channels.convert(source, "s3://zoo/out/", to="gray")
    assert under(bucket, "out/") == {}


def test_what_is_refused(folder: Path, bucket: Bucket, tmp_path: Path):
    source = put(bucket, folder)
    with pytest.raises(UsageError, match="ends with a slash"):
        chkpt_channels.convert(source, "s3://zoo/out", to="gray")
    with pytest.raises(UsageError, match="ends with a slash"):
        chkpt_channels.convert(folder, "s3://zoo/out", to="gray")
    with pytest.raises(UsageError, match="--hard-link"):
        chkpt_channels.convert(source, tmp_path / "out", to="gray", hard_link=True)
    with pytest.raises(UsageError, match="standard output"):
        chkpt_channels.convert(source, "-", to="gray")
    with pytest.raises(UsageError, match="apply to files"):
        chkpt_channels.convert(source, tmp_path / "out", to="gray", sha256=True)
    with pytest.raises(FileSystemError, match="no objects are under it"):
        chkpt_channels.convert("s3://zoo/none/", "s3://zoo/out/", to="gray")
    assert not list(tmp_path.iterdir())
