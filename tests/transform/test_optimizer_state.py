"""What an optimizer keeps for the kernels: whose it is, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.tensors import OptimizerEntry
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


FACTORED = {"0": {"step": 1, "row_var": kernel(8, 3, 7, 1), "col_var": kernel(8, 3, 1, 7)}, "1": {"variance": kernel(8)}}
KEPT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Adafactor of torch": (FACTORED, ["o/state/0"]),
    "Adafactor of transformers": ({"0": {"row": kernel(8, 3, 7), "col": kernel(8, 3, 7)}, "2": {"sq": kernel(8)}}, ["o/state/0"]),
    "a frozen kernel, others factored": ({"2": {"row": kernel(8, 8, 3), "col": kernel(8, 8, 3)}, "1": {"sq": kernel(8)}}, []),
    "one entry for all": ({"0": {"d": kernel(1800), "old_dirs/0": kernel(1800)}}, ["o/state/0"]),
    "scalars say nothing": ({"0": {"step": np.float32(1).reshape(())}}, []),
}


@pytest.mark.parametrize(("entries", "where"), KEPT.values(), ids=KEPT)
def test_state_of_another_shape_is_not_left_behind(entries: dict[str, Any], where: list[str]):
    checkpoint = net().optimizer("o/state", entries)
    assert state(checkpoint, "drop").dropped == where
    if not where:
        assert state(checkpoint).tensors == {}
        return
    with pytest.raises(UnsupportedError, match=r"o/state/0/\w+.*cannot be reset"):
        state(checkpoint)


def test_factored_state_of_a_matrix_is_not_a_vectors():
    """The rows of [5, 8] have the shape of a bias."""
    checkpoint = net().optimizer("o/state", {"3": {"row": kernel(5), "col": kernel(8)}, "1": {"sq": kernel(8)}})
    assert state(checkpoint, "drop", **{"fc.weight": (5, 4)}).dropped == ["o/state/3"]


def test_whose_it_is_does_not_matter_where_all_change_alike():
    groups = {"": {**NET, **{f"key.{name}": array for name, array in NET.items()}}}
    checkpoint = Memory(groups).optimizer("o/state", ENTRIES)
    changed = {STEM: (8, 5, 7, 7), f"key.{STEM}": (8, 5, 7, 7)}
    assert state(checkpoint, "drop", **changed).dropped == ["o/state/0"]
    assert {t.shape for t in state(checkpoint, **changed).tensors.values()} == {(8, 5, 7, 7), ()}


def test_the_order_of_numbers_is_that_of_parameters():
    """The file keeps the order in which parameters got their first gradients."""
    checkpoint = net(later=kernel(8, 3, 7, 7)).optimizer("o/state", {"10": adam(8, 3, 7, 7), "2": adam(8, 3, 7, 7)})
    assert state(checkpoint, "drop").dropped == ["o/state/2"]


def test_parameters_in_another_order_than_the_models_cannot_be_told_apart():
    """As where the last layers come first, for a rate of their own."""
    entries = {"0": adam(8, 3, 7, 7), "1": adam(5, 8), "2": adam(8, 8, 3, 3), "3": adam(8, 3, 7, 7)}
    checkpoint = net(later=kernel(8, 3, 7, 7)).optimizer("o/state", entries)
    with pytest.raises(UnsupportedError, match="their order is ambiguous"):
        state(checkpoint)
    assert state(checkpoint, "drop").dropped == ["o/state/0", "o/state/3"]


def test_all_that_cannot_be_told_apart_can_be_dropped():
    checkpoint = net(b=kernel(8, 3, 7, 7), c=kernel(8, 3, 7, 7))
    checkpoint.optimizer("o/state", {"0": adam(8, 3, 7, 7), "1": adam(8, 3, 7, 7)})
    assert state(checkpoint, "drop").dropped == ["o/state/0", "o/state/1"]


@pytest.mark.parametrize("slot", ["step_size", "eta", "lookahead_slow_buff", "p0", "master_param"])
def test_a_slot_that_does_not_begin_with_zeros_is_not_reset(slot: str):
    checkpoint = net().optimizer("o/state", {"0": {"exp_avg": kernel(8, 3, 7, 7), slot: kernel(8, 3, 7, 7)}})
    with pytest.raises(UnsupportedError, match=f"o/state/0/{slot}: does not begin with zeros"):
        state(checkpoint)


def test_a_product_of_factors_begins_with_one():
    checkpoint = net().optimizer("o/state", {"0": {"mu_product": np.float32(0.5).reshape(()), "exp_avg": kernel(8, 3, 7, 7)}})
    assert state(checkpoint).tensors["o/state/0/mu_product"].values() == 1


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_state_that_is_flattened_into_names(wrapper: str):
    slots = {f"optim.state.{name}.exp_avg": array for name, array in NET.items()}
    checkpoint = Memory({"": {**{f"{wrapper}{name}": array for name, array in NET.items()}, **slots}})
    changed = {f"{wrapper}{STEM}": (8, 1, 7, 7)}
    edits = state(checkpoint, **changed)
    assert {name: edit.shape for name, edit in edits.tensors.items()} == {f"optim.state.{STEM}.exp_avg": (8, 1, 7, 7)}
    with pytest.raises(UnsupportedError, match=f"optim.state.{STEM}: torch loads"):
        state(checkpoint, "drop", **changed)


def test_a_module_called_state_is_a_module():
    checkpoint = Memory(
        {"": {"state.conv1.weight": kernel(8, 3, 7, 7), "state.conv1.bias": kernel(8), "fc.weight": kernel(5, 8)}}
    )
    assert state(checkpoint, **{"state.conv1.weight": (8, 1, 7, 7)}).tensors == {}


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_a_whole_optimizer_is_refused(how: str):
    checkpoint = net()
    checkpoint.optimizer_entries = (OptimizerEntry("run.optimizer", "", {}, {}, whole=True),)
    with pytest.raises(UnsupportedError, match=r"run\.optimizer: is a whole optimizer"):
        state(checkpoint, how)
    assert OptimizerEdits(checkpoint, {}, how).dropped == []


@pytest.mark.parametrize("shape", [(8, 3, 7, 7), (1500,)], ids=["the kernel's", "flat"])
def test_master_weights_in_an_optimizer_are_refused(shape: tuple[int, ...]):
    checkpoint = Memory({"model": NET, "optimizer/fp32_from_fp16": {"0": kernel(*shape)}}).optimizer(
        "optimizer/inner/state", ENTRIES
    )
    changed = {f"model/{STEM}": (8, 1, 7, 7)}
    with pytest.raises(UnsupportedError, match="optimizer/fp32_from_fp16/0: belongs to an optimizer"):
        state(checkpoint, **changed)


def test_master_weights_that_change_too_are_no_obstacle():
    groups = {"model": NET, "optimizer/fp32_from_fp16": {"0": kernel(8, 3, 7, 7)}}
    changed = {f"model/{STEM}": (8, 1, 7, 7), "optimizer/fp32_from_fp16/0": (8, 1, 7, 7)}
    checkpoint = Memory(groups).optimizer("optimizer/inner/state", ENTRIES)
    assert state(checkpoint, "drop", **changed).dropped == ["optimizer/inner/state/0"]
