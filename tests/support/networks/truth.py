"""The truth of a drawn network, by the difference between its shapes at two counts, and the verdicts of the search."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import nn

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Finding, Tensor
from chkpt_channels.discovery.law.search import find
from tests.support.networks.draw import Draw, Net
from tests.support.networks.grammar import build, owners, run
from tests.support.networks.traps import Trap

COUNTS = {(3, 1): 14, (4, 3): 1, (4, 1): 1, (6, 3): 1, (13, 3): 2, (6, 1): 0.5, (13, 1): 0.5}
"""Channels of a network as it is trained with more, and with fewer."""
DTYPES = {torch.float32: "F32", torch.int64: "I64"}


class Question(NamedTuple):
    """The network of a seed with `channels`, which is to have `wanted`; `ordered` as .pth keeps it, or by names."""

    seed: int
    channels: int
    wanted: int
    ordered: bool

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.channels} to {self.wanted} channels, {'in module order' if self.ordered else 'by names'}"


class Truth(NamedTuple):
    """`stems` maps a kernel to its layout, and is empty where nothing can be converted. `vectors` have the image's channels too.
    `accepted` are other sets of kernels that are as right, as far as a state dict can tell; the empty one is a refusal that
    names the stems."""

    stems: dict[str, str]
    vectors: frozenset[str]
    accepted: tuple[frozenset[str], ...]
    traps: frozenset[Trap]


class Verdict(NamedTuple):
    """right, refused or wrong; and what was found."""

    word: str
    finding: Finding


def layout_of(module: nn.Module) -> str:
    """Of an ordinary kernel."""
    if isinstance(module, nn.Linear):
        return "OI"
    axes = "DHW"[3 - (module.weight.dim() - 2) :] if module.weight.dim() > 3 else "W"
    return ("IO" if module.transposed else "OI") + axes


def owner(name: str, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The kernel's module, by the longest name that precedes."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            return modules[name]
    return None


def keys_of(kernels: list[nn.Module], net: Net) -> frozenset[str]:
    """The names of the kernels of modules."""
    modules, wanted = owners(net), {id(kernel) for kernel in kernels}
    return frozenset(name for name, value in net.state_dict().items() if value.dim() > 2 and id(owner(name, modules)) in wanted)


def is_image_axis(old: tuple[int, ...], new: tuple[int, ...], channels: int, wanted: int) -> bool:
    """Whether one axis differs, and holds the image's channels and nothing beside them."""
    axes = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    return len(axes) == 1 and axes[0][0] * wanted == axes[0][1] * channels and axes[0][0] % channels == 0


def truth_of(net: Net, draw: Draw, other: Net, wanted: int) -> Truth:
    """What differs between a network and the same for images of `wanted` channels."""
    old, new, modules = net.state_dict(), other.state_dict(), owners(net)
    assert old.keys() == new.keys()
    layouts = {id(module): layout for module, layout in draw.layouts}
    beside, behind = keys_of(draw.beside, net), keys_of(draw.behind, net)
    stems, vectors, refuse = {}, set(), draw.refuse
    for name, value in old.items():
        if value.shape == new[name].shape:
            continue
        refuse |= name not in beside and not is_image_axis(value.shape, new[name].shape, draw.channels, wanted)
        module = owner(name, modules)
        if module is None or value.dim() < 2:
            vectors.add(name)
        elif name not in behind:
            stems[name] = layouts.get(id(module)) or layout_of(module)
    accepted = [frozenset[str]()] if refuse or beside or behind or draw.refusable else []
    same = [kernel for kernel, channels in draw.others if channels == draw.channels]
    if same and not refuse:
        accepted += [frozenset(stems) | keys_of(same, net), frozenset()]
    return Truth({} if refuse else stems, frozenset(vectors), tuple(accepted), frozenset(draw.traps))


def questions(seed: int) -> list[Question]:
    """Both ways between two counts, and both orders."""
    many, few = Random(-seed - 1).choices(list(COUNTS), list(COUNTS.values()))[0]
    return [Question(seed, *pair, ordered) for pair in ((many, few), (few, many)) for ordered in (True, False)]


def tensors_of(net: Net, ordered: bool) -> list[Tensor]:
    """As a .pth lists them, or as a .safetensors does: wide dtypes first, then by name."""
    tensors = [Tensor(name, BY_NAME[DTYPES[value.dtype]], tuple(value.shape)) for name, value in net.state_dict().items()]
    return tensors if ordered else sorted(tensors, key=lambda tensor: (-tensor.dtype.bits, tensor.name))


def fits(found: Layout | None, true: str, shape: tuple[int, ...]) -> bool:
    """Whether a layout is true, or left open. Where a space-to-depth stem of a gray image takes four channels, it is that of an
    image of four until something else says so."""
    return found is None or str(found) == true or (Layout(true).folded and not found.folded and shape[1] == 4)


def names_all(net: Net, truth: Truth, finding: Finding) -> bool:
    """Whether a refusal names the stems: of copies and names of one kernel, which have its shape, one."""
    shapes, said = net.state_dict(), {candidate.key for candidate in finding.candidates}
    named = {name for name in truth.stems if name in said or name.removesuffix(".weight") in finding.why_not}
    return {shapes[name].shape for name in truth.stems} == {shapes[name].shape for name in named}


def judge(net: Net, truth: Truth, ordered: bool) -> Verdict:
    """What the search says. A layout may be left open, not be wrong."""
    finding = find(tensors_of(net, ordered), ordered=ordered, torch=True)
    found = {conv.tensor.name: conv for conv in finding.first_convs}
    # a shift of the colors in front is composed into the kernel behind it where its numbers are diagonal, and refused elsewhere
    shifts = truth.stems.keys() & {tensor.name for tensor in finding.input_vectors}
    is_behind = bool(shifts) and truth.stems.keys() - shifts <= found.keys() and len(found) == len(truth.stems)
    if not found:
        return Verdict("right" if frozenset() in truth.accepted and names_all(net, truth, finding) else "refused", finding)
    if found.keys() in truth.accepted or is_behind:
        return Verdict("right", finding)
    same = found.keys() == truth.stems.keys()
    right = same and all(fits(conv.layout, truth.stems[name], conv.tensor.shape) for name, conv in found.items())
    return Verdict("right" if right else "wrong", finding)


def verdicts(seed: int) -> list[tuple[Question, Truth, Verdict]]:
    """The four questions of a seed; that the network runs is checked on the way."""
    answers = []
    asked = questions(seed)
    for question in asked[::2]:
        net, draw = build(seed, question.channels)
        other, _ = build(seed, question.wanted, question.channels)
        run(net)
        run(other)
        truth = truth_of(net, draw, other, question.wanted)
        answers += [(q, truth, judge(net, truth, q.ordered)) for q in asked if q.channels == question.channels]
    return answers
