"""The arrays of an optimizer beside the parameters that they are kept for.

    opt_state/0/mu/<parameter>                      optax: a tree of the parameters for each slot; counters stand alone
    optimizer/state/param_states/<parameter>/mu     flax.optim, before 0.6, whose optimizer/target is the model
    opt/…                                           big_vision

Source: flax/training/train_state.py, optax/_src/transform.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import OptimizerEntry, Tensor

_ROOT = pattern(r"(?:.*/)?(?:opt|optimizer|opt_states?|optimizer_states?)/(?!target/)")
"""The path into an optimizer."""


def entries(tensors: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """What the optimizers keep for each tensor, and what they keep for none: counters, rates, and placeholders of one number."""
    kept = {name: match.end() for name in tensors if (match := _ROOT.match(name))}
    parameters: dict[str, str] = {}
    for name in sorted(tensors.keys() - kept.keys(), key=lambda name: not name.startswith("params/")):
        words = name.split("/")
        for i in range(len(words)):
            if not i or words[i - 1] in ("params", "target") or (i == 1 and "params" not in words):
                parameters.setdefault("/".join(words[i:]), name)
    slots: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    alone = []
    for name, begin in kept.items():
        if owner := _owner(name[begin:].split("/"), parameters):
            path, slot, parameter = owner
            if len(tensors[name].shape) or tensors[name].shape == tensors[parameter].shape:
                slots[name[:begin] + path, parameter][slot] = tensors[name]
                continue
        alone.append(OptimizerEntry(name.replace("/", "."), "", {name: tensors[name]}, {}))
    owned = (OptimizerEntry(f"{where}/{p}", p, each, {}) for (where, p), each in slots.items())
    return (*owned, *alone)


def _owner(words: list[str], parameters: Mapping[str, str]) -> tuple[str, str, str] | None:
    """(the path before the slot, the slot, the parameter's name) of one array: the parameter stands last, or the slot does."""
    for last in (len(words), len(words) - 1):
        for first in range(1 if last == len(words) else 0, last):
            if parameter := parameters.get("/".join(words[first:last])):
                slot, path = (words[first - 1], words[: first - 1]) if last == len(words) else (words[-1], words[:first])
                return "/".join(path), slot, parameter
    return None
