"""Which tensors see the image, from names and shapes alone: for files that carry no graph.

A network's first kernel is the one whose input width no other layer produces. Every further kernel that sees the image
stands beside it (parallel stems) or repeats it (EMA, teacher, other copies of the model).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .errors import Candidate
from .layout import Layout
from .model import FirstConv, Tensor

OIHW = {3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
OHWI = {3: Layout("OWI"), 4: Layout("OHWI"), 5: Layout("ODHWI")}

MOST_BANDS = 32
"""Wider inputs are features, not images (the widest public pretrained input has 13 bands)."""

_WEIGHT = re.compile(
    r"(^|[./])(weight|((depth|point)wise_)?kernel|w|filters?|original[01]?|weight_(v|orig)|\w+_W(_\d+)?|\d+)(:\d+)?$"
)
_NO_KERNEL = re.compile(r"pos_embed|position|rel_pos|bias_table|token|anchor")
_STEM = re.compile(
    r"(^|[._/])(conv_?stem|stem|conv_?1|conv_?in|conv_first|first_conv|patch_embed\w*|conv1_1|features[._]0|inc|embedder)([._/]|$)"
)


class Finding(NamedTuple):
    """The first convs, or none and the candidates with what speaks against each."""

    first_convs: tuple[FirstConv, ...]
    candidates: tuple[Candidate, ...] = ()


def find(tensors: Iterable[Tensor], *, ordered: bool) -> Finding:
    """The first convs of every model in the file. `ordered` says that the tensors stand in module order."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.group].append(tensor)
    found: list[FirstConv] = []
    candidates: list[Candidate] = []
    for group in groups.values():
        in_group = _Group(group, ordered=ordered).find()
        found += in_group.first_convs
        candidates += in_group.candidates
    return Finding(tuple(found), tuple(candidates) if not found else ())


def layout_of(tensor: Tensor, layouts: Mapping[int, Layout] = OIHW) -> Layout | None:
    """The layout of a kernel of this rank."""
    return tensor.layout or layouts.get(len(tensor.shape))


class _Group:
    """The tensors of one state dict."""

    def __init__(self, tensors: Sequence[Tensor], *, ordered: bool) -> None:
        self.tensors = list(tensors) if ordered else sorted(tensors, key=lambda t: _natural(t.key))
        self.ordered = ordered
        kernels = [t for t in self.tensors if _is_kernel(t)]
        self.layouts = _orientation(kernels)
        self.kernels = [t for t in kernels if self._channels(t) <= MOST_BANDS]
        self.convs = kernels

    def _channels(self, tensor: Tensor) -> int:
        layout = layout_of(tensor, self.layouts)
        return tensor.shape[layout.channel_axis] if layout else 0

    def _filters(self, tensor: Tensor) -> int:
        layout = layout_of(tensor, self.layouts)
        return tensor.shape[layout.axes.index("O")] if layout else 0

    def find(self) -> Finding:
        entries = [t for t in self.kernels if not self._is_fed(t)]
        if not entries:
            return Finding(
                (), tuple(Candidate(t.name, t.shape, "a layer before it has as many outputs") for t in self.kernels[:10])
            )
        stems, found_by, why = self._stems(entries)
        if not stems:
            return Finding((), tuple(Candidate(t.name, t.shape, why) for t in entries))
        return Finding(tuple(FirstConv(t, layout_of(t, self.layouts), self._channels(t), found_by, why) for t in stems))

    def _is_fed(self, kernel: Tensor) -> bool:
        """Whether another layer (an earlier one, where the order is known) produces this kernel's input width."""
        before = self.convs[: self.convs.index(kernel)] if self.ordered else self.convs
        width = self._channels(kernel)
        if width == 3 and not self.ordered:
            return False  # decoders and heads produce three channels too
        return any(self._filters(other) == width for other in before if other is not kernel)

    def _stems(self, entries: list[Tensor]) -> tuple[list[Tensor], str, str]:
        width = self._channels(entries[0])
        if not self.ordered:
            counts = {self._channels(t) for t in entries}
            width = 3 if 3 in counts else min(counts)
        same = [t for t in entries if self._channels(t) == width]
        if len(same) == 1:
            return same, "shapes", "the only conv no layer feeds"
        first = same[0]
        if self.ordered:
            if self.convs[0] is not first:
                return [], "", "an earlier conv is no entry"
            beside = [t for t in same if t is first or self._is_beside(t, first) or self._is_copy(t, first)]
            return beside, "shapes", "the first conv in module order" + (", with its siblings" if len(beside) > 1 else "")
        named = [t for t in same if _STEM.search(t.key)]
        if not named:
            return [], "", "several convs could see the image"
        first = named[0]
        stems = [t for t in same if t is first or self._is_beside(t, first) or self._is_copy(t, first)]
        others = [t for t in named if t not in stems]
        if others:
            return [], "", "several convs could see the image"
        return stems, "names", "named like a stem"

    def _is_beside(self, other: Tensor, first: Tensor) -> bool:
        """A parallel branch: the same number of filters, and no other conv between the two."""
        if self._channels(first) == 1 and not _are_branches(other.key, first.key):
            return False  # a depthwise conv behind the stem has the same shape
        i, j = sorted((self.convs.index(other), self.convs.index(first)))
        between = self.convs[i : j + 1]
        return all(self._filters(t) == self._filters(first) and self._channels(t) == self._channels(first) for t in between)

    def _is_copy(self, other: Tensor, first: Tensor) -> bool:
        """The same layer of a second copy of the model: the names differ in their first part only, and so do all others."""
        if other.shape != first.shape:
            return False
        a, b = _root(first.key, other.key)
        if not a or not b:
            return False
        mine = {t.key[len(a) :]: t.shape for t in self.tensors if t.key.startswith(a)}
        theirs = {t.key[len(b) :]: t.shape for t in self.tensors if t.key.startswith(b)}
        return mine == theirs and sum(len(shape) >= 2 for shape in mine.values()) > 1


def _root(a: str, b: str) -> tuple[str, str]:
    """The differing beginnings of two names that end alike, cut at a dot: ("student.", "teacher.")."""
    x, y = re.split(r"(?<=\.)", a), re.split(r"(?<=\.)", b)
    while x and y and x[-1] == y[-1]:
        x.pop()
        y.pop()
    return "".join(x), "".join(y)


def _are_branches(a: str, b: str) -> bool:
    """Whether two names are branches of one named module, not steps of a sequence."""
    steps = [(x, y) for x, y in zip(a.split("."), b.split("."), strict=False)]
    fork = next((i for i, (x, y) in enumerate(steps) if x != y), 0)
    return fork > 0 and not (steps[fork][0].isdigit() and steps[fork][1].isdigit())


def _is_kernel(tensor: Tensor) -> bool:
    if not tensor.dtype.floating or len(tensor.shape) not in OIHW or 0 in tensor.shape:
        return False
    return bool(_WEIGHT.search(tensor.key)) and not _NO_KERNEL.search(tensor.key)


def _orientation(kernels: Sequence[Tensor]) -> Mapping[int, Layout]:
    """Which end of the shape holds the window: most kernels of a file tell, small squares in front or behind."""
    votes = {id(OIHW): 0, id(HWIO): 0, id(OHWI): 0}
    for kernel in (k for k in kernels if len(k.shape) == 4):
        a, b, c, d = kernel.shape
        if c == d < min(a, b):
            votes[id(OIHW)] += 1
        elif a == b < min(c, d):
            votes[id(HWIO)] += 1
        elif b == c < min(a, d):
            votes[id(OHWI)] += 1
    best = max((OIHW, HWIO, OHWI), key=lambda layouts: votes[id(layouts)])
    return best if votes[id(best)] > votes[id(OIHW)] else OIHW


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts layer10 behind layer2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
