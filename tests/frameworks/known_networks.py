"""Networks of the catalogue, saved as their libraries save them: the printed lines load the conversion, and it answers as the
original answers the mapped image.

    python -m tests.frameworks.known_networks [NAME ...]

tries all of them in both formats and directions, which takes half an hour. What is run of a report is its text, the lines under
"Load", in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from chkpt_channels import convert
from fixtures.catalogue.build import filled, run
from fixtures.catalogue.collect import recipes, torchvision_operators
from fixtures.catalogue.entry import Recipe
from tests.support import apart

OPERATORS = torchvision_operators()
TOLERANCE = 1e-4
"""Of the largest number in the answer."""


class Known(NamedTuple):
    """An architecture of a library, and the side of an image that it takes."""

    library: str
    name: str
    side: int = 64

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


TIMM = (
    *(
        "resnet18",
        "efficientnet_b0",
        "tf_efficientnet_lite0",
        "mobilenetv3_small_050",
        "mobilenetv2_035",
        "mnasnet_small",
        "regnetx_002",
    ),
    *(
        "regnety_002",
        "resnetv2_18",
        "resnest14d",
        "res2net50_14w_8s",
        "seresnet18",
        "ecaresnet26t",
        "skresnet18",
        "dpn48b",
        "densenet121",
    ),
    *(
        "dla34",
        "ghostnet_050",
        "hrnet_w18_small",
        "lcnet_035",
        "convnext_atto",
        "convnextv2_atto",
        "repvgg_a0",
        "vgg11_bn",
        "xception41",
    ),
    *("resnetblur50", "cs3darknet_focus_s", "hgnetv2_b0", "inception_v3"),
)
TIMM_224 = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "mixer_s32_224",
    "pit_ti_224",
    "levit_128s",
    "coat_tiny",
    "crossvit_tiny_240",
)
TORCHVISION = (
    *(
        "resnet18",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "densenet121",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
    ),
    *(
        "squeezenet1_0",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "resnet34",
        "efficientnet_b0",
        "regnet_y_400mf",
        "regnet_x_400mf",
    ),
    *("convnext_tiny", "vgg11"),
)
TRANSFORMERS = (
    *(
        "ViTForImageClassification",
        "DeiTForImageClassification",
        "ConvNextForImageClassification",
        "ResNetForImageClassification",
    ),
    *("MobileNetV2ForImageClassification", "SwinForImageClassification", "PvtForImageClassification"),
)
SMP = ("Unet/resnet18", "FPN/efficientnet-b0", "DeepLabV3Plus/mobilenet_v2", "MAnet/resnet18")
MONAI = ("DenseNet121/2d", "SegResNet/2d", "BasicUNet/2d")
DIFFUSERS = ("AutoencoderKL/2", "UNet2DModel/ddpm")
ALL = (
    *(Known("timm", name, 96) for name in TIMM),
    *(Known("timm", name, 240 if "240" in name else 224) for name in TIMM_224),
    *(Known("torchvision", name, 96) for name in TORCHVISION),
    *(Known("transformers", name, 224) for name in TRANSFORMERS),
    *(Known("segmentation_models_pytorch", name) for name in SMP),
    *(Known("monai", name) for name in MONAI),
    *(Known("diffusers", name, 32) for name in DIFFUSERS),
)
DRAWN = (
    *(Known("timm", "resnet18", 96), Known("timm", "efficientnet_b0", 96), Known("timm", "vit_tiny_patch16_224", 224)),
    *(Known("timm", "convnext_atto", 96), Known("timm", "mobilenetv3_small_050", 96), Known("torchvision", "mobilenet_v2", 96)),
    *(Known("torchvision", "squeezenet1_1", 96), Known("transformers", "MobileNetV2ForImageClassification", 224)),
    *(Known("segmentation_models_pytorch", "Unet/resnet18"), Known("monai", "DenseNet121/2d"), Known("monai", "SegResNet/2d")),
    Known("segmentation_models_pytorch", "DeepLabV3Plus/mobilenet_v2"),  # its encoder is not the child itself
)
"""Of these the tests run the lines."""

AFTER = """
import sys, torch
from tests.frameworks.known_networks import answer
model.eval()
torch.save(answer(model, torch.load(sys.argv[1])), sys.argv[2])
"""


def recipe_of(known: Known) -> Recipe:
    """How its library builds it."""
    return next(recipe for recipe in recipes([known.library]) if recipe.name == known.name)


def made(recipe: Recipe, channels: int) -> nn.Module:
    """The network with random weights and statistics that are no zeros and ones."""
    torch.manual_seed(0)
    model = run(filled(recipe.lines, channels, recipe.classes), "cpu")
    chance = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=chance)
            module.running_var.uniform_(0.5, 2, generator=chance)
    for parameter in model.parameters():
        if not parameter.any():  # a head that begins at zero answers with zeros, whatever it is asked
            nn.init.normal_(parameter, 0, 0.02, generator=chance)
    return model.eval()


def answer(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The first tensor that it answers with, whatever its library wraps around it."""
    with torch.no_grad():
        if hasattr(model, "encode") and type(model).__module__.startswith("diffusers"):
            found: Any = model.encode(image)
            found = getattr(found, "latent_dist", found)
            return found.mode() if hasattr(found, "mode") else found.latents
        found = model(image, 1) if hasattr(model, "time_proj") else model(image)
    while not isinstance(found, torch.Tensor):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found


def printed_lines(text: str) -> str:
    """The code under "Load" in a report."""
    return text[text.index("\n  Load\n") + len("\n  Load\n") :]


def tried(known: Known, ending: str, to: str, folder: Path) -> str:
    """What is wrong with the conversion of a network or with the lines that are printed for it, "" where nothing is."""
    recipe = recipe_of(known)
    model = made(recipe, 3)
    path, new = folder / f"net{ending}", folder / f"new{ending}"
    if ending == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    command = [sys.executable, "-m", "chkpt_channels", "convert", str(path), "--to", to, "-o", str(new)]
    report = subprocess.run(command, capture_output=True, text=True)
    if report.returncode:
        return f"exit {report.returncode}: {report.stderr[-300:]}"
    found = convert(path, folder / f"again{ending}", to, dry_run=True)
    named = found.network.names if found.network else ()
    own = known.name if found.network and found.network.library == known.library else f"{known.library}.{known.name}"
    if own not in named:
        return f"{own} is not among {named}"
    image = torch.randn(2, int(to) if to.isdigit() else 1, known.side, known.side, generator=torch.Generator().manual_seed(2))
    matrix = torch.tensor(next(k for k in found.kernels if k.matrix).matrix, dtype=torch.float32)
    expected = answer(model, torch.einsum("ij,bjhw->bihw", matrix, image))
    if known.name == named[0]:
        code, channels = printed_lines(report.stdout) + AFTER, None
    else:  # the lines build the first of those that fit: they have to load, and the true one has to answer
        if problem := run_apart(printed_lines(report.stdout), folder, image)[1]:
            return f"the lines: {problem}"
        code, channels = built_by_name(recipe, new, image.shape[1]) + AFTER, image.shape[1]
    got, problem = run_apart(code, folder, image)
    if got is None:
        return f"{'its own lines' if channels else 'the lines'}: {problem}"
    error = float((got - expected).abs().max() / expected.abs().max())
    return "" if error <= TOLERANCE else f"it answers otherwise: {error:.2g} of the largest number"


def built_by_name(recipe: Recipe, file: Path, channels: int) -> str:
    """The code that builds the true architecture, with the first conv as the file has it, and loads the file."""
    load = f"safetensors.torch.load_file({str(file)!r})" if file.suffix == ".safetensors" else f"torch.load({str(file)!r})"
    narrowed = "" if "{channels}" in "".join(recipe.lines) else f"model = narrow(model, {channels}).to_empty(device='cpu')"
    own = filled(recipe.lines, channels, recipe.classes)
    imports = "import torch, safetensors.torch\nfrom fixtures.catalogue.build import narrow"
    return f"{imports}\n{own}\n{narrowed}\nmodel.load_state_dict({load})\n"


def run_apart(code: str, folder: Path, image: torch.Tensor) -> tuple[torch.Tensor | None, str]:
    """The answer of the code in a process of its own, or what it says."""
    torch.save(image, folder / "image.pt")
    (folder / "answer.pt").unlink(missing_ok=True)
    done = apart.run_apart(code, folder, [str(folder / "image.pt"), str(folder / "answer.pt")])
    if done.code:
        return None, done.err[-500:]
    return (torch.load(folder / "answer.pt") if (folder / "answer.pt").exists() else None), ""


def main() -> int:
    """Every network in both formats and directions."""
    problems = count = 0
    for known in ALL:
        if sys.argv[1:] and str(known) not in sys.argv[1:]:
            continue
        for ending in (".pth", ".safetensors"):
            for to in ("gray", "4"):
                with tempfile.TemporaryDirectory() as folder:
                    problem = tried(known, ending, to, Path(folder))
                count += 1
                problems += bool(problem)
                if problem:
                    print(f"{known} {ending} {to}: {problem}", flush=True)
    print(f"{count} conversions of {len(ALL)} networks, {problems} problems")
    return problems > 0


if __name__ == "__main__":
    sys.exit(main())
