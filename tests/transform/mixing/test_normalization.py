"""Pipelines on both sides of a mixing: the numbers they stand for, and one convolution that proves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chkpt_channels import UnsupportedError, UsageError
from chkpt_channels.core.layout import Layout
from chkpt_channels.transform.mixing.normalization import NORMS
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import Plan, build_plan
from tests.support.memory import NET, Memory

MEAN, STD = NORMS["imagenet"][:2]
CAFFE = NORMS["caffe"]


def planned(to: Any, old: int = 3, window: tuple[int, int] = (3, 3), dtype: type = np.float64, **words: Any) -> Plan:
    return build_plan(Memory({"": net(old, window, dtype)}), build_options(to, **words))


def net(channels: int, window: tuple[int, int] = (3, 3), dtype: type = np.float64) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(1)
    shapes = {"conv1.weight": (8, channels, *window), "conv1.bias": (8,), "conv2.weight": (8, 8, 3, 3), "fc.weight": (5, 8)}
    return {name: chance.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


PIPELINES = [
    ("gray", 3, {"norm": "imagenet"}, (np.mean(MEAN),), (np.mean(STD),)),
    ("gray", 3, {"norm": "imagenet", "channel_order": "bgr"}, (np.mean(MEAN),), (np.mean(STD),)),
    ("gray", 3, {"norm": "half"}, (0.5,), (0.5,)),
    ("gray", 3, {"norm": "none"}, (0.0,), (1.0,)),
    ("gray", 3, {"norm": "tf"}, (0.5,), (0.5,)),
    ("gray", 3, {"norm": "torch"}, (np.mean(MEAN),), (np.mean(STD),)),
    ("gray", 3, {"norm": "caffe"}, (0.0,), (1.0,)),
    ("gray", 3, {"norm": "caffe", "new_mean": "0.45"}, (0.45,), (1.0,)),
    ("gray", 3, {"norm": "caffe", "input_range": 1}, (np.mean(CAFFE.mean),), (1.0,)),
    ("rgb", 3, {"norm": "caffe", "input_range": 1}, CAFFE.mean, (1.0,) * 3),
    ("rgb", 3, {"mean": "0.1,0.2,0.3", "channel_order": "bgr"}, (0.1, 0.2, 0.3), (1.0,) * 3),
    ("bgr", 3, {"mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"}, (0.3, 0.2, 0.1), (0.6, 0.5, 0.4)),
    (4, 3, {"norm": "imagenet"}, (*MEAN, MEAN[0]), (*STD, STD[0])),
    (4, 3, {"norm": "imagenet", "bands": "R,G,B,NIR=R"}, (*MEAN, MEAN[0]), (*STD, STD[0])),
    ("gray", 3, {"mean": "0.1,0.2,0.3", "std": "1.5"}, (0.2,), (1.5,)),
    ("gray", 3, {"mean": "0.5"}, (0.5,), (1.0,)),
    ("gray", 3, {"norm": "imagenet", "new_mean": "0.3"}, (0.3,), (np.mean(STD),)),
    ("gray", 3, {"norm": "imagenet", "input_range": 255}, (0.0,), (1.0,)),
    ("gray", 3, {"norm": "imagenet", "input_range": 255, "new_mean": "0.5"}, (0.5,), (1.0,)),
    ("rgb", 1, {"norm": "imagenet"}, MEAN, STD),
    ("bgr", 1, {"norm": "imagenet"}, MEAN[::-1], STD[::-1]),
    ("rgb", 1, {"mean": "0.2", "std": "0.3"}, (0.2,) * 3, (0.3,) * 3),
    ("bgr", 3, {"norm": "imagenet"}, MEAN[::-1], STD[::-1]),
    ("rgb", 3, {"norm": "imagenet", "channel_order": "bgr"}, MEAN, STD),
    (4, 3, {"norm": "imagenet", "method": "zero"}, (*MEAN, np.mean(MEAN)), (*STD, np.mean(STD))),
    (2, 3, {"norm": "imagenet", "select": "B,R"}, (MEAN[2], MEAN[0]), (STD[2], STD[0])),
    (5, 4, {"norm": "half"}, (0.5,) * 5, (0.5,) * 5),
]


@pytest.mark.parametrize(("to", "old", "words", "mean", "std"), PIPELINES)
def test_the_new_pipeline(to: Any, old: int, words: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]):
    pipeline = planned(to, old, **words).pipeline
    assert pipeline.mean == pytest.approx(mean, rel=1e-12)
    assert pipeline.std == pytest.approx(std, rel=1e-12)
    assert pipeline.input_range == words.get("input_range", 255 if words.get("norm") == "caffe" else 1)


@pytest.mark.parametrize(
    ("old", "to", "words", "message"),
    [
        (3, 1, {"norm": "imagnet"}, "--norm is one of imagenet, half, clip"),
        (3, 1, {"norm": "imagenet", "mean": "0.5"}, "give one of them"),
        (3, 1, {"new_mean": "0.5"}, "needs the old one that the network was trained with"),
        (3, 1, {"input_range": 255}, "needs the old one that the network was trained with"),
        (3, 1, {"mean": "0.5", "std": "0.2,0,0.2"}, "--std takes positive numbers"),
        (3, 1, {"norm": "half", "new_std": "-1"}, "--new-std takes positive numbers"),
        (3, 1, {"norm": "half", "input_range": 0}, "--input-range takes positive numbers"),
        (3, 1, {"norm": "half", "input_range": float("inf")}, "--input-range takes finite numbers"),
        (3, 1, {"mean": "123.675,116.28,103.53"}, "--mean is for images in 0..1, and 123.675 looks like one for 0..255"),
        (3, 1, {"std": "58.4"}, "--std is for images in 0..1"),
        (3, 1, {"norm": "half", "input_range": 255, "new_mean": "127.5"}, "--new-mean is for images in 0..1"),
        (3, 1, {"norm": "half", "new_std": "127.5"}, "--new-std is for images in 0..1"),
        (3, 1, {"mean": "a,b"}, "--mean is numbers"),
        (3, 1, {"mean": "0.1,0.2"}, "--mean has 2 values for 3 old channels"),
        (3, 1, {"norm": "half", "new_std": "1,0.5"}, "--new-std has 2 values for 1 new channels"),
        (4, 1, {"norm": "imagenet"}, "--norm imagenet is for three channels, and the kernel takes 4"),
        (3, 1, {"norm": "half", "method": "broadcast"}, "edits no kernel, so that no normalization can be folded"),
    ],
)
def test_wrong_usage(old: int, to: int, words: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        planned(to, old, **words)


def test_equal_pipelines_leave_no_constant():
    """Weights that sum to 1 but for rounding need no bias: nothing is refused for want of one."""
    for to, old in [(1, 3), (3, 1)]:
        plan = build_plan(Memory({"": {k: v for k, v in net(old).items() if k != "conv1.bias"}}), build_options(to, norm="half"))
        assert plan.kernels[0].mixing.offset == ()
        assert set(plan.edits.tensors) == {"conv1.weight"}


def test_without_bias_or_norm_it_is_refused():
    with pytest.raises(UnsupportedError, match="has no bias, and no BatchNorm is known"):
        build_plan(Memory({"": {k: v for k, v in net(3).items() if k != "conv1.bias"}}), build_options(1, norm="imagenet"))


def test_a_transposed_convolution_takes_no_constant():
    named = {"up.weight": net(3)["conv1.weight"].swapaxes(0, 1).copy(), "up.bias": np.zeros(8)}
    asked = {"layers": ["up"], "layout": "IOHW"}
    assert build_plan(Memory({"": named}), build_options(1, norm="half", **asked)).edits
    with pytest.raises(UnsupportedError, match="transposed convolution"):
        build_plan(Memory({"": named}), build_options(1, norm="imagenet", **asked))


def convolved(kernel: np.ndarray, image: np.ndarray) -> np.ndarray:
    """[O, I, h, w] over [I, H, W], nothing padded."""
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape[2:], axis=(1, 2))
    return np.einsum("oihw,iyxhw->oyx", kernel, windows)


CHANNELS = st.integers(1, 5)
NUMBERS = st.floats(-2, 1.5, allow_subnormal=False)
SPREADS = st.floats(0.05, 1.5)
RULES = [
    *({"to": "gray", "method": method} for method in ("sum", "mean")),
    *({"to": 3, "method": method} for method in ("repeat", "mean", "auto")),
    {"to": "bgr"}, {"to": "rgb", "channel_order": "bgr"}, {"to": 2, "select": "1,0"}, {"to": 5, "method": "zero"},
    {"to": None, "bands": "A=0,B=mean,C=1"},
]  # fmt: skip
ORDERS = {"OIHW": (0, 1, 2, 3), "HWIO": (2, 3, 1, 0), "OHWI": (0, 2, 3, 1)}


@given(st.data())
def test_one_convolution_proves_it(data: st.DataObject):
    """The old kernel on M · raw through the old pipeline gives what the new one gives on raw through the new pipeline."""
    words = data.draw(st.sampled_from(RULES))
    old = 3 if words["to"] in ("bgr", "rgb") else data.draw(st.integers(2, 5) if words["to"] in (2, None) else CHANNELS)
    layout = data.draw(st.sampled_from(list(ORDERS)))
    top = data.draw(st.sampled_from([None, 1, 255]))
    pipelines = {"mean": data.draw(st.lists(NUMBERS, min_size=old, max_size=old))}
    pipelines["std"] = data.draw(st.lists(SPREADS, min_size=old, max_size=old))
    rule = build_options(**words).rule.mixing(old)
    if data.draw(st.booleans()):
        pipelines["new_mean"] = data.draw(st.lists(NUMBERS, min_size=rule.new, max_size=rule.new))
        pipelines["new_std"] = data.draw(st.lists(SPREADS, min_size=rule.new, max_size=rule.new))
    before = net(old)
    kernel = before["conv1.weight"]
    stored = {**before, "conv1.weight": kernel.transpose(ORDERS[layout]).copy()}
    asked = {"layers": ["conv1"], "layout": layout} | ({"input_range": top} if top else {})
    plan = build_plan(Memory({"": stored}), build_options(**words, **pipelines, **asked))
    if plan.pipeline is None:
        assert not plan.edits
        return
    mean, std, white = plan.pipeline
    assert white == (top or 1)
    raw = np.random.default_rng(2).random((rule.new, 6, 5))
    seen = np.einsum("ij,jyx->iyx", np.array(rule.matrix), raw)
    turn = -1 if words.get("channel_order") == "bgr" and old == 3 else 1  # stated of red, green and blue
    through = (seen - np.reshape(pipelines["mean"][::turn], (-1, 1, 1))) / np.reshape(pipelines["std"][::turn], (-1, 1, 1))
    fed = white * (raw - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    values = {name: edit.values() for name, edit in plan.edits.tensors.items()}
    after = values.get("conv1.weight", stored["conv1.weight"]).transpose(np.argsort(ORDERS[layout]))
    expected = convolved(kernel, through) + before["conv1.bias"].reshape(-1, 1, 1)
    found = convolved(after, fed) + values.get("conv1.bias", before["conv1.bias"]).reshape(-1, 1, 1)
    assert np.allclose(found, expected, rtol=0, atol=1e-11 * max(1, abs(expected).max()))
    assert plan.kernels[0].layout == Layout(layout)


@pytest.mark.parametrize("to", ["bgr", "gray", 4])
def test_colors_keep_their_own_numbers(to: Any):
    """The preset is that of the side it belongs to, whichever order the target has."""
    plan = planned(to, norm="imagenet", input_range=255)
    weight, bias = (plan.edits.tensors[f"conv1.{end}"].values() for end in ("weight", "bias"))
    old, matrix = net(3), np.array(build_options(to).rule.mixing(3).matrix)
    scale = np.reshape(STD, (1, 3, 1, 1))
    assert np.allclose(weight, np.einsum("oihw,ij->ojhw", old["conv1.weight"] / scale, matrix) / 255, rtol=1e-12)
    shift = -(old["conv1.weight"] * np.reshape(MEAN, (1, 3, 1, 1)) / scale).sum(axis=(1, 2, 3))
    assert np.allclose(bias, old["conv1.bias"] + shift, rtol=1e-12)


@pytest.mark.parametrize(
    ("window", "least"), [((3, 3), 1), ((7, 7), 1), ((6, 6), 1), ((4, 4), 1), ((16, 16), 0), ((1, 1), 0), ((2, 2), 0)]
)
def test_the_border_is_told_of(window: tuple[int, int], least: int):
    plan = planned(1, window=window, norm="imagenet", layers=["conv1"])
    assert sum(n.code == "border_error" for n in plan.notices) == least


def test_no_pipeline_no_constant():
    assert set(build_plan(Memory({"": NET}), build_options(1)).edits.tensors) == {"conv1.weight"}
