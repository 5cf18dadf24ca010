"""Folders with one network in several formats: converted as one, in every direction; refused where one cannot follow."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import ChkptChannelsError, DamagedError, UnsupportedError, check, convert, verify
from chkpt_channels.cli.app import run
from tests.support.files import contents
from tests.support.messagepack import array, packed

Arrays = dict[str, np.ndarray]
BATCH = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def network(channels: int = 3) -> Arrays:
    """By PyTorch's names and axes."""
    chance = np.random.default_rng(0)
    shapes = {"conv1.weight": (8, channels, 7, 7), "conv2.weight": (16, 8, 3, 3), "fc.weight": (5, 16), "fc.bias": (5,)}
    shapes |= {f"bn1.{name}": (8,) for name in BATCH}
    return {name: np.abs(chance.standard_normal(shape)).astype("f4") for name, shape in shapes.items()}


def of_jax(net: Arrays) -> Arrays:
    """By Flax's names and axes."""
    found = {}
    for name, values in net.items():
        module, _, word = name.partition(".")
        statistics = word.startswith("running")
        if module == "bn1":
            found[f"{'batch_stats' if statistics else 'params'}/{module}/{BATCH[word]}"] = values
        else:
            found[f"params/{module}/{'kernel' if word == 'weight' else word}"] = np.ascontiguousarray(inner_first(values))
    return found


def inner_first(values: np.ndarray) -> np.ndarray:
    """OIHW as HWIO, OI as IO."""
    return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T


def flax(arrays: Arrays) -> bytes:
    tree: dict[str, Any] = {}
    for name, values in arrays.items():
        *path, last = name.split("/")
        inner = tree
        for word in path:
            inner = inner.setdefault(word, {})
        inner[last] = array(values.shape, values.dtype.name, values.tobytes())
    return packed(tree)


def npz(arrays: Arrays) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def h5(net: Arrays) -> bytes:
    """Weights only, as Keras 2 kept them."""
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        kernels = {name.removesuffix(".weight"): inner_first(a) for name, a in net.items() if a.ndim > 1}
        file.attrs["layer_names"], file.attrs["backend"] = [name.encode() for name in kernels], b"tensorflow"
        for name, values in kernels.items():
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            file[name][f"{name}/kernel:0"] = values
    return out.getvalue()


def files(net: Arrays) -> dict[str, bytes]:
    """One network in six formats."""
    return {
        "model.safetensors": safetensors.numpy.save(net),
        "flax_model.msgpack": flax(of_jax(net)),
        "tf_model.h5": h5(net),
        "jax/model.npz": npz(of_jax(net)),
        "model.pkl": pickle.dumps({"model": net, "__author__": "x", "matching_heuristics": True}, 4),
        "model.pdparams": pickle.dumps({**net, "StructuredToParameterName@@": {name: name for name in net}}, 4),
    }


def folder(home: Path, net: Arrays) -> Path:
    (home / "jax").mkdir(parents=True)
    for name, data in files(net).items():
        (home / name).write_bytes(data)
    (home / "config.json").write_text(json.dumps({"model_type": "resnet", "num_channels": net["conv1.weight"].shape[1]}))
    return home


def kernels(home: Path) -> list[np.ndarray]:
    """The first kernel of each file, OIHW."""
    found = []
    for name in files(network()):
        raw = next(data for key, data in contents(home / name).items() if "conv1" in key)
        is_inner_first = name.endswith((".msgpack", ".h5", ".npz"))
        values = np.frombuffer(raw, "f4")
        values = values.reshape(7, 7, -1, 8).transpose(3, 2, 0, 1) if is_inner_first else values.reshape(8, -1, 7, 7)
        found.append(values)
    return found


@pytest.mark.parametrize(("before", "to"), [(3, "gray"), (3, 4), (1, "rgb"), (4, "rgb")])
def test_their_kernels_agree(before: int, to: str | int, tmp_path: Path):
    source, out = folder(tmp_path / "a", network(before)), tmp_path / "b"
    report = convert(source, out, to=to)
    assert len(report.kernels) == len(files(network()))
    first, *others = kernels(out)
    assert first.shape[1] == {"gray": 1, "rgb": 3}.get(str(to), to)
    assert all(np.array_equal(first, other) for other in others)
    assert verify(source, out, to=to).ok
    assert run(["check", str(out), "--expect", str(to)]) == 0
    assert json.loads((out / "config.json").read_text())["num_channels"] == first.shape[1]


def test_the_identity_is_the_same_folder(tmp_path: Path):
    source = folder(tmp_path / "a", network())
    assert convert(source, tmp_path / "b", to="rgb").status == "unchanged"
    for name in (*files(network()), "config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("name", files(network()))
def test_a_copy_that_disagrees_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = folder(tmp_path / "a", network())
    (source / name).write_bytes(files(network(1))[name])
    with pytest.raises(UnsupportedError, match=f"{name} takes 1"):
        convert(source, tmp_path / "b", to=4)
    assert run(["check", str(source)]) == 1
    assert f"{source / name}: " in capsys.readouterr().out
    assert [m for m in check(source / name, is_named=False).mismatches if m.beside]


@pytest.mark.parametrize("name", files(network()))
def test_a_copy_that_is_damaged_is_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = folder(tmp_path / "a", network())
    data = (source / name).read_bytes()
    (source / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ChkptChannelsError, match=name.rpartition("/")[2]) as caught:
        convert(source, tmp_path / "b", to="gray")
    assert caught.value.exit_code == 3
    assert f"--leave-out {name}" in caught.value.hint
    assert not (tmp_path / "b").exists()
    assert run(["check", str(source)]) == 3
    assert name in capsys.readouterr().err
    convert(source, tmp_path / "b", to="gray", leave_out=[name])
    assert not (tmp_path / "b" / name).exists()


def sharded(home: Path, *cuts: int) -> Path:
    """Shards of Flax, cut at these arrays, with their index."""
    home.mkdir()
    arrays, places = dict(sorted(of_jax(network()).items())), {}
    for i, (start, stop) in enumerate(zip((0, *cuts), (*cuts, len(arrays)), strict=True), 1):
        name = f"flax_model-{i:05}-of-{len(cuts) + 1:05}.msgpack"
        part = dict(list(arrays.items())[start:stop])
        (home / name).write_bytes(flax(part))
        places |= dict.fromkeys(part, name)
    total = sum(values.nbytes for values in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (home / "flax_model.msgpack.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return home


@pytest.mark.parametrize("cuts", [(2, 6), (1, 2, 3, 4, 5, 6, 7)])
def test_shards_of_flax_are_one_model(cuts: tuple[int, ...], tmp_path: Path):
    """As transformers cut them, between any two arrays."""
    source, out = sharded(tmp_path / "a", *cuts), tmp_path / "b"
    (source / "model.safetensors").write_bytes(files(network())["model.safetensors"])
    report = convert(source, out, to="gray", norm="imagenet")
    assert {name.rpartition("/")[2] for name in report.changed} == {"kernel", "mean", "conv1.weight", "bn1.running_mean"}
    whole = np.frombuffer(contents(out / "model.safetensors")["conv1.weight"], "f4").reshape(8, 1, 7, 7)
    shards = {key: data for path in out.glob("*.msgpack") for key, data in contents(path).items()}
    assert np.array_equal(np.frombuffer(shards["params/conv1/kernel"], "f4").reshape(7, 7, 1, 8), inner_first(whole))
    index = json.loads((out / "flax_model.msgpack.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(map(len, shards.values()))
    assert verify(source, out, norm="imagenet").ok
    assert run(["check", str(out), "--expect", "gray"]) == 0
    shutil.rmtree(out)
    next(path for path in source.glob("flax_model-*.msgpack")).unlink()
    with pytest.raises(DamagedError, match="its shard is missing"):
        convert(source, out, to="gray")
