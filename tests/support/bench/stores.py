"""A checkpoint of 1.2 GB, and a model of 163 shards, from bucket to bucket: what goes through this machine, in how many requests,
and how much memory.

make bench-stores    # against moto's server, behind the proxy of the tests that counts; 6 GB of memory
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.remote.conftest import serving
from tests.remote.test_prefixes import sharded
from tests.support.bench.measure import ENVIRONMENT, OURS
from tests.support.builders import floats, pickled, storage, tensor
from tests.support.stores import behind, lying

LAYERS, ELEMENTS = 294, 1 << 20
SHARDS = 163
KERNEL = (64, 3, 7, 7)
KEYS = {"AWS_ACCESS_KEY_ID": "a key", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_REGION": "us-east-1"}


def make_pth(path: Path) -> None:
    """A kernel and 294 layers of 4 MiB, each a member."""
    layers = {f"layers.{i}.weight": tensor(storage(str(i + 1), ELEMENTS), (ELEMENTS,)) for i in range(LAYERS)}
    kernel = tensor(storage("0", int(np.prod(KERNEL))), KERNEL)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled({"conv1.weight": kernel, **layers}))
        archive.writestr("archive/data/0", floats(int(np.prod(KERNEL))))
        for i in range(LAYERS):
            archive.writestr(f"archive/data/{i + 1}", np.full(ELEMENTS, i, "<f4").tobytes())
        archive.writestr("archive/version", b"3\n")


def make_safetensors(path: Path) -> None:
    """The same."""
    layers = {f"layers.{i}.weight": np.full(ELEMENTS, i, "<f4") for i in range(LAYERS)}
    safetensors.numpy.save_file({"conv1.weight": np.ones(KERNEL, "<f4"), **layers}, path)


def digest(pieces: Any) -> str:
    """Of a content that does not fit into memory."""
    made = hashlib.sha256()
    for piece in pieces:
        made.update(piece)
    return made.hexdigest()


def pieces_of(path: Path) -> Any:
    """A file in pieces."""
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            yield piece


def measure(client: Any, url: str, server: Any, source: Path) -> str:
    """One row."""
    client.upload_file(str(source), "zoo", source.name)
    local = source.with_stem("local")
    subprocess.run([*OURS, "convert", str(source), "--to", "gray", "-o", str(local), "-q"], check=True, env=ENVIRONMENT)
    server.log.clear()
    moved, peak = converted(url, f"s3://zoo/{source.name}", f"s3://zoo/out/{source.name}")
    first = next(i for i, entry in enumerate(server.log) if entry.method != "GET")
    through = sum(entry.sent + entry.received for entry in server.log)
    found = client.get_object(Bucket="zoo", Key=f"out/{source.name}")["Body"].iter_chunks(1 << 22)
    same = "identical with the local file" if digest(found) == digest(pieces_of(local)) else "DIFFERENT FROM THE LOCAL FILE"
    index = f"index {first} GETs and {sum(entry.sent for entry in server.log[:first]) / 1e6:.2f} MB"
    moves = f"{through / 1e6:.1f} MB through the client, {moved['copied_bytes'] / 1e6:.0f} MB copied"
    size = source.stat().st_size / 1e6
    return f"{source.name:15} {size:6.0f} MB: {index}; {len(server.log)} requests, {moves}; peak {peak:.0f} MiB; {same}"


def converted(url: str, source: str, target: str) -> tuple[dict[str, Any], float]:
    """What a conversion moved, and its peak of memory in MiB."""
    command = [*OURS, "convert", source, "--to", "gray", "-o", target, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**ENVIRONMENT, **KEYS, "AWS_ENDPOINT_URL": url})
    out = child.stdout.read() if child.stdout else b""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    result = json.loads(out)["results"][0]
    if child.returncode:
        raise SystemExit(f"{source}: {result['error']['message']}")
    return result["transfer"], usage.ru_maxrss / 1024


def measure_shards(client: Any, url: str, server: Any, home: Path) -> str:
    """One row: the last shard is edited."""
    headers, local = sharded(home, SHARDS, SHARDS - 1), home.with_name("gray")
    for path in home.iterdir():
        client.upload_file(str(path), "zoo", f"model/{path.name}")
    subprocess.run([*OURS, "convert", str(home), "--to", "gray", "-o", str(local), "-q"], check=True, env=ENVIRONMENT)
    server.log.clear()
    moved, peak = converted(url, "s3://zoo/model/", "s3://zoo/gray/")
    log, edited = [*server.log], max(headers)
    through = sum(entry.sent + entry.received for entry in log)
    shards = [entry for entry in log if "/model-0" in entry.path and edited not in entry.path]
    gets = [entry for entry in shards if entry.method == "GET" and entry.span]
    stops = [(int(entry.span.rpartition("-")[2]), headers[entry.path.rpartition("/")[2].partition("?")[0]]) for entry in gets]
    behind = sum(last >= stop for last, stop in stops)
    found = {path.name: client.get_object(Bucket="zoo", Key=f"gray/{path.name}")["Body"].read() for path in local.iterdir()}
    same = "identical with" if all(data == (local / name).read_bytes() for name, data in found.items()) else "DIFFERENT FROM"
    moves = f"{through / 1e6:.1f} MB through the client, {moved['copied_bytes'] / 1e6:.0f} MB copied"
    reads = f"{len(gets)} reads of shards that stay, {behind} of them behind the header"
    return f"{SHARDS} shards: {reads}; {len(log)} requests, {moves}; peak {peak:.0f} MiB; {same} the local folder"


def main() -> None:
    """Both formats. Each file is made in a process of its own: a child's peak counts what its parent held."""
    import boto3

    words = {"aws_access_key_id": "a key", "aws_secret_access_key": "a secret", "region_name": "us-east-1"}
    with tempfile.TemporaryDirectory() as name, serving() as host, lying(behind(host)) as server:
        client = boto3.client("s3", endpoint_url=f"http://{host}", **words)
        client.create_bucket(Bucket="zoo")
        for ending in MAKERS:
            source = Path(name) / f"a{ending}"
            subprocess.run([sys.executable, "-m", "tests.support.bench.stores", str(source)], check=True, env=ENVIRONMENT)
            print(measure(client, server.url, server, source), flush=True)
            source.unlink()
            client.delete_object(Bucket="zoo", Key=source.name)
            client.delete_object(Bucket="zoo", Key=f"out/{source.name}")
        print(measure_shards(client, server.url, server, Path(name) / "model"), flush=True)


MAKERS = {".safetensors": make_safetensors, ".pth": make_pth}

if __name__ == "__main__":
    if sys.argv[1:]:
        MAKERS[Path(sys.argv[1]).suffix](Path(sys.argv[1]))
    else:
        main()
