"""Flax files: edits byte by byte, what is refused by name, and memory. How their bytes lie is in the table of hostile files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import DamagedError, UnsupportedError, convert, inspect, verify
from tests.support.big_files import big, peak
from tests.support.files import FIXTURES, contents, there_and_back
from tests.support.messagepack import Map, array, packed, unpacked

FLAX = FIXTURES / "flax"
KERNEL = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype("f4")
STEM = "params/conv_init/kernel"
Put = Callable[..., Path]


def replaced(tree: Any, path: list[str], value: Any) -> Any:
    """The tree with another value at a path."""
    if not path:
        return value
    return Map((key, replaced(inner, path[1:], value) if key == path[0] else inner) for key, inner in tree)


def flax_array(values: np.ndarray) -> Any:
    return array(values.shape, values.dtype.name, values.tobytes())


@pytest.mark.parametrize("name", ["rgb", "half", "bfloat16", "vit", "hub_vit", "chunked"])
@pytest.mark.parametrize("to", [1, 4])
def test_the_output_is_what_flax_writes_for_the_new_kernel(name: str, to: int, tmp_path: Path):
    source, out = FLAX / f"{name}.msgpack", tmp_path / "out.msgpack"
    (kernel,) = convert(source, out, to=to).kernels
    path = kernel.conv.tensor.name
    _, dtype, _ = unpacked(find(unpacked(source.read_bytes()), path.split("/")).data)
    new = array(kernel.shape_after, dtype, contents(out)[path])
    assert out.read_bytes() == packed(replaced(unpacked(source.read_bytes()), path.split("/"), new))


def find(tree: Any, path: list[str]) -> Any:
    for word in path:
        tree = dict(tree)[word]
    return tree


def test_the_old_kernel_put_back_is_the_same_file(tmp_path: Path):
    for name in ("rgb", "train_state", "chunked"):
        source = FLAX / f"{name}.msgpack"
        assert there_and_back(source, tmp_path / f"{name}.msgpack", 1) == source.read_bytes()


@pytest.mark.parametrize("filters", [1, 2, 4, 19, 20, 2000])
def test_lengths_of_every_width_follow(filters: int, put: Put, tmp_path: Path):
    """The extension, the shape and the bytes each have the shortest head there is."""
    values = np.random.default_rng(1).standard_normal((1, 1, 3, filters)).astype("f4")
    rest = {"Conv_1": {"kernel": flax_array(np.ones((3, 3, filters, 8), "f4"))}}
    path = put(packed({"Conv_0": {"kernel": flax_array(values)}, **rest}), "a.msgpack")
    convert(path, tmp_path / "b.msgpack", to=4, layers=["Conv_0/kernel"])
    new = np.frombuffer(contents(tmp_path / "b.msgpack")["Conv_0/kernel"], "f4").reshape(1, 1, 4, filters)
    assert (tmp_path / "b.msgpack").read_bytes() == packed({"Conv_0": {"kernel": flax_array(new)}, **rest})


def test_state_of_the_optimizer_is_reset_or_refused(tmp_path: Path):
    source = FLAX / "train_state.msgpack"
    report = convert(source, tmp_path / "a.msgpack", to="gray")
    moments = {f"opt_state/0/{slot}/conv_init/kernel" for slot in ("mu", "nu")}
    assert set(report.changed) == {STEM, "ema_params/conv_init/kernel", *moments}
    assert not any(np.frombuffer(contents(tmp_path / "a.msgpack")[name], "f4").any() for name in moments)
    with pytest.raises(UnsupportedError, match="with all of its entries or not at all") as refused:
        convert(source, tmp_path / "b.msgpack", to="gray", optimizer="drop")
    assert refused.value.hint == "--optimizer reset"


def test_a_stem_in_chunks_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=f"{STEM}: is stored in chunks") as refused:
        convert(FLAX / "chunked_stem.msgpack", tmp_path / "a.msgpack", to="gray")
    assert "MAX_CHUNK_SIZE" in refused.value.hint


def test_a_mean_is_folded_into_what_follows(put: Put, tmp_path: Path):
    """FlaxResNet's embedder holds a convolution and its norm, and nothing else; a Conv of flax has a bias."""
    ones = {name: flax_array(np.ones(4, "f4")) for name in ("scale", "bias", "mean", "var")}
    trained = {"convolution": {"kernel": flax_array(KERNEL)}, "normalization": {"scale": ones["scale"], "bias": ones["bias"]}}
    kept = {"normalization": {"mean": ones["mean"], "var": ones["var"]}}
    path = put(packed({"params": {"embedder": trained}, "batch_stats": {"embedder": kept}}), "a.msgpack")
    report = convert(path, tmp_path / "b.msgpack", to="gray", norm="imagenet")
    assert set(report.changed) == {"params/embedder/convolution/kernel", "batch_stats/embedder/normalization/mean"}
    assert verify(path, tmp_path / "b.msgpack", norm="imagenet").ok
    report = convert(FLAX / "vit.msgpack", tmp_path / "c.msgpack", to="gray", norm="imagenet")
    assert set(report.changed) == {"params/embedding/kernel", "params/embedding/bias"}
    with pytest.raises(UnsupportedError, match="no BatchNorm is known to follow it"):
        convert(FLAX / "rgb.msgpack", tmp_path / "d.msgpack", to="gray", norm="imagenet")


def test_the_lines_that_load_it(tmp_path: Path):
    lines = convert(FLAX / "rgb.msgpack", tmp_path / "a.msgpack", to="gray").load_lines
    assert lines[0] == "import flax.serialization"
    assert lines[-1] == f"variables = flax.serialization.msgpack_restore(open({str(tmp_path / 'a.msgpack')!r}, 'rb').read())"


def test_a_header_that_begins_like_one_of_safetensors(put: Put):
    """The 379th step: a brace at byte 8."""
    data = packed({"step": 379, "params": {"Conv_0": {"kernel": flax_array(KERNEL)}}})
    assert data[8:9] == b"{"
    assert inspect(put(data, "a.msgpack")).input.format == "flax"


def test_every_cut_is_damage(put: Put):
    data = packed({"Conv_0": {"kernel": flax_array(KERNEL[:1, :1, :, :2])}, "b": {"kernel": flax_array(KERNEL[0, 0])}})
    assert [t.name for t in inspect(put(data, "a.msgpack")).tensors] == ["Conv_0/kernel", "b/kernel"]
    for cut in range(len(data)):
        with pytest.raises(DamagedError):
            inspect(put(data[:cut], "a.msgpack"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    assert peak(big(tmp_path / "a.msgpack", 512)) <= 80
