"""Which tensors see the image, by names and shapes: the traps that real architectures set."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Finding, Tensor
from chkpt_channels.discovery.law.search import MOST_BANDS, find
from tests.support.files import within

Named = dict[str, tuple[int, ...]]


def tensors(named: Named, group: str = "", dtype: str = "F32") -> list[Tensor]:
    return [Tensor(f"{group}/{name}" if group else name, BY_NAME[dtype], shape, group) for name, shape in named.items()]


def stems(finding: Finding) -> dict[str, tuple[str, int]]:
    return {conv.tensor.name: (str(conv.layout), conv.in_channels) for conv in finding.first_convs}


def under(prefix: str, named: Named) -> Named:
    return {f"{prefix}.{name}": shape for name, shape in named.items()}


NET: Named = {
    "conv1.weight": (16, 3, 7, 7),
    "bn1.weight": (16,),
    "layer1.0.conv1.weight": (16, 16, 3, 3),
    "layer1.0.conv2.weight": (24, 16, 3, 3),
    "fc.weight": (10, 24),
}
GRAY_DEPTHWISE: Named = {
    "stem.conv.weight": (16, 1, 3, 3),
    "blocks.0.dw.weight": (16, 1, 3, 3),
    "blocks.0.pw.weight": (32, 16, 1, 1),
    "blocks.1.dw.weight": (32, 1, 3, 3),
    "blocks.1.pw.weight": (64, 32, 1, 1),
}
# its shortcut and the first convolution of its branch have equal shapes in every level, and are two layers
DLA: Named = {"base_layer.0.weight": (16, 3, 7, 7), "level1.0.weight": (32, 16, 3, 3)}
for _level, _before in ((2, 32), (3, 64), (4, 128)):
    DLA |= {
        f"level{_level}.project.0.weight": (2 * _before, _before, 1, 1),
        f"level{_level}.tree1.conv1.weight": (2 * _before, _before, 1, 1),
        f"level{_level}.tree1.conv2.weight": (2 * _before, 4, 3, 3),
        f"level{_level}.tree1.conv3.weight": (2 * _before, 2 * _before, 1, 1),
    }
SEGMENTATION: Named = {**NET, "head.weight": (3, 24, 1, 1)}

# (tensors in module order, what sees the image); each is found without the order too
BOTH: dict[str, tuple[Named, dict[str, tuple[str, int]]]] = {
    "resnet": (NET, {"conv1.weight": ("OIHW", 3)}),
    "13 bands": ({**NET, "conv1.weight": (16, 13, 7, 7)}, {"conv1.weight": ("OIHW", 13)}),
    "10 bands": (
        {"conv1.weight": (32, 10, 3, 3), "conv2.weight": (64, 32, 3, 3), "fc.weight": (10, 64)},
        {"conv1.weight": ("OIHW", 10)},
    ),
    "LeNet": (
        {"conv1.weight": (6, 3, 5, 5), "conv2.weight": (16, 6, 5, 5), "fc1.weight": (120, 400), "fc2.weight": (84, 120)},
        {"conv1.weight": ("OIHW", 3)},
    ),
    "a position embedding first": ({"pos_embed": (1, 3, 14, 14), **NET}, {"conv1.weight": ("OIHW", 3)}),
    "decoder to three channels": (
        {
            "enc.0.weight": (16, 3, 3, 3),
            "enc.2.weight": (32, 16, 3, 3),
            "dec.0.weight": (16, 32, 3, 3),
            "dec.2.weight": (3, 16, 3, 3),
        },
        {"enc.0.weight": ("OIHW", 3)},
    ),
    "shortcuts that look like their branches": (DLA, {"base_layer.0.weight": ("OIHW", 3)}),
    "head of three classes": (SEGMENTATION, {"conv1.weight": ("OIHW", 3)}),
    "Linear over three numbers": ({"coords.weight": (64, 3), **NET}, {"conv1.weight": ("OIHW", 3)}),
    "transposed convolution to three": ({**NET, "up.weight": (24, 3, 2, 2)}, {"conv1.weight": ("OIHW", 3)}),
    "repvgg": (
        {
            "stem.conv_kxk.conv.weight": (48, 3, 3, 3),
            "stem.conv_1x1.conv.weight": (48, 3, 1, 1),
            "stages.0.0.conv_kxk.conv.weight": (48, 48, 3, 3),
            "stages.0.0.conv_1x1.conv.weight": (48, 48, 1, 1),
        },
        {"stem.conv_kxk.conv.weight": ("OIHW", 3), "stem.conv_1x1.conv.weight": ("OIHW", 3)},
    ),
    "mobileone": (
        {
            "stem.conv_kxk.0.conv.weight": (48, 3, 3, 3),
            "stem.conv_scale.conv.weight": (48, 3, 1, 1),
            "stages.0.0.conv_kxk.0.conv.weight": (48, 1, 3, 3),
            "stages.0.0.conv_scale.conv.weight": (48, 1, 1, 1),
            "stages.0.1.conv_kxk.0.conv.weight": (64, 48, 1, 1),
        },
        {"stem.conv_kxk.0.conv.weight": ("OIHW", 3), "stem.conv_scale.conv.weight": ("OIHW", 3)},
    ),
    "crossvit": (
        {
            "pos_embed_0": (1, 401, 128),
            "patch_embed.0.proj.weight": (128, 3, 12, 12),
            "patch_embed.1.proj.weight": (256, 3, 16, 16),
            "blocks.0.blocks.0.0.attn.qkv.weight": (384, 128),
        },
        {"patch_embed.0.proj.weight": ("OIHW", 3), "patch_embed.1.proj.weight": ("OIHW", 3)},
    ),
    "dpn: grouped, three to a group": (
        {
            "features.conv1_1.conv.weight": (64, 3, 7, 7),
            "features.conv2_1.c1x1_a.conv.weight": (96, 64, 1, 1),
            "features.conv2_1.c3x3_b.conv.weight": (96, 3, 3, 3),
            "features.conv2_1.c1x1_c.conv.weight": (272, 96, 1, 1),
            "features.conv3_1.c1x1_a.conv.weight": (192, 272, 1, 1),
            "features.conv3_1.c3x3_b.conv.weight": (192, 6, 3, 3),
            "features.conv3_1.c1x1_c.conv.weight": (528, 192, 1, 1),
        },
        {"features.conv1_1.conv.weight": ("OIHW", 3)},
    ),
    "grouped once, which nothing confirms": (
        {
            "features.conv1_1.conv.weight": (64, 3, 7, 7),
            "features.conv2_1.c1x1_a.conv.weight": (96, 64, 1, 1),
            "features.conv2_1.c3x3_b.conv.weight": (96, 3, 3, 3),
            "features.conv2_1.c1x1_c.conv.weight": (272, 96, 1, 1),
        },
        {"features.conv1_1.conv.weight": ("OIHW", 3)},
    ),
    "residual blocks without a stem": (
        {
            "layer1.0.conv1.weight": (16, 3, 3, 3),
            "layer1.0.conv2.weight": (16, 16, 3, 3),
            "layer1.0.shortcut.0.weight": (16, 3, 1, 1),
            "layer2.0.conv1.weight": (32, 16, 3, 3),
            "layer2.0.conv2.weight": (32, 32, 3, 3),
            "layer2.0.shortcut.0.weight": (32, 16, 1, 1),
        },
        {"layer1.0.conv1.weight": ("OIHW", 3), "layer1.0.shortcut.0.weight": ("OIHW", 3)},
    ),
    "the layers of nnU-Net under two names": (
        {
            f"{coder}stages.{i}.{name}.weight": shape
            for coder in ("encoder.", "decoder.encoder.")
            for i, shape in enumerate([(32, 3, 3, 3), (64, 32, 3, 3), (96, 64, 3, 3)])
            for name in ("conv", "all_modules.0")
        }
        | {"decoder.seg_layers.0.weight": (2, 32, 1, 1)},
        {
            f"{coder}stages.0.{name}.weight": ("OIHW", 3)
            for coder in ("encoder.", "decoder.encoder.")
            for name in ("conv", "all_modules.0")
        },
    ),
    "coat: a Conv1d over three scales": (
        {
            "patch_embed1.proj.weight": (64, 3, 4, 4),
            "patch_embed2.proj.weight": (128, 64, 2, 2),
            "aggregate.weight": (1, 3, 1),
        },
        {"patch_embed1.proj.weight": ("OIHW", 3)},
    ),
    "gray, with depthwise convolutions": (GRAY_DEPTHWISE, {"stem.conv.weight": ("OIHW", 1)}),
    "RAFT: two encoders, not alike": (
        {**under("fnet", NET), **under("cnet", {**NET, "bn1.running_mean": (16,)}), "update.conv.weight": (64, 48, 3, 3)},
        {"fnet.conv1.weight": ("OIHW", 3), "cnet.conv1.weight": ("OIHW", 3)},
    ),
    "student and teacher": (
        {**under("student", NET), **under("teacher", NET)},
        {"student.conv1.weight": ("OIHW", 3), "teacher.conv1.weight": ("OIHW", 3)},
    ),
    "student and teacher with three classes": (
        {**under("student", SEGMENTATION), **under("teacher", SEGMENTATION)},
        {"student.conv1.weight": ("OIHW", 3), "teacher.conv1.weight": ("OIHW", 3)},
    ),
    "Conv1d": ({"conv1.weight": (16, 1, 9), "conv2.weight": (32, 16, 9)}, {"conv1.weight": ("OIW", 1)}),
    "Conv3d": ({"stem.0.weight": (16, 3, 3, 7, 7), "stem.1.weight": (32, 16, 3, 3, 3)}, {"stem.0.weight": ("OIDHW", 3)}),
    "Flax": (
        {
            "params/conv_init/kernel": (7, 7, 3, 16),
            "params/Block_0/Conv_0/kernel": (3, 3, 16, 24),
            "params/Block_0/Conv_1/kernel": (3, 3, 24, 24),
        },
        {"params/conv_init/kernel": ("HWIO", 3)},
    ),
    "MLX": (
        {"conv1.weight": (16, 7, 7, 3), "layer1.conv1.weight": (24, 3, 3, 16), "layer1.conv2.weight": (32, 3, 3, 24)},
        {"conv1.weight": ("OHWI", 3)},
    ),
}


# several stems that are not alike, or copies whose stems another copy could feed: a refusal is an answer too
HARD = {
    "grouped once, which nothing confirms",
    "crossvit",
    "RAFT: two encoders, not alike",
    "student and teacher with three classes",
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
@pytest.mark.parametrize("name", BOTH)
def test_what_sees_the_image(name: str, ordered: bool):
    """All of it, or nothing and the candidates: never a part of it, never anything else."""
    named, expected = BOTH[name]
    given = tensors(named)
    found = find(given if ordered else sorted(given), ordered=ordered)
    if name in HARD and not found.first_convs:
        assert {candidate.key for candidate in found.candidates} >= expected.keys()
    else:
        assert stems(found) == expected


LATENT: Named = {
    "time_embed.0.weight": (1280, 320),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "out.2.weight": (4, 320, 3, 3),
}
CONTROL: Named = {
    "conv_in.weight": (320, 4, 3, 3),
    "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
    "controlnet_cond_embedding.blocks.0.weight": (16, 16, 3, 3),
    "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
}
NARROW = {key for key, shape in CONTROL.items() if shape[1] <= MOST_BANDS}

NONE: dict[str, tuple[Named, bool, set[str]]] = {
    "a latent U-Net": (LATENT, True, {"input_blocks.0.0.weight"}),
    "a latent U-Net that takes a mask and an image too": (
        {**LATENT, "input_blocks.0.0.weight": (320, 9, 3, 3)},
        True,
        {"input_blocks.0.0.weight"},
    ),
    "a latent and an image": (CONTROL, True, NARROW),
    "a latent and an image, in no order": (CONTROL, False, NARROW),
    "a generator from noise": (
        {"main.0.weight": (100, 512, 4, 4), "main.3.weight": (512, 64, 4, 4), "main.6.weight": (64, 3, 4, 4)},
        True,
        {"main.6.weight"},
    ),
    "a generator behind a product": (
        {"fc.weight": (8192, 100), "net.0.weight": (128, 64, 4, 4), "net.3.weight": (64, 3, 4, 4)},
        True,
        {"net.3.weight"},
    ),
    "an autoencoder whose decoder has no biases, in no order": (
        {
            "enc.0.weight": (16, 3, 3, 3),
            "enc.2.weight": (32, 16, 3, 3),
            "dec.0.weight": (32, 16, 3, 3),
            "dec.2.weight": (16, 3, 3, 3),
        },
        False,
        {"enc.0.weight", "enc.2.weight", "dec.0.weight", "dec.2.weight"},
    ),
    "a transformer over latents": (
        {
            "x_embedder.proj.weight": (1152, 4, 2, 2),
            "blocks.0.attn.proj.weight": (1152, 1152),
            "final_layer.linear.weight": (32, 1152),
        },
        True,
        {"x_embedder.proj.weight"},
    ),
    "a recurrent cell over colors and its state of 8": (
        {"cell.conv.weight": (32, 11, 3, 3), "out.weight": (4, 8, 1, 1)},
        True,
        {"cell.conv.weight", "out.weight"},
    ),
    "blocks of pixels and a map of noise": (
        {"model.0.weight": (96, 15, 3, 3), "model.2.weight": (96, 96, 3, 3), "model.4.weight": (12, 96, 3, 3)},
        True,
        {"model.0.weight"},
    ),
    "a square that fits every layout": ({"conv.weight": (3, 3, 3, 3)}, False, {"conv.weight"}),
    "a kernel that fits two layouts": ({"conv.weight": (16, 3, 3, 3)}, False, {"conv.weight"}),
    "depthwise blocks, and no stem": (
        {
            "blocks.0.dw.weight": (16, 1, 3, 3),
            "blocks.0.pw.weight": (16, 16, 1, 1),
            "blocks.1.dw.weight": (16, 1, 3, 3),
            "blocks.1.pw.weight": (16, 16, 1, 1),
        },
        False,
        {"blocks.0.dw.weight", "blocks.1.dw.weight", "blocks.0.pw.weight", "blocks.1.pw.weight"},
    ),
    "a perceptron": ({"0.weight": (64, 3), "2.weight": (10, 64)}, True, set()),
    "nothing": ({}, True, set()),
    "wide inputs are features": ({"conv1.weight": (64, MOST_BANDS + 1, 3, 3)}, True, set()),
    "two that could be meant": ({"a.weight": (16, 3, 3, 3), "b.weight": (24, 3, 5, 5)}, False, {"a.weight", "b.weight"}),
}


@pytest.mark.parametrize(("named", "ordered", "candidates"), NONE.values(), ids=NONE)
def test_nothing_is_guessed(named: Named, ordered: bool, candidates: set[str]):
    found = find(tensors(named), ordered=ordered)
    assert found.first_convs == ()
    assert {candidate.key for candidate in found.candidates} == candidates
    assert all(candidate.why_not for candidate in found.candidates)


EDANET: Named = {
    "layers.0.conv.weight": (12, 3, 3, 3),
    "layers.0.bn.weight": (15,),
    "layers.1.conv.weight": (45, 15, 3, 3),
    "layers.2.conv.weight": (60, 45, 3, 3),
}


@pytest.mark.parametrize("ordered", [True, False], ids=["in module order", "in no order"])
def test_where_the_image_goes_past_the_stem_no_kernel_is_right(ordered: bool):
    found = find(tensors(EDANET), ordered=ordered)
    assert found.first_convs == ()
    assert found.why_not == "layers.0.bn takes 15 channels, the 12 of layers.0.conv and 3 of the image"
    assert found.candidates[0] == (
        "layers.0.conv.weight",
        (12, 3, 3, 3),
        f"the image goes past the first convs: {found.why_not}",
        False,
    )
    assert find(tensors(NET), ordered=ordered).why_not == ""


VIT: Named = {
    "embeds.pos_embed": (1, 16, 16, 384),
    "embeds.proj.weight": (384, 768),
    "blocks.0.attn.qkv.weight": (1152, 384),
    "blocks.0.mlp.fc1.weight": (1536, 384),
}
FOCUS: Named = {
    "model.0.conv.weight": (32, 12, 3, 3),
    "model.1.conv.weight": (64, 32, 3, 3),
    "model.2.conv.weight": (64, 64, 1, 1),
}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("named", "key", "channels"),
    [
        (VIT, "embeds.proj.weight", 3),
        ({**VIT, "embeds.proj.weight": (384, 256)}, "embeds.proj.weight", 1),
        ({**FOCUS, "stem.weight": FOCUS["model.0.conv.weight"]}, "stem.weight", 3),
    ],
    ids=["Linear patches", "gray Linear patches", "space to depth"],
)
def test_an_order_that_shapes_do_not_tell_is_left_open(named: Named, key: str, channels: int, ordered: bool):
    """The kernel is named, and the spellings that would settle its layout are offered."""
    named = {key: named[key], **{k: s for k, s in named.items() if k != "model.0.conv.weight"}}
    (conv,) = find(tensors(named), ordered=ordered).first_convs
    assert (conv.tensor.name, conv.layout, conv.in_channels) == (key, None, channels)
    assert conv.why.count("--layout") or conv.why.count("O(")


@pytest.mark.parametrize(("channels", "expected"), [(None, (None, 3)), (12, ("OIHW", 12)), (3, (None, 3)), (5, None)])
def test_the_user_may_say_how_many_channels_there_are(channels: int | None, expected: tuple[str | None, int] | None):
    convs = find(tensors(FOCUS), ordered=True, channels=channels).first_convs
    assert [(conv.layout, conv.in_channels) for conv in convs] == ([expected] if expected else [])


SHIFTS: dict[str, tuple[Named, str, set[str]]] = {
    "EDSR": (
        {
            "sub_mean.weight": (3, 3, 1, 1),
            "sub_mean.bias": (3,),
            "add_mean.weight": (3, 3, 1, 1),
            "add_mean.bias": (3,),
            "head.0.weight": (64, 3, 3, 3),
            "body.0.weight": (64, 64, 3, 3),
            "tail.0.weight": (3, 64, 3, 3),
            "tail.0.bias": (3,),
        },
        "head.0.weight",
        {"sub_mean.weight", "sub_mean.bias"},
    ),
    "LPIPS": (
        {"scaling_layer.shift": (1, 3, 1, 1), "scaling_layer.scale": (1, 3, 1, 1), **under("net", NET)},
        "net.conv1.weight",
        {"scaling_layer.shift", "scaling_layer.scale"},
    ),
    "qubvel": (
        {"bn_data.running_mean": (3,), "bn_data.running_var": (3,), **NET},
        "conv1.weight",
        {"bn_data.running_mean", "bn_data.running_var"},
    ),
    "detectron2": ({**NET, "pixel_mean": (3, 1, 1), "pixel_std": (3, 1, 1)}, "conv1.weight", {"pixel_mean", "pixel_std"}),
    "none": (SEGMENTATION | {"head.bias": (3,)}, "conv1.weight", set()),
}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("named", "key", "input_vectors"), SHIFTS.values(), ids=SHIFTS)
def test_what_the_image_meets_first_goes_with_the_kernel(named: Named, key: str, input_vectors: set[str], ordered: bool):
    found = find(tensors(named), ordered=ordered)
    assert [conv.tensor.name for conv in found.first_convs] == [key]
    assert {tensor.name for tensor in found.input_vectors} == input_vectors


HEAD: Named = {"aux_head.conv.weight": (64, 256, 3, 3), "aux_head.out.weight": (3, 64, 1, 1), "aux_head.up.weight": (64, 3, 4, 4)}


@given(
    st.sampled_from(sorted(BOTH)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.randoms(),
    st.sampled_from(["", "module.model."]),
)
@settings(max_examples=300, deadline=None)
def test_what_else_a_file_holds_never_makes_a_right_answer_wrong(
    name: str, head: bool, copy: bool, shuffled: bool, random: Random, prefix: str
):
    """A head, a copy under `ema.`, another optimizer, a prefix, and shuffling may lead to a refusal, not to another answer."""
    named, stem = BOTH[name]
    expected = {prefix + key for key in stem}
    given_tensors = {prefix + key: shape for key, shape in ({**named, **HEAD} if head else named).items()}
    if copy:
        given_tensors |= under("ema", given_tensors)
        expected |= {f"ema.{key}" for key in expected}
    items = tensors(given_tensors)
    if shuffled:
        random.shuffle(items)
    items += [Tensor(f"optimizer/state/{i}/step", BY_NAME["F32"], (), "optimizer/state") for i in range(3)]
    found = {conv.tensor.name for conv in find(items, ordered=not shuffled).first_convs}
    assert found in (set(), expected)


@pytest.mark.parametrize("dtype", ["I8", "U8", "I64"])
def test_only_floating_point_is_a_kernel(dtype: str):
    assert find(tensors(NET, dtype=dtype), ordered=True).first_convs == ()


def test_an_empty_tensor_is_no_kernel():
    assert find(tensors({"conv0.weight": (0, 3, 7, 7), **NET}), ordered=True).first_convs[0].tensor.name == "conv1.weight"


def test_every_group_is_a_model_of_its_own():
    found = find([*tensors(NET, "model"), *tensors(NET, "model_ema"), *tensors({"w": (3,)}, "extra")], ordered=True)
    assert set(stems(found)) == {"model/conv1.weight", "model_ema/conv1.weight"}


@pytest.mark.parametrize("ordered", [True, False])
def test_many_layers_take_no_time(ordered: bool):
    """Half of them depthwise: every one of these could be a gray stem. Quadratic time would be seconds here."""
    named = {"stem.weight": (16, 1, 3, 3)}
    for i in range(1500):
        named |= {f"blocks.{i}.dw.weight": (16, 1, 3, 3), f"blocks.{i}.pw.weight": (16, 16, 1, 1)}
    given = tensors(named)
    with within(2):
        find(given, ordered=ordered)


def of(prefix: str, stem: tuple[int, ...], width: int = 32, name: str = "stem.conv") -> Named:
    """A network of seven layers."""
    inner = {f"layer{n}.{m}.conv": (width * n, width * max(n - (m == 0), 1), 3, 3) for n in (1, 2, 3) for m in (0, 1)}
    return {f"{prefix}.{layer}.weight": shape for layer, shape in ({name: stem} | inner).items()}


# what random networks showed: (tensors, what must be named); nothing is found where one is left out
SECOND_NETWORKS: dict[str, tuple[Named, set[str]]] = {
    "blocks of pixels, of which an inner layer makes as many": (
        of("models.0", (32, 4, 3, 3)) | {"models.0.fc.weight": (1, 96)} | of("models.1", (64, 64, 3, 3), 64, "encoder.0"),
        {"models.0.stem.conv", "models.1.encoder.0"},
    ),
    "a gray image, in a part that looks depthwise": (
        of("net_a", (64, 1, 4, 4), 64) | of("net_b", (64, 1, 5, 7), 64, "0"),
        {"net_a.stem.conv", "net_b.0"},
    ),
    "two images, behind a layer that makes twice as many": (
        of("generator", (16, 4, 7, 7), 16)
        | {
            "generator.up.weight": (16, 48, 3, 3),
            "generator.out.weight": (4, 16, 7, 7),
            "discriminator.0.weight": (64, 8, 4, 4),
            "discriminator.2.weight": (128, 64, 4, 4),
            "discriminator.5.weight": (1, 128, 4, 4),
        },
        {"generator.stem.conv", "discriminator.0"},
    ),
    "another name of a gray stem in a list": (
        {"stem.all_modules.0.weight": (64, 1, 3, 5), **of("stages", (32, 64, 3, 3)), "stem.conv.weight": (64, 1, 3, 5)},
        {"stem.conv", "stem.all_modules.0"},
    ),
    "equal networks, one of which may take what the other makes": (
        {
            **of("g_ab", (32, 3, 7, 7)),
            "g_ab.out.weight": (3, 96, 7, 7),
            **of("g_ba", (32, 3, 7, 7)),
            "g_ba.out.weight": (3, 96, 7, 7),
        },
        {"g_ab.stem.conv"},
    ),
}


@pytest.mark.parametrize(("named", "meant"), SECOND_NETWORKS.values(), ids=SECOND_NETWORKS)
def test_a_second_network_of_a_file_is_not_left_out(named: Named, meant: set[str]):
    finding = find(tensors(named), ordered=True)
    found = {conv.tensor.name.removesuffix(".weight") for conv in finding.first_convs}
    said = {candidate.key.removesuffix(".weight") for candidate in finding.candidates}
    assert found == meant or (not found and meant <= said)


def test_sound_is_no_image_where_the_image_is_taken_in_blocks():
    sound = {"audio_encoder.0.weight": (32, 1, 10), "audio_encoder.1.weight": (64, 32, 3)}
    assert not find(tensors(sound | of("video_encoder", (64, 64, 1, 1), 64)), ordered=True).first_convs


@pytest.mark.parametrize("bands", [3, 13])
def test_a_shift_of_many_bands_goes_with_the_kernel_behind_it(bands: int):
    named = {
        "sub_mean.weight": (bands, bands, 1, 1),
        "sub_mean.bias": (bands,),
        "conv_first.weight": (32, bands, 3, 3),
        "body.0.weight": (32, 32, 3, 3),
        "conv_last.weight": (bands, 32, 3, 3),
    }
    finding = find(sorted(tensors(named)), ordered=False, torch=True)
    assert {t.name for t in finding.input_vectors} >= {"sub_mean.weight"} or not finding.first_convs


def test_states_and_gates_beside_many_bands_are_no_image():
    cells = {"cells.0.Gates.weight": (64, 29, 3, 3), "cells.1.Gates.weight": (64, 32, 3, 3), "out.weight": (2, 16, 1, 1)}
    assert not find(tensors(cells), ordered=True).first_convs


def test_grown_widths_do_not_hide_an_image_that_is_joined():
    widths = [(67, 64), (67, 67), (8, 67), (70, 8), (70, 70)]
    grown = {
        "backbone.inc.conv1.weight": (64, 3, 3, 3),
        **{f"backbone.down.{n}.weight": (o, i, 3, 3) for n, (o, i) in enumerate(widths)},
        "refine.0.weight": (16, 67, 3, 3),
        "out.weight": (10, 16, 3, 3),
    }
    finding = find(tensors(grown), ordered=True)
    assert not finding.first_convs
    assert "refine.0" in finding.why_not


def test_branches_of_a_stem_are_joined_by_a_depthwise_layer():
    stem = {f"stem.conv{n}.weight": (8, 1, 3, 3, 3) for n in (1, 2, 3, 4)}
    body = {"blocks.0.conv_dw.weight": (32, 1, 7, 7, 7), "blocks.0.fc1.weight": (128, 32), "blocks.0.fc2.weight": (32, 128)}
    assert stems(find(tensors(stem | body), ordered=True)).keys() == stem.keys()


def test_groups_of_a_stems_channels_are_no_other_images():
    """12 channels of the stem's 24, in a wider layer behind it: CPUBone."""
    groups = {
        "stem.0.conv.weight": (24, 3, 3, 3),
        "stages.0.0.main.spatial_conv.conv.weight": (144, 12, 3, 3),
        "stages.0.0.main.point_conv.conv.weight": (48, 144, 1, 1),
    }
    found = find(tensors(groups | {f"stages.1.{n}.conv.weight": (48, 48, 3, 3) for n in range(8)}), ordered=True).first_convs
    assert [conv.tensor.name for conv in found] == ["stem.0.conv.weight"]


def test_a_branch_over_one_channel_whose_width_nothing_makes_is_a_second_stem():
    """BiSeNet's detail branch, and an encoder whose first filters no layer before it makes: over gray both see the image."""
    net: Named = {
        "detail_branch.0.conv.weight": (32, 1, 3, 3),
        "detail_branch.1.conv.weight": (32, 32, 3, 3),
        "encoder.encoder.0.projection.weight": (16, 1, 2, 2),
        "encoder.encoder.1.0.conv1.weight": (6, 16, 1, 1),
        "encoder.encoder.1.0.conv2.weight": (6, 6, 3, 3),
        "encoder.encoder.1.0.conv3.weight": (24, 6, 1, 1),
        "decoder.conv.weight": (32, 56, 3, 3),
        "conv_last.weight": (1000, 32, 1, 1),
    }
    found = find(tensors(net), ordered=True)
    assert not found.first_convs
    assert {c.key for c in found.candidates} >= {"detail_branch.0.conv.weight", "encoder.encoder.0.projection.weight"}
    made = {**net, "detail_branch.1.conv.weight": (16, 32, 3, 3)}  # then it may be depthwise over these, as before
    assert stems(find(tensors(made), ordered=True)) == {"detail_branch.0.conv.weight": ("OIHW", 1)}


def separable(full: Named) -> Named:
    return {
        "a.stem.conv.weight": (32, 1, 3, 3),
        "a.stages.0.0.0.conv.weight": (32, 1, 3, 3),
        "a.stages.0.0.1.conv.weight": (32, 32, 1, 1),
        **full,
        "head.weight": (5, 32, 1, 1),
    }


def test_right_behind_the_stem_a_separable_convolution_is_inside():
    assert stems(find(tensors(separable({})), ordered=True)) == {"a.stem.conv.weight": ("OIHW", 1)}


def test_where_another_part_has_a_full_convolution_in_its_place_it_is_left_open():
    other: Named = {
        "b.stem.conv.weight": (32, 1, 7, 7),
        "b.stages.0.0.0.conv.weight": (32, 32, 3, 3),
        "b.stages.0.0.1.conv.weight": (32, 32, 3, 3),
    }
    found = find(tensors(separable(other)), ordered=True)
    assert not found.first_convs
    assert "a.stages.0.0.0.conv.weight" in {c.key for c in found.candidates}


def test_a_layer_of_a_twin_parts_own_is_no_inner_one():
    """In a file without order: `encoder2.conv` is to `encoder2` what the named stem is to `encoder1`, as far as can be told."""
    net: Named = {
        "encoder1.patch_embed.conv_stem.weight": (32, 1, 11, 11),
        "encoder1.layers.0.0.conv1.weight": (32, 32, 3, 3),
        "encoder1.layers.0.0.conv2.weight": (64, 32, 3, 3),
        "encoder2.conv.weight": (32, 1, 5, 5),
        "encoder2.blocks.0.0.branch1.0.weight": (16, 32, 1, 1),
        "encoder2.blocks.0.0.branch2.0.0.weight": (8, 32, 1, 1),
        "encoder2.blocks.0.0.branch2.1.0.weight": (8, 8, 3, 3),
        "fusion.0.weight": (64, 96, 3, 3),
    }
    found = find(sorted(tensors(net)), ordered=False)
    assert not found.first_convs
    assert {c.key for c in found.candidates} >= {"encoder1.patch_embed.conv_stem.weight", "encoder2.conv.weight"}


def test_the_end_of_a_decoder_is_no_image_of_many_bands():
    """Its 16 channels are eight of the upsampling and eight of the stem, which takes blocks of 13 bands."""
    net: Named = {
        "backbone.patch_embed.1.weight": (8, 208, 1, 1),
        "backbone.layers.0.conv1.weight": (24, 8, 1, 1),
        "backbone.layers.0.conv2.weight": (24, 24, 3, 3),
        "backbone.layers.1.conv1.weight": (48, 24, 3, 3),
        "upconv0.weight": (48, 24, 2, 2),
        "decoder0.0.weight": (24, 48, 3, 3),
        "upconv1.weight": (24, 8, 4, 4),
        "decoder1.0.weight": (8, 16, 3, 3),
        "decoder1.1.weight": (8, 8, 3, 3),
        "out.weight": (1000, 8, 1, 1),
    }
    assert not find(tensors(net), ordered=True).first_convs


def test_blocks_of_six_bands_have_the_shape_of_24():
    found = find(tensors({"stem.conv.conv.weight": (32, 24, 3, 3), **NET, "conv1.weight": (16, 32, 3, 3)}), ordered=True)
    assert stems(found) == {"stem.conv.conv.weight": ("None", 6)}


def test_a_layer_of_a_networks_own_begins_it_where_there_is_no_order():
    """Its blocks come first by name; it takes two images, which nothing in its network makes."""
    body = {
        "blocks.0.conv1.weight": (32, 32, 3, 3),
        "blocks.0.conv2.weight": (32, 32, 3, 3),
        "blocks.1.conv1.weight": (64, 32, 3, 3),
    }
    more = {
        "blocks.1.conv2.weight": (64, 64, 3, 3),
        "blocks.2.conv1.weight": (64, 64, 3, 3),
        "blocks.2.conv2.weight": (64, 64, 3, 3),
    }
    depth = under("depth.backbone", {"patch_embed.conv.weight": (32, 3, 3, 3), **body, **more})
    pose = under("pose_encoder", {"conv.weight": (32, 6, 7, 7), **body, **more})
    found = find(sorted(tensors({**depth, **pose})), ordered=False)
    assert not found.first_convs
    assert {c.key for c in found.candidates} >= {"depth.backbone.patch_embed.conv.weight", "pose_encoder.conv.weight"}
    made = {**pose, "pose_encoder.blocks.0.squeeze.weight": (6, 32, 1, 1)}
    assert stems(find(sorted(tensors({**depth, **made})), ordered=False)) == {
        "depth.backbone.patch_embed.conv.weight": ("OIHW", 3)
    }


def test_a_lone_convolution_makes_no_gates():
    """What would be the state is taken by none."""
    assert stems(find(tensors({"conv1.weight": (64, 32, 7, 7)}), ordered=True)) == {"conv1.weight": ("OIHW", 32)}
