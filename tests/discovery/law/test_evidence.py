"""Whether a kernel of several channels is fed: each kind of evidence by the smallest network that shows it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.evidence import Evidence, State, Verdict, is_composed, is_full, looks_grouped
from chkpt_channels.discovery.law.network import Network
from chkpt_channels.discovery.law.places import Places

Named = Mapping[str, tuple[int, ...]]
RESNET: Named = {
    "conv1": (16, 3, 7, 7),
    "layer1.0.conv1": (16, 16, 3, 3),
    "layer1.0.conv2": (24, 16, 3, 3),
    "fc": (10, 24),
}


def network(named: Named, *, ordered: bool = True) -> Network:
    return Network(
        [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()], ordered=ordered, torch=True
    )


def verdict(named: Named, layer: str, *, ordered: bool = True) -> Verdict:
    found = network(named, ordered=ordered)
    return Evidence(Places(found), found.convs[0] if ordered else None).verdict(found.by_layer[layer])


FREE: dict[str, Named] = {
    "a stem": RESNET,
    "of 13 bands": {**RESNET, "conv1": (16, 13, 7, 7)},
    "with a head of three classes": {**RESNET, "head": (3, 24, 1, 1)},
    "with a decoder to three colors": {**RESNET, "decoder.0": (8, 24, 3, 3), "decoder.1": (3, 8, 3, 3)},
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", FREE)
def test_only_the_image_explains_a_stem(name: str, ordered: bool):
    assert verdict(FREE[name], "conv1", ordered=ordered) == Verdict(State.FREE)


DPN: Named = {
    "features.conv1_1.conv": (64, 3, 7, 7),
    "features.conv2_1.c1x1_a.conv": (96, 64, 1, 1),
    "features.conv2_1.c3x3_b.conv": (96, 3, 3, 3),
    "features.conv2_1.c1x1_c.conv": (272, 96, 1, 1),
}
WIDER: Named = {
    "features.conv3_1.c1x1_a.conv": (192, 272, 1, 1),
    "features.conv3_1.c3x3_b.conv": (192, 6, 3, 3),
    "features.conv3_1.c1x1_c.conv": (528, 192, 1, 1),
}
GAN: Named = {
    "gen.0": (32, 3, 3, 3),
    "gen.1": (3, 32, 3, 3),
    "disc.0": (16, 3, 4, 4),
    "disc.1": (32, 16, 4, 4),
}

KINDS: dict[str, tuple[Named, bool, str, State, str]] = {
    "made before": (RESNET, True, "layer1.0.conv1", State.INSIDE, "an earlier layer makes 16 channels"),
    "made before, by the numbers": (RESNET, False, "layer1.0.conv2", State.INSIDE, "an earlier layer makes 16 channels"),
    "behind a network that ends in colors": (
        GAN,
        True,
        "disc.0",
        State.OPEN,
        "begins a part of the network behind gen.1.weight, which makes 3 channels",
    ),
    "inside a network behind one": (GAN, True, "disc.1", State.INSIDE, "an earlier layer makes 16 channels"),
    "behind a Linear layer, which makes no pixels": (
        {"encoder.a": (32, 3, 3, 3), "fc_loc.2": (6, 32), "net.conv1": (32, 3, 7, 7), "net.conv2": (64, 32, 3, 3)},
        True,
        "net.conv1",
        State.FREE,
        "",
    ),
    "the input of a decoder behind a mean and a variance": (
        {"encoder.a": (32, 3, 3, 3), "encoder.conv_out": (8, 32, 3, 3), "decoder.conv_in": (32, 4, 3, 3)},
        False,
        "decoder.conv_in",
        State.INSIDE,
        "encoder.conv_out.weight makes two numbers for each of 4 channels, a mean and a variance",
    ),
    "grouped, with one number of groups": (
        {**DPN, **WIDER},
        True,
        "features.conv2_1.c3x3_b.conv",
        State.INSIDE,
        "a grouped convolution over the 96 channels of an earlier layer",
    ),
    "grouped, and alone": (
        DPN,
        True,
        "features.conv2_1.c3x3_b.conv",
        State.OPEN,
        "may be a grouped convolution over the 96 channels of an earlier layer",
    ),
    "a series": (
        {
            "stem": (40, 5, 3, 3),
            **{f"b.{i}.p": (filters, 40, 1, 1) for i, filters in enumerate((10, 14, 22))},
            **{f"b.{i}.x": (filters, 3, 3, 3) for i, filters in enumerate((20, 28, 44))},
        },
        False,
        "b.0.x",
        State.INSIDE,
        "is one of a series of inner layers",
    ),
    "made somewhere, in no order": (
        {"conv_in": (320, 4, 3, 3), "down.a": (320, 320, 3, 3), "out": (4, 320, 3, 3), "out2": (5, 320, 1, 1)},
        False,
        "conv_in",
        State.FREE,  # ends say nothing of what is no end
        "",
    ),
    "made by no end, in no order": (
        {
            "conv_in": (320, 4, 3, 3),
            "down.a": (320, 320, 3, 3),
            "down.b": (320, 320, 3, 3),
            "quant.conv": (4, 320, 3, 3),
            "x": (5, 320, 1, 1),
        },
        False,
        "conv_in",
        State.OPEN,
        "quant.conv.weight makes 4 channels, and the order is not known",
    ),
    "made in the same block, in no order": (
        {"a.fc1": (4, 16, 1, 1), "a.fc2": (16, 4, 1, 1), "b": (16, 3, 3, 3), "c": (5, 16, 3, 3)},
        False,
        "a.fc2",
        State.INSIDE,
        "an earlier layer makes 4 channels",  # fc1 is before fc2
    ),
    "made in the same block, without numbers": (
        {"se.squeeze": (4, 16, 1, 1), "se.excite": (16, 4, 1, 1), "b": (16, 3, 3, 3), "c": (5, 16, 3, 3)},
        False,
        "se.excite",
        State.INSIDE,
        "se.squeeze.weight of the same block makes 4 channels",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kernel_is_fed_by(name: str):
    named, ordered, layer, state, why = KINDS[name]
    found = verdict(named, layer, ordered=ordered)
    assert (found.state, found.why) == (state, why)


def test_only_what_another_network_may_feed_is_told_apart():
    assert verdict(GAN, "disc.0").is_fed
    assert not verdict(DPN, "features.conv2_1.c3x3_b.conv").is_fed


def test_a_network_begins_behind_colors_only_where_it_takes_three_and_is_no_end():
    assert verdict({**GAN, "gen.1": (4, 32, 3, 3), "disc.0": (16, 4, 4, 4)}, "disc.0").state is State.INSIDE
    renamed = {name.replace("disc", "decoder"): shape for name, shape in GAN.items()}
    assert verdict(renamed, "decoder.0").state is State.INSIDE


@pytest.mark.parametrize(
    ("layer", "before", "shape", "grouped", "full"),
    [
        ("conv", (96, 64, 1, 1), (96, 3, 3, 3), True, False),
        ("conv", (96, 64, 1, 1), (96, 96, 3, 3), False, True),
        ("conv", (96, 64, 1, 1), (96, 5, 3, 3), False, True),  # 96 cannot be cut into groups of 5
        ("conv", (64, 64, 1, 1), (96, 3, 3, 3), False, True),  # no layer makes 96
        ("conv", (96, 64, 1, 1), (96, 1, 3, 3), False, False),  # of one channel: depthwise.py
    ],
)
def test_a_grouped_kernel_has_as_many_filters_as_the_layer_before(
    layer: str, before: tuple[int, ...], shape: tuple[int, ...], grouped: bool, full: bool
):
    found = network({"stem": (64, 3, 7, 7), "a.0": before, f"a.1.{layer}": shape})
    kernel = found.by_layer[f"a.1.{layer}"]
    assert (looks_grouped(found, kernel), is_full(found, kernel)) == (grouped, full)


@pytest.mark.parametrize(
    ("width", "is_named", "expected"),
    [(8, False, True), (8, True, True), (20, True, True), (24, True, True), (7, False, False), (7, True, False)],
    ids=["a group of what is made", "twice four", "4 + 16", "8 + 16", "seven", "seven, named"],
)
def test_a_width_may_be_composed_of_others(width: int, is_named: bool, expected: bool):
    named = {"a": (16, 3, 3, 3), "b": (4, 16, 3, 3), "c": (8, 16, 3, 3), "d": (32, width, 3, 3)}
    found = network({name: shape for name, shape in named.items() if width != 8 or name != "c"})
    assert is_composed(found, found.by_layer["d"], is_named=is_named) == expected
