"""What else may see an image beside the stems of an answer."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import Network
from chkpt_channels.discovery.law.rivals import Rivals

Named = Mapping[str, tuple[int, ...]]


def rivals(named: Named, *stems: str, ordered: bool = True, channels: int | None = None) -> set[str]:
    """The layers that rival these stems."""
    tensors = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    network = Network(tensors if ordered else sorted(tensors), ordered=ordered, torch=True)
    kernels = [network.by_layer[stem] for stem in stems]
    return {k.layer for k in Rivals(Judged(network, tensors), channels).of(kernels, kernels[0].channels)}


def body(name: str, width: int) -> Named:
    return {f"{name}.layer1.conv1": (2 * width, width, 3, 3), f"{name}.layer1.conv2": (2 * width, 2 * width, 3, 3)}


DEPTH: Named = {"depth.stem.conv": (32, 3, 7, 7), **body("depth", 32), "pose.stem.conv": (32, 6, 7, 7), **body("pose", 32)}
FOCUS: Named = {"a.stem.conv": (32, 3, 3, 3), **body("a", 32), "b.stem.conv": (32, 12, 3, 3), **body("b", 32)}
LARGE: Named = {"skip.conv": (32, 3, 3, 3), **body("skip", 32), "patch_embed.conv": (64, 48, 1, 1), **body("net", 64)}
PYRAMID: Named = {"stem.conv": (16, 3, 3, 3), "conv0_1": (16, 48, 3, 3), "conv0_2": (16, 64, 3, 3), "layer1.conv": (16, 16, 3, 3)}
SECOND: Named = {
    "p.conv_in": (16, 13, 3, 3),
    **body("p", 16),
    "p.head": (13, 32, 1, 1),
    "r.conv_in": (16, 13, 3, 3),
    **body("r", 16),
}
EVEN: Named = {"p.conv_in": (10, 1, 7, 7), **body("p", 10), "r.base.conv": (10, 1, 4, 4), **body("r", 10)}
ODD: Named = {**EVEN, "r.base.conv": (10, 1, 5, 5)}
BRANCHES: Named = {"stem.conv1": (12, 1, 1, 1), "stem.conv2": (12, 1, 3, 3), "layer1.conv": (24, 24, 3, 3), "fc": (9, 24)}
SHORTCUT: Named = {"layer0.conv1": (24, 1, 3, 3), "layer0.conv2": (24, 24, 3, 3), "layer0.conv3": (24, 1, 1, 1), "fc": (9, 24)}
DEPTHWISE: Named = {
    "depth.stem": (16, 1, 3, 3),
    **body("depth", 16),
    "rgb.depthwise": (3, 1, 3, 3),
    "rgb.pointwise": (16, 3, 1, 1),
    **body("rgb", 16),
}
MADE: Named = {**DEPTHWISE, "rgb.reduce": (3, 16, 1, 1)}

APART: Named = {
    "net.stem": (8, 4, 7, 7),
    **body("net", 8),
    "net.head": (4, 16, 1, 1),
    "loc.0": (8, 4, 7, 7),
    "loc.3": (10, 8, 5, 5),
}

SHIFTED: Named = {"rgb.sub_mean": (3, 3, 1, 1), "rgb.conv": (16, 3, 3, 3), **body("rgb", 16)}
LATENT: Named = {"stem.conv": (16, 1, 3, 3), **body("net", 16), "quant": (3, 3, 1, 1)}

KINDS: dict[str, tuple[Named, tuple[str, ...], set[str]]] = {
    "a shift of another image's colors": (
        {"rgb.sub_mean": (3, 3, 1, 1), "depth.inc": (16, 1, 3, 3), **body("depth", 16)},
        ("depth.inc",),
        {"rgb.sub_mean"},
    ),
    "a shift of its own": (SHIFTED, ("rgb.conv",), set()),
    "what mixes a latent": (LATENT, ("stem.conv",), set()),
    "two images beside one": (DEPTH, ("depth.stem.conv",), {"pose.stem.conv"}),
    "one image beside two": (DEPTH, ("pose.stem.conv",), {"depth.stem.conv"}),
    "blocks of 2 × 2 pixels beside them": (FOCUS, ("a.stem.conv",), {"b.stem.conv"}),
    "blocks of 4 × 4 pixels beside them": (LARGE, ("skip.conv",), {"patch_embed.conv"}),
    "what joins the levels of a pyramid is none": (PYRAMID, ("stem.conv",), set()),
    "a second network behind a head as wide": (SECOND, ("p.conv_in",), {"r.conv_in"}),
    "what begins a part behind another part's classes": (APART, ("net.stem",), {"loc.0"}),
    "an even window, which is not depthwise": (EVEN, ("p.conv_in",), {"r.base.conv"}),
    "an odd one may be": (ODD, ("p.conv_in",), set()),
    "the window beside a stem of single pixels": (BRANCHES, ("stem.conv1",), {"stem.conv2"}),
    "the single pixels beside a stem of one channel": (SHORTCUT, ("layer0.conv1",), {"layer0.conv3"}),
    "a layer that filters three colors": (DEPTHWISE, ("depth.stem",), {"rgb.depthwise"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_may_see_the_image_too(name: str):
    named, stems, expected = KINDS[name]
    assert rivals(named, *stems) == expected


def test_a_filter_over_what_another_convolution_makes_is_none():
    assert rivals(DEPTHWISE, "depth.stem", ordered=False) == {"rgb.depthwise"}
    assert rivals(MADE, "depth.stem", ordered=False) == set()


def test_the_users_number_of_channels_leaves_no_others():
    assert rivals(DEPTH, "depth.stem.conv", channels=3) == set()


def test_without_an_order_the_kernel_of_one_channel_may_be_depthwise_over_the_other():
    net: Named = {"down.conv": (32, 13, 3, 3), "stages.0.conv": (32, 1, 3, 3), "stages.0.pw": (64, 32, 1, 1)}
    assert rivals(net, "stages.0.conv", ordered=False) == {"down.conv"}


def test_a_decoder_is_less_likely_than_a_larger_window_elsewhere():
    net: Named = {
        "encoder.down.projection": (32, 13, 7, 7),
        "encoder.down.conv": (40, 32, 3, 3),
        "decoder.conv_in": (40, 16, 3, 3),
        "decoder.conv": (40, 40, 3, 3),
    }
    assert rivals(net, "decoder.conv_in", ordered=False) == {"encoder.down.projection"}


def test_a_point_in_front_makes_the_colors_that_a_named_stem_takes():
    net: Named = {
        "net.adapter": (3, 13, 1, 1),
        "net.conv_stem": (48, 3, 7, 7),
        **body("net", 48),
        "net.layer2.conv": (96, 96, 3, 3),
    }
    assert rivals(net, "net.conv_stem", ordered=False) == {"net.adapter"}


def test_of_two_that_only_their_width_speaks_for_the_narrow_one_is_as_likely():
    net: Named = {
        "scale1": (10, 4, 3, 3),
        "scale2": (12, 4, 5, 5),
        "blocks.0.0.0": (53, 32, 3, 3),
        "blocks.0.0.1": (53, 53, 3, 3),
    }
    assert rivals(net, "blocks.0.0.0", ordered=False) == {"scale1", "scale2"}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_stem_of_blocks_is_wider_than_what_is_judged(ordered: bool):
    """Beside it a layer of single pixels, whose channels nothing makes, is compared with it all the same."""
    named: Named = {"stem.conv": (32, 48, 3, 3), **body("net", 32), "aux.proj": (16, 5, 1, 1)}
    assert rivals(named, "stem.conv", ordered=ordered) == set()
