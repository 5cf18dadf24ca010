"""Tensor lists of real architectures, and what the search says of them.

A file of `data/` maps a name to `tensors` [[key, shape, dtype], ...] in module order with three input channels, to `stems`
[[key, shape at 3 channels, shape at 1 channel, layout or null], ...]: the tensors whose shape really changes with the number of
input channels, measured by building each architecture both ways; layouts of folded axes too, null where unknown. `refuse` marks
what no rewriting can convert, `directions` limits an entry to the direction that it exists in ("X@1" is the one-channel network
of X, where more than the stems differs).

`architectures.json.gz` is a sample that is hard on purpose. `corpus_*.json.gz` are all of timm's and transformers' vision models,
and models of others; a name there begins with its library. `found.json.gz` lists what is found rightly of these: it only grows.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Finding, Tensor
from chkpt_channels.discovery.law.after import unexplained
from chkpt_channels.discovery.law.search import find

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / "architectures.json.gz"
FOUND = DATA / "found.json.gz"
CASES = [(gray, ordered) for gray in (False, True) for ordered in (True, False)]
NAMES = [f"{'gray' if gray else 'rgb'}, {'in module order' if ordered else 'in no order'}" for gray, ordered in CASES]
DTYPES = {"float32": "F32", "int64": "I64"}


class Row(NamedTuple):
    """A question to all models of a corpus: converted toward gray (with three channels) or toward rgb (with one), read from a
    container that keeps the order of modules (pth) or sorts them by the size of their elements and by name (safetensors)."""

    corpus: str
    direction: str
    container: str

    def __str__(self) -> str:
        return " ".join(self)


ROWS = [
    Row(corpus, direction, container)
    for corpus in ("others", "timm", "transformers")
    for direction in ("gray", "rgb")
    for container in ("pth", "safetensors")
]


def load(path: Path = SAMPLE) -> dict[str, dict[str, Any]]:
    """The architectures of a file."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    return data.get("models", data)


class Verdict(NamedTuple):
    """right, refused or wrong; what was found, and whether a refusal lists every true stem. `left` says what the law makes of a
    conversion of the first stem alone, where it is not that all others were left out."""

    word: str
    finding: Finding
    listed: bool
    left: str = ""


def tensors_of(model: dict[str, Any], *, gray: bool, ordered: bool) -> list[Tensor]:
    """Its tensors with one channel or with three, in module order or as safetensors sorts them."""
    shapes = {key: one if gray else three for key, three, one, _ in model["stems"]}
    rows = ((key, DTYPES[dtype[0] if dtype else "float32"], shape) for key, shape, *dtype in model["tensors"])
    tensors = [Tensor(key, BY_NAME[dtype], tuple(shapes.get(key, shape))) for key, dtype, shape in rows]
    return tensors if ordered else sorted(tensors, key=lambda tensor: (-tensor.dtype.bits, tensor.name))


def judge(model: dict[str, Any], *, gray: bool, ordered: bool, torch: bool = False) -> Verdict:
    """What the search says of an architecture. A layout may be left open, not be wrong."""
    stems = {key: layout for key, _, _, layout in model["stems"]}
    tensors = tensors_of(model, gray=gray, ordered=ordered)
    finding = find(tensors, ordered=ordered, torch=torch)
    found = {conv.tensor.name: conv.layout for conv in finding.first_convs}
    if not found:
        listed = stems.keys() <= {candidate.key for candidate in finding.candidates}
        return Verdict("right" if model.get("refuse") else "refused", finding, listed)
    layouts_agree = all(layout is None or stems.get(key) in (None, str(layout)) for key, layout in found.items())
    right = not model.get("refuse") and found.keys() == stems.keys() and layouts_agree
    return Verdict("right" if right else "wrong", finding, True, _left(tensors, finding, ordered=ordered, torch=torch))


def _left(tensors: list[Tensor], finding: Finding, *, ordered: bool, torch: bool) -> str:
    """What is unexplained beside all first convs, or what is not beside the first of several."""
    convs = finding.first_convs
    if len(convs) < 2:
        return ""
    for stems in (convs, convs[:1]):
        left = {kernel.tensor.name for kernel in unexplained(tensors, stems, ordered=ordered, torch=torch)}
        if left != {conv.tensor.name for conv in convs} - {conv.tensor.name for conv in stems}:
            return f"beside {[conv.tensor.name for conv in stems]} {sorted(left)}"
    return ""


@cache
def corpus(name: str) -> dict[str, dict[str, Any]]:
    """The architectures of a corpus."""
    return load(DATA / f"corpus_{name}.json.gz")


def judge_row(row: Row) -> dict[str, Verdict]:
    """The verdict on each model of a corpus that exists in this direction."""
    asked = {n: m for n, m in corpus(row.corpus).items() if row.direction in m.get("directions", ("gray", "rgb"))}
    gray, ordered = row.direction == "rgb", row.container == "pth"
    return {name: judge(model, gray=gray, ordered=ordered, torch=True) for name, model in asked.items()}


def found_before() -> dict[str, list[str]]:
    """The models that were found rightly when the list was written, by row."""
    return json.loads(gzip.decompress(FOUND.read_bytes()))


def write_found(found: dict[str, list[str]]) -> None:
    """Write that list, the same bytes for the same models."""
    text = json.dumps({row: sorted(names) for row, names in found.items()}, separators=(",", ":"))
    FOUND.write_bytes(gzip.compress(text.encode(), mtime=0))
