"""A converted training checkpoint resumes: networks, EMA copy and optimizer load, and training goes on with gray images."""

import argparse
import contextlib
import os

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from chkpt_channels import UnsupportedError, convert, verify
from fixtures.generate.torch_networks import resnet
from tests.frameworks.oracle import FORMATS, LEGACY, ZIP, ZIP4, assert_same, load

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05),
    "adamw-amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True, foreach=False),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
}
RUNS = [
    *[pytest.param(name, form, id=f"{name}-{form}") for name in ("adamw", "sgd-momentum") for form in (ZIP, ZIP4, LEGACY)],
    *[pytest.param(name, ZIP, id=name) for name in ("adamw-amsgrad", "rmsprop")],
]


class Run:
    """A training run: a network as DistributedDataParallel wraps it, its EMA, an optimizer over two parameter groups."""

    def __init__(self, optimizer, channels):
        self.net = resnet(channels, width=6)
        self.parallel = nn.parallel.DistributedDataParallel(self.net)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        groups = [{"params": [p for p in self.net.parameters() if (p.ndim > 1) == many]} for many in (True, False)]
        self.optimizer = OPTIMIZERS[optimizer](groups)
        self.channels = channels

    def train(self, steps):
        self.parallel.train()
        for _ in range(steps):
            self.optimizer.zero_grad()
            image = torch.randn(4, self.channels, 16, 16)
            loss = nn.functional.cross_entropy(self.parallel(image), torch.randint(5, (4,)))
            loss.backward()
            self.optimizer.step()
            self.ema.update_parameters(self.net)
            assert torch.isfinite(loss)
        return self

    def checkpoint(self):
        return {
            "epoch": 7,
            "model": self.parallel.state_dict(),
            "model_ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "args": argparse.Namespace(arch="resnet", lr=1e-3, resume="", milestones=[30, 60]),
        }

    def resume(self, checkpoint):
        self.parallel.load_state_dict(checkpoint["model"], strict=True)
        self.ema.load_state_dict(checkpoint["model_ema"], strict=True)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        return self


@pytest.fixture(autouse=True, scope="module")
def process_group():
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def converted(folder, obj, form, **options):
    original = form.save(obj, folder / "last.pth")
    report = convert(original, folder / "gray.pth", "gray", **options)
    assert verify(original, folder / "gray.pth", **options).ok
    return report, load(folder / "gray.pth")


def without_kernel(checkpoint):
    """The checkpoint less all that belongs to the first kernel, which is the optimizer's parameter 0."""
    kernels = ("module.conv1.weight",)
    models = {name: {k: v for k, v in checkpoint[name].items() if k not in kernels} for name in ("model", "model_ema")}
    optimizer = checkpoint["optimizer"]
    rest = {k: v for k, v in optimizer["state"].items() if k != 0}
    return {**checkpoint, **models, "optimizer": {**optimizer, "state": rest}}


@pytest.mark.parametrize(("optimizer", "form"), RUNS)
def test_training_resumes_with_the_kernels_state_reset(tmp_path, optimizer, form):
    original = Run(optimizer, 3).train(3).checkpoint()
    report, gray = converted(tmp_path, original, form)
    assert_same(without_kernel(gray), without_kernel(original))
    kernel, old = gray["optimizer"]["state"][0], original["optimizer"]["state"][0]
    assert list(kernel) == list(old)
    for slot, value in kernel.items():
        assert tuple(value.shape) == (() if slot == "step" else (6, 1, 7, 7))
        assert value.dtype == old[slot].dtype
        assert not value.any(), slot
    assert set(report.changed) > {f"optimizer/state/0/{slot}" for slot in kernel}
    resumed = Run(optimizer, 1).resume(gray)
    before = resumed.net.conv1.weight.detach().clone()
    torch.testing.assert_close(before, original["model"]["module.conv1.weight"].sum(1, keepdim=True))
    resumed.train(2)
    steps = [state["step"] for state in resumed.optimizer.state_dict()["state"].values() if "step" in state]
    assert not steps or steps == [2] + [5] * (len(steps) - 1)
    assert not torch.equal(resumed.net.conv1.weight, before)


@pytest.mark.parametrize(("optimizer", "form"), RUNS)
def test_training_resumes_with_the_kernels_state_dropped(tmp_path, optimizer, form):
    original = Run(optimizer, 3).train(3).checkpoint()
    _, gray = converted(tmp_path, original, form, optimizer="drop")
    assert 0 not in gray["optimizer"]["state"]
    assert_same(without_kernel(gray), without_kernel(original))
    resumed = Run(optimizer, 1).resume(gray).train(2)
    assert 0 in resumed.optimizer.state_dict()["state"]


@pytest.mark.parametrize("how", ["reset", "drop"])
@pytest.mark.parametrize("first", ["epoch", "model", "optimizer", "args"])
@pytest.mark.parametrize("form", [ZIP, ZIP4, LEGACY], ids=str)
def test_the_order_of_a_checkpoint_does_not_matter(tmp_path, monkeypatch, form, first, how):
    """Whatever is pickled first is where the memo is filled; and torch computes offsets from the storage with key 0."""
    original = Run("adamw", 3).train(1).checkpoint()
    original = {first: original.pop(first), **original}
    if (first, how) == ("optimizer", "drop") and form is not LEGACY:
        with pytest.raises(UnsupportedError, match="owns the archive's first storage"):
            converted(tmp_path, original, form, optimizer=how)
        return
    _, gray = converted(tmp_path, original, form, optimizer=how)
    assert_same(without_kernel(gray), without_kernel(original))
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    assert_same(load(tmp_path / "gray.pth"), gray)
    safe = torch.serialization.safe_globals([argparse.Namespace])
    with safe if form.protocol == 2 else contextlib.nullcontext():
        assert_same(load(tmp_path / "gray.pth", weights_only=form.protocol == 2), gray)


@pytest.mark.parametrize("how", ["reset", "drop"])
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_steps_that_are_plain_numbers(tmp_path, form, how):
    """As optimizers kept them before torch 1.12."""
    original = Run("adamw", 3).train(1).checkpoint()
    for state in original["optimizer"]["state"].values():
        state["step"] = 300
    _, gray = converted(tmp_path, original, form, optimizer=how)
    steps = {parameter: state["step"] for parameter, state in gray["optimizer"]["state"].items()}
    assert steps == {
        parameter: 300 if parameter else 0 for parameter in original["optimizer"]["state"] if parameter or how == "reset"
    }


def test_an_optimizer_alone_is_refused(tmp_path):
    """Without the network beside it nothing says which state belongs to a kernel."""
    state = Run("adamw", 3).train(1).checkpoint()["optimizer"]
    with pytest.raises(UnsupportedError, match="convolution"):
        convert(ZIP.save(state, tmp_path / "optimizer.pth"), tmp_path / "gray.pth", "gray")
    assert not (tmp_path / "gray.pth").exists()
