"""The contract of every format, over every file that a fixtures/*/expected.json names.

Nothing here knows a format: adding one is a package in formats/ and a folder in fixtures/, whose name is the format's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import AmbiguousError, FileSystemError, UnsupportedError, convert, inspect, verify
from chkpt_channels.core.dtypes import numpy_dtype
from chkpt_channels.core.tensors import FirstConv, TensorEdit
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.folders import planning
from chkpt_channels.formats import known
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.storage.source import Source
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.options import Options
from chkpt_channels.transform.plan import Plan
from tests.support.apart import run_apart
from tests.support.files import FIXTURES, Failing, Truth, contents, opened, snapshot, truths
from tests.support.sandbox import WARM

NO_FIXTURES = {"__pycache__", "generate", "found", "catalogue", "foreign"}
"""What else stands in fixtures/: generate/ makes the fixtures, and the hostile files when they are needed; found/ is what fuzzing
found; catalogue/ makes the catalogue of known architectures."""
EVERY = truths()
CONVERTIBLE = [truth for truth in EVERY if truth.said["in_channels"]]
LUMA = 0.2126, 0.7152, 0.0722


def edits_kernels(truth: Truth) -> bool:
    """Whether a conversion edits kernels and nothing else: no graph has anything between them and the image."""
    with opened(truth.path) as checkpoint:
        convs = find_first_convs(checkpoint).first_convs
        plain = all(conv.layout and conv.groups == 1 and conv.tensor.dtype.floating for conv in convs)
        return plain and not checkpoint.graph.preprocessing(convs) and not checkpoint.graph.shape_edits(convs, 1)


def companions(path: Path, out: Path) -> set[str]:
    """The names of the files that go with `path`, as they are called beside `out`."""
    with opened(path) as checkpoint:
        return set(checkpoint.companions(out, edited=True).values())


PLAIN = [truth for truth in CONVERTIBLE if edits_kernels(truth)]
BEHIND = [truth for truth in CONVERTIBLE if truth not in PLAIN]
ONE_EACH = list({truth.path.parent: truth for truth in reversed(PLAIN)}.values())

every = pytest.mark.parametrize("truth", EVERY, ids=str)
convertible = pytest.mark.parametrize("truth", CONVERTIBLE, ids=str)
unforked = pytest.mark.usefixtures("unforked")
plain = pytest.mark.parametrize("truth", PLAIN, ids=str)


def targets(truths_: list[Truth]) -> pytest.MarkDecorator:
    pairs = [(truth, to) for truth in truths_ for to in (1, 3, 4) if to != truth.said["in_channels"]]
    return pytest.mark.parametrize(("truth", "to"), pairs, ids=str)


def output(tmp_path: Path, truth: Truth) -> Path:
    return tmp_path / f"out_{truth.path.name}"


def other_count(truth: Truth) -> int:
    return 3 if truth.said["in_channels"] == 1 else 1


def weights(old: int, new: int) -> np.ndarray:
    """[old, new]: sum to one channel, luma from one to three, else repeat with the response kept."""
    if new == 1:
        return np.ones((old, 1))
    if (old, new) == (1, 3):
        return np.array([LUMA])
    return np.array([[old / new if j % old == i else 0.0 for j in range(new)] for i in range(old)])


def mixed(kernel: np.ndarray, axis: int, new: int) -> np.ndarray:
    """The kernel with `new` input channels: float64, rounded once, through float32 where numpy has not got the dtype."""
    wide = np.moveaxis(kernel.astype(np.float64), axis, 0)
    columns = weights(len(wide), new).T
    exact = np.stack([reduce(np.add, [w * part for w, part in zip(column, wide, strict=True) if w]) for column in columns])
    extended = kernel.dtype.kind == "V" or kernel.dtype.type.__module__ == "ml_dtypes"
    return np.moveaxis((exact.astype(np.float32) if extended else exact).astype(kernel.dtype), 0, axis)


def assert_converted(before: Path, after: Path, said: dict[str, Any], old: int, new: int) -> None:
    """Kernels obey the formula, moments are zero in the new shape, declarations follow, all else is equal byte for byte."""
    was, now = contents(before), contents(after)
    assert list(now) == list(was)
    kernels, resets = said["first_convs"], said["optimizer"]
    shapes = {}
    with opened(before) as first, opened(after) as second:
        for name, kernel in kernels.items():
            axis = kernel["layout"].index("I")
            expected = mixed(first.load(name), axis, new)
            shapes[first.tensors[name].shape] = expected.shape
            assert second.tensors[name].shape == expected.shape
            assert now[name] == expected.tobytes(), name
        for name in resets:
            shape = first.tensors[name].shape
            assert second.tensors[name].shape == shapes.get(shape, shape), name
            assert not np.frombuffer(now[name], numpy_dtype(second.tensors[name].dtype)).any(), name
        assert [t.dtype for t in second.tensors.values()] == [t.dtype for t in first.tensors.values()]
    for name in was.keys() - kernels.keys() - set(resets):
        assert now[name] == was[name], name
    for path, count in ((before, old), (after, new)):
        assert {d.where: d.channels for d in inspect(path).declarations} == dict.fromkeys(said["declarations"], count)


def test_every_fixture_is_listed_and_small():
    listed = {truth.path for truth in EVERY}
    folders = {path.parent for path in listed}
    assert {folder.name for folder in folders} == {kind.name for kind in known()}
    for folder in folders:
        files = {path for path in folder.iterdir() if path.name != "expected.json"}
        named = {path for path in listed if path.parent == folder}
        assert files == named | {folder / name for path in named for name in companions(path, path)}
        assert all(path.stat().st_size <= 200_000 for path in files)
    assert folders == {path.parent for path in FIXTURES.glob("*/*") if path.parent.name not in NO_FIXTURES}


@every
def test_one_format_claims_it(truth: Truth):
    with Source(truth.path) as source:
        assert [kind.name for kind in known() if kind.sniff(source)] == [truth.path.parent.name]


@every
def test_inspect_names_the_first_convs(truth: Truth):
    found, said = inspect(truth.path), truth.said
    convs = {c.tensor.name: {"layout": c.layout, "shape": list(c.tensor.shape)} for c in found.first_convs}
    assert convs == said["first_convs"]
    assert {c.in_channels for c in found.first_convs} == ({said["in_channels"]} if said["in_channels"] else set())
    assert len(found.tensors) == said["tensors"]
    assert found.input.format == truth.path.parent.name
    assert pickle.loads(pickle.dumps(found)) == found


@convertible
def test_the_identity_is_the_same_file(truth: Truth, tmp_path: Path):
    out = tmp_path / truth.path.name  # what goes with it is called after it: then that keeps its name too
    report = convert(truth.path, out, to=truth.said["in_channels"])
    assert report.status == "unchanged"
    assert report.changed == ()
    assert out.read_bytes() == truth.path.read_bytes()


@unforked
@targets(PLAIN)
def test_there_and_back_change_only_what_is_planned(truth: Truth, to: int, tmp_path: Path):
    count, said, name = truth.said["in_channels"], truth.said, truth.path.name
    there, back = tmp_path / f"there_{name}", tmp_path / f"back_{name}"
    digest, changed_at = hashlib.sha256(truth.path.read_bytes()).digest(), truth.path.stat().st_mtime_ns
    report = convert(truth.path, there, to=to)
    try:
        convert(there, back, to=count)
    except AmbiguousError:  # a network that is as wide somewhere as its image is now
        layouts = {kernel["layout"] for kernel in said["first_convs"].values()}
        convert(there, back, to=count, layers=list(said["first_convs"]), layout=layouts.pop())
    assert report.status == "converted"
    assert report.in_channels == (count, to)
    assert set(report.changed) == {*said["first_convs"], *said["optimizer"]}
    assert_converted(truth.path, there, said, count, to)
    assert_converted(there, back, said, to, count)
    assert verify(truth.path, there).ok
    assert (hashlib.sha256(truth.path.read_bytes()).digest(), truth.path.stat().st_mtime_ns) == (digest, changed_at)
    assert snapshot(tmp_path).keys() == {there.name, back.name} | companions(truth.path, there) | companions(there, back)
    assert pickle.loads(pickle.dumps(report)) == report


@unforked
@targets(BEHIND)
def test_what_stands_in_front_is_respected_or_refused(truth: Truth, to: int, tmp_path: Path):
    """Where a graph has something between the image and the kernels, or the kernels are grouped or quantized."""
    out, was = output(tmp_path, truth), contents(truth.path)
    try:
        report = convert(truth.path, out, to=to)
    except UnsupportedError:
        assert snapshot(tmp_path) == {}
        return
    now = contents(out)
    untouched = was.keys() - set(report.changed)
    assert {name: now[name] for name in untouched} == {name: was[name] for name in untouched}
    assert {d.where: d.channels for d in inspect(out).declarations} == dict.fromkeys(truth.said["declarations"], to)
    assert verify(truth.path, out).ok


@convertible
def test_a_dry_run_says_the_same_and_writes_nothing(truth: Truth, tmp_path: Path):
    to = other_count(truth)
    dry = convert(truth.path, output(tmp_path, truth), to=to, dry_run=True)
    assert snapshot(tmp_path) == {}
    wet = convert(truth.path, output(tmp_path, truth), to=to)
    assert (dry.status, dry.output) == ("would_convert", None)
    for name in (
        "in_channels",
        "kernels",
        "declarations",
        "tensors_total",
        "changed",
        "parity",
        "warnings",
        "load_lines",
        "beside",
    ):
        assert getattr(dry, name) == getattr(wet, name), name
    assert {wet.target, *wet.beside} == {str(tmp_path / name) for name in snapshot(tmp_path)}


def convert_otherwise(truth: Truth, to: int, out: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[..., np.ndarray]) -> None:
    """A conversion whose every kernel is replaced by another: planned, written and read back, and wrong."""
    real = planning.build_plan

    def make(checkpoint: Checkpoint, options: Options) -> Plan:
        made = real(checkpoint, options)
        tensors = dict(made.edits.tensors)
        for conv in (change.conv for change in made.kernels):
            values = edit(conv, checkpoint.load(conv.tensor.name), tensors[conv.tensor.name].values())
            tensors[conv.tensor.name] = TensorEdit(values.shape, lambda values=values: values)
        return made._replace(edits=made.edits._replace(tensors=tensors))

    with monkeypatch.context() as patch:
        patch.setattr(planning, "build_plan", make)
        convert(truth.path, out, to=to)


COLOUR = [truth for truth in PLAIN if truth.said["in_channels"] == 3]


@unforked
@pytest.mark.parametrize("truth", COLOUR, ids=str)
def test_bgr_and_back_is_the_same_file(truth: Truth, tmp_path: Path):
    """The channels change places, bit by bit; nothing that counts them changes."""
    if truth.said["optimizer"]:
        pytest.skip("the state kept for the kernel is reset")
    there, back = tmp_path / f"bgr_{truth.path.name}", output(tmp_path, truth)
    report = convert(truth.path, there, to="bgr")
    assert (report.status, report.in_channels) == ("converted", (3, 3))
    with opened(truth.path) as first, opened(there) as second:
        for name, kernel in truth.said["first_convs"].items():
            axis = kernel["layout"].index("I")
            assert second.load(name).tobytes() == np.flip(first.load(name), axis).tobytes()
    assert verify(truth.path, there, to="bgr").ok
    tried, strict = verify(truth.path, there), verify(truth.path, there, to=3)
    assert (tried.ok, tried.under) == (True, "--to bgr")
    assert {d.message for d in strict.differences} == {"differs, though the conversion does not change it: this is bgr"}
    assert strict.hint == "--to bgr"
    convert(there, back, to="bgr")
    assert contents(back) == contents(truth.path)
    assert [d.channels for d in inspect(there).declarations] == [d.channels for d in inspect(truth.path).declarations]


@unforked
@pytest.mark.parametrize("truth", COLOUR, ids=str)
def test_zero_to_five_and_select_back_is_the_same_file(truth: Truth, tmp_path: Path):
    if truth.said["optimizer"]:
        pytest.skip("the state kept for the kernel is reset")
    there, back = tmp_path / f"five_{truth.path.name}", output(tmp_path, truth)
    convert(truth.path, there, to=5, method="zero")
    assert verify(truth.path, there, method="zero").ok
    convert(there, back, select="0,1,2")
    assert contents(back) == contents(truth.path)
    assert verify(there, back, select="0,1,2").ok


@unforked
@plain
def test_verify_names_another_rule(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new, out = truth.said["in_channels"], other_count(truth), output(tmp_path, truth)
    rule = mixing.mean(old) if new == 1 else mixing.repeat(old, new)

    def by_rule(conv: FirstConv, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return rule.apply(before, conv.layout.view(before.shape, old), conv.tensor.dtype).reshape(after.shape)

    convert_otherwise(truth, new, out, monkeypatch, by_rule)
    found = verify(truth.path, out)
    message = "this is mean, not sum" if new == 1 else "this is repeat, not luma"
    assert {d.key: d.message for d in found.differences} == dict.fromkeys(truth.said["first_convs"], message)
    assert pickle.loads(pickle.dumps(found)) == found


@unforked
@plain
def test_verify_sees_one_flipped_bit(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flipped(_: FirstConv, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        raw = bytearray(after.tobytes())
        raw[0] ^= 1
        return np.frombuffer(bytes(raw), after.dtype).reshape(after.shape)

    convert_otherwise(truth, other_count(truth), output(tmp_path, truth), monkeypatch, flipped)
    found = verify(truth.path, output(tmp_path, truth))
    assert {d.key for d in found.differences} == set(truth.said["first_convs"])
    assert all(re.match("is not the|is the .*, rounded otherwise", d.message) for d in found.differences)


@pytest.mark.parametrize("truth", [truth for truth in EVERY if truth not in CONVERTIBLE], ids=str)
def test_without_a_first_conv_it_is_refused(truth: Truth, tmp_path: Path):
    with pytest.raises(UnsupportedError):
        convert(truth.path, output(tmp_path, truth), to="gray")
    assert snapshot(tmp_path) == {}


CUT = """
import sys
from pathlib import Path
from chkpt_channels import DamagedError, convert

source, out, to, *cuts = sys.argv[1:]
data = Path(source).read_bytes()
for cut in map(int, cuts):
    Path(source).write_bytes(data[:cut])
    try:
        convert(source, out, to=int(to))
    except DamagedError as error:
        assert str(error).startswith(f"{source}: "), cut
    else:
        raise AssertionError(cut)
"""


@convertible
def test_a_cut_file_is_damaged(truth: Truth, tmp_path: Path):
    """libhdf5 crashes on some, in forks: those of a small process take less time."""
    data, chance = truth.path.read_bytes(), random.Random(str(truth))
    cuts = [len(data) * k // 16 for k in range(16)] + [chance.randrange(len(data)) for _ in range(5)] + [len(data) - 1]
    source, folder = tmp_path / truth.path.name, tmp_path / "out"
    folder.mkdir()
    source.write_bytes(data)
    words = map(str, (source, output(folder, truth), other_count(truth), *cuts))
    assert run_apart(CUT, tmp_path, [*words], imported=WARM) == (0, "", "")
    assert snapshot(folder) == {}


def failing_reads(truth: Truth, out: Path, failure: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail every `step`-th read of a conversion, or four spread over it, those that read the output back included."""
    real, to, folder = os.preadv, other_count(truth), out.parent
    monkeypatch.setattr(os, "preadv", counted := Failing(real))
    convert(truth.path, out, to=to, force=True)
    old, last = snapshot(folder), counted.calls - 1
    for k in range(0, last, step) if step else (0, last // 3, last * 2 // 3, last):
        monkeypatch.setattr(os, "preadv", Failing(real, k, failure))
        with pytest.raises(FileSystemError):
            convert(truth.path, out, to=to, force=True)
        assert snapshot(folder) == old, k


@unforked
@convertible
def test_a_failing_read_leaves_what_was_there(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failing_reads(truth, output(tmp_path, truth), errno.EIO, 0, monkeypatch)


@pytest.mark.parametrize("truth", ONE_EACH, ids=str)
def test_a_short_read_leaves_what_was_there(truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failing_reads(truth, output(tmp_path, truth), lambda *_: 0, 7, monkeypatch)


NEW = ("open", "pwrite", "posix_fallocate", "fsync", "link")
CALLS = [(call, False) for call in NEW] + [(call, True) for call in (*NEW, "replace", "fchmod")]


@unforked
@pytest.mark.parametrize("truth", ONE_EACH, ids=str)
@pytest.mark.parametrize(("call", "force"), CALLS)
def test_a_failing_write_leaves_what_was_there(
    truth: Truth, force: bool, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every call that writes fails once, each time it is made. Only a folder that cannot be synced comes too late: then the
    name shows the whole new file."""
    real, to, out = getattr(os, call), other_count(truth), output(tmp_path, truth)
    k, calls = None, 1
    while k is None or k < calls:
        out.write_bytes(b"old content") if force else out.unlink(missing_ok=True)
        old = snapshot(tmp_path)
        monkeypatch.setattr(os, call, failing := Failing(real, k, errno.ENOSPC))
        if k is None:
            convert(truth.path, out, to=to, force=force)
            new, calls = snapshot(tmp_path), failing.calls
        else:
            with pytest.raises(FileSystemError):
                convert(truth.path, out, to=to, force=force)
            too_late = call in ("open", "fsync") and k == calls - 1
            assert snapshot(tmp_path) == (new if too_late else old), k
        k = 0 if k is None else k + 1
    assert calls


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    """Peak resident memory of a whole process, for 256 and for 512 MiB: the files are holes but for their first kernel."""
    program = """
import json, struct, sys
from pathlib import Path
import numpy
from chkpt_channels import convert
source, size = Path(sys.argv[1]), int(sys.argv[2])
kernel = 64 * 3 * 49 * 4
header = {"conv1.weight": {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [0, kernel]},
          "fc.weight": {"dtype": "F32", "shape": [(size - kernel) // 4], "data_offsets": [kernel, size]}}
raw = json.dumps(header).encode()
with source.open("wb") as file:
    file.write(struct.pack("<Q", len(raw)) + raw)
    file.truncate(8 + len(raw) + size)
convert(source, source.with_name("out.safetensors"), to="gray", force=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the peak of one process alone is read from /proc")
    peaks = []
    for size in (256 << 20, 512 << 20):
        command = [sys.executable, "-c", program, str(tmp_path / "in.safetensors"), str(size)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=FIXTURES.parent).stdout) >> 10)
        (tmp_path / "out.safetensors").unlink()
    assert peaks[1] - peaks[0] < 8, peaks
    assert peaks[1] <= 80, peaks
