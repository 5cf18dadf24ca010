"""Plans of models: files that change, configurations with them, warnings about what cannot follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import UnsupportedError
from chkpt_channels.folders.model_folder import open_model
from chkpt_channels.folders.planning import PlannedModel, plan_model
from chkpt_channels.transform.options import build_options
from tests.support.builders import floats, storage, tensor, torch_zip

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.2, 0.2]


def weights(channels: int) -> dict[str, np.ndarray]:
    return {
        "conv1.weight": np.ones((8, channels, 7, 7), np.float32),
        "layer.conv.weight": np.ones((16, 8, 3, 3), np.float32),
        "fc.weight": np.ones((5, 16), np.float32),
    }


def planned(folder: Path, files: dict[str, Any], to: Any = 1, **options: Any) -> PlannedModel:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            safetensors.numpy.save_file(content, folder / name)
        else:
            (folder / name).write_text(json.dumps(content))
    parsed = build_options(to, **options)
    with open_model(folder, parsed) as model:
        return plan_model(model, model.resolved(parsed))


def codes(plan: PlannedModel) -> list[str]:
    return [notice.code for notice in plan.notices]


def test_weights_and_configurations_change_together(tmp_path: Path):
    plan = planned(tmp_path, {"model.safetensors": weights(3), "config.json": {"model_type": "resnet", "num_channels": 3}})
    assert (plan.channels, plan.changed) == ((3, 1), True)
    assert [name for name, _ in plan.edited_files()] == ["model.safetensors"]
    assert {name: json.loads(text)["num_channels"] for name, text in plan.edited_documents().items()} == {"config.json": 1}
    assert plan.first is plan.parts[0].plan


def test_a_part_whose_first_conv_cannot_be_read_is_not_copied(tmp_path: Path):
    listed = torch_zip(
        {"conv1.weight": np.zeros((8, 3, 3, 3)).tolist(), "fc.bias": tensor(storage("0", 4), (4,))}, {"0": floats(4)}
    )
    (tmp_path / "b.bin").write_bytes(listed)
    with pytest.raises(UnsupportedError, match=r"b\.bin: conv1\.weight: is a nested list of numbers"):
        planned(tmp_path, {"a.safetensors": weights(3)})


def test_the_identity_changes_nothing(tmp_path: Path):
    plan = planned(tmp_path, {"model.safetensors": weights(3), "config.json": {"model_type": "resnet"}}, to=3)
    assert (plan.changed, list(plan.edited_files()), plan.edited_documents()) == (False, [], {})


def test_parts_must_agree(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"its weights disagree: a.safetensors takes 3, b.safetensors takes 4 channels"):
        planned(tmp_path, {"a.safetensors": weights(3), "b.safetensors": weights(4)})


def test_a_file_without_kernels_is_copied(tmp_path: Path):
    plan = planned(tmp_path, {"model.safetensors": weights(3), "extra.safetensors": {"seed": np.zeros(4, np.float32)}})
    assert codes(plan) == ["copied"]
    assert [part.part.name for part in plan.parts] == ["model.safetensors"]


def test_no_part_with_a_kernel(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="none of its weights holds a convolution"):
        planned(tmp_path, {"a.safetensors": {"seed": np.zeros(4, np.float32)}})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_mean": MEAN, "image_std": STD}, ["pipeline_averaged"]),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, []),
        ({"image_mean": [0.5] * 4, "image_std": [0.5] * 4}, ["pipeline_kept", "pipeline_kept"]),
    ],
)
def test_warnings_about_a_normalization(tmp_path: Path, config: dict[str, Any], expected: list[str]):
    plan = planned(tmp_path, {"model.safetensors": weights(3), "preprocessor_config.json": config})
    found = [notice for notice in plan.notices if notice.code.startswith("pipeline")]
    assert {notice.code for notice in found} == set(expected)


def test_warnings_about_counts_and_reconstruction(tmp_path: Path):
    config = {"model_type": "vit", "num_channels": 5, "architectures": ["ViTForMaskedImageModeling"]}
    plan = planned(tmp_path, {"model.safetensors": weights(3), "config.json": config})
    assert codes(plan) == ["count_kept", "reconstructs"]


@pytest.mark.parametrize(
    ("to", "name", "ending"),
    [
        (1, "AutoencoderKL", "its output keeps 3 channels"),
        ("bgr", "AutoencoderKL", "its output stays as it was"),
        (3, "AutoencoderKL", None),
        ("bgr", "UNet2DConditionModel", None),
    ],
)
def test_the_output_of_a_network_that_reconstructs_stays(tmp_path: Path, to: Any, name: str, ending: str | None):
    config = {"_class_name": name, "in_channels": 3, "out_channels": 3}
    plan = planned(tmp_path, {"diffusion_pytorch_model.safetensors": weights(3), "config.json": config}, to)
    messages = [notice.message for notice in plan.notices if notice.code == "reconstructs"]
    assert messages == ([f"this network reconstructs the image, and {ending}"] if ending else [])


@pytest.mark.parametrize("latent", [3, 4])
def test_a_pipeline_of_several_networks_is_converted_by_components(tmp_path: Path, latent: int):
    """An image of three channels does not tell which of two networks takes a latent of three."""
    files = {
        "model_index.json": {"unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]},
        "unet/diffusion_pytorch_model.safetensors": weights(latent),
        "vqvae/diffusion_pytorch_model.safetensors": weights(3),
    }
    with pytest.raises(UnsupportedError, match=f"each of its components takes its own: unet takes {latent}, vqvae") as raised:
        planned(tmp_path, files)
    assert raised.value.hint == "   or   ".join(f"chkpt-channels convert {tmp_path / n} --to 1" for n in ("unet", "vqvae"))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert planned(tmp_path, {}).channels == (3, 1)


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("config.json", {"model_type": "resnet", "num_channels": 3, "n_bands": 3}, ["n_bands"]),
        ("config.json", {"model_type": "resnet", "num_channels": 3, "input_shape": [3, 8, 8]}, ["input_shape.0"]),
        ("args.json", {"num_channels": 3, "net": {"in_ch": 3}, "depth": 3}, ["num_channels", "net.in_ch"]),
        ("vocabulary.json", {"in_ch": 3, "x": "y" * 70000}, []),
        ("model.safetensors.index.json.bak", {"in_ch": 3}, []),
        ("logs/args.json", {"in_ch": 3}, []),
    ],
)
def test_numbers_that_look_like_channels_are_reported(tmp_path: Path, name: str, content: Any, places: list[str]):
    plan = planned(tmp_path, {"model.safetensors": weights(3), name: content})
    what = "as the weights did, and whether it is the image's is not known: it stays"
    messages = [notice.message for notice in plan.notices if notice.code == "count_unknown"]
    assert messages == [f"{name}: {place} says 3, {what}" for place in places]
    assert not [notice for notice in planned(tmp_path, {}, "bgr").notices if notice.code == "count_unknown"]


def test_what_is_called_json_and_is_none_is_copied(tmp_path: Path):
    (tmp_path / "notes.json").write_text("no JSON")
    assert planned(tmp_path, {"model.safetensors": weights(3)}).changed
