"""The lines that a conversion prints are run in a fresh process, from the printed text alone, and load strictly; what they load
answers a gray image as the old network answers it stacked."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chkpt_channels import convert
from chkpt_channels.api.output.load_lines import load_lines
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownStem, Recognized
from chkpt_channels.folders.model import ModelFile
from fixtures.generate.torch_networks import resnet
from tests.support.apart import run_apart

ROOT = Path(__file__).resolve().parents[2]
NET = "from fixtures.generate.torch_networks import resnet; model = resnet(1).eval()"
"""What a user has at hand: the network, built for the new count."""
ANSWERS = "print('answer', *model(__import__('torch').load('gray.pt')).flatten().tolist())"
IMAGE = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def fresh(code: str, folder: Path) -> list[float]:
    """The numbers that code prints in a process of its own."""
    done = run_apart(code, folder)
    assert done.code == 0, f"{code}\n{done.err}"
    return [float(number) for number in done.out.rpartition("answer ")[2].split()]


def printed(folder: Path, *words: str) -> str:
    """The lines behind "Load" that the command prints; nothing follows them."""
    command = [sys.executable, "-m", "chkpt_channels", "convert", *words, "--to", "gray"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\n  Load\n")[2]


def on_cuda(value: Any, path: Path) -> None:
    """As torch.save writes on a machine with a GPU: each storage says where it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(value, path)


def wrapped(net: nn.Module) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in net.state_dict().items()}


def script(net: nn.Module, path: Path) -> None:
    torch.jit.trace(net, IMAGE.repeat(1, 3, 1, 1)).save(path)


KINDS: dict[str, tuple[str, Callable[[nn.Module, Path], None], bool]] = {
    "state dict": ("a.pth", lambda net, path: torch.save(net.state_dict(), path), True),
    "legacy": ("a.pth", lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False), True),
    "nested": ("a.ckpt", lambda net, path: torch.save({"epoch": 3, "nets": [net.state_dict()]}, path), True),
    "pairs": ("a.pth", lambda net, path: torch.save(list(net.state_dict().items()), path), True),
    "DDP": ("a.tar", lambda net, path: torch.save({"model": wrapped(net), "arguments": Path("x")}, path), True),
    "GPU": ("a.pth", lambda net, path: on_cuda(net.state_dict(), path), True),
    "module": ("a.pt", lambda net, path: torch.save(net, path), False),
    "module in a dict": ("a.pt", lambda net, path: torch.save({"epoch": 3, "ema": net}, path), False),
    "TorchScript": ("a.pt", script, False),
    "safetensors": ("a.safetensors", lambda net, path: save_file(net.state_dict(), path, {"format": "pt"}), True),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_lines_of_a_file_of_torch(name: str, tmp_path: Path):
    file, save, needs_model = KINDS[name]
    net = resnet().eval()
    save(net, tmp_path / file)
    torch.save(IMAGE, tmp_path / "gray.pt")
    lines = printed(tmp_path, file)
    assert ("# model: " in lines) == needs_model
    # a class of a script's own must be importable, as the comment says
    prelude = NET if needs_model else "import fixtures.generate.torch_networks"
    found = fresh(f"{prelude}\n{lines}\n{ANSWERS}", tmp_path)
    assert found == pytest.approx(net(IMAGE.repeat(1, 3, 1, 1)).flatten().tolist(), abs=1e-4)


def test_the_lines_of_an_onnx_file(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    net = resnet().eval()
    torch.onnx.export(net, (IMAGE.repeat(1, 3, 1, 1),), tmp_path / "a.onnx", external_data=True, verbose=False)
    torch.save(IMAGE, tmp_path / "gray.pt")
    answers = "print('answer', *session.run(None, {session.get_inputs()[0].name: torch.load('gray.pt').numpy()})[0].ravel())"
    found = fresh(f"{printed(tmp_path, 'a.onnx')}\nimport torch\n{answers}", tmp_path)
    assert found == pytest.approx(net(IMAGE.repeat(1, 3, 1, 1)).flatten().tolist(), abs=1e-4)


@pytest.mark.parametrize("file", ["a.keras", "a.h5", "compiled.h5", "compiled.keras", "a.weights.h5"])
def test_the_lines_of_a_file_of_keras(file: str, tmp_path: Path):
    if not importlib.util.find_spec("keras"):
        pytest.skip("keras is not in this environment")
    build = (
        "import keras; "
        "model = lambda n: keras.Sequential([keras.Input((16, 16, n)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])"
    )
    save = "save_weights" if file.endswith(".weights.h5") else "save"
    stacked = "import numpy as np; image = np.linspace(0, 1, 256, dtype='f4').reshape(1, 16, 16, 1)"
    answer = "print('answer', *np.asarray(model.predict({}, verbose=0)).ravel()[:50])"
    compiled = "model.compile('adam', 'mse'); " if "compiled" in file else ""
    first = f"{build}; {stacked}; model = model(3); {compiled}model.{save}({file!r})\n{answer.format('image.repeat(3, 3)')}"
    expected = fresh(first, tmp_path)
    lines = printed(tmp_path, file)
    prelude = f"{build}; model = model(1)\n" if "# model: " in lines else ""
    assert fresh(f"{prelude}{lines}\n{stacked}\n{answer.format('image')}", tmp_path) == pytest.approx(expected, abs=1e-4)


def test_the_lines_of_a_folder_of_transformers(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "a")
    torch.save(IMAGE, tmp_path / "gray.pt")
    lines = printed(tmp_path, "a", "-o", "it's b")
    found = fresh(f"{lines}\nmodel.eval()\n{ANSWERS.replace(').flatten', ').logits.flatten')}", tmp_path)
    assert found == pytest.approx(net(IMAGE.repeat(1, 3, 1, 1)).logits.flatten().tolist(), abs=1e-4)


# Networks of a catalogue


class Known(NamedTuple):
    """A network of a library: the lines that build it, its stems, and the tensor that counts its classes."""

    library: str
    name: str
    lines: tuple[str, ...]
    stems: tuple[str, ...]
    classes: str

    def architecture(self, net: nn.Module) -> Architecture:
        stems = tuple(_stem(net, key) for key in self.stems)
        return Architecture(self.library, self.name, stems, self.lines, (self.classes, 1000), head=self.classes)


def _stem(net: nn.Module, key: str) -> KnownStem:
    layer = net.get_submodule(key.rpartition(".")[0])
    kind, bias = type(layer).__name__, layer.bias is not None
    layout = {"Conv2d": "OIHW", "Linear": "O(HWI)"}[kind]
    return (
        KnownStem(key, layout, kind, layer.stride, layer.padding, layer.dilation, bias)
        if kind == "Conv2d"
        else KnownStem(key, layout, kind, bias=bias)
    )


TIMM = "model = timm.create_model({!r}, in_chans={{channels}}, num_classes={{classes}})"
VISION = "model = torchvision.models.{}(weights=None, num_classes={{classes}})"
NETS = [
    Known("timm", "resnet18", (TIMM.format("resnet18"),), ("conv1.weight",), "fc.weight"),
    Known(
        "timm",
        "repvgg_a0",
        (TIMM.format("repvgg_a0"),),
        ("stem.conv_kxk.conv.weight", "stem.conv_1x1.conv.weight"),
        "head.fc.weight",
    ),
    Known("timm", "deit_tiny_patch16_224", (TIMM.format("deit_tiny_patch16_224"),), ("patch_embed.proj.weight",), "head.weight"),
    Known("torchvision", "resnet18", (VISION.format("resnet18"),), ("conv1.weight",), "fc.weight"),
    Known("torchvision", "mobilenet_v2", (VISION.format("mobilenet_v2"),), ("features.0.0.weight",), "classifier.1.weight"),
    Known("torchvision", "vgg11", (VISION.format("vgg11"),), ("features.0.weight",), "classifier.6.weight"),
]


def built(known: Known, classes: int) -> nn.Module:
    scope: dict[str, Any] = {known.library: pytest.importorskip(known.library)}
    for line in known.lines:
        exec(line.replace("{channels}", "3").replace("{classes}", str(classes)), scope)
    net: nn.Module = scope["model"]
    return net.eval()


def loaded(source: Path, out: Path, recognized: Recognized, to: int = 1) -> str:
    report = convert(source, out, to)
    with ModelFile(source) as before, ModelFile(out) as after:
        how = after.loading(str(out), recognized.group)
        lines = load_lines(how, recognized, before.checkpoint.tensors, report.kernels, report.in_channels).lines
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("known", "wrapper"),
    [(known, "module." if i % 2 else "") for i, known in enumerate(NETS)],
    ids=[f"{known.library}-{known.name}" for known in NETS],
)
def test_a_known_network_is_built_and_loads_strictly(known: Known, wrapper: str, tmp_path: Path):
    net = built(known, 7)
    state, group = {wrapper + name: tensor for name, tensor in net.state_dict().items()}, "state_dict" if wrapper else ""
    torch.save({"state_dict": state} if wrapper else state, tmp_path / "a.pth")
    lines = loaded(tmp_path / "a.pth", tmp_path / "b.pth", Recognized(group, wrapper, "whole", (known.architecture(net),)))
    assert ("model." in lines and "torch.nn." in lines) == (known.library == "torchvision")
    image = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.save(image, tmp_path / "gray.pt")
    with torch.no_grad():
        expected = net(image.repeat(1, 3, 1, 1)).flatten().tolist()
    assert fresh(f"{lines}\nmodel.eval()\n{ANSWERS}", tmp_path) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("head", ["cut", "exchanged"])
def test_a_head_that_is_missing_or_another_keeps_the_rest(head: str, tmp_path: Path):
    known = NETS[0]
    net = built(known, 7)
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    if head == "exchanged":
        state |= {"fc.weight": torch.rand(3, 9), "fc.bias": torch.rand(3), "fc.0.weight": torch.rand(3)}
    torch.save(state, tmp_path / "a.pth")
    lines = loaded(tmp_path / "a.pth", tmp_path / "b.pth", Recognized("", "", head, (known.architecture(net),)), 4)
    check = "\nprint('answer', *model.state_dict()['layer4.1.bn2.running_var'].tolist(), *model.fc.weight.shape)"
    assert fresh(f"{lines}{check}", tmp_path) == pytest.approx([*state["layer4.1.bn2.running_var"].tolist(), 1000, 512])


def test_a_branch_that_was_added_is_left_out(tmp_path: Path):
    known = NETS[0]
    net = built(known, 7)
    state = net.state_dict() | {"ms.conv1.weight": torch.rand(8, 4, 3, 3), "ms.conv2.weight": torch.rand(8, 8, 3, 3)}
    torch.save(state, tmp_path / "a.pth")
    lines = loaded(tmp_path / "a.pth", tmp_path / "b.pth", Recognized("", "", "whole", (known.architecture(net),), "ms"))
    check = "\nprint('answer', *model.conv1.weight.shape)"
    assert fresh(f"{lines}{check}", tmp_path) == [64, 1, 7, 7]


def test_the_twin_of_torchvision_is_code_too(tmp_path: Path):
    timm, vision = NETS[0], NETS[3]
    net = built(timm, 7)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    fitting = (timm.architecture(net), vision.architecture(built(vision, 7)))
    lines = loaded(tmp_path / "a.pth", tmp_path / "b.pth", Recognized("", "", "whole", fitting))
    (twin,) = [line for line in lines.splitlines() if line.startswith("# or torchvision's: ")]
    code = [
        "import torch",
        twin.partition(": ")[2],
        lines.splitlines()[-1],
        "print('answer', *model.conv1.weight.shape)",
    ]
    assert fresh("\n".join(code), tmp_path) == [64, 1, 7, 7]
