"""Numbers of channels in configurations: whose each is, and which only look like it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import Location
from chkpt_channels.folders.channel_counts import counts, image_counts, reconstructs, search_hints, unknown_counts
from chkpt_channels.folders.config_files import ConfigFile


def document(content: Any) -> Json:
    return Json(json.dumps(content).encode(), Location("config.json"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"image_input_channels": 3, "in_ch": 3, "n_bands": 3, "num_colors": 3},
            ["image_input_channels", "in_ch", "n_bands", "num_colors"],
        ),
        ({"a": {"input_nc": 3}}, ["a.input_nc"]),
        ({"num_channels": 3, "in_channels": 3}, []),
        ({"out_channels": 3, "n_channel_out": 3, "latent_channels": 3, "decoder_channels": 3, "audio_channels": 3}, []),
        ({"input_shape": [8, 8, 3], "a": {"img_size": [3, 8, 9]}}, ["input_shape.2", "a.img_size.0"]),
        ({"input_shape": [3, 3], "image_size": 3, "img_shape": [8, 3, 8], "input_dims": [1, 2, 3.0]}, []),
        ({"in_ch": 4, "in_ch_text": "3", "num_labels": 3, "patch_size": 3, "nc": 3}, []),
    ],
)
def test_what_looks_like_channels_and_is_not_known(content: Any, expected: list[str]):
    assert list(unknown_counts(document(content), 3, ())) == expected


def test_a_number_that_follows_is_known():
    assert not list(unknown_counts(document({"in_ch": 3}), 3, [("in_ch",)]))
    assert not list(unknown_counts(document({"input_shape": [8, 8, 3]}), 3, [("input_shape", 2)]))


def test_in_a_file_that_nobody_looks_after_every_name_is_unknown():
    assert list(unknown_counts(document({"num_channels": 3, "in_chans": 4}), 3, (), ())) == ["num_channels"]


def test_the_image_of_a_controlnet_is_its_condition():
    content = document({"_class_name": "ControlNetModel", "in_channels": 4, "conditioning_channels": 3})
    assert dict(image_counts(content)) == {"conditioning_channels": 3}
    assert dict(counts(content, ["conv_in"])) == {("in_channels",): 4}
    hints = search_hints([ConfigFile("config.json", content)])
    assert (hints.first_conv, hints.channels) == (("controlnet_cond_embedding.conv_in",), 3)


@pytest.mark.parametrize(("listed", "last"), [({}, 3), ({"fusion_hidden_sizes": [16, 8, 8]}, 2)])
def test_the_last_fusion_of_vitmatte_takes_the_image_too(listed: Any, last: int):
    content = document({"model_type": "vitmatte", "backbone_config": {"num_channels": 4}, **listed})
    hints = search_hints([ConfigFile("config.json", content)])
    assert hints.first_conv == ("backbone.embeddings.projection", "decoder.convstream.convs.0.conv")
    assert (hints.channels, hints.joined) == (4, (f"decoder.fusion_blocks.{last}.conv.conv",))


def test_a_shape_of_the_image_counts_wherever_it_stands():
    nested = {"config": {"backbone": {"config": {"image_shape": [None, None, 3], "num_channels": 7}}}}
    assert dict(image_counts(document(nested))) == {"config.backbone.config.image_shape.2": 3}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"_class_name": "UNet2DModel"}, True),
        ({"_class_name": "AutoencoderKL"}, True),
        ({"_class_name": "AsymmetricAutoencoderKL"}, True),
        ({"architectures": ["ViTForMaskedImageModeling"]}, True),
        ({"architectures": "ViTMAEForPreTraining"}, True),
        ({"_class_name": "UNet2DConditionModel"}, False),
        ({"architectures": ["ResNetModel"]}, False),
    ],
)
def test_networks_that_give_the_image_back(content: Any, expected: bool):
    assert reconstructs(content) is expected
