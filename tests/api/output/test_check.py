"""The post-write check: a file that is not as planned is never published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from chkpt_channels import DamagedError, convert, verify
from chkpt_channels import check as check_file
from chkpt_channels.api.output.check import adapter_differences, check, check_stems, misread, missing_biases, parity
from chkpt_channels.core.tensors import Finding, TensorEdit
from chkpt_channels.discovery import find
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import Plan, build_plan
from tests.api.test_verify import write
from tests.discovery.law.test_after import AUTOENCODER
from tests.support.files import FIXTURES, opened
from tests.support.memory import Memory, kernel
from tests.support.onnx_models import model, node, noise

MODULE = FIXTURES / "torch_zip" / "module.pth"


@contextmanager
def written(folder: Path, change: Callable[[bytes], bytes] = bytes) -> Iterator[tuple[Checkpoint, Plan, int]]:
    """A conversion, written to a file that `change` then damages."""
    with opened(MODULE) as checkpoint:
        plan = build_plan(checkpoint, build_options("gray"))
        out = folder / "out.pth"
        fd = os.open(out, os.O_RDWR | os.O_CREAT)
        with checkpoint.writing(plan.edits, fd, checkpoint.location, None):
            pass
        out.write_bytes(change(out.read_bytes()))
        try:
            yield checkpoint, plan, fd
        finally:
            os.close(fd)


def test_a_right_file_is_accepted(tmp_path: Path):
    with written(tmp_path) as (checkpoint, plan, fd):
        check(checkpoint, plan, fd, "out.pth")


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with (
        written(tmp_path, lambda raw: raw[:-1]) as (checkpoint, plan, fd),
        pytest.raises(RuntimeError, match="cannot be read") as caught,
    ):
        check(checkpoint, plan, fd, "out.pth")
    assert isinstance(caught.value.__cause__, DamagedError)


def test_tensors_that_are_not_as_planned(tmp_path: Path):
    with written(tmp_path) as (checkpoint, plan, fd):
        name = next(iter(plan.edits.tensors))
        edit = plan.edits.tensors[name]
        other = plan._replace(edits=plan.edits._replace(tensors={name: edit._replace(computed=lambda: edit.values() + 1)}))
        with pytest.raises(RuntimeError, match="does not read back as it was written"):
            check(checkpoint, other, fd, "out.pth")
        wider = plan._replace(edits=plan.edits._replace(tensors={name: TensorEdit((1,), edit.computed)}))
        with pytest.raises(RuntimeError, match="other tensors than planned"):
            check(checkpoint, wider, fd, "out.pth")


def test_a_declaration_that_did_not_follow(tmp_path: Path):
    with written(tmp_path) as (checkpoint, plan, fd):
        assert plan.declarations
        with pytest.raises(RuntimeError, match="does not declare 2"):
            check(checkpoint, plan._replace(channels=(3, 2)), fd, "out.pth")
        with opened(MODULE) as before:
            assert list(misread(before, before, plan)) == [(d.where, "does not declare 1") for d in plan.declarations]


def test_a_bias_that_is_missing():
    store = Memory({"": {"conv1.weight": kernel(8, 3, 7, 7)}})
    plan = build_plan(store, build_options("gray"))
    added = np.arange(8, dtype=np.float64)
    plan = plan._replace(edits=plan.edits._replace(biases={"conv1.weight": TensorEdit((8,), lambda: added, "bias")}))
    assert missing_biases(store, plan) == ["conv1.weight"]
    assert missing_biases(Memory({"": {"bias": added.astype(np.float32)}}), plan) == []


def test_parity_is_of_the_kernels_that_change():
    store = Memory({"": {"conv1.weight": kernel(8, 3, 7, 7)}})
    exact = parity(store, build_plan(store, build_options("gray")))
    assert exact is not None
    assert exact.max_abs < 1e-5
    assert parity(store, build_plan(store, build_options("rgb"))) is None
    mean = parity(store, build_plan(store, build_options("gray", method="mean")))
    assert mean is not None  # against the mean's own formula: a right kernel, if a weaker response
    assert mean.max_abs < 1e-5


TWO_STEMS = {
    "stem.a.weight": kernel(48, 3, 3, 3),
    "stem.b.weight": kernel(48, 3, 1, 1),
    "s.0.a.weight": kernel(48, 48, 3, 3),
    "s.0.b.weight": kernel(48, 48, 1, 1),
}


def test_a_search_that_forgets_a_kernel_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The check asks the law once more, whatever the plan was made of."""
    source, real = write(tmp_path / "a.safetensors", TWO_STEMS), find._find_once
    with ModelFile(source) as model:
        planned = plan_model(model, build_options("gray"))
        check_stems(planned)
        assert len(planned.first.kernels) == 2

    def forgetful(*args: Any, **words: Any) -> Finding:
        finding = real(*args, **words)
        return finding._replace(first_convs=finding.first_convs[:1])

    monkeypatch.setattr(find, "_find_once", forgetful)
    with pytest.raises(RuntimeError, match=r"stem.b.weight: takes the 3 channels of the image too, and was not converted"):
        convert(source, tmp_path / "b.safetensors", "gray")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_kernels_that_the_user_names_are_not_judged(tmp_path: Path):
    """Of these the plan warns."""
    source = write(tmp_path / "a.safetensors", {name: kernel(*shape) for name, shape in AUTOENCODER.items()})
    report = convert(source, tmp_path / "b.safetensors", "gray", layers=["encoder.conv_in"])
    assert (report.status, [notice.code for notice in report.warnings]) == ("converted", ["unexplained"])


def adapter_file(path: Path, weights: dict[str, np.ndarray], *, adapted: bool = True) -> Path:
    """A stem, with an adapter in front or without."""
    stem = node("Conv", ["a" if adapted else "image", "kernel"], ["out"])
    nodes = [node("Conv", ["image", *list(weights)[1:]], ["a"]), stem] if adapted else [stem]
    path.write_bytes(model(nodes, weights, (1, 4 if adapted else 3, 8, 8)).SerializeToString())
    return path


def test_an_adapter_that_is_not_as_planned(tmp_path: Path):
    """The graph is asked: what the image reaches must be the matrix, and what it reached before is behind it."""
    stem, right = {"kernel": noise(5, 3, 3, 3)}, np.float32([[[0.5]], [[1]], [[0]], [[0]]] * 3).reshape(3, 4, 1, 1)
    before = adapter_file(tmp_path / "a.onnx", stem, adapted=False)
    cases = {
        "right": ({**stem, "w": right}, True, []),
        "zeros as a constant": ({**stem, "w": right, "b": np.zeros(3, np.float32)}, True, []),
        "wrong": ({**stem, "w": right + 1}, True, [("w", "is not the 1×1 convolution that the conversion puts in front")]),
        "a constant": (
            {**stem, "w": right, "b": np.ones(3, np.float32)},
            True,
            [("w", "is not the 1×1 convolution that the conversion puts in front")],
        ),
        "missing": (stem, False, [("kernel", "sees the image without a 1×1 convolution in front")]),
    }
    options = build_options(None, matrix=right.reshape(3, 4).tolist(), method="adapter")
    for name, (weights, adapted, differences) in cases.items():
        path = adapter_file(tmp_path / f"{name}.onnx", weights, adapted=adapted)
        with opened(before) as first, opened(path) as second:
            plan = build_plan(first, options)
            assert adapter_differences(first, second, plan) == differences, name
        verification = verify(before, path, matrix=right.reshape(3, 4).tolist(), method="adapter")
        assert verification.ok == (name == "right")


def converted_by(path: Path, name: str) -> Path:
    """A conversion of `a.onnx` that someone made: as it should be, or with what a graph shows to be wrong in it."""
    stem, second, old = noise(5, 3, 3, 3), noise(4, 5, 1, 1), {}
    weights = {"kernel": stem.astype("f8").sum(1, keepdims=True).astype("f4"), "second": second}
    channels, reads, shape = 1, "kernel", [1, 5, 6, 6]
    if name == "no node reads it":
        channels, reads, old = 3, "before", {"before": stem}
    elif name == "the input says 3":
        channels = 3
    elif name == "a shape on the way":
        shape = [1, 3, 8, 8]
    nodes = [node("Relu", ["image"], ["x"]), node("Conv", ["x", reads], ["y"]), node("Conv", ["y", "second"], ["out"])]
    made = model(nodes, {**weights, **old}, (1, channels, 8, 8))
    made.graph.value_info.append(helper.make_tensor_value_info("x" if shape[1] == 3 else "y", TensorProto.FLOAT, shape))
    path.write_bytes(made.SerializeToString())
    return path


JUDGED = {
    "right": ([], []),
    "no node reads it": (["graph.input image", "kernel", "kernel, which no node reads"], ["kernel, which no node reads"]),
    "the input says 3": (["graph.input image", "kernel"], ["graph.input image"]),
    "a shape on the way": (["graph.value_info x"], ["graph.value_info x"]),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_result_is_judged_by_its_graph(name: str, tmp_path: Path):
    """By `verify`, which knows the original, and by `check`, which sees this file alone."""
    nodes = [node("Relu", ["image"], ["x"]), node("Conv", ["x", "kernel"], ["y"]), node("Conv", ["y", "second"], ["out"])]
    before, (different, mismatched) = tmp_path / "a.onnx", JUDGED[name]
    before.write_bytes(model(nodes, {"kernel": noise(5, 3, 3, 3), "second": noise(4, 5, 1, 1)}).SerializeToString())
    after = converted_by(tmp_path / "b.onnx", name)
    assert sorted({difference.key for difference in verify(before, after, "gray").differences}) == different
    assert [mismatch.where for mismatch in check_file(after).mismatches] == mismatched
