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
    common_words,
    is_color_shift,
    is_no_kernel,
    is_weight,
    layer_of,
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
    "windows that are no squares, of PyTorch": ([(32, 32, 3, 13), (64, 32, 3, 9)], True, OIHW),
    "wide windows in PyTorch's file": ([(31, 31, 3, 64), (31, 31, 64, 64)], True, OIHW),
    "pixels say nothing": ([(1, 1, 1, 1)], False, None),
    "as many one way as the other": ([(64, 3, 7, 7), (7, 7, 3, 64)], False, None),
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


def test_a_layout_that_the_format_knows_is_taken():
    weights = [tensor("a.weight", (7, 5, 3, 64), layout="HWIO"), tensor("b.weight", (64, 12, 3, 3), layout="O(GI)HW")]
    weights.append(tensor("c.weight", (64, 64, 3, 3)))
    first, folded, _ = Network(weights, ordered=True, torch=True).kernels
    assert (first.filters, first.channels, first.window) == (64, 3, (7, 5))
    assert (folded.filters, folded.channels, folded.window) == (64, 12, (3, 3))


@pytest.mark.parametrize(
    ("window", "patch", "wide"),
    [
        ((16, 16), True, True),
        ((8, 8), True, True),
        ((2, 16, 16), True, True),
        ((7, 7), False, True),
        ((4, 4), False, True),
        ((16, 4), False, True),
        ((16,), False, True),
        ((1, 3), False, True),
        ((1, 1), False, False),
        ((), False, False),
    ],
    ids=str,
)
def test_a_window_shows_patches_or_single_pixels(window: tuple[int, ...], patch: bool, wide: bool):
    seen = kernel("a.weight")._replace(window=window)
    assert (seen.is_patch, seen.is_wide, seen.is_point) == (patch, wide, not wide)


TRANSPOSED: dict[str, tuple[Named, bool]] = {
    "its bias is as long as the second axis": ({"up.weight": (64, 3, 4, 4), "up.bias": (3,)}, True),
    "its bias is as long as the first": ({"up.weight": (64, 3, 4, 4), "up.bias": (64,)}, False),
    "a window of two under a name of upsampling": ({"upconv1.weight": (64, 32, 2, 2)}, True),
    "of four": ({"deconv.0.weight": (64, 32, 4, 4)}, True),
    "of three": ({"up.conv.weight": (64, 32, 3, 3)}, False),
    "under another name": ({"patch_embed.proj.weight": (96, 3, 4, 4)}, False),
    "as many in as out": ({"up.weight": (64, 64, 2, 2)}, False),
    "a product": ({"up.weight": (64, 32), "up.bias": (32,)}, False),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_kernel_has_its_filters_second(name: str):
    named, expected = TRANSPOSED[name]
    (found,) = network(named).kernels
    first, second, *_ = found.tensor.shape
    assert found.transposed == expected
    assert (found.filters, found.channels) == ((second, first) if expected else (first, second))


@pytest.mark.parametrize(
    ("shape", "none", "shift"),
    [
        ((1, 16, 3), True, False),
        ((1, 16, 7, 7), True, False),
        ((16, 1, 1), True, False),
        ((3, 3, 1, 1), True, True),
        ((16, 1, 1, 1), False, False),
        ((3, 3, 3, 3), False, False),
        ((4, 3, 1, 1), False, False),
        ((16, 3, 7, 7), False, False),
        ((3, 3), False, False),
    ],
    ids=str,
)
def test_what_has_the_rank_of_a_kernel_and_sees_no_image(shape: tuple[int, ...], none: bool, shift: bool):
    (found,) = network({"a.weight": shape}).kernels
    assert (is_no_kernel(found), is_color_shift(found)) == (none, shift)


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


def test_a_pattern_leaves_every_number_open():
    assert kernel("layer1.0.conv2.weight").pattern == kernel("layer4.13.conv1.weight").pattern == "layer#.#.conv#.weight"
    assert kernel("layer1/0/conv2/kernel:0").key == "layer1.0.conv2.kernel:0"


# Neighbors


RESNET: Named = {
    "conv1.weight": (16, 3, 7, 7),
    "bn1.weight": (16,),
    "layer1.0.conv1.weight": (16, 16, 3, 3),
    "layer1.0.conv2.weight": (24, 16, 3, 3),
    "layer1.1.conv1.weight": (24, 24, 3, 3),
    "fc.weight": (9, 24),
    "fc.bias": (9,),
}


def seen(*, ordered: bool) -> tuple[Network, dict[str, LayerWeight]]:
    found = network(RESNET, ordered=ordered)
    return found, {k.layer: k for k in found.kernels}


def layers(kernels: Sequence[LayerWeight]) -> list[str]:
    return [found.layer for found in kernels]


def test_in_module_order_all_that_comes_earlier_is_before():
    found, by_layer = seen(ordered=True)
    last = by_layer["layer1.1.conv1"]
    assert layers(found.preceding(last, 2)) == ["layer1.0.conv2", "layer1.0.conv1"]
    assert layers(found.following(by_layer["conv1"], 2)) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert layers(found.made_before(last, 16)) == ["conv1", "layer1.0.conv1"]
    assert found.is_before(by_layer["conv1"], last)
    assert not found.is_before(last, by_layer["conv1"])


def test_without_the_order_only_numbers_tell_what_is_before():
    found, by_layer = seen(ordered=False)
    last = by_layer["layer1.1.conv1"]
    assert layers(found.preceding(last, 2)) == ["layer1.0.conv2", "layer1.0.conv1"]
    assert layers(found.made_before(last, 16)) == ["layer1.0.conv1"]
    assert found.preceding(by_layer["layer1.0.conv1"], 2) == []
    assert not found.is_before(by_layer["conv1"], last)


def test_a_kernel_is_not_before_itself():
    found = network({"a.0.weight": (8, 8, 3, 3)})
    assert (
        found.made_before(found.kernels[0], 8)
        == found.preceding(found.kernels[0], 6)
        == found.following(found.kernels[0], 6)
        == []
    )


def test_makers_are_the_layers_by_their_filters():
    found = network({"sub_mean.weight": (3, 3, 1, 1), "dw.weight": (5, 1, 3, 3), **RESNET})
    assert {filters: layers(made) for filters, made in found.makers.items()} == {
        5: ["dw"],
        16: ["conv1", "layer1.0.conv1"],
        24: ["layer1.0.conv2", "layer1.1.conv1"],
        9: ["fc"],
    }
    assert found.mixed_widths == {9, 16, 24}


def test_widths_are_those_that_each_module_takes():
    """A layer has its input channels, a norm its length, in the order of the file."""
    assert [*network(RESNET).widths.items()] == [
        ("conv1", 3),
        ("bn1", 16),
        ("layer1.0.conv1", 16),
        ("layer1.0.conv2", 16),
        ("layer1.1.conv1", 24),
        ("fc", 24),
    ]


# Names


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1"),
        ("params/conv_init/kernel:0", "params.conv_init"),
        ("conv1.parametrizations.weight.original1", "conv1"),
        ("weight", ""),
    ],
)
def test_the_layer_is_the_module_that_holds_the_weight(key: str, layer: str):
    assert layer_of(key) == kernel(key).layer == layer


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (["module.model.conv1.weight", "module.model.fc.weight"], 2),
        (["conv1.weight", "fc.weight"], 0),
        (["model.a.weight", "model.b.weight", "head.weight"], 0),
        ([], 0),
    ],
    ids=["wrapped", "bare", "a head outside", "nothing"],
)
def test_the_trunk_is_what_all_names_share(names: list[str], shared: int):
    assert common_words(names) == network(dict.fromkeys(names, (4, 4, 3, 3))).trunk == shared


def test_a_branch_is_the_first_word_that_not_all_share():
    names = ("model.image.stem.weight", "model.image.layer1.weight", "model.text.embed.weight", "model.stage1.conv.weight")
    found = network(dict.fromkeys(names, (4, 4, 3, 3)))
    assert [found.branch(k) for k in found.kernels] == ["image", "image", "text", "stage1"]


def test_a_series_has_one_name_but_for_its_numbers():
    found, by_layer = seen(ordered=True)
    assert layers(found.series[by_layer["layer1.0.conv2"].pattern]) == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"]


def test_a_network_of_nothing_has_no_layers():
    found = network({})
    assert (found.kernels, found.convs, found.by_layer, found.widths, found.trunk) == ([], [], {}, {}, 0)
