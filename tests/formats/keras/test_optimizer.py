"""Whose state the slots of an optimizer are: by their names, and by their order."""

from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import OptimizerEntry, Tensor
from chkpt_channels.formats.keras.optimizer import by_name, by_order, entries, own_names

WEIGHTS = {"stem/kernel": "stem/stem/kernel:0", "stem/bias": "stem/stem/bias:0", "block_a/conv_1/kernel": "k"}


@pytest.mark.parametrize(
    ("slot", "owner"),
    [
        ("Adam/m/stem/kernel:0", "stem/kernel"),
        ("Adam/v/stem/bias:0", "stem/bias"),
        ("Adam/stem/kernel/m:0", "stem/kernel"),
        ("RMSprop/stem/kernel/rms:0", "stem/kernel"),
        ("SGD/stem/kernel/momentum:0", "stem/kernel"),
        ("adam/stem_kernel_momentum", "stem/kernel"),
        ("adam/stem_bias_velocity", "stem/bias"),
        ("adam/block_a_conv_1_kernel_momentum", "block_a/conv_1/kernel"),
        ("Adam/m/block_a/conv_1/kernel:0", "block_a/conv_1/kernel"),
        ("Adam/iter:0", None),
        ("adam/learning_rate", None),
        ("Adam/m/head/kernel:0", None),
        ("stem/kernel", None),
    ],
)
def test_slots_that_repeat_the_name_of_their_weight(slot: str, owner: str | None):
    assert by_name([slot], WEIGHTS) == ({slot: WEIGHTS[owner]} if owner else {})


SHAPES = {"kernel": (3, 3, 3, 8), "bias": (8,), "dense": (8, 5)}


def slots(*shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"vars/{i}": shape for i, shape in enumerate(shapes)}


def test_slots_of_one_weight_behind_each_other():
    kernel, bias, dense = SHAPES.values()
    made = slots((), (), kernel, kernel, bias, bias, dense, dense)
    assert list(by_order(made, SHAPES).items()) == [
        *(("vars/2", "kernel"), ("vars/3", "kernel"), ("vars/4", "bias"), ("vars/5", "bias")),
        *(("vars/6", "dense"), ("vars/7", "dense")),
    ]


def test_slot_by_slot_all_weights():
    kernel, bias, dense = SHAPES.values()
    owners = by_order(slots((), kernel, bias, dense, kernel, bias, dense), SHAPES)
    assert list(owners.values()) == ["kernel", "bias", "dense"] * 2


def test_where_the_order_is_unknown_shapes_of_one_weight_tell():
    kernel, bias, dense = SHAPES.values()
    assert by_order(slots((), dense, kernel, (7,)), SHAPES) == {"vars/1": "dense", "vars/2": "kernel"}
    twice = {**SHAPES, "other": bias}
    assert by_order(slots(bias, kernel), twice) == {"vars/1": "kernel"}


def test_without_weights_or_slots_nothing_belongs():
    assert by_order(slots((8,)), {}) == {}
    assert by_order({}, SHAPES) == {}


def test_weights_call_themselves_what_stands_behind_their_layer():
    assert own_names(["stem/stem/kernel:0", "inner/block/conv/bias:12", "alone"]) == {
        "stem/kernel": "stem/stem/kernel:0",
        "block/conv/bias": "inner/block/conv/bias:12",
        "": "alone",
    }


def test_every_slot_belongs_to_an_entry():
    made = {name: Tensor(name, BY_NAME["F32"], (8,)) for name in ("m", "v", "iter", "a/b")}
    assert entries("optimizer", {"m": "stem/kernel", "v": "stem/kernel"}, made) == (
        OptimizerEntry("optimizer/stem.kernel", "stem/kernel", {"m": made["m"], "v": made["v"]}, {}),
        OptimizerEntry("optimizer/iter", "", {"iter": made["iter"]}, {}),
        OptimizerEntry("optimizer/a.b", "", {"a/b": made["a/b"]}, {}),
    )
