"""The layers of a state dict: what names and shapes say of their order, their windows, and the parts of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import (
    HWIO,
    OHWI,
    OIHW,
    LayerWeight,
    Layouts,
    Network,
    is_weight,
    numbered_apart,
    orientation,
)

Named = Mapping[str, tuple[int, ...]]


def tensor(name: str, shape: Sequence[int], dtype: str = "F32", layout: str = "") -> Tensor:
    return Tensor(name, BY_NAME[dtype], tuple(shape), layout=Layout(layout) if layout else None)


def network(named: Named, *, ordered: bool = True, torch: bool = True) -> Network:
    return Network([tensor(name, shape) for name, shape in named.items()], ordered=ordered, torch=torch)


def kernel(name: str) -> LayerWeight:
    return network({name: (4, 3, 3, 3)}).kernels[0]


def keys(kernels: Sequence[LayerWeight]) -> list[str]:
    return [found.key for found in kernels]


# What is a weight


@pytest.mark.parametrize(
    "name",
    [
        *("weight", "conv1.weight", "conv1/kernel", "conv1/kernel:0", "stem.filters", "dw/depthwise_kernel", "w", "Conv_0/w"),
        *("conv.parametrizations.weight.original", "conv.parametrizations.weight.original1", "conv.weight_v", "conv.weight_orig"),
        *("conv1_W", "conv1_W_0", "layers/3", "12"),
    ],
)
def test_weights_are_known_by_their_names(name: str):
    assert is_weight(tensor(name, (8, 3, 3, 3)))


@pytest.mark.parametrize(
    "name",
    [
        *("conv1.bias", "weights", "conv1.weight_g", "conv1.weight.scale", "norm1.weight", "layers.0.norm2.weight"),
        *("pos_embed.weight", "cls_token.weight", "relative_position_bias_table.weight", "bn.running_weight"),
        *("token_type_embeddings.weight", "anchors.weight"),
    ],
)
def test_what_is_named_otherwise_is_none(name: str):
    assert not is_weight(tensor(name, (8, 3, 3, 3)))


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((8, 3), "F32", True),
        ((8, 3, 3, 3, 3), "BF16", True),
        ((8, 3, 3, 3), "QI8", True),
        ((8,), "F32", False),
        ((), "F32", False),
        ((8, 3, 3, 3, 3, 3), "F32", False),
        ((8, 0, 3, 3), "F32", False),
        ((8, 3, 3, 3), "I8", False),
        ((8, 3, 3, 3), "BOOL", False),
    ],
)
def test_a_weight_has_two_to_five_axes_of_floats(shape: tuple[int, ...], dtype: str, expected: bool):
    assert is_weight(tensor("conv.weight", shape, dtype)) == expected


# Orientation


ORIENTED: dict[str, tuple[list[tuple[int, ...]], bool, Layouts | None]] = {
    "PyTorch": ([(64, 3, 7, 7), (64, 64, 3, 3)], True, OIHW),
    "PyTorch's shapes of another writer": ([(64, 3, 7, 7), (128, 64, 3, 3)], False, OIHW),
    "Keras": ([(7, 7, 3, 64), (3, 3, 64, 128)], False, HWIO),
    "Keras's shapes in PyTorch's file": ([(7, 7, 3, 64), (3, 3, 64, 128)], True, HWIO),
    "MLX": ([(64, 7, 7, 3), (128, 3, 3, 64)], False, OHWI),
    "volumes": ([(16, 3, 5, 5, 5), (32, 16, 3, 3, 3)], False, OIHW),
    "cubes say nothing": ([(3, 3, 3, 3)], False, None),
    "cubes that PyTorch wrote": ([(3, 3, 3, 3)], True, OIHW),
    "pixels say nothing": ([(1, 1, 1, 1)], False, None),
    "as many one way as the other": ([(64, 3, 7, 7), (7, 7, 3, 64)], True, None),
    "only products": ([(64, 3), (10, 64)], False, OIHW),
    "nothing": ([], False, OIHW),
}


@pytest.mark.parametrize("name", ORIENTED)
def test_windows_are_squares_and_smaller_than_the_other_axes(name: str):
    shapes, torch, expected = ORIENTED[name]
    layouts, unclear = orientation([tensor(f"{i}.weight", shape) for i, shape in enumerate(shapes)], torch=torch)
    assert unclear == (expected is None)
    assert expected is None or layouts is expected


@pytest.mark.parametrize(
    ("shapes", "filters", "channels", "window"),
    [
        ([(64, 3, 7, 5), (64, 64, 3, 3)], 64, 3, (7, 5)),
        ([(7, 7, 3, 64), (3, 3, 64, 128)], 64, 3, (7, 7)),
        ([(64, 7, 7, 3), (128, 3, 3, 64)], 64, 3, (7, 7)),
        ([(64, 3, 5), (64, 64, 3, 3)], 64, 3, (5,)),
        ([(64, 48)], 64, 48, ()),
    ],
    ids=["OIHW", "HWIO", "OHWI", "OIW", "OI"],
)
def test_a_kernel_is_seen_through_the_layout_of_the_file(
    shapes: list[tuple[int, ...]], filters: int, channels: int, window: tuple[int, ...]
):
    first = network({f"layer{i}.weight": shape for i, shape in enumerate(shapes)}, torch=False).kernels[0]
    assert (first.filters, first.channels, first.window) == (filters, channels, window)
    assert first.convolves == bool(window)


def test_a_layout_that_the_format_knows_is_taken():
    weights = [tensor("a.weight", (7, 5, 3, 64), layout="HWIO"), tensor("b.weight", (64, 12, 3, 3), layout="O(GI)HW")]
    weights.append(tensor("c.weight", (64, 64, 3, 3)))
    first, folded, _ = Network(weights, ordered=True, torch=True).kernels
    assert (first.filters, first.channels, first.window) == (64, 3, (7, 5))
    assert (folded.filters, folded.channels, folded.window) == (64, 12, (3, 3))


@pytest.mark.parametrize(
    ("window", "expected"),
    [((16, 16), True), ((8, 8), True), ((2, 16, 16), True), ((7, 7), False), ((4, 4), False), ((16, 4), False), ((16,), False)],
    ids=str,
)
def test_a_patch_is_cut_by_a_large_even_window(window: tuple[int, ...], expected: bool):
    assert kernel("a.weight")._replace(window=window).is_patch == expected


# Order


def test_modules_keep_the_order_of_the_file():
    found = network({"head.weight": (4, 4, 3, 3), "stem.weight": (4, 3, 3, 3), "fc.weight": (9, 4)})
    assert keys(found.kernels) == ["head.weight", "stem.weight", "fc.weight"]
    assert [k.at for k in found.kernels] == [0, 1, 2]
    assert keys(found.convs) == ["head.weight", "stem.weight"]


def test_numbers_are_sorted_as_numbers_where_the_order_is_lost():
    named = dict.fromkeys(("layer10.weight", "layer9.weight", "layer1.2.weight", "layer1.10.weight", "stem.weight"), (4, 4, 3, 3))
    found = network(named, ordered=False)
    assert keys(found.kernels) == ["layer1.2.weight", "layer1.10.weight", "layer9.weight", "layer10.weight", "stem.weight"]


@pytest.mark.parametrize(
    ("later", "earlier", "expected"),
    [
        ("layer1.1.weight", "layer1.0.weight", True),
        ("layer10.weight", "layer9.weight", True),
        ("layer2.0.conv9.weight", "layer1.5.conv1.weight", True),
        ("stem.weight", "head.weight", False),
        ("layer1.conv.weight", "layer1.bn.weight", False),
        ("layer1.weight", "layer1.weight", False),
        ("layer1.0.a.weight", "layer1.x.a.weight", False),
    ],
)
def test_only_numbers_tell_what_comes_later(later: str, earlier: str, expected: bool):
    a, b = kernel(later), kernel(earlier)
    assert (a.follows(b), b.follows(a)) == (expected, False)
    assert numbered_apart(a, b) == numbered_apart(b, a) == expected


def test_a_pattern_leaves_every_number_open():
    assert kernel("layer1.0.conv2.weight").pattern == kernel("layer4.13.conv1.weight").pattern == "layer#.#.conv#.weight"
    assert kernel("layer1/0/conv2/kernel:0").key == "layer1.0.conv2.kernel:0"


# Parts


TOWERS: Named = {
    "model.image.stem.weight": (4, 3, 3, 3),
    "model.image.layer1.weight": (4, 4, 3, 3),
    "model.text.embed.weight": (9, 4),
    "model.stage1.conv.weight": (4, 4, 3, 3),
    "model.stage2.conv.weight": (4, 4, 3, 3),
}


def test_a_tower_is_the_first_word_that_not_all_share():
    found = network(TOWERS)
    assert [found.branch(k) for k in found.kernels] == ["image", "image", "text", "stage", "stage"]
    assert found.branch_sizes == {"image": 2, "text": 1, "stage": 2}


def test_neighbors_are_those_of_the_tower():
    found = network(TOWERS)
    stem, layer, text, first, second = found.kernels
    assert list(found.preceding(layer, 6)) == [stem]
    assert list(found.preceding(text, 6)) == []
    assert list(found.preceding(second, 1)) == [first]
    assert found.following(stem, 6) == [layer]
    assert found.following(first, 6) == [second]
    assert found.following(stem, 0) == []


def test_without_the_order_only_numbers_tell_what_is_in_front():
    found = network({"a.0.weight": (4, 4, 3, 3), "a.1.weight": (4, 4, 3, 3), "a.b.weight": (4, 4, 3, 3)}, ordered=False)
    by_key = {k.key: k for k in found.kernels}
    assert keys(list(found.preceding(by_key["a.1.weight"], 6))) == ["a.0.weight"]
    assert list(found.preceding(by_key["a.b.weight"], 6)) == []


@pytest.mark.parametrize(
    ("a", "b", "module"),
    [
        ("model.image.stem.weight", "model.image.layer1.weight", "model.image."),
        ("model.image.stem.weight", "model.text.embed.weight", ""),
        ("model.stage1.conv.weight", "model.stage2.conv.weight", ""),
    ],
)
def test_the_module_that_two_layers_share_is_not_the_whole_network(a: str, b: str, module: str):
    found = network(TOWERS)
    by_key = {k.key: k for k in found.kernels}
    assert found.shared_module(by_key[a], by_key[b]) == module


def test_blocks_are_numbered_modules():
    named = ("layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv1.weight", "stem.conv.weight")
    found = network(dict.fromkeys(named, (4, 4, 3, 3)))
    assert found.blocks == {
        "layer1": frozenset({"0.conv1.weight", "0.conv2.weight", "1.conv1.weight"}),
        "layer1.0": frozenset({"conv1.weight", "conv2.weight"}),
        "layer1.0.conv1": frozenset({"weight"}),
        "layer1.0.conv2": frozenset({"weight"}),
        "layer1.1": frozenset({"conv1.weight"}),
        "layer1.1.conv1": frozenset({"weight"}),
    }
    assert keys(found.under("layer1.0.")) == ["layer1.0.conv1.weight", "layer1.0.conv2.weight"]


def test_a_network_of_nothing_has_no_parts():
    found = network({})
    assert (found.kernels, found.convs, found.blocks, found.branch_sizes) == ([], [], {}, {})
