"""The verdicts on a whole network: which kernels are judged, and which is its first convolution."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law import judged as judged_module
from chkpt_channels.discovery.law.evidence import MOST_BANDS, State
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import LayerWeight, Network

Named = Mapping[str, tuple[int, ...]]


def judged(named: Named, *, ordered: bool = True) -> Judged:
    tensors = [Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()]
    return Judged(Network(tensors, ordered=ordered, torch=True), tensors)


def layers(kernels: list[LayerWeight]) -> list[str]:
    return [kernel.layer for kernel in kernels]


NET: Named = {"conv1": (16, 3, 7, 7), "layer1.0.conv1": (16, 16, 3, 3), "layer1.0.conv2": (48, 16, 3, 3), "fc": (10, 48)}
VIT: Named = {"patch_embed.proj": (192, 768), "blocks.0.attn.qkv": (576, 192), "blocks.0.mlp.fc1": (768, 192)}


@pytest.mark.parametrize(
    ("named", "first"),
    [
        (NET, "conv1"),
        ({"sub_mean": (3, 3, 1, 1), **NET}, "conv1"),
        ({"aggregate": (1, 3, 1), **NET}, "conv1"),
        ({"time_embed.0": (8, 3), **NET}, "conv1"),
        ({"text_model.conv": (8, 4, 3, 3), **NET}, "conv1"),
        ({"embed": (64, MOST_BANDS + 1, 3, 3), **NET}, "embed"),
        ({**VIT, "head.conv": (8, 192, 3, 3)}, None),
        ({"fc": (9, 4)}, None),
    ],
    ids=["plain", "a shift", "attention", "a product", "another sense", "features", "behind patches", "no convolution"],
)
def test_the_first_convolution_of_a_network_in_order(named: Named, first: str | None):
    found = judged(named).first
    assert (found and found.layer) == first


def test_without_the_order_there_is_no_first():
    assert judged(NET, ordered=False).first is None


def test_kernels_wider_than_an_image_are_inside():
    found = judged({"a": (16, MOST_BANDS, 3, 3), "b": (16, MOST_BANDS + 1, 3, 3), "c": (16, 8)})
    by_layer = found.network.by_layer
    assert layers(found.narrow) == ["a"]
    assert found.state(by_layer["a"]) is State.FREE
    assert found.state(by_layer["b"]) is found.state(by_layer["c"]) is State.INSIDE


@pytest.mark.parametrize(
    ("layer", "shape"),
    [("gate.conv", (8, 1, 5)), ("audio.conv", (8, 1, 3, 3)), ("layer1.0.temporal", (48, 1, 3, 1, 1))],
    ids=["a Conv1d beside images", "a branch for sound", "one channel in time beside images"],
)
def test_kernels_for_another_input_are_not_judged(layer: str, shape: tuple[int, ...]):
    judgment = judged({**NET, layer: shape})
    assert layers(judgment.narrow) == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert judgment.state(judgment.network.by_layer[layer]) is State.INSIDE


def test_where_all_take_another_input_they_are_judged():
    assert layers(judged({"audio.conv1": (16, 1, 9), "audio.conv2": (32, 16, 9)}).of(State.FREE)) == ["audio.conv1"]


@pytest.mark.parametrize(
    ("channels", "free", "inside"),
    [
        (None, ["conv1"], ["layer1.0.conv1", "layer1.0.conv2"]),
        (3, ["conv1"], []),
        (16, [], ["layer1.0.conv1", "layer1.0.conv2"]),
    ],
)
def test_kernels_are_asked_for_by_their_state_and_width(channels: int | None, free: list[str], inside: list[str]):
    found = judged(NET)
    assert (layers(found.of(State.FREE, channels)), layers(found.of(State.INSIDE, channels))) == (free, inside)


def test_every_narrow_kernel_has_a_verdict():
    dw: Named = {"stem": (16, 1, 3, 3), "b.0.dw": (16, 1, 3, 3), "b.0.pw": (32, 16, 1, 1), "b.1.dw": (32, 1, 3, 3)}
    for ordered in (True, False):
        found = judged(dw, ordered=ordered)
        assert {*found.verdicts} == {kernel.at for kernel in found.narrow}


def test_patch_embeddings_are_found_beside_it():
    assert [(kernel.layer, by) for kernel, by in judged(VIT).patches] == [("patch_embed.proj", "names")]


def test_a_stem_of_another_rank_than_most_layers_is_judged():
    """A video's first convolution in front of layers over single frames."""
    named = {
        "stem.conv": (16, 1, 7, 7, 7),
        "other": (16, 1, 3, 3, 3),
        "a": (16, 16, 3, 3),
        "b": (16, 16, 3, 3),
        "c": (16, 8, 3, 3),
    }
    assert "stem.conv" in layers(judged(named).narrow)
    assert "other" not in layers(judged(named).narrow)


def test_of_a_crowd_nothing_is_compared(monkeypatch: pytest.MonkeyPatch):
    crowd = {f"conv{i}": (8, 3, 3, 3) for i in range(4)}
    assert len(judged(crowd).of(State.FREE)) == 4
    monkeypatch.setattr(judged_module, "LIMITS", LIMITS._replace(narrow_kernels=3))
    found = judged(crowd)
    assert found.is_crowded
    assert found.first is None
    assert not found.of(State.FREE)
    assert [found.why(kernel) for kernel in found.narrow] == [""] * 4
