"""How a library loads its folder, told by its configuration; nothing that the configuration holds becomes other code."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from chkpt_channels.folders.loading import by_library
from chkpt_channels.formats.base import Loading, NamedNetwork

CASES: dict[str, tuple[dict[str, Any], str, NamedNetwork | None]] = {
    "transformers": (
        {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]},
        "model = transformers.ResNetForImageClassification.from_pretrained('a/b')",
        NamedNetwork("transformers", ("ResNetForImageClassification",), "configuration"),
    ),
    "transformers, reconstructing": (
        {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"]},
        "model = transformers.AutoModel.from_pretrained('a/b')",
        NamedNetwork("transformers", ("ViTMAEForPreTraining",), "configuration"),
    ),
    "timm": (
        {"architecture": "resnet50", "pretrained_cfg": {}},
        "model = timm.create_model('local-dir:a/b', pretrained=True)",
        NamedNetwork("timm", ("resnet50",), "configuration"),
    ),
    "diffusers": (
        {"_class_name": "UNet2DModel"},
        "model = diffusers.UNet2DModel.from_pretrained('a/b')",
        NamedNetwork("diffusers", ("UNet2DModel",), "configuration"),
    ),
    "segmentation-models": (
        {"_model_class": "Unet", "encoder_name": "resnet18"},
        "model = segmentation_models_pytorch.from_pretrained('a/b')",
        NamedNetwork("segmentation_models_pytorch", ("Unet", "resnet18"), "configuration"),
    ),
    "keras-hub": ({"registered_name": "keras_hub>ViTBackbone"}, "model = keras_hub.models.Backbone.from_preset('a/b')", None),
}


def known(config: dict[str, Any], path: str = "a/b", files: tuple[str, ...] = ("config.json",), **adapter: Any) -> Loading | None:
    return by_library(path, files, config, adapter)


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_names_its_library(name: str):
    config, statement, network = CASES[name]
    found = known(config)
    assert found is not None
    library = statement.partition(" = ")[2].partition(".")[0]
    assert (found.imports, found.statement, found.network) == ((f"import {library}",), statement, network)


def test_a_pipeline_of_components():
    found = known({}, files=("model_index.json", "unet/config.json"))
    assert found
    assert found.statement == "pipeline = diffusers.DiffusionPipeline.from_pretrained('a/b')"


def test_an_adapter_goes_onto_a_base_model_that_is_converted_alike():
    found = known({}, files=("adapter_config.json",), base_model_name_or_path="google/vit\nx")
    assert found
    assert (found.needs_model, found.model) == (True, "the base model, google/vit\\nx, converted alike")
    assert found.statement == "model = peft.PeftModel.from_pretrained(model, 'a/b')"
    assert (known({}, files=("adapter_config.json",)) or Loading()).model == "the base model converted alike"


ATTACK = "x; import os; os.system('touch /tmp/x') #"


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": ATTACK},
        {"_class_name": ["UNet2DModel"]},
        {"model_type": "x", "architectures": [ATTACK]},
        {"model_type": "x", "architectures": []},
        {"num_channels": 3},
    ],
)
def test_what_is_no_name_is_not_printed_as_code(config: dict[str, Any]):
    assert known(config) is None


def test_a_path_is_quoted():
    for config, *_ in CASES.values():
        found = known(config, path='it\'s\n"a" folder')
        assert found
        assert len(ast.parse(found.statement).body) == 1
