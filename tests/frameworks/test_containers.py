"""One object in both of torch's containers: the same report, the same `check`, the same conversion."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chkpt_channels import ChkptChannelsError, check, convert, inspect, verify


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {"conv1": nn.Conv2d(3, 8, 7, 2, bias=False), "bn1": nn.BatchNorm2d(8), "conv2": nn.Conv2d(8, 4, 3)}
    return nn.Sequential(OrderedDict(layers))


def contradicting() -> nn.Module:
    """A module whose in_channels is not its kernel's."""
    model = network()
    model.conv1.in_channels = 5
    return model


def grouped() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 6, 3, groups=3), body=nn.Conv2d(6, 4, 1)))


def training() -> dict[str, Any]:
    """As a script leaves it: model, moving average, optimizer, hyper-parameters."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    arguments = argparse.Namespace(in_chans=3, lr=0.1)
    return {"state_dict": state, "ema": dict(state), "optimizer": optimizer.state_dict(), "hyper_parameters": vars(arguments)}


def quantized() -> dict[str, torch.Tensor]:
    kernel = torch.quantize_per_tensor(torch.rand(8, 3, 5, 5), 0.01, 3, torch.qint8)
    return {"conv1.weight": kernel, "conv2.weight": torch.rand(4, 8, 3, 3)}


OBJECTS: dict[str, Callable[[], Any]] = {
    "a state dict": lambda: network().state_dict(),
    "a module": network,
    "a module that contradicts itself": contradicting,
    "a grouped module": grouped,
    "a training checkpoint": training,
    "a quantized kernel": quantized,
}


@pytest.fixture(params=OBJECTS)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    saved = OBJECTS[request.param]()
    paths = tmp_path / "zip" / "model.pth", tmp_path / "legacy" / "model.pth"
    for path, zipped in zip(paths, (True, False), strict=True):
        path.parent.mkdir()
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    return paths


def answer(step: Callable[[], Any], folder: Path) -> Any:
    """What a step says, or refuses with, but for what the container alone decides: its name, and how many bytes it takes."""
    try:
        record = {key: value for key, value in step().result().items() if key not in ("input", "output")}
    except ChkptChannelsError as error:
        record = {"code": error.code, "what": error.what, "where": error.where, "candidates": error.candidates}
    return str(record).replace(str(folder), "")


@pytest.mark.parametrize("to", [1, 4])
def test_both_containers_say_and_do_the_same(files: tuple[Path, Path], to: int):
    answers = []
    for path in files:
        out = path.with_name("out.pth")
        steps: dict[str, Callable[[], Any]] = {
            "inspect": partial(inspect, path),
            "check": partial(check, path),
            "expect": partial(check, path, expect=3),
            "convert": partial(convert, path, out, to=to),
            "verify": partial(verify, path, out, to=to),
            "check after": partial(check, out, expect=to),
        }
        answers.append({name: answer(step, path.parent) for name, step in steps.items()})
    assert answers[0] == answers[1]
    assert "first_convs" in answers[0]["inspect"]


def test_a_count_that_is_not_the_kernel_s_is_told_of_both(tmp_path: Path):
    """The old format was passed over once."""
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save(contradicting(), path, _use_new_zipfile_serialization=zipped)
        (mismatch,) = check(path).mismatches
        assert (mismatch.where, mismatch.found, mismatch.expected) == ("conv1.in_channels", 5, 3)
