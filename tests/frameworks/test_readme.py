"""The report in the README and the table of docs/loading.md: what they say to run is run, the Python that loads the result is
executed, and the model that this gives makes of a gray image what the original makes of the image in three channels."""

import os
import re
import shlex
from types import SimpleNamespace

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch
import transformers
from safetensors.torch import save_file

from chkpt_channels.cli.app import run
from fixtures.generate.torch_networks import resnet
from tests.frameworks.test_folders import CASES, realistic
from tests.support.documents import DOCUMENTS, blocks
from tests.support.report_docs import without_rounding

SIDE = 64
SECONDS = re.compile(r"\d+\.\d s\b")


def rows() -> dict[str, tuple[str, str]]:
    """What one has: the command, and the lines of Python."""
    table = DOCUMENTS["docs/loading.md"].partition("| you have | you run | you load with |\n|---|---|---|\n")[2]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.partition("\n\n")[0].splitlines()]
    return {have: (command.strip("`"), "\n".join(re.findall("`([^`]+)`", lines))) for have, command, lines in cells}


def torchvision():
    """A stand-in, whose first layer is like ResNet-50's."""
    model = realistic(resnet(3, 64))
    torch.save(model.state_dict(), "resnet50.pth")
    return {"torchvision": SimpleNamespace(models=SimpleNamespace(resnet50=lambda: resnet(3, 64)))}, model


def timm_file():
    timm = pytest.importorskip("timm")
    model = realistic(timm.create_model("resnet50"))
    save_file(model.state_dict(), "resnet50.safetensors")
    return {"timm": timm}, model


def timm_folder():
    timm = pytest.importorskip("timm")
    model = realistic(timm.create_model("resnet50"))
    timm.models.save_for_hf(model, "resnet50", safe_serialization=True)
    return {"timm": timm}, model


def a_transformer():
    model = CASES["resnet"].build()
    model.save_pretrained("resnet-50")
    return {"transformers": transformers}, model


def segmentation():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = realistic(smp.Unet("resnet18", encoder_weights=None))
    model.save_pretrained("unet")
    return {"segmentation_models_pytorch": smp}, model


def lightning():
    lit = pytest.importorskip("lightning")

    class LitModel(lit.LightningModule):
        def __init__(self, in_channels=3):
            super().__init__()
            self.save_hyperparameters()
            self.net = resnet(in_channels)

        def forward(self, pixels):
            return self.net(pixels)

    model = LitModel()
    realistic(model)
    trainer = lit.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint("epoch_12.ckpt")
    return {"LitModel": LitModel}, model


def keras_network(channels=3):
    import keras

    image = keras.Input((SIDE, SIDE, channels))
    features = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(features)))


def keras_model(name):
    def make():
        import keras

        model = keras_network()
        model.save_weights(name) if "weights" in name else model.save(name)
        small = SimpleNamespace(ResNet50=lambda weights, input_shape: keras_network(input_shape[-1]))
        return {"keras": SimpleNamespace(models=keras.models, applications=small)}, model

    return make


def onnx_model():
    runtime = pytest.importorskip("onnxruntime")
    model = realistic(resnet())
    axes = {"image": {0: "batch"}}
    image = torch.rand(1, 3, SIDE, SIDE)
    torch.onnx.export(model, (image,), "model.onnx", input_names=["image"], dynamic_axes=axes, dynamo=False)
    return {"onnxruntime": runtime}, model


MAKERS = {
    "torchvision, which has no `in_chans`": torchvision,
    "timm, a file": timm_file,
    "timm, a folder": timm_folder,
    "transformers": a_transformer,
    "segmentation-models": segmentation,
    "Lightning": lightning,
    "Keras, `.keras`": keras_model("model.keras"),
    "Keras, `.h5`": keras_model("model.h5"),
    "Keras, `.weights.h5`": keras_model("model.weights.h5"),
    "ONNX Runtime": onnx_model,
}


def output(model, pixels):
    """What a model of any library makes of images."""
    if hasattr(model, "get_inputs"):
        return torch.tensor(model.run(None, {"image": pixels.numpy()})[0])
    if not isinstance(model, torch.nn.Module) or type(model).__module__.startswith("keras"):
        return torch.tensor(model.predict(pixels.permute(0, 2, 3, 1).numpy(), verbose=0))
    with torch.no_grad():
        found = model.eval()(pixels)
    return getattr(found, "logits", found)


def answers_as(original, lines, scope):
    """What the lines load makes of gray images what the original makes of them stacked."""
    exec(lines, scope)
    pixels = torch.rand(2, 1, SIDE, SIDE)
    old = output(original, pixels.expand(-1, 3, -1, -1))
    assert (old[0] - old[1]).abs().max() > 1e-3 * old.abs().max()
    found = output(scope.get("model") or scope["session"], pixels)
    assert (old - found).abs().max() < 1e-5 * old.abs().max()


def test_every_row_is_known():
    assert rows().keys() == MAKERS.keys()


@pytest.mark.parametrize("have", MAKERS)
def test_the_lines_of_the_table(have, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, lines = rows()[have]
    scope, original = MAKERS[have]()
    program, *arguments = shlex.split(command)
    assert program == "chkpt-channels"
    assert run(arguments) == 0
    scope["torch"] = torch
    answers_as(original, lines, scope)


def test_the_report_of_the_readme(tmp_path, monkeypatch, capsys):
    """Of the ResNet-50 that torchvision saves. timm is what the report builds; torchvision's own line is a comment in it."""
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    [report] = [block.text for block in blocks(DOCUMENTS["README.md"]) if block.language == "console" and "✓" in block.text]
    command, _, shown = report.partition("\n")
    original = realistic(torchvision.models.resnet50())
    torch.save(original.state_dict(), "resnet50.pth")
    assert run(shlex.split(command)[2:]) == 0
    printed, shown = (SECONDS.sub("s", without_rounding(text)) for text in (capsys.readouterr().out, shown))
    assert printed == shown
    lines = shown.partition("  Load\n")[2]
    answers_as(original, lines, {})
    [twin] = re.findall(r"^# or torchvision's: (.+)$", lines, re.MULTILINE)
    answers_as(original, f"import torch\n{twin}\n{lines.splitlines()[-1]}", {})
