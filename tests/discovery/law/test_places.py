"""Where layers stand, by names of real networks: like modules, branches of one input, the beginnings of parts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.places import DEPTHWISE, ENDS, OTHER_SENSES, Places, first_conv, modules

Named = Mapping[str, tuple[int, ...]]


def places(named: Named, *, ordered: bool = True) -> tuple[Places, dict[str, LayerWeight]]:
    weights = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    network = Network(weights, ordered=ordered, torch=True)
    return Places(network), network.by_layer


def layers(kernels: list[LayerWeight]) -> list[str]:
    return [kernel.layer for kernel in kernels]


# a network without a stem: its first residual block takes the image, in two branches
BLOCKS: Named = {
    "layer1.0.conv1": (16, 3, 3, 3),
    "layer1.0.conv2": (16, 16, 3, 3),
    "layer1.0.downsample.0": (16, 3, 1, 1),
    "layer2.0.conv1": (32, 16, 3, 3),
    "layer2.0.conv2": (32, 32, 3, 3),
    "layer2.0.downsample.0": (32, 16, 1, 1),
    "layer2.1.conv1": (32, 32, 3, 3),
    "layer2.1.conv2": (32, 32, 3, 3),
    "fc": (9, 32),
}
RAFT: Named = {
    "fnet.conv1": (64, 3, 7, 7),
    "fnet.layer1.0.conv1": (64, 64, 3, 3),
    "cnet.conv1": (64, 3, 7, 7),
    "cnet.layer1.0.conv1": (64, 64, 3, 3),
    "update_block.encoder.convc1": (256, 324, 1, 1),
    "update_block.encoder.convf1": (128, 2, 7, 7),
}


@pytest.mark.parametrize(
    ("key", "senses", "ends", "depthwise"),
    [
        ("audio_tower.conv1.weight", True, True, False),
        ("lm.embed.weight", True, True, False),
        ("prompt_encoder.mask_downscaling.0.weight", True, True, False),
        ("depth_head.conv.weight", True, True, False),
        ("decoder.0.weight", False, True, False),
        ("head.conv.weight", False, True, False),
        ("up.0.weight", False, True, False),
        ("visual.conv1.weight", False, False, False),
        ("film.conv.weight", False, False, False),
        ("blocks.0.0.conv_dw.weight", False, False, True),
        ("stages.0.blocks.0.dwconv.weight", False, False, True),
        ("stage1.0.attns.0.get_v.lepe.weight", False, False, True),
        ("upsample.depthwise.weight", False, True, True),
        ("conv1.weight", False, False, False),
    ],
)
def test_words_that_say_what_a_layer_is(key: str, senses: bool, ends: bool, depthwise: bool):
    assert (bool(OTHER_SENSES.search(key)), bool(ENDS.search(key)), bool(DEPTHWISE.search(key))) == (senses, ends, depthwise)


@pytest.mark.parametrize(
    ("name", "named", "stem"),
    [
        ("conv1", True, True),
        ("conv_stem", True, True),
        ("patch_embed.proj", True, True),
        ("stem.conv_kxk.0.conv", True, True),
        ("features.0", True, True),
        ("features.conv1_1.conv", True, True),
        ("inc.double_conv.0", True, True),
        ("blocks.7.stem", True, True),  # a stem is one wherever it stands
        ("decoder.conv_in", True, False),
        ("text_model.patch_embed", True, False),
        ("layer1.0.conv1", False, False),  # `conv1` is the name of a stem near the top only
        ("features.10", False, False),
        ("layer4.2.conv2", False, False),
    ],
)
def test_stems_are_known_by_name(name: str, named: bool, stem: bool):
    found, by_layer = places({name: (16, 3, 3, 3), "z": (8, 16)})
    assert (found.is_named(by_layer[name]), found.is_named_stem(by_layer[name])) == (named, stem)


def test_the_home_of_a_layer_is_the_smallest_module_with_more_layers():
    found, by_layer = places({"stem.conv.proj": (16, 3, 3, 3), **BLOCKS})
    homes = {name: found.home(by_layer[name]) for name in ("stem.conv.proj", "layer1.0.conv1", "layer1.0.downsample.0", "fc")}
    assert homes == {"stem.conv.proj": "", "layer1.0.conv1": "layer1.0", "layer1.0.downsample.0": "layer1.0", "fc": ""}
    assert modules(by_layer["layer1.0.conv1"]) == ["", "layer1", "layer1.0"]


def test_kin_stand_at_the_same_place_of_modules_with_the_same_layers():
    found, by_layer = places(BLOCKS)
    assert found.names("layer1.0") == {"conv1", "conv2", "downsample.0"}
    assert layers(found.kin(by_layer["layer1.0.conv1"])) == ["layer2.0.conv1"]  # layer2.1 has no shortcut
    assert found.kin(by_layer["layer2.1.conv1"]) == []


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("layer1.0.conv1", "layer1.0.downsample.0", True),
        ("layer1.0.conv1", "layer1.0.conv2", False),
        ("layer1.0.conv1", "fc", False),
        ("layer1.0.conv1", "layer1.0.conv1", False),
    ],
)
def test_a_pair_takes_one_input_where_the_same_pair_does_elsewhere(a: str, b: str, expected: bool, ordered: bool):
    found, by_layer = places(BLOCKS, ordered=ordered)
    assert found.take_same_input(by_layer[a], by_layer[b]) == found.take_same_input(by_layer[b], by_layer[a]) == expected


def test_a_pair_that_takes_two_widths_somewhere_takes_no_one_input():
    found, by_layer = places({**BLOCKS, "layer3.0.conv1": (64, 32, 3, 3), "layer3.0.downsample.0": (64, 16, 1, 1)})
    assert not found.take_same_input(by_layer["layer1.0.conv1"], by_layer["layer1.0.downsample.0"])


def test_towers_are_analogous_and_blocks_that_are_all_depthwise_are_not():
    found, by_layer = places(RAFT)
    assert found.are_analogous(by_layer["cnet.conv1"], by_layer["fnet.conv1"])
    assert not found.are_analogous(by_layer["update_block.encoder.convf1"], by_layer["fnet.conv1"])
    fast = {
        "stem.0.conv": (48, 1, 3, 3),
        "stem.0.scale": (48, 1, 1, 1),
        "stem.1.conv": (48, 1, 3, 3),
        "stem.1.scale": (48, 1, 1, 1),
    }
    found, by_layer = places(fast)
    assert not found.are_analogous(by_layer["stem.1.conv"], by_layer["stem.0.conv"])


@pytest.mark.parametrize(
    ("named", "layer", "part", "begins"),
    [
        (RAFT, "fnet.conv1", "fnet", True),
        (RAFT, "cnet.conv1", "cnet", True),
        (RAFT, "fnet.layer1.0.conv1", "", False),
        (RAFT, "update_block.encoder.convf1", "", False),
        (BLOCKS, "layer1.0.conv1", "layer1", True),
        (BLOCKS, "layer2.0.conv1", "layer2", False),  # layer1 is before it
        ({"time_embed.0": (64, 16), **BLOCKS}, "layer1.0.conv1", "layer1", True),
        ({"conv1": (8, 3, 3, 3), "conv2": (8, 8, 3, 3)}, "conv1", "", False),  # one layer is no network of its own
    ],
)
def test_a_part_begins_with_its_first_convolution(named: Named, layer: str, part: str, begins: bool):
    found, by_layer = places(named)
    assert (found.part(by_layer[layer]), found.begins_network(by_layer[layer])) == (part, begins)


def test_a_tower_begins_below_what_all_names_share():
    found, by_layer = places({f"model.{name}": shape for name, shape in RAFT.items()})
    begin = [name for name, kernel in by_layer.items() if found.begins_tower(kernel)]
    assert begin == ["model.fnet.conv1", "model.cnet.conv1", "model.update_block.encoder.convc1"]


@pytest.mark.parametrize(
    ("layer", "expected"), [("net.depth.0", True), ("net.depth.1", False), ("net.body.1.a", False), ("out", True)]
)
def test_a_named_module_is_one_without_a_number(layer: str, expected: bool):
    named = {"net.depth.0": (8, 1, 3, 3), "net.depth.1": (8, 1, 3, 3), "net.body.0.a": (8, 8, 3, 3), "net.body.0.b": (8, 8, 3, 3)}
    named |= {"net.body.1.a": (8, 8, 3, 3), "net.body.1.b": (8, 8, 3, 3), "out": (2, 8, 1, 1)}
    found, by_layer = places(named)
    assert found.begins_named_module(by_layer[layer]) == expected


@pytest.mark.parametrize(
    ("a", "b", "shapes", "expected"),
    [
        ("stem.conv_kxk.0.conv", "stem.conv_scale.conv", ((48, 3, 3, 3), (48, 3, 1, 1)), True),
        ("patch_embed.0.proj", "patch_embed.1.proj", ((128, 3, 12, 12), (256, 3, 16, 16)), True),
        ("stem.a", "stem.b", ((8, 3, 3, 3), (16, 3, 3, 3)), False),
        ("stem.a.b.c.conv", "stem.x.conv", ((48, 3, 3, 3), (48, 3, 1, 1)), False),
        ("image.a.b", "depth.a.b", ((48, 3, 3, 3), (48, 3, 3, 3)), False),
        ("encoder1.conv", "encoder2.conv", ((48, 3, 3, 3), (64, 3, 3, 3)), True),
    ],
    ids=["branches of a stem", "a series", "neither", "too deep", "too deep for the whole network", "a series at the top"],
)
def test_branches_stand_beside_each_other(a: str, b: str, shapes: tuple[tuple[int, ...], ...], expected: bool):
    found, by_layer = places({a: shapes[0], b: shapes[1], "fc": (9, 48)})
    assert found.are_beside(by_layer[a], by_layer[b]) == found.are_beside(by_layer[b], by_layer[a]) == expected


def test_the_first_convolution_is_no_linear_layer_and_no_shift_of_colors():
    _, by_layer = places({"fc": (8, 8), "sub_mean": (3, 3, 1, 1), "conv": (8, 3, 3, 3)})
    assert first_conv([*by_layer.values()]) is by_layer["conv"]
    assert first_conv([by_layer["fc"]]) is None
