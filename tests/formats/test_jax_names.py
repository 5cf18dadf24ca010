"""JAX's names as PyTorch's: which kernels are convolutions, and what their shapes are there. Which array of an optimizer belongs
to which parameter, by the paths of optax, of flax.optim and of big_vision."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.find import find_first_convs
from chkpt_channels.formats.jax_names import NamedArrays, layout_of, optimizer_entries
from tests.support.memory import Memory, kernel

Shape = tuple[int, ...]


def store(shapes: dict[str, Shape]) -> Memory:
    """Arrays of these shapes, in no order."""
    memory = Memory({"": {name: np.zeros(shape, "f4") for name, shape in shapes.items()}})
    memory.ordered = False
    memory.tensors = {name: t._replace(layout=layout_of(name, shapes)) for name, t in memory.tensors.items()}
    memory.graph = NamedArrays(memory)
    return memory


@pytest.mark.parametrize(
    ("name", "beside", "layout", "seen"),
    [
        ("a/kernel", {"a/kernel": (7, 7, 3, 64)}, "HWIO", (64, 3, 7, 7)),
        ("a/kernel", {"a/kernel": (7, 7, 3, 64), "a/bias": (64,)}, "HWIO", (64, 3, 7, 7)),
        ("a/kernel", {"a/kernel": (3, 8, 16)}, "WIO", (16, 8, 3)),
        ("a/kernel", {"a/kernel": (2, 7, 7, 3, 64)}, "DHWIO", (64, 3, 2, 7, 7)),
        ("a/kernel", {"a/kernel": (16, 8)}, None, (8, 16)),
        ("query/kernel", {"query/kernel": (192, 3, 64), "query/bias": (3, 64)}, None, (192, 192)),
        ("a/query/kernel", {"a/query/kernel": (192, 3, 64)}, None, (192, 192)),
        ("a/out/kernel", {"a/out/kernel": (3, 64, 192), "a/out/bias": (192,), "a/query/kernel": (192, 3, 64)}, None, (192, 192)),
        ("a/kernel", {"a/kernel": (12, 192, 768), "a/bias": (12, 768)}, None, (768, 192)),
        ("a/kernel", {"a/kernel": (12, 192, 3, 64), "a/bias": (12, 3, 64)}, None, (192, 192)),
        ("a/kernel", {"a/kernel": (12, 3, 3, 3, 8, 16), "a/bias": (12, 16)}, None, (16, 8, 3, 3, 3)),
        ("out/kernel", {"out/kernel": (3, 3, 8, 16)}, "HWIO", (16, 8, 3, 3)),
    ],
)
def test_a_kernel_is_seen_as_pytorch_has_it(name: str, beside: dict[str, Shape], layout: str | None, seen: Shape):
    shapes = {**beside, "stem/kernel": (7, 7, 3, 8)}
    assert layout_of(name, shapes) == layout
    view = {name: tensor for tensor, name in NamedArrays(store(shapes)).search_view().items()}
    assert view[name].shape == seen
    assert view[name].key == name.replace("/", ".").replace("kernel", "weight")


def test_variables_of_a_module_stand_together():
    shapes = {"params/c/kernel": (3, 3, 3, 8), "params/bn/scale": (8,), "batch_stats/bn/mean": (8,), "batch_stats/bn/var": (8,)}
    view = store(shapes).graph.search_view()
    assert [t.name for t in view] == ["c.weight", "bn.weight", "bn.running_mean", "bn.running_var"]
    assert list(view.values()) == list(shapes)


def test_the_same_name_in_two_collections_is_told_apart():
    view = store({"params/c/kernel": (3, 3, 3, 8), "c/kernel": (3, 3, 3, 8)}).graph.search_view()
    assert [t.name for t in view] == ["c.weight", "c.kernel"]


def test_without_a_convolution_nothing_is_seen():
    assert store({"a/kernel": (8, 3), "conv1.weight": (8, 3, 7, 7)}).graph.search_view() == {}


def test_heads_are_no_channels():
    """ViT-Ti has three heads, and a stack of layers three axes."""
    inner = {f"encoder/{i}/a/{role}/kernel": (192, 3, 64) for i in range(2) for role in ("query", "key", "value")}
    inner |= {f"encoder/{i}/a/out/kernel": (3, 64, 192) for i in range(2)}
    inner |= {"scan/Dense_0/kernel": (12, 192, 768), "scan/Dense_0/bias": (12, 768)}
    inner |= {"scan/Dense_1/kernel": (12, 768, 192), "scan/Dense_1/bias": (12, 192)}
    found = find_first_convs(store({**inner, "embedding/kernel": (16, 16, 3, 192), "head/kernel": (192, 10)}))
    assert [(c.tensor.name, c.layout, c.in_channels) for c in found.first_convs] == [("embedding/kernel", "HWIO", 3)]


def test_candidates_have_the_names_and_shapes_of_the_file():
    found = find_first_convs(store({"a/kernel": (3, 3, 2, 8), "b/kernel": (3, 3, 5, 8), "c/kernel": (3, 3, 16, 16)}))
    assert not found.first_convs
    assert {c.key: c.shape for c in found.candidates}.items() <= {
        "a/kernel": (3, 3, 2, 8),
        "b/kernel": (3, 3, 5, 8),
        "c/kernel": (3, 3, 16, 16),
    }.items()
    assert found.candidates


def test_names_of_pytorch_are_left_alone():
    memory = Memory({"": {"conv1.weight": kernel(8, 3, 7, 7), "conv2.weight": kernel(8, 8, 3, 3)}})
    assert NamedArrays(memory).search_view() == {}


def test_a_kernel_without_axes_is_none():
    """Its bias has two: not one of several layers that are alike."""
    assert layout_of("stem/kernel", {"stem/kernel": (), "stem/bias": (3, 4)}) is None


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
    (entry,) = optimizer_entries(tensors({parameter: (3, 3, 3, 8), state: (3, 3, 3, 8)}))
    assert (entry.where, entry.parameter) == (where, parameter)
    assert {name: tensor.name for name, tensor in entry.tensors.items()} == {slot: state}


def test_the_trained_weights_own_the_state_and_not_their_average():
    names = ("ema_params/c/kernel", "params/c/kernel", "opt_state/0/mu/c/kernel", "opt_state/0/nu/c/kernel")
    (entry,) = optimizer_entries(tensors(dict.fromkeys(names, (3, 3, 3, 8))))
    assert (entry.parameter, sorted(entry.tensors)) == ("params/c/kernel", ["mu", "nu"])


def test_counters_belong_to_nobody():
    found = optimizer_entries(tensors({"params/c/kernel": (3, 3, 3, 8), "opt_state/0/count": ()}))
    assert [(entry.parameter, list(entry.tensors)) for entry in found] == [("", ["opt_state/0/count"])]


def test_a_model_alone_has_none():
    assert optimizer_entries(tensors({"params/c/kernel": (3, 3, 3, 8), "params/adopt/kernel": (8, 8)})) == ()
