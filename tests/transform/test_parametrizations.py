"""weight_norm is mixed exactly, what cannot be mixed is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import UnsupportedError
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import build_plan
from tests.support.memory import NET, Memory, kernel

OLD = ("conv1.weight_v", "conv1.weight_g")
NEW = ("conv1.parametrizations.weight.original1", "conv1.parametrizations.weight.original0")
REST = {name: array for name, array in NET.items() if name != "conv1.weight"}


def net(names: tuple[str, str], direction: np.ndarray, length: np.ndarray) -> Memory:
    return Memory({"": {names[1]: length, names[0]: direction, **REST}})


def weight(direction: np.ndarray, length: np.ndarray) -> np.ndarray:
    kept = [axis for axis, size in enumerate(length.shape) if size != 1]
    axes = tuple(axis for axis in range(direction.ndim) if axis not in kept)
    return length * direction / np.sqrt((direction**2).sum(axis=axes, keepdims=True))


@given(
    st.sampled_from([OLD, NEW]), st.sampled_from([(8, 1, 1, 1), ()]), st.sampled_from([1, 2, 4, "bgr"]), st.integers(0, 2**32 - 1)
)
def test_the_weight_is_mixed(names: tuple[str, str], lengths: tuple[int, ...], to: Any, seed: int):
    chance = np.random.default_rng(seed)
    direction, length = chance.normal(size=(8, 3, 5, 5)), chance.normal(size=lengths)
    asked = build_options(to)
    made = build_plan(net(names, direction, np.asarray(length)), asked)
    assert set(made.edits.tensors) == set(names)
    new = weight(*(made.edits.tensors[name].values() for name in names))
    expected = np.einsum("oihw,ij->ojhw", weight(direction, np.asarray(length)), np.array(asked.rule.mixing(3).matrix))
    assert np.allclose(new, expected, rtol=1e-13, atol=1e-15)


def test_layer_finds_it_by_its_module():
    made = build_plan(net(OLD, kernel(8, 3, 5, 5), kernel(8, 1, 1, 1)), build_options(1, layers=["conv1"]))
    assert set(made.edits.tensors) == set(OLD)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({OLD[0]: kernel(8, 3, 5, 5), OLD[1]: kernel(1, 3, 1, 1)}, "differ between input channels"),
        (
            {"conv1.weight_orig": kernel(8, 3, 5, 5), "conv1.weight_u": kernel(8), "conv1.weight_v": kernel(75)},
            "is spectral-normed",
        ),
        ({"conv1.weight_orig": kernel(8, 3, 5, 5), "conv1.weight_mask": kernel(8, 3, 5, 5)}, "is pruned"),
        (
            {
                "conv1.parametrizations.weight.original": kernel(8, 3, 5, 5),
                "conv1.parametrizations.weight.0._u": kernel(8),
                "conv1.parametrizations.weight.0._v": kernel(75),
            },
            "is spectral-normed",
        ),
        ({"conv1.parametrizations.weight.original": kernel(8, 3, 5, 5)}, "is parametrized"),
    ],
)
def test_refused_by_name(named: dict[str, np.ndarray], words: str):
    with pytest.raises(UnsupportedError, match=words):
        build_plan(Memory({"": {**named, **REST}}), build_options(1))


def test_a_direction_without_length():
    direction = kernel(8, 3, 5, 5, dtype=np.float64)
    direction[3, 2] = -direction[3, 0] - direction[3, 1]
    made = build_plan(net(OLD, direction, kernel(8, 1, 1, 1)), build_options(1))
    direction[3] = 0
    with pytest.raises(UnsupportedError, match="a weight_norm direction is or becomes zero"):
        made.edits.tensors[OLD[1]].values()
