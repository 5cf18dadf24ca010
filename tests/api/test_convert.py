"""The flow: which name the output gets, what is refused before anything is written, and what is found out after."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import (
    DamagedError,
    FileSystemError,
    OutputExistsError,
    UnknownFormatError,
    UnsupportedError,
    UsageError,
    convert,
    inspect,
    verify,
)
from chkpt_channels.api.output.naming import default_output
from chkpt_channels.core.tensors import TensorEdit
from chkpt_channels.folders import planning
from chkpt_channels.formats.torch.zip_file import TorchZip
from tests.support import builders
from tests.support.files import FIXTURES, Failing, Truth, contents, snapshot, truths

RGB = FIXTURES / "torch_zip" / "state_dict.pth"
GRAY = FIXTURES / "torch_zip" / "state_dict_gray.pth"
SAFE = FIXTURES / "safetensors" / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "word", "output"),
    [
        ("a.pth", "gray", "a_gray.pth"),
        ("a.pth.tar", "gray", "a_gray.pth.tar"),
        ("a.b.safetensors", "rgb", "a.b_rgb.safetensors"),
        ("a.weights.h5", "gray", "a_gray.weights.h5"),
        ("a.v2.h5", "gray", "a.v2_gray.h5"),
        ("a.tar", "4ch", "a_4ch.tar"),
        ("pytorch_model", "gray", "pytorch_model_gray"),
        (".pth", "gray", ".pth_gray"),
        ("v1.0", "13ch", "v1_13ch.0"),
    ],
)
def test_default_names(name: str, word: str, output: str):
    assert default_output(Path("folder", name), word) == Path("folder", output)


def test_without_a_name_it_stands_beside_the_source(put: Callable[..., Path]):
    path = put(RGB.read_bytes(), "net.pth")
    report = convert(path, to="L")
    assert report.output.path == str(path.with_name("net_gray.pth"))
    assert verify(path, report.output.path).ok


@pytest.mark.parametrize(
    ("source", "name", "fits"),
    [
        *((RGB, f"out{suffix}", True) for suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pth.tar", "", ".v2")),
        *((RGB, f"out{suffix}", False) for suffix in (".onnx", ".h5", ".keras", ".npz", ".gguf", ".ONNX")),
        *((SAFE, f"out{suffix}", False) for suffix in (".onnx", ".h5", ".msgpack")),
        (SAFE, "out.safetensors", True),
    ],
)
def test_a_name_does_not_lie_about_the_format(source: Path, name: str, fits: bool, tmp_path: Path):
    if fits:
        assert convert(source, tmp_path / name).status == "converted"
    else:
        with pytest.raises(UsageError, match="named like another format"):
            convert(source, tmp_path / name)
    assert (name in snapshot(tmp_path)) == fits


def test_luma_is_used_and_verified(tmp_path: Path):
    out = tmp_path / "out.pth"
    convert(GRAY, out, to="rgb", luma="bt601")
    (old, new) = (np.frombuffer(contents(p)["conv1.weight"], "<f4") for p in (GRAY, out))
    red = new.reshape(8, 3, 49)[:, 0]
    np.testing.assert_array_equal(red, (0.299 * old.reshape(8, 49).astype(np.float64)).astype(np.float32))
    assert verify(GRAY, out, luma="bt601").ok
    assert {d.message for d in verify(GRAY, out).differences} == {"this is luma (bt601), not luma"}


def test_bad_options_are_refused_before_the_file_is_opened(tmp_path: Path):
    for options in ({"to": "infrared"}, {"layout": "NCHW"}, {"optimizer": "keep"}, {"luma": "x"}):
        with pytest.raises(UsageError):
            convert(tmp_path / "missing.pth", **options)


@pytest.mark.parametrize("name", ["out.pth", "missing/out.pth", "RGB", "taken.pth"])
def test_a_dry_run_needs_no_output(name: str, tmp_path: Path):
    (tmp_path / "taken.pth").write_bytes(b"old")
    before = snapshot(tmp_path)
    report = convert(RGB, tmp_path / name, dry_run=True)
    assert (report.status, report.target, report.output) == ("would_convert", str(tmp_path / name), None)
    assert snapshot(tmp_path) == before


def test_the_input_is_never_the_output(put: Callable[..., Path], tmp_path: Path):
    path = put(RGB.read_bytes())
    (tmp_path / "hard.pth").hardlink_to(path)
    (tmp_path / "soft.pth").symlink_to(path)
    before = snapshot(tmp_path)
    for name in ("a.pth", "hard.pth", "soft.pth", "../" + tmp_path.name + "/a.pth"):
        with pytest.raises(OutputExistsError, match="is the input itself"):
            convert(path, tmp_path / name, force=True)
    assert snapshot(tmp_path) == before


def test_progress_counts_the_bytes_that_are_copied(tmp_path: Path):
    steps: list[tuple[int, int]] = []
    convert(RGB, tmp_path / "out.pth", to="rgb", progress=lambda done, total: steps.append((done, total)))
    size = RGB.stat().st_size
    assert {total for _, total in steps} == {size}
    assert sum(done for done, _ in steps) == size


@pytest.mark.parametrize(
    "change", [lambda p: os.truncate(p, 100), lambda p: os.utime(p, ns=(0, 0)), lambda p: p.write_bytes(RGB.read_bytes() * 2)]
)
def test_an_input_that_changes_meanwhile(
    change: Callable[[Path], object], put: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, real = put(RGB.read_bytes(), "in.pth"), planning.build_plan

    def make(*arguments: Any) -> Any:
        change(path)
        return real(*arguments)

    monkeypatch.setattr(planning, "build_plan", make)
    with pytest.raises(FileSystemError, match="while it was read"):
        convert(path, tmp_path / "out.pth")
    assert snapshot(tmp_path).keys() == {"in.pth"}


@pytest.mark.parametrize("wrong", ["values", "shape"])
def test_what_was_written_wrong_is_never_published(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bug of a format's writer is found by reading the output back, before it gets its name."""
    real = TorchZip.splices

    def splices(self: TorchZip, edits: Any) -> Any:
        def other(edit: TensorEdit) -> TensorEdit:
            if wrong == "values":
                return TensorEdit(edit.shape, lambda: -edit.values())
            return TensorEdit((edit.shape[0] * edit.shape[1], 1, *edit.shape[2:]), edit.values)

        return real(self, edits._replace(tensors={name: other(edit) for name, edit in edits.tensors.items()}))

    monkeypatch.setattr(TorchZip, "splices", splices)
    with pytest.raises(RuntimeError, match=r"than planned|does not read back"):
        convert(RGB, tmp_path / "out.pth", to=4)
    assert snapshot(tmp_path) == {}


def test_ambiguity_is_listed_and_not_an_error_of_inspect(put: Callable[..., Path]):
    """Two tensors could be meant, and no name or order tells."""
    header = {"a.weight": builders.entry((8, 3, 3, 3)), "b.weight": builders.entry((9, 3, 5, 5), 864)}
    path = put(builders.safetensors(header, builders.floats(216 + 675)), "a.safetensors")
    found = inspect(path)
    assert (found.first_convs, {c.key for c in found.candidates}) == ((), {"a.weight", "b.weight"})
    with pytest.raises(UnsupportedError, match="2 tensors could be the first convolution"):
        convert(path)
    assert convert(path, layers=["a"]).changed == ("a.weight",)


@pytest.mark.parametrize("function", [inspect, convert, lambda path: verify(path, RGB), lambda path: verify(RGB, path)])
def test_inputs_that_are_no_files(function: Callable[[Path], object], tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo"):
        with pytest.raises((FileSystemError, DamagedError)) as caught:  # an empty folder is not a model folder
            function(path)
        assert isinstance(caught.value, FileSystemError) or path == tmp_path
    (tmp_path / "empty").touch()
    with pytest.raises(UnknownFormatError, match="is empty"):
        function(tmp_path / "empty")


def test_paths_may_be_text_or_odd(tmp_path: Path):
    source = tmp_path / os.fsdecode(b"caf\xe9 \xff.pth")
    source.write_bytes(RGB.read_bytes())
    report = convert(str(source))
    assert Path(report.output.path).exists()
    long = tmp_path / ("n" * 251 + ".pth")
    long.write_bytes(RGB.read_bytes())
    with pytest.raises(FileSystemError, match="name too long"):
        convert(long)


def evil(path: Path, location: str) -> Path:
    """A gray model that onnx wrote, whose external data has a name of its author's choice."""
    import onnx
    from onnx import helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "conv.weight")
    image, out = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", c, 8, 8]) for n, c in (("x", 1), ("y", 4)))
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], pads=[1, 1, 1, 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / location).parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(helper.make_graph([node], "g", [image], [out], [kernel]))
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("to", ["gray", "rgb"])
@pytest.mark.parametrize("location", [".profile", ".ssh/authorized_keys", "notes.txt", "out.onnx"])
def test_a_model_names_no_file_of_the_output(location: str, to: str, tmp_path: Path):
    """Neither a new one nor, with --force, one that is there: --force is for the output and what bears its name."""
    import onnx

    model, home = evil(tmp_path / "evil" / "m.onnx", location), tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in (".profile", ".ssh/authorized_keys", "notes.txt"):
        (home / name).write_text("mine")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    report = convert(model, home / "out.onnx", to=to, force=True)
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path in before} == before
    assert {path.relative_to(home).as_posix() for path in after.keys() - before.keys()} <= {"out.onnx", "out.onnx.data"}
    assert onnx.load(home / "out.onnx").graph.initializer[0].dims[1] == (1 if to == "gray" else 3)
    assert (report.status == "unchanged") == (to == "gray")
    assert any("out.onnx.data" in w.message for w in report.warnings) == (to == "gray")
    assert verify(model, home / "out.onnx").ok


def test_a_copy_keeps_a_name_that_is_made_of_the_output_s(tmp_path: Path):
    """Then every byte stays."""
    model = evil(tmp_path / "a" / "m.onnx", "m.onnx.data")
    (tmp_path / "b").mkdir()
    assert not convert(model, tmp_path / "b" / "m.onnx", to="gray").warnings
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == {
        p.name: p.read_bytes() for p in model.parent.iterdir()
    }


@pytest.mark.parametrize(("call", "k"), [("replace", 0), ("replace", 1), ("link", 0), ("link", 1), ("link", 2)])
def test_what_goes_with_an_output_comes_back(call: str, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An old model keeps its old data, whichever of the two names cannot be given."""
    model, out = FIXTURES / "onnx" / "external.onnx", tmp_path / "out.onnx"
    convert(model, out, to=4)
    before = snapshot(tmp_path)
    failing = Failing(getattr(os, call), k, errno.EIO)
    monkeypatch.setattr(os, call, failing)
    try:
        convert(model, out, to="gray", force=True)
        assert (call, k) == ("link", 0)  # a file system without hard links: then the old data has no second name
    except FileSystemError:
        assert snapshot(tmp_path) == before
    assert failing.calls > k
    assert verify(model, out).ok
    assert len(snapshot(tmp_path)) == 2


@pytest.mark.usefixtures("unforked")
@pytest.mark.parametrize("to", ["gray", 4, "rgb"])
@pytest.mark.parametrize("truth", [t for t in truths() if t.said["in_channels"]], ids=str)
def test_what_a_conversion_gives_shows_it_as_like(truth: Truth, to: str | int, tmp_path: Path):
    """LIKE of the same architecture with the wanted channels: the conversion without it. Only where the kernels keep their shape
    (a stacked image) or become another layer's (depthwise ones) does it show another architecture."""
    (tmp_path / "like").mkdir()
    (tmp_path / "out").mkdir()
    path, like, out = truth.path, tmp_path / "like" / truth.path.name, tmp_path / "out" / truth.path.name
    try:
        expected = convert(path, like, to=to)
    except UnsupportedError:  # of another kind than these: tested where it is refused
        return
    other = expected.kernels[0].method in ("stack", "broadcast", "adapter") or any(
        kernel.conv.groups > 1 for kernel in expected.kernels
    )
    try:
        report = convert(path, out, like=like)
    except UnsupportedError:
        assert other
        assert not out.exists()
        return
    assert (report.status, report.changed) == (expected.status, expected.changed)
    assert out.read_bytes() == like.read_bytes()
    if expected.status == "converted":
        assert (report.in_channels, {kernel.conv.found_by for kernel in report.kernels}) == (expected.in_channels, {"like"})


def test_a_target_in_the_place_of_the_output(tmp_path: Path):
    path = tmp_path / "a.pth"
    shutil.copy(FIXTURES / "torch_zip" / "state_dict.pth", path)
    with pytest.raises(UsageError, match="the second argument is the output") as refused:
        convert(path, "gray")
    assert refused.value.hint == "convert(path, to='gray')"


@pytest.mark.parametrize("collects", [True, False])
def test_no_collection_but_while_it_copies(collects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Collecting doubles the time of opening and planning; the caller's setting is back afterwards."""
    during: dict[str, set[bool]] = {"plan": set(), "parse": set(), "copy": set()}
    plan, walk = planning.build_plan, TorchZip.__init__
    monkeypatch.setattr(planning, "build_plan", lambda *a: during["plan"].add(gc.isenabled()) or plan(*a))
    monkeypatch.setattr(TorchZip, "__init__", lambda *a: during["parse"].add(gc.isenabled()) or walk(*a))
    (gc.enable if collects else gc.disable)()
    try:
        convert(RGB, tmp_path / "out.pth", to="gray", progress=lambda *_: during["copy"].add(gc.isenabled()))
        assert during == {"plan": {False}, "parse": {False}, "copy": {collects}}
        assert gc.isenabled() == collects
    finally:
        gc.enable()
