"""How torch loads what it saved: which part of the pickle, with whose code, onto which device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels.formats.base import Loading, NamedNetwork
from chkpt_channels.formats.torch.loading import TRUST
from tests.formats.torch.test_checkpoint import BUILDERS, RAW, Build, conv, opened
from tests.support.builders import Call, Global, Persistent, tensor
from tests.support.files import FIXTURES

LAYER = Call(Global("torch.nn.modules.conv", "Conv2d"), (), {"_modules": {}, "_parameters": {"weight": conv()}})


def network(module: str, name: str) -> Call:
    return Call(Global(module, name), (), {"_modules": {"conv1": LAYER}, "_parameters": {}})


def loading(build: Build, put: Callable[..., Path], value: Any, path: str = "x.pt", group: str | None = None) -> Loading:
    with opened(put(build(value, {"0": RAW}))) as checkpoint:
        return checkpoint.loading(path, group)


@BUILDERS
def test_a_state_dict_in_a_list_has_a_number(build: Build, put: Callable[..., Path]):
    value = {"nets": [{"w": conv()}, {"w": conv()}]}
    assert loading(build, put, value).state == "torch.load('x.pt', weights_only=True)['nets'][0]"
    assert loading(build, put, value, group="nets/1").state == "torch.load('x.pt', weights_only=True)['nets'][1]"


@BUILDERS
def test_the_group_that_is_asked_for(build: Build, put: Callable[..., Path]):
    found = loading(build, put, {"a": {"w": conv()}, "b": {"w": conv()}}, group="b")
    assert (found.state, found.group) == ("torch.load('x.pt', weights_only=True)['b']", "b")


@BUILDERS
@pytest.mark.parametrize(
    ("name", "path", "statement"),
    [
        ("DetectionModel", "x.pt", "model = YOLO('x.pt')"),
        ("RTDETRDetectionModel", "x.pt", "model = RTDETR('x.pt')"),
        ("DetectionModel", "x.pth", "model = torch.load('x.pth', weights_only=False)['ema']"),
    ],
)
def test_ultralytics_loads_its_own(build: Build, put: Callable[..., Path], name: str, path: str, statement: str):
    found = loading(build, put, {"epoch": 3, "ema": network("ultralytics.nn.tasks", name)}, path)
    assert found.statement == statement
    assert found.network == NamedNetwork("ultralytics", (name,), "object")
    assert found.remark.endswith(TRUST)
    assert (found.imports[0].startswith("from ultralytics import")) == ("torch" not in statement)


@BUILDERS
def test_whose_code_it_takes_is_said(build: Build, put: Callable[..., Path]):
    installed = loading(build, put, network("timm.models.resnet", "ResNet"))
    assert installed.remark == f"torch.load imports timm; {TRUST}"
    assert installed.network == NamedNetwork("timm", ("ResNet",), "object")
    own = loading(build, put, network("__main__", "Net\x1b"))
    assert own.remark == f"torch.load looks for Net\\x1b in __main__: define it first, as where the file was saved; {TRUST}"
    assert own.network is None
    assert loading(build, put, LAYER).remark == TRUST


@pytest.mark.parametrize("name", ["torch_zip/training.ckpt", "torch_zip/module.pth", "torch_legacy/module.pth"])
def test_of_what_comes_with_torch_or_python_only_the_danger_is_said(name: str):
    with opened(FIXTURES / name) as checkpoint:
        assert "weights_only=False" in (checkpoint.loading("x").state or checkpoint.loading("x").statement)
        assert checkpoint.loading("x").remark == TRUST


@BUILDERS
def test_an_object_that_pickle_2_reconstructs_has_its_class(build: Build, put: Callable[..., Path]):
    made = Call(Global("copy_reg", "_reconstructor"), (Global("nets", "Net"), Global("__builtin__", "object"), None))
    made = Call(made.function, made.arguments, {"_modules": {"conv1": LAYER}, "_parameters": {}})
    assert loading(build, put, made).network == NamedNetwork("nets", ("Net",), "object")


@BUILDERS
@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"pytorch-lightning_version": "2.5.0"}, "Lightning"),
        ({"meta": {"cfg": "model = dict()", "epoch": 3}}, "mmengine"),
        ({"meta": {"epoch": 3}}, ""),
    ],
)
def test_a_trainers_file_is_known_by_its_keys(build: Build, put: Callable[..., Path], extra: dict[str, Any], word: str):
    found = loading(build, put, {"state_dict": {"w": conv()}, **extra})
    assert found.remark.partition(" ")[0] == word
    assert found.state == "torch.load('x.pt', weights_only=True)['state_dict']"


@BUILDERS
@pytest.mark.parametrize(("device", "mapped"), [("cpu", False), ("cuda:0", True), ("mps", True)])
def test_storages_of_a_gpu_are_loaded_onto_the_cpu(build: Build, put: Callable[..., Path], device: str, mapped: bool):
    where = Persistent(("storage", Global("torch", "FloatStorage"), "0", device, 108))
    found = loading(build, put, {"w": tensor(where, (4, 3, 3, 3))})
    assert ("map_location='cpu'" in found.state) == mapped
