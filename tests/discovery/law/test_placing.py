"""Which kernels stand where first convs stand: what place settles, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.evidence import State
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.placing import Placing

Named = Mapping[str, tuple[int, ...]]


def judged(named: Named, *, ordered: bool) -> Judged:
    tensors = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    return Judged(Network(tensors if ordered else sorted(tensors), ordered=ordered, torch=True), tensors)


def layers(kernels: list[LayerWeight]) -> set[str]:
    return {kernel.layer for kernel in kernels}


def settled(named: Named, width: int, *, ordered: bool) -> tuple[set[str], set[str]]:
    """The stems of this width, and what stays unsure."""
    found = judged(named, ordered=ordered)
    stems, unsure = Placing(found).settled(found.of(State.FREE, width), found.of(State.OPEN, width))
    return layers(stems), layers(unsure)


RESBLOCKS: Named = {
    "layer1.0.conv1": (16, 3, 3, 3),
    "layer1.0.conv2": (16, 16, 3, 3),
    "layer1.0.shortcut.0": (16, 3, 1, 1),
    "layer2.0.conv1": (32, 16, 3, 3),
    "layer2.0.conv2": (32, 32, 3, 3),
    "layer2.0.shortcut.0": (32, 16, 1, 1),
}
MOBILEONE: Named = {
    "stem.conv_kxk.0.conv": (48, 3, 3, 3),
    "stem.conv_scale.conv": (48, 3, 1, 1),
    "stages.0.0.conv_kxk.0.conv": (48, 1, 3, 3),
    "stages.0.0.conv_scale.conv": (48, 1, 1, 1),
    "stages.0.1.conv_kxk.0.conv": (64, 48, 1, 1),
}
MOBILENET: Named = {
    "features.0.0": (32, 1, 3, 3),
    "features.1.conv.0.0": (32, 1, 3, 3),
    "features.1.conv.1": (16, 32, 1, 1),
    "features.2.conv.0.0": (96, 16, 1, 1),
    "features.2.conv.1.0": (96, 1, 3, 3),
    "features.2.conv.2": (24, 96, 1, 1),
}
MOBILENET_IN_ONE_BLOCK: Named = {
    "stem.0": (32, 1, 3, 3),
    "stem.3": (32, 1, 3, 3),
    "stem.6": (64, 32, 1, 1),
    "body.0": (64, 1, 3, 3),
    "body.3": (128, 64, 1, 1),
}
GAN: Named = {
    "netG.conv_in": (32, 3, 3, 3),
    "netG.body": (32, 32, 3, 3),
    "netG.last": (3, 32, 3, 3),
    "netD.conv_in": (16, 3, 4, 4),
    "netD.body": (32, 16, 4, 4),
    "netD.last": (1, 32, 4, 4),
}


def gray(named: Named) -> Named:
    return {name: (shape[0], 1, *shape[2:]) if shape[1] == 3 else shape for name, shape in named.items()}


SETTLED: dict[str, tuple[Named, int, set[str]]] = {
    "both branches of a first block": (RESBLOCKS, 3, {"layer1.0.conv1", "layer1.0.shortcut.0"}),
    "both of a gray one": (gray(RESBLOCKS), 1, {"layer1.0.conv1", "layer1.0.shortcut.0"}),
    "all branches of a stem": (MOBILEONE, 3, {"stem.conv_kxk.0.conv", "stem.conv_scale.conv"}),
    "a gray stem, and not what is depthwise right behind": (MOBILENET, 1, {"features.0.0"}),
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", SETTLED)
def test_what_is_open_is_settled_by_its_place(name: str, ordered: bool):
    named, width, expected = SETTLED[name]
    assert settled(named, width, ordered=ordered) == (expected, set())


def test_two_layers_of_a_block_whose_widths_sum_to_one_that_is_made_are_no_branches():
    assert settled(MOBILENET_IN_ONE_BLOCK, 1, ordered=True) == ({"stem.0"}, set())
    assert settled(MOBILENET_IN_ONE_BLOCK, 1, ordered=False)[0] == {"stem.0"}


def test_depthwise_branches_behind_a_gray_stem_need_the_order():
    stem, block = {"stem.conv_kxk.0.conv", "stem.conv_scale.conv"}, {"stages.0.0.conv_kxk.0.conv", "stages.0.0.conv_scale.conv"}
    assert settled(gray(MOBILEONE), 1, ordered=True) == (stem, set())
    stems, unsure = settled(gray(MOBILEONE), 1, ordered=False)
    assert stems == stem
    assert unsure <= block


def test_a_network_behind_one_that_makes_colors_is_not_settled_by_place():
    """Two networks with the same layers may stand in a row, or take one image both."""
    assert settled(GAN, 3, ordered=True) == ({"netG.conv_in"}, {"netD.conv_in"})


def misplaced(named: Named, *stems: str, ordered: bool = True) -> str:
    found = judged(named, ordered=ordered)
    return Placing(found).why_misplaced([found.network.by_layer[stem] for stem in stems], found.patches)


PLACED: dict[str, tuple[Named, tuple[str, ...]]] = {
    "one": (RESBLOCKS, ("layer1.0.conv1", "layer1.0.shortcut.0")),
    "branches": (MOBILEONE, ("stem.conv_kxk.0.conv", "stem.conv_scale.conv")),
    "towers": (
        {
            "fnet.conv1": (64, 3, 7, 7),
            "fnet.conv2": (128, 64, 3, 3),
            "cnet.conv1": (64, 3, 7, 7),
            "cnet.conv2": (96, 64, 3, 3),
            "update.conv": (64, 40, 3, 3),
        },
        ("fnet.conv1", "cnet.conv1"),
    ),
}


@pytest.mark.parametrize("name", PLACED)
def test_branches_and_the_beginnings_of_towers_are_in_their_place(name: str):
    named, stems = PLACED[name]
    assert misplaced(named, *stems) == ""


def test_a_list_whose_two_layers_another_block_takes_is_a_row():
    named = {"stem.0": (24, 1, 3, 3), "stem.2": (24, 1, 3, 3), "body.0": (48, 24, 1, 1), "fc": (5, 48)}
    why = "stem.0.weight and stem.2.weight may be a convolution and a depthwise one behind it"
    assert misplaced(named, "stem.0", "stem.2", ordered=False) == why
    branches = {name.replace("stem.2", "stem.b").replace("stem.0", "stem.a"): shape for name, shape in named.items()}
    assert misplaced(branches, "stem.a", "stem.b", ordered=False) != why.replace(".0", ".a").replace(".2", ".b")


MISPLACED: dict[str, tuple[Named, tuple[str, ...], str]] = {
    "deep in the network": (
        {"conv1": (64, 3, 7, 7), "layer1.0.conv1": (64, 64, 3, 3), "layer1.0.hint.conv": (40, 3, 3, 3), "fc": (9, 64)},
        ("conv1", "layer1.0.hint.conv"),
        "layer1.0.hint.conv.weight takes as many channels as an image has, and does not stand where first convs do",
    ),
    "the stem of a part beside one that stands alone at the top": (
        {
            "conv_in": (320, 4, 3, 3),
            "control.conv_in": (16, 4, 3, 3),
            "control.blocks.0": (16, 16, 3, 3),
            "down.conv": (320, 320, 3, 3),
        },
        ("conv_in", "control.conv_in"),
        "control.conv_in.weight takes as many channels as an image has, and does not stand where first convs do",
    ),
    "two networks, one of which makes colors": (
        GAN,
        ("netG.conv_in", "netD.conv_in"),
        "netG.last.weight makes what one of several networks may take",
    ),
    "the last layer of a generator": (
        {"main.0": (100, 256, 4, 4), "main.3": (256, 128, 4, 4), "main.6": (128, 64, 4, 4), "main.9": (64, 3, 4, 4)},
        ("main.9",),
        "main.9.weight may be transposed: then it makes 3 channels and takes 64",
    ),
    "the last layer of an autoencoder": (
        {"enc.0": (16, 3, 3, 3), "enc.2": (32, 16, 3, 3), "dec.0": (32, 16, 3, 3), "dec.2": (16, 3, 3, 3)},
        ("enc.0", "dec.2"),
        "dec.2.weight may be transposed: then it makes 3 channels and takes 16",
    ),
    "a refinement that may take the alpha that a network makes": (
        {
            "enc.conv1": (64, 4, 3, 3),
            "enc.conv2": (64, 64, 3, 3),
            "enc.alpha": (1, 64, 5, 5),
            "refine.conv1": (64, 4, 3, 3),
            "refine.conv2": (64, 64, 3, 3),
        },
        ("enc.conv1", "refine.conv1"),
        "enc.alpha.weight makes what one of several networks may take",
    ),
    "one of a pair that takes one input": (
        RESBLOCKS,
        ("layer1.0.conv1",),
        "layer1.0.shortcut.0.weight stands where it takes the same input as layer1.0.conv1.weight, and seems to be inside",
    ),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_what_stands_elsewhere_is_named(name: str):
    named, stems, why = MISPLACED[name]
    assert misplaced(named, *stems) == why


def test_patches_of_two_sizes_are_not_one_image():
    vit: Named = {"a.patch_embed.proj": (192, 768), "b.patch_embed.proj": (192, 192), "blocks.fc": (96, 192)}
    found = judged(vit, ordered=True)
    assert {kernel.layer for kernel, _ in found.patches} == {"a.patch_embed.proj", "b.patch_embed.proj"}
    assert Placing(found).why_misplaced([], found.patches) == "several patch embeddings of different sizes"


def test_what_may_take_patches_too_is_named():
    found = judged({"patch_embed.proj": (192, 768), "query.proj": (192, 1536), "blocks.fc": (96, 192)}, ordered=True)
    assert Placing(found).why_misplaced([], found.patches) == "query.proj.weight may take patches of the image too"
