"""The lines that load an output, for records of every kind: what is loaded, times what is built."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels.api.output.load_lines import load_lines
from chkpt_channels.api.report import KernelReport
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownStem, Recognized
from chkpt_channels.formats.base import Loading, NamedNetwork

F32 = BY_NAME["F32"]
STEM = KnownStem("conv1.weight", "OIHW", "Conv2d", (2, 2), (3, 3), (1, 1))
TIMM = Architecture(
    "timm", "resnet50", (STEM,), ("model = timm.create_model('resnet50', in_chans={channels}, num_classes={classes})",)
)
TIMM = TIMM._replace(classes=("fc.weight", 1000), head="fc.weight")
BLUR = TIMM._replace(name="resnetblur50")
VISION = Architecture("torchvision", "resnet50", (STEM,), ("model = torchvision.models.resnet50(num_classes={classes})",))
VISION = VISION._replace(classes=("fc.weight", 1000), head="fc.weight")
CONV1 = "model.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)"
STATE = Loading(("import torch",), state="torch.load('x.pth', weights_only=True)")


def tensors(prefix: str = "", group: str = "", classes: int = 10, **others: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (classes, 2048), **others}
    home = f"{group}/" if group else ""
    return {f"{home}{prefix}{key}": Tensor(f"{home}{prefix}{key}", F32, shape, group) for key, shape in shapes.items()}


def kernel(name: str = "conv1.weight", after: tuple[int, ...] = (64, 1, 7, 7), **changes: Any) -> KernelReport:
    tensor = Tensor(name, F32, changes.pop("before", (64, 3, 7, 7)))
    return KernelReport(FirstConv(tensor, Layout("OIHW"), 3, "shapes"), after, "sum", **changes)


def recognized(*architectures: Architecture, prefix: str = "", group: str = "", head: str = "whole") -> Recognized:
    return Recognized(group, prefix, head, architectures)


def lines(known: Recognized | None = None, loading: Loading = STATE, **changes: Any) -> list[str]:
    given = {"tensors": tensors(), "kernels": [kernel()], "channels": (3, 1), **changes}
    return list(load_lines(loading, known, **given).lines)


def test_an_argument_counts_the_channels_and_the_file_the_classes():
    assert lines(recognized(TIMM)) == [
        "import timm",
        "import torch",
        "model = timm.create_model('resnet50', in_chans=1, num_classes=10)",
        "model.load_state_dict(torch.load('x.pth', weights_only=True))",
    ]


def test_without_an_argument_the_first_layer_is_replaced():
    assert lines(recognized(VISION)) == [
        "import torch",
        "import torchvision",
        "model = torchvision.models.resnet50(num_classes=10)",
        CONV1,
        "model.load_state_dict(torch.load('x.pth', weights_only=True))",
    ]


def test_nothing_is_replaced_where_nothing_changed():
    swapped = [kernel(after=(64, 3, 7, 7))]
    assert not any("conv1" in line for line in lines(recognized(VISION), kernels=swapped, channels=(3, 3)))
    assert any(
        "Conv2d(4, 64" in line for line in lines(recognized(VISION), kernels=[kernel(after=(64, 4, 7, 7))], channels=(4, 4))
    )


def test_imports_of_the_lines_are_taken():
    own = VISION._replace(lines=("from torchvision.models import resnet50", "model = resnet50()"))
    assert lines(recognized(own))[:3] == ["import torch", "from torchvision.models import resnet50", "model = resnet50()"]


def test_others_that_fit_are_named_and_torchvisions_twin_is_printed():
    found = lines(recognized(TIMM, BLUR, VISION, BLUR._replace(library="other")))
    assert found[3] == f"# or torchvision's: import torchvision; {VISION.lines[0].replace('{classes}', '10')}; {CONV1}"
    assert found[4] == "# or resnetblur50 or other's resnetblur50: the file does not say; take the one it was made with"
    many = [BLUR._replace(name=f"n{k}") for k in range(12)]
    assert "n7 or 4 more: the file" in lines(recognized(TIMM, *many))[3]


def test_what_the_twins_lines_take_is_imported():
    safe = Loading(("import safetensors.torch",), state="safetensors.torch.load_file('x.safetensors')")
    assert lines(recognized(TIMM, VISION), safe)[:3] == ["import safetensors.torch", "import timm", "import torch"]
    assert "import torch" not in lines(recognized(TIMM, BLUR), safe)


def test_names_of_a_prefix_lose_it_and_others_are_left_out():
    known = recognized(TIMM, prefix="module.", group="state_dict")
    loading = STATE._replace(state=STATE.state + "['state_dict']", group="state_dict")
    inside = tensors("module.", "state_dict")
    strip = "key.removeprefix('module.'): value for key, value in state.items()"
    assert lines(known, loading, tensors=inside, kernels=[kernel("state_dict/module.conv1.weight")])[-3:] == [
        "state = torch.load('x.pth', weights_only=True)['state_dict']",
        f"state = {{{strip}}}",
        "model.load_state_dict(state)",
    ]
    beside = inside | {"state_dict/loss.weight": Tensor("state_dict/loss.weight", F32, (1,), "state_dict")}
    assert f"state = {{{strip} if key.startswith('module.')}}" in lines(known, loading, tensors=beside)


@pytest.mark.parametrize(("head", "words"), [("cut", "has no last layer"), ("exchanged", "has another last layer")])
def test_a_head_that_is_not_the_architectures_is_left(head: str, words: str):
    found = lines(recognized(TIMM, head=head))
    assert "num_classes=1000" in found[2]
    assert found[-2:] == [
        f"# the file {words}: that of model, fc, keeps its random weights",
        "model.load_state_dict(state, strict=False)",
    ]
    left = "state = {key: value for key, value in state.items() if key.partition('.')[0] != 'fc'}"
    assert (left in found) == (head == "exchanged")


def test_a_branch_that_the_architecture_has_not_is_left_out():
    assert lines(recognized(TIMM)._replace(other_child="ms\n"))[-4:] == [
        "state = torch.load('x.pth', weights_only=True)",
        "state = {key: value for key, value in state.items() if key.partition('.')[0] != 'ms\\n'}",
        "# the file holds ms\\n too, which this network has not",
        "model.load_state_dict(state)",
    ]


def test_a_head_whose_name_is_not_known():
    found = lines(recognized(TIMM._replace(classes=None, head="", lines=("model = timm.f({channels})",)), head="exchanged"))
    assert found[-2:] == [
        "# the file has another last layer: that of model keeps its random weights",
        "model.load_state_dict(state, strict=False)",
    ]


LAYERS: dict[str, tuple[KnownStem, tuple[int, ...], str]] = {
    "nested": (STEM._replace(key="features.0.0.weight"), (64, 1, 7, 7), CONV1.replace(".conv1", ".features[0][0]")),
    "odd name": (
        STEM._replace(key="a.x-y.weight"),
        (64, 1, 7, 7),
        CONV1.replace("model.conv1", "model.get_submodule('a')._modules['x-y']"),
    ),
    "bias": (
        STEM._replace(bias=True, stride=(1, 1), padding=(0, 0)),
        (8, 1, 3, 5),
        "model.conv1 = torch.nn.Conv2d(1, 8, kernel_size=(3, 5))",
    ),
    "word": (
        STEM._replace(padding="same", stride=(1, 2), dilation=(2, 2)),
        (8, 1, 3, 3),
        "model.conv1 = torch.nn.Conv2d(1, 8, kernel_size=3, stride=(1, 2), padding='same', dilation=2, bias=False)",
    ),
    "volume": (
        STEM._replace(kind="Conv3d", stride=(1, 1, 1), padding=(1, 1, 1), dilation=(1, 1, 1)),
        (8, 1, 3, 3, 3),
        "model.conv1 = torch.nn.Conv3d(1, 8, kernel_size=3, padding=1, bias=False)",
    ),
    "linear": (
        STEM._replace(kind="Linear", stride=(), padding=(), bias=True),
        (64, 256),
        "model.conv1 = torch.nn.Linear(256, 64)",
    ),
    "another class": (
        STEM._replace(kind="timm.layers.StdConv2d"),
        (64, 1, 7, 7),
        "# conv1 of resnet50 is a timm.layers.StdConv2d: build that with 1 input channel and put it there",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_first_layer_is_built_from_its_stem_and_the_new_shape(name: str):
    stem, shape, expected = LAYERS[name]
    known = recognized(VISION._replace(stems=(stem,)))
    assert lines(known, kernels=[kernel(stem.key, shape)])[3] == expected


def test_a_layer_that_stays_grouped():
    stem = STEM._replace(stride=(1, 1), padding=(0, 0))
    found = lines(recognized(VISION._replace(stems=(stem,))), kernels=[kernel(after=(8, 1, 3, 3))], channels=(3, 4))
    assert "model.conv1 = torch.nn.Conv2d(4, 8, kernel_size=3, groups=4, bias=False)" in found


def test_where_nothing_is_known_one_sentence_says_what_is_to_be_built():
    assert lines() == [
        "import torch",
        "# model: the network that was trained, built for 1 input channel in place of 3: "
        "conv1.weight has the shape [64, 1, 7, 7] now",
        "model.load_state_dict(torch.load('x.pth', weights_only=True))",
    ]
    assert "built for 4 input channels\n" in "\n".join(lines(channels=(4, 4), kernels=[]))


def test_wrappers_are_stripped_without_a_catalogue_too():
    found = lines(tensors=tensors("module._orig_mod."))
    assert found[-2:] == [
        "state = {key.removeprefix('module._orig_mod.'): value for key, value in state.items()}",
        "model.load_state_dict(state)",
    ]
    assert lines(tensors=tensors("model."))[-1] == "model.load_state_dict(torch.load('x.pth', weights_only=True))"


def test_what_is_whole_is_loaded_by_its_statement():
    whole = Loading(("import onnxruntime",), "session = f()", remark="mind the gap")
    assert lines(None, whole) == ["import onnxruntime", "# mind the gap", "session = f()"]
    weights = Loading((), "model.load_weights('x')", needs_model=True, model="the network of these weights")
    assert lines(None, weights, kernels=[]) == [
        "# model: the network of these weights, built for 1 input channel in place of 3",
        "model.load_weights('x')",
    ]


def test_a_name_from_the_file_cannot_end_a_comment():
    odd = kernel("x\nimport os")
    assert not any("\n" in line for line in lines(kernels=[odd], loading=STATE._replace(model="a")))


def test_the_network_is_told_by_the_file_or_by_the_catalogue():
    found = load_lines(STATE, recognized(TIMM, BLUR, VISION), tensors(), [kernel()], (3, 1)).network
    assert found == NamedNetwork("timm", ("resnet50", "resnetblur50", "torchvision.resnet50"), "catalogue")
    own = NamedNetwork("ultralytics", ("DetectionModel",), "object")
    assert load_lines(Loading(statement="x", network=own), recognized(TIMM), {}, [], (3, 1)).network == own
    assert load_lines(STATE, None, {}, [], (3, 1)).network is None


def test_what_else_loading_takes_is_said_of_known_networks_too():
    assert lines(recognized(TIMM), STATE._replace(remark="mind the gap"))[2] == "# mind the gap"
