"""Stems whose channel axis holds pixels too, and the vectors that precede stems: by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.patch_embeddings import (
    SPACE_TO_DEPTH,
    block_conv,
    colors,
    input_vectors,
    is_square,
    others,
    patch_conv,
    patches,
    space_to_depth,
    spellings,
)
from chkpt_channels.discovery.law.places import Places

Named = Mapping[str, tuple[int, ...]]


def tensors(named: Named) -> list[Tensor]:
    return [Tensor(name, BY_NAME["F32"], shape) for name, shape in named.items()]


def places(named: Named, *, ordered: bool = True) -> Places:
    return Places(Network(tensors(named), ordered=ordered, torch=True))


def layer(named: Named, name: str) -> LayerWeight:
    return places(named).network.by_layer[name]


# Blocks of pixels in a convolution


BLOCKS: Named = {"stem.weight": (56, 48, 3, 3), "layer1.weight": (64, 56, 3, 3), "layer2.weight": (64, 64, 3, 3)}


@pytest.mark.parametrize(("width", "channels"), SPACE_TO_DEPTH.items())
def test_a_first_convolution_over_blocks_of_pixels_is_a_stem(width: int, channels: int):
    block = space_to_depth(places({**BLOCKS, "stem.weight": (56, width, 3, 3)}))
    assert block
    conv = block_conv(block)
    assert (conv.tensor.name, conv.layout, conv.in_channels, conv.found_by) == ("stem.weight", None, channels, "shapes")
    assert conv.why.startswith("the order of colors and pixels is ambiguous: --layout O(GI)HW if")
    assert block_conv(block, 9).in_channels == 9


NO_BLOCKS: dict[str, tuple[Named, bool]] = {
    **{f"of {w} channels": ({**BLOCKS, "stem.weight": (56, w, 3, 3)}, True) for w in (3, 4, 6, 9, 15, 20)},
    "whose width is made before": ({"a.weight": (48, 9, 3, 3), **BLOCKS}, True),
    "over single pixels": ({**BLOCKS, "stem.weight": (56, 12, 1, 1)}, True),
    "behind another": ({"first.weight": (8, 9, 3, 3), **BLOCKS}, True),
    "of many channels without a stem's name": ({"body.weight": (56, 192, 3, 3), "layer1.weight": (64, 56, 3, 3)}, True),
    "not named so, in no order": ({"body.weight": (56, 12, 3, 3), "layer1.weight": (64, 56, 3, 3)}, False),
    "beside one of three channels, in no order": ({**BLOCKS, "conv_in.weight": (8, 3, 3, 3)}, False),
    "that is made somewhere, in no order": ({**BLOCKS, "layer2.weight": (48, 64, 3, 3)}, False),
}


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_a_convolution_is_no_stem_over_blocks(name: str):
    named, ordered = NO_BLOCKS[name]
    assert space_to_depth(places(named, ordered=ordered)) is None


def test_without_the_order_a_stem_over_blocks_is_known_by_its_name():
    block = space_to_depth(places(BLOCKS, ordered=False))
    assert block
    assert block.layer == "stem"


# Patches in a Linear layer


PATCHES: dict[str, tuple[Named, list[tuple[str, str]]]] = {
    "by name": (
        {"model.patch_embed.proj.weight": (192, 768), "model.blocks.0.fc.weight": (192, 192)},
        [("model.patch_embed.proj", "names")],
    ),
    "of SigLIP 2": (
        {"vision_model.embeddings.patch_embedding.weight": (96, 768), "vision_model.encoder.layers.0.mlp.fc1.weight": (40, 96)},
        [("vision_model.embeddings.patch_embedding", "names")],
    ),
    "two, over windows and regions": (
        {"local_encoder.1.weight": (64, 3, 4, 4), "region_encoder.1.weight": (64, 192, 1, 1), "fc.weight": (9, 64)},
        [("region_encoder.1", "names")],
    ),
    "of two frames": ({"patch_embed.proj.weight": (192, 1536), "fc.weight": (192, 192)}, [("patch_embed.proj", "names")]),
    "of gray": ({"patch_embed.proj.weight": (192, 256), "fc.weight": (192, 192)}, [("patch_embed.proj", "names")]),
    "in a numbered block": ({"blocks.0.patch_embed.proj.weight": (192, 768), "fc.weight": (192, 96)}, []),
    "of text": ({"text_model.patch_embed.weight": (192, 768), "fc.weight": (192, 192)}, []),
    "of no square": ({"patch_embed.proj.weight": (192, 500), "fc.weight": (192, 192)}, []),
    "of few filters": ({"patch_embed.proj.weight": (16, 768), "fc.weight": (192, 192)}, []),
    "whose width its part makes": (
        {"vit.a.weight": (768, 9), "vit.patch_embed.weight": (192, 768), "head.fc.weight": (192, 192)},
        [],
    ),
    "alone beside its positions": (
        {"embeddings.position_embeddings": (1, 196, 192), "embeddings.proj.weight": (192, 768), "fc.weight": (192, 192)},
        [("embeddings.proj", "shapes")],
    ),
    "beside positions of another width": (
        {"tokens.pos_embed": (1, 196, 100), "tokens.linear.weight": (192, 768), "fc.weight": (192, 96)},
        [],
    ),
    "first of a chain": (
        {"layers.0.weight": (64, 3072), "layers.2.weight": (32, 64), "layers.4.weight": (10, 32)},
        [("layers.0", "shapes")],
    ),
    "first of no chain": ({"a.weight": (64, 3072), "b.weight": (32, 128), "c.weight": (10, 32)}, []),
    "beside other layers in its module": (
        {"vit.pos_embed": (1, 196, 192), "vit.linear.weight": (192, 768), "vit.blocks.0.fc.weight": (192, 96)},
        [],
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_layer_over_patches_is_known_by_its_name_or_its_positions(name: str):
    named, expected = PATCHES[name]
    assert [(kernel.layer, by) for kernel, by in patches(places(named), tensors(named))] == expected


OTHERS: dict[str, tuple[Named, bool, list[str]]] = {
    "as many filters over a multiple": (
        {"patch_embed.proj.weight": (192, 768), "query.proj.weight": (192, 1536), "fc.weight": (9, 192)},
        True,
        ["query.proj"],
    ),
    "as many filters over half of the frequencies": (
        {"patch_embed.proj.weight": (192, 768), "frequencies.proj.weight": (192, 384), "fc.weight": (9, 192)},
        True,
        ["frequencies.proj"],
    ),
    "whose width is made": (
        {"patch_embed.proj.weight": (192, 768), "a.weight": (1536, 192), "b.weight": (192, 1536)},
        True,
        [],
    ),
    "a layer of a transformer": ({"patch_embed.proj.weight": (192, 768), "blocks.0.fc2.weight": (192, 768)}, True, []),
    "of another width": ({"patch_embed.proj.weight": (192, 768), "query.proj.weight": (192, 500)}, True, []),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_take_patches_too_is_told(name: str):
    named, ordered, expected = OTHERS[name]
    network = places(named, ordered=ordered).network
    found = [network.by_layer["patch_embed.proj"]]
    assert [kernel.layer for kernel in others(network, found)] == expected


@pytest.mark.parametrize(("channels", "expected"), [(None, 3), (12, 12), (5, 3), (768, 768)])
def test_patches_take_the_channels_that_the_user_knows_where_they_fit(channels: int | None, expected: int):
    conv = patch_conv(layer({"patch_embed.proj.weight": (192, 768)}, "patch_embed.proj"), channels)
    assert (conv.layout, conv.in_channels) == (None, expected)
    assert conv.why == "the order of colors and pixels is ambiguous: --layout O(HWI) if colors vary fastest, O(IHW) if pixels do"


@pytest.mark.parametrize(
    ("width", "least_side", "channels"),
    [(768, 8, 3), (588, 8, 3), (1536, 8, 3), (256, 8, 1), (12288, 8, 3), (12, 2, 3), (12, 8, 0), (500, 8, 0), (0, 8, 0)],
    ids=["16 x 16", "14 x 14", "two frames", "gray", "64 x 64, or cubes of 16", "2 x 2", "too small", "no square", "nothing"],
)
def test_the_colors_of_a_patch_are_what_its_width_leaves_for_a_square(width: int, least_side: int, channels: int):
    assert colors(width, least_side=least_side) == channels


@pytest.mark.parametrize(
    ("pixels", "expected"), [(256, True), (512, True), (4096, True), (8, True), (27, True), (1, False), (15, False)]
)
def test_patches_are_squares_and_cubes_of_one_frame_or_two(pixels: int, expected: bool):
    assert is_square(pixels) == expected


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 3, 3), (5, 12, 3), (5, 12, 3, 3, 3)], ids=len)
def test_layouts_that_are_offered_fit_the_shape(shape: tuple[int, ...]):
    offered = [word for word in spellings(shape).replace("--layout", " ").split() if word not in ("or", "LAYOUT")]
    assert all(len(Layout(word).axes) == len(shape) for word in offered)
    assert len(offered) == {2: 2, 4: 3}.get(len(shape), 0)


# Vectors that the image meets first


NET: Named = {"conv1.weight": (16, 3, 7, 7), "bn1.weight": (16,), "fc.weight": (10, 16)}
BEFORE: dict[str, tuple[Named, list[str]]] = {
    "a mean and a deviation": ({"mean": (3,), "std": (1, 3, 1, 1)}, ["mean", "std"]),
    "a normalization": (
        {"norm.weight": (3,), "norm.bias": (3,), "norm.running_mean": (3,), "norm.num_batches_tracked": ()},
        ["norm.weight", "norm.bias", "norm.running_mean"],
    ),
    "a shift of the colors": (
        {"sub_mean.weight": (3, 3, 1, 1), "sub_mean.bias": (3,), "add_mean.weight": (3, 3, 1, 1), "add_mean.bias": (3,)},
        ["sub_mean.weight", "sub_mean.bias"],
    ),
    "another number of channels": ({"mean": (4,), "std": (1, 4, 1, 1)}, []),
    "a bias of a layer": ({"conv1.scale_shift": (3,)}, []),
    "of what comes out": ({"out_mean": (3,), "denorm.mean": (3,), "target_std": (3,), "action_mean": (3,)}, []),
    "of another name": ({"anchors": (3,), "colors": (3,)}, []),
}


@pytest.mark.parametrize("name", BEFORE)
def test_vectors_before_the_stem_are_known_by_size_and_name(name: str):
    named, expected = BEFORE[name]
    whole = {**NET, **named}
    assert [t.name for t in input_vectors(places(whole).network, 3, tensors(whole))] == expected


def test_before_one_channel_nothing_is_looked_for():
    named = {**NET, "mean": (1,)}
    assert list(input_vectors(places(named).network, 1, tensors(named))) == []
