"""--like on the files that torch writes of networks that no rule of names knows; torch is asked whether the result loads into the
wanted network, and whether that makes of a gray image what the old one made of it in three channels."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError, convert, convert_state_dict, inspect, verify
from chkpt_channels.cli.app import run

SIZE = 16


class ImageNorm(nn.Module):
    """A ResNet with a BatchNorm of the image, and a stem under a name that says nothing."""

    def __init__(self, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.bn_data = nn.BatchNorm2d(in_channels)
        self.w0 = nn.Conv2d(in_channels, 16, 3, bias=False)
        self.bn0 = nn.BatchNorm2d(16)
        self.w1 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn0(self.w0(self.bn_data(x))))
        return self.fc((x + self.w1(x)).mean((2, 3)))


class TwoWays(nn.Module):
    """UNETR's ways from the image: a patch embedding, a block beside it with its projection; the image also joins the decoder."""

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(in_channels, 24, 4, 4)
        self.mix = nn.Conv2d(24, 24, 1)
        self.up = nn.ConvTranspose2d(24, 12, 4, 4, bias=False)
        self.side1 = nn.Conv2d(in_channels, 12, 3, padding=1, bias=False)
        self.side2 = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.side3 = nn.Conv2d(in_channels, 12, 1, bias=False)
        self.out = nn.Conv2d(24, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(self.tokens(x))
        side = torch.relu(self.side2(torch.relu(self.side1(x))) + self.side3(x))
        return self.out(torch.cat([self.up(tokens), side], 1))


class Raw(nn.Module):
    """A stem that is a bare parameter, in a network whose blocks it does not precede by name or order."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.zeta = nn.Parameter(torch.randn(8, in_channels, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(nn.functional.conv2d(x, self.zeta, padding=2))


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {"image norm": ImageNorm, "two ways": TwoWays, "raw": Raw}


def trained(net: nn.Module) -> nn.Module:
    """A network of three channels whose statistics are no longer those of the start."""
    net.train()
    for _ in range(2):
        net(torch.randn(4, 3, SIZE, SIZE) * 2 + 0.3)
    return net.eval()


def agree(gray: nn.Module, color: nn.Module, image: Tensor | None = None) -> None:
    """For an image in the values of the old preprocessing, the same in each channel."""
    image = torch.rand(2, 1, SIZE, SIZE) if image is None else image
    with torch.no_grad():
        torch.testing.assert_close(gray.eval()(image), color.eval()(image.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


def as_state_dict(path: Path, net: nn.Module) -> None:
    torch.save(net.state_dict(), path)


def as_meta(path: Path, net: nn.Module) -> None:
    torch.save(copy.deepcopy(net).to("meta").state_dict(), path)


def as_module(path: Path, net: nn.Module) -> None:
    torch.save(net, path)


def as_safetensors(path: Path, net: nn.Module) -> None:
    save_file(net.state_dict(), path)


def as_folder(path: Path, net: nn.Module) -> None:
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")


LIKES: Mapping[str, tuple[str, Callable[[Path, nn.Module], None]]] = {
    "state dict": ("like.pth", as_state_dict),
    "meta": ("like.pth", as_meta),
    "half": ("like.pth", lambda path, net: as_state_dict(path, copy.deepcopy(net).half())),
    "module": ("like.pt", as_module),
    "safetensors": ("like.safetensors", as_safetensors),
    "folder": ("like", as_folder),
    "wrapped": ("like.ckpt", lambda path, net: torch.save({"model": nn.DataParallel(net).state_dict(), "epoch": 3}, path)),
}


@pytest.mark.parametrize("kind", LIKES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["two ways", "raw"])
def test_the_result_is_the_wanted_network(name: str, suffix: str, kind: str, tmp_path: Path):
    """Whatever container LIKE is in."""
    net, wanted = NETWORKS[name](3), NETWORKS[name](1)
    source, out = tmp_path / f"net.{suffix}", tmp_path / f"gray.{suffix}"
    (as_state_dict if suffix == "pth" else as_safetensors)(source, net)
    file, write = LIKES[kind]
    write(tmp_path / file, wanted)
    report = convert(source, out, like=tmp_path / file)
    assert (report.in_channels, {kernel.conv.found_by for kernel in report.kernels}) == ((3, 1), {"like"})
    (load_pth if suffix == "pth" else load_safetensors)(wanted, out)
    agree(wanted, net)
    assert verify(source, out, like=tmp_path / file).ok


def load_pth(net: nn.Module, path: Path) -> None:
    net.load_state_dict(torch.load(path))


def load_safetensors(net: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    net.load_state_dict(load_file(path))


def test_a_norm_of_the_image_is_composed(tmp_path: Path):
    """The new image is normalized as the channel was whose statistics stay: what the mapped image is, the old network shows."""
    net, wanted = trained(ImageNorm(3)), ImageNorm(1)
    as_state_dict(tmp_path / "net.pth", net)
    as_meta(tmp_path / "like.pth", wanted)
    report = convert(tmp_path / "net.pth", like=tmp_path / "like.pth")
    assert Path(report.target).name == "net_gray.pth"
    assert {"w0.weight", "bn_data.weight", "bn_data.running_mean"} <= set(report.changed)
    load_pth(wanted, tmp_path / "net_gray.pth")
    agree(wanted, net)


def test_every_copy_follows(tmp_path: Path):
    """A training checkpoint with EMA, whose names have a wrapper; the loss is no part of LIKE's model."""
    net, ema = TwoWays(3), TwoWays(3)
    state = {f"model.module.{name}": value for name, value in net.state_dict().items()} | {"loss.weight": torch.rand(3)}
    averaged = torch.optim.swa_utils.AveragedModel(ema).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": averaged, "epoch": 1}, tmp_path / "run.ckpt")
    as_state_dict(tmp_path / "like.pth", TwoWays(1))
    convert(tmp_path / "run.ckpt", tmp_path / "gray.ckpt", like=tmp_path / "like.pth")
    loaded = torch.load(tmp_path / "gray.ckpt")
    wanted = nn.DataParallel(TwoWays(1))
    wanted.load_state_dict({k.removeprefix("model."): v for k, v in loaded["state_dict"].items() if "loss" not in k})
    agree(wanted.module, net)
    second = torch.optim.swa_utils.AveragedModel(TwoWays(1))
    second.load_state_dict(loaded["state_dict_ema"])
    agree(second.module, ema)


class Folded(nn.Module):
    """Space to depth by pixel_unshuffle, whose colors vary slowest."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv2d(4 * in_channels, 8, 3)
        self.b = nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(nn.functional.pixel_unshuffle(x, 2))))


def test_a_folded_axis_needs_its_order(tmp_path: Path):
    net, wanted, source = Folded(3), Folded(1), tmp_path / "net.pth"
    as_state_dict(source, net)
    as_state_dict(tmp_path / "like.pth", wanted)
    for words in ({}, {"to": "gray"}, {"from_channels": 3}):
        with pytest.raises(UnsupportedError, match=r"a\.weight: its axis order is ambiguous") as refused:
            convert(source, like=tmp_path / "like.pth", **words)
        assert "--layout O(IG)HW" in refused.value.hint
    report = convert(source, like=tmp_path / "like.pth", layout="O(IG)HW")
    assert report.in_channels == (3, 1)
    load_pth(wanted, tmp_path / "net_gray.pth")
    agree(wanted, net)
    assert convert(source, tmp_path / "bands.pth", like=tmp_path / "like.pth", from_channels=12).in_channels == (12, 4)


class Patches(nn.Module):
    """A patch embedding as a Linear layer, colors fastest, as in NaFlexViT."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.q = nn.Linear(16 * in_channels, 24)
        self.r = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).flatten(3)
        return self.r(torch.relu(self.q(patches)))


def test_patches_in_a_linear_layer_need_their_order(tmp_path: Path):
    net, wanted = Patches(3), Patches(1)
    as_state_dict(tmp_path / "net.pth", net)
    as_state_dict(tmp_path / "like.pth", wanted)
    with pytest.raises(UnsupportedError, match=r"q\.weight: its axis order is ambiguous"):
        convert(tmp_path / "net.pth", like=tmp_path / "like.pth")
    convert(tmp_path / "net.pth", like=tmp_path / "like.pth", layout="O(HWI)")
    load_pth(wanted, tmp_path / "net_gray.pth")
    agree(wanted, net)


def test_another_head_stays_in_a_file(tmp_path: Path):
    as_state_dict(tmp_path / "net.pth", ImageNorm(3))
    as_state_dict(tmp_path / "like.pth", ImageNorm(1, 7))
    report = convert(tmp_path / "net.pth", like=tmp_path / "like.pth")
    (warning,) = (w for w in report.warnings if w.code == "head_left")
    assert warning.message == "fc.weight stays [10, 16], and is [7, 16] in LIKE, fc.bias stays [10], and is [7] in LIKE"
    before, after = torch.load(tmp_path / "net.pth"), torch.load(tmp_path / "net_gray.pth")
    assert torch.equal(before["fc.weight"], after["fc.weight"])
    assert after["w0.weight"].shape == (16, 1, 3, 3)


def test_another_head_in_memory():
    net, wanted = trained(ImageNorm(3)), ImageNorm(1, 7)
    with pytest.raises(UnsupportedError, match=r"fc\.weight: is a head of another shape") as refused:
        convert_state_dict(net.state_dict(), like=wanted.state_dict())
    assert refused.value.hint == 'heads="like"   or   heads="keep"'
    kept = convert_state_dict(net.state_dict(), like=wanted.state_dict(), heads="keep")
    assert kept["fc.weight"].shape == (10, 16)
    head = copy.deepcopy(wanted.fc)
    wanted.load_state_dict(convert_state_dict(net.state_dict(), like=wanted.state_dict(), heads="like"), strict=True)
    assert torch.equal(wanted.fc.weight, head.weight)
    net.fc = head
    agree(wanted, net)
    meta = copy.deepcopy(wanted).to("meta").state_dict()
    with pytest.raises(UsageError, match="must be a state dict with values"):
        convert_state_dict(ImageNorm(3).state_dict(), like=meta, heads="like")


def test_the_line_that_everyone_writes(tmp_path: Path):
    net, model = trained(ImageNorm(3)), ImageNorm(1)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model.load_state_dict(convert_state_dict(torch.load(tmp_path / "net.pth"), like=model.state_dict()))
    agree(model, net)
    state = model.state_dict()
    again = convert_state_dict(state, like=model.state_dict())
    assert all(again[name] is state[name] for name in state)


class Tied(nn.Module):
    """A decoder whose last weight is that of the encoder."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.entry = nn.Conv2d(in_channels, 8, 3)
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(8, 8)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(self.entry(x).movedim(1, -1))))


def test_names_that_safetensors_drops(tmp_path: Path):
    net, wanted = Tied(3), Tied(1)
    save_model(net, str(tmp_path / "net.safetensors"))
    as_state_dict(tmp_path / "like.pth", wanted)
    convert(tmp_path / "net.safetensors", tmp_path / "gray.safetensors", like=tmp_path / "like.pth")
    save_model(wanted, str(tmp_path / "like.safetensors"))
    as_state_dict(tmp_path / "net.pth", net)
    convert(tmp_path / "net.pth", tmp_path / "gray.pth", like=tmp_path / "like.safetensors")
    load_pth(wanted, tmp_path / "gray.pth")
    agree(wanted, net)
    same = convert_state_dict(net.state_dict(), like=wanted.to("meta").state_dict())
    assert same["entry.weight"].shape == (8, 1, 3, 3)
    deeper = Tied(1).state_dict() | {"another.weight": torch.rand(8, 8)}
    with pytest.raises(UnsupportedError, match=r"another\.weight is only there"):
        convert(tmp_path / "net.safetensors", like=deeper)


class Generator(nn.Module):
    """A network that makes an image by a transposed convolution without a bias, as DCGAN does."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, 8, 3, 2, 1)
        self.last = nn.ConvTranspose2d(8, in_channels, 4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.down(x)))


def test_a_transposed_last_layer_is_no_first_one(tmp_path: Path):
    """[8, 3, 4, 4] of the last layer looks like a first convolution's."""
    net = Generator(3)
    as_state_dict(tmp_path / "net.pth", net)
    as_state_dict(tmp_path / "like.pth", Generator(1))
    report = convert(tmp_path / "net.pth", like=tmp_path / "like.pth")
    assert report.changed == ("down.weight",)
    assert "head_left" in [w.code for w in report.warnings]
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(AmbiguousError, match=r"last\.weight could take the image or, transposed, make it"):
        convert(tmp_path / "net.safetensors", like=tmp_path / "like.pth")


def test_another_architecture_is_refused(tmp_path: Path):
    as_state_dict(tmp_path / "net.pth", ImageNorm(3))
    other = ImageNorm(1)
    other.w1 = nn.Conv2d(16, 16, 5, padding=2)
    other.more = nn.Linear(3, 3)
    as_state_dict(tmp_path / "like.pth", other)
    with pytest.raises(UnsupportedError) as refused:
        convert(tmp_path / "net.pth", like=tmp_path / "like.pth")
    first = "more.weight is only there, more.bias is only there, w1.weight is [16, 16, 3, 3] here and [16, 16, 5, 5] there"
    assert first in str(refused.value)
    as_state_dict(tmp_path / "like.pth", nn.Linear(3, 3))
    with pytest.raises(UnsupportedError, match="have other names"):
        convert(tmp_path / "net.pth", like=tmp_path / "like.pth")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    as_state_dict(Path("net.pth"), TwoWays(3))
    as_meta(Path("like.pth"), TwoWays(1))
    assert run(["convert", "net.pth", "--like", "like.pth", "--to", "rgb"]) == 2
    assert "the target has 3 channels, and like.pth takes 1" in capsys.readouterr().err
    assert run(["convert", "net.pth", "--like", "like.pth", "--layer", "side1"]) == 2
    assert run(["convert", "net.pth", "--like", "like.pth", "--report", "r.json"]) == 0
    assert run(["convert", "net.pth", "--like", "like.pth", "--check"]) == 0
    assert run(["verify", "net.pth", "net_gray.pth", "--report", "r.json"]) == 0
    assert run(["verify", "net.pth", "net_gray.pth", "--like", "like.pth"]) == 0
    assert run(["verify", "net.pth", "net.pth", "--like", "like.pth"]) == 1
    assert json.loads(Path("r.json").read_text())["results"][0]["options"] == {"to": 1, "like": "like.pth"}
    capsys.readouterr()
    assert run(["convert", "net_gray.pth", "--like", "like.pth", "-o", "same.pth", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["status"] == "unchanged"
    assert Path("same.pth").read_bytes() == Path("net_gray.pth").read_bytes()
    Path("chkpt-channels.toml").write_text('[[convert]]\nsrc = "net.pth"\ndst = "m.pth"\nlike = "like.pth"\n')
    assert run(["convert", "--manifest", "chkpt-channels.toml"]) == 0
    assert Path("m.pth").read_bytes() == Path("net_gray.pth").read_bytes()


def test_a_file_of_shapes_is_no_source(tmp_path: Path):
    as_meta(tmp_path / "like.pth", TwoWays(1))
    assert {t.name: t.shape for t in inspect(tmp_path / "like.pth").tensors}["side1.weight"] == (12, 1, 3, 3)
    with pytest.raises(UnsupportedError, match="is on the meta device: it has a shape and no values"):
        convert(tmp_path / "like.pth", like=TwoWays(3).state_dict())


def as_onnx(path: Path, net: nn.Module, channels: int) -> None:
    torch.onnx.export(net.eval(), (torch.rand(1, channels, SIZE, SIZE),), str(path), input_names=["image"], dynamo=False)


def test_a_graph_must_agree(tmp_path: Path):
    """ONNX: by its own export with one channel, or by the state dict, as long as the names are the same."""
    onnxruntime = pytest.importorskip("onnxruntime")
    net = TwoWays(3)
    as_onnx(tmp_path / "net.onnx", net, 3)
    as_onnx(tmp_path / "like.onnx", TwoWays(1), 1)
    as_state_dict(tmp_path / "net.pth", net)
    report = convert(tmp_path / "net.onnx", tmp_path / "gray.onnx", like=tmp_path / "like.onnx")
    assert {(k.conv.tensor.name, k.conv.found_by) for k in report.kernels} == {
        (f"{name}.weight", "like") for name in ("tokens", "side1", "side3")
    }
    session = onnxruntime.InferenceSession(tmp_path / "gray.onnx", providers=["CPUExecutionProvider"])
    image = torch.rand(1, 1, SIZE, SIZE)
    (output,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), net(image.repeat(1, 3, 1, 1)).detach(), rtol=1e-4, atol=1e-5)
    assert verify(tmp_path / "net.onnx", tmp_path / "gray.onnx", like=tmp_path / "like.onnx").ok
    assert convert(tmp_path / "gray.onnx", tmp_path / "same.onnx", like=tmp_path / "like.onnx").status == "unchanged"
    convert(tmp_path / "net.pth", tmp_path / "gray.pth", like=tmp_path / "like.onnx")
    half = TwoWays(1)
    half.side3 = nn.Conv2d(3, 12, 1, bias=False)
    as_state_dict(tmp_path / "half.pth", half)
    with pytest.raises(
        UnsupportedError, match=r"and the graph disagree: LIKE changes tokens\.weight 3 to 1, side1\.weight 3 to 1"
    ):
        convert(tmp_path / "net.onnx", tmp_path / "no.onnx", like=tmp_path / "half.pth")
    assert not (tmp_path / "no.onnx").exists()


def test_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not in this environment")

    def network(channels: int, classes: int = 5):
        image = keras.Input((SIZE, SIZE, channels), name="image")
        x = keras.layers.Conv2D(8, 3, activation="relu", name="entry")(image)
        x = keras.layers.Conv2D(8, 3, name="middle")(x)
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(image, keras.layers.Dense(classes, name="classes")(x), name="net")

    net = network(3)
    image = torch.rand(1, SIZE, SIZE, 1).numpy()
    expected = net.predict(image.repeat(3, -1), verbose=0)
    for ending in ("keras", "weights.h5"):
        source, like, out = (tmp_path / f"{name}.{ending}" for name in ("net", "like", "gray"))
        for path, model in ((source, net), (like, network(1))):
            model.save_weights(path) if ending == "weights.h5" else model.save(path)
        report = convert(source, out, like=like)
        assert (report.in_channels, {k.conv.found_by for k in report.kernels}) == ((3, 1), {"like"})
        wanted = network(1)
        if ending == "keras":
            wanted = keras.models.load_model(out)
        else:
            wanted.load_weights(out)
        assert abs(wanted.predict(image, verbose=0) - expected).max() < 1e-5
    network(1, 7).save(tmp_path / "head.keras")
    report = convert(tmp_path / "net.keras", tmp_path / "head_left.keras", like=tmp_path / "head.keras")
    assert [w.code for w in report.warnings] == ["head_left"]


class Masked(nn.Module):
    """A network with a mask that its state dict leaves out, and a tensor that it keeps for later; `mean` is a buffer of the image
    that is left out too."""

    def __init__(self, in_channels: int = 3, mean: Tensor | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 24, 4, 4)
        self.beside = nn.Conv2d(in_channels, 24, 1)
        self.mix = nn.Conv2d(24, 24, 1)
        self.register_buffer("mask", torch.ones(SIZE // 4, SIZE // 4).tril(), persistent=False)
        self.register_buffer("mean", torch.zeros(1) if mean is None else mean, persistent=False)
        self.attention = torch.Tensor()

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        return self.mix(self.patches(x) * self.mask) + self.beside(x).mean((2, 3), keepdim=True)


@pytest.mark.parametrize("write", [as_state_dict, as_module], ids=["state dict", "module"])
@pytest.mark.parametrize("source", [as_state_dict, as_module], ids=["of a state dict", "of a module"])
def test_what_a_state_dict_leaves_out(source: Callable[..., None], write: Callable[..., None], tmp_path: Path):
    """A whole module holds it and a state dict of the same network does not, on either side."""
    net, wanted = Masked(3), Masked(1)
    source(tmp_path / "net.pt", net)
    write(tmp_path / "like.pt", wanted)
    convert(tmp_path / "net.pt", tmp_path / "gray.pt", like=tmp_path / "like.pt")
    if source is as_module:
        wanted = torch.load(tmp_path / "gray.pt", weights_only=False)
    else:
        load_pth(wanted, tmp_path / "gray.pt")
    agree(wanted, net)


def test_a_mean_that_a_state_dict_leaves_out_does_not_stay(tmp_path: Path):
    """It would make three channels of the new one again."""
    as_module(tmp_path / "net.pt", Masked(3, torch.rand(1, 3, 1, 1)))
    as_state_dict(tmp_path / "like.pth", Masked(1))
    with pytest.raises(UnsupportedError, match="mean is not there"):
        convert(tmp_path / "net.pt", tmp_path / "gray.pt", like=tmp_path / "like.pth")
