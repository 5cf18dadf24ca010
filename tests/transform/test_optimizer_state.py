"""What an optimizer keeps for the kernels: whose it is, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.transform.optimizer_state import OptimizerEdits
from tests.support.memory import NET, Memory, kernel

STEM = "conv1.weight"


def adam(*shape: int) -> dict[str, Any]:
    return {"step": np.float32(7).reshape(()), "exp_avg": kernel(*shape), "exp_avg_sq": kernel(*shape)}


def state(checkpoint: Memory, how: str = "reset", **kernels: tuple[int, ...]) -> OptimizerEdits:
    return OptimizerEdits(checkpoint, kernels or {STEM: (8, 1, 7, 7)}, how)


def net(**more: np.ndarray) -> Memory:
    return Memory({"": {**NET, **more}})


ENTRIES = {"0": adam(8, 3, 7, 7), "1": adam(8), "2": adam(8, 8, 3, 3), "3": adam(5, 8)}


def test_moments_are_zero_in_the_new_shape_and_the_step_with_them():
    edits = state(net().optimizer("optimizer/state", ENTRIES))
    assert {name: edit.shape for name, edit in edits.tensors.items()} == {
        "optimizer/state/0/step": (),
        "optimizer/state/0/exp_avg": (8, 1, 7, 7),
        "optimizer/state/0/exp_avg_sq": (8, 1, 7, 7),
    }
    for edit in edits.tensors.values():
        assert (edit.values().shape, edit.values().dtype, edit.values().any()) == (edit.shape, np.float32, np.False_)
    assert (edits.numbers, edits.dropped) == ({}, [])


def test_a_step_that_is_a_plain_integer():
    entries = {"0": {"step": 7, "exp_avg": kernel(8, 3, 7, 7), "other": 3}}
    assert state(net().optimizer("o/state", entries)).numbers == {"o/state/0/step": 0}


def test_dropped_entries_are_named():
    edits = state(net().optimizer("optimizer/state", ENTRIES), "drop")
    assert (edits.dropped, edits.tensors) == (["optimizer/state/0"], {})


OWNERS: dict[str, tuple[Memory, dict[str, tuple[int, ...]], list[str]]] = {
    # the numbers of parameters say nothing: the third is the stem's
    "by shape": (
        net().optimizer("o/state", {"0": adam(8), "1": adam(5, 8), "2": adam(8, 3, 7, 7)}),
        {STEM: (8, 1, 7, 7)},
        ["o/state/2"],
    ),
    "by name": (
        net(other=kernel(8, 3, 7, 7)).optimizer("o/state", {"other": adam(8, 3, 7, 7), STEM: adam(8, 3, 7, 7)}),
        {STEM: (8, 1, 7, 7)},
        [f"o/state/{STEM}"],
    ),
    "by order among equal shapes": (
        net(later=kernel(8, 3, 7, 7)).optimizer("o/state", {"0": adam(8, 3, 7, 7), "9": adam(8, 3, 7, 7)}),
        {STEM: (8, 1, 7, 7)},
        ["o/state/0"],
    ),
    "parallel stems": (
        net(beside=kernel(8, 3, 7, 7)).optimizer("o/state", {"0": adam(8, 3, 7, 7), "1": adam(8, 3, 7, 7)}),
        {STEM: (8, 1, 7, 7), "beside": (8, 1, 7, 7)},
        ["o/state/0", "o/state/1"],
    ),
    "of two optimizers": (
        net().optimizer("a/state", ENTRIES).optimizer("b/state", {"0": adam(8), "1": adam(8, 3, 7, 7)}),
        {STEM: (8, 1, 7, 7)},
        ["a/state/0", "b/state/1"],
    ),
    "an averaged copy has none": (
        Memory({"model": NET, "ema": NET}).optimizer("o/state", ENTRIES),
        {f"model/{STEM}": (8, 1, 7, 7), f"ema/{STEM}": (8, 1, 7, 7)},
        ["o/state/0"],
    ),
    "a frozen stem has none": (net().optimizer("o/state", {"1": adam(8)}), {STEM: (8, 1, 7, 7)}, []),
    "no state at all": (net(), {STEM: (8, 1, 7, 7)}, []),
}


@pytest.mark.parametrize(("checkpoint", "kernels", "where"), OWNERS.values(), ids=OWNERS)
def test_whose_it_is(checkpoint: Memory, kernels: dict[str, tuple[int, ...]], where: list[str]):
    assert OptimizerEdits(checkpoint, kernels, "drop").dropped == where
    reset = {name.rpartition("/")[0] for name in OptimizerEdits(checkpoint, kernels, "reset").tensors}
    assert reset == set(where)


def test_what_cannot_be_told_apart_is_refused():
    """Two entries, three tensors of their shape, one of them the kernel."""
    checkpoint = net(b=kernel(8, 3, 7, 7), c=kernel(8, 3, 7, 7))
    checkpoint.optimizer("o/state", {"0": adam(8, 3, 7, 7), "1": adam(8, 3, 7, 7)})
    with pytest.raises(UnsupportedError, match=r"a.pth: o/state/0: 2 entries have the shape \[8, 3, 7, 7\]"):
        state(checkpoint)


@pytest.mark.parametrize(
    "slots",
    [{"exp_avg_sq_row": kernel(8, 3, 7)}, {"quantized": np.ones((8, 3, 7, 7), np.uint8)}],
    ids=["factored", "integers"],
)
def test_state_of_another_kind_can_only_be_dropped(slots: dict[str, Any]):
    checkpoint = net().optimizer("o/state", {"0": {"exp_avg": kernel(8, 3, 7, 7), **slots}})
    with pytest.raises(UnsupportedError, match="cannot be reset") as caught:
        state(checkpoint)
    assert caught.value.hint.startswith("--optimizer drop")
    assert state(checkpoint, "drop").dropped == ["o/state/0"]


def test_state_is_no_model():
    assert {t.name for t in net().optimizer("o/state", ENTRIES).model_tensors()} == set(NET)
