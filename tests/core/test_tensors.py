"""Records: names, sizes, what counts as an edit; they can be pickled."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Edits, FirstConv, PreprocessingOp, Tensor, TensorEdit


@pytest.mark.parametrize(
    ("name", "group", "key"),
    [("conv1.weight", "", "conv1.weight"), ("model/conv1.weight", "model", "conv1.weight"), ("a/b/c.d", "a/b", "c.d")],
)
def test_a_key_is_the_name_in_its_group(name: str, group: str, key: str):
    assert Tensor(name, BY_NAME["F32"], (1,), group).key == key


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F32", (2, 3), 24), ("BF16", (), 2), ("F4", (3,), 2), ("F6_E2M3", (4,), 3), ("F64", (5, 0), 0)],
)
def test_sizes_are_whole_bytes(dtype: str, shape: tuple[int, ...], size: int):
    assert Tensor("a", BY_NAME[dtype], shape).size == size


@pytest.mark.parametrize(
    ("scale", "shift", "uniform"),
    [
        ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), True),
        ((2.0,), (0.0,), True),
        ((2.0, 2.0), (1.0, 1.5), False),
        ((2.0, 3.0), (1.0, 1.0), False),
        (None, None, False),
        ((1.0,), None, False),
    ],
)
def test_an_operation_is_uniform_where_every_channel_gets_the_same(
    scale: tuple[float, ...] | None, shift: tuple[float, ...] | None, uniform: bool
):
    assert PreprocessingOp("mul", "Mul", scale, shift).uniform is uniform


@pytest.mark.parametrize(
    ("edits", "changes"),
    [
        (Edits(), False),
        (Edits(tensors={"a": TensorEdit((1,), lambda: np.zeros(1))}), True),
        (Edits(numbers={"in_channels": 1}), True),
        (Edits(dropped=("state/0",)), True),
        (Edits(channels=1), True),
        (Edits(companions={"a.data": "b.data"}), False),
    ],
)
def test_edits_are_true_where_something_changes(edits: Edits, changes: bool):
    assert bool(edits) is changes


def test_records_can_be_pickled():
    conv = FirstConv(Tensor("conv1.weight", BY_NAME["F32"], (8, 3, 7, 7)), Layout("OIHW"), 3, "shapes")
    assert pickle.loads(pickle.dumps(conv)) == conv
