"""Real architectures: nothing is named wrongly, what is refused is listed, and what was found once is found again."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

from chkpt_channels.discovery import law
from tests.support.architectures import CASES, DATA, NAMES, ROWS, Row, Verdict, found_before, judge, judge_row, load

ARCHITECTURES = load()

# the sample is hard on purpose; of one channel and in no order, a stem looks like the depthwise layers behind it
MAY_BE_REFUSED = {(False, True): 0.02, (False, False): 0.06, (True, True): 0.03, (True, False): 0.2}

FEWEST = {
    "others gray pth": 0.98,
    "others gray safetensors": 0.96,
    "others rgb pth": 0.97,
    "others rgb safetensors": 0.95,
    "timm gray pth": 680 / 680,
    "timm gray safetensors": 679 / 680,
    "timm rgb pth": 680 / 680,
    "timm rgb safetensors": 663 / 680,
    "transformers gray pth": 61 / 61,
    "transformers gray safetensors": 61 / 61,
    "transformers rgb pth": 61 / 61,
    "transformers rgb safetensors": 59 / 61,
}
"""The share of a corpus that is found rightly."""
FEWEST_OF_LIBRARY = 0.6
"""The share of each library in a corpus of several."""


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("gray", "ordered"), CASES, ids=NAMES)
def test_no_kernel_is_named_wrongly(name: str, gray: bool, ordered: bool):
    verdict = judge(ARCHITECTURES[name], gray=gray, ordered=ordered)
    assert verdict.word != "wrong", [conv.tensor.name for conv in verdict.finding.first_convs]
    assert verdict.listed, [candidate.key for candidate in verdict.finding.candidates]
    assert all(candidate.why_not for candidate in verdict.finding.candidates)


@pytest.mark.parametrize(("gray", "ordered"), CASES, ids=NAMES)
def test_few_are_refused(gray: bool, ordered: bool):
    words = [judge(model, gray=gray, ordered=ordered).word for model in ARCHITECTURES.values()]
    assert words.count("refused") <= MAY_BE_REFUSED[gray, ordered] * len(words)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_corpus(row: Row):
    """One test a row: judging it takes seconds. The message has every claim that does not hold."""
    verdicts = judge_row(row)
    right = {name for name, verdict in verdicts.items() if verdict.word == "right"}
    wrong = [name for name, verdict in verdicts.items() if verdict.word == "wrong"]
    lost = sorted({*found_before()[str(row)]} - right)
    unlisted = [name for name, verdict in verdicts.items() if not verdict.listed]
    left = [f"{name}: {verdict.left}" for name, verdict in verdicts.items() if verdict.left]
    poor = [f"{name}: {share:.2f}" for name, share in shares(verdicts).items() if share < FEWEST_OF_LIBRARY]
    problems = {
        "named wrongly": wrong,
        "found before, and not now": lost,
        "a true stem is no candidate": unlisted,
        "what the law leaves beside the first convs": left,
        "libraries of which few are found": poor,
    }
    assert {what: names for what, names in problems.items() if names} == {}
    assert len(right) >= FEWEST[str(row)] * len(verdicts)


def shares(verdicts: dict[str, Verdict]) -> dict[str, float]:
    """By the library that a name begins with, the share that is right."""
    by_library: defaultdict[str, list[bool]] = defaultdict(list)
    for name, verdict in verdicts.items():
        by_library[name.partition("/")[0] if "/" in name else ""].append(verdict.word == "right")
    return {library: sum(right) / len(right) for library, right in by_library.items()}


def test_the_list_of_what_was_found_fits_the_corpora():
    found = found_before()
    assert found.keys() == {str(row) for row in ROWS} == FEWEST.keys()
    assert sum(map(len, found.values())) > 4500
    models = {corpus: load(DATA / f"corpus_{corpus}.json.gz") for corpus in {row.corpus for row in ROWS}}
    assert all({*found[str(row)]} <= models[row.corpus].keys() for row in ROWS)


LIBRARIES = (
    "timm|monai|torchvision|torchhub|diffusers|transformers|hugging_?face|pytorchcv|segmentation_models|smp|ultralytics|mmdet|mmseg|"
    "detectron|keras_?hub|open_?clip|lpips|kornia|fastai|vit_pytorch|cellpose|kraken|sam_?2"
)
MODELS = (
    "resnet|resnext|densenet|unet|u_net|unetr|vit|swin|deit|beit|dino|yolo|nnunet|efficientnet|mobile_?net|mobileone|convnext|vgg|alex_?net|"
    "inception|xception|dpn|dla|coat|cvt|pvt|maxvit|fastvit|repvgg|tresnet|regnet|shufflenet|squeezenet|senet|edsr|esrgan|rrdb|swinir|gan|"
    "vae|clip|siglip|controlnet|sd|sdxl|flux|segformer|deeplab|hrnet|enet|edanet|raft"
)
OWN_NAME = re.compile(rf"(?<![a-z])({LIBRARIES}|{MODELS})(?![a-z])", re.IGNORECASE)


def names_in(source: str) -> set[str]:
    """The libraries and models that code names: in identifiers, in the constants of rules, not in comments and docstrings."""
    tree = ast.parse(source)
    documented = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and n not in documented]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    words = [token.string for token in tokens if token.type == tokenize.NAME]
    return {match[0] for text in (*words, *(str(n.value) for n in constants)) for match in OWN_NAME.finditer(text)}


@pytest.mark.parametrize("path", sorted(Path(law.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_no_rule_names_a_library_or_a_model(path: Path):
    """The law is one for networks that nobody has seen: a name that only one of them has is no rule."""
    assert names_in(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('NAMES = re.compile(r"(^|[._])swin[._]")', {"swin"}),
        ('if key.startswith("encoder.resnet50"):\n    pass', {"resnet"}),
        ("is_timm = True", {"timm"}),
        ("def of_ViT(x): ...", {"ViT"}),
        ('f"{a}.yolo_{b}"', {"yolo"}),
        ('"""As in timm."""\nX = 1  # DPN has 3\n"""Swin\'s 4."""', set()),
        ('STEM = r"conv_?stem|patch_?embed|activity|vital"', set()),
    ],
)
def test_names_are_seen_where_rules_are(source: str, named: set[str]):
    assert names_in(source) == named
