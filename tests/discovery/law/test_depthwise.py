"""Gray stems and depthwise layers, which have one shape: each kind of evidence by the layers of a real network."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.depthwise import Depthwise
from chkpt_channels.discovery.law.evidence import State, Verdict
from chkpt_channels.discovery.law.network import Network
from chkpt_channels.discovery.law.places import Places

Named = Mapping[str, tuple[int, ...]]
INSIDE, FREE = State.INSIDE, State.FREE


def judge(named: Named, *, ordered: bool) -> tuple[Depthwise, Network]:
    weights = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    network = Network(weights, ordered=ordered, torch=True)
    first = network.convs[0] if ordered else None
    return Depthwise(Places(network), first, [k for k in network.convs if k.channels == 1]), network


def verdicts(named: Named, *, ordered: bool) -> dict[str, Verdict]:
    found, network = judge(named, ordered=ordered)
    return {network.kernels[at].layer: verdict for at, verdict in found.verdicts.items()}


MOBILENET: Named = {
    "conv_stem": (32, 1, 3, 3),
    "blocks.0.0.conv_dw": (32, 1, 3, 3),
    "blocks.0.0.conv_pw": (16, 32, 1, 1),
    "blocks.1.0.conv_pw": (96, 16, 1, 1),
    "blocks.1.0.conv_dw": (96, 1, 3, 3),
    "blocks.1.0.conv_pwl": (24, 96, 1, 1),
    "blocks.1.1.conv_pw": (144, 24, 1, 1),
    "blocks.1.1.conv_dw": (144, 1, 3, 3),
    "blocks.1.1.conv_pwl": (24, 144, 1, 1),
}
CONVNEXT: Named = {
    "stem.0": (96, 1, 4, 4),
    **{f"stages.0.blocks.{i}.conv_dw": (96, 1, 7, 7) for i in range(3)},
    **{f"stages.0.blocks.{i}.mlp.fc1": (384, 96) for i in range(3)},
    **{f"stages.0.blocks.{i}.mlp.fc2": (96, 384) for i in range(3)},
}
RESBLOCKS: Named = {  # no stem: the first block sees the image in both branches
    "layer1.0.conv1": (16, 1, 3, 3),
    "layer1.0.conv2": (16, 16, 3, 3),
    "layer1.0.shortcut.0": (16, 1, 1, 1),
    "layer2.0.conv1": (32, 16, 3, 3),
    "layer2.0.conv2": (32, 32, 3, 3),
    "layer2.0.shortcut.0": (32, 16, 1, 1),
}
VIT: Named = {
    "patch_embed.proj": (192, 1, 16, 16),
    "blocks.0.attn.qkv": (576, 192),
    "blocks.0.attn.proj": (192, 192),
    "blocks.0.mlp.fc1": (768, 192),
    "blocks.0.mlp.fc2": (192, 768),
}

# each is the same in module order and in no order
KINDS: dict[str, tuple[Named, str, State]] = {
    "the stem of a MobileNet": (MOBILENET, "conv_stem", FREE),
    "depthwise behind a gray stem": (MOBILENET, "blocks.0.0.conv_dw", INSIDE),
    "depthwise behind the layer that makes its channels": (MOBILENET, "blocks.1.0.conv_dw", INSIDE),
    "depthwise at the same place of another block": (MOBILENET, "blocks.1.1.conv_dw", INSIDE),
    "the stem of a ConvNeXt": (CONVNEXT, "stem.0", FREE),
    "depthwise in a repeated block": (CONVNEXT, "stages.0.blocks.1.conv_dw", INSIDE),
    "where the other block is full": (RESBLOCKS, "layer1.0.conv1", FREE),
    "the shortcut beside it": (RESBLOCKS, "layer1.0.shortcut.0", FREE),
    "a window of patches": (VIT, "patch_embed.proj", FREE),
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", KINDS)
def test_what_a_kernel_of_one_channel_is(name: str, ordered: bool):
    named, layer, state = KINDS[name]
    found = verdicts(named, ordered=ordered)[layer]
    assert found.state is state, found.why


WHY: dict[str, tuple[Named, bool, str, str]] = {
    "made": (
        {"stem": (8, 3, 3, 3), "a.x": (24, 8, 1, 1), "a.y": (24, 1, 3, 3), "a.z": (16, 24, 1, 1)},
        True,
        "a.y",
        "a layer before it makes its channels",
    ),
    "gated: twice as many are made": (
        {"embed": (48, 3, 3, 3), "ffn.project_in": (254, 48, 1, 1), "ffn.gate": (127, 1, 3, 3), "ffn.out": (48, 127, 1, 1)},
        True,
        "ffn.gate",
        "a layer before it makes its channels",
    ),
    "two of each channel that an MLP makes": (
        {"stem": (48, 3, 3, 3), "mlp.0": (96, 48), "mlp.2": (48, 96), "down.dw": (96, 1, 3, 3), "down.pw": (96, 96, 1, 1)},
        True,
        "down.dw",
        "a layer before it makes its channels",
    ),
    "two that are joined": (
        {"stem": (8, 3, 3, 3), "a.l": (10, 8, 1, 1), "a.r": (14, 8, 1, 1), "a.y": (24, 1, 3, 3), "a.z": (16, 24, 1, 1)},
        True,
        "a.y",
        "a layer before it makes its channels",
    ),
    "right behind a squeeze to one": (
        {"stem": (8, 3, 3, 3), "gate.down": (1, 8, 1, 1), "gate.up": (8, 1, 3, 3), "body": (8, 8, 3, 3)},
        True,
        "gate.up",
        "a layer right before it makes one channel",
    ),
    "in a repeated block": (
        CONVNEXT,
        True,
        "stages.0.blocks.2.conv_dw",
        "is in a repeated block; is named as depthwise layers are",
    ),
    "pieces of a width": (
        {
            "stem": (64, 3, 3, 3),
            "mix.0": (32, 1, 3, 3),
            "mix.1": (32, 1, 5, 5),
            "out": (16, 64, 1, 1),
        },
        True,
        "mix.1",
        "is one of several that share a width that other layers make",
    ),
}


@pytest.mark.parametrize("name", WHY)
def test_the_evidence_is_said_in_words(name: str):
    named, ordered, layer, why = WHY[name]
    found = verdicts(named, ordered=ordered)[layer]
    assert found.state is INSIDE
    assert why in found.why


def test_a_series_of_depthwise_layers_needs_a_layer_that_makes_their_widths():
    widths = (24, 40, 56)
    alone = {"stem": (8, 3, 3, 3), **{f"a.{i}.b.conv": (w, 1, 3, 3) for i, w in enumerate(widths)}}
    made = {**alone, **{f"c.{i}.pw": (w, 8, 1, 1) for i, w in enumerate(widths)}}
    assert "is one of a series" in verdicts(made, ordered=False)["a.1.b.conv"].why
    assert verdicts(made, ordered=False)["a.1.b.conv"].state is INSIDE


def test_depthwise_between_two_pointwise_layers_takes_no_image_though_it_stands_as_the_first_does():
    named = {"stem.dw": (16, 1, 3, 3), "stem.pw": (32, 16, 1, 1), "body.dw": (32, 1, 3, 3), "body.pw": (64, 32, 1, 1)}
    found = verdicts(named, ordered=True)
    assert found["stem.dw"].state is FREE
    assert found["body.dw"].state is INSIDE


def test_evidence_on_both_sides_leaves_it_open():
    named = {"a.conv1": (16, 1, 3, 3), "a.conv2": (24, 16, 3, 3), "b.conv1": (24, 1, 3, 3), "b.conv2": (24, 24, 3, 3)}
    found = verdicts({**named, "c.conv1": (24, 24, 3, 3), "c.conv2": (24, 24, 3, 3)}, ordered=True)
    assert found["a.conv1"].state is FREE
    assert found["b.conv1"].state is not INSIDE


def test_a_branch_that_looks_at_single_pixels_is_judged_as_the_one_with_a_window():
    stem: Named = {"stem.conv_kxk.0.conv": (48, 1, 3, 3), "stem.conv_scale.conv": (48, 1, 1, 1), "body.conv": (64, 48, 3, 3)}
    found = verdicts(stem, ordered=True)
    assert found["stem.conv_scale.conv"] == found["stem.conv_kxk.0.conv"]
    blocks = {f"stages.0.0.{name.removeprefix('stem.')}": shape for name, shape in stem.items() if name != "body.conv"}
    inner = verdicts({"stem.conv": (48, 3, 3, 3), **blocks, "stages.0.1.conv": (64, 48, 1, 1)}, ordered=True)
    assert inner["stages.0.0.conv_scale.conv"] == inner["stages.0.0.conv_kxk.0.conv"]
    assert inner["stages.0.0.conv_kxk.0.conv"].state is INSIDE


def test_the_evidence_of_one_layer_alone_is_weak():
    found = verdicts({"stem": (8, 3, 3, 3), "a.x": (24, 8, 1, 1), "a.y": (24, 1, 3, 3), "a.z": (16, 24, 1, 1)}, ordered=True)
    assert found["a.y"].is_weak
    assert not verdicts(MOBILENET, ordered=True)["blocks.1.1.conv_dw"].is_weak


def test_a_place_shows_more_than_a_name():
    assert verdicts(VIT, ordered=False)["patch_embed.proj"].by_place
    assert verdicts(RESBLOCKS, ordered=False)["layer1.0.conv1"].by_place
    assert not verdicts({"in_conv": (16, 1, 3, 3), "b": (16, 16, 3, 3)}, ordered=False)["in_conv"].by_place


def test_a_pointwise_layer_behind_takes_its_channels():
    found, network = judge(MOBILENET, ordered=True)
    assert found.has_point_behind(network.by_layer["blocks.1.0.conv_dw"])
    found, network = judge(RESBLOCKS, ordered=True)
    assert not found.has_point_behind(network.by_layer["layer1.0.conv1"])


@pytest.mark.parametrize(("layer", "expected"), [("blocks.1.1.conv_dw", True), ("conv_stem", False)])
def test_a_full_layer_of_its_block_and_a_block_before_it_are_what_files_without_order_have(layer: str, expected: bool):
    found, network = judge(MOBILENET, ordered=False)
    assert found.is_beside_full(network.by_layer[layer]) == expected
