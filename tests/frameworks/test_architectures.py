"""Networks of real size: the converted checkpoint in a network of other channels answers as the original does."""

from functools import cache

import pytest
import safetensors.torch
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel, ViTConfig, ViTForImageClassification, ViTModel

from chkpt_channels import convert, inspect, verify
from fixtures.generate.torch_networks import settled
from tests.frameworks.oracle import BT709, load, relative_error

TOLERANCE = 1e-4
NETWORKS = {
    "ResNet-50": lambda channels: ResNetModel(ResNetConfig(num_channels=channels)),
    "ResNet-50 classifier": lambda channels: ResNetForImageClassification(ResNetConfig(num_channels=channels)),
    "ViT-B": lambda channels: ViTModel(ViTConfig(num_channels=channels)),
    "ViT-B classifier": lambda channels: ViTForImageClassification(ViTConfig(num_channels=channels)),
}
WRITERS = {
    "net.pth": lambda net, path: torch.save(net.state_dict(), path),
    "net.safetensors": lambda net, path: safetensors.torch.save_file(net.state_dict(), path, {"format": "pt"}),
    "model.safetensors": lambda net, path: safetensors.torch.save_model(net, str(path)),
}


@cache
def built(network, channels):
    """In evaluation mode, BatchNorms with statistics and affine parameters of their own."""
    torch.manual_seed(0)
    net = NETWORKS[network](channels)
    return settled(net, channels, 96, 96) if network.startswith("ResNet") else net.eval()


def loaded(network, channels, path):
    with torch.device("meta"):
        net = NETWORKS[network](channels)
    state = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load(path, weights_only=True)
    net.load_state_dict(state, strict=True, assign=True)
    return net.eval()


@torch.inference_mode()
def answer(net, image):
    output = net(image)
    return (
        output.logits if "logits" in output else torch.cat([output.last_hidden_state.flatten(), output.pooler_output.flatten()])
    )


@pytest.mark.parametrize(
    ("network", "file"),
    [
        ("ResNet-50", "net.pth"),
        ("ResNet-50", "model.safetensors"),
        ("ResNet-50 classifier", "net.safetensors"),
        ("ViT-B", "net.safetensors"),
        ("ViT-B classifier", "net.pth"),
        ("ViT-B classifier", "model.safetensors"),
    ],
)
def test_gray_network_answers_as_the_original_on_the_stacked_image(tmp_path, network, file):
    net = built(network, 3)
    original, gray = tmp_path / file, tmp_path / f"gray_{file}"
    WRITERS[file](net, original)
    convert(original, gray, "gray")
    image = torch.randn(1, 1, 224, 224)
    found, expected = answer(loaded(network, 1, gray), image), answer(net, image.expand(-1, 3, -1, -1))
    assert relative_error(found, expected) < TOLERANCE
    assert verify(original, gray).ok


@pytest.mark.parametrize(("network", "file"), [("ResNet-50 classifier", "net.pth"), ("ViT-B", "net.safetensors")])
def test_rgb_network_answers_as_the_gray_one_on_luma(tmp_path, network, file):
    net = built(network, 1)
    original, rgb = tmp_path / file, tmp_path / f"rgb_{file}"
    WRITERS[file](net, original)
    convert(original, rgb, "rgb")
    image = torch.rand(1, 3, 224, 224)
    luma = torch.einsum("c,nchw->nhw", torch.tensor(BT709), image)[:, None]
    assert relative_error(answer(loaded(network, 3, rgb), image), answer(net, luma)) < TOLERANCE
    assert [conv.in_channels for conv in inspect(rgb).first_convs] == [3]
