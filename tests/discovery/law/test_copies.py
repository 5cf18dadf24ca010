"""Names of one module and copies of one model in a state dict: what is kept of them, and each tensor's like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.copies import Aliases, Flattened, Replicas

Named = Mapping[str, tuple[int, ...]]


def aliases(named: Named) -> tuple[Aliases, dict[str, Tensor]]:
    tensors = {f"{name}.weight": Tensor(f"{name}.weight", BY_NAME["F32"], shape) for name, shape in named.items()}
    return Aliases(list(tensors.values())), tensors


def names_of(named: Named, layer: str) -> list[str]:
    found, tensors = aliases(named)
    return [tensor.key.removesuffix(".weight") for tensor in found.of(tensors[f"{layer}.weight"])]


def names_kept(named: Named) -> list[str]:
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
ALL_NAMES: Named = {
    **{f"encoder.{name}": shape for name, shape in LISTED.items()},
    **{f"decoder.encoder.{name}": shape for name, shape in LISTED.items()},
    "decoder.seg_layers.0": (2, 32, 1, 1),
}


def test_a_module_of_its_own_and_in_a_list_is_one():
    assert names_kept(LISTED) == [f"{stage}.conv" for stage in STAGES]
    assert names_of(LISTED, "stages.0.0.conv") == ["stages.0.0.conv", "stages.0.0.all_modules.0"]


def test_a_part_that_another_part_keeps_too_is_one():
    assert names_kept(NESTED) == [*(f"encoder.{stage}" for stage in STAGES), "decoder.seg_layers.0"]
    assert names_of(NESTED, "encoder.stages.0.0") == ["encoder.stages.0.0", "decoder.encoder.stages.0.0"]
    assert names_of(NESTED, "decoder.seg_layers.0") == ["decoder.seg_layers.0"]


@pytest.mark.parametrize("prefix", ["", "module.", "network_weights.model."])
def test_all_four_names_are_found(prefix: str):
    named = {prefix + name: shape for name, shape in ALL_NAMES.items()}
    inner, outer = f"{prefix}encoder.stages.0.0", f"{prefix}decoder.encoder.stages.0.0"
    assert names_kept(named) == [*(f"{prefix}encoder.{stage}.conv" for stage in STAGES), f"{prefix}decoder.seg_layers.0"]
    assert {*names_of(named, f"{inner}.conv")} == {f"{n}.{end}" for n in (inner, outer) for end in ("conv", "all_modules.0")}


def test_a_bias_has_its_other_name_too():
    biases = [Tensor(f"{name}.bias", BY_NAME["F32"], shape[:1]) for name, shape in LISTED.items()]
    _, tensors = aliases(LISTED)
    found = Aliases([*tensors.values(), *biases])
    assert [t.key for t in found.of(biases[0])] == ["stages.0.0.conv.bias", "stages.0.0.all_modules.0.bias"]
    assert {t.key for t in found.kept} == {f"{stage}.conv.{end}" for stage in STAGES for end in ("weight", "bias")}


ONE_NAME: dict[str, Named] = {
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


@pytest.mark.parametrize("name", ONE_NAME)
def test_what_has_one_name_is_kept_whole(name: str):
    assert names_kept(ONE_NAME[name]) == [*ONE_NAME[name]]
    for layer in ONE_NAME[name]:
        assert names_of(ONE_NAME[name], layer) == [layer]


NET: Named = {
    "conv1.weight": (8, 3, 7, 7),
    "bn1.weight": (8,),
    "bn1.running_mean": (8,),
    "layer1.0.conv1.weight": (8, 8, 3, 3),
    "layer1.0.conv2.weight": (16, 8, 3, 3),
    "fc.weight": (5, 16),
    "fc.bias": (5,),
}


def under(prefix: str, named: Named = NET) -> Named:
    return {f"{prefix}{name}": shape for name, shape in named.items()}


def copies(named: Named) -> tuple[Replicas, dict[str, Tensor]]:
    tensors = {name: Tensor(name, BY_NAME["F32"], shape) for name, shape in named.items()}
    return Replicas(list(tensors.values())), tensors


def kept(found: Replicas) -> list[str]:
    return [tensor.key for tensor in found.kept]


SEVERAL: dict[str, tuple[Named, Iterable[str], list[str]]] = {
    "student and teacher": (
        {**under("student."), **under("teacher.")},
        under("student."),
        ["student.conv1.weight", "teacher.conv1.weight"],
    ),
    "the model and its average": (
        {**NET, **under("ema.")},
        NET,
        ["conv1.weight", "ema.conv1.weight"],
    ),
    "three, deeper": (
        {**under("m.a.net."), **under("m.b.net."), **under("m.c.net.")},
        under("m.a.net."),
        ["m.a.net.conv1.weight", "m.b.net.conv1.weight", "m.c.net.conv1.weight"],
    ),
    "two averages of two": (
        {**under("student."), **under("teacher."), **under("ema.student."), **under("ema.teacher.")},
        under("student."),
        ["student.conv1.weight", "teacher.conv1.weight", "ema.student.conv1.weight", "ema.teacher.conv1.weight"],
    ),
    "and a head of one's own": (
        {**under("query."), **under("key."), "head.weight": (9, 16)},
        [*under("query."), "head.weight"],
        ["query.conv1.weight", "key.conv1.weight"],
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_one_of_the_copies_is_kept_and_finds_the_others(name: str):
    named, expected, alike = SEVERAL[name]
    found, tensors = copies(named)
    assert kept(found) == [*expected]
    assert {tensor.key for tensor in found.of(tensors[alike[0]])} == {*alike}
    assert found.of(tensors[alike[0]])[0] is tensors[alike[0]]


ONE: dict[str, Named] = {
    "a single model": NET,
    "under one name": under("model."),
    "encoders that differ": {**under("a."), **under("b.", {**NET, "conv1.weight": (8, 1, 7, 7)})},
    "encoders of other layers": {**under("a."), **under("b.", {**NET, "more.weight": (8, 8)})},
    "blocks that repeat": {
        **{"stem.weight": (8, 3, 7, 7), "neck.weight": (9, 8), "head.weight": (5, 9), "top.weight": (5, 5)},
        **under("blocks.0.", {"a.weight": (8, 8), "b.weight": (8, 8)}),
        **under("blocks.1.", {"a.weight": (8, 8), "b.weight": (8, 8)}),
    },
    "too small to tell": {"a.weight": (8, 3, 3, 3), "b.weight": (8, 3, 3, 3)},
    "nothing": {},
}


@pytest.mark.parametrize("name", ONE)
def test_a_model_alone_is_kept_whole(name: str):
    found, tensors = copies(ONE[name])
    assert kept(found) == list(ONE[name])
    for tensor in tensors.values():
        assert found.of(tensor) == [tensor]


def test_what_no_copy_has_has_no_like():
    found, tensors = copies({**under("query."), **under("key."), "head.weight": (9, 16)})
    assert found.of(tensors["head.weight"]) == [tensors["head.weight"]]


def test_vectors_have_their_like_too():
    found, tensors = copies({**under("student."), **under("teacher.")})
    alike = [tensor.key for tensor in found.of(tensors["student.bn1.running_mean"])]
    assert alike == ["student.bn1.running_mean", "teacher.bn1.running_mean"]


def test_a_copy_without_one_of_the_vectors_is_still_a_copy():
    named = {**under("student."), **under("teacher.")}
    found, tensors = copies({name: shape for name, shape in named.items() if name != "teacher.fc.bias"})
    assert [t.key for t in found.of(tensors["student.fc.bias"])] == ["student.fc.bias"]
    assert [t.key for t in found.of(tensors["student.fc.weight"])] == ["student.fc.weight", "teacher.fc.weight"]


KERNEL = "model.unet.blocks.0.0.weight"
FLAT = {
    "without dots": "model_ema.unetblocks00weight",
    "without dots, the whole name": "ema.modelunetblocks00weight",
    "with underscores": "shadow_params.unet_blocks_0_0_weight",
}
NO_COPIES: Named = {
    "narrow_ema.unetblocks00weight": (8, 4, 3, 5),  # another shape
    "model_ema.unetblocks10weight": (8, 4, 3, 3),
    "other.weight": (8, 4, 3, 3),
    "model_ema.xunetblocks00weight": (8, 4, 3, 3),
}


@pytest.mark.parametrize("name", FLAT.values(), ids=FLAT)
def test_a_copy_whose_name_has_no_dots(name: str):
    named = {KERNEL: (8, 4, 3, 3), name: (8, 4, 3, 3), "model.unet.out.weight": (4, 8, 3, 3), **NO_COPIES}
    found, tensors = copies(named)
    assert [t.key for t in found.of(tensors[KERNEL])] == [KERNEL, name]
    assert Flattened(tensors.values()).of(tensors[name]) == []


def test_a_copy_without_dots_in_another_state_dict_is_another_models():
    tensors = [
        Tensor(f"{group}/{key}", BY_NAME["F32"], (8, 4, 3, 3), group)
        for group, key in zip("ab", (KERNEL, "x.00weight"), strict=True)
    ]
    assert Flattened(tensors).of(tensors[0]) == []
