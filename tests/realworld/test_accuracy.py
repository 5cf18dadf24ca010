"""What conversions do to answers: EfficientNet-Lite0 on 20 labeled photographs of ImageNet, PP-OCRv4's detector on two pages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from chkpt_channels import convert
from tests.realworld.networks import NETWORKS, efficientnet
from tests.realworld.packages import TABLE, shipped
from tests.realworld.photographs import photograph

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
GRAY_MEAN, GRAY_STD = np.float32(0.449), np.float32(0.226)
TWO_IMAGES = 2
VIEWS = 4
"""Of each image: two crops, and both mirrored."""


def views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(colors, grays, labels) of 80 views in 0..1, four of an image, the first crop first."""
    colors, grays, labels = [], [], []
    for path in TABLE["foolbox"]["files"]:
        whole = Image.open(shipped("foolbox", path)).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)
        for left, top in ((16, 16), (0, 32)):
            crop = whole.crop((left, top, left + 224, top + 224))
            for view in (crop, crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                colors.append(np.asarray(view, np.float32) / 255)
                grays.append(np.asarray(view.convert("L"), np.float32)[..., None] / 255)
                labels.append(int(Path(path).stem.rpartition("_")[2]))
    return np.stack(colors), np.stack(grays), np.array(labels)


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return views()


@pytest.fixture(scope="module")
def shipped_network() -> Path:
    return NETWORKS["EfficientNet-Lite0"].file


@pytest.fixture(scope="module")
def for_imagenet(shipped_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network, which was trained on (x - 0.5) / 0.5, as if it had been trained on ImageNet's mean and std."""
    state = torch.load(shipped_network, weights_only=True)
    kernel = state["_conv_stem.weight"].double()
    shift = (torch.tensor(MEAN).double() - 0.5) / 0.5
    state["_bn0.running_mean"] = (state["_bn0.running_mean"].double() - (kernel.sum((2, 3)) * shift).sum(1)).float()
    state["_conv_stem.weight"] = (kernel * (torch.tensor(STD).double() / 0.5).view(1, 3, 1, 1)).float()
    path = tmp_path_factory.mktemp("network") / "for_imagenet.pth"
    torch.save(state, path)
    return path


class Row(NamedTuple):
    """The numbers of a row: answers that are right of 80 and of the first crops of 20, and how many of 80 are the reference's."""

    right: int
    first: int
    same: int


def judged(name: str, logits: np.ndarray, reference: np.ndarray, labels: np.ndarray, stated: Row, record_property: Any) -> float:
    """Compare a row with the `stated` one, within two images; the largest difference of a logit, relative to their range."""
    answers, known = logits.argmax(1), reference.argmax(1)
    right = answers == labels
    found = Row(int(right.sum()), int(right[::VIEWS].sum()), int((answers == known).sum()))
    off = float(np.abs(logits - reference).max() / np.ptp(reference))
    record_property(
        "realworld", f"{name:46} {counted(found)}   stated {counted(stated)}   logits off by {off:.2g} of their range"
    )
    for count, expected, most in zip(found, stated, (VIEWS * TWO_IMAGES, TWO_IMAGES, VIEWS * TWO_IMAGES), strict=True):
        assert abs(count - expected) <= most
    return off


def counted(row: Row) -> str:
    return f"{row.right} of 80, {row.first} of 20, {row.same} the same"


def gray(images: np.ndarray) -> np.ndarray:
    return np.repeat(images, 3, -1)


IMAGENET = [
    ("plain sum, averaged mean and std", {}, lambda g: (g - GRAY_MEAN) / GRAY_STD, Row(54, 14, 70)),
    ("--norm imagenet", {"norm": "imagenet"}, lambda g: (g - GRAY_MEAN) / GRAY_STD, Row(59, 15, 77)),
    ("--norm imagenet --input-range 255", {"norm": "imagenet", "input_range": 255}, lambda g: g * 255, Row(59, 15, 78)),
    ("--method mean", {"method": "mean"}, lambda g: (g - GRAY_MEAN) / GRAY_STD, Row(46, 10, 56)),
    ("--select 0", {"select": [0]}, lambda g: (g - GRAY_MEAN) / GRAY_STD, Row(30, 6, 35)),
]


def test_for_the_pipeline_of_imagenet(photographs: Any, for_imagenet: Path, tmp_path: Path, record_property: Any):
    colors, grays, labels = photographs
    run = efficientnet(for_imagenet)
    reference = run((gray(grays) - MEAN) / STD)[0]
    averaged = run((gray(grays) - GRAY_MEAN) / GRAY_STD)[0]
    in_color = run((colors - MEAN) / STD)[0]
    judged("in color", in_color, in_color, labels, Row(70, 18, 80), record_property)
    judged("gray stacked, three means and stds", reference, reference, labels, Row(58, 15, 80), record_property)
    judged("gray stacked, averaged mean and std", averaged, reference, labels, Row(54, 14, 70), record_property)
    off = {}
    for number, (name, options, prepared, stated) in enumerate(IMAGENET):
        convert(for_imagenet, tmp_path / f"{number}.pth", "gray", **options)
        logits = efficientnet(tmp_path / f"{number}.pth")(prepared(grays))[0]
        off[name] = judged(name, logits, reference, labels, stated, record_property)
        if not options:
            assert np.abs(logits - averaged).max() <= 1e-4 * np.abs(averaged).max()
    assert off["--norm imagenet"] < off["plain sum, averaged mean and std"] / 2


SHIPPED = [
    ("plain sum", {}, lambda g: (g - 0.5) / 0.5, Row(59, 15, 80)),
    ("--norm half --input-range 255", {"norm": "half", "input_range": 255}, lambda g: g * 255, Row(59, 15, 79)),
    (
        "the same with --new-mean 0.5",
        {"norm": "half", "input_range": 255, "new_mean": [0.5]},
        lambda g: g * 255 - 127.5,
        Row(59, 15, 80),
    ),
    ("--method luma", {"method": "luma"}, lambda g: (g - 0.5) / 0.5, Row(45, 11, 51)),
]


def test_as_it_is_shipped(photographs: Any, shipped_network: Path, tmp_path: Path, record_property: Any):
    _, grays, labels = photographs
    reference = efficientnet(shipped_network)((gray(grays) - 0.5) / 0.5)[0]
    for number, (name, options, prepared, stated) in enumerate(SHIPPED):
        convert(shipped_network, tmp_path / f"{number}.pth", "gray", **options)
        logits = efficientnet(tmp_path / f"{number}.pth")(np.float32(prepared(grays)))[0]
        off = judged(f"as shipped: {name}", logits, reference, labels, stated, record_property)
        if stated.same == len(labels):
            assert off <= 1e-4


MASKS = [
    ({}, lambda g: (g - GRAY_MEAN) / GRAY_STD, (5752, 89)),
    ({"norm": "imagenet"}, lambda g: (g - GRAY_MEAN) / GRAY_STD, (33, 7)),
    ({"norm": "imagenet", "input_range": 255}, lambda g: g * 255, (280, 15)),
    ({"norm": "imagenet", "input_range": 255, "new_mean": [0.449]}, lambda g: 255 * (g - GRAY_MEAN), (33, 7)),
]


@pytest.mark.parametrize(
    ("options", "prepared", "stated"), MASKS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_masks_of_text(options: dict[str, Any], prepared: Any, stated: tuple[int, int], tmp_path: Path, record_property: Any):
    """How many pixels of 204,800 are text for one network and none for the other."""
    network = NETWORKS["PP-OCRv4 detector"]
    convert(network.file, tmp_path / "gray.onnx", "gray", **options)
    old, new = network.opened(network.file, 3), network.opened(tmp_path / "gray.onnx", 1)
    found = []
    for name in ("page.png", "text.png"):
        page = photograph(name, "L", network.size)[None]
        masks = [run(image)[0] > 0.3 for run, image in ((old, (gray(page) - MEAN) / STD), (new, np.float32(prepared(page))))]
        found.append(int((masks[0] != masks[1]).sum()))
    record_property("realworld", f"text masks {options}: {found} pixels differ, stated {stated}")
    assert all(abs(count - expected) <= max(20, expected // 4) for count, expected in zip(found, stated, strict=True))


QUESTION = ["input_unknown", "input_if_equal", "input_if_unequal"]


def advised(source: Path, tmp_path: Path, *numbers: np.ndarray) -> tuple[Path, list[str], Callable[[np.ndarray], np.ndarray]]:
    """The output, and how its images are prepared, as the advice says it where a configuration beside the source states mean and
    std: its lines are read as a user reads them. The codes of the first advice stand between."""
    copied = Path(shutil.copy(source, tmp_path))
    assert [line.code for line in convert(copied, to="gray", dry_run=True).advice] == QUESTION
    mean, std = (value.astype(float).round(6).tolist() for value in numbers)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    out = tmp_path / f"gray{source.suffix}"
    lines = (report := convert(copied, out, "gray")).advice
    if option := re.search(r"--norm (\w+)", " ".join(line.message for line in lines)):
        report = convert(copied, out, "gray", norm=option[1], force=True)
    pasted = re.findall(r"Normalize\(mean=\[([\d.]+)\], std=\[([\d.]+)\]\)", report.advice[-1].message)[-1]
    new_mean, new_std = map(np.float32, pasted)
    return out, [line.code for line in lines], lambda image: (image - new_mean) / new_std


def test_the_advice_on_the_shipped_network(photographs: Any, shipped_network: Path, tmp_path: Path, record_property: Any):
    _, grays, labels = photographs
    half = np.full(3, 0.5)
    out, codes, prepared = advised(shipped_network, tmp_path, half, half)
    reference = efficientnet(shipped_network)((gray(grays) - 0.5) / 0.5)[0]
    logits = efficientnet(out)(np.float32(prepared(grays)))[0]
    judged("as advised for 0.5 and 0.5", logits, reference, labels, Row(59, 15, 80), record_property)
    assert codes == ["input_exact"]
    assert (logits.argmax(1) == reference.argmax(1)).all()


def test_the_advice_on_a_network_of_imagenet(photographs: Any, for_imagenet: Path, tmp_path: Path, record_property: Any):
    _, grays, labels = photographs
    out, codes, prepared = advised(for_imagenet, tmp_path, MEAN, STD)
    reference = efficientnet(for_imagenet)((gray(grays) - MEAN) / STD)[0]
    logits = efficientnet(out)(np.float32(prepared(grays)))[0]
    judged("as advised for ImageNet's numbers", logits, reference, labels, Row(59, 15, 77), record_property)
    assert codes == ["input_close", "input_fold"]
    assert (logits.argmax(1) == reference.argmax(1)).sum() >= 76


def test_the_advice_on_a_detector_of_text(tmp_path: Path, record_property: Any):
    network = NETWORKS["PP-OCRv4 detector"]
    out, codes, prepared = advised(network.file, tmp_path, MEAN, STD)
    page = photograph("page.png", "L", network.size)[None]
    runs = (network.opened(network.file, 3), (gray(page) - MEAN) / STD), (network.opened(out, 1), np.float32(prepared(page)))
    masks = [run(image)[0] > 0.3 for run, image in runs]
    found = int((masks[0] != masks[1]).sum())
    record_property("realworld", f"text masks as advised: {found} pixels of page.png differ")
    assert codes == ["input_close", "input_fold"]
    assert found <= 60
