"""What a converted network wants as input: numbers ready to paste, and whether they make it exact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import convert
from chkpt_channels.api.advice import Case, advice, fed_range, input_advice, normalize
from chkpt_channels.core.tensors import PreprocessingOp
from chkpt_channels.discovery.catalogue.entry import Architecture, KnownNorm, Recognized
from chkpt_channels.folders.config_normalization import Stated
from chkpt_channels.folders.model import ModelFile
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.transform.mixing.normalization import NORMS, Normalization
from chkpt_channels.transform.options import build_options
from tests.api.test_verify import write
from tests.discovery.test_bias_target import TAKEN

IMAGENET, HALF, CAFFE = (Normalization(*NORMS[name][:3]) for name in ("imagenet", "half", "caffe"))
BY_IMAGENET, BY_HALF = Stated("p.json", IMAGENET), Stated("p.json", HALF)
BY_CAFFE = Stated("keras ResNet50", CAFFE._replace(mean=CAFFE.mean[::-1]), "bgr")
THREE = "Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])"
QUESTION = [
    "how were its training images normalized? the file does not say",
    "with one mean and std for all channels, such as 0.5 and 0.5, or not at all: the sum is exact, and the new input takes the"
    " same: Normalize(mean=[0.5], std=[0.5])",
    "with a mean and std for each, such as ImageNet's 0.485, 0.456, 0.406: convert with --norm imagenet, and feed it"
    " Normalize(mean=[0.449], std=[0.226])",
]
FRONT = PreprocessingOp("bn_data", "BatchNorm", (2.0,) * 3, (0.1, 0.2, 0.3))


def case(old: int = 3, **words: Any) -> Case:
    """The case of these options, and of what is known."""
    known = {key: words.pop(key) for key in ("known", "inside", "can_fold") if key in words}
    options = build_options(**{"to": 1} | words)
    rule = options.rule.mixing(old)
    return Case(
        rule,
        options.rule.orders,
        options.norm,
        options.norm.new(rule, options.rule.orders) if options.norm else None,
        **known,
    )


NOT_FOLDED = "close, not exact: nothing here takes the difference"
CASES: dict[str, tuple[Case, list[str]]] = {
    "nothing is known": (case(), QUESTION),
    "nothing is known of a BGR network": (
        case(channel_order="bgr"),
        [*QUESTION[:2], QUESTION[2].replace("--norm imagenet", "--norm imagenet --channel-order bgr")],
    ),
    "nothing is known, and nothing takes a constant": (
        case(can_fold=False),
        [
            *QUESTION[:2],
            "with a mean and std for each, such as ImageNet's 0.485, 0.456, 0.406: feed it Normalize(mean=[0.449], std=[0.226]);"
            f" {NOT_FOLDED}",
        ],
    ),
    "nothing is known of five bands": (
        case(5),
        [
            *QUESTION[:2],
            "with a mean and std for each: convert with --mean and --std, which fold them into the weights",
        ],
    ),
    "five bands, and nothing takes a constant": (
        case(5, can_fold=False),
        [*QUESTION[:2], f"with a mean and std for each: {NOT_FOLDED}"],
    ),
    "equal numbers": (
        case(known=(BY_HALF,)),
        [
            "p.json: every channel has the same mean and std, so that the sum is exact: feed it"
            " Normalize(mean=[0.5], std=[0.5])"
        ],
    ),
    "one number for all channels": (
        case(known=(Stated("p.json", Normalization((0.0,), (1.0,))),)),
        ["p.json: every channel has the same mean and std, so that the sum is exact: feed it images in 0..1 as they are"],
    ),
    "unequal numbers": (
        case(known=(BY_IMAGENET,)),
        [
            f"p.json: {THREE} becomes Normalize(mean=[0.449], std=[0.226])",
            "close, not exact: --norm imagenet folds the difference into the weights",
        ],
    ),
    "unequal numbers without a name": (
        case(known=(Stated("p.json", Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),)),
        [
            "p.json: Normalize(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]) becomes Normalize(mean=[0.2], std=[0.5])",
            "close, not exact: --norm auto folds the difference into the weights",
        ],
    ),
    "unequal means alone": (
        case(known=(Stated("p.json", IMAGENET._replace(std=(1.0,) * 3)),)),
        [
            "p.json: Normalize(mean=[0.485, 0.456, 0.406], std=[1, 1, 1]) becomes Normalize(mean=[0.449], std=[1])",
            "close, not exact: --norm auto folds the difference into the weights",
        ],
    ),
    "unequal numbers, and nothing takes a constant": (
        case(known=(BY_IMAGENET,), can_fold=False),
        [f"p.json: {THREE} becomes Normalize(mean=[0.449], std=[0.226])", NOT_FOLDED],
    ),
    "Caffe's": (
        case(known=(BY_CAFFE,)),
        [
            "keras ResNet50: Normalize(mean=[103.939, 116.779, 123.68], std=[1, 1, 1]) on images in 0..255 becomes"
            " Normalize(mean=[114.799], std=[1]) on images in 0..255",
            "close, not exact: --norm caffe folds the difference into the weights, and takes images in 0..255 as they are",
        ],
    ),
    "pretrained weights that differ": (
        case(known=(BY_IMAGENET._replace(by="timm a.x"), BY_HALF._replace(by="timm a.y"), BY_CAFFE)),
        [
            "which weights was it made with? pretrained ones of this architecture differ in mean and std",
            "timm a.x: convert with --norm imagenet, and feed it Normalize(mean=[0.449], std=[0.226])",
            "timm a.y: the sum is exact, and the new input takes the same: Normalize(mean=[0.5], std=[0.5])",
            "keras ResNet50: convert with --norm caffe, and feed it images in 0..255 as they are",
        ],
    ),
    "six of them": (
        case(4, to=3, select="0,1,2", known=(Stated("x", Normalization((0.5,), (0.5,))),) * 6),
        [
            "which weights was it made with? pretrained ones of this architecture differ in mean and std",
            *["x: feed it Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])"] * 4,
            "and 2 more",
        ],
    ),
    "in the file": (
        case(inside=(FRONT,)),
        ["the normalization is in the file (bn_data): nothing changes, feed it raw images as before"],
    ),
    "BGR": (
        case(to="bgr", known=(BY_IMAGENET,)),
        [
            f"p.json: {THREE} becomes"
            " Normalize(mean=[0.406, 0.456, 0.485], std=[0.225, 0.224, 0.229]), in the order B, G, R"
        ],
    ),
    "BGR of what is not known": (
        case(to="bgr"),
        ["its channels take the means and stds of the old channels 2, 1, 0, in the order B, G, R"],
    ),
    "RGB of a BGR network": (
        case(to="rgb", channel_order="bgr"),
        ["its channels take the means and stds of the old channels 2, 1, 0"],
    ),
    "bands chosen": (case(to=None, select="R,B"), ["its channels take the means and stds of the old channels 0, 2"]),
    "bands chosen of known ones": (
        case(to=None, select="R,B", known=(BY_IMAGENET,)),
        [f"p.json: {THREE} becomes Normalize(mean=[0.485, 0.406], std=[0.229, 0.225])"],
    ),
    "bands that replace others": (
        case(to=None, bands="R,G,B,NIR=R", known=(BY_IMAGENET,)),
        [f"p.json: {THREE} becomes Normalize(mean=[0.485, 0.456, 0.406, 0.485], std=[0.229, 0.224, 0.225, 0.229])"],
    ),
    "more channels": (case(to=4), ["its channels take the means and stds of the old channels 0, 1, 2, 0"]),
    "channels that begin at zero": (
        case(to=5, method="zero"),
        ["its channels take the means and stds of the old channels 0, 1, 2; 3, 4 begin at zero, with any of their own"],
    ),
    "latents": (
        case(4, to=9),
        [
            "latents have no mean and std, and --method zero keeps the answers until new channels are trained",
            "bands of an image: its channels take the means and stds of the old channels 0, 1, 2, 3, 0, 1, 2, 3, 0",
        ],
    ),
    "latents, begun at zero": (
        case(16, to=17, method="zero"),
        [
            "latents have no mean and std",
            "bands of an image: its channels take the means and stds of the old channels"
            " 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15; 16 begin at zero, with any of their own",
        ],
    ),
    "four bands that are known": (
        case(4, to=5, known=(Stated("p.json", Normalization((0.1, 0.2, 0.3, 0.4), (0.5,))),)),
        [
            "p.json: Normalize(mean=[0.1, 0.2, 0.3, 0.4], std=[0.5, 0.5, 0.5, 0.5]) becomes"
            " Normalize(mean=[0.1, 0.2, 0.3, 0.4, 0.1], std=[0.5, 0.5, 0.5, 0.5, 0.5])"
        ],
    ),
    "colors of gray": (case(1, to="rgb"), ["the mean and std of gray hold for each of its 3 channels"]),
    "BGR of gray": (
        case(1, to="bgr", known=(Stated("p.json", Normalization((0.4,), (0.2,))),)),
        [
            "p.json: Normalize(mean=[0.4], std=[0.2]) becomes"
            " Normalize(mean=[0.4, 0.4, 0.4], std=[0.2, 0.2, 0.2]), in the order B, G, R"
        ],
    ),
    "means": (
        case(method="mean"),
        ["feed it images normalized with one mean and one std: the averages of the old ones"],
    ),
    "means of known ones": (
        case(method="mean", known=(BY_IMAGENET,)),
        [f"p.json: {THREE} becomes Normalize(mean=[0.449], std=[0.226]), their averages"],
    ),
    "a matrix": (
        case(matrix=[[0.5, 1], [1, 0.5], [0, 1]], to=None),
        ["feed it images normalized with 2 means and stds: the averages of the old ones"],
    ),
    "a band that is the mean": (
        case(to=None, bands="R,G,B,D=mean", known=(BY_HALF,)),
        [
            "p.json: every channel has the same mean and std, so that this rule is exact: feed it"
            " Normalize(mean=[0.5, 0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5, 0.5])"
        ],
    ),
    "folded": (
        case(norm="imagenet"),
        [
            "as the options have it, the network was trained on values of −2.1 to 2.6",
            "feed it Normalize(mean=[0.449], std=[0.226])",
        ],
    ),
    "folded for bytes": (
        case(norm="imagenet", input_range=255),
        [
            "as the options have it, the network was trained on values of −2.1 to 2.6",
            "feed it images in 0..255 as they are",
        ],
    ),
    "folded for bytes less a mean": (
        case(norm="half", input_range=255, new_mean="0.5"),
        [
            "as the options have it, the network was trained on values of −1 to 1",
            "feed it Normalize(mean=[127.5], std=[1]) on images in 0..255",
        ],
    ),
    "folded, of Caffe": (
        case(norm="caffe"),
        ["as the options have it, the network was trained on values of −124 to 151", "feed it images in 0..255 as they are"],
    ),
    "folded, and turned": (
        case(to="bgr", norm="imagenet"),
        [
            "as the options have it, the network was trained on values of −2.1 to 2.6",
            "feed it Normalize(mean=[0.406, 0.456, 0.485], std=[0.225, 0.224, 0.229]), in the order B, G, R",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_what_is_said(given: Case, expected: list[str]):
    notices = list(advice(given))
    assert [notice.message for notice in notices] == expected
    assert all(notice.code.startswith("input_") for notice in notices)


def codes(notices: Sequence[Any]) -> list[str]:
    return [notice.code for notice in notices]


def test_the_codes_of_the_answers():
    assert codes(list(advice(case()))) == ["input_unknown", "input_if_equal", "input_if_unequal"]
    assert codes(list(advice(case(known=(BY_HALF,))))) == ["input_exact"]
    assert codes(list(advice(case(known=(BY_IMAGENET,))))) == ["input_close", "input_fold"]


def test_exact_is_what_numbers_make_exact():
    """The plain sum on gray, through the numbers that the advice gives, against the old kernel on three equal channels."""
    kernel, gray = np.random.default_rng(0).normal(size=(3,)), 0.3
    for norm, is_exact in ((HALF, True), (IMAGENET, False), (Normalization((0.2,) * 3, (0.1, 0.2, 0.1)), False)):
        (first, *_) = advice(case(known=(Stated("p.json", norm),)))
        old = (kernel * (gray - np.array(norm.mean)) / np.array(norm.std)).sum()
        new = kernel.sum() * (gray - np.mean(norm.mean)) / np.mean(norm.std)
        assert (first.code == "input_exact") == is_exact == bool(np.isclose(old, new))


def test_ranges_are_short():
    assert fed_range(HALF) == "−1 to 1"
    assert fed_range(Normalization((0.0,), (1.0,), 255.0)) == "0 to 255"
    assert normalize(Normalization((0.1234567,), (0.25,))) == "Normalize(mean=[0.123457], std=[0.25])"


# Of files


def told(path: Path, known: Recognized | None = None, **words: Any) -> list[str]:
    """The codes for a file, with what the catalogue knows of it."""
    with ModelFile(path) as model:
        vars(model)["recognized"] = known
        options = model.resolved(build_options(**{"to": 1} | words))
        return codes(input_advice(model, plan_model(model, options), options, known))


def recognized(norm: Normalization) -> Recognized:
    return Recognized("", "", "whole", (Architecture("timm", "x", (), (), norms=(KnownNorm("a", *norm),)),))


def test_what_a_file_and_its_surroundings_say(tmp_path: Path):
    path = write(tmp_path / "a.safetensors", TAKEN["conv1, bn1"][0])
    assert told(path) == ["input_unknown", "input_if_equal", "input_if_unequal"]
    assert told(path, recognized(HALF)) == ["input_exact"]
    assert told(path, recognized(IMAGENET)) == ["input_close", "input_fold"]
    assert told(path, recognized(Normalization((0.5,) * 4, (0.5,) * 4))) == [
        "input_unknown",
        "input_if_equal",
        "input_if_unequal",
    ]
    assert told(path, recognized(IMAGENET), norm="auto") == ["input_trained", "input_feed"]
    assert told(path, to=3) == []
    config = tmp_path / "preprocessor_config.json"
    config.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert told(path, recognized(IMAGENET)) == ["input_exact"]
    config.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False}))
    assert told(path) == ["input_unknown", "input_if_equal", "input_if_unequal"]


def test_a_normalization_in_the_file_is_enough(tmp_path: Path):
    network = TAKEN["conv1, bn1"][0]
    front = {f"bn_data.{end}": np.full(3, 0.5, "<f4") for end in ("weight", "bias", "running_mean", "running_var")}
    path = write(tmp_path / "a.safetensors", {**front, **network})
    assert told(path) == ["input_inside"]
    assert told(path, recognized(IMAGENET)) == ["input_inside"]
    assert convert(path, to=1, dry_run=True).advice[0].message.startswith("the normalization is in the file (bn_data)")


def test_without_a_bias_nothing_is_offered(tmp_path: Path):
    arrays = {"conv1.weight": np.ones((4, 3, 3, 3), "<f4"), "conv2.weight": np.ones((5, 4, 3, 3), "<f4")}
    notices = convert(write(tmp_path / "a.safetensors", arrays), to=1, dry_run=True).advice
    assert "--norm" not in "".join(notice.message for notice in notices)
