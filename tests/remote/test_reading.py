"""Checkpoints in stores: they give what the same file here gives, by few requests, and what a server does wrong is told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import chkpt_channels
from chkpt_channels.cli.app import run
from chkpt_channels.core.errors import ChkptChannelsError
from chkpt_channels.storage.stores import remote
from tests.remote.conftest import Bucket, Zoo
from tests.support import stores
from tests.support.files import truths
from tests.support.stores import Answer, Lie

FIRST = f"bytes=0-{remote.FIRST_BYTES - 1}"
FILES = [pytest.param(truth.path, id=str(truth)) for truth in truths() if truth.path.is_file()]


def outcome(source: str | Path, target: Path) -> tuple[str, bytes]:
    """What a conversion to another count says or writes, without the name of the source."""
    try:
        counts = {conv.in_channels for conv in chkpt_channels.inspect(source).first_convs}
        report = chkpt_channels.convert(source, target, to="gray" if counts != {1} else "rgb")
    except ChkptChannelsError as error:
        return f"{error.code}: {error.where}: {error.what}", b""
    return report.status, target.read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_an_object_gives_what_the_file_gives(file: Path, web: Zoo, tmp_path: Path):
    here, local_out, remote_out = (tmp_path / name for name in ("here", "local", "remote"))
    for folder in (here, local_out, remote_out):
        folder.mkdir()
    for folder in (here, web.root):
        shutil.copy(file, folder / file.name)
    local = outcome(here / file.name, local_out / file.name)
    assert outcome(web.url(file.name), remote_out / file.name) == local or "data file" in local[0] or is_external(file)
    unpinned = [entry.span for entry in web.server.log if entry.method == "GET" and not entry.if_match]
    assert unpinned in ([FIRST], [FIRST] * 2)  # of inspect and of convert


def is_external(file: Path) -> bool:
    return file.suffix == ".onnx" and b"location" in file.read_bytes()


def image_weights(path: Path, *, more: int = 0) -> Path:
    tensors = {"conv1.weight": np.random.default_rng(0).random((8, 3, 3, 3), np.float32), "conv1.bias": np.zeros(8, np.float32)}
    tensors |= {"conv2.weight": np.zeros((16, 8, 3, 3), np.float32), "fc.weight": np.zeros((more, 16), np.float32)}
    save_file(tensors, path)
    return path


MORE = 1 << 17
"""Rows of the last layer: 8 MiB, two reads of payload."""


@pytest.mark.parametrize("kind", ["web", "hugging", "bucket"])
def test_each_store_is_read(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    file = image_weights(tmp_path / "a.safetensors", more=MORE)
    chkpt_channels.convert(file, tmp_path / "local.safetensors", to="gray")
    url, server = placed(kind, file, request)
    assert chkpt_channels.convert(url, tmp_path / "out.safetensors", to="gray").status == "converted"
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()
    assert chkpt_channels.verify(url, tmp_path / "out.safetensors", to="gray").ok
    assert chkpt_channels.check(url, "rgb").ok
    assert not chkpt_channels.check(url, "gray").ok
    assert chkpt_channels.inspect(url).input.path == url
    if kind == "hugging":  # one commit's file never changes
        assert all(stores.COMMIT in entry.path for entry in server.log if entry.method == "GET")
    assert {entry.method for entry in server.log} <= {"GET", "HEAD"}


def placed(kind: str, file: Path, request: pytest.FixtureRequest) -> tuple[str, stores.Lying]:
    store = request.getfixturevalue(kind)
    if isinstance(store, Bucket):
        return store.put(f"a folder/{file.name}", file), store.server
    shutil.copy(file, store.root / file.name)
    return store.url(file.name), store.server


def test_a_header_takes_one_request(web: Zoo):
    image_weights(web.root / "a.safetensors", more=MORE)
    chkpt_channels.inspect(web.url("a.safetensors"))
    assert (len(web.server.log), web.server.read_bytes) == (1, 256 << 10)


def test_an_empty_object_is_told(bucket: Bucket, web: Zoo, tmp_path: Path):
    (web.root / "empty.pth").touch()
    for url in (web.url("empty.pth"), bucket.put("empty.pth", web.root / "empty.pth")):
        with pytest.raises(ChkptChannelsError, match="is empty"):
            chkpt_channels.inspect(url)


def status(number: int) -> Callable[[Answer], Answer]:
    return lambda answer: Answer(number, {}, b"<Error>the key AKIA and what was signed</Error>")


def another_tag(answer: Answer) -> Answer:
    return answer._replace(headers={**answer.headers, "etag": '"another"'})


def whole(answer: Answer) -> Answer:
    return Answer(200, {name: value for name, value in answer.headers.items() if name != "content-range"}, b"x" * 100)


def shifted(answer: Answer) -> Answer:
    size = answer.headers.get("content-range", "/9").rpartition("/")[2]
    return answer._replace(headers={**answer.headers, "content-range": f"bytes 1-{len(answer.body)}/{size}"})


def without_tag(answer: Answer) -> Answer:
    return answer._replace(headers={name: value for name, value in answer.headers.items() if name != "etag"})


def weak(answer: Answer) -> Answer:
    return answer._replace(headers={**answer.headers, "etag": 'W/"a"'})


def hangs(answer: Answer) -> None:
    return None


FAULTS: list[tuple[str, Lie, int, str, int]] = [
    ("changed, told", stores.from_the(1, status(412)), 5, "was changed while it was read", 2),
    ("changed, condition ignored", stores.from_the(1, another_tag), 5, "was changed while it was read", 2),
    ("whole", stores.from_the(0, whole), 5, "its server sends the whole object where a range was asked for", 1),
    ("whole, later", stores.from_the(1, whole), 5, "its server sends the whole object where a range was asked for", 2),
    ("another range", stores.from_the(1, shifted), 5, "its server answers with another range than was asked for", 2),
    ("no version", stores.from_the(0, without_tag), 4, "its server does not say which version it sends", 1),
    ("weak version", stores.from_the(0, weak), 4, "its server does not say which version it sends", 1),
    ("403", stores.from_the(0, status(403)), 5, "its server refuses access (403 Forbidden)", 1),
    ("403, later", stores.from_the(1, status(403)), 5, "its server refuses access (403 Forbidden)", 2),
    ("404", stores.from_the(0, status(404)), 5, "no such object in the store", 1),
    ("404, later", stores.from_the(1, status(404)), 5, "no such object in the store", 2),
    ("400", stores.from_the(1, status(400)), 5, "its server answers 400 Bad Request", 2),
    ("503", stores.from_the(0, status(503)), 5, "its server answers 503 Service Unavailable, 4 times", 4),
    ("503, later", stores.from_the(1, status(503)), 5, "its server answers 503 Service Unavailable, 4 times", 5),
    ("hangs", stores.from_the(0, hangs), 5, "its server stopped answering, 4 times", 4),
    ("hangs, later", stores.from_the(1, hangs), 5, "its server stopped answering, 4 times", 5),
    ("cut", stores.cut(100), 5, "its server cut the answer short, 4 times", 5),
]


@pytest.mark.parametrize(("lie", "code", "words", "requests"), [pytest.param(*row[1:], id=row[0]) for row in FAULTS])
@pytest.mark.parametrize("kind", ["web", "bucket"])
def test_what_a_server_does_wrong_is_told_in_one_line(
    kind: str,
    lie: Lie,
    code: int,
    words: str,
    requests: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Nothing is written, and nothing of the server's answer or of the credentials is shown."""
    url, server = placed(kind, image_weights(tmp_path / "a.safetensors", more=MORE), request)
    server.lie = lie
    folder = tmp_path / "out"
    folder.mkdir()
    assert run(["convert", url, "--to", "gray", "-o", str(folder / "out.safetensors")]) == code
    line, *rest = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {url}: {words}")
    assert line.endswith("; nothing was written")
    assert all(more.startswith("try: ") for more in rest)
    assert not any(secret in line for secret in ("AKIA", "secret", "Signature", "<Error>"))
    assert os.listdir(folder) == []
    assert len([entry for entry in server.log if entry.method == "GET"]) == requests


@pytest.mark.parametrize("change", [status(503), status(500), hangs, lambda answer: stores.cut(100)(1, "GET", answer)])
def test_what_passes_is_tried_again(change: Callable[[Answer], Answer | None], web: Zoo, tmp_path: Path):
    file = image_weights(web.root / "a.safetensors", more=MORE)
    web.server.lie = stores.once(1, change)
    chkpt_channels.convert(web.url("a.safetensors"), tmp_path / "out.safetensors", to="gray")
    chkpt_channels.convert(file, tmp_path / "local.safetensors", to="gray")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "local.safetensors").read_bytes()


def test_an_object_that_is_replaced_ends_the_conversion(bucket: Bucket, tmp_path: Path):
    """On a server that honours the condition."""
    file = image_weights(tmp_path / "a.safetensors", more=MORE)
    url = bucket.put("a.safetensors", file)

    def replaces(number: int, method: str, answer: Answer) -> Answer:
        if not number:
            bucket.put("a.safetensors", image_weights(tmp_path / "b.safetensors", more=MORE + 1))
        return answer

    bucket.server.lie = replaces
    with pytest.raises(ChkptChannelsError, match="was changed while it was read") as error:
        chkpt_channels.convert(url, tmp_path / "out.safetensors", to="gray")
    assert error.value.exit_code == 5
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("gone", "words"), [(1, ""), (2, "its server cannot be reached")])
def test_a_hub_that_closes_a_kept_connection_is_asked_again(gone: int, words: str, hugging: Zoo):
    image_weights(hugging.root / "a.safetensors")
    left = iter(range(gone))

    def before(method: str, path: str) -> None:
        if method == "HEAD" and next(left, None) is not None:
            raise ConnectionAbortedError

    hugging.server.before = before
    if words:
        with pytest.raises(ChkptChannelsError, match=words):
            chkpt_channels.inspect(hugging.url("a.safetensors"))
    else:
        assert len(chkpt_channels.inspect(hugging.url("a.safetensors")).first_convs) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://owner/repo/missing.pth", "no such file in the repository"),
        ("hf://owner/repo@v9/a.safetensors", "no such revision of the repository"),
        ("hf://owner/other/a.safetensors", "no such repository, or it is private"),
    ],
)
def test_what_the_hub_has_not_is_told(name: str, words: str, hugging: Zoo):
    image_weights(hugging.root / "a.safetensors")
    with pytest.raises(ChkptChannelsError, match=words) as error:
        chkpt_channels.inspect(name)
    assert error.value.exit_code == 5


def test_a_token_reaches_the_hub_and_no_message(
    hugging: Zoo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    image_weights(hugging.root / "a.safetensors")
    seen = []
    right = hugging.server.store

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if path.endswith("/a.safetensors"):  # the hub's library asks for more, once a day
            seen.append(headers.get("authorization"))
        return right(method, path, headers, body)

    hugging.server.store = store
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hugging.server.lie = stores.from_the(1, status(403))
    assert run(["inspect", hugging.url("a.safetensors"), "--json"]) == 5
    assert seen == ["Bearer hf_secret"] * 2
    output = capsys.readouterr()
    assert "hf_secret" not in output.out + output.err


@pytest.mark.parametrize("words", [{}, {"AWS_SKIP_SIGNATURE": "false"}], ids=["nothing said", "not unsigned"])
def test_a_profile_lets_one_in(words: dict[str, str], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the environment names no key, and does not ask for requests without one: reading and writing take the same one."""
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "REGION"):
        monkeypatch.delenv(f"AWS_{name}")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = of-a-profile\naws_secret_access_key = word\n")
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    seen = set()
    honest = bucket.server.store

    def store(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        seen.add((method, headers.get("authorization", "").partition("/s3/")[0]))
        return honest(method, path, headers, body)

    bucket.server.store = store
    source = bucket.put("a.safetensors", image_weights(tmp_path / "a.safetensors"))
    chkpt_channels.convert(source, "s3://zoo/b.safetensors", to="gray")
    assert {method for method, _ in seen} == {"GET", "HEAD", "PUT", "POST", "DELETE"}
    assert all("Credential=of-a-profile/" in who and who.endswith("/eu-north-1") for _, who in seen), seen


def test_a_large_hdf5_file_is_read_by_a_worker_that_asks(web: Zoo, tmp_path: Path):
    """The library that reads stores does not work in a forked process: the worker's reads are its parent's requests."""
    import h5py

    with h5py.File(web.root / "a.h5", "w") as file:
        for i in range(20):  # as Keras 3 stores weights: their headers lie between their elements
            shape = (3, 3, 3 if not i else 64, 64)
            file.create_dataset(f"layers/conv2d{f'_{i}' * bool(i)}/vars/0", data=np.zeros(shape, np.float32))
    script = (
        "import sys; from chkpt_channels.storage.stores import remote; remote.FIRST_BYTES, remote.WHOLE_BYTES = 4096, 0\n"
        "import chkpt_channels; print(len(chkpt_channels.inspect(sys.argv[1]).tensors))"
    )
    command = [sys.executable, "-c", script, web.url("a.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "20", "")
    assert 10 < len(web.server.log) < 60
    assert web.server.read_bytes < (web.root / "a.h5").stat().st_size


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_conversion(number: signal.Signals, web: Zoo, tmp_path: Path):
    """It is sent while the server is silent, at the second request."""
    image_weights(web.root / "a.safetensors", more=MORE)
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "chkpt_channels", "convert", web.url("a.safetensors"), "--to", "gray"]
    process = subprocess.Popen([*command, "-o", str(folder / "out.safetensors")], stderr=subprocess.PIPE)

    def strikes(answer: Answer) -> None:
        process.send_signal(number)

    web.server.lie = stores.from_the(1, strikes)
    assert process.wait(120) == 128 + number
    assert os.listdir(folder) == []


def test_nothing_of_a_store_is_imported_for_a_path(tmp_path: Path):
    file = image_weights(tmp_path / "a.safetensors")
    script = (
        "import sys; from chkpt_channels.cli.app import run; run(['convert', sys.argv[1], '--to', 'gray'])\n"
        "strange = {'obstore', 'huggingface_hub', 'httpx', 'httpx2', 'boto3'}\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in strange or '.stores' in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
