"""Which weights a configuration is of: by the names that libraries give their weights, and by the widths that it states."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chkpt_channels.containers.json.editor import Json
from chkpt_channels.core.errors import Location
from chkpt_channels.folders.config_files import ConfigFile
from chkpt_channels.folders.describing import copies, described, named_models
from tests.support.memory import NET, Memory

STORE = Memory({"": NET})  # its widths are 3, 5, 7 and 8


def why(content: Any, name: str = "net.pth", *beside: str) -> str:
    config = ConfigFile("config.json", Json(json.dumps(content).encode(), Location("config.json")))
    found = described([config], name, [name, "config.json", *beside], STORE)
    assert bool(found.configs) is not bool(found.why)
    return found.why


def test_the_only_weights_are_described():
    assert why({"num_channels": 7}) == ""


@pytest.mark.parametrize(
    "other", ["model.safetensors", "pytorch_model.bin.index.json", "diffusion_pytorch_model.fp16.safetensors"]
)
def test_weights_beside_those_of_a_library_are_not(other: str):
    assert why({"num_channels": 3}, "net.pth", other) == f"is that of {other}"
    assert why({"num_channels": 3}, other, "net.pth") == ""
    assert why({"num_channels": 3}, "model.onnx", other) == ""


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({"hidden_size": 8}, ""),
        ({"hidden_size": 768}, "hidden_size 768"),
        ({"hidden_sizes": [8, 5, 999]}, "hidden_sizes 999"),
        ({"vision_config": {"hidden_size": 8}, "hidden_size": 999}, ""),
        ({"vision_config": {"embed_dim": 999}}, "vision_config.embed_dim 999"),
        ({"intermediate_size": 999, "hidden_size": "big"}, ""),
        ([], ""),
    ],
)
def test_a_width_that_no_tensor_has_is_another_networks(content: Any, missing: str):
    assert why(content) == (f"states {missing}, and no tensor is that wide" if missing else "")


def test_nothing_beside_nothing():
    assert described([], "net.pth", ["model.safetensors"], STORE) == ((), "")


@pytest.mark.parametrize(
    ("name", "same", "others"),
    [
        ("model.safetensors", ["flax_model.msgpack", "pytorch_model.bin.index.json", "tf_model.h5"], ["model_gray.safetensors"]),
        ("diffusion_flax_model.msgpack", ["diffusion_pytorch_model.fp16.bin"], ["net.msgpack"]),
        ("model-a.safetensors", ["flax_model-a.msgpack"], ["model-b.safetensors", "model.safetensors"]),
        ("net.pth", ["net.msgpack", "net.safetensors.index.json", "net.weights.h5"], ["nets.pth", "net.v2.pth"]),
    ],
)
def test_names_of_one_model(name: str, same: list[str], others: list[str]):
    files = [name, *same, *others]
    assert copies(name, named_models(files, by_stem=True), by_stem=True) == same
    assert copies(name, named_models(files, by_stem=False), by_stem=False) == ([] if name == "net.pth" else same)
