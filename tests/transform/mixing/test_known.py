"""Known conversions: their names, and the options that ask for them."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME, numpy_dtype
from chkpt_channels.transform.mixing.known import asking, conversions, is_rounded, known_rules, read_off
from chkpt_channels.transform.mixing.normalization import fold_normalization
from chkpt_channels.transform.mixing.rules import ChannelRule
from chkpt_channels.transform.options import Options, build_options, spelled


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (
            3,
            1,
            {"sum", "mean", "luma (bt709)", "luma (bt601)", "luma (bt709, bgr)", "repeat", "channel 0 alone", "channel 2 alone"},
        ),
        (1, 3, {"luma (bt709)", "luma (bt601)", "luma (bt601, bgr)", "repeat", "repeat, not scaled", "zero"}),
        (3, 4, {"repeat", "repeat, not scaled", "zero", "mean"}),
        (3, 3, {"identity", "bgr", "mean"}),
        (4, 3, {"repeat", "the first 3 channels", "mean"}),
    ],
)
def test_rules_to_recognize(old: int, new: int, names: set[str]):
    rules = known_rules(old, new)
    assert names <= {rule.method for rule in rules} | {"repeat, not scaled"}
    assert all((rule.old, rule.new) == (old, new) for rule in rules)
    assert len({rule.matrix for rule in rules}) == len(rules)
    assert ChannelRule(to=new).mixing(old).matrix in {rule.matrix for rule in rules}


def asked(words: str, new: int) -> Options:
    """The options that are typed so."""
    flags = words.split()
    names = (flag.removeprefix("--").replace("-", "_") for flag in flags[::2])
    return build_options(**{"to": new} | dict(zip(names, flags[1::2], strict=True)))


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 4), (4, 3), (3, 3), (1, 1), (4, 1), (13, 3)])
def test_the_options_ask_for_the_rule(old: int, new: int):
    for rule in known_rules(old, new):
        words = asking(rule)
        assert words or (rule.method == "mean" and old == new > 1)
        assert not words or asked(words, new).rule.mixing(old).matrix == rule.matrix


@pytest.mark.parametrize(
    ("old", "words", "asks"),
    [
        (3, {"bands": "R,G,B,NIR=R"}, "--bands R,G,B,band3=R"),
        (3, {"bands": "B,G,R,NIR=R,SWIR=zero"}, "--bands B,G,R,band3=R,band4=zero"),
        (3, {"bands": "R,G,B,D=mean"}, "--bands R,G,B,band3=mean"),
        (4, {"bands": "0,1,2,3,x=3,y=none"}, "--bands 0,1,2,3,band4=3,band5=zero"),
        (1, {"bands": "gray,x=gray"}, "--bands 0,band1=0"),
        (3, {"select": "2,0,0,1"}, "--select 2,0,0,1"),
    ],
)
def test_a_rule_is_read_off_the_kernels(old: int, words: dict[str, str], asks: str):
    kernel, dtype = np.random.default_rng(0).standard_normal((8, old, 9)).astype(np.float32), BY_NAME["F32"]
    rule = build_options(None, **words).rule.mixing(old)
    new = rule.apply(kernel, (8, old, 9), dtype)
    fitting = [one for one in read_off(kernel, new) if one.apply(kernel, (8, old, 9), dtype).tobytes() == new.tobytes()]
    assert [asking(one) for one in fitting][:1] == [asks]
    flag, value = asks.split(" ")
    assert build_options(None, **{flag.removeprefix("--"): value}).rule.mixing(old).matrix == rule.matrix


def test_kernels_of_anything_are_compared():
    kernel = np.full((2, 3, 4), np.inf, dtype=np.float32)
    assert all((rule.old, rule.new) == (3, 2) for rule in read_off(kernel, np.full((2, 2, 4), np.nan, dtype=np.float32)))


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 3), (3, 4)])
def test_each_conversion_is_another_one(old: int, new: int):
    words = [spelled(keywords) for keywords in conversions(old, new)]
    options = [build_options(**{"to": new, **keywords}) for keywords in conversions(old, new)]
    folded = [
        fold_normalization(each.rule.mixing(old), each.norm, each.rule.orders) if each.norm else each.rule.mixing(old)
        for each in options
    ]
    assert len(set(words)) == len(words)
    assert {"--norm imagenet", "--norm imagenet --input-range 255", "--norm half --input-range 255", "--norm caffe"} <= {*words}
    assert {"--norm imagenet --channel-order bgr", "--norm caffe --channel-order rgb"} <= {*words}
    assert ("--to bgr" in words) == (new == 3)
    if (old, new) == (3, 1):  # none but those that change nothing is another's
        changing = [(rule.matrix, rule.offset) for rule in folded if (rule.matrix, rule.offset) != (((1.0,),) * 3, ())]
        assert len(set(changing)) == len(changing) >= 12


@pytest.mark.parametrize(
    ("name", "steps", "expected"), [("F32", 1, True), ("F32", 9, False), ("F64", 1, True), ("F8_E5M2", 1, False)]
)
def test_rounding_moves_a_weight_by_little(name: str, steps: int, expected: bool):
    dtype = BY_NAME[name]
    kernel = np.linspace(0.5, 1, 48).astype(numpy_dtype(dtype))
    width = f"u{kernel.itemsize}"
    assert is_rounded(kernel, (kernel.view(width) - np.array(steps, width)).view(kernel.dtype), dtype) == expected
