"""Networks that carry their graph run on the new image and answer as the original does on what it stands for."""

import pytest
import torch
import transformers

from chkpt_channels import convert, inspect, verify
from fixtures.generate.torch_networks import conv3d, repvgg, resnet, sequential
from tests.frameworks.oracle import ZIP, as_old, load, relative_error

TOLERANCE = 1e-5
IMAGE = (3, 16, 16)
VIDEO = (3, 4, 16, 16)
NETWORKS = {"resnet": (resnet, IMAGE), "repvgg": (repvgg, IMAGE), "conv3d": (conv3d, VIDEO), "sequential": (sequential, IMAGE)}


def tiny(name, **sizes):
    """A network of transformers: the count of channels stands in the convolution, in modules around it and in `config`."""
    config = getattr(transformers, f"{name}Config")(**sizes)
    return lambda: getattr(transformers, f"{name}Model")(config).eval()


ATTENTION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MODULES = {
    "sequential": (sequential, IMAGE),
    "conv3d": (conv3d, VIDEO),
    "ResNet": (tiny("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), IMAGE),
    "ViT": (tiny("ViT", image_size=16, patch_size=4, **ATTENTION), IMAGE),
    "CLIP": (tiny("CLIPVision", image_size=16, patch_size=4, **ATTENTION), IMAGE),
    "ConvNeXt": (tiny("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), IMAGE),
    "Swin": (tiny("Swin", image_size=16, patch_size=2, embed_dim=8, depths=[1], num_heads=[2], window_size=4), IMAGE),
}


def scripted(net, image):
    return torch.jit.script(net)


def traced(net, image):
    return torch.jit.trace(net, image)


def frozen(net, image):
    return torch.jit.freeze(torch.jit.script(net))


@pytest.mark.parametrize("to", [1, 4, 13])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("how", [scripted, traced, frozen], ids=lambda how: how.__name__)
@torch.inference_mode()
def test_script_answers_as_the_original(tmp_path, how, network, to):
    build, (old, *size) = NETWORKS[network]
    with torch.inference_mode(False):
        net = how(build(), torch.zeros(1, old, *size))
    torch.jit.save(net, str(tmp_path / "net.pt"))
    convert(tmp_path / "net.pt", tmp_path / "new.pt", to)
    new = torch.jit.load(tmp_path / "new.pt")
    image = torch.randn(2, to, *size)
    assert relative_error(new(image), net(as_old(image, old))) < TOLERANCE
    with pytest.raises(RuntimeError):
        new(torch.randn(2, old, *size))
    assert verify(tmp_path / "net.pt", tmp_path / "new.pt").ok


@pytest.mark.parametrize("to", [1, 4])
@torch.inference_mode()
def test_script_survives_being_saved_again_by_torch(tmp_path, to):
    torch.jit.save(torch.jit.script(resnet()), str(tmp_path / "net.pt"))
    convert(tmp_path / "net.pt", tmp_path / "new.pt", to)
    new = torch.jit.load(tmp_path / "new.pt")
    torch.jit.save(new, str(tmp_path / "again.pt"))
    image = torch.randn(2, to, 16, 16)
    assert torch.equal(torch.jit.load(tmp_path / "again.pt")(image), new(image))
    assert [conv.in_channels for conv in inspect(tmp_path / "again.pt").first_convs] == [to]


@pytest.mark.parametrize("to", [1, 4, 13])
@pytest.mark.parametrize("network", MODULES)
@torch.inference_mode()
def test_pickled_module_answers_as_the_original(tmp_path, network, to):
    build, (old, *size) = MODULES[network]
    with torch.inference_mode(False):
        net = build()
    convert(ZIP.save(net, tmp_path / "net.pth"), tmp_path / "new.pth", to)
    new = load(tmp_path / "new.pth")
    image = torch.randn(2, to, *size)
    found, expected = new(image), net(as_old(image, old))
    assert relative_error(found[0], expected[0]) < TOLERANCE
    stem = next(m for m in new.modules() if isinstance(m, torch.nn.modules.conv._ConvNd))
    assert stem.in_channels == stem.weight.shape[1] == to
    counts = [vars(owner).get("num_channels", to) for m in new.modules() for owner in (m, getattr(m, "config", m))]
    assert set(counts) == {to}


@torch.inference_mode()
def test_gray_module_answers_to_rgb_as_on_luma(tmp_path):
    gray = resnet(1)
    torch.jit.save(torch.jit.script(gray), str(tmp_path / "net.pt"))
    convert(tmp_path / "net.pt", tmp_path / "new.pt", "rgb")
    image = torch.rand(2, 3, 16, 16)
    assert relative_error(torch.jit.load(tmp_path / "new.pt")(image), gray(as_old(image, 1))) < TOLERANCE
