"""Folders and files of timm, segmentation-models, diffusers, keras-hub and ultralytics, where they are installed: each loads its
own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from chkpt_channels import UnsupportedError, check, convert
from chkpt_channels.cli.app import run
from tests.frameworks.test_folders import realistic


def normalized(raw, mean, std):
    return (raw - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


@pytest.mark.parametrize("with_arguments", [True, False])
@pytest.mark.parametrize(("name", "exact"), [("vit_tiny_patch16_224", True), ("resnet10t", False)])
def test_timm(name, exact, with_arguments, tmp_path):
    timm = pytest.importorskip("timm")
    model = realistic(timm.create_model(name, num_classes=5))
    timm.models.save_for_hf(model, tmp_path / "a", safe_serialization=True)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    if not with_arguments:
        config.pop("model_args", None)
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    report = convert(tmp_path / "a", tmp_path / "b", to="gray", norm="auto")
    scope = {"timm": timm}
    exec("\n".join(report.load_lines), scope)
    new = scope["model"].eval()
    assert new.pretrained_cfg["input_size"][0] == 1
    side = new.pretrained_cfg["input_size"][-1]
    old_feed = timm.data.resolve_model_data_config(model)
    new_feed = timm.data.resolve_model_data_config(new)
    assert tuple(new_feed["input_size"]) == (1, side, side)
    raw = torch.rand(2, 1, side, side)
    with torch.no_grad():
        old = model(normalized(raw.expand(-1, 3, -1, -1), old_feed["mean"], old_feed["std"]))
        found = new(normalized(raw, new_feed["mean"], new_feed["std"]))
    assert (old[0] - old[1]).abs().max() > 0.01 * old.abs().max()
    assert (old - found).abs().max() < (3e-6 if exact else 0.02) * old.abs().max()


def test_segmentation_models(tmp_path):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = realistic(smp.Unet("resnet18", encoder_weights=None, classes=2))
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to="gray")
    assert [d.where for d in report.declarations] == ["in_channels"]
    scope = {"smp": smp}
    exec("\n".join(report.load_lines), scope)
    new, raw = scope["model"].eval(), torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        old, found = model(raw.expand(-1, 3, -1, -1)), new(raw)
    assert (old - found).abs().max() < 3e-6 * old.abs().max()


UNET = {
    "block_out_channels": (16, 32), "norm_num_groups": 4, "layers_per_block": 1, "in_channels": 4, "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8, "attention_head_dim": 4,
}  # fmt: skip


def test_diffusers_inpainting(tmp_path):
    """From four latent channels to nine, of which the new five count for nothing yet."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in this environment")
    model = realistic(diffusers.UNet2DConditionModel(**UNET))
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to=9, method="zero")
    assert [k.conv.tensor.name for k in report.kernels] == ["conv_in.weight"]
    scope = {"diffusers": diffusers}
    exec("\n".join(report.load_lines), scope)
    new, latent, text = scope["model"].eval(), torch.randn(1, 9, 8, 8), torch.randn(1, 3, 8)
    assert (new.config.in_channels, new.config.out_channels) == (9, 4)
    with torch.no_grad():
        old, found = (m(x, 7, encoder_hidden_states=text).sample for m, x in ((model, latent[:, :4]), (new, latent)))
    assert (old - found).abs().max() < 3e-6 * old.abs().max()


def test_diffusers_autoencoder(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in this environment")
    model = realistic(diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=4))
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="gray")
    new = diffusers.AutoencoderKL.from_pretrained(tmp_path / "b").eval()
    raw = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        old, found = (m.encode(x).latent_dist.mean for m, x in ((model, raw.expand(-1, 3, -1, -1)), (new, raw)))
    assert (old - found).abs().max() < 3e-6 * old.abs().max()


def autoencoders(diffusers):
    """Networks whose latents have as many channels as an image, or four."""
    small = {"block_out_channels": (16,), "norm_num_groups": 4}
    return {
        "AutoencoderKL": diffusers.AutoencoderKL(**small, latent_channels=3),
        "VQModel": diffusers.VQModel(**small, latent_channels=3),
        "AutoencoderTiny": diffusers.AutoencoderTiny(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4),
    }


@pytest.mark.parametrize(("to", "count"), [("gray", 1), (4, 4), ("bgr", 3)])
@pytest.mark.parametrize("name", ["AutoencoderKL", "VQModel", "AutoencoderTiny"])
def test_diffusers_networks_that_reconstruct(name, to, count, tmp_path):
    """The encoder takes the new image, whatever the latent looks like, and the output stays, with a warning."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in this environment")
    model = realistic(autoencoders(diffusers)[name])
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to=to)
    assert "reconstructs" in {notice.code for notice in report.warnings}
    (kernel,) = report.kernels
    assert kernel.conv.tensor.name.startswith("encoder.")
    new = type(model).from_pretrained(tmp_path / "b").eval()
    assert (new.config.in_channels, new.config.out_channels) == (count, 3)
    assert run(["check", str(tmp_path / "b"), "--expect", str(count)]) == 0
    image = torch.rand(1, count, 16, 16)
    old = torch.einsum("ij,njhw->nihw", torch.tensor(kernel.matrix), image)
    with torch.no_grad():
        # AutoencoderTiny's encoder computes (x + 1) / 2 before its layers
        before, after = (getattr(m.encoder, "layers", m.encoder)(x) for m, x in ((model, old), (new, image)))
    assert (before - after).abs().max() < 3e-6 * before.abs().max()


def test_diffusers_pipelines_are_converted_by_components(tmp_path):
    """Image and latent have three channels, and only the autoencoder sees the image."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in this environment")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,)}
    unet = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
    pipeline = diffusers.LDMPipeline(autoencoders(diffusers)["VQModel"], unet, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path / "a")
    with pytest.raises(UnsupportedError, match="unet takes 3, vqvae takes 3") as raised:
        convert(tmp_path / "a", tmp_path / "b", to="gray")
    assert f"{tmp_path / 'a' / 'vqvae'} --to 1" in raised.value.hint
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "one")
    report = convert(tmp_path / "one", tmp_path / "c", to="gray")
    scope = {"diffusers": diffusers}
    exec("\n".join(report.load_lines), scope)
    assert scope["pipeline"].unet.config.in_channels == 1


@pytest.mark.parametrize(("to", "options"), [(1, {}), (6, {"method": "zero"})])
def test_diffusers_controlnet(to, options, tmp_path):
    """The image is the condition; the latent stays."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not in this environment")
    size = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "layers_per_block": 1, "norm_num_groups": 4}
    model = diffusers.ControlNetModel(**size, cross_attention_dim=8, attention_head_dim=4)
    realistic(model).save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to=to, **options)
    new = diffusers.ControlNetModel.from_pretrained(tmp_path / "b").eval()
    assert (new.config.in_channels, new.config.conditioning_channels) == (4, to)
    image, latent, text = torch.rand(1, to, 64, 64), torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    old = image.expand(-1, 3, -1, -1) if to == 1 else image[:, :3]
    with torch.no_grad():
        before, after = (m(latent, 7, text, x, return_dict=False)[1] for m, x in ((model, old), (new, image)))
    assert (before - after).abs().max() < 3e-6 * before.abs().max()


@pytest.mark.parametrize(("to", "count"), [("gray", 1), (4, 4), ("bgr", 3)])
def test_keras_hub(to, count, tmp_path):
    """A backbone and its image converter: what from_preset builds takes the new image."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not in this environment")
    keras = pytest.importorskip("keras", reason="Keras is not in this environment")
    keras.utils.set_random_seed(0)
    widths = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64]}
    blocks = {"stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2], "block_type": "basic_block"}
    model = keras_hub.models.ResNetBackbone(**widths, **blocks, image_shape=(None, None, 3))
    numbers = {"scale": [0.01, 0.02, 0.03], "offset": [-1.0, -2.0, -3.0]}
    converter = keras_hub.layers.ResNetImageConverter(image_size=(32, 32), **numbers)
    task = keras_hub.models.ResNetImageClassifier(
        backbone=model, num_classes=2, preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    )
    task.save_to_preset(str(tmp_path / "a"))
    report = convert(tmp_path / "a", tmp_path / "b", to=to)
    assert {notice.code for notice in report.warnings} >= {"copied"}
    new = keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "b"))
    assert [layer.image_shape[-1] for layer in (new.backbone, keras_hub.models.Backbone.from_preset(str(tmp_path / "b")))] == [
        count, count
    ]  # fmt: skip
    assert len(new.preprocessor.image_converter.scale) == count
    assert run(["check", str(tmp_path / "b"), "--expect", str(count)]) == 0
    image = np.random.default_rng(0).random((1, 32, 32, count)).astype("float32")
    old = image @ np.array(report.kernels[0].matrix).T
    before, after = (np.asarray(m.predict(x, verbose=0)) for m, x in ((model, old.astype("float32")), (new.backbone, image)))
    assert np.abs(before - after).max() < 3e-6 * np.abs(before).max()


@pytest.mark.parametrize(("to", "count"), [("gray", 1), (4, 4), ("bgr", 3)])
def test_ultralytics(to, count, tmp_path):
    """The module and the dict that it was built from change together, and so does the metadata of its ONNX file."""
    try:
        from ultralytics import YOLO
    except ImportError:
        pytest.skip("ultralytics is not installed")
    model = YOLO("yolov8n.yaml")
    torch.save({"model": None, "ema": model.model.half(), "train_args": {"task": "detect", "imgsz": 64}}, tmp_path / "a.pt")
    exported = YOLO(tmp_path / "a.pt").export(format="onnx", imgsz=64, verbose=False, simplify=False)
    image = (np.random.default_rng(0).random((64, 64, count)) * 255).astype("uint8")
    for source in (tmp_path / "a.pt", Path(exported)):
        out = tmp_path / f"new{source.suffix}"
        convert(source, out, to=to)
        assert check(out, count).ok
        assert len(YOLO(out, task="detect").predict(image, imgsz=64, verbose=False)) == 1
    assert YOLO(tmp_path / "new.pt").model.yaml["channels"] == count
