"""Tensor lists of real architectures, and what the search says of them.

`data/architectures.json.gz` maps a name to `tensors` [[key, shape], ...] in module order with three input channels, to `stems`
[[key, shape at 3 channels, shape at 1 channel, layout or null], ...], and to `refuse` where nothing may be named.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.search import Finding, find

SAMPLE = Path(__file__).parent / "data" / "architectures.json.gz"
CASES = [(gray, ordered) for gray in (False, True) for ordered in (True, False)]
NAMES = [f"{'gray' if gray else 'rgb'}, {'in module order' if ordered else 'in no order'}" for gray, ordered in CASES]


def load(path: Path = SAMPLE) -> dict[str, dict[str, Any]]:
    """The architectures of a file."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    return data.get("models", data)


class Verdict(NamedTuple):
    """right, refused or wrong; what was found, and whether a refusal lists every true stem."""

    word: str
    finding: Finding
    listed: bool


def tensors_of(model: dict[str, Any], *, gray: bool, ordered: bool) -> list[Tensor]:
    """Its tensors with one channel or with three, in module order or in the order of their names."""
    shapes = {key: one if gray else three for key, three, one, _ in model["stems"]}
    tensors = [Tensor(key, BY_NAME["F32"], tuple(shapes.get(key, shape))) for key, shape, *_ in model["tensors"]]
    return tensors if ordered else sorted(tensors)


def judge(model: dict[str, Any], *, gray: bool, ordered: bool) -> Verdict:
    """What the search says of an architecture. A layout may be left open, not be wrong."""
    stems = {key: layout for key, _, _, layout in model["stems"]}
    finding = find(tensors_of(model, gray=gray, ordered=ordered), ordered=ordered)
    found = {conv.tensor.name: conv.layout for conv in finding.first_convs}
    if not found:
        listed = stems.keys() <= {candidate.key for candidate in finding.candidates}
        return Verdict("right" if model.get("refuse") else "refused", finding, listed)
    layouts_agree = all(layout is None or stems.get(key) in (None, str(layout)) for key, layout in found.items())
    right = not model.get("refuse") and found.keys() == stems.keys() and layouts_agree
    return Verdict("right" if right else "wrong", finding, True)
