"""The normalization of configurations: the pipeline of --norm auto, and what verify makes of it. Hostile JSON is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import ChkptChannelsError, DamagedError, UnsupportedError, UsageError, convert, verify
from chkpt_channels.core.errors import Location
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownNorm, Recognized
from chkpt_channels.folders.config_files import ConfigReader, options_in_report
from chkpt_channels.folders.config_normalization import with_normalization
from chkpt_channels.transform.mixing.normalization import NORMS
from chkpt_channels.transform.options import Options, as_keywords, build_options
from tests.api.test_verify import write
from tests.discovery.test_bias_target import TAKEN

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
IMAGES = {"image_mean": MEAN, "image_std": STD}
PROCESSOR, CONFIG = "preprocessor_config.json", "config.json"
AUTO = build_options(1, norm="auto")


def beside(folder: Path, documents: dict[str, Any]) -> Path:
    for name, document in documents.items():
        (folder / name).write_text(document if isinstance(document, str) else json.dumps(document))
    return folder / "model.safetensors"


def resolved(options: Options, path: Path) -> Options:
    return with_normalization(options, ConfigReader().read(path.parent, strict=True), Location(str(path)))


@pytest.mark.parametrize(
    "documents",
    [
        {PROCESSOR: {**IMAGES, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "do_resize": False}},
        {PROCESSOR: {**IMAGES, "do_normalize": None}},
        {CONFIG: {"architecture": "resnet18", "pretrained_cfg": {"mean": MEAN, "std": STD, "first_conv": "conv1"}}},
        {CONFIG: {"mean": MEAN, "std": STD}},
        {PROCESSOR: {"feature_size": 1}, CONFIG: {"pretrained_cfg": {"mean": MEAN, "std": STD}}},
        {PROCESSOR: IMAGES, CONFIG: {"mean": [0.9] * 3, "std": [0.9] * 3}},
    ],
)
def test_what_is_read(documents: dict[str, Any], tmp_path: Path):
    norm = resolved(AUTO, beside(tmp_path, documents)).norm
    assert (norm.name, norm.mean, norm.std) == ("", tuple(MEAN), tuple(STD))


def test_what_is_asked_of_the_new_pipeline_stays(tmp_path: Path):
    asked = build_options(1, norm="auto", new_mean="0.7", input_range=255)
    norm = resolved(asked, beside(tmp_path, {PROCESSOR: IMAGES})).norm
    assert (norm.new_mean, norm.input_range) == ((0.7,), 255)


@pytest.mark.parametrize(
    ("documents", "kind", "words"),
    [
        ({}, UnsupportedError, "no preprocessor_config.json or config.json beside it states mean and std"),
        ({CONFIG: {"mean": MEAN}}, UnsupportedError, "states mean and std"),
        ({CONFIG: []}, UnsupportedError, "states mean and std"),
        ({CONFIG: {"mean": [[0.5]], "std": [1]}}, UnsupportedError, "states mean and std"),
        ({CONFIG: {"mean": [True] * 3, "std": STD}}, UnsupportedError, "states mean and std"),
        ({CONFIG: '{"mean": [NaN, 0, 0], "std": [1, 1, 1]}'}, DamagedError, "not a JSON number"),
        ({CONFIG: {"mean": [10**400], "std": [1]}}, DamagedError, "not a JSON number"),
        ({CONFIG: {"mean": MEAN, "std": [0.1, 0, 0.1]}}, UnsupportedError, "std is not positive"),
        ({CONFIG: {"mean": [123.7, 116.8, 103.9], "std": STD}}, UnsupportedError, "above 1.5: that is not for images in 0..1"),
        ({PROCESSOR: {**IMAGES, "do_normalize": False}}, UnsupportedError, "do_normalize is off"),
        ({PROCESSOR: {**IMAGES, "do_rescale": False}}, UnsupportedError, "do_rescale is off"),
        ({PROCESSOR: {**IMAGES, "do_flip_channel_order": True}}, UnsupportedError, "do_flip_channel_order is on"),
        ({PROCESSOR: {**IMAGES, "rescale_factor": 1 / 127.5}}, UnsupportedError, "rescale_factor is not 1/255"),
        ({PROCESSOR: '{"image_mean": 0, "image_std": 1, "rescale_factor": NaN}'}, DamagedError, "not a JSON number"),
        ({CONFIG: "{"}, DamagedError, "is not JSON"),
        ({CONFIG: "[" * 100_000}, DamagedError, "nested too deeply"),
        ({CONFIG: " " * (LIMITS.sidecar_bytes + 1)}, DamagedError, "has 8388609 bytes"),
    ],
)
def test_what_is_refused(documents: dict[str, Any], kind: type[ChkptChannelsError], words: str, tmp_path: Path):
    with pytest.raises(kind, match=words):
        resolved(AUTO, beside(tmp_path, documents))


ARCHITECTURE = Architecture("timm", "resnet50", (), ())
HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def recognized(*norms: KnownNorm, order: str = "rgb") -> Recognized:
    """Two architectures that fit, the second without pretrained weights."""
    return Recognized("", "", "whole", (ARCHITECTURE._replace(norms=norms, order=order), ARCHITECTURE))


def from_weights(known: Recognized | None, **words: Any) -> Options:
    return with_normalization(build_options(1, norm="auto", **words), [], Location("a.pth"), known)


def test_pretrained_weights_that_agree_say_it():
    options = from_weights(recognized(KnownNorm("a1", *IMAGENET), KnownNorm("a2", *IMAGENET)))
    assert (options.norm.mean, options.norm.std, options.rule.source) == (*IMAGENET, "rgb")
    caffe = NORMS["caffe"]
    options = from_weights(recognized(KnownNorm("x", caffe.mean[::-1], caffe.std, 255.0), order="bgr"))
    assert (options.norm.name, options.rule.source, options.norm.white) == ("caffe", "bgr", 255)
    assert as_keywords(options) == {"to": 1, "norm": "caffe"}
    options = from_weights(recognized(KnownNorm("x", (0.1, 0.2, 0.3), (51.0,) * 3, 255.0), order="bgr"))
    assert (options.norm.mean, options.norm.std, options.rule.source) == ((0.1, 0.2, 0.3), (0.2,) * 3, "bgr")
    assert as_keywords(options)["mean"] == [0.3, 0.2, 0.1]
    assert build_options(**as_keywords(options)) == options


def test_pretrained_weights_that_differ_are_listed():
    known = recognized(KnownNorm("a1", *IMAGENET), KnownNorm("in21k", *HALF), KnownNorm("b", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with pytest.raises(
        UnsupportedError, match=r"differ in mean and std: 0.485,0.456,0.406 and 0.229.* timm resnet50.a1; "
    ) as caught:
        from_weights(known)
    assert caught.value.hint == "--norm imagenet   or   --norm half   or   --mean 0.1,0.2,0.3 --std 0.4,0.5,0.6"
    for nothing in (None, recognized()):
        with pytest.raises(UnsupportedError, match="states mean and std"):
            from_weights(nothing)


def test_what_a_configuration_states_comes_before_the_catalogue(tmp_path: Path):
    beside(tmp_path, {PROCESSOR: IMAGES})
    configs = ConfigReader().read(tmp_path, strict=True)
    options = with_normalization(AUTO, configs, Location("a.pth"), recognized(KnownNorm("a1", *IMAGENET)))
    assert options.norm.mean == tuple(MEAN)


def test_a_config_that_is_no_text(tmp_path: Path):
    (tmp_path / CONFIG).write_bytes(b"\xff\xfe{}")
    with pytest.raises(DamagedError, match="is not UTF-8"):
        resolved(AUTO, tmp_path / "a.pth")


def test_standard_input_stands_beside_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beside(tmp_path, {CONFIG: {"mean": MEAN, "std": STD}})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="standard input and stores have none"):
        convert("-", "x.pth", norm="auto")


def test_auto_is_the_same_as_its_numbers(tmp_path: Path):
    path = write(beside(tmp_path, {CONFIG: {"mean": MEAN, "std": STD}}), TAKEN["conv1, bn1"][0])
    report = convert(path, tmp_path / "a.safetensors", norm="auto")
    convert(path, tmp_path / "b.safetensors", mean=MEAN, std=STD)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (report.options["mean"], report.options["std"]) == (MEAN, STD)
    assert "norm" not in report.options


PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"plus one": lambda a: a + 1, "zero": lambda a: a * 0}


@pytest.mark.parametrize("how", PARTS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conv1.weight", "is not the sum of the original"),
        ("bn1.running_mean", "the running mean differs from what the conversion writes"),
        ("bn1.running_var", "differs, though the conversion does not change it"),
    ],
)
def test_verify_says_which_part_is_wrong(name: str, words: str, how: str, tmp_path: Path):
    named = TAKEN["conv1, bn1"][0]
    before, after = write(tmp_path / "a.safetensors", named), tmp_path / "b.safetensors"
    report = convert(before, after, norm="imagenet")
    assert verify(before, after, norm="imagenet").ok
    assert not verify(before, after, "gray").ok
    assert verify(before, after).under == "--norm imagenet"
    right = {n: _load(after, n) for n in named}
    wrong = write(tmp_path / "c.safetensors", {**right, name: PARTS[how](right[name])})
    (tmp_path / "r.json").write_text(json.dumps({"results": [report.result()]}))
    found = verify(before, wrong, **{"to": None, **options_in_report(tmp_path / "r.json")})
    assert [d.key for d in found.differences] == [name]
    assert words in found.differences[0].message


def _load(path: Path, name: str) -> np.ndarray:
    from tests.support.files import opened

    with opened(path) as checkpoint:
        return checkpoint.load(name)


@pytest.mark.parametrize("part", ["conv0.bias", "bn_data.running_mean", "stem.gain"])
def test_verify_re_derives_every_part(part: str, tmp_path: Path):
    chance = np.random.default_rng(0)
    shapes = {"stem.weight": (8, 3, 3, 3), "stem.gain": (8, 1, 1, 1), "stem.bias": (8,), "conv2.weight": (8, 8, 3, 3)}
    if part != "stem.gain":
        shapes = {f"bn_data.{e}": (3,) for e in ("bias", "running_mean", "running_var", "weight")}
        shapes |= {"conv0.weight": (8, 3, 3, 3), "conv0.bias": (8,), "conv2.weight": (8, 8, 3, 3)}
    named = {n: chance.random(s).astype("<f4") for n, s in shapes.items()}
    before, after = write(tmp_path / "a.safetensors", named), tmp_path / "b.safetensors"
    convert(before, after)
    right = {n: _load(after, n) for n in named}
    assert verify(before, after).ok
    found = verify(before, write(tmp_path / "c.safetensors", {**right, part: right[part] + 1}))
    assert [d.key for d in found.differences] == [part]
    name = {"conv0.bias": "bias", "bn_data.running_mean": "statistics", "stem.gain": "gain"}[part]
    assert f"the {name} differs from what the conversion writes: largest difference 1" in found.differences[0].message
