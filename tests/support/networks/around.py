"""What is around a network in a file: prefixes, EMA copies, a second name of a module."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.networks.draw import Draw, Net
from tests.support.networks.traps import Trap

PREFIXES = ("module", "model", "net", "model.model", "_orig_mod", "backbone", "student")
COPIES = (
    ("model", "model_ema.module"), ("online_model", "ema_model"), ("student", "teacher"), ("module", "ema.ema_model"),
    ("net", "net_ema"), ("model", "averaged.module"),
)  # fmt: skip


def wrapped(d: Draw, family: Callable[[Draw], Net]) -> Net:
    """The network itself mostly."""
    kind = d.weighted({"bare": 14, "prefix": 4, "copy": 1.5, "alias": 1})
    if kind == "copy":
        d.reach(Trap.EMA)
        first, second = d.again(family)
        net = Net(lambda *x: (first(*x), second(*x)), dict(zip(d.pick(*COPIES), (first, second), strict=True)))
        net.inputs = first.inputs
        return net
    inner = family(d)
    if kind == "bare":
        return inner
    names = [d.pick(*PREFIXES)]
    if kind == "alias":
        d.reach(Trap.ALIASES)
        names = [*d.pick(("encoder", "decoder.encoder"), ("model", "learner.model"), ("backbone", "body"))]
    else:
        d.reach(Trap.PREFIXED)
    net = Net(lambda *x: inner(*x), dict.fromkeys(names, inner))
    net.inputs = inner.inputs
    return net
