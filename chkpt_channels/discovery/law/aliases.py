"""One module under several names in one state dict: nnU-Net's encoder.stages.0.0.convs.0.conv is its all_modules.0 too, and all
of `encoder.` stands again below `decoder.`. Its names are no rivals: a search sees one, and its answer goes to all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import common_words, is_weight, layer_of

FEWEST_PLACES = 3
"""At which two names hold equal shapes: in fewer a block of two equal layers looks so."""
MOST_NAMES = 8
"""In a module that is asked for pairs: one with more holds a series of layers."""

Shape = tuple[int, ...]


class Aliases:
    """The tensors under one of their names (`kept`); `of` finds a tensor under all of them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        layers = {layer_of(t.key): t.shape for t in tensors if is_weight(t)}
        self._again = _nested(layers)
        kept = {name: shape for name, shape in layers.items() if not any(name.startswith(outer) for _, outer in self._again)}
        self._pairs = _pairs(kept)
        is_single = not self._again and not self._pairs
        self.kept = list(tensors) if is_single else [t for t in tensors if not self._is_other_name(t.key)]
        self._by_key = {t.key: t for t in tensors} if self._again or self._pairs else {}

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The tensor and its like under other names."""
        keys = [tensor.key]
        for first, second in self._pairs:
            parent, rest = _cut(tensor.key, first)
            if rest is not None:
                keys.append(f"{parent}{second}{rest}")
        keys += [outer + key[len(inner) :] for inner, outer in self._again for key in keys if key.startswith(inner)]
        return [tensor, *(self._by_key[key] for key in keys[1:] if key in self._by_key)]

    def _is_other_name(self, key: str) -> bool:
        if any(key.startswith(outer) for _, outer in self._again):
            return True
        return any(_cut(key, second)[1] is not None for _, second in self._pairs)


def _cut(key: str, name: str) -> tuple[str, str | None]:
    """What stands before and behind a module's name at the end of a tensor's layer; None behind where it is not there."""
    layer = layer_of(key)
    if layer == name or layer.endswith(f".{name}"):
        return layer[: len(layer) - len(name)], key[len(layer) :]
    return "", None


def _nested(layers: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """The parts of a network that stand again inside another one, as (prefix, prefix of the other name)."""
    shared = common_words([*layers])
    start = "".join(f"{word}." for word in next(iter(layers), "").split(".")[:shared])
    parts: defaultdict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in layers.items():
        words = name[len(start) :].split(".")
        for i in range(1, min(len(words), 3)):
            parts[".".join(words[:i])][".".join(words[i:])] = shape
    outer = (name for name in parts if name.count(".") == 1 and not name[-1].isdigit())
    pairs = ((inner, name) for name in outer if (inner := name.partition(".")[2]) in parts)
    same = ((inner, name) for inner, name in pairs if len(parts[name]) > 1 and parts[name] == parts[inner])
    return [(f"{start}{inner}.", f"{start}{name}.") for inner, name in same]


def _pairs(layers: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """The pairs of names under one module, one of its own and one in a list that it keeps, that hold equal shapes wherever both
    stand, in a layer that changes the width too."""
    inside: defaultdict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in layers.items():
        words = name.split(".")
        for i in (len(words) - 1, len(words) - 2):
            if i >= 0:
                inside[".".join(words[:i])][".".join(words[i:])] = shape
    equal: Counter[tuple[str, str]] = Counter()
    unequal: set[tuple[str, str]] = set()
    telling: set[tuple[str, str]] = set()
    for names in inside.values():
        for (a, first), (b, second) in combinations(names.items(), 2) if 1 < len(names) <= MOST_NAMES else ():
            pair = (a, b) if a.count(".") <= b.count(".") else (b, a)
            if "." in pair[0] or "." not in pair[1]:  # layers of two blocks, or of one, are not listed twice
                continue
            if first != second:
                unequal.add(pair)
            elif len(first) > 2:
                equal[pair] += 1
                telling |= {pair} if first[0] != first[1] else set()
    return [pair for pair, count in equal.items() if count >= FEWEST_PLACES and pair not in unequal and pair in telling]
