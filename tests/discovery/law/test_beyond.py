"""The image that goes past the stems: what shows it, and what only looks so."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.beyond import may_be_depthwise, why_past, why_unnamed
from chkpt_channels.discovery.law.network import Network
from chkpt_channels.discovery.law.places import Places

Named = Mapping[str, tuple[int, ...]]


def why(named: Named, *stems: str, channels: int = 3, ordered: bool = True) -> str:
    tensors = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    network = Network(tensors if ordered else sorted(tensors), ordered=ordered, torch=True)
    return why_past(Places(network), [network.by_layer[stem] for stem in stems], channels)


ENET: Named = {
    "initial_block.main_branch": (13, 3, 3, 3),
    "initial_block.batch_norm": (16,),
    "downsample1_0.ext_conv1.0": (16, 16, 2, 2),
    "downsample1_0.ext_conv2.0": (64, 16, 3, 3),
}
PAST: dict[str, tuple[Named, str, str]] = {
    "ENet: the norm of its first block": (
        ENET,
        "initial_block.main_branch",
        "initial_block.batch_norm takes 16 channels, the 13 of initial_block.main_branch and 3 of the image",
    ),
    "EDANet: its first block": (
        {"layers.0.conv": (12, 3, 3, 3), "layers.0.bn": (15,), "layers.1.conv": (45, 15, 3, 3), "fc": (9, 45)},
        "layers.0.conv",
        "layers.0.bn takes 15 channels, the 12 of layers.0.conv and 3 of the image",
    ),
    "the image joined to the last layer": (
        {"stem.conv": (32, 3, 3, 3), "body.conv": (64, 32, 3, 3), "refine.conv": (8, 67, 3, 3)},
        "stem.conv",
        "refine.conv takes 67 channels, {}",
    ),
    "the image joined to the last layer, which makes a mask": (
        {"stem.conv": (32, 3, 3, 3), "body.conv": (64, 32, 3, 3), "refine.conv": (1, 67, 3, 3)},
        "stem.conv",
        "refine.conv takes 67 channels, {}",
    ),
    "a network that makes another image": (
        {"colors.a": (3, 3, 3, 3), "body.conv": (64, 3, 3, 3), "body.b": (9, 64, 3, 3)},
        "colors.a",
        "colors.a makes 3 channels, as few as an image has",
    ),
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", PAST)
def test_the_layer_that_takes_the_image_too_is_named(name: str, ordered: bool):
    named, stem, expected = PAST[name]
    told = why(named, stem, ordered=ordered)
    if "{}" in expected:
        both = ("the 64 of stem.conv and 3 of the image", "3 more than any layers make")
        assert told in {expected.format(end) for end in both}
    else:
        assert told == expected


NOT_PAST: dict[str, tuple[Named, str]] = {
    "a plain network": ({"conv1": (64, 3, 7, 7), "bn1": (64,), "layer1.conv": (64, 64, 3, 3), "fc": (10, 64)}, "conv1"),
    "a layer between makes the difference": (
        {"conv1": (16, 3, 3, 3), "bn1": (16,), "layer1.conv": (19, 16, 3, 3), "layer1.bn": (19,), "fc": (10, 19)},
        "conv1",
    ),
    "DenseNet, whose widths grow": (
        {
            "conv0": (64, 3, 7, 7),
            "denselayer1.conv": (32, 64, 3, 3),
            "denselayer2.conv": (32, 96, 3, 3),
            "denselayer3.conv": (32, 128, 3, 3),
        },
        "conv0",
    ),
    "a U-Net, which joins what it made": (
        {"inc.conv": (64, 3, 3, 3), "down.conv": (128, 64, 3, 3), "up.conv": (64, 192, 3, 3), "outc.conv": (2, 64, 1, 1)},
        "inc.conv",
    ),
    "a grouped layer": (
        {"stem": (32, 3, 3, 3), "a.conv1": (96, 32, 1, 1), "a.conv2": (96, 6, 3, 3), "a.conv3": (64, 96, 1, 1)},
        "stem",
    ),
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", NOT_PAST)
def test_widths_that_layers_make_show_no_image(name: str, ordered: bool):
    named, stem = NOT_PAST[name]
    assert why(named, stem, ordered=ordered) == ""


def test_one_channel_that_is_filtered_first_would_be_filtered_each():
    """A Sobel or a blur over gray is depthwise over colors: no edit of the stem makes it so."""
    net: Named = {"conv1": (16, 1, 3, 3), "conv2": (16, 16, 3, 3), "fc": (10, 16)}
    blurred = {"blur": (1, 1, 5, 5), **net}
    assert why(blurred, "conv1", channels=1) == "blur filters the one channel, and of several channels it would be depthwise"
    assert why({"gate": (1, 16, 5, 5), **net}, "conv1", channels=1) == ""
    assert why({"filter": (1, 1, 5, 1), **net}, "conv1", channels=1) == ""
    assert why({**net, "blur": (1, 1, 5, 5)}, "conv1", channels=1) == ""


def test_a_filter_named_so_counts_wherever_it_stands_in_no_order():
    net: Named = {"net.stem.conv": (16, 1, 3, 3), "net.layer.conv": (16, 16, 3, 3), "rgb.depthwise": (1, 1, 3, 3), "fc": (10, 16)}
    assert "rgb.depthwise filters the one channel" in why(net, "net.stem.conv", channels=1, ordered=False)
    assert why(net, "net.stem.conv", channels=1) == ""
    shifted = {"sub_mean": (1, 1, 1, 1), **net}
    assert "sub_mean filters the one channel" in why(shifted, "net.stem.conv", channels=1)


def test_branches_of_a_stem_and_the_image_are_joined_further_on():
    net: Named = {
        "net.stem.scale1": (16, 3, 1, 1),
        "net.stem.scale2": (16, 3, 3, 3),
        "net.layer.conv": (72, 32, 3, 3),
        "net.up.conv": (32, 35, 3, 3),
        "net.out": (19, 32, 1, 1),
    }
    said = "net.up.conv takes 35 channels, 3 more than any layers make"
    assert why(net, "net.stem.scale1", "net.stem.scale2") == said


def test_what_a_stem_makes_is_taken_by_some_layer():
    net: Named = {"initial": (13, 3, 3, 3), "regular.0": (16, 16, 3, 3), "regular.1": (16, 16, 3, 3), "fc": (10, 16)}
    assert why(net, "initial", ordered=False) == "regular.0 takes 16 channels, and none takes the 13 of initial"


def test_a_gate_over_a_mean_and_a_maximum_takes_no_image():
    net: Named = {"conv1": (64, 1, 7, 7), "gate.squeeze": (1, 64, 1, 1), "gate.conv": (1, 2, 7, 7), "layer1.conv": (64, 64, 3, 3)}
    assert why(net, "conv1", channels=1) == ""


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("head.0.conv_sobel.k0", (16, 3, 1, 1), "head.0.conv_sobel.k0 may take its 3 channels too"),
        ("head.0.conv_sobel.mask", (16, 1, 3, 3), ""),
        ("head.0.scale", (16, 3), ""),
        ("body.conv_sobel.k0", (16, 3, 1, 1), ""),
    ],
    ids=["its channels", "one channel", "a matrix", "in another module"],
)
def test_a_kernel_without_a_weights_name_beside_a_stem(name: str, shape: tuple[int, ...], expected: str):
    weights = [
        Tensor("head.0.conv.weight", BY_NAME["F32"], (16, 3, 3, 3)),
        Tensor("head.0.after.weight", BY_NAME["F32"], (16, 16, 1, 1)),
        Tensor("body.conv.weight", BY_NAME["F32"], (16, 16, 3, 3)),
    ]
    network = Network(weights, ordered=True, torch=True)
    tensors = [*weights, Tensor(name, BY_NAME["F32"], shape)]
    assert why_unnamed(Places(network), [network.by_layer["head.0.conv"]], 3, tensors) == expected


@pytest.mark.parametrize(
    ("stem", "second", "expected"),
    [
        ((24, 1, 3, 3), (48, 24, 1, 1), True),
        ((24, 1, 3, 3), (48, 24, 3, 3), False),
        ((32, 1, 3, 3), (64, 32, 1, 1), False),
        ((24, 3, 3, 3), (48, 24, 1, 1), False),
        ((24, 1, 1, 1), (48, 24, 1, 1), False),
    ],
    ids=["three times eight, mixed", "no mixing", "no three", "three channels", "pixels"],
)
def test_a_stem_that_may_filter_colors_one_by_one(stem: tuple[int, ...], second: tuple[int, ...], expected: bool):
    tensors = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in (("stem", stem), ("body", second))]
    network = Network(tensors, ordered=True, torch=True)
    assert may_be_depthwise(network, network.by_layer["stem"]) == expected
