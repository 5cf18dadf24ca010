"""Normalization through the whole flow: real files, the command line, and what a training script left beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chkpt_channels import UnsupportedError, convert, verify
from tests.api.test_verify import write
from tests.cli.test_app import run
from tests.discovery.test_bias_target import TAKEN
from tests.support.builders import Call, Global, conv, floats, torch_zip
from tests.support.files import FIXTURES, contents

TORCH = FIXTURES / "torch_zip"
HYPER = {"lightning.ckpt": "hyper_parameters/in_chans", "training.ckpt": "args/in_chans"}


@pytest.mark.parametrize(("name", "where"), HYPER.items())
def test_hyper_parameters_are_told_of_and_set(name: str, where: str, tmp_path: Path):
    left, set_ = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    report = convert(TORCH / name, left, to=1)
    told = [n.message for n in report.warnings if n.code == "hyper_parameters"]
    assert told == [f"{where} = 3 stays, and a script may build the network from it: --set-hparams sets it"]
    report = convert(TORCH / name, set_, to=1, set_hparams=True)
    assert [(d.where, d.before, d.after) for d in report.declarations] == [(where, 3, 1)]
    assert not [n for n in report.warnings if n.code == "hyper_parameters"]
    assert contents(left) == contents(set_)
    assert left.read_bytes() != set_.read_bytes()
    assert verify(TORCH / name, set_, to=1, set_hparams=True).ok
    assert [d.key for d in verify(TORCH / name, left, to=1, set_hparams=True).differences] == [where]
    back = tmp_path / "c.ckpt"
    convert(set_, back, to=3, set_hparams=True)
    assert [d.before for d in convert(back, to=1, set_hparams=True, dry_run=True).declarations] == [3]


def hyper(document: dict[str, Any], tmp_path: Path) -> list[str]:
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip({"state_dict": {"conv1.weight": conv()}, **document}, {"0": floats(108)}))
    return [d.where for d in convert(path, to=1, set_hparams=True, dry_run=True, layers=["conv1"]).declarations]


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"hyper_parameters": {"in_channels": 3}}, ["hyper_parameters/in_channels"]),
        ({"hyper_parameters": {"model": {"encoder": {"num_channels": 3}}}}, ["hyper_parameters/model/encoder/num_channels"]),
        ({"hyper_parameters": {"in_channels": 4, "in_chans": 1, "classes": 3, "lr": 3.0}}, []),
        ({"hyper_parameters": {"in_channels": True}}, []),
        ({"hyper_parameters": {"in_channels": "3"}}, []),
        ({"args": Call(Global("argparse", "Namespace"), (), {"in_chans": 3, "epochs": 3})}, ["args/in_chans"]),
        ({"optimizer": {"param_groups": [], "state": {}}, "epoch": 3}, []),
    ],
)
def test_which_numbers_are_hyper_parameters(document: dict[str, Any], found: list[str], tmp_path: Path):
    assert hyper(document, tmp_path) == found


def test_modules_are_no_hyper_parameters(tmp_path: Path):
    """The modules of a pickled network say their own channels: those behind the stem have as many, and stay."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "in_channels": 3}
    module = Call(Global("torch.nn.modules.conv", "Conv2d"), (), state)
    assert hyper({"net": module}, tmp_path) == []


def test_the_command_line_from_report_to_verdict(tmp_path: Path):
    write(tmp_path / "a.safetensors", TAKEN["conv1, bn1"][0])
    words = ("--to", "gray", "--norm", "imagenet", "--report", "r.json", "-o", "b.safetensors")
    done = run("convert", "a.safetensors", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"also changed: bn1.running_mean" in done.stdout
    assert b"feed it Normalize(mean=[0.449], std=[0.226])\n" in done.stdout
    assert b"exact inside; the outer 1 pixel differs in its feature map by up to" in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    (result,) = report["results"]
    assert result["options"] == {"to": 1, "norm": "imagenet"}
    assert result["pipeline"] == {"mean": [pytest.approx(0.449)], "std": [pytest.approx(0.226)], "input_range": 1.0}
    assert run("verify", "a.safetensors", "b.safetensors", "--report", "r.json", cwd=tmp_path).returncode == 0
    assert run("verify", "a.safetensors", "b.safetensors", "--to", "gray", cwd=tmp_path).returncode == 1
    done = run("verify", "a.safetensors", "b.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stdout.decode().partition(":")[0]) == (0, "identical under --norm imagenet")
    assert run("convert", "a.safetensors", "--to", "gray", "--check", "-o", "b.safetensors", cwd=tmp_path).returncode == 1
    assert run("verify", "a.safetensors", "b.safetensors", "--report", "a.safetensors", cwd=tmp_path).returncode == 3
    (tmp_path / "r.json").write_text('{"results": [{"options": {"foo": 1}}]}')
    assert run("verify", "a.safetensors", "b.safetensors", "--report", "r.json", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("--norm", "imagenet"), "as the options have it, the network was trained on values of −2.1 to 2.6"),
        (("--norm", "caffe"), "feed it images in 0..255 as they are"),
        (("--norm", "none"), "feed it images in 0..1 as they are"),
        (("--norm", "imagenet", "--input-range", "255"), "feed it images in 0..255 as they are"),
        (
            ("--norm", "imagenet", "--input-range", "255", "--new-mean", "0.5"),
            "feed it Normalize(mean=[127.5], std=[1]) on images in 0..255",
        ),
    ],
)
def test_what_is_to_feed_the_result(words: tuple[str, ...], note: str, tmp_path: Path):
    write(tmp_path / "a.safetensors", TAKEN["conv1, bn1"][0])
    done = run("convert", "a.safetensors", "--to", "gray", *words, cwd=tmp_path)
    assert note in done.stdout.decode()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--norm", "auto"), 4, "beside it states mean and std"),
        (("--norm", "foo"), 2, "--norm is one of imagenet"),
        (("--mean", "1,0.5"), 2, "--mean has 2 values"),
        (("--norm", "imagenet", "--report", "r.txt"), 2, "--report must name a .json file"),
        (("--norm", "imagenet", "--report", "no/r.json"), 5, "no"),
    ],
)
def test_refusals_write_nothing(words: tuple[str, ...], code: int, message: str, tmp_path: Path):
    write(tmp_path / "a.safetensors", TAKEN["conv1, bn1"][0])
    done = run("convert", "a.safetensors", "--to", "gray", *words, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_dry_run_refuses_what_could_not_be_written(tmp_path: Path):
    named = {"stem.weight": (8, 3, 3, 3), "stem.gain": (8, 1, 1, 1), "stem.bias": (8,), "conv2.weight": (8, 8, 3, 3)}
    path = write(tmp_path / "a.safetensors", {n: _random(s) for n, s in named.items()})
    for words in ({"to": 1, "luma": "bt709"}, {"to": 4}):
        with pytest.raises(UnsupportedError, match="would get a mean, which standardizing removes again"):
            convert(path, dry_run=True, **words)
    assert convert(path, to=1, dry_run=True).changed == ("stem.weight", "stem.gain")


def _random(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.random.default_rng(0).normal(size=shape).astype("<f4")


def test_a_pipeline_is_not_lost_to_the_graph():
    """Where the graph could make three channels of one, a pipeline still goes into the kernel."""
    folded = []
    for path in (FIXTURES / "onnx").glob("*.onnx"):
        try:
            if convert(path, to=1, dry_run=True).kernels[0].method in ("broadcast", "stack"):
                folded.append(convert(path, to=1, norm="imagenet", dry_run=True))
        except UnsupportedError:
            continue
    assert folded
    assert all(report.kernels[0].method in ("sum", "adapter") and report.kernels[0].offset for report in folded)
