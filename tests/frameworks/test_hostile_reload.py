"""What the program accepted among the hostile files, the framework reads, before and after; and a marker is a live one."""

import io
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pytest
import safetensors
import torch

from chkpt_channels import convert, verify
from fixtures.generate.hostile.make import CASES
from tests.frameworks.oracle import load
from tests.frameworks.readings import THEIRS

READ = [case for case in CASES if case.code == 0 and case.reloads]


def torch_names(path: Path) -> dict[str, tuple[int, ...]]:
    if path.suffix == ".pt":
        return {"": tuple(torch.jit.load(path)(torch.zeros(1, channels(path), 32, 32)).shape)}
    found = load(path)
    return {str(k): tuple(v.shape) for k, v in found.items() if isinstance(v, torch.Tensor)}


def channels(path: Path) -> int:
    return 1 if path.parent.name == "out" else 3


def keras_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    import keras

    model = keras.models.load_model(path, compile=False)
    return {weight.path: tuple(weight.shape) for weight in model.weights}


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(path, "numpy") as found:
        return {name: tuple(found.get_slice(name).get_shape()) for name in found.keys()}  # noqa: SIM118


def folder_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """By the index: each tensor from the file that it names."""
    places = json.loads(next(path.glob("*.index.json")).read_text())["weight_map"]
    return {name: safetensors_shapes(path / file)[name] for name, file in places.items()}


def onnx_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Run it: onnxruntime follows no link out of the folder, so that a link's target is put in its place."""
    import onnxruntime

    for beside in path.parent.iterdir():
        if beside.is_symlink():
            target = beside.resolve()
            beside.unlink()
            shutil.copy(target, beside)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"image": np.zeros((1, channels(path), 8, 8), "f4")})
    return {"out": out.shape}


READERS = {
    "torch_zip": torch_names,
    "torch_legacy": torch_names,
    "torchscript": torch_names,
    "safetensors": safetensors_shapes,
    "keras_h5": keras_shapes,
    "keras_zip": keras_shapes,
    "onnx": onnx_shapes,
    "folder": folder_shapes,
}
READERS |= {
    form: lambda path, form=form: {n: r[1] for n, r in THEIRS[form](path).items()} for form in THEIRS.keys() - READERS.keys()
}
BY_SUFFIX = {".pth": torch_names, ".safetensors": safetensors_shapes}


@pytest.mark.parametrize("case", READ, ids=str)
def test_it_reads_like_the_original(case, tmp_path):
    """The same tensors, of the same shapes but for the channels."""
    (home := tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = case.made(home)
    out = tmp_path / "out" / f"a{source.suffix}"
    follow = "--follow-links" in case.options
    convert(source, out, to="gray", follow_links=follow)
    assert verify(source, out, follow_links=follow).ok
    assert not (home / "marker").exists()
    reader = READERS.get(case.format) or BY_SUFFIX[source.suffix]
    before = reader(source)
    if case.marker:
        (home / "marker").rmdir()  # torch has run it: it is a live one
    after = reader(out)
    assert list(after) == list(before)
    changed = {name for name in before if before[name] != after[name]}
    assert all(before[name].count(3) > after[name].count(3) and 1 in after[name] for name in changed)
    assert len(changed) == (1 if "" not in before and "out" not in before else 0) or "two names" in case.name
    assert (home / "marker").exists() == case.marker


def test_a_marker_survives_a_conversion_and_still_runs(tmp_path):
    """The program is no scanner: a malicious file stays malicious."""
    case = next(case for case in READ if case.marker)
    source = case.made(tmp_path)
    convert(source, tmp_path / "out.pth", to="gray")
    assert not (tmp_path / "marker").exists()
    torch.load(io.BytesIO((tmp_path / "out.pth").read_bytes()), weights_only=False)
    assert (tmp_path / "marker").exists()
