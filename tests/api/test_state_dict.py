"""A state dict in memory becomes what its file becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import AmbiguousError, UsageError, convert, convert_state_dict
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
        ({"model": NET}, "'model' is a dict, not an array"),
        ({"epoch": 3}, "'epoch' is a int, not an array"),
        ({"names": np.array(["a"])}, "which is not known"),
    ],
)
def test_what_is_no_state_dict(named: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        convert_state_dict(named)


def test_what_is_ambiguous():
    with pytest.raises(AmbiguousError):
        convert_state_dict({"a.weight": kernel(8, 300, 3, 3), "b.weight": kernel(8, 3, 3, 3), "c.weight": kernel(9, 3, 5, 5)})
