"""What speaks against a kernel, and what does not: each by the smallest network that shows it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.evidence import (
    ENDS,
    ENTRY,
    MOST_BANDS,
    OTHER_SENSES,
    STEM,
    Evidence,
    is_color_shift,
    is_no_kernel,
)
from chkpt_channels.discovery.law.network import LayerWeight, Network

Named = Mapping[str, tuple[int, ...]]


def evidence(named: Named, *, ordered: bool = True) -> Evidence:
    weights = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    return Evidence(Network(weights, ordered=ordered, torch=True))


def verdicts(named: Named, *, ordered: bool = True) -> dict[str, str]:
    """For each narrow kernel what speaks against it."""
    found = evidence(named, ordered=ordered)
    by_place = {k.at: k.key.removesuffix(".weight") for k in found.network.kernels}
    return {by_place[at]: verdict for at, verdict in found.verdicts.items()}


def kernel(*shape: int, key: str = "a.weight") -> LayerWeight:
    filters, channels, *window = shape
    return LayerWeight(Tensor(key, BY_NAME["F32"], shape), key, filters, channels, tuple(window), (key,))


# Names


@pytest.mark.parametrize(
    ("key", "stem", "entry"),
    [
        ("conv1.weight", True, True),
        ("model/conv_stem/kernel", True, True),
        ("backbone.patch_embed.proj.weight", True, True),
        ("patch_embed1.weight", True, True),
        ("features.0.weight", True, True),
        ("unet.conv_in.weight", True, True),
        ("input_blocks.0.0.weight", False, True),
        ("0.weight", False, True),
        ("layer1.0.conv2.weight", False, False),
        ("features.10.weight", False, False),
        ("conv10.weight", False, False),
        ("10.weight", False, False),
    ],
)
def test_stems_and_entries_are_known_by_name(key: str, stem: bool, entry: bool):
    assert (bool(STEM.search(key)), bool(ENTRY.search(key))) == (stem, entry)


@pytest.mark.parametrize(
    ("key", "senses", "ends"),
    [
        ("audio_tower.conv1.weight", True, True),
        ("lm.embed.weight", True, True),
        ("decoder.0.weight", False, True),
        ("head.conv.weight", False, True),
        ("up.0.weight", False, True),
        ("visual.conv1.weight", False, False),
        ("film.conv.weight", False, False),
    ],
)
def test_other_senses_and_ends_are_known_by_name(key: str, senses: bool, ends: bool):
    assert (bool(OTHER_SENSES.search(key)), bool(ENDS.search(key))) == (senses, ends)


# Shapes


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 16, 3), True),
        ((1, 16, 7, 7), True),
        ((16, 1, 1), True),
        ((3, 3, 1, 1), True),
        ((16, 1, 1, 1), False),
        ((3, 3, 3, 3), False),
        ((4, 3, 1, 1), False),
        ((16, 3, 7, 7), False),
    ],
    ids=str,
)
def test_what_has_the_rank_of_a_kernel_and_is_none(shape: tuple[int, ...], expected: bool):
    assert is_no_kernel(kernel(*shape)) == expected


def test_a_shift_of_the_colors_maps_pixels_to_pixels():
    assert is_color_shift(kernel(3, 3, 1, 1))
    assert not any(is_color_shift(kernel(*shape)) for shape in ((3, 3, 3, 3), (4, 3, 1, 1), (3, 4, 1, 1)))


def test_kernels_wider_than_an_image_are_not_looked_at():
    found = evidence({"a": (16, MOST_BANDS, 3, 3), "b": (16, MOST_BANDS + 1, 3, 3), "c": (1, 3, 7), "d": (16, 8)})
    assert [k.key for k in found.narrow] == ["a.weight"]


# Verdicts


NET: Named = {"conv1": (16, 3, 7, 7), "layer1.0.conv1": (16, 16, 3, 3), "layer1.0.conv2": (24, 16, 3, 3), "fc": (10, 24)}
FREE: dict[str, Named] = {
    "the first": NET,
    "of one channel": {**NET, "conv1": (16, 1, 7, 7)},
    "of 13 bands": {**NET, "conv1": (16, 13, 7, 7)},
    "with a decoder to three": {**NET, "out": (3, 24, 3, 3)},
    "with a head to one class": {**NET, "conv1": (16, 1, 7, 7), "out": (1, 24, 3, 3)},
}


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("name", FREE)
def test_nothing_speaks_against_a_first_kernel(name: str, ordered: bool):
    assert verdicts(FREE[name], ordered=ordered)["conv1"] == ""


AGAINST: dict[str, tuple[Named, bool, str, str]] = {
    "made before": ({"a": (8, 3, 3, 3), "b": (16, 8, 3, 3)}, True, "b", "an earlier layer produces 8 channels"),
    "a color network in front": (
        {"a": (16, 4, 3, 3), "b": (3, 16, 3, 3), "c": (16, 3, 3, 3)},
        True,
        "c",
        "an earlier layer produces 3 channels",
    ),
    "made anywhere": (
        {"a": (16, 4, 3, 3), "z": (4, 16, 3, 3)},
        False,
        "a",
        "its 4 channels are produced inside the network",
    ),
    "made twice over": (
        {"decoder.a": (64, 4, 3, 3), "encoder.z": (8, 64, 3, 3)},
        False,
        "decoder.a",
        "its 4 channels are produced inside the network",
    ),
    "in groups": (
        {"conv1": (32, 16, 3, 3), "conv2": (32, 4, 3, 3), "conv3": (64, 32, 1, 1)},
        True,
        "conv2",
        "a grouped convolution over the 32 channels of an earlier layer",
    ),
    "depthwise": (
        {"stem": (32, 3, 3, 3), "dw": (32, 1, 3, 3), "pw": (64, 32, 1, 1)},
        True,
        "dw",
        "a grouped convolution over the 32 channels of an earlier layer",
    ),
    "in a block that repeats": (
        {
            "stem": (48, 3, 3, 3),
            "blocks.0.x": (24, 4, 3, 3),
            "blocks.0.y": (30, 24, 1, 1),
            "blocks.1.x": (24, 4, 3, 3),
            "blocks.1.y": (30, 24, 1, 1),
        },
        False,
        "blocks.0.x",
        "is in a repeated block",
    ),
    "depthwise by name": (
        {"stem": (48, 3, 3, 3), "net.a.dw": (30, 1, 3, 3), "net.a.pw": (64, 30, 1, 1)},
        False,
        "net.a.dw",
        "depthwise: the next layer of its block takes its filters",
    ),
}


@pytest.mark.parametrize("name", AGAINST)
def test_what_speaks_against_an_inner_kernel(name: str):
    named, ordered, key, why = AGAINST[name]
    assert verdicts(named, ordered=ordered)[key] == why


def test_a_depthwise_stem_named_so_is_no_inner_kernel():
    named = {"net.stem.dw": (30, 1, 3, 3), "net.stem.pw": (64, 30, 1, 1), "net.body": (64, 64, 3, 3)}
    assert verdicts(named, ordered=False)["net.stem.dw"] == ""


# The first


@pytest.mark.parametrize(
    ("named", "first"),
    [
        (NET, "conv1"),
        ({"mean": (3, 3, 1, 1), **NET}, "conv1"),
        ({"attention": (1, 16, 3), **NET}, "conv1"),
        ({"fc0": (8, 3), **NET}, "conv1"),
        ({"embed": (64, 48, 3, 3), **NET}, None),
        ({"fc": (9, 4)}, None),
    ],
    ids=["plain", "a shift", "attention", "a product", "features", "no convolution"],
)
def test_the_first_convolution_of_an_ordered_network(named: Named, first: str | None):
    found = evidence(named).first
    assert (found and found.key.removesuffix(".weight")) == first


def test_without_the_order_there_is_no_first():
    assert evidence(NET, ordered=False).first is None


def test_makers_are_the_convolutions_by_their_filters():
    found = evidence({"shift": (3, 3, 1, 1), **NET})
    assert {filters: [k.key for k in made] for filters, made in found.makers.items()} == {
        16: ["conv1.weight", "layer1.0.conv1.weight"],
        24: ["layer1.0.conv2.weight"],
    }


# Branches


def branches(named: Named, a: str, b: str) -> bool:
    found = evidence(named)
    by_key = {k.key.removesuffix(".weight"): k for k in found.network.kernels}
    assert found.are_branches(by_key[a], by_key[b]) == found.are_branches(by_key[b], by_key[a])
    return found.are_branches(by_key[a], by_key[b])


def test_parallel_kernels_of_one_module_are_branches():
    stem: Named = {"stem.kxk": (48, 3, 3, 3), "stem.point": (48, 3, 1, 1), "body": (48, 48, 3, 3)}
    assert branches(stem, "stem.kxk", "stem.point")
    assert not branches({**stem, "stem.point": (32, 3, 1, 1)}, "stem.kxk", "stem.point")
    assert not branches({**stem, "stem.next": (48, 48, 3, 3)}, "stem.kxk", "stem.point")
    assert not branches({"kxk": (48, 3, 3, 3), "point": (48, 3, 1, 1), "body.a": (48, 48, 3, 3)}, "kxk", "point")


def test_branches_of_one_channel_have_one_that_looks_at_pixels():
    stem: Named = {"stem.kxk": (48, 1, 3, 3), "stem.point": (48, 1, 1, 1), "body": (48, 48, 3, 3)}
    assert branches(stem, "stem.kxk", "stem.point")
    assert not branches({**stem, "stem.point": (48, 1, 5, 5)}, "stem.kxk", "stem.point")
    assert not branches({"stem.0": (48, 1, 3, 3), "stem.1": (48, 1, 1, 1), "body": (48, 48, 3, 3)}, "stem.0", "stem.1")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"stem.kxk": (48, 3, 3, 3), "stem.point": (48, 3, 1, 1), "body": (48, 48, 3, 3)}, False),
        ({"point": (48, 3, 1, 1), "body.a": (48, 48, 3, 3)}, True),
        ({"point": (48, 3, 1, 1), "body.a": (32, 3, 3, 3)}, True),
    ],
    ids=["beside a wider one", "alone", "beside another's"],
)
def test_a_kernel_that_looks_at_single_pixels_alone_begins_no_image(named: Named, expected: bool):
    found = evidence(named)
    point = next(k for k in found.network.kernels if "point" in k.key)
    assert found.is_lone_point(point) == expected


@pytest.mark.parametrize(
    ("named", "key", "expected"),
    [
        ({"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3)}, "conv1", True),
        ({"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3)}, "conv1", True),
        ({"conv1": (16, 1, 3, 3), "conv2": (32, 16, 1, 1)}, "conv1", False),
        ({"conv1": (16, 4, 3, 3), "conv2": (32, 16, 3, 3)}, "conv1", False),
        ({"conv1": (16, 3, 3, 3), "conv2": (32, 8, 3, 3)}, "conv1", False),
    ],
    ids=["three", "one", "before a point", "groups of four", "not taken"],
)
def test_a_full_convolution_is_one_whose_filters_are_taken_whole(named: Named, key: str, expected: bool):
    found = evidence(named)
    assert found.begins_full(next(k for k in found.network.kernels if k.key == f"{key}.weight")) == expected
