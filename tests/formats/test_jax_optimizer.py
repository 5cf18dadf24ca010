"""Which array of an optimizer belongs to which parameter, by the paths of optax, of flax.optim and of big_vision."""

from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.formats.jax_optimizer import entries

Shape = tuple[int, ...]


def tensors(shapes: dict[str, Shape]) -> dict[str, Tensor]:
    return {name: Tensor(name, BY_NAME["F32"], shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("parameter", "state", "where", "slot"),
    [
        ("params/c/kernel", "opt_state/0/mu/c/kernel", "opt_state/0/params/c/kernel", "mu"),
        ("params/c/kernel", "opt_state/1/0/trace/c/kernel", "opt_state/1/0/params/c/kernel", "trace"),
        ("params/c/kernel", "opt_state/inner_state/0/nu/c/kernel", "opt_state/inner_state/0/params/c/kernel", "nu"),
        ("params/params/c/kernel", "opt_state/0/mu/params/c/kernel", "opt_state/0/params/params/c/kernel", "mu"),
        ("c/kernel", "opt/0/mu/c/kernel", "opt/0/c/kernel", "mu"),
        (
            "optimizer/target/c/kernel",
            "optimizer/state/param_states/c/kernel/grad_ema",
            "optimizer/state/param_states/optimizer/target/c/kernel",
            "grad_ema",
        ),
    ],
)
def test_an_array_of_a_parameter(parameter: str, state: str, where: str, slot: str):
    (entry,) = entries(tensors({parameter: (3, 3, 3, 8), state: (3, 3, 3, 8)}))
    assert (entry.where, entry.parameter) == (where, parameter)
    assert {name: tensor.name for name, tensor in entry.tensors.items()} == {slot: state}


def test_the_trained_weights_own_the_state_and_not_their_average():
    names = ("ema_params/c/kernel", "params/c/kernel", "opt_state/0/mu/c/kernel", "opt_state/0/nu/c/kernel")
    (entry,) = entries(tensors(dict.fromkeys(names, (3, 3, 3, 8))))
    assert (entry.parameter, sorted(entry.tensors)) == ("params/c/kernel", ["mu", "nu"])


def test_counters_belong_to_nobody():
    found = entries(tensors({"params/c/kernel": (3, 3, 3, 8), "opt_state/0/count": ()}))
    assert [(entry.parameter, list(entry.tensors)) for entry in found] == [("", ["opt_state/0/count"])]


def test_a_model_alone_has_none():
    assert entries(tensors({"params/c/kernel": (3, 3, 3, 8), "params/adopt/kernel": (8, 8)})) == ()
