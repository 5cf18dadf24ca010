"""What the network wants as input after a conversion: which numbers normalize its images, and whether they make it exact.

The old network saw (raw - mean) / std of each old channel. Where the new one is fed with the means of these numbers, the rule is
exact if folding both normalizations into it would leave it as it is (docs/normalization.md). Where nothing says what the old
numbers were, that is asked, and each answer has its line: ImageNet's are never assumed.
"""

from __future__ import annotations

from collections.abc import Iterator

from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import Notice, PreprocessingOp
from chkpt_channels.discovery import bias_target
from chkpt_channels.discovery.catalogue.entry import Recognized
from chkpt_channels.folders.config_normalization import Stated, option, stated
from chkpt_channels.folders.model import Model
from chkpt_channels.folders.planning import PlannedModel
from chkpt_channels.transform.mixing.matrix import Mixing
from chkpt_channels.transform.mixing.normalization import (
    NORMS,
    Normalization,
    NormalizationSpec,
    Orders,
    fold_normalization,
    named,
)
from chkpt_channels.transform.mixing.rules import ADAPTER, GRAPH_METHODS
from chkpt_channels.transform.options import Options

LATENTS = (4, 16)
"""Channels of latents: Stable Diffusion's, and those of SD 3 and FLUX."""
MOST_ANSWERS = 4


class Case(NamedTuple):
    """What the advice depends on: the rule of images, without normalizations; the order of colors on both sides; what is
    asked for, and the new; those in the file; what is stated of the old one; whether a constant can be folded."""

    rule: Mixing
    orders: Orders = ("rgb", "rgb")
    asked: NormalizationSpec = NormalizationSpec()
    pipeline: Normalization | None = None
    inside: tuple[PreprocessingOp, ...] = ()
    known: tuple[Stated, ...] = ()
    can_fold: bool = True


def input_advice(
    model: Model, planned: PlannedModel, options: Options, recognized: Recognized | None = None
) -> tuple[Notice, ...]:
    """The lines of advice for a planned conversion, each with a code; none where nothing changes."""
    (part, plan), (old, new) = planned.parts[0], planned.channels
    if options.plain["fold_adapter"]:
        return (Notice("input_same", "feed it the images that the adapter took, as they are"),)
    if not any(plan.edits for _, plan in planned.parts):
        return ()
    inside = tuple(op for op in plan.operations if op.shift is not None and (any(op.shift) or not op.uniform))
    kernels = [kernel for kernel in plan.kernels if not kernel.mixing.is_identity]
    can_fold = all(
        kernel.mixing.method == ADAPTER
        or (kernel.mixing.method not in GRAPH_METHODS and (part.store.adds_tensors or bias_target.find(part.store, kernel.conv)))
        for kernel in kernels
    )
    try:
        known = stated(model.described(part).configs, None if inside else recognized)
    except UnsupportedError:  # more is done to the images than mean and std
        known = ()
    fitting = tuple(one for one in known if {len(one.norm.mean), len(one.norm.std)} <= {1, old})
    rule = options.rule._replace(to=new).mixing(old)
    return tuple(advice(Case(rule, options.rule.orders, options.norm, plan.pipeline, inside, fitting, can_fold)))


def advice(case: Case) -> Iterator[Notice]:
    """The lines of advice."""
    if case.pipeline:
        trained = case.asked.old(case.rule.old, case.orders[0])
        yield Notice("input_trained", f"as the options have it, the network was trained on values of {fed_range(trained)}")
        yield Notice("input_feed", f"feed it {normalize(case.pipeline)}{_in_colors(case)}")
    elif case.inside and not case.known:
        where = ", ".join(op.where for op in case.inside)
        yield Notice("input_inside", f"the normalization is in the file ({where}): nothing changes, feed it raw images as before")
    elif case.rule.old in LATENTS and case.rule.new > case.rule.old and not case.known:
        yield from _latents(case)
    elif case.known:
        yield from _by_numbers(case)
    elif case.rule.is_placed:
        yield Notice("input_order", _places(case.rule) + _in_colors(case))
    elif case.rule.keeps_levels:
        yield from _question(case)
    else:
        numbers = "one mean and one std" if case.rule.new == 1 else f"{case.rule.new} means and stds"
        yield Notice("input_numbers", f"feed it images normalized with {numbers}: the averages of the old ones")


def _by_numbers(case: Case) -> Iterator[Notice]:
    """Where the old numbers are stated: those before and after. Several are the answers to a question."""
    if len(case.known) == 1:
        (one,) = case.known
        before, after = normalize(_whole(one, case.rule.old)), normalize(_new(case, one))
        if case.rule.is_placed:
            yield Notice("input_order", f"{one.by}: {before} becomes {after}{_in_colors(case)}")
        elif not case.rule.keeps_levels:
            yield Notice("input_numbers", f"{one.by}: {before} becomes {after}, their averages")
        elif _is_exact(case, one):
            message = f"{one.by}: every channel has the same mean and std, so that {_rule(case)} is exact: feed it {after}"
            yield Notice("input_exact", message)
        else:
            yield Notice("input_close", f"{one.by}: {before} becomes {after}")
            yield Notice("input_fold", _remedy(case, one))
        return
    yield Notice("input_unknown", "which weights was it made with? pretrained ones of this architecture differ in mean and std")
    yield from (_answer(case, one, one.by) for one in case.known[:MOST_ANSWERS])
    if len(case.known) > MOST_ANSWERS:
        yield Notice("input_more", f"and {len(case.known) - MOST_ANSWERS} more")


def _question(case: Case) -> Iterator[Notice]:
    """Where nothing is stated: one question, and its two answers."""
    yield Notice("input_unknown", "how were its training images normalized? the file does not say")
    equal = Stated("", Normalization((0.5,), (0.5,)))
    yield _answer(case, equal, "with one mean and std for all channels, such as 0.5 and 0.5, or not at all")
    each, order = "with a mean and std for each", case.orders[0]
    if case.rule.old == len(order):
        mean, std = (values[::-1] if order == "bgr" else values for values in NORMS["imagenet"][:2])
        unequal = Stated("", Normalization(mean, std), order)
        yield _answer(case, unequal, f"{each}, such as ImageNet's 0.485, 0.456, 0.406")
    else:
        stating = "convert with --mean and --std, which fold them into the weights" if case.can_fold else _INEXACT
        yield Notice("input_if_unequal", f"{each}: {stating}")


_INEXACT = "close, not exact: nothing here takes the difference"


def _answer(case: Case, one: Stated, which: str) -> Notice:
    after = normalize(_new(case, one))
    if case.rule.is_placed or not case.rule.keeps_levels:
        return Notice("input_if", f"{which}: feed it {after}")
    if _is_exact(case, one):
        return Notice("input_if_equal", f"{which}: {_rule(case)} is exact, and the new input takes the same: {after}")
    if not case.can_fold:
        return Notice("input_if_unequal", f"{which}: feed it {after}; {_INEXACT}")
    return Notice("input_if_unequal", f"{which}: convert with {option(one)}, and feed it {_folded(one, after)}")


def _rule(case: Case) -> str:
    return "the sum" if case.rule.method == "sum" else "this rule"


def _remedy(case: Case, one: Stated) -> str:
    """What makes the conversion exact."""
    if not case.can_fold:
        return _INEXACT
    raw = f", and takes {_folded(one, '')}" if one.norm.input_range != 1 and named(one.norm, one.order) else ""
    asking = option(one) if named(one.norm, one.order) else "--norm auto"
    return f"close, not exact: {asking} folds the difference into the weights{raw}"


def _folded(one: Stated, after: str) -> str:
    """What is fed after a preset was folded in: images in its own range, where that is not 0..1."""
    top = one.norm.input_range
    return f"images in 0..{top:g} as they are" if top != 1 and named(one.norm, one.order) else after


def _latents(case: Case) -> Iterator[Notice]:
    """Channels of latents, or bands of an image: the count does not tell."""
    placed = _places(case.rule)
    starts = "" if case.rule.method == "zero" else ", and --method zero keeps the answers until new channels are trained"
    yield Notice("input_latents", f"latents have no mean and std{starts}")
    yield Notice("input_order", f"bands of an image: {placed}")


def _whole(one: Stated, channels: int) -> Normalization:
    """A number that holds for all channels, once for each."""
    mean, std = (values * channels if len(values) == 1 else values for values in one.norm[:2])
    return Normalization(mean, std, one.norm.input_range)


def _spec(one: Stated) -> NormalizationSpec:
    """What is stated, for images in 0..1."""
    return NormalizationSpec(mean=one.norm.mean, std=tuple(value / one.norm.input_range for value in one.norm.std))


def _new(case: Case, one: Stated) -> Normalization:
    """The new numbers, for images of the old range."""
    new, top = _spec(one).new(case.rule, case.orders), one.norm.input_range
    return Normalization(new.mean, tuple(value * top for value in new.std), top)


def _is_exact(case: Case, one: Stated) -> bool:
    """Whether folding the old and the new normalization into the rule would leave it as it is."""
    folded = fold_normalization(case.rule, _spec(one), case.orders)
    pairs = zip(sum(folded.matrix, ()), sum(case.rule.matrix, ()), strict=True)
    return all(abs(a - b) < 1e-9 for a, b in pairs) and all(abs(shift) < 1e-9 for shift in folded.offset)


def _places(rule: Mixing) -> str:
    sources = rule.sources
    fresh = [str(j) for j, source in enumerate(sources) if source is None]
    if rule.old == 1 and not fresh:
        return f"the mean and std of gray hold for each of its {rule.new} channels"
    own = f"; {', '.join(fresh)} begin at zero, with any of their own" if fresh else ""
    replaced = ", ".join(str(source) for source in sources if source is not None)
    return f"its channels take the means and stds of the old channels {replaced}{own}"


def _in_colors(case: Case) -> str:
    """The order of the colors, where the new channels are the colors of the old ones in another order, or blue comes first."""
    if case.rule.new != len("rgb"):
        return ""
    letters = case.orders[0] if case.rule.old == len("rgb") else ""
    new = "".join(letters[i] for i in case.rule.sources if i is not None) if letters else case.orders[1]
    return f", in the order {', '.join(new.upper())}" if len(new) == len("rgb") and new != "rgb" else ""


def fed_range(norm: Normalization) -> str:
    """The values that images have which are normalized so: "−2.1 to 2.6"."""
    scale, shift = norm.affine
    return f"{_short(min(shift))} to {_short(max(a + b for a, b in zip(scale, shift, strict=True)))}"


def _short(value: float) -> str:
    return f"{round(value, 1 if abs(value) < 100 else 0) + 0.0:g}".replace("-", "−")


def normalize(norm: Normalization) -> str:
    """The normalization, ready to paste: "Normalize(mean=[0.449], std=[0.226])"."""
    top = norm.input_range
    if not any(norm.mean) and set(norm.std) == {1}:
        return f"images in 0..{top:g} as they are"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in ([m * top for m in norm.mean], norm.std))
    return f"Normalize(mean=[{mean}], std=[{std}])" + (f" on images in 0..{top:g}" if top != 1 else "")
