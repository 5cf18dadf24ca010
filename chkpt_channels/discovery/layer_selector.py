"""Which tensors a --layer names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from chkpt_channels.core.errors import AmbiguousError, Candidate, Location, UsageError
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Tensor

_WEIGHTS = (".weight", ".kernel", "/weight", "/kernel", ".weight_v", ".parametrizations.weight.original1")
_PREFIXES = pattern(r"^((module|_orig_mod)\.)+")


def match(location: Location, tensors: Sequence[Tensor], layer: str, like_hint: str) -> list[Tensor]:
    """The tensors that a --layer names: the full key; the key without container and wrapper prefixes; a dotted suffix that
    is unique in each copy of the model; a glob. The ".weight" may be left out.

    Raises UsageError with a suggestion where nothing matches, AmbiguousError where a suffix fits several tensors of a copy.
    """
    names = {layer, *(f"{layer}{end}" for end in _WEIGHTS)}
    rules: tuple[Callable[[Tensor], bool], ...] = (
        lambda t: t.name in names,
        lambda t: _PREFIXES.sub("", t.key) in names,
        lambda t: any(t.key.endswith(("." + s, "/" + s)) for s in names),
        lambda t: any(fnmatch.fnmatchcase(n, s) for n in (t.name, t.key) for s in names),
    )
    for i, rule in enumerate(rules):
        matches = [t for t in tensors if rule(t)]
        if not matches:
            continue
        # only a suffix must be unique: full keys are, and a glob may fit several
        if i == 2 and len({tensor.group for tensor in matches}) < len(matches):
            candidates = [Candidate(t.name, t.shape) for t in matches]
            what, hint = f"--layer {layer} fits {len(matches)} tensors", f"--layer {matches[0].name}   or   {like_hint}"
            raise AmbiguousError(what, file=location.file, candidates=candidates, hint=hint)
        return matches
    import difflib

    close = difflib.get_close_matches(layer, [n for t in tensors for n in (t.name, t.key, t.key.removesuffix(".weight"))], 1, 0.5)
    hint = f"--layer {close[0]}" if close else "chkpt-channels inspect --all lists them"
    raise UsageError(f"no tensor is called {layer!r}", file=location.file, hint=hint)
