"""Warnings of a plan: each has its code, appears where it is true, and names what it is about."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Declaration, FirstConv
from chkpt_channels.transform import notices
from chkpt_channels.transform.kernels import KernelChange
from chkpt_channels.transform.mixing import matrix
from chkpt_channels.transform.options import build_options
from tests.support.memory import Memory, kernel

STEM = "conv1.weight"


def changed(store: Memory, mixing: matrix.Mixing) -> KernelChange:
    conv = FirstConv(store.tensors[STEM], Layout("OIHW"), 3, "shapes")
    return KernelChange(conv, Layout("OIHW"), mixing, (8, mixing.new, 7, 7))


def codes(found: list) -> list[str]:
    return [notice.code for notice in found]


def test_globals_of_a_pickle_are_named():
    store = Memory({"": {STEM: kernel(8, 3, 7, 7)}})
    assert notices.of_file(store, ()) == ()
    store.globals = ("os.system",)
    (notice,) = notices.of_file(store, ())
    assert notice.code == "foreign_globals"
    assert "os.system" in notice.message


@pytest.mark.parametrize(
    ("mixing", "method", "expected"),
    [
        (matrix.sum_(3), "", []),
        (matrix.mean(3), "", ["response"]),
        (matrix.mean(3), "broadcast", []),
        (matrix.weighted((0.5, 0.3, 0.2)), "", ["response"]),
        (matrix.luma((0.2, 0.7, 0.1)), "", []),
        (matrix.repeat(3, 2), "", ["dropped_channels"]),
        (matrix.select(3, [0, 1]), "", []),
        (matrix.bands(3, [0, 0]), "", ["dropped_channels"]),
    ],
)
def test_effects_of_a_rule(mixing: matrix.Mixing, method: str, expected: list[str]):
    assert codes(notices.of_mixing(mixing, method)) == expected


def test_the_response_is_that_of_equal_channels():
    (notice,) = notices.of_mixing(matrix.mean(4), "")
    assert "0.25 times what it was" in notice.message


def test_hyper_parameters_that_stay():
    assert notices.of_hyper_parameters([]) == []
    (notice,) = notices.of_hyper_parameters([Declaration("hyper_parameters/in_chans", 3)])
    assert notice.code == "hyper_parameters"
    assert notice.message.startswith("hyper_parameters/in_chans = 3 stays")


def test_a_border_error_and_black_padding():
    store = Memory({"": {STEM: np.ones((8, 3, 7, 7), np.float32)}})
    plain, shifted = matrix.sum_(3), matrix.sum_(3)._replace(offset=(0.5, 0.5, 0.5))
    options = build_options(1, norm="imagenet")
    raw = build_options(1, norm="imagenet", input_range=255)
    assert notices.of_kernels(store, [changed(store, plain)], options) == []
    assert codes(notices.of_kernels(store, [changed(store, shifted)], options)) == ["border_error"]
    assert codes(notices.of_kernels(store, [changed(store, shifted)], raw)) == ["border_error", "black_padding"]
    assert codes(
        notices.of_kernels(store, [changed(store, shifted)], build_options(1, norm="imagenet", input_range=255, new_mean="0.4"))
    ) == ["border_error"]


def test_a_listing_is_cut():
    assert notices.listing(["a", "b"]) == "a, b"
    assert notices.listing([*"abcdefg"]) == "a, b, c, d, e and 2 more"
    assert notices.listing([*"abc"], most=2) == "a, b and 1 more"
