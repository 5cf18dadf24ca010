"""Several names of one module, and several copies of one model, in one state dict.

Names: nnU-Net's encoder.stages.0.0.convs.0.conv is its all_modules.0 too, and all of `encoder.` stands again below `decoder.`.
Copies: EMA, teacher and student, query and key encoders. They are no rivals: a search sees one, and its answer goes to all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.network import common_words, is_weight, layer_of

Shape = tuple[int, ...]

FEWEST_PLACES = 3
"""At which two names hold equal shapes: in fewer a block of two equal layers looks so."""
MOST_NAMES = 8
"""In a module that is asked for pairs: one with more holds a series of layers."""
DEEPEST_PREFIX_WORDS = 3
"""Of the name of a copy: "state_dict" is stripped already, and wrappers add one or two (module.teacher.backbone)."""
FEWEST_LAYERS = 2
"""Of a copy: a prefix of one layer is that layer."""
COVERED_SHARE = 0.7
"""The share of all layers that the copies must hold together: repeated blocks of one model hold less."""

_AVERAGED = pattern(r"ema|avg|averag|swa|mean|shadow|target|moment|(_|^)(q|k|key|query)$|copy|old|best")
"""Words in the names of copies that see the same image, and of those that one has alone: `net` and `net_ema`."""
_IN_A_ROW = pattern(r"coarse|refin|first|second")


class Copies:
    """The tensors of one state dict, each once (`kept`): of one of its copies, and under one of its names there.
    `may_be_in_a_row` says that the names of copies are those of two networks, one of which may take what the other makes: g_ab
    and g_ba."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._replicas = Replicas(tensors)
        self._aliases = Aliases(self._replicas.kept)
        self.kept, self.may_be_in_a_row = self._aliases.kept, self._replicas.may_be_in_a_row

    def of(self, tensor: Tensor) -> list[Tensor]:
        """A tensor under all its names, in all copies of the model."""
        return [copy for alias in self._aliases.of(tensor) for copy in self._replicas.of(alias)]


def by_group(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """The tensors of each state dict."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.group].append(tensor)
    return [*groups.values()]


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


class Replicas:
    """The tensors of one of the copies, and those that belong to none (`kept`); `of` finds a tensor in every copy.

    The search sees one copy, and its answer goes to all: a copy that keeps its old channels would be loaded by a library that
    prefers it (timm takes state_dict_ema first)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        weights = {t.key: t for t in tensors if is_weight(t)}
        self._levels: list[tuple[str, tuple[str, ...]]] = []
        while (level := _copies({key: t.shape for key, t in weights.items()}))[1]:  # `ema.` may hold a student and a teacher
            self._levels.append(level)
            weights = {key: t for key, t in weights.items() if not key.startswith(level[1])}
        others = tuple(prefix for _, prefixes in self._levels for prefix in prefixes)
        self.kept = [t for t in tensors if not others or not t.key.startswith(others)]
        self.may_be_in_a_row = any(_may_be_in_a_row(first, prefix) for first, prefixes in self._levels for prefix in prefixes)
        self._flattened = Flattened(tensors)
        self._by_key = {t.key: t for t in tensors} if self._levels else {}

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The tensor and its like in every other copy."""
        keys = [tensor.key]
        for first, others in reversed(self._levels):
            keys += [other + key[len(first) :] for key in keys if key.startswith(first) for other in others]
        found = [tensor, *(self._by_key[key] for key in keys[1:] if key in self._by_key)]
        return [*found, *(copy for t in found for copy in self._flattened.of(t))]


class Flattened:
    """The copies of tensors in their state dict under names without dots: latent diffusion's LitEma keeps the average of
    `model.diffusion_model.input_blocks.0.0.weight` as the buffer `model_ema.diffusion_modelinput_blocks00weight`, because the
    name of a buffer has no dots. Others put "_" for them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._by_last: defaultdict[str, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            self._by_last[tensor.name.rpartition("/")[2].rpartition(".")[2]].append(tensor)

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The copies of a tensor."""
        words = tensor.key.split(".")
        names = dict.fromkeys(joint.join(words[i:]) for i in range(len(words) - 1) for joint in ("", "_"))
        alike = (t for name in names for t in self._by_last.get(name, ()))
        return [t for t in alike if t.shape == tensor.shape and t.group == tensor.group and t.name != tensor.name]


def _copies(shapes: Mapping[str, Shape]) -> tuple[str, tuple[str, ...]]:
    """The prefix of the first copy and those of the others; no others where there is one copy only."""
    sizes = Counter(prefix for key in shapes for prefix in _prefixes(key))
    large = {p: n for p, n in sizes.items() if n >= FEWEST_LAYERS and n * 5 >= len(shapes) and n < len(shapes)}
    # half of the layers below a prefix, the other half without it: a model and its `ema.`
    for prefix in (p for p, n in large.items() if 2 * n == len(shapes)):
        if _inside(shapes, prefix) == frozenset((k, s) for k, s in shapes.items() if not k.startswith(prefix)):
            return "", (prefix,)
    counts = Counter(large.values())
    alike: defaultdict[frozenset[tuple[str, Shape]], list[str]] = defaultdict(list)
    for prefix in (p for p, n in large.items() if counts[n] > 1):
        alike[_inside(shapes, prefix)].append(prefix)
    for prefixes in sorted(alike.values(), key=lambda names: min(map(len, names))):
        covered = sum(sizes[p] for p in prefixes)
        if len(prefixes) > 1 and COVERED_SHARE * len(shapes) <= covered and _are_roots(prefixes, covered == len(shapes)):
            return prefixes[0], tuple(prefixes[1:])
    return "", ()


def _may_be_in_a_row(first: str, other: str) -> bool:
    """Whether two prefixes differ in one word, which begins alike in both and names no average, or says that one comes later."""
    words = [(a, b) for a, b in zip(first.split("."), other.split("."), strict=False) if a != b]
    if first.count(".") != other.count(".") or len(words) != 1 or any(_AVERAGED.search(word) for word in words[0]):
        return False
    return words[0][0][:2] == words[0][1][:2] or any(_IN_A_ROW.search(word) for word in words[0])


def _prefixes(key: str) -> list[str]:
    """The prefixes that a copy may have. One that ends in a number is a repeated block: RetinexFormer's body.0 and body.1 are
    networks in a row, with the same layers."""
    words = key.split(".", DEEPEST_PREFIX_WORDS + 1)[: DEEPEST_PREFIX_WORDS + 1]
    return [".".join(words[:i]) + "." for i in range(1, len(words)) if not words[i - 1][-1:].isdigit()]


def _inside(shapes: Mapping[str, Shape], prefix: str) -> frozenset[tuple[str, Shape]]:
    return frozenset((key[len(prefix) :], shape) for key, shape in shapes.items() if key.startswith(prefix))


def _are_roots(prefixes: Sequence[str], is_all: bool) -> bool:
    """Whether none is inside another and all are equally deep, or hold all there is: `blocks` and `ema.blocks` are parts of
    copies, `model` and `averaged.module` are copies."""
    depths = {prefix.count(".") for prefix in prefixes}
    return (is_all or len(depths) == 1) and not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)
