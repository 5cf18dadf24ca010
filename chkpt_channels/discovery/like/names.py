"""Which tensor of a checkpoint is which of LIKE: by name, in each copy of the model.

What precedes the model's own names differs: the place of the state dict in its container, the wrappers of training (`module.`),
the attribute of a training script (`model.`), the copy (`ema.`, `teacher.`). All names of a copy have it in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.copies import by_group
from chkpt_channels.discovery.like import OtherNetworkError
from chkpt_channels.discovery.request import Like, LikeGroup, LikeTensor
from chkpt_channels.formats.base import TensorStore

Words = tuple[str, ...]
"""A name, cut at its dots."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Words that wrappers put into names: DataParallel and torch.compile."""
DEEPEST_PREFIX_WORDS = 4
"""Before the names of a copy: a training script and a few attributes."""
COUNTER = "num_batches_tracked"
"""The last word of BatchNorm's counters, which files of torch before 0.4.1 do not have."""


class Copy(NamedTuple):
    """One copy of the model: its tensors with those of LIKE, in the order of the file; `extra` and `missing` are those that only
    the file has, or only LIKE. Tied names and counters are in neither, nor what a module of LIKE keeps beside its state dict."""

    pairs: tuple[tuple[Tensor, LikeTensor], ...]
    extra: tuple[Tensor, ...]
    missing: tuple[LikeTensor, ...]


class Matching(NamedTuple):
    """The copies of the model, and the tensors of the file that are in none."""

    copies: tuple[Copy, ...]
    outside: tuple[Tensor, ...]


T = TypeVar("T", Tensor, LikeTensor)


class _Placed(NamedTuple):
    """A copy before its names are compared: what precedes them, its tensors by LIKE's names, and LIKE's."""

    prefix: Words
    own: Mapping[Words, Tensor]
    names: Mapping[Words, LikeTensor]


def match(store: TensorStore, like: Like) -> Matching:
    """The tensors of every copy with those of LIKE. Raises OtherNetworkError where LIKE has none of their names."""
    copies: list[Copy] = []
    outside: list[Tensor] = []
    for tensors in by_group(store.model_tensors()):
        known = _by_words(tensors)
        placed = _best(store.location.file, tensors[0].group, known, like)
        taken = {id(tensor) for copy in placed for tensor in copy.own.values()}
        extras: list[list[Tensor]] = [[] for _ in placed]
        begins = [_wrapped_prefix(copy) for copy in placed]
        for words, tensor in known.items():
            if id(tensor) not in taken:
                number = _home(words, tensor, placed, begins)
                (outside if number is None else extras[number]).append(tensor)
        copies += [_compared(store, copy, extra) for copy, extra in zip(placed, extras, strict=True)]
    if not copies:
        what = f"its tensors have other names than those of {like.file}, which is no checkpoint of the same architecture"
        raise OtherNetworkError(what, file=store.location.file)
    return Matching(tuple(copies), tuple(outside))


def _best(file: str, group: str, known: Mapping[Words, Tensor], like: Like) -> list[_Placed]:
    """The copies of the model in one state dict, by that state dict of LIKE which has the same place, or else the most names."""

    def rank(other: LikeGroup, placed: Sequence[_Placed]) -> tuple[bool, bool, int]:
        same_part = bool(other.part) and file.endswith(other.part)
        return same_part, other.group == group, sum(len(copy.own) for copy in placed)

    found = [(other, placed) for other in like.groups if (placed := _placed(known, other))]
    return max(found, key=lambda pair: rank(*pair))[1] if found else []


def _placed(known: Mapping[Words, Tensor], other: LikeGroup) -> list[_Placed]:
    for names in _readings(_by_words(other.tensors)):
        if copies := _copies(known, names):
            return copies
    return []


def _readings(names: Mapping[Words, LikeTensor]) -> Iterator[Mapping[Words, LikeTensor]]:
    """LIKE's names without what precedes all of them; then without what precedes most of them: the model in a training script's
    state dict, beside its loss."""
    names = _shortened(names)
    yield names
    for _ in range(DEEPEST_PREFIX_WORDS):
        word, count = Counter(words[0] for words in names).most_common(1)[0] if names else ("", 0)
        if 2 * count < len(names):
            return
        inner = _shortened({words[1:]: tensor for words, tensor in names.items() if words[0] == word and len(words) > 2})
        if not inner or len(inner) == len(names):
            return
        names = inner
        yield names


def _shortened(names: Mapping[Words, LikeTensor]) -> Mapping[Words, LikeTensor]:
    """The names without the words that all of them begin with; two words stay, a module and its tensor: every layer has a
    `weight`."""
    if not names:
        return names
    first, last = min(names), max(names)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    cut = max(0, min(common, min(map(len, names)) - 2))
    return {words[cut:]: tensor for words, tensor in names.items()}


def _copies(known: Mapping[Words, Tensor], names: Mapping[Words, LikeTensor]) -> list[_Placed]:
    """The copies of a model with these names: each has at least half of them after its prefix."""
    # a lone layer's `weight` is the end of every name
    most = DEEPEST_PREFIX_WORDS if any(len(words) > 1 for words in names) else 0
    counts = Counter(words[:at] for words in known for at in range(min(most, len(words) - 1) + 1) if words[at:] in names)
    copies: list[_Placed] = []
    taken: set[Words] = set()
    for prefix, count in sorted(counts.items(), key=lambda pair: (-pair[1], len(pair[0]))):
        if 2 * count < len(names):
            break
        own = {words[len(prefix) :]: words for words in known if words[: len(prefix)] == prefix and words not in taken}
        own = {rest: words for rest, words in own.items() if rest in names}
        if 2 * len(own) >= len(names):
            taken |= {*own.values()}
            copies.append(_Placed(prefix, {rest: known[words] for rest, words in own.items()}, names))
    return copies


def _home(words: Words, tensor: Tensor, copies: Sequence[_Placed], begins: Sequence[str]) -> int | None:
    """The index of the copy that a further tensor belongs to, the innermost one by its prefix; None where it is beside them: an
    averaged model's counter beside `module.`, the decay beside `ema.`. `begins` is what their keys begin with."""
    homes = [
        i
        for i, copy in enumerate(copies)
        if words[: len(copy.prefix)] == copy.prefix and tensor.key.replace("/", ".").startswith(begins[i])
    ]
    if not homes:
        return None
    home = max(homes, key=lambda i: len(copies[i].prefix))
    prefix = copies[home].prefix
    beside = any(len(copy.prefix) > len(prefix) and copy.prefix[: len(prefix) + 1] == words[: len(prefix) + 1] for copy in copies)
    return None if beside else home


def _wrapped_prefix(copy: _Placed) -> str:
    """What precedes LIKE's names in all keys of a copy, with its wrappers."""
    keys = [tensor.key.replace("/", ".").split(".") for tensor in copy.own.values()]
    first, at, plain = keys[0], 0, 0
    while plain < len(copy.prefix):
        plain += first[at] not in WRAPPERS or copy.prefix[plain] == first[at]
        at += 1
    while all(at < len(key) - 1 and key[at] == first[at] in WRAPPERS for key in keys):
        at += 1
    return "".join(f"{word}." for word in first[:at])


def _compared(store: TensorStore, copy: _Placed, extra: Sequence[Tensor]) -> Copy:
    pairs = {tensor.name: (tensor, copy.names[words]) for words, tensor in copy.own.items()}
    absent = [other for words, other in copy.names.items() if words not in copy.own]
    present = {other.memory for _, other in pairs.values()}
    # a name that only one of the two has may be a second one for a tensor that both have: safetensors keeps one of tied names
    same = {store.memory(tensor.name): other for tensor, other in pairs.values()}
    tied = {t.name: (t, same[memory]) for t in extra if (memory := store.memory(t.name)) in same}
    return Copy(
        pairs=tuple({**pairs, **tied}.values()),
        extra=tuple(t for t in extra if t.name not in tied and not t.key.endswith(COUNTER)),
        missing=tuple(o for o in absent if o.memory not in present and not o.key.endswith(COUNTER) and not o.beside),
    )


def _by_words(tensors: Sequence[T]) -> dict[Words, T]:
    """The tensors by their names without the words of wrappers, where they stay distinct."""
    names = [tuple(t.key.replace("/", ".").split(".")) for t in tensors]
    plain: list[Words] = [tuple(word for word in words[:-1] if word not in WRAPPERS) + words[-1:] for words in names]
    return dict(zip(plain if len({*plain}) == len(names) else names, tensors, strict=True))
