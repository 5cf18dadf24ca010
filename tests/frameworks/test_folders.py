"""Model folders with transformers: what save_pretrained wrote is converted, and from_pretrained finds nothing missing, mismatched
or unexpected; the outputs are those of the original for the same image in all channels."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch
import transformers
from torch import nn
from transformers.utils import logging

from chkpt_channels import UnsupportedError, check, convert, verify

logging.disable_progress_bar()
SIDE = 32


def realistic(model: nn.Module) -> nn.Module:
    """Scales as training leaves them: random initialization makes outputs so small that any difference would pass."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            continue
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0.0, 1 / math.sqrt(parameter[0].numel()))
        elif name.endswith("weight") or "lambda" in name or "layer_scale" in name:
            nn.init.uniform_(parameter, 0.7, 1.3)
        else:
            nn.init.normal_(parameter, 0.0, 0.1)
    return model.eval()


def image(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels}


def words(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels, "input_ids": torch.arange(1, 7).repeat(len(pixels), 1)}


def decoded(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels, "decoder_input_ids": torch.arange(1, 7).repeat(len(pixels), 1)}


def patches(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Qwen's: one row for each patch, with channels, frames, height and width in it."""
    count, channels = pixels.shape[:2]
    rows = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, 1, 8, 8)
    grid = torch.tensor([[1, SIDE // 8, SIDE // 8]] * count)
    return {"pixel_values": rows.expand(-1, -1, 2, -1, -1).flatten(1), "image_grid_thw": grid}


class Case(NamedTuple):
    """A model by its class and the numbers of a small configuration; `where` counts its channels."""

    model: str
    config: str
    numbers: Mapping[str, Any]
    where: str = "num_channels"
    inputs: Callable[[torch.Tensor], dict[str, torch.Tensor]] = image
    call: str = "__call__"

    def build(self, channels: int = 3) -> Any:
        """The model with random weights of realistic scales."""
        config = getattr(transformers, self.config)(**self.numbers)
        *home, key = self.where.split(".")
        setattr(getattr(config, *home) if home else config, key, channels)
        return realistic(getattr(transformers, self.model)(config))

    def outputs(self, model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Every tensor that the model gives for these images."""
        with torch.no_grad():
            found = getattr(model, self.call)(**self.inputs(pixels))
        return [value for value in found.values() if isinstance(value, torch.Tensor)]


VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40}
LLAMA = {**TEXT, "num_key_value_heads": 2, "model_type": "llama"}
QWEN = {**TEXT, "num_key_value_heads": 2}
SMALL = {"hidden_sizes": [16, 32], "depths": [1, 1]}
CASES = {
    "resnet": Case("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 16, "layer_type": "basic", **SMALL}),
    "vit": Case("ViTForImageClassification", "ViTConfig", VIT),
    "convnext": Case("ConvNextForImageClassification", "ConvNextConfig", {"num_stages": 2, **SMALL}),
    "swin": Case(
        "SwinForImageClassification",
        "SwinConfig",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIDE, "patch_size": 2},
    ),
    "beit": Case("BeitForImageClassification", "BeitConfig", VIT | {"layer_scale_init_value": 0.1, "vocab_size": 50}),
    "dinov2": Case("Dinov2ForImageClassification", "Dinov2Config", {k: v for k, v in VIT.items() if k != "intermediate_size"}),
    "segformer": Case(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [16, 16, 32, 32], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    ),
    "upernet": Case(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "backbone_config": {
                "model_type": "convnext",
                "num_stages": 4,
                "hidden_sizes": [8] * 4,
                "depths": [1] * 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 16,
            "pool_scales": [1, 2],
            "auxiliary_in_channels": 8,
            "auxiliary_channels": 8,
            "num_labels": 4,
        },
        "backbone_config.num_channels",
    ),
    "clip": Case(
        "CLIPModel",
        "CLIPConfig",
        {"vision_config": VIT, "text_config": TEXT | {"eos_token_id": 6}, "projection_dim": 16},
        "vision_config.num_channels",
        words,
    ),
    "llava": Case(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {"vision_config": {"model_type": "clip_vision_model", **VIT}, "text_config": LLAMA, "image_token_index": 39},
        "vision_config.num_channels",
        call="get_image_features",
    ),
    "qwen2_vl": Case(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8},
            "text_config": {**QWEN, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        },
        "vision_config.in_channels",
        patches,
        "get_image_features",
    ),
    "vision_encoder_decoder": Case(
        "VisionEncoderDecoderModel",
        "VisionEncoderDecoderConfig",
        {
            "encoder": {"model_type": "vit", **VIT},
            "decoder": {"model_type": "bert", **TEXT, "is_decoder": True, "add_cross_attention": True},
        },
        "encoder.num_channels",
        decoded,
    ),
}


def loaded(model: Any, folder: Path) -> Any:
    """What the library makes of a folder; nothing may be missing, mismatched or unexpected."""
    found, told = type(model).from_pretrained(folder, output_loading_info=True)
    assert not {name: keys for name, keys in told.items() if keys}
    return found.eval()


def assert_equal(case: Case, model: Any, new: Any, matrix: Any, channels: int) -> None:
    """The new model makes of an image what the old one makes of that image mixed into its old channels."""
    pixels = torch.rand(2, channels, SIDE, SIDE) * 2 - 1
    mixed = torch.einsum("ij,njhw->nihw", torch.tensor(matrix), pixels)
    pairs = list(zip(case.outputs(model, mixed), case.outputs(new, pixels), strict=True))
    for old, found in pairs:
        assert (old - found).abs().max() < 3e-6 * old.abs().max()
    # else everything would be equal, whatever the kernel is
    assert any((old[0] - old[1]).abs().max() > 0.01 * old.abs().max() for old, _ in pairs)


@pytest.mark.parametrize(("before", "to"), [(3, 1), (1, 3), (3, 4)])
@pytest.mark.parametrize("name", CASES)
def test_what_from_pretrained_loads(name, before, to, tmp_path):
    case, source, out = CASES[name], tmp_path / "a", tmp_path / "b"
    model = case.build(before)
    model.save_pretrained(source)
    report = convert(source, out, to=to)
    assert [d.where for d in report.declarations] == [case.where]
    new = loaded(model, out)
    assert_equal(case, model, new, report.kernels[0].matrix, to)
    assert verify(source, out, to).ok
    assert check(out / "model.safetensors", to).ok


def shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2


def pickled(model: Any, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def pickled_shards(model: Any, folder: Path) -> None:
    pickled(model, folder)
    (folder / "pytorch_model.bin").unlink()
    parts, places = list(model.state_dict().items()), {}
    for i in range(3):
        file = f"pytorch_model-0000{i + 1}-of-00003.bin"
        torch.save(dict(parts[i::3]), folder / file)
        places |= dict.fromkeys(dict(parts[i::3]), file)
    index = {"metadata": {"total_size": sum(t.nbytes for _, t in parts)}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("save", [shards, pickled, pickled_shards])
@pytest.mark.parametrize("name", ["vit", "resnet", "clip"])
def test_other_ways_to_keep_the_weights(name, save, tmp_path):
    case, source, out = CASES[name], tmp_path / "a", tmp_path / "b"
    model = case.build()
    source.mkdir()
    save(model, source)
    report = convert(source, out, to="gray")
    assert_equal(case, model, loaded(model, out), report.kernels[0].matrix, 1)
    assert verify(source, out).ok
    for index in out.glob("*.index.json"):
        total = json.loads(index.read_text())["metadata"]["total_size"]
        assert total == sum(parameter.nbytes for parameter in loaded(model, out).state_dict().values())


PROCESSORS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}},
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": SIDE}, "crop_pct": 1.0},
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SIDE},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIDE, "width": SIDE}},
}
"""As they stand in folders, without a word on do_convert_rgb."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def gray_image() -> Any:
    """Of the size that the models take, so that nothing is resampled."""
    image = pytest.importorskip("PIL.Image")
    return image.fromarray((torch.rand(SIDE, SIDE) * 255).byte().numpy(), "L")


def processed(folder: Path, image: Any) -> torch.Tensor:
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    processor = getattr(transformers, f"{kind}Pil").from_pretrained(folder)
    return processor(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("arguments", [{}, {"norm": "auto"}, {"norm": "auto", "input_range": 255}], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_processor_takes_gray_images(name, arguments, tmp_path):
    case, source, out = CASES[name] if name in CASES else CASES["vit"], tmp_path / "a", tmp_path / "b"
    model = case.build()
    model.save_pretrained(source)
    (source / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name] | IMAGENET))
    image = gray_image()
    stacked = processed(source, image.convert("RGB"))
    if name == "clip" and arguments:  # its patch embedding has no bias
        with pytest.raises(UnsupportedError, match="has no bias"):
            convert(source, out, to="gray", **arguments)
        return
    report = convert(source, out, to="gray", **arguments)
    pixels = processed(out, image)
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 1, SIDE, SIDE) / (
        1 if "input_range" in arguments else 255
    )
    mean, std = (0, 1) if "input_range" in arguments else (0.449, 0.226)
    assert (pixels - (raw - mean) / std).abs().max() < 1e-5
    new = loaded(model, out)
    old, found = (case.outputs(*pair)[0] for pair in ((model, stacked), (new, pixels)))
    scale = old.abs().max()
    told = {notice.code for notice in report.warnings}
    assert ("pipeline_averaged" in told) is not bool(arguments)
    assert ("border_error" in told) is bool(arguments and name == "resnet")
    if "border_error" in told:  # zero padding stood for three colors: the next test looks at it
        return
    if arguments:
        assert (old - found).abs().max() < 3e-6 * scale
    else:
        assert (old - found).abs().max() < 0.2 * scale


def test_folding_the_pipeline_brings_resnet_closer(tmp_path):
    case, source = CASES["resnet"], tmp_path / "a"
    model = case.build()
    model.save_pretrained(source)
    (source / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["resnet"] | IMAGENET))
    image, apart = gray_image(), {}
    old = case.outputs(model, processed(source, image.convert("RGB")))[0]
    for word in (None, "auto"):
        out = tmp_path / str(word)
        convert(source, out, to="gray", **({"norm": word} if word else {}))
        apart[word] = (old - case.outputs(loaded(model, out), processed(out, image))[0]).abs().max()
    assert apart["auto"] < 0.3 * apart[None]


def test_the_encoder_of_a_network_that_gives_the_image_back(tmp_path):
    model = realistic(transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**VIT, encoder_stride=8)))
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to="gray")
    assert "transformers.AutoModel" in report.load_lines[-1]
    new, told = transformers.AutoModel.from_pretrained(tmp_path / "b", output_loading_info=True, add_pooling_layer=False)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    pixels = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        old = model.vit(pixels.expand(-1, 3, -1, -1)).last_hidden_state
        assert (old - new.eval()(pixels).last_hidden_state).abs().max() < 3e-6 * old.abs().max()


@pytest.mark.parametrize(("before", "to"), [(4, 1), (4, 6), (3, "bgr"), (3, 1)])
@pytest.mark.parametrize("widths", [((8, 16, 24), (32, 16, 8, 8)), ((48, 96, 192), (256, 128, 64, 32))], ids=["narrow", "usual"])
def test_the_decoder_of_vitmatte_takes_the_image_too(widths, before, to, tmp_path):
    """Beside the patches and the stream of convolutions, the last fusion takes it joined to features."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "pretrain_image_size": 32}
    backbone = transformers.VitDetConfig(**size, num_channels=before, patch_size=16, out_features=["stage1"])
    config = transformers.VitMatteConfig(
        backbone_config=backbone, hidden_size=32, convstream_hidden_sizes=list(widths[0]), fusion_hidden_sizes=list(widths[1])
    )
    model = realistic(transformers.VitMatteForImageMatting(config))
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to=to, **({"method": "zero"} if to == 6 else {}))
    assert [notice.code for notice in report.warnings] == ["joined"]
    new = loaded(model, tmp_path / "b")
    assert verify(tmp_path / "a", tmp_path / "b", to=to, **({"method": "zero"} if to == 6 else {})).ok
    pixels = torch.rand(2, 3 if to == "bgr" else to, 32, 32)
    old = pixels.expand(-1, before, -1, -1) if to == 1 else pixels.flip(1) if to == "bgr" else pixels[:, :before]
    with torch.no_grad():
        expected, found = (network(x).alphas for network, x in ((model, old), (new, pixels)))
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    assert (expected - found).abs().max() < 1e-6
