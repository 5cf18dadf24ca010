"""Files of networks whose image goes several ways, or whose first conv is not the narrowest: as torch writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chkpt_channels import AmbiguousError, UnsupportedError, convert, verify
from tests.frameworks.oracle import LEGACY, ZIP, as_old, load, relative_error, sharing

State = Mapping[str, Tensor]


def saved(weights: State, folder: Path, form: object) -> Path:
    if form == "safetensors":
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "a.safetensors")
        return folder / "a.safetensors"
    return form.save(weights, folder / "a.pth")


def converted(source: Path, to: int, **options: object) -> tuple[object, tuple[str, ...]]:
    """What was saved, and the names of the tensors that changed."""
    target = source.with_stem("b")
    report = convert(source, target, to, **options)
    assert verify(source, target, to, **options).ok
    return load_file(target) if source.suffix == ".safetensors" else load(target), report.changed


FILES = pytest.mark.parametrize("form", [ZIP, LEGACY, "safetensors"], ids=str)
TORCH_FILES = pytest.mark.parametrize("form", [ZIP, LEGACY], ids=str)


def lived_in(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in {module.weight: 0.5, module.bias: -1, module.running_mean: -1, module.running_var: 0.5}.items():
                nn.init.uniform_(tensor, low, 2)
    return net.eval()


# A residual block on the image


class ResBlockNet(nn.Module):
    """A ResNet without a stem: its first block adds a projection of the image to a branch of it."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.layer1 = nn.Module()
        self.layer1.conv1, self.layer1.bn1 = nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1.conv2, self.layer1.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.layer1.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.conv, self.fc = nn.Conv2d(width, 2 * width, 3), nn.Linear(2 * width, 3)

    def forward(self, image: Tensor) -> Tensor:
        block = self.layer1
        x = block.bn2(block.conv2(block.bn1(block.conv1(image)).relu())) + block.shortcut(image)
        return self.fc(self.conv(x.relu()).mean((2, 3)))


RES_STEMS = {"layer1.conv1.weight", "layer1.shortcut.0.weight"}
WAYS = pytest.mark.parametrize(("old", "to"), [(3, 1), (1, 3), (4, 1), (3, 4)])


@torch.no_grad()
def agree(new: nn.Module, old: nn.Module, channels: tuple[int, int]) -> None:
    image = torch.rand(2, channels[1], 24, 24)
    assert relative_error(new.eval()(image), old(as_old(image, channels[0]))) < 1e-5


@WAYS
@TORCH_FILES
def test_a_projection_beside_the_first_conv(form: object, old: int, to: int, tmp_path: Path):
    net, new = lived_in(ResBlockNet(old)), ResBlockNet(to)
    weights, changed = converted(saved(net.state_dict(), tmp_path, form), to)
    assert {*changed} == RES_STEMS
    new.load_state_dict(weights)
    agree(new, net, (old, to))


@WAYS
@TORCH_FILES
def test_a_projection_in_a_whole_module(form: object, old: int, to: int, tmp_path: Path):
    net = lived_in(ResBlockNet(old))
    new, _ = converted(form.save(net, tmp_path / "a.pth"), to)
    assert new.layer1.shortcut[0].in_channels == new.layer1.conv1.in_channels == to
    agree(new, net, (old, to))


@WAYS
def test_a_projection_in_torchscript(old: int, to: int, tmp_path: Path):
    net = lived_in(ResBlockNet(old))
    torch.jit.trace(net, torch.rand(1, old, 24, 24)).save(tmp_path / "a.pt")
    convert(tmp_path / "a.pt", tmp_path / "b.pt", to)
    agree(torch.jit.load(tmp_path / "b.pt"), net, (old, to))


@WAYS
def test_a_projection_without_the_order_of_the_layers(old: int, to: int, tmp_path: Path):
    """Safetensors sorts names: both kernels, or a refusal whose first line of --layer does it."""
    net, new = lived_in(ResBlockNet(old)), ResBlockNet(to)
    source, options = saved(net.state_dict(), tmp_path, "safetensors"), {}
    refusal = None
    try:
        convert(source, tmp_path / "first.safetensors", to)
    except AmbiguousError as error:
        refusal = error
    if refusal is not None:
        options = {"layers": refusal.hint.split("   or   ")[0].removeprefix("--layer ").split(" --layer ")}
    weights, changed = converted(source, to, **options)
    assert {*changed} == RES_STEMS
    new.load_state_dict(weights)
    agree(new, net, (old, to))


# Branches that normalize the image themselves


class NormedBranches(nn.Module):
    """Cellpose's first block: a BatchNorm and a convolution, and beside them a BatchNorm and a projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Module()
        self.down.conv = nn.Sequential(nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 3)))
        self.down.conv.append(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)))
        self.down.proj = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 1))
        self.output = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.output(self.down.conv(image) + self.down.proj(image)[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize(("to", "method"), [(1, "auto"), (3, "repeat"), (3, "zero")])
@TORCH_FILES
@torch.no_grad()
def test_both_norms_follow(form: object, to: int, method: str, tmp_path: Path):
    net, new = lived_in(NormedBranches(2)), NormedBranches(to)
    weights, changed = converted(saved(net.state_dict(), tmp_path, form), to, method=method)
    assert {"down.conv.0.1.weight", "down.proj.1.weight", "down.conv.0.0.weight", "down.proj.0.running_var"} <= {*changed}
    new.load_state_dict(weights)
    image = torch.rand(2, to, 24, 24)
    expected = net(image[:, :2] if method == "zero" else as_old(image, 2))
    assert relative_error(new.eval()(image), expected) < 1e-5


# Patches of several sizes


def test_regions_beside_a_convolution(tmp_path: Path):
    """RegionViT of vit-pytorch: the projection of whole regions has its pixels in its channel axis."""
    regionvit = pytest.importorskip("vit_pytorch.regionvit")
    build = {"dim": (32, 32, 32, 32), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5}
    old, new = (regionvit.RegionViT(channels=channels, **build).eval() for channels in (3, 1))
    new.local_encoder = nn.Conv2d(1, 32, 8, 4, 3)  # the library's is for three channels, whatever it is asked for
    torch.save(old.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match=r"region_encoder\.1\.weight: its axis order is ambiguous") as refused:
        convert(tmp_path / "a.pth", tmp_path / "b.pth", 1)
    assert "--layout O(IG)HW" in refused.value.hint
    weights, changed = converted(tmp_path / "a.pth", 1, layout="O(IG)HW")
    assert {*changed} == {"local_encoder.weight", "region_encoder.1.weight"}
    new.load_state_dict(weights)
    with torch.no_grad():
        image = torch.rand(2, 1, 64, 64)
        assert relative_error(new(image), old(image.expand(-1, 3, -1, -1))) < 1e-5


# One module under several names


class ConvBlock(nn.Module):
    """nnU-Net's: the convolution is an attribute, and the first of a sequence too."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(before, after, 3, padding=1), nn.InstanceNorm3d(after, affine=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, nn.LeakyReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class TwiceNamed(nn.Module):
    """A U-Net whose decoder has the encoder as its attribute."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Module(), nn.Module()
        pairs = [*zip((channels, *widths), widths, strict=False)]
        self.encoder.stages = nn.ModuleList(nn.Sequential(ConvBlock(a, b), ConvBlock(b, b)) for a, b in pairs)
        self.decoder.encoder = self.encoder
        ups = [*zip(widths[::-1], widths[-2::-1], strict=False)]
        self.decoder.stages = nn.ModuleList(ConvBlock(2 * b, b) for _, b in ups)
        self.decoder.transpconvs = nn.ModuleList(nn.ConvTranspose3d(a, b, 1) for a, b in ups)
        self.decoder.seg_layers = nn.ModuleList(nn.Conv3d(b, classes, 1) for _, b in ups)

    def forward(self, x: Tensor) -> Tensor:
        skips = [x := stage(x) for stage in self.encoder.stages]
        for i, (up, stage) in enumerate(zip(self.decoder.transpconvs, self.decoder.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-2 - i]), 1))
        return self.decoder.seg_layers[-1](x)


@pytest.mark.parametrize(("old", "to", "method"), [(4, 1, "auto"), (4, 7, "zero"), (1, 3, "auto"), (3, 4, "repeat")])
@TORCH_FILES
@torch.no_grad()
def test_four_names_of_one_storage(form: object, old: int, to: int, method: str, tmp_path: Path):
    net, new = TwiceNamed(old, old).eval(), TwiceNamed(to, old).eval()
    checkpoint = {"network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer", "current_epoch": 3}
    found, changed = converted(form.save(checkpoint, tmp_path / "checkpoint_final.pth"), to, method=method)
    assert len(changed) == 4
    assert all(name.endswith(("stages.0.0.conv.weight", "stages.0.0.all_modules.0.weight")) for name in changed)
    assert sharing(found) == sharing(checkpoint)
    new.load_state_dict(found["network_weights"])
    image = torch.rand(1, to, 8, 8, 8)
    expected = net(image[:, :4] if method == "zero" else as_old(image, old))
    assert relative_error(new(image), expected) < 1e-4


# Networks that take images of several widths


def gan() -> dict[str, State]:
    generator = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    judge = nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    optimizer = torch.optim.Adam([*generator.parameters(), *judge.parameters()])
    image = torch.rand(1, 3, 16, 16)
    judge(torch.cat([image, generator(image)], 1)).sum().backward()
    optimizer.step()
    return {"netG": generator.state_dict(), "netD": judge.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("to", [1, 4])
@pytest.mark.parametrize("trained", [False, True])
@TORCH_FILES
def test_a_discriminator_of_two_images(form: object, trained: bool, to: int, tmp_path: Path):
    source = form.save(gan() if trained else {k: v for k, v in gan().items() if k != "optimizer"}, tmp_path / "a.pth")
    with pytest.raises(AmbiguousError, match="take 3 and 6 channels") as refused:
        convert(source, tmp_path / "no.pth", to)
    assert [c.key for c in refused.value.candidates] == ["netG/0.weight", "netD/0.weight"]
    assert refused.value.hint == "--layer netG/0.weight   or   --layer netD/0.weight"
    found, _ = converted(source, to, layers=["netG/0.weight"])
    assert (found["netG"]["0.weight"].shape[1], found["netD"]["0.weight"].shape[1]) == (to, 6)
    if trained:
        assert {entry["exp_avg"].shape[1] for key, entry in found["optimizer"]["state"].items() if key in (0, 4)} == {to, 6}


def layers(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Convolutions with biases, by name with "__" for dots."""
    weights = {}
    for name, shape in shapes.items():
        key = name.replace("__", ".")
        weights |= {f"{key}.weight": torch.randn(shape), f"{key}.bias": torch.randn(shape[0])}
    return weights


def autoencoder() -> dict[str, Tensor]:
    """For gray images, with three latent channels."""
    side = {"resnets__0__conv1": (32, 32, 3, 3), "resnets__0__conv2": (32, 32, 3, 3)}
    encoder = {"conv_in": (32, 1, 3, 3), **{f"down_blocks__0__{k}": v for k, v in side.items()}, "conv_out": (6, 32, 3, 3)}
    decoder = {"conv_in": (32, 3, 3, 3), **{f"up_blocks__0__{k}": v for k, v in side.items()}, "conv_out": (1, 32, 3, 3)}
    both = {f"encoder__{k}": v for k, v in encoder.items()} | {f"decoder__{k}": v for k, v in decoder.items()}
    return layers(**both, quant_conv=(6, 6, 1, 1), post_quant_conv=(3, 3, 1, 1))


@pytest.mark.parametrize("to", [3, 4])
@FILES
def test_a_latent_of_three_channels_is_no_image(form: object, to: int, tmp_path: Path):
    found, changed = converted(saved(autoencoder(), tmp_path, form), to)
    assert changed == ("encoder.conv_in.weight",)
    assert found["encoder.conv_in.weight"].shape == (32, to, 3, 3)


def control_net() -> dict[str, Tensor]:
    """With a gray condition beside a latent of four channels."""
    condition = {"conv_in": (16, 1, 3, 3), "blocks__0": (16, 16, 3, 3), "blocks__1": (32, 16, 3, 3), "conv_out": (16, 32, 3, 3)}
    condition = {f"controlnet_cond_embedding__{name}": shape for name, shape in condition.items()}
    rest = {"down_blocks__0__resnets__0__conv1": (16, 16, 3, 3), "controlnet_down_blocks__0": (16, 16, 1, 1)}
    return layers(conv_in=(16, 4, 3, 3), **condition, **rest)


@FILES
def test_a_condition_beside_a_latent(form: object, tmp_path: Path):
    source, stem = saved(control_net(), tmp_path, form), "controlnet_cond_embedding.conv_in.weight"
    with pytest.raises(AmbiguousError) as refused:
        convert(source, tmp_path / "no.pth", 3)
    assert {stem, "conv_in.weight"} <= {c.key for c in refused.value.candidates}
    assert f"--layer {stem}" in refused.value.hint
    found, changed = converted(source, 3, layers=[stem])
    assert (changed, found[stem].shape, found["conv_in.weight"].shape) == ((stem,), (16, 3, 3, 3), (16, 4, 3, 3))


# The image past the stem


def norm(key: str, count: int) -> dict[str, Tensor]:
    vectors = {name: torch.rand(count) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    return {f"{key}.{name}": vector for name, vector in vectors.items()}


@pytest.mark.parametrize("to", [1, 4])
@FILES
def test_an_image_that_is_concatenated_to_what_the_stem_makes(form: object, to: int, tmp_path: Path):
    """EDANet: the norm behind the stem has the stem's 12 channels and the image's 3."""
    weights = layers(stage1__unit1__conv=(12, 3, 3, 3)) | norm("stage1.unit1.bn", 15) | layers(stage2__unit1__conv=(45, 15, 3, 3))
    weights |= norm("stage2.unit1.bn", 60) | layers(stage2__unit2__conv1=(40, 60, 1, 1), stage2__unit2__conv2=(40, 40, 3, 1))
    weights |= layers(stage2__unit3__conv1=(40, 100, 1, 1), head=(20, 140, 1, 1))
    with pytest.raises(AmbiguousError) as refused:
        convert(saved(weights, tmp_path, form), tmp_path / "no.pth", to)
    candidates = {c.key: c.why_not for c in refused.value.candidates}
    assert "the image goes past the first convs" in candidates["stage1.unit1.conv.weight"]
    assert "--like LIKE.pth" in refused.value.hint


# Windows that are no squares


class Recognizer(nn.Module):
    """A reader of text lines: all its windows are three pixels high."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [("C_0", channels, 32, 13), ("C_3", 32, 32, 13), ("C_6", 32, 64, 9), ("C_9", 64, 64, 9)]
        self.nn = nn.ModuleDict({name: nn.Conv2d(i, o, (3, k), padding=(1, k // 2)) for name, i, o, k in sizes})
        self.nn["L_12"], self.nn["O_18"] = nn.LSTM(64, 20, bidirectional=True), nn.Linear(40, 50)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("C_0", "C_3", "C_6", "C_9"):
            x = self.nn[name](x).relu()
        return self.nn["O_18"](self.nn["L_12"](x.mean(2).permute(2, 0, 1))[0])


@WAYS
@pytest.mark.parametrize("form", [ZIP, LEGACY, "safetensors"], ids=str)
def test_a_height_of_three_is_no_image(form: object, old: int, to: int, tmp_path: Path):
    net, new = Recognizer(old).eval(), Recognizer(to)
    weights, changed = converted(saved(net.state_dict(), tmp_path, form), to)
    assert changed == ("nn.C_0.weight",)
    new.load_state_dict(weights)
    agree(new, net, (old, to))


CONVERTIBLE: Mapping[str, Callable[[int], nn.Module]] = {"projection": ResBlockNet, "recognizer": Recognizer}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_other_dtypes(name: str, dtype: torch.dtype, tmp_path: Path):
    net = CONVERTIBLE[name](3).to(dtype)
    weights, changed = converted(ZIP.save(net.state_dict(), tmp_path / "a.pth"), 1)
    CONVERTIBLE[name](1).to(dtype).load_state_dict(weights)
    for key in changed:
        wide = net.state_dict()[key].double()
        assert torch.equal(weights[key], (wide[:, :1] + wide[:, 1:2] + wide[:, 2:]).to(dtype))
