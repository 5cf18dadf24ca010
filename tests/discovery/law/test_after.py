"""Which kernels take the image's channels beside those that were converted."""

from __future__ import annotations

import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.law.after import NOT_MADE, PLACED, unexplained
from chkpt_channels.discovery.law.search import find

Shapes = dict[str, tuple[int, ...]]

SWIN_UNETR: Shapes = {
    "swinViT.patch_embed.proj.weight": (24, 3, 2, 2),
    "swinViT.layers1.0.blocks.0.attn.qkv.weight": (72, 24),
    "swinViT.layers1.0.blocks.0.attn.proj.weight": (24, 24),
    "swinViT.layers1.0.downsample.reduction.weight": (48, 96),
    "encoder1.layer.conv1.conv.weight": (24, 3, 3, 3),
    "encoder1.layer.conv2.conv.weight": (24, 24, 3, 3),
    "encoder1.layer.conv3.conv.weight": (24, 3, 1, 1),
    "encoder2.layer.conv1.conv.weight": (24, 24, 3, 3),
    "encoder2.layer.conv2.conv.weight": (24, 24, 3, 3),
    "decoder1.transp_conv.conv.weight": (24, 24, 2, 2),
    "decoder1.conv_block.conv1.conv.weight": (24, 48, 3, 3),
    "decoder1.conv_block.conv2.conv.weight": (24, 24, 3, 3),
    "decoder1.conv_block.conv3.conv.weight": (24, 48, 1, 1),
    "out.conv.conv.weight": (2, 24, 1, 1),
}
SWIN_STEMS = {name for name, shape in SWIN_UNETR.items() if shape[1] == 3}
RESNET: Shapes = {
    "conv1.weight": (16, 3, 7, 7),
    "layer1.0.conv1.weight": (16, 16, 3, 3),
    "layer1.0.conv2.weight": (24, 16, 3, 3),
    "fc.weight": (10, 24),
}
AUTOENCODER: Shapes = {
    "encoder.conv_in.weight": (32, 3, 3, 3),
    "encoder.down.0.weight": (64, 32, 3, 3),
    "encoder.down.1.weight": (64, 64, 3, 3),
    "encoder.down.2.weight": (64, 64, 3, 3),
    "encoder.conv_out.weight": (3, 64, 3, 3),
    "decoder.conv_in.weight": (64, 3, 3, 3),
    "decoder.mid.0.weight": (64, 64, 3, 3),
    "decoder.mid.1.weight": (64, 64, 3, 3),
    "decoder.up.0.weight": (64, 64, 3, 3),
    "decoder.conv_out.weight": (3, 64, 3, 3),
}
DEPTHWISE: Shapes = {
    "stem.conv.weight": (16, 1, 3, 3),
    "blocks.0.dw.weight": (16, 1, 3, 3),
    "blocks.0.pw.weight": (32, 16, 1, 1),
    "blocks.1.dw.weight": (32, 1, 3, 3),
    "blocks.1.pw.weight": (64, 32, 1, 1),
}


def tensors(shapes: Shapes, group: str = "", prefix: str = "") -> list[Tensor]:
    return [Tensor(f"{group}/{prefix}{k}" if group else prefix + k, BY_NAME["F32"], s, group) for k, s in shapes.items()]


def left(among: list[Tensor], *names: str, ordered: bool = True) -> dict[str, tuple[bool, str]]:
    """What is unexplained where these are the stems: whether it is open, and why."""
    stems = [FirstConv(t, Layout("OIHW"), t.shape[1], "user") for t in among if t.name in names]
    assert len(stems) == len(names)
    found = unexplained(among if ordered else sorted(among), stems, ordered=ordered, torch=True)
    return {kernel.tensor.name: (kernel.is_open, kernel.why) for kernel in found}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("channels", [3, 1])
def test_every_set_of_stems_leaves_the_others(channels: int, ordered: bool):
    shapes = {name: (s[0], channels, *s[2:]) if name in SWIN_STEMS else s for name, s in SWIN_UNETR.items()}
    among = tensors(shapes)
    for name in SWIN_STEMS:
        assert left(among, name, ordered=ordered).keys() == SWIN_STEMS - {name}
        assert left(among, *(SWIN_STEMS - {name}), ordered=ordered).keys() == {name}
    assert left(among, *SWIN_STEMS, ordered=ordered) == {}


def test_the_evidence_is_said():
    found = left(tensors(SWIN_UNETR), "encoder1.layer.conv1.conv.weight")
    assert found == {
        "swinViT.patch_embed.proj.weight": (False, NOT_MADE),
        "encoder1.layer.conv3.conv.weight": (False, PLACED),  # alone it could be grouped; its place settles it
    }
    why = "decoder.conv_out.weight makes 3 channels, and the order is not known"
    found = left(tensors(AUTOENCODER), "encoder.conv_in.weight", ordered=False)
    assert found == {"decoder.conv_in.weight": (True, why)}
    assert left(tensors(AUTOENCODER), "encoder.conv_in.weight") == {}  # in module order the encoder makes them


def test_what_layers_make_is_explained():
    assert left(tensors(RESNET), "conv1.weight") == {}
    assert left(tensors(DEPTHWISE), "stem.conv.weight") == {}
    behind = {
        "encoder.conv_in.weight": (64, 3, 3, 3),
        "encoder.conv_out.weight": (3, 64, 3, 3),
        "decoder.up.weight": (64, 3, 1, 1),
    }
    assert left(tensors(behind), "encoder.conv_in.weight") == {}


def test_other_widths_are_no_matter():
    among = tensors({**RESNET, "depth.conv1.weight": (16, 1, 7, 7), "depth.conv2.weight": (16, 16, 3, 3)})
    assert left(among, "conv1.weight") == {}
    assert left(among, "depth.conv1.weight") == {}


def test_every_copy_belongs_to_a_stem():
    among = [*tensors(RESNET, prefix="student."), *tensors(RESNET, prefix="teacher.")]
    assert left(among, "teacher.conv1.weight") == {"student.conv1.weight": (False, "is a copy of teacher.conv1.weight")}
    assert left(among, "teacher.conv1.weight", "student.conv1.weight") == {}


def test_every_state_dict_in_the_file_is_asked():
    among = [*tensors(RESNET, "model"), *tensors(RESNET, "ema")]
    assert left(among, "model/conv1.weight") == {"ema/conv1.weight": (False, NOT_MADE)}
    assert left(among, "model/conv1.weight", "ema/conv1.weight") == {}


@pytest.mark.parametrize("ordered", [True, False])
def test_a_block_of_pixels_has_the_images_channels(ordered: bool):
    """A space-to-depth stem of 48 is of an image of three."""
    shapes = {**RESNET, "conv1.weight": (16, 48, 3, 3), "side.conv1.weight": (8, 3, 3, 3), "side.conv2.weight": (8, 8, 3, 3)}
    among = tensors(shapes)
    stem = FirstConv(among[0], Layout("O(GI)HW"), 3, "user")
    assert [k.tensor.name for k in unexplained(among, [stem], ordered=ordered, torch=True)] == ["side.conv1.weight"]


@pytest.mark.parametrize("shapes", [SWIN_UNETR, RESNET, DEPTHWISE], ids=["several stems", "one stem", "gray"])
def test_the_search_leaves_none(shapes: Shapes):
    among = tensors(shapes)
    finding = find(among, ordered=True)
    assert finding.first_convs
    assert unexplained(among, finding.first_convs, ordered=True, torch=True) == ()


def test_what_is_wrong_is_said_in_words():
    among = tensors(AUTOENCODER)
    stems = [FirstConv(among[0], Layout("OIHW"), 3, "user")]
    assert [k.what for k in unexplained(sorted(among), stems, ordered=False, torch=True)] == [
        "could take the 3 channels of the image too"
    ]
    swin = tensors(SWIN_UNETR)
    stems = [FirstConv(swin[0], Layout("OIHW"), 3, "user")]
    assert {k.what for k in unexplained(swin, stems, ordered=True, torch=True)} == {"takes the 3 channels of the image too"}
