"""A state dict in memory becomes what its file becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError, convert, convert_state_dict
from tests.support.memory import NET, kernel


@pytest.mark.parametrize("words", [{}, {"to": 4, "method": "zero"}, {"to": "bgr"}, {"bands": "R,G,B,N=R"}, {"select": "1"}])
def test_as_the_file(words: dict[str, Any], tmp_path: Path):
    safetensors.numpy.save_file(NET, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **words)
    expected, found = safetensors.numpy.load_file(tmp_path / "b.safetensors"), convert_state_dict(NET, **words)
    assert list(found) == list(NET)
    for name, array in found.items():
        assert (array.dtype, array.shape, array.tobytes()) == (
            expected[name].dtype,
            expected[name].shape,
            expected[name].tobytes(),
        )
        assert (array is NET[name]) == (name != "conv1.weight")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_every_dtype(dtype: type):
    found = convert_state_dict({**NET, "conv1.weight": kernel(8, 3, 7, 7, dtype=dtype)}, "gray")
    assert found["conv1.weight"].dtype == dtype
    assert found["conv1.weight"].shape == (8, 1, 7, 7)


def test_the_original_stays():
    before = {name: array.copy() for name, array in NET.items()}
    convert_state_dict(NET, "gray")
    assert all((NET[name] == before[name]).all() for name in NET)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"model": NET}, "'model' is of type dict, not an array"),
        ({"epoch": 3}, "'epoch' is of type int, not an array"),
        ({"names": np.array(["a"])}, "which is not known"),
    ],
)
def test_what_is_no_state_dict(named: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        convert_state_dict(named)


class Module:
    """A module as torch's are, for whoever does not look at its class."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, Any]:
        return self.tensors


def test_a_module_stands_for_its_state_dict():
    expected = convert_state_dict(NET, "gray")
    wanted = Module({**NET, "conv1.weight": np.zeros((8, 1, 7, 7), np.float32), "fc.weight": kernel(9, 8)})
    for found in (convert_state_dict(Module(NET), "gray"), convert_state_dict(NET, like=wanted, heads="keep")):
        assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}
    assert convert_state_dict(Module(NET), like=wanted, heads="like")["fc.weight"] is wanted.tensors["fc.weight"]


def test_a_module_is_like_a_file_is(tmp_path: Path):
    safetensors.numpy.save_file(NET, tmp_path / "a.safetensors")
    like = Module({**NET, "conv1.weight": np.zeros((8, 1, 7, 7), np.float32)})
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", like=like)
    assert report.in_channels == (3, 1)


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ("a.pth", "is a str, not a mapping", "chkpt_channels.convert(path)"),
        (Path("a.pth"), "is a PosixPath, not a mapping", "chkpt_channels.convert(path)"),
        ([1], "is a list, not a mapping", "pass model.state_dict()"),
        (Module, "is the class Module, not a mapping", "pass model.state_dict()"),
    ],
)
def test_what_has_no_state_dict(given: Any, words: str, hint: str):
    with pytest.raises(UsageError, match=words) as caught:
        convert_state_dict(given, "gray")
    assert caught.value.hint == hint


def test_what_is_ambiguous():
    with pytest.raises(AmbiguousError):
        convert_state_dict({"a.weight": kernel(8, 300, 3, 3), "b.weight": kernel(8, 3, 3, 3), "c.weight": kernel(9, 3, 5, 5)})


def test_like_a_state_dict_of_the_wanted_network(tmp_path: Path):
    """In memory or in a file."""
    wanted = {**NET, "conv1.weight": np.zeros((8, 1, 7, 7), np.float16)}
    expected = convert_state_dict(NET, "gray")
    safetensors.numpy.save_file(wanted, tmp_path / "like.safetensors")
    for like in (wanted, tmp_path / "like.safetensors", str(tmp_path / "like.safetensors")):
        found = convert_state_dict(NET, like=like)
        assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in expected.items()}
        assert found["conv1.weight"].dtype == np.float32
    assert all(convert_state_dict(NET, like=dict(NET))[name] is array for name, array in NET.items())
    with pytest.raises(UsageError, match=r"^state dict: the target has 3 channels, and the state dict given as like takes 1$"):
        convert_state_dict(NET, "rgb", like=wanted)
    with pytest.raises(UsageError, match="give one of the two"):
        convert_state_dict(NET, like=wanted, layers=["conv1"])


def test_a_head_of_another_shape():
    wanted = {**NET, "conv1.weight": kernel(8, 1, 7, 7), "fc.weight": kernel(9, 8)}
    with pytest.raises(
        UnsupportedError, match=r"^state dict: fc\.weight: is a head of another shape, \[5, 8\] here and \[9, 8\]"
    ):
        convert_state_dict(NET, like=wanted)
    kept = convert_state_dict(NET, like=wanted, heads="keep")
    assert kept["fc.weight"] is NET["fc.weight"]
    taken = convert_state_dict(NET, like=wanted, heads="like")
    assert taken["fc.weight"] is wanted["fc.weight"]
    assert taken["conv1.weight"].shape == kept["conv1.weight"].shape == (8, 1, 7, 7)


def test_heads_of_a_file_have_no_values_here(tmp_path: Path):
    safetensors.numpy.save_file({**NET, "fc.weight": kernel(9, 8)}, tmp_path / "like.safetensors")
    with pytest.raises(UsageError, match="must be a state dict with values") as refused:
        convert_state_dict(NET, like=tmp_path / "like.safetensors", heads="like")
    assert refused.value.hint == "like=model.state_dict()"


@pytest.mark.parametrize("words", [{"heads": "new", "like": NET}, {"heads": "keep"}, {"heads": "", "like": NET}])
def test_heads_is_one_of_two_words_and_goes_with_like(words: dict[str, Any]):
    with pytest.raises(UsageError, match="heads is 'like' or 'keep', and goes with like"):
        convert_state_dict(NET, **words)


def test_an_adapter_is_folded():
    """Its own arrays are left out, the others are the same objects."""
    arrays = {"a.weight": np.full((3, 4, 1, 1), 2, "f4"), "stem.weight": np.ones((2, 3, 3, 3), "f4"), "z": np.zeros(1, "f4")}
    after = convert_state_dict(arrays, fold_adapter=True, layers=["a", "stem"])
    assert after.keys() == {"stem.weight", "z"}
    assert after["z"] is arrays["z"]
    assert np.array_equal(after["stem.weight"], np.full((2, 4, 3, 3), 6, "f4"))


def test_a_masked_array_is_refused():
    masked = np.ma.masked_array(np.ones((4, 3, 3, 3), "f4"), mask=True)
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: is a masked array"):
        convert_state_dict({"conv1.weight": masked})
