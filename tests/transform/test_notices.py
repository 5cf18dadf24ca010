"""Warnings of a plan: each has its code, appears where it is true, and names what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, Tensor
from chkpt_channels.discovery.request import ConfigHints, SearchRequest
from chkpt_channels.transform import notices
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix
from chkpt_channels.transform.mixing.rules import ChannelRule
from chkpt_channels.transform.options import build_options
from tests.support.memory import Memory, kernel

STEM = "conv1.weight"


def changed(store: Memory, mixing: matrix.Mixing) -> KernelChange:
    conv = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, "shapes")
    return KernelChange(conv, Layout("OIHW"), mixing, (8, mixing.new, 7, 7))


def codes(found: Iterable[Notice]) -> list[str]:
    return [notice.code for notice in found]


def test_globals_of_a_pickle_are_named():
    store = Memory({"": {STEM: kernel(8, 3, 7, 7)}})
    assert not list(notices.of_file(store, ()))
    store.globals = ("os.system",)
    (notice,) = notices.of_file(store, ())
    assert notice.code == "foreign_globals"
    assert "os.system" in notice.message


def test_torchs_own_classes_are_no_warning():
    store = Memory({"": {STEM: kernel(8, 3, 7, 7)}})
    own = ("torch.nn.modules.conv.Conv2d", "torch.optim.adamw.AdamW", "torch.torch_version.TorchVersion")
    store.globals = own
    assert not list(notices.of_file(store, ()))
    others = ("torch.hub.load", "torch.nn.init.normal_", "torch.utils.data.DataLoader", "torchx.nn.Net")
    store.globals = (*own, *others)
    (notice,) = notices.of_file(store, ())
    assert f"its pickle names {', '.join(others)}, which" in notice.message


@pytest.mark.parametrize(
    ("mixing", "method", "expected"),
    [
        (matrix.sum_(3), "", []),
        (matrix.mean(3), "", ["response"]),
        (matrix.mean(3), "broadcast", []),
        (matrix.repeat(3, 2), "adapter", ["dropped_channels", "adapter"]),
        (matrix.weighted((0.5, 0.3, 0.2)), "", ["response"]),
        (matrix.luma((0.2, 0.7, 0.1)), "", []),
        (matrix.repeat(3, 2), "", ["dropped_channels"]),
        (matrix.select(3, [0, 1]), "", []),
        (matrix.bands(3, [0, 0]), "", ["dropped_channels"]),
    ],
)
def test_effects_of_a_rule(mixing: matrix.Mixing, method: str, expected: list[str]):
    assert codes(notices.of_mixing(mixing, method, ChannelRule())) == expected


@pytest.mark.parametrize(("mixing", "is_named"), [(matrix.repeat(3, 2), True), (matrix.bands(3, [0, 0]), False)])
def test_the_option_that_chooses_is_named_where_nothing_was_chosen(mixing: matrix.Mixing, is_named: bool):
    (notice,) = notices.of_mixing(mixing, "", ChannelRule())
    assert ("--select" in notice.message) == is_named


def test_the_response_is_that_of_equal_channels():
    (notice,) = notices.of_mixing(matrix.mean(4), "", ChannelRule())
    assert "0.25 times what it was" in notice.message


@pytest.mark.parametrize(
    ("old", "words", "begins"),
    [
        (3, {"to": "rgba"}, "alpha begins as 0.75 times the kernel of R"),
        (1, {"to": "rgba"}, "alpha begins as 0.25 times the kernel of channel 0"),
        (3, {"to": "rgba", "method": "adapter"}, "alpha begins as 0.75 times the kernel of R"),
        (3, {"to": 4}, ""),
        (3, {"to": "rgba", "method": "zero"}, ""),
        (3, {"to": "rgba", "method": "repeat"}, ""),
        (3, {"to": "rgba", "bands": "R,G,B,A=R"}, ""),
    ],
)
def test_alpha_that_begins_as_a_color_is_told(old: int, words: dict[str, Any], begins: str):
    rule = build_options(**words).rule
    told = [notice for notice in notices.of_mixing(rule.mixing(old), "", rule) if notice.code == "alpha"]
    assert [notice.message.startswith(begins) and "--method zero" in notice.message for notice in told] == [True] * bool(begins)


def test_a_kernel_that_may_filter_colors_one_by_one_is_told():
    conv = FirstConv(Tensor("dw.weight", BY_NAME["F32"], (24, 1, 3, 3)), Layout("OIHW"), 1, "shapes")
    store = Memory({})
    assert not list(notices.of_file(store, [conv]))
    (notice,) = notices.of_file(store, [conv._replace(may_be_depthwise=True)])
    assert notice.code == "may_be_depthwise"
    assert "dw.weight takes gray, or filters R, G and B one by one (groups=3)" in notice.message


ANY = SearchRequest()
UNET = {
    STEM: kernel(8, 3, 7, 7),
    "conv2.weight": kernel(8, 8, 3, 3),
    "side.a.weight": kernel(4, 3, 5, 5),
    "side.b.weight": kernel(4, 4, 3, 3),
}


@pytest.mark.parametrize("found_by", ["user", "like", "sidecar"])
def test_kernels_beside_the_first_convs_that_were_named(found_by: str):
    store = Memory({"": UNET})
    conv = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, found_by)
    (notice,) = notices.of_chosen(store, [conv], [conv], ANY)
    assert notice.code == "unexplained"
    assert notice.message == (
        "side.a.weight takes the 3 channels of the image too, and stays as it is: no layer is known to make these"
    )
    both = [conv, FirstConv(store.tensors["side.a.weight"], Layout("OIHW"), 3, found_by)]
    assert not list(notices.of_chosen(store, both, both, ANY))


def test_what_the_user_names_is_not_what_the_search_finds():
    store = Memory({"": {STEM: kernel(8, 3, 7, 7), "conv2.weight": kernel(16, 8, 3, 3), "fc.weight": kernel(4, 16)}})
    first, second = (FirstConv(store.tensors[name], Layout("OIHW"), n, "user") for name, n in ((STEM, 3), ("conv2.weight", 8)))
    (notice,) = notices.of_chosen(store, [second], [second], ANY)
    what = f"conv2.weight is named by --layer, and not what sees the image, as far as can be told: that is {STEM}"
    assert notice == ("not_first", what)
    for convs in ([first], [first, second], [second._replace(found_by="like")]):
        assert "not_first" not in codes(notices.of_chosen(store, convs, convs, ANY))
    open_ = Memory({"": {"a.x.weight": kernel(8, 3, 7, 7), "b.y.weight": kernel(8, 4, 7, 7)}})
    named = FirstConv(open_.tensors["b.y.weight"], Layout("OIHW"), 4, "user")
    stated = SearchRequest(hints=ConfigHints(("b.y",), 4))
    assert "not_first" not in codes(notices.of_chosen(open_, [named], [named], stated))
    voice = Tensor("audio.conv.weight", BY_NAME["F32"], (8, 1, 9, 9))
    assert not list(notices.of_chosen(store, [second], [second._replace(tensor=voice)], ANY))


def test_several_are_listed_in_one_warning():
    store = Memory({"": UNET | {"other.a.weight": kernel(6, 3, 5, 5), "other.b.weight": kernel(6, 6, 3, 3)}})
    conv = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, "user")
    (notice,) = notices.of_chosen(store, [conv], [conv], ANY)
    assert notice.message == "side.a.weight, other.a.weight take the 3 channels of the image too, and stay as they are"


def test_a_conv_that_does_not_change_leaves_none():
    """Beside a kernel of one channel that becomes three, those of three channels are right as they are."""
    store = Memory({"": UNET | {"depth.a.weight": kernel(6, 1, 5, 5), "depth.b.weight": kernel(6, 6, 3, 3)}})
    named = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, "user")
    depth = FirstConv(store.tensors["depth.a.weight"], Layout("OIHW"), 1, "user")
    assert not list(notices.of_chosen(store, [depth], [named, depth], ANY))
    assert codes(notices.of_chosen(store, [named], [named, depth], ANY)) == ["unexplained"]


@pytest.mark.parametrize("found_by", ["shapes", "names", "graph"])
def test_the_search_and_the_graph_leave_none(found_by: str):
    store = Memory({"": UNET})
    conv = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, found_by)
    assert not list(notices.of_chosen(store, [conv], [conv], ANY))


def test_hyper_parameters_that_stay():
    assert not list(notices.of_hyper_parameters([]))
    (notice,) = notices.of_hyper_parameters([Declaration("hyper_parameters/in_chans", 3)])
    assert notice.code == "hyper_parameters"
    assert notice.message.startswith("hyper_parameters/in_chans = 3 stays")


def test_a_border_error_and_black_padding():
    store = Memory({"": {STEM: np.ones((8, 3, 7, 7), np.float32)}})
    plain, shifted = matrix.sum_(3), matrix.sum_(3)._replace(offset=(0.5, 0.5, 0.5))
    options = build_options(1, norm="imagenet")
    raw = build_options(1, norm="imagenet", input_range=255)
    assert not list(notices.of_kernels(store, [changed(store, plain)], options))
    assert codes(notices.of_kernels(store, [changed(store, shifted)], options)) == ["border_error"]
    assert codes(notices.of_kernels(store, [changed(store, shifted)], raw)) == ["border_error", "black_padding"]
    assert codes(
        notices.of_kernels(store, [changed(store, shifted)], build_options(1, norm="imagenet", input_range=255, new_mean="0.4"))
    ) == ["border_error"]


def test_a_border_is_told_in_pixels_with_its_share_and_what_is_exact():
    """A kernel of ones: 7 rows of 7 taps, 147 in all. Of the 4 that are left in the corner 33 lie on zeros."""
    store = Memory({"": {STEM: np.ones((8, 3, 7, 7), np.float32)}})
    shifted = matrix.sum_(3)._replace(offset=(0.5, 0.5, 0.5))
    (notice,) = notices.of_kernels(store, [changed(store, shifted)], build_options(1, norm="imagenet"))
    assert notice.message == (
        "conv1.weight: exact inside; the outer 3 pixels differ in its feature map by up to 49.5, 34 % of the largest value "
        "that normalized inputs in -1..1 give, if it is padded as usual; "
        "a second channel of ones is exact there too: docs/normalization.md"
    )


def test_a_listing_is_cut():
    assert notices.listing(["a", "b"]) == "a, b"
    assert notices.listing([*"abcdefg"]) == "a, b, c, d, e and 2 more"
    assert notices.listing([*"abc"], most=2) == "a, b and 1 more"
