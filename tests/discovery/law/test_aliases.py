"""One module under several names: the search sees one, and finds all."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.aliases import Aliases

Named = Mapping[str, tuple[int, ...]]


def aliases(named: Named) -> tuple[Aliases, dict[str, Tensor]]:
    tensors = {f"{name}.weight": Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()}
    return Aliases(list(tensors.values())), tensors


def of(named: Named, layer: str) -> list[str]:
    found, tensors = aliases(named)
    return [tensor.key.removesuffix(".weight") for tensor in found.of(tensors[f"{layer}.weight"])]


def kept(named: Named) -> list[str]:
    return [tensor.key.removesuffix(".weight") for tensor in aliases(named)[0].kept]


# dynamic-network-architectures: ConvDropoutNormReLU keeps `conv` and `norm` in the list `all_modules` too
STAGES: dict[str, tuple[int, ...]] = {"stages.0.0": (32, 3, 3, 3), "stages.1.0": (64, 32, 3, 3), "stages.2.0": (96, 64, 3, 3)}
LISTED: Named = {f"{stage}.{name}": shape for stage, shape in STAGES.items() for name in ("conv", "all_modules.0")}
# and its UNetDecoder keeps the encoder
NESTED: Named = {
    **{f"encoder.{name}": shape for name, shape in STAGES.items()},
    **{f"decoder.encoder.{name}": shape for name, shape in STAGES.items()},
    "decoder.seg_layers.0": (2, 32, 1, 1),
}
BOTH: Named = {
    **{f"encoder.{name}": shape for name, shape in LISTED.items()},
    **{f"decoder.encoder.{name}": shape for name, shape in LISTED.items()},
    "decoder.seg_layers.0": (2, 32, 1, 1),
}


def test_a_module_of_its_own_and_in_a_list_is_one():
    assert kept(LISTED) == [f"{stage}.conv" for stage in STAGES]
    assert of(LISTED, "stages.0.0.conv") == ["stages.0.0.conv", "stages.0.0.all_modules.0"]


def test_a_part_that_another_part_keeps_too_is_one():
    assert kept(NESTED) == [*(f"encoder.{stage}" for stage in STAGES), "decoder.seg_layers.0"]
    assert of(NESTED, "encoder.stages.0.0") == ["encoder.stages.0.0", "decoder.encoder.stages.0.0"]
    assert of(NESTED, "decoder.seg_layers.0") == ["decoder.seg_layers.0"]


@pytest.mark.parametrize("prefix", ["", "module.", "network_weights.model."])
def test_all_four_names_are_found(prefix: str):
    named = {prefix + name: shape for name, shape in BOTH.items()}
    inner, outer = f"{prefix}encoder.stages.0.0", f"{prefix}decoder.encoder.stages.0.0"
    assert kept(named) == [*(f"{prefix}encoder.{stage}.conv" for stage in STAGES), f"{prefix}decoder.seg_layers.0"]
    assert {*of(named, f"{inner}.conv")} == {f"{n}.{end}" for n in (inner, outer) for end in ("conv", "all_modules.0")}


def test_a_bias_has_its_other_name_too():
    biases = [Tensor(f"{name}.bias", BY_NAME["F32"], shape[:1]) for name, shape in LISTED.items()]
    _, tensors = aliases(LISTED)
    found = Aliases([*tensors.values(), *biases])
    assert [t.key for t in found.of(biases[0])] == ["stages.0.0.conv.bias", "stages.0.0.all_modules.0.bias"]
    assert {t.key for t in found.kept} == {f"{stage}.conv.{end}" for stage in STAGES for end in ("weight", "bias")}


NONE: dict[str, Named] = {
    "a plain network": STAGES,
    "twins of one shape, which a block may have": {
        f"b.{i}.{name}": (8, 8, 3, 3) for i in range(3) for name in ("conv", "convs.0")
    },
    "in two places": {name: shape for name, shape in LISTED.items() if not name.startswith("stages.2")},
    "unlike in one place": {**LISTED, "stages.3.0.conv": (8, 96, 3, 3), "stages.3.0.all_modules.0": (9, 96, 3, 3)},
    "two layers of one block": {f"b.{i}.{name}": (8 * i + 8, 4, 3, 3) for i in range(3) for name in ("conv_k", "conv_v")},
    "products alone": {name: shape[:2] for name, shape in LISTED.items()},
    "nothing": {},
}


@pytest.mark.parametrize("name", NONE)
def test_what_has_one_name_is_kept_whole(name: str):
    assert kept(NONE[name]) == [*NONE[name]]
    for layer in NONE[name]:
        assert of(NONE[name], layer) == [layer]
