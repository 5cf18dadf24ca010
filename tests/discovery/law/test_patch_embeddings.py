"""Stems that fold the channels with pixels, and what stands in front of stems: by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.law.evidence import Evidence
from chkpt_channels.discovery.law.network import Network, is_weight
from chkpt_channels.discovery.law.patch_embeddings import (
    SPACE_TO_DEPTH,
    block_stem,
    input_vectors,
    linear_patches,
    spellings,
    stem,
)

Named = Mapping[str, tuple[int, ...]]


def tensors(named: Named) -> list[Tensor]:
    return [Tensor(name, BY_NAME["F32"], shape) for name, shape in named.items()]


def network(named: Named, *, ordered: bool = True) -> Network:
    return Network([t for t in tensors(named) if is_weight(t)], ordered=ordered, torch=True)


def found(named: Named, *, ordered: bool = True, channels: int | None = None) -> FirstConv | None:
    """The folded stem, where nothing that is narrow enough for an image is free."""
    evidence = Evidence(network(named, ordered=ordered))
    free = [k for k in evidence.narrow if not evidence.verdicts[k.at]]
    return stem(evidence, free, tensors(named), channels)


def shown(conv: FirstConv | None) -> tuple[str, int, str] | None:
    assert conv is None or conv.layout is None
    return conv and (conv.tensor.name, conv.in_channels, conv.found_by)


BLOCKS: Named = {"stem.weight": (48, 48, 3, 3), "layer1.weight": (64, 48, 3, 3), "layer2.weight": (64, 64, 3, 3)}


@pytest.mark.parametrize(("width", "channels"), SPACE_TO_DEPTH.items())
def test_a_first_convolution_over_blocks_of_pixels_is_a_stem(width: int, channels: int):
    named = {**BLOCKS, "stem.weight": (56, width, 3, 3), "layer1.weight": (64, 56, 3, 3)}
    conv = found(named)
    assert shown(conv) == ("stem.weight", channels, "shapes")
    assert conv.why.startswith("the order of colors and pixels is ambiguous: --layout O(GI)HW if")


@pytest.mark.parametrize("width", [6, 9, 15, 24, 64])
def test_other_widths_are_no_blocks(width: int):
    assert found({**BLOCKS, "stem.weight": (56, width, 3, 3), "layer1.weight": (64, 56, 3, 3)}) is None


NO_BLOCKS: dict[str, tuple[Named, bool]] = {
    "the width is made inside": ({**BLOCKS, "layer2.weight": (12, 64, 3, 3), "stem.weight": (56, 12, 3, 3)}, True),
    "single pixels": ({**BLOCKS, "stem.weight": (56, 12, 1, 1), "layer1.weight": (64, 56, 3, 3)}, True),
    "not the first": ({"first.weight": (8, 12, 3, 3), **BLOCKS, "stem.weight": (56, 27, 3, 3)}, True),
    "not named so, without the order": (
        {"body.weight": (56, 12, 3, 3), "layer1.weight": (64, 56, 3, 3), "other.weight": (70, 64, 3, 3)},
        False,
    ),
}


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_a_convolution_over_features_is_no_such_stem(name: str):
    named, ordered = NO_BLOCKS[name]
    conv = found(named, ordered=ordered)
    assert conv is None or conv.tensor.name == "first.weight"


def test_without_the_order_a_stem_over_blocks_is_known_by_its_name():
    named = {"stem.weight": (56, 12, 3, 3), "layer1.weight": (64, 56, 3, 3)}
    assert shown(found(named, ordered=False)) == ("stem.weight", 3, "shapes")


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(None, 3), (3, 3), (1, 1), (4, 4), (12, None), (5, 5)],
    ids=["unknown", "three", "one", "four", "as bands", "that do not fit"],
)
def test_channels_that_the_user_knows_are_taken_where_they_fit(channels: int | None, expected: int | None):
    """As many as the whole width are bands: then nothing is folded."""
    named = {"stem.weight": (56, 12, 3, 3), "layer1.weight": (64, 56, 3, 3)}
    conv = found(named, channels=channels)
    if channels == 5:
        assert conv is None
    else:
        assert (conv and conv.in_channels) == expected


def test_a_stem_over_blocks_has_the_channels_of_its_width():
    evidence = Evidence(network({"stem.weight": (56, 27, 3, 3)}))
    assert shown(block_stem(evidence.network.kernels[0])) == ("stem.weight", 3, "shapes")
    assert shown(block_stem(evidence.network.kernels[0], 9)) == ("stem.weight", 9, "shapes")


PATCHES: dict[str, tuple[Named, tuple[str, int, str] | None]] = {
    "by name": (
        {"model.patch_embed.proj.weight": (192, 768), "blocks.0.fc.weight": (192, 192)},
        ("model.patch_embed.proj.weight", 3, "names"),
    ),
    "of two frames": ({"patch_embed.proj.weight": (192, 1536), "fc.weight": (192, 192)}, ("patch_embed.proj.weight", 3, "names")),
    "of one color": ({"patch_embed.proj.weight": (192, 256), "fc.weight": (192, 192)}, ("patch_embed.proj.weight", 1, "names")),
    "in a series": ({"blocks.0.patch_embed.proj.weight": (192, 768), "fc.weight": (192, 192)}, None),
    "of another width": ({"patch_embed.proj.weight": (192, 500), "fc.weight": (192, 192)}, None),
    "of few filters": ({"patch_embed.proj.weight": (16, 768), "fc.weight": (192, 192)}, None),
    "by its positions": (
        {"vit.pos_embed": (1, 196, 192), "vit.proj.weight": (192, 768), "vit.blocks.0.fc.weight": (192, 192)},
        None,
    ),
    "alone beside its positions": (
        {"embeddings.position_embeddings": (1, 196, 192), "embeddings.proj.weight": (192, 768), "fc.weight": (192, 192)},
        ("embeddings.proj.weight", 3, "shapes"),
    ),
    "alone beside positions of another width": (
        {"embeddings.position_embeddings": (1, 196, 100), "embeddings.proj.weight": (192, 768), "fc.weight": (192, 192)},
        None,
    ),
    "two by name": (
        {"a.patch_embed.proj.weight": (192, 768), "b.patch_embed.proj.weight": (192, 768), "fc.weight": (192, 192)},
        None,
    ),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_product_over_patches_is_a_stem_where_it_is_the_only_one(name: str):
    named, expected = PATCHES[name]
    assert shown(found(named)) == expected


def test_a_convolution_that_could_see_the_image_comes_before_patches():
    named = {"stem.weight": (16, 3, 3, 3), "patch_embed.proj.weight": (192, 768), "layer.weight": (16, 16, 3, 3)}
    assert found(named) is None
    assert [(k.key, by) for k, by in linear_patches(network(named), tensors(named))] == [("patch_embed.proj.weight", "names")]


@pytest.mark.parametrize(("channels", "expected"), [(None, 3), (12, 12), (5, 3), (768, 768)])
def test_patches_take_the_channels_that_the_user_knows_where_they_fit(channels: int | None, expected: int):
    conv = found({"patch_embed.proj.weight": (192, 768), "fc.weight": (192, 192)}, channels=channels)
    assert conv.in_channels == expected
    assert conv.why == "the order of colors and pixels is ambiguous: --layout O(HWI) if colors vary fastest, O(IHW) if pixels do"


@pytest.mark.parametrize("shape", [(5, 12), (5, 12, 3, 3), (5, 12, 3), (5, 12, 3, 3, 3)], ids=len)
def test_layouts_that_are_offered_fit_the_shape(shape: tuple[int, ...]):
    offered = [word for word in spellings(shape).replace("--layout", " ").split() if word not in ("or", "LAYOUT")]
    assert all(len(Layout(word).axes) == len(shape) for word in offered)
    assert len(offered) == {2: 2, 4: 3}.get(len(shape), 0)


NET: Named = {"conv1.weight": (16, 3, 7, 7), "bn1.weight": (16,), "fc.weight": (10, 16)}
IN_FRONT: dict[str, tuple[Named, list[str]]] = {
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


@pytest.mark.parametrize("name", IN_FRONT)
def test_vectors_in_front_are_known_by_size_and_name(name: str):
    named, expected = IN_FRONT[name]
    whole = {**NET, **named}
    assert [t.name for t in input_vectors(network(whole), 3, tensors(whole))] == expected


def test_in_front_of_one_channel_nothing_is_looked_for():
    named = {**NET, "mean": (1,)}
    assert list(input_vectors(network(named), 1, tensors(named))) == []
