"""Folders of timm, segmentation-models and diffusers, where they are installed: each loads its own by the line of the report."""

import json

import pytest
import torch

from chkpt_channels import convert
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
    exec(report.load_line, scope)
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
    exec(report.load_line.replace("segmentation_models_pytorch", "smp"), scope)
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
    diffusers = pytest.importorskip("diffusers")
    model = realistic(diffusers.UNet2DConditionModel(**UNET))
    model.save_pretrained(tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b", to=9, method="zero")
    assert [k.conv.tensor.name for k in report.kernels] == ["conv_in.weight"]
    scope = {"diffusers": diffusers}
    exec(report.load_line, scope)
    new, latent, text = scope["model"].eval(), torch.randn(1, 9, 8, 8), torch.randn(1, 3, 8)
    assert (new.config.in_channels, new.config.out_channels) == (9, 4)
    with torch.no_grad():
        old, found = (m(x, 7, encoder_hidden_states=text).sample for m, x in ((model, latent[:, :4]), (new, latent)))
    assert (old - found).abs().max() < 3e-6 * old.abs().max()


def test_diffusers_autoencoder(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = realistic(diffusers.AutoencoderKL(block_out_channels=(16,), norm_num_groups=4))
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="gray")
    new = diffusers.AutoencoderKL.from_pretrained(tmp_path / "b").eval()
    raw = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        old, found = (m.encode(x).latent_dist.mean for m, x in ((model, raw.expand(-1, 3, -1, -1)), (new, raw)))
    assert (old - found).abs().max() < 3e-6 * old.abs().max()
