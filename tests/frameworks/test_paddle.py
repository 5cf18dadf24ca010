"""Paddle loads what was converted of its files, and answers as before. It needs an environment of its own: `make test-paddle`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason="Paddle is not in this environment")

from paddle.vision.models import resnet18  # noqa: E402

from chkpt_channels import UnsupportedError, convert, verify  # noqa: E402

EXACT = 1e-5
"""Of the largest answer."""


def network(channels: int = 3) -> Any:
    """ResNet-18, with another first convolution where it takes no colors."""
    net = resnet18(num_classes=10)
    if channels != 3:
        net.conv1 = paddle.nn.Conv2D(channels, 64, 7, stride=2, padding=3, bias_attr=False)
    net.eval()
    return net


def trained(seed: int = 0) -> Any:
    """Weights and running statistics that are not the first ones."""
    paddle.seed(seed)
    net = network()
    state = {key: value + 0.05 * paddle.rand(value.shape) for key, value in net.state_dict().items()}
    net.set_state_dict(state)
    return net


def image(channels: int = 1) -> Any:
    return paddle.to_tensor(np.random.default_rng(2).random((2, channels, 64, 64)).astype("float32"))


def distance(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_gray_image_gives_what_it_gave_stacked(protocol: int, tmp_path: Path):
    net, gray = trained(), network(1)
    paddle.save(net.state_dict(), str(tmp_path / "rgb.pdparams"), protocol=protocol)
    report = convert(tmp_path / "rgb.pdparams", tmp_path / "gray.pdparams", to="gray")
    assert (report.changed, report.warnings) == (("conv1.weight",), ())
    missing, unexpected = gray.set_state_dict(paddle.load(str(tmp_path / "gray.pdparams")))
    assert not missing
    assert not unexpected
    shown = image()
    assert distance(gray(shown), net(paddle.concat([shown] * 3, 1))) < EXACT
    assert verify(tmp_path / "rgb.pdparams", tmp_path / "gray.pdparams").ok


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_gray_network_takes_colors(protocol: int, tmp_path: Path):
    """An image without colors gives what it gave: luma's weights add up to one."""
    paddle.seed(1)
    gray, net = network(1), network()
    paddle.save(gray.state_dict(), str(tmp_path / "gray.pdparams"), protocol=protocol)
    convert(tmp_path / "gray.pdparams", tmp_path / "rgb.pdparams", to="rgb")
    net.set_state_dict(paddle.load(str(tmp_path / "rgb.pdparams")))
    shown = image()
    assert distance(net(paddle.concat([shown] * 3, 1)), gray(shown)) < EXACT


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_output_is_what_pickle_writes(protocol: int, tmp_path: Path):
    """paddle.save is pickle.dump of arrays and names."""
    paddle.save(trained().state_dict(), str(tmp_path / "a.pdparams"), protocol=protocol)
    convert(tmp_path / "a.pdparams", tmp_path / "b.pdparams", to="gray")
    before, after = ((tmp_path / f"{name}.pdparams").read_bytes() for name in "ab")
    assert before == pickle.dumps(pickle.loads(before), protocol)
    assert after == pickle.dumps(pickle.loads(after), protocol)


def training(kind: Any, path: Path, **words: Any) -> None:
    """A network and its optimizer after a step, in one file."""
    paddle.seed(0)
    net = network()
    optimizer = kind(parameters=net.parameters(), **words)
    net(image(3)).sum().backward()
    optimizer.step()
    paddle.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, str(path))


@pytest.mark.parametrize(
    ("kind", "slots"),
    [("Momentum", ["velocity"]), ("RMSProp", ["momentum", "mean_square", "mean_grad"]), ("Adagrad", ["moment"])],
)
def test_an_optimizer_beside_its_network_is_reset_and_goes_on(kind: str, slots: list[str], tmp_path: Path):
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(1e-4, 10)
    training(getattr(paddle.optimizer, kind), tmp_path / "a.pdparams", learning_rate=schedule)
    changed = convert(tmp_path / "a.pdparams", tmp_path / "b.pdparams", to="gray").changed
    assert changed[0] == "model/conv1.weight"
    assert [name.rpartition(".w_0_")[2].rpartition("_")[0] for name in changed[1:]] == slots
    state = paddle.load(str(tmp_path / "b.pdparams"))
    assert state["epoch"] == 3
    assert "LR_Scheduler" in state["optimizer"]
    gray = network(1)
    gray.set_state_dict(state["model"])
    moments = [value for key, value in state["optimizer"].items() if tuple(getattr(value, "shape", ())) == (64, 1, 7, 7)]
    assert len(moments) == len(slots)
    assert not any(bool((moment != 0).any()) for moment in moments)


def test_state_of_adam_is_dropped_where_that_is_asked_for(tmp_path: Path):
    training(paddle.optimizer.Adam, tmp_path / "a.pdparams")
    with pytest.raises(UnsupportedError, match="which cannot be reset"):
        convert(tmp_path / "a.pdparams", tmp_path / "b.pdparams", to="gray")
    convert(tmp_path / "a.pdparams", tmp_path / "b.pdparams", to="gray", optimizer="drop")
    before, after = (paddle.load(str(tmp_path / f"{name}.pdparams"))["optimizer"] for name in "ab")
    gone = before.keys() - after.keys()
    assert {tuple(before[key].shape) for key in gone} == {(64, 3, 7, 7), (1,)}
    assert len(gone) == 4


def test_an_optimizer_in_a_file_of_its_own_is_copied_and_loads(tmp_path: Path):
    net, folder = trained(), tmp_path / "a"
    optimizer = paddle.optimizer.Momentum(parameters=net.parameters())
    net(image(3)).sum().backward()
    optimizer.step()
    paddle.save(net.state_dict(), str(folder / "net.pdparams"))
    paddle.save(optimizer.state_dict(), str(folder / "net.pdopt"))
    report = convert(folder, tmp_path / "b", to="gray")
    assert "stale_optimizer" in {warning.code for warning in report.warnings}
    assert (tmp_path / "b" / "net.pdopt").read_bytes() == (folder / "net.pdopt").read_bytes()
    assert paddle.load(str(tmp_path / "b" / "net.pdopt")).keys() == optimizer.state_dict().keys()
    gray = network(1)
    missing, unexpected = gray.set_state_dict(paddle.load(str(tmp_path / "b" / "net.pdparams")))
    assert not missing
    assert not unexpected
