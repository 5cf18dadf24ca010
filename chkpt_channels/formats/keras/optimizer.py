"""The weights to which the slots of a Keras optimizer belong.

    .h5       /optimizer_weights/<names that repeat the weight's>: Adam/m/stem/kernel:0, Adam/stem/kernel/m:0 (Keras 2),
              adam/stem_kernel_momentum (Keras 3)
    Keras 3   /optimizer/vars/<i>: the counters, then for each weight all its slots, or for each slot all weights

Keras fails to load a .keras whose slot has a stale shape. Every dataset there belongs to an entry, so that none is taken for a
weight; those that fit no weight have no parameter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from chkpt_channels.core.tensors import OptimizerEntry, Tensor


def entries(where: str, owners: Mapping[str, str], slots: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """The entries of the optimizer at `where`: `slots` by name, and for those whose weight is known its key."""
    by_weight: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    alone = []
    for name, tensor in slots.items():
        if owner := owners.get(name):
            by_weight[owner][name] = tensor
        else:
            alone.append(OptimizerEntry(f"{where}/{name.replace('/', '.')}", "", {name: tensor}, {}))
    return (*(OptimizerEntry(f"{where}/{o.replace('/', '.')}", o, tensors, {}) for o, tensors in by_weight.items()), *alone)


def by_name(slots: Iterable[str], weights: Mapping[str, str]) -> dict[str, str]:
    """Slot → key of its weight, by name. `weights` maps the weights' own names (stem/kernel) to their keys."""
    flat = {name.replace("/", "_"): key for name, key in weights.items()}
    owners = {}
    for slot in slots:
        parts = slot.partition(":")[0].split("/")
        tries = ["/".join(parts[i:j]) for i in range(1, min(3, len(parts))) for j in (len(parts), len(parts) - 1)]
        owner = next((weights[name] for name in tries if name in weights), None)
        if owner is None:
            words = parts[-1].split("_")
            owner = next((flat[name] for i in range(len(words) - 1, 0, -1) if (name := "_".join(words[:i])) in flat), None)
        if owner is not None:
            owners[slot] = owner
    return owners


def by_order(slots: Mapping[str, tuple[int, ...]], weights: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Slot → key of its weight, both with their shapes and in order. Where the order is unknown, a shape that only one
    weight has decides."""
    names, owners = [name for name, shape in slots.items() if shape], list(weights)
    shapes = [slots[name] for name in names]
    count = len(shapes) // len(owners) if owners else 0
    wanted = list(weights.values())
    if count and count * len(owners) == len(shapes):
        if shapes == [shape for shape in wanted for _ in range(count)]:
            return {name: owners[i // count] for i, name in enumerate(names)}
        if shapes == wanted * count:
            return {name: owners[i % len(owners)] for i, name in enumerate(names)}
    alone = {shape: key for key, shape in weights.items() if shape and wanted.count(shape) == 1}
    return {name: alone[shape] for name, shape in slots.items() if shape in alone}


def own_names(paths: Iterable[str]) -> dict[str, str]:
    """The variables' own names, for the datasets of an .h5 file: stem/stem/kernel:0 is stem/kernel."""
    return {re.sub(r":\d+$", "", path.partition("/")[2]): path for path in paths}
