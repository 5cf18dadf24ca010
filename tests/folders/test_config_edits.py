"""Edits of configurations: every name that a library has for the image's channels follows the weights, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from chkpt_channels import UnsupportedError, convert
from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import Location
from chkpt_channels.folders.config_edits import edits, without_channels
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.library_tables import CONFIG
from tests.support.memory import NET


def changed(document: Any, old: int = 3, new: int = 1, *convs: str) -> dict[str, Any]:
    config = ConfigFile(CONFIG, Json(json.dumps(document).encode(), Location(CONFIG)))
    return {".".join(map(str, path)): value for path, value in edits(config, old, new, None, convs).items()}


CONDITION = "controlnet_cond_embedding.conv_in"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            {"n_channel_in": 3, "n_channel_out": 33, "net_input_shape": [None, None, 3]},
            {"n_channel_in": 1, "net_input_shape.2": 1},
        ),
        ({"n_channel_in": 3, "unet_input_shape": [3, None, None]}, {"n_channel_in": 1, "unet_input_shape.0": 1}),
        ({"class_name": "B", "config": {"image_shape": [224, 224, 3]}}, {"config.image_shape.2": 1}),
        ({"class_name": "B", "config": {"image_shape": [3, 224, 224]}}, {"config.image_shape.0": 1}),
        ({"config": {"image_shape": [3, 3], "name": "x"}}, {}),
        ({"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3}, {"in_channels": 1}),
        ({"unet_residual": False, "n_channel_in": 3, "n_channel_out": 3}, {"n_channel_in": 1}),
    ],
)
def test_what_libraries_call_the_channels(document: Any, expected: dict[str, Any]):
    assert changed(document) == expected


@pytest.mark.parametrize(
    ("stated", "old", "conv", "expected"),
    [
        ({"in_channels": 4, "conditioning_channels": 3}, 3, CONDITION, {"conditioning_channels": 6}),
        ({"in_channels": 4, "conditioning_channels": 4}, 4, CONDITION, {"conditioning_channels": 6}),
        ({"in_channels": 4, "conditioning_channels": 4}, 4, "conv_in", {"in_channels": 6}),
        ({"in_channels": 4}, 3, CONDITION, {"conditioning_channels": 6}),
    ],
)
def test_the_count_of_a_controlnet_is_that_of_the_kernel_that_changed(stated: Any, old: int, conv: str, expected: Any):
    assert changed({"_class_name": "ControlNetModel", **stated}, old, 6, conv) == expected


def test_a_network_that_adds_the_image_to_its_output():
    with pytest.raises(UnsupportedError, match="unet_residual: the network adds the image to its output"):
        changed({"unet_residual": True, "n_channel_in": 3, "n_channel_out": 3})


def test_what_no_conversion_changes_tells_one_model_from_another():
    resnet = {"model_type": "resnet", "num_channels": 3, "depths": [1, 2], "p": [{"image_mean": [0.5] * 3, "size": 8}]}
    gray = {"model_type": "resnet", "num_channels": 1, "depths": [1, 2], "p": [{"image_mean": [0.4], "size": 8}]}
    assert without_channels(resnet) == without_channels(gray)
    assert without_channels(resnet) != without_channels({**gray, "depths": [1, 3]})


@pytest.mark.parametrize(
    ("config", "where", "expected"),
    [
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, (), {"in_chans": 1}),
        ({"model_type": "timm_wrapper", "model_args": None}, (), {"in_chans": 1}),
        ({"model_type": "timm_wrapper", "model_args": {"depth": 2}}, (), {"depth": 2, "in_chans": 1}),
        ({"model_type": "gemma3n", "vision_config": {"model_type": "gemma3n_vision"}}, ("vision_config",), {"in_chans": 1}),
    ],
    ids=["none", "null", "others", "a part"],
)
def test_transformers_wrapper_of_timm(config: dict[str, Any], where: tuple[str, ...], expected: dict[str, int], tmp_path: Path):
    """It hands its model_args to timm and reads no num_channels."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    safetensors.numpy.save_file(NET, tmp_path / "a" / "model.safetensors")
    convert(tmp_path / "a", tmp_path / "b", to="gray")
    made = json.loads((tmp_path / "b" / CONFIG).read_text())
    for step in where:
        made = made[step]
    assert made["model_args"] == expected
    assert "num_channels" not in made
